#pragma once

// Made by tests/python/schemas.py, from the descriptions in python/dynamic_dilation_unfold/_operators/: change those.
// What ddu/torch_library.h registers.

namespace ddu::torch_detail::schemas {

// clang-format off
inline constexpr char aggregate[] =
    "aggregate(Tensor input, Tensor weights, Tensor dilation_map, SymInt[2] kernel_size, SymInt[2] stride, "
    "SymInt[2] padding, SymInt[2] dilation, str padding_mode) -> Tensor";
inline constexpr char aggregate_backward[] =
    "aggregate_backward(Tensor grad, Tensor input, Tensor weights, Tensor dilation_map, SymInt[2] kernel_size, "
    "SymInt[2] stride, SymInt[2] padding, SymInt[2] dilation, str padding_mode, bool[3] output_mask) -> (Tensor, "
    "Tensor, Tensor)";
inline constexpr char conv2d[] =
    "conv2d(Tensor input, Tensor weight, Tensor dilation_map, Tensor? bias, Tensor? mask, SymInt[2] stride, "
    "SymInt[2] padding, SymInt[2] dilation, str padding_mode) -> Tensor";
inline constexpr char conv2d_backward[] =
    "conv2d_backward(Tensor grad, Tensor input, Tensor weight, Tensor dilation_map, Tensor? bias, Tensor? mask, "
    "SymInt[2] stride, SymInt[2] padding, SymInt[2] dilation, str padding_mode, bool[5] output_mask) -> (Tensor, "
    "Tensor, Tensor, Tensor, Tensor)";
inline constexpr char correlate[] =
    "correlate(Tensor query, Tensor key, Tensor dilation_map, SymInt[2] kernel_size, SymInt[2] stride, SymInt[2] "
    "padding, SymInt[2] dilation, SymInt heads, str padding_mode) -> Tensor";
inline constexpr char correlate_backward[] =
    "correlate_backward(Tensor grad, Tensor query, Tensor key, Tensor dilation_map, SymInt[2] kernel_size, "
    "SymInt[2] stride, SymInt[2] padding, SymInt[2] dilation, SymInt heads, str padding_mode, bool[3] output_mask) "
    "-> (Tensor, Tensor, Tensor)";
inline constexpr char unfold[] =
    "unfold(Tensor input, Tensor dilation_map, SymInt[2] kernel_size, SymInt[2] stride, SymInt[2] padding, "
    "SymInt[2] dilation, SymInt groups, str padding_mode=\"zeros\") -> Tensor";
inline constexpr char unfold_backward[] =
    "unfold_backward(Tensor grad, Tensor input, Tensor dilation_map, SymInt[2] kernel_size, SymInt[2] stride, "
    "SymInt[2] padding, SymInt[2] dilation, SymInt groups, str padding_mode, bool[2] output_mask) -> (Tensor, "
    "Tensor)";
// clang-format on

}  // namespace ddu::torch_detail::schemas
