#pragma once

// What the operators for LibTorch share: checks with Python's messages, tensors as the kernels read them, devices, autocast.

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <ATen/autocast_mode.h>
#include <c10/core/ScalarType.h>

#include <array>
#include <cstdint>
#include <optional>
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

/// Throws, with Python's messages, for what no kernel takes.
inline Types check_tensors(const at::Tensor& input, const at::Tensor& dilation_map) {
  check_dense("input", input);
  check_dense("dilation_map", dilation_map);
  const auto input_type = dtype_of(input), map_type = dtype_of(dilation_map);
  if (!input_type || !map_type) {
    throw type_error(("input and dilation_map must be float16, bfloat16, float32 or float64, got input " + dtype_name(input) +
                      " and dilation_map " + dtype_name(dilation_map))
                         .c_str());
  }
  const Types types{*input_type, *map_type};
  check_types(types);
  if (input.device() != dilation_map.device()) {
    throw error(("input and dilation_map must be on one device, got input on " + input.device().str() +
                 " and dilation_map on " + dilation_map.device().str())
                    .c_str());
  }
  return types;
}

inline Geometry geometry_of(const at::Tensor& input, const at::Tensor& dilation_map, const Options& options) {
  return make_geometry({input.sizes().data(), static_cast<int>(input.dim())},
                       {dilation_map.sizes().data(), static_cast<int>(dilation_map.dim())}, options);
}

/// The map with a rate for each position: one row or one column stands for all, and its gradient is summed. A map that does not
/// fit stays as it is, for the error that says so.
inline at::Tensor full_map(const at::Tensor& input, const at::Tensor& map, const Options& options) {
  if (map.dim() < 3 || map.dim() != input.dim() || map.size(-3) != options.groups) return map;
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

/// The tensor with its values laid out as the kernels read them, none of them implied by a flag.
inline at::Tensor in_memory(const char* name, const at::Tensor& tensor, MemoryFormat format = MemoryFormat::contiguous) {
  if (tensor._is_zerotensor()) return at::zeros(tensor.sizes(), tensor.options());
  if (tensor.numel() > 0 && tensor.storage().nbytes() == 0) {
    throw error((std::string(name) + " has no memory that the kernels could read: was its storage freed?").c_str());
  }
  return tensor.resolve_neg().contiguous(torch_format(format));
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

/// Under autocast the columns take its type, since they feed a matrix product; rates lose too much in a half type. Beside a
/// tensor of any other type both stay as they are: float64 is meant, and the rest is refused as ever.
inline std::pair<at::Tensor, at::Tensor> autocast(const at::Tensor& input, const at::Tensor& map) {
  const auto may_be_cast = [](const at::Tensor& tensor) {
    return tensor.defined() && dtype_of(tensor) && tensor.scalar_type() != at::kDouble;
  };
  if (!may_be_cast(input) || !may_be_cast(map)) return {input, map};
  const at::DeviceType device = input.device().type();
  if (!at::autocast::is_autocast_available(device) || !at::autocast::is_autocast_enabled(device)) return {input, map};
  return {input.to(at::autocast::get_autocast_dtype(device)), map.to(at::kFloat)};
}

}  // namespace torch_detail
}  // namespace ddu
