#pragma once

// How operators are registered, and how they read the options of their schemas: see ddu/torch_library.h.

#include <c10/util/string_view.h>
#include <torch/library.h>

#include <string>

#include "ddu/torch/common.h"
#include "ddu/torch/schemas.h"

namespace ddu::torch_detail {

using Ints = at::IntArrayRef;
using Text = c10::string_view;  // torch's own, whichever that is

inline Pair pair_of(const char* name, Ints values) {
  if (values.size() == 2) return {values[0], values[1]};
  if (values.size() == 1) return {values[0], values[0]};
  std::ostringstream text;
  text << name << " must be a pair of ints, got " << values;
  throw invalid_argument(text.str().c_str());
}

inline PaddingMode padding_mode_of(Text name) {
  if (name == "zeros") return PaddingMode::zeros;
  if (name == "border") return PaddingMode::border;
  std::ostringstream text;
  text << R"(padding_mode must be "zeros" or "border", got ")" << name << '"';
  throw invalid_argument(text.str().c_str());
}

inline TorchOptions torch_options_of(Ints stride, Ints padding, Ints dilation, Text padding_mode) {
  return {pair_of("stride", stride), pair_of("padding", padding), pair_of("dilation", dilation), 1,
          padding_mode_of(padding_mode)};
}

/// Registers an operator: its schema, its kernel for all devices, and what records it.
template <class Function>
void define(torch::Library& library, const std::string& schema, Function* kernel, Function* autograd) {
  const std::string name = schema.substr(0, schema.find('('));
  library.def(schema.c_str(), {at::Tag::pt2_compliant_tag});
  library.impl(name.c_str(), torch::dispatch(c10::DispatchKey::CompositeExplicitAutograd, kernel));
  library.impl(name.c_str(), torch::dispatch(c10::DispatchKey::Autograd, autograd));
}

}  // namespace ddu::torch_detail
