"""aggregate as a function."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from .._C import aggregate_plain
from .._eager import call, install, is_compiling
from .._operators.aggregate import AGGREGATE

install(AGGREGATE)


def dynamic_dilation_aggregate(
    input: Tensor,
    weights: Tensor,
    dilation_map: Tensor,
    kernel_size: int | Sequence[int],
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    padding_mode: str = "zeros",
) -> Tensor:
    r"""What lies under each window, summed with weights: involution, CARAFE, adaptive blur, without columns.

    .. code-block:: none

        output[b, c, oy, ox] = sum_t weights[b, h, t, oy, ox] * S[b, c, t, oy, ox]        h = c // (C / heads)

    where ``S[b, c, t]`` is what :func:`dynamic_dilation_unfold` has for channel ``c`` and tap ``t = ky*kW + kx``.
    Nothing of the columns' size is ever in memory, forward or backward. Sums are float32 (float64 for float64), rounded
    once.

    Args:
        input: ``[B, C, H, W]``, or ``[C, H, W]`` unbatched; float16, bfloat16, float32 or float64. A channels_last
            input is read as it lies.
        weights: ``[B, heads, kH*kW, Ho, Wo]`` (``[heads, kH*kW, Ho, Wo]`` unbatched) of the input's dtype, where the
            batch may be 1. ``heads`` divides C: consecutive ``C / heads`` channels share a head's weights.
        dilation_map: Rates ``[B, G, Ho, Wo]``, or ``[G, Ho, Wo]`` unbatched, where batch, height and width may be 1. G
            divides C, independently of the heads: consecutive ``C / G`` channels share rates. The input's dtype, or
            float32 beside a half input (recommended).
        kernel_size: Taps of the window, ``k`` or ``(kH, kW)``.
        stride: Pixels between positions.
        padding: Pixels around the image.
        dilation: Base dilation, in pixels, which the map multiplies.
        padding_mode: What a tap outside the image reads: ``"zeros"``, or ``"border"``, the nearest pixel of the edge.

    Returns:
        ``[B, C, Ho, Wo]`` (``[C, Ho, Wo]`` unbatched) of the input's dtype and memory format, with Ho and Wo as for
        :func:`dynamic_dilation_unfold`.

    Raises:
        ValueError: A shape or option does not fit; the message says what is expected.
        TypeError: A dtype is not supported, or the dtypes do not go together.
        RuntimeError: The tensors are on different devices, or this build cannot serve the device.

    Differentiable in input, weights and dilation_map.
    """
    if not is_compiling():
        output = aggregate_plain(input, weights, dilation_map, kernel_size, stride, padding, dilation, padding_mode)
        if output is not None:
            return output
    given = (kernel_size, stride, padding, dilation, padding_mode)
    result: Tensor = call(dynamic_dilation_aggregate, AGGREGATE, (input, weights, dilation_map), given)
    return result
