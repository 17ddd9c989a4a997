#pragma once

// What the operators for LibTorch share: checks with Python's messages, tensors as the kernels read them, devices, autocast.

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <ATen/autocast_mode.h>
#include <c10/core/ScalarType.h>

#include <array>
#include <cstdint>
#include <initializer_list>
#include <optional>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

#include "ddu/error.h"
#include "ddu/unfold.h"

#if defined(DDU_TORCH_CUDA)
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#endif

namespace ddu {

using Pair = std::array<std::int64_t, 2>;  ///< (height, width)

struct TorchOptions {
  Pair stride{1, 1};
  Pair padding{0, 0};
  Pair dilation{1, 1};
  std::int64_t groups = 1;
  PaddingMode padding_mode = PaddingMode::zeros;
};

namespace torch_detail {

inline Options options_of(Pair kernel_size, const TorchOptions& given) {
  Options options;
  for (std::size_t i = 0; i < 2; ++i) {
    options.kernel_size[i] = kernel_size[i];
    options.stride[i] = given.stride[i];
    options.padding[i] = given.padding[i];
    options.dilation[i] = given.dilation[i];
  }
  options.groups = given.groups;
  options.padding_mode = given.padding_mode;
  return options;
}

/// Options of a call whose groups are the map's.
inline Options options_of(Pair kernel_size, const TorchOptions& given, const at::Tensor& map) {
  Options options = options_of(kernel_size, given);
  options.groups = map.defined() && map.dim() >= 3 ? map.size(-3) : 1;
  return options;
}

inline std::optional<DType> dtype_of(const at::Tensor& tensor) {
  switch (tensor.scalar_type()) {
    case at::kHalf:
      return DType::float16;
    case at::kBFloat16:
      return DType::bfloat16;
    case at::kFloat:
      return DType::float32;
    case at::kDouble:
      return DType::float64;
    default:
      return std::nullopt;
  }
}

/// As Python prints it: "torch.int64".
inline std::string dtype_name(const at::Tensor& tensor) {
  static constexpr std::pair<at::ScalarType, const char*> names[] = {{at::kByte, "uint8"},
                                                                     {at::kChar, "int8"},
                                                                     {at::kShort, "int16"},
                                                                     {at::kInt, "int32"},
                                                                     {at::kLong, "int64"},
                                                                     {at::kHalf, "float16"},
                                                                     {at::kFloat, "float32"},
                                                                     {at::kDouble, "float64"},
                                                                     {at::kComplexHalf, "complex32"},
                                                                     {at::kComplexFloat, "complex64"},
                                                                     {at::kComplexDouble, "complex128"}};
  for (const auto& [type, name] : names) {
    if (type == tensor.scalar_type()) return std::string("torch.") + name;
  }
  std::string name = std::string("torch.") + c10::toString(tensor.scalar_type());  // the others differ in case alone
  for (char& c : name) {
    if (c >= 'A' && c <= 'Z') c = static_cast<char>(c - 'A' + 'a');
  }
  return name;
}

/// As Python prints it: "torch.sparse_coo", and a nested tensor as what it is.
inline std::string layout_name(const at::Tensor& tensor) {
  static constexpr std::pair<at::Layout, const char*> names[] = {
      {at::kStrided, "strided"},      {at::kSparse, "sparse_coo"},    {at::kSparseCsr, "sparse_csr"},
      {at::kSparseCsc, "sparse_csc"}, {at::kSparseBsr, "sparse_bsr"}, {at::kSparseBsc, "sparse_bsc"}};
  if (tensor.is_nested()) return "a nested tensor";
  for (const auto& [layout, name] : names) {
    if (layout == tensor.layout()) return std::string("torch.") + name;
  }
  return "torch._mkldnn";
}

/// Throws, with Python's messages, for what has no elements in memory as the kernels read them.
inline void check_dense(const char* name, const at::Tensor& tensor) {
  if (!tensor.defined()) throw type_error((std::string(name) + " must be a defined tensor").c_str());
  if (tensor.layout() == at::kStrided && !tensor.is_nested()) return;
  throw type_error((std::string(name) + " must be a dense tensor of layout torch.strided, got " + layout_name(tensor)).c_str());
}

/// A tensor of a call, undefined for an optional one that is not given.
struct Argument {
  const char* name;
  const at::Tensor& tensor;
  bool is_map = false;
  bool optional = false;
};

/// Throws, with Python's messages, for what no kernel takes: values have the type of the first, and all are on one device. The
/// types are those of the first and of the map.
inline Types check_tensors(std::initializer_list<Argument> arguments) {
  const auto is_missing = [](const Argument& a) { return a.optional && !a.tensor.defined(); };
  for (const Argument& a : arguments) {
    if (!is_missing(a)) check_dense(a.name, a.tensor);
  }
  const Argument& first = *arguments.begin();
  const auto type = dtype_of(first.tensor);
  Types types{};
  for (const Argument& a : arguments) {
    if (&a == &first || is_missing(a)) continue;
    const std::string names = std::string(first.name) + " and " + a.name;
    const auto its_type = dtype_of(a.tensor);
    if (!type || !its_type) {
      throw type_error((names + " must be float16, bfloat16, float32 or float64, got " + first.name + " " +
                        dtype_name(first.tensor) + " and " + a.name + " " + dtype_name(a.tensor))
                           .c_str());
    }
    if (a.is_map) {
      types = {*type, *its_type};
      check_types(types);
    } else if (type != its_type) {
      throw type_error(
          (names + " must have one dtype, got " + dtype_name(first.tensor) + " and " + dtype_name(a.tensor)).c_str());
    }
    if (first.tensor.device() != a.tensor.device()) {
      throw error((names + " must be on one device, got " + first.name + " on " + first.tensor.device().str() + " and " +
                   a.name + " on " + a.tensor.device().str())
                      .c_str());
    }
  }
  return types;
}

inline Types check_tensors(const at::Tensor& input, const at::Tensor& dilation_map) {
  return check_tensors({{"input", input}, {"dilation_map", dilation_map, true}});
}

/// Throws, with Python's message, for a gradient that is not like the output.
inline void check_grad(const at::Tensor& grad, const at::Tensor& like, at::IntArrayRef sizes) {
  check_dense("grad", grad);
  if (grad.sizes() == sizes && grad.scalar_type() == like.scalar_type() && grad.device() == like.device()) return;
  std::ostringstream text;
  text << "grad must be " << dtype_name(like) << " of shape " << sizes << " on " << like.device() << ", as the output is, got "
       << dtype_name(grad) << " of shape " << grad.sizes() << " on " << grad.device();
  throw invalid_argument(text.str().c_str());
}

inline Shape shape_of(const at::Tensor& tensor) { return {tensor.sizes().data(), static_cast<int>(tensor.dim())}; }

inline Geometry geometry_of(const at::Tensor& input, const at::Tensor& dilation_map, const Options& options) {
  return make_geometry(shape_of(input), shape_of(dilation_map), options);
}

/// The map with a rate for each position: one row or one column stands for all, and its gradient is summed. A map that does not
/// fit stays as it is, for the error that says so.
inline at::Tensor full_map(const at::Tensor& input, const at::Tensor& map, const Options& options) {
  if (map.dim() < 3 || map.dim() != input.dim() || map.size(-3) != options.groups) return map;
  if (options.groups < 1 || input.size(-3) % options.groups != 0) return map;
  if (map.dim() == 4 && map.size(0) != 1 && map.size(0) != input.size(0)) return map;
  std::vector<std::int64_t> sizes = map.sizes().vec();
  for (std::size_t axis = 0; axis < 2; ++axis) {
    std::int64_t& size = sizes[sizes.size() - 2 + axis];
    if (options.stride[axis] < 1) return map;
    const std::int64_t pixels = input.size(static_cast<std::int64_t>(axis) - 2);
    const std::int64_t positions = output_size(pixels, options, static_cast<int>(axis));
    if (positions < 1 || (size != 1 && size != positions)) return map;
    size = positions;
  }
  return map.sizes() == at::IntArrayRef(sizes) ? map : map.expand(sizes);
}

/// How the kernels read an input: as it lies, where they can.
inline MemoryFormat format_of(const at::Tensor& input) {
  const bool supported = input.is_cuda() ? cuda::reads_channels_last : cpu::reads_channels_last;
  const bool as_it_lies = supported && input.dim() == 4 && !input.is_contiguous();
  return as_it_lies && input.is_contiguous(at::MemoryFormat::ChannelsLast) ? MemoryFormat::channels_last
                                                                           : MemoryFormat::contiguous;
}

inline at::MemoryFormat torch_format(MemoryFormat format) {
  return format == MemoryFormat::channels_last ? at::MemoryFormat::ChannelsLast : at::MemoryFormat::Contiguous;
}

/// The tensor with its values in memory, none of them implied by a flag.
inline at::Tensor resolved(const char* name, const at::Tensor& tensor) {
  if (tensor._is_zerotensor()) return at::zeros(tensor.sizes(), tensor.options());
  if (tensor.numel() > 0 && tensor.storage().nbytes() == 0) {
    throw error((std::string(name) + " has no memory that the kernels could read: was its storage freed?").c_str());
  }
  return tensor.resolve_neg();
}

/// The same, laid out as the kernels read it.
inline at::Tensor in_memory(const char* name, const at::Tensor& tensor, MemoryFormat format = MemoryFormat::contiguous) {
  return resolved(name, tensor).contiguous(torch_format(format));
}

/// Calls on_cpu(threads), or on_cuda(stream) with the tensor's device as the current one.
template <class OnCpu, class OnCuda>
void on_device_of(const at::Tensor& tensor, OnCpu on_cpu, [[maybe_unused]] OnCuda on_cuda) {
  if (tensor.is_cpu()) {
    on_cpu(at::get_num_threads());
    return;
  }
  if (tensor.is_cuda()) {
#if defined(DDU_TORCH_CUDA)
    const c10::cuda::CUDAGuard guard(tensor.device());
    on_cuda(c10::cuda::getCurrentCUDAStream(tensor.device().index()).stream());
    return;
#else
    throw cuda_error("ddu/torch.h was compiled without DDU_TORCH_CUDA, which CUDA tensors need");
#endif
  }
  throw error(("there are kernels for cpu and cuda, got tensors on " + tensor.device().str()).c_str());
}

inline at::Tensor scratch(std::size_t bytes, const at::Tensor& like) {
  return at::empty({static_cast<std::int64_t>(bytes)}, like.options().dtype(at::kByte));
}

inline std::vector<std::int64_t> packed(const Options& o) {
  return {o.kernel_size[0], o.kernel_size[1], o.stride[0],   o.stride[1], o.padding[0],
          o.padding[1],     o.dilation[0],    o.dilation[1], o.groups,    static_cast<std::int64_t>(o.padding_mode)};
}

inline Options unpacked(const std::vector<std::int64_t>& v) {
  return {{v[0], v[1]}, {v[2], v[3]}, {v[4], v[5]}, {v[6], v[7]}, v[8], static_cast<PaddingMode>(v[9])};
}

/// Under autocast values take its type, since they feed a matrix product; rates lose too much in a half type. Beside a tensor
/// of any other type all stay as they are: float64 is meant, and the rest is refused as ever.
template <std::size_t N>
std::array<at::Tensor, N> autocast(std::array<at::Tensor, N> tensors, std::size_t map) {
  for (const at::Tensor& tensor : tensors) {
    if (tensor.defined() && (!dtype_of(tensor) || tensor.scalar_type() == at::kDouble)) return tensors;
  }
  if (!tensors[0].defined()) return tensors;
  const at::DeviceType device = tensors[0].device().type();
  if (!at::autocast::is_autocast_available(device) || !at::autocast::is_autocast_enabled(device)) return tensors;
  for (std::size_t i = 0; i < N; ++i) {
    if (tensors[i].defined()) tensors[i] = tensors[i].to(i == map ? at::kFloat : at::autocast::get_autocast_dtype(device));
  }
  return tensors;
}

}  // namespace torch_detail
}  // namespace ddu
