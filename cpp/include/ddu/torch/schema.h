#pragma once

// How the registered operators read the options of their schemas: see ddu/torch_library.h.

#include <c10/util/string_view.h>

#include "ddu/torch/common.h"

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

}  // namespace ddu::torch_detail
