"""Attention by one kernel of each direction, for the calls that CUDA has one for.

Neither scores nor weights are in memory: the forward keeps its output and a number for each head and position, with
which the backward computes the weights again. Its sums are not the same to the bit from run to run, so deterministic
calls are composed, as are those that the kernels don't take (``attention_supported`` in ``ddu/attention.h``).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from . import _C, _kernels
from . import _torch_private as private
from ._derivatives import apply, pullback
from ._eager import checked
from ._operator import Tensors
from ._operators.aggregate import AGGREGATE
from ._operators.correlate import CORRELATE

Composition = Callable[[Tensors, Any], Tensor]


def fused(tensors: Tensors, options: Any, composed: Composition) -> Tensor | None:
    """Of query, key, value, map and bias or None; None where the call is to be composed."""
    query, key, value, dilation_map, bias = tensors
    if query.device.type != "cuda" or torch.are_deterministic_algorithms_enabled():
        return None
    if bias is not None and bias.dtype == torch.float64:
        return None
    query, key, dilation_map = CORRELATE.autocast((query, key, dilation_map))
    value = AGGREGATE.autocast((value, value, dilation_map))[0]
    given = CORRELATE.read((*options.window(), options.heads, options.padding_mode))
    query, key, dilation_map = checked(CORRELATE, (query, key, dilation_map), given)
    if bias is not None:
        bias = _as_scores(bias, query)
    tensors = query, key, value, dilation_map, bias
    records = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)
    arguments: tuple[Any, ...] = *tensors, *_given(options), records
    with _kernels.on_device(query.device):
        found = _C.attention_forward(*arguments)
    if found is None:
        return None
    output: Tensor = apply(_Recorded, found, options, composed, *tensors) if records else found[0]
    return output


def _as_scores(bias: Tensor, query: Tensor) -> Tensor:
    """In float32, with every dimension of the scores: its own or 1, but both or none of the last two."""
    bias = bias.float()[(None,) * (query.dim() + 1 - bias.dim())]
    if 1 in bias.shape[-2:] and bias.shape[-2:] != (1, 1):
        bias = bias.expand(*bias.shape[:-2], *query.shape[-2:])
    return bias


def _given(options: Any) -> tuple[Any, ...]:
    return *options.window(), options.heads, float(options.scale), options.padding_mode


class _Recorded(Function):
    """The forward has been: this records what its backward needs."""

    @staticmethod
    def forward(
        ctx: Any, found: tuple[Tensor, Tensor], options: Any, composed: Composition, *tensors: Tensor
    ) -> Tensor:
        output, normalizers = found
        ctx.options, ctx.composed = options, composed
        ctx.save_for_backward(output, normalizers, *tensors)
        return output

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        output, normalizers, *tensors = ctx.saved_tensors
        mask, grad = ctx.needs_input_grad[3:], _kernels.dense(grad)
        if not torch.is_grad_enabled() and not torch.are_deterministic_algorithms_enabled() and _is_plain(grad):
            arguments = grad, output, normalizers, *tensors, *_given(ctx.options), tuple(mask)
            with _kernels.on_device(grad.device):
                found = _C.attention_backward(*arguments)
            if found is not None:
                *grads, of_scores = found
                of_bias = None if of_scores is None else of_scores.sum_to_size(tensors[4].shape)
                return None, None, None, *grads, of_bias
        return None, None, None, *pullback(lambda *t: ctx.composed(t, ctx.options), tensors, mask, grad)


def _is_plain(grad: Tensor) -> bool:
    return type(grad) is Tensor and not private.any_transformer() and not private.is_wrapper(grad)
