"""correlate as a function."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from .._C import correlate_plain
from .._eager import call, install, is_compiling
from .._operators.correlate import CORRELATE

install(CORRELATE)


def dynamic_dilation_correlate(
    query: Tensor,
    key: Tensor,
    dilation_map: Tensor,
    kernel_size: int | Sequence[int],
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    heads: int = 1,
    padding_mode: str = "zeros",
) -> Tensor:
    r"""A query compared with what lies under its window: scores of attention, cost volumes of flow, without columns.

    .. code-block:: none

        scores[b, h, t, oy, ox] = sum over channels c of head h of  query[b, c, oy, ox] * S[b, c, t, oy, ox]

    where ``S[b, c, t]`` is what :func:`dynamic_dilation_unfold` of the key has for channel ``c`` and tap
    ``t = ky*kW + kx``. Nothing of the columns' size is ever in memory, forward or backward. Sums are float32 (float64
    for float64), rounded once.

    Args:
        query: ``[B, C, Ho, Wo]``, or ``[C, Ho, Wo]`` unbatched: a vector for each position.
        key: ``[B, C, H, W]``, or ``[C, H, W]``: the image that is sampled; of the query's dtype, float16, bfloat16,
            float32 or float64. A channels_last key is read as it lies, and the query beside it.
        dilation_map: Rates ``[B, G, Ho, Wo]``, or ``[G, Ho, Wo]`` unbatched, where batch, height and width may be 1. G
            divides C, independently of the heads: consecutive ``C / G`` channels share rates. The query's dtype, or
            float32 beside half values (recommended).
        kernel_size: Taps of the window, ``k`` or ``(kH, kW)``.
        stride: Pixels between positions.
        padding: Pixels around the image.
        dilation: Base dilation, in pixels, which the map multiplies.
        heads: Divides C: consecutive ``C / heads`` channels are compared by themselves.
        padding_mode: What a tap outside the image reads: ``"zeros"``, or ``"border"``, the nearest pixel of the edge.

    Returns:
        ``[B, heads, kH*kW, Ho, Wo]`` (``[heads, kH*kW, Ho, Wo]`` unbatched) of the query's dtype, contiguous, with Ho
        and Wo as for :func:`dynamic_dilation_unfold`.

    Raises:
        ValueError: A shape or option does not fit; the message says what is expected.
        TypeError: A dtype is not supported, or the dtypes do not go together.
        RuntimeError: The tensors are on different devices, or this build cannot serve the device.

    Differentiable in query, key and dilation_map.
    """
    if not is_compiling():
        scores = correlate_plain(query, key, dilation_map, kernel_size, stride, padding, dilation, heads, padding_mode)
        if scores is not None:
            return scores
    given = (kernel_size, stride, padding, dilation, heads, padding_mode)
    result: Tensor = call(dynamic_dilation_correlate, CORRELATE, (query, key, dilation_map), given)
    return result
