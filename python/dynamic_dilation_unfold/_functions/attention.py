"""attention: composed of correlate, a softmax that knows the coverage, and aggregate: so all transforms have it."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from .. import _torch_private as private
from .._eager import handed_over, is_compiling
from .._options import integer
from .aggregate import dynamic_dilation_aggregate
from .correlate import dynamic_dilation_correlate
from .coverage import dynamic_dilation_coverage


def dynamic_dilation_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    dilation_map: Tensor,
    kernel_size: int | Sequence[int],
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    heads: int = 1,
    bias: Tensor | None = None,
    scale: float | None = None,
    padding_mode: str = "zeros",
) -> Tensor:
    r"""Attention of each position to the taps of its window, without columns.

    .. code-block:: none

        s[b, h, t] = scale * correlate(query, key)[b, h, t] + bias
        output[b, c] = sum_t e^s[b, h, t] * S_value[b, c, t] / sum_t m[b, g, t] * e^s[b, h, t]

    where ``m`` is :func:`dynamic_dilation_coverage`: what lies outside the image takes no part, so a value of ones
    gives ones up to the edges. A position none of whose taps meets the image gives 0. The largest s of the window is
    subtracted before the exponential. With a map of ones this is neighbourhood attention.

    Args:
        query: ``[B, C, Ho, Wo]``, or ``[C, Ho, Wo]`` unbatched: a vector for each position.
        key: ``[B, C, H, W]``, sampled at the taps.
        value: ``[B, Cv, H, W]``, sampled at the same. All three have one dtype: float16, bfloat16, float32 or float64.
        dilation_map: Rates ``[B, G, Ho, Wo]``, where batch, height and width may be 1; of that dtype, or float32 beside
            half values (recommended). G is 1 or divides heads.
        kernel_size: Taps of the window, ``k`` or ``(kH, kW)``.
        stride: Pixels between positions.
        padding: Pixels around the image.
        dilation: Base dilation, in pixels, which the map multiplies.
        heads: Divides C and Cv.
        bias: Added to the scores, and broadcast to ``[B, heads, kH*kW, Ho, Wo]``; ``[heads, kH*kW, 1, 1]`` is a
            relative position bias. Any floating dtype.
        scale: Of the scores; ``(C / heads) ** -0.5`` if not given. The query is multiplied by it.
        padding_mode: What a tap outside the image reads: ``"zeros"``, it takes no part; or ``"border"``, the nearest
            pixel of the edge, and all taps take part.

    Returns:
        ``[B, Cv, Ho, Wo]`` of the value's dtype and memory format.

    Raises:
        ValueError: A shape or option does not fit; the message says what is expected.
        TypeError: A dtype is not supported, or the dtypes do not go together.
        RuntimeError: The tensors are on different devices, or this build cannot serve the device.

    Differentiable in query, key, value, dilation_map and bias. Scores are as large as the query times
    ``heads * kH*kW / C``; backward keeps two tensors of that size. In a half type scores and weights are rounded to
    that type once each, as in ``(q @ k).softmax(-1) @ v``, and the softmax is float32; in float16 a position counts as
    outside where less than 6e-5 of its weight meets the image.
    """
    named = {
        "query": query,
        "key": key,
        "value": value,
        "dilation_map": dilation_map,
        "kernel_size": kernel_size,
        "stride": stride,
        "padding": padding,
        "dilation": dilation,
        "heads": heads,
        "bias": bias,
        "scale": scale,
        "padding_mode": padding_mode,
    }
    others: Tensor | None = handed_over(dynamic_dilation_attention, **named)
    if others is not None:
        return others
    heads = integer("heads", heads)
    if not is_compiling():
        _check(query, key, value, dilation_map, heads)
    if scale is None:
        scale = 1 / math.sqrt(query.shape[-3] // heads) if query.shape[-3] else 1.0
    window = (kernel_size, stride, padding, dilation)
    scores = dynamic_dilation_correlate(query * scale, key, dilation_map, *window, heads, padding_mode)
    dtype = scores.dtype  # autocast's, under autocast
    exact = torch.promote_types(dtype, torch.float32)
    weights = scores.to(exact)
    del scores
    if bias is not None:
        weights = _biased(weights, bias)
    if padding_mode == "border":
        weights = weights.softmax(-3)
    else:
        coverage = dynamic_dilation_coverage(dilation_map.to(exact), key.shape[-2:], *window)
        groups = coverage.shape[-4]
        by_group = weights.unflatten(-4, (groups, heads // groups))
        del weights
        weights = covered_softmax(by_group, coverage.unsqueeze(-4), torch.finfo(dtype).tiny).flatten(-5, -4)
    return dynamic_dilation_aggregate(value, weights.to(dtype), dilation_map, *window, padding_mode)


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


def _biased(scores: Tensor, bias: Tensor) -> Tensor:
    if not is_compiling() and isinstance(bias, Tensor):
        shape, wanted = list(bias.shape), list(scores.shape)
        lead = len(wanted) - len(shape)
        if lead < 0 or any(n not in (1, m) for n, m in zip(shape, wanted[lead:], strict=True)):
            raise ValueError(f"bias must broadcast to the scores' shape {wanted}, got {shape}")
    return scores + bias.to(scores.dtype)


def _check(query: Tensor, key: Tensor, value: Tensor, dilation_map: Tensor, heads: int) -> None:
    """What correlate and aggregate would say of other arguments than the caller gave, or not at all."""
    given = {"query": query, "key": key, "value": value, "dilation_map": dilation_map}
    for name, tensor in given.items():
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{name} must be a torch.Tensor, got {type(tensor).__name__}")
        if tensor.dim() not in (3, 4) or tensor.dim() != query.dim():
            raise ValueError(
                f"query, key, value and dilation_map must all have 4 dimensions, or 3 without a batch; query has shape "
                f"{list(query.shape)}, {name} {list(tensor.shape)}"
            )
    if private.is_tracing():  # sizes are tensors then, and to compare them would be a part of the trace
        return
    if heads < 1 or query.shape[-3] % heads or value.shape[-3] % heads:
        raise ValueError(
            f"heads must be positive and divide the channels of query {list(query.shape)} and value "
            f"{list(value.shape)}, got {heads}"
        )
    if value.shape[:-3] != key.shape[:-3] or value.shape[-2:] != key.shape[-2:]:
        expected = [*key.shape[:-3], "channels", *key.shape[-2:]]
        raise ValueError(
            f"value must have shape [{', '.join(map(str, expected))}], as key {list(key.shape)}, got "
            f"{list(value.shape)}"
        )
    groups = dilation_map.shape[-3]
    if groups < 1 or heads % groups:
        raise ValueError(
            f"the groups of dilation_map {list(dilation_map.shape)} must be 1 or divide the heads, got {groups} groups "
            f"for {heads} heads"
        )
    if value.dtype != query.dtype:
        raise TypeError(f"query and value must have one dtype, got {query.dtype} and {value.dtype}")
