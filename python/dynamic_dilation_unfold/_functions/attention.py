"""attention: composed of correlate, a softmax that knows the coverage, and aggregate: so all transforms have it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from .. import _torch_private as private
from .._eager import handed_over, is_compiling
from .._options import Pair, integer, pair
from .._options import padding_mode as read_padding_mode


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
    scale: float | Tensor | None = None,
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
        scale: Of the scores; ``(C / heads) ** -0.5`` if not given. The query is multiplied by it. A
            tensor may be learnt.
        padding_mode: What a tap outside the image reads: ``"zeros"``, it takes no part; or ``"border"``, the nearest
            pixel of the edge, and all taps take part.

    Returns:
        ``[B, Cv, Ho, Wo]`` of the value's dtype and memory format.

    Raises:
        ValueError: A shape or option does not fit; the message says what is expected.
        TypeError: A dtype is not supported, or the dtypes do not go together.
        RuntimeError: The tensors are on different devices, or this build cannot serve the device.

    Differentiable in query, key, value, dilation_map and bias. On CUDA a plain call has one kernel for each direction:
    scores are never in memory, backward keeps the output and a number for each head and position, and in a half type
    nothing but results is rounded. Other calls, those in float64, with more than 64 channels a head, with values of
    other channels than the key's and deterministic ones among them, are composed. Scores are then as large as the query
    times ``heads * kH*kW / C``; backward keeps two tensors of that size. Where they are larger than the query, a plain
    call on a CPU has a part of them at a time, keeps nothing but its arguments, and computes them again in backward.
    Composed in a half type, scores and weights are rounded to that type once each, as in ``(q @ k).softmax(-1) @ v``,
    and the softmax is float32; in float16 a position counts as outside where less than 6e-5 of its weight meets the
    image.
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
    from .._attention import Options, attention  # not needed before the first call

    heads = integer("heads", heads)
    window = (
        pair("kernel_size", kernel_size),
        pair("stride", stride),
        pair("padding", padding),
        pair("dilation", dilation),
    )
    reads_outside = read_padding_mode("padding_mode", padding_mode)
    if not is_compiling():
        _check(query, key, value, dilation_map, bias, heads, window[0])
    if isinstance(scale, Tensor):  # a learnt one
        query, scale = query * scale, 1.0
    elif scale is not None:
        scale = _scale(scale)
    else:
        scale = 1 / math.sqrt(query.shape[-3] // heads) if query.shape[-3] else 1.0
    options = Options(*window, heads, scale, reads_outside)
    return attention((query, key, value, dilation_map, bias), options)  # type: ignore[arg-type]  # None for no bias


def _check(
    query: Tensor, key: Tensor, value: Tensor, dilation_map: Tensor, bias: Any, heads: int, kernel_size: Pair
) -> None:
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
    if bias is not None and not (isinstance(bias, Tensor) and bias.is_floating_point()):
        kind = bias.dtype if isinstance(bias, Tensor) else type(bias).__name__
        raise TypeError(f"bias must be None or a torch.Tensor of a floating dtype, got {kind}")
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
    if query.shape[:-2] != key.shape[:-2]:
        names = "batch and channels" if query.dim() == 4 else "channels"
        raise ValueError(
            f"query and key must have the same {names}, got query {list(query.shape)} and key {list(key.shape)}"
        )
    groups = dilation_map.shape[-3]
    if groups < 1 or heads % groups:
        raise ValueError(
            f"the groups of dilation_map {list(dilation_map.shape)} must be 1 or divide the heads, got {groups} groups "
            f"for {heads} heads"
        )
    if value.dtype != query.dtype:
        raise TypeError(f"query and value must have one dtype, got {query.dtype} and {value.dtype}")
    halves = (torch.float16, torch.bfloat16)
    fits = dilation_map.dtype == query.dtype or (query.dtype in halves and dilation_map.dtype == torch.float32)
    if not fits and query.is_floating_point() and not private.any_autocast():
        beside = " or torch.float32" if query.dtype in halves else ""
        raise TypeError(f"dilation_map must have query's dtype {query.dtype}{beside}, got {dilation_map.dtype}")
    for name, other in {"value": value, "bias": bias}.items():
        if other is not None and other.device != query.device:
            raise RuntimeError(
                f"query and {name} must be on one device, got query on {query.device} and {name} on {other.device}"
            )
    if bias is not None:
        wanted = [*query.shape[:-3], heads, kernel_size[0] * kernel_size[1], *query.shape[-2:]]
        lead = len(wanted) - bias.dim()
        if lead < 0 or any(n not in (1, m) for n, m in zip(bias.shape, wanted[lead:], strict=True)):
            raise ValueError(f"bias must broadcast to the scores' shape {wanted}, got {list(bias.shape)}")


def _scale(given: Any) -> float:
    if isinstance(given, bool) or not isinstance(given, (Real, torch.SymFloat, torch.SymInt)):
        raise TypeError(f"scale must be None or a number, got {type(given).__name__}")
    return given  # type: ignore[return-value]  # a symbol serves as a float
