"""conv2d: a convolution whose dilation is a map, in chunks of columns (``_chunks.py``) or by kernels of its own.

Those are for some calls on some CUDA devices, and on a CPU for groups of few channels. ``DDU_CUDA_CONV2D=columns`` asks
for chunks everywhere on CUDA, to compare.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import _C, _kernels
from .._geometry import full_map
from .._operator import Argument, Gradients, Mask, Operator, Tensors
from .._options import Int, PaddingMode, Pair
from .._sampling import columns
from .unfold import Options as UnfoldOptions


class Options(NamedTuple):
    stride: Pair
    padding: Pair
    dilation: Pair
    padding_mode: PaddingMode


class Conv2d(Operator):
    name = "conv2d"
    arguments = (
        Argument("input", 4, channels_last=True),
        Argument("weight", 4, "none"),
        Argument("dilation_map", 4, "shared", is_map=True),
        Argument("bias", 1, "none", optional=True),
        Argument("mask", 5, "shared", optional=True),
    )
    options = Options
    output_dims = 4
    in_torch = True

    def output_shape(self, tensors: Tensors, options: Options) -> tuple[Int, ...]:
        input, weight, dilation_map = tensors[:3]
        return (*input.shape[:-3], weight.shape[0], *dilation_map.shape[-2:])

    def full_maps(self, tensors: Tensors, options: Options) -> Tensors:
        input, weight, dilation_map, *others = tensors
        if weight.dim() != 4:
            return tensors  # for the error that says so
        return input, weight, full_map(dilation_map, input.shape[-2:], _window(weight.shape, 1, options)), *others

    def check_shapes(self, shapes: Sequence[Any], options: Options) -> None:
        input, weight, dilation_map, bias, mask = (() if s is None else tuple(s) for s in shapes)
        _C.check_conv2d_geometry(input, weight, dilation_map, mask, *options)
        if shapes[3] is not None and bias != weight[:1]:
            raise ValueError(f"bias must have shape {list(weight[:1])} beside weight {list(weight)}, got {list(bias)}")

    def reference(self, tensors: Tensors, options: Options) -> Tensor:
        input, weight, dilation_map, bias, mask = tensors
        if input.dim() == 3:
            batched = (
                input.unsqueeze(0),
                weight,
                dilation_map.unsqueeze(0),
                bias,
                None if mask is None else mask.unsqueeze(0),
            )
            return self.reference(batched, options).squeeze(0)
        dtype = torch.promote_types(input.dtype, torch.float32)
        batch, channels = input.shape[:2]
        taps = weight.shape[2] * weight.shape[3]
        groups = channels // weight.shape[1] if weight.shape[1] else 1
        sampled = columns(input.to(dtype), dilation_map, _window(weight.shape, dilation_map.shape[1], options))
        rows, row = dilation_map.shape[2:]
        if mask is not None:
            heads = mask.shape[1]
            of_heads = sampled.reshape(batch, heads, channels // heads, taps, rows * row)
            sampled = (of_heads * mask.to(dtype).flatten(3).unsqueeze(2)).reshape(sampled.shape)
        sampled = sampled.reshape(batch, groups, weight.shape[1] * taps, rows * row)
        factors = weight.to(dtype).reshape(groups, weight.shape[0] // groups, weight.shape[1] * taps)
        output = torch.matmul(factors, sampled).reshape(batch, weight.shape[0], rows, row)
        if bias is not None:
            output = output + bias.to(dtype).reshape(-1, 1, 1)
        return output.to(input.dtype)

    # --- Its chunks ---------------------------------------------------------------------------------------------------

    def compute(self, tensors: Tensors, options: Options) -> Tensor:
        input = tensors[0]
        if _has_kernels(input):
            call: Any = _C.conv2d_forward
            fused: Tensor | None = call(*_for_kernels(tensors, options), *options, _allows_tf32())
            if fused is not None:
                return fused.to(input.dtype)
        from .. import _chunks  # as in backward: not needed before the first call

        output = _kernels.new_output(self, tensors, options)
        input, weight, dilation_map, bias, mask = _batched(tensors)
        window = _window(weight.shape, dilation_map.shape[1], options)
        target = output.unsqueeze(0) if output.dim() == 3 else output
        if output.numel() > 0:
            _chunks.forward(input, weight, dilation_map, bias, mask, window, target, _has_kernels(input))
        return output

    def compute_backward(self, grad: Tensor, tensors: Tensors, options: Options, mask: Mask) -> Gradients:
        if _has_kernels(grad):
            call: Any = _C.conv2d_backward
            read = _for_kernels(tensors, options)
            fused: Gradients | None = call(grad.to(read[0].dtype), *read, *options, _allows_tf32(), tuple(mask))
            if fused is not None:
                each = [g if g is None else g.to(t.dtype) for g, t in zip(fused, tensors, strict=True)]
                each[3] = _bias_gradient(grad, tensors[3]) if mask[3] else None
                return tuple(each)
        from .. import _chunks

        grad_input = _kernels.new_gradient(self, tensors, 0) if mask[0] else None
        input, weight, dilation_map, _, factors = _batched(tensors)
        window = _window(weight.shape, dilation_map.shape[1], options)
        batched = input.dim() == tensors[0].dim()
        target = grad_input if batched or grad_input is None else grad_input.unsqueeze(0)
        grads = _chunks.backward(
            grad if batched else grad.unsqueeze(0),
            input,
            weight,
            dilation_map,
            factors,
            window,
            target,
            _chunks.Wanted(*(want and t is not None for want, t in zip(mask, tensors, strict=True))),
            _has_kernels(input),
        )
        pairs = zip((target, *grads), tensors, strict=True)
        return (grad_input, *[g if g is None else g.view(t.shape) for g, t in pairs][1:])

    # --- What it costs, and how it splits -----------------------------------------------------------------------------

    def flops(self, shapes: Sequence[Any], options: Options) -> int:
        input, weight, dilation_map, bias, mask = shapes
        return self.cost()(input, weight, dilation_map, bias is not None, mask).flops

    def backward_flops(self, shapes: Sequence[Any], options: Options, mask: Mask) -> int:
        input, weight, dilation_map, bias, factors = shapes
        return self.cost(backward=True)(input, weight, dilation_map, bias is not None, factors, output_mask=mask).flops

    def shards(self, specs: Sequence[Any], options: Options) -> list[tuple[Any, tuple[Any, ...], tuple[Any, ...]]]:
        from .._sharding import Partial, Replicate, Shard, splits_evenly

        input, weight, dilation_map, _, mask = specs
        channel = input.ndim - 3
        channels, groups = input.shape[channel], dilation_map.shape[channel]
        whole, summed = (Replicate(), Replicate()), (Replicate(), Partial())  # of a tensor, and of its gradient
        heads = 1 if mask is None else mask.shape[channel]

        def way(output: Any, *pairs: tuple[Any, Any]) -> tuple[Any, tuple[Any, ...], tuple[Any, ...]]:
            present = [p if s is not None else (None, Replicate()) for p, s in zip(pairs, specs, strict=True)]
            return output, tuple(p[0] for p in present), tuple(p[1] for p in present)

        def split(dim: int) -> tuple[Any, Any]:
            return Shard(dim), Shard(dim)

        ways = [way(Replicate(), whole, whole, whole, whole, whole)]
        if channel == 1:
            rates = summed if dilation_map.shape[0] == 1 else split(0)
            factors = summed if mask is None or mask.shape[0] == 1 else split(0)
            ways.append(way(Shard(0), split(0), summed, rates, summed, factors))
        if weight.shape[1] == channels:  # of a grouped convolution, the number of groups would follow from the shard
            ways.append(way(Shard(channel), summed, split(0), summed, split(0), summed))
            parts = [summed if n == 1 else split(channel) for n in (groups, heads)]
            if all(n == 1 or splits_evenly(input, channel, n) for n in (groups, heads)) and splits_evenly(
                input, channel, channels
            ):
                # Each rank sums over its channels; one of them adds the bias.
                one = (Partial(), Replicate())
                ways.append(way(Partial(), split(channel), split(1), parts[0], one, parts[1]))
        return ways


def _window(weight: Sequence[Int], groups: Int, options: Options) -> UnfoldOptions:
    """The options of the unfold whose columns the weight multiplies."""
    kernel_size = (weight[2], weight[3])
    return UnfoldOptions(kernel_size, options.stride, options.padding, options.dilation, groups, options.padding_mode)


def _for_kernels(tensors: Tensors, options: Options) -> Tensors:
    """Those of a CPU read float32 instead of half types: converted if there are kernels for that."""
    input = tensors[0]
    if input.device.type != "cpu" or input.dtype.itemsize != 2:
        return tensors
    one = input.new_empty((), dtype=torch.float32)
    likes = (t if t is None else one.expand(t.shape) for t in tensors)
    supported: Any = _C.conv2d_supported
    if not supported(*likes, *options, False):
        return tensors
    return tuple(t if t is None else t.float() for t in tensors)


def _batched(tensors: Tensors) -> tuple[Any, ...]:
    input, weight, dilation_map, bias, mask = tensors
    if input.dim() == 4:
        return tensors
    return input.unsqueeze(0), weight, dilation_map.unsqueeze(0), bias, None if mask is None else mask.unsqueeze(0)


def _bias_gradient(grad: Tensor, bias: Tensor | None) -> Tensor | None:
    if bias is None:
        return None
    sums = grad.sum((-2, -1) if grad.dim() == 3 else (0, 2, 3), dtype=torch.promote_types(grad.dtype, torch.float32))
    return sums.to(bias.dtype)


def _allows_tf32() -> bool:
    """Whether F.conv2d may round the factors of float32 products to TF32."""
    cudnn: Any = torch.backends.cudnn
    of_convolutions: Any = getattr(cudnn, "conv", None)  # of torch 2.9 and later, which does not mix it with the flag
    if hasattr(of_convolutions, "fp32_precision"):
        return bool(cudnn.enabled and of_convolutions.fp32_precision == "tf32")
    return bool(cudnn.enabled and cudnn.allow_tf32)


def _has_kernels(tensor: Tensor) -> bool:
    return tensor.device.type in _kernels.DEVICES


CONV2D = Conv2d()
_C.attach_conv2d_functions(_allows_tf32, _bias_gradient)
