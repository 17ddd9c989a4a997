"""Attention of correlate, a softmax that knows the coverage, and aggregate: as they are, or in parts; or by one kernel.

On CUDA a plain call has a kernel of its own, where there is one for it (``_fused_attention.py``).

Where scores are larger than the query, as those of large windows are, a call on a CPU goes in parts. Then nothing of
the scores' size is in memory, and nothing is kept for backward but what the call was given:

.. code-block:: none

    forward    for some images:  scores -> weights -> output
    backward   for some heads of some images:  the same weights once more, their gradients, those of query, key, value

Whatever looks at single operators, a transform or a compiler, gets them as they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import Function

from . import _kernels, _transforms
from . import _torch_private as private
from ._chunks import channel_step, slices
from ._derivatives import apply, pullback
from ._eager import checked, is_compiling
from ._functions.aggregate import dynamic_dilation_aggregate
from ._functions.correlate import dynamic_dilation_correlate
from ._functions.coverage import dynamic_dilation_coverage
from ._fused_attention import fused
from ._operator import Gradients, Mask, Tensors
from ._operators.aggregate import AGGREGATE
from ._operators.correlate import CORRELATE
from ._options import PaddingMode, Pair

# Devices whose calls go in parts. On CUDA that would cost kernel launches, and most calls have a kernel of their own.
DEVICES = {"cpu"}
LEAST_BYTES = 1 << 18  # of scores in a part: less would cost more time in torch's calls than in kernels


class Options(NamedTuple):
    kernel_size: Pair
    stride: Pair
    padding: Pair
    dilation: Pair
    heads: int
    scale: float
    padding_mode: PaddingMode

    def window(self) -> tuple[Pair, Pair, Pair, Pair]:  # torch 2.4 compiles no property of a NamedTuple
        return self.kernel_size, self.stride, self.padding, self.dilation


def attention(tensors: Tensors, options: Options) -> Tensor:
    """Of query, key, value, map and bias, which is None if there is none."""
    if _is_plain(tensors) and (by_kernel := fused(tensors, options, composed)) is not None:
        return by_kernel
    if _may_go_in_parts(tensors) and options.heads * prod(options.kernel_size) > tensors[0].shape[-3]:
        query, key, _, dilation_map, _ = tensors
        given = CORRELATE.read((*options.window(), options.heads, options.padding_mode))
        checked(CORRELATE, (query, key, dilation_map), given)
        output: Tensor = apply(_Attention, options, *tensors)
        return output
    return composed(tensors, options)


def composed(tensors: Tensors, options: Options) -> Tensor:
    query, key, value, dilation_map, bias = tensors
    weights = weights_of((query, key, dilation_map, bias), options)
    return dynamic_dilation_aggregate(value, weights, dilation_map, *options.window(), options.padding_mode)


def weights_of(tensors: Tensors, options: Options) -> Tensor:
    """Of each tap, from query, key, map and bias: ``[B, heads, kH*kW, Ho, Wo]``, in the scores' dtype."""
    query, key, dilation_map, bias = tensors
    window, heads, padding_mode = options.window(), options.heads, options.padding_mode
    scores = dynamic_dilation_correlate(query * options.scale, key, dilation_map, *window, heads, padding_mode)
    dtype = scores.dtype  # autocast's, under autocast
    accumulate = torch.promote_types(dtype, torch.float32)
    weights = scores.to(accumulate)
    del scores
    if bias is not None:
        weights = weights + bias.to(accumulate)
    if padding_mode == "border":
        return weights.softmax(-3).to(dtype)
    coverage = dynamic_dilation_coverage(dilation_map.to(accumulate), key.shape[-2:], *window)
    groups = coverage.shape[-4]
    by_group = weights.unflatten(-4, (groups, heads // groups))
    del weights
    covered = covered_softmax(by_group, coverage.unsqueeze(-4), torch.finfo(dtype).tiny)
    return covered.flatten(-5, -4).to(dtype)


def covered_softmax(scores: Tensor, coverage: Tensor, tiny: float) -> Tensor:
    """``e^s_t / sum_t m_t e^s_t`` over dimension -3, the taps; 0 where that sum of the softmax's m is less than tiny.

    Taps outside the image have no say in what is subtracted, and their gradients are 0. Where no tap meets the image
    nothing is masked, as a softmax of nothing but -inf is NaN.
    """
    outside = coverage == 0
    outside = outside & ~outside.all(-3, keepdim=True)
    weights = scores.masked_fill(outside, -torch.inf).softmax(-3)
    inside = (weights * coverage).sum(-3, keepdim=True)
    return weights / inside.masked_fill(inside < tiny, torch.inf)


# --- In parts ---------------------------------------------------------------------------------------------------------


def _may_go_in_parts(tensors: Tensors) -> bool:
    on_devices = all(t is None or t.device.type in DEVICES for t in tensors)
    return on_devices and _is_plain(tensors) and not private.any_autocast()


def _is_plain(tensors: Tensors) -> bool:
    """Whether plain autograd alone looks at the call; a profiler may, which then sees what is done."""
    if is_compiling() or private.any_transformer() or private.in_forward_mode():
        return False
    return all(t is None or (type(t) in _PLAIN and not private.is_wrapper(t)) for t in tensors)


_PLAIN = (Tensor, torch.nn.Parameter)


class _Attention(Function):
    @staticmethod
    def forward(ctx: Any, options: Options, *tensors: Tensor) -> Tensor:
        ctx.options = options
        ctx.save_for_backward(*tensors)
        parts = _parts(tensors, options, split_heads=False)
        if len(parts) == 1:
            return composed(tensors, options)
        output = _new_output(tensors, options)
        for part in parts:
            part.of(output).copy_(composed(part.of_all(tensors), part.options(options)))
        return output

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        tensors, mask = ctx.saved_tensors, ctx.needs_input_grad[1:]
        grad = _kernels.dense(grad)
        if torch.is_grad_enabled() or not _may_go_in_parts((grad, *tensors)):
            return None, *pullback(lambda *t: composed(t, ctx.options), tensors, mask, grad)
        return None, *_backward(grad, tensors, ctx.options, mask)


def _backward(grad: Tensor, tensors: Tensors, options: Options, mask: Mask) -> Gradients:
    parts = _parts(tensors, options, split_heads=True)
    if len(parts) == 1:
        return _backward_of_part(grad, tensors, options, mask)
    # Gradients of query, key and value are each complete in one part; to those of map and bias many parts may add.
    dtypes = [*(t.dtype for t in tensors[:3]), *(None if t is None else _sum_dtype(t) for t in tensors[3:])]
    grads = [
        torch.zeros_like(t, dtype=dtype) if want else None for t, dtype, want in zip(tensors, dtypes, mask, strict=True)
    ]
    for part in parts:
        found = _backward_of_part(part.of(grad), part.of_all(tensors), part.options(options), mask)
        for total, gradient in zip(part.of_all(grads), found, strict=True):
            if total is not None and gradient is not None:
                total.add_(gradient)
    return tuple(g if g is None else g.to(t.dtype) for g, t in zip(grads, tensors, strict=True))


def _backward_of_part(grad: Tensor, tensors: Tensors, options: Options, mask: Mask) -> Gradients:
    query, key, value, dilation_map, bias = (
        t if t is None else t.detach().requires_grad_(want) for t, want in zip(tensors, mask, strict=True)
    )
    of_weights = (query, key, dilation_map, bias)
    wanted = [t for t in of_weights if t is not None and t.requires_grad]
    with torch.enable_grad():
        weights = weights_of(of_weights, options)
    given = AGGREGATE.read((*options.window(), options.padding_mode))
    sampled = AGGREGATE.full_maps((value.detach(), weights.detach(), dilation_map.detach()), given)
    of_value, of_factors, of_map = _transforms.gradients(
        AGGREGATE, grad, sampled, given, (mask[2], bool(wanted), mask[3])
    )
    found = iter(torch.autograd.grad(weights, wanted, of_factors) if wanted else ())
    grads = [next(found) if t is not None and t.requires_grad else None for t in of_weights]
    if grads[2] is not None and of_map is not None:
        grads[2] = grads[2] + of_map.sum_to_size(dilation_map.shape)
    return grads[0], grads[1], of_value, grads[2], grads[3]


def _sum_dtype(tensor: Tensor) -> torch.dtype:
    return torch.promote_types(tensor.dtype, torch.float32)


def _new_output(tensors: Tensors, options: Options) -> Tensor:
    query, _, value, _, _ = tensors
    shape = (*value.shape[:-2], *query.shape[-2:])
    like = _kernels.format_of(AGGREGATE, (value,), True)
    return torch.empty(shape, dtype=value.dtype, device=value.device, memory_format=like)


class _Part(NamedTuple):
    """Some images and heads, which are whole groups of the map or lie in one."""

    images: slice
    heads: slice
    all_heads: int

    def of(self, tensor: Tensor, heads_at: int = -3) -> Tensor:
        """A view of what belongs to it; dimension ``heads_at`` are channels, groups or heads."""
        if tensor.dim() >= -heads_at:
            count = tensor.shape[heads_at]
            start = self.heads.start * count // self.all_heads
            tensor = tensor.narrow(heads_at, start, -(-self.heads.stop * count // self.all_heads) - start)
        if tensor.dim() > -heads_at and tensor.shape[heads_at - 1] > 1:
            tensor = tensor.narrow(heads_at - 1, self.images.start, self.images.stop - self.images.start)
        return tensor

    def of_all(self, tensors: Sequence[Any]) -> tuple[Any, ...]:
        """Of query, key, value, map and bias."""
        *images, bias = tensors
        return (*(t if t is None else self.of(t) for t in images), bias if bias is None else self.of(bias, -4))

    def options(self, options: Options) -> Options:
        return options._replace(heads=self.heads.stop - self.heads.start)


def _parts(tensors: Tensors, options: Options, split_heads: bool) -> list[_Part]:
    """A quarter of the images at a time, or a few heads of an image, but no less than is worth a part.

    Heads are split in backward alone, which has most memory: what they share is then computed for each.
    """
    query, dilation_map = tensors[0], tensors[3]
    heads, batch, channels = options.heads, query.shape[0] if query.dim() == 4 else 1, query.shape[-3]
    taps, positions = prod(options.kernel_size), prod(query.shape[-2:])
    least = LEAST_BYTES // max(1, taps * positions * _sum_dtype(query).itemsize)  # heads
    images, step = max(1, batch // 4, least // heads), heads
    if split_heads:
        most = channels * batch // (4 * taps * images)  # a quarter of the query's size
        step = channel_step(heads, [dilation_map.shape[-3]], max(least, most))
    return [_Part(i, h, heads) for i in slices(batch, images) for h in slices(heads, step)]
