"""coverage: the columns of an image of ones."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .. import _torch_private as private
from .._eager import handed_over
from .._geometry import output_size
from .._operators.unfold import Options
from .._options import pair
from .unfold import dynamic_dilation_unfold


def _without_autocast(kind: str) -> contextlib.AbstractContextManager[Any]:
    if kind in private.AUTOCAST_DEVICES and torch.is_autocast_enabled(kind):
        return torch.autocast(kind, enabled=False)
    return contextlib.nullcontext()


def dynamic_dilation_coverage(
    dilation_map: Tensor,
    input_size: int | Sequence[int],
    kernel_size: int | Sequence[int],
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
) -> Tensor:
    r"""How much of each tap lies inside the image: the share of its bilinear weight that is on pixels.

    1 for a tap inside, 0 for one that meets no pixel, between them within one pixel outside the edge. It is what
    :func:`dynamic_dilation_unfold` makes of an image of ones, and what a mean, a maximum or a softmax over taps needs
    in order that padding takes no part.

    Args:
        dilation_map: Rates ``[B, G, Ho, Wo]``, or ``[G, Ho, Wo]`` unbatched, where height and width may be 1; float16,
            bfloat16, float32 or float64.
        input_size: Height and width of the image, or one number for both.
        kernel_size: Taps of the window, ``k`` or ``(kH, kW)``.
        stride: Pixels between positions.
        padding: Pixels around the image.
        dilation: Base dilation, in pixels, which the map multiplies.

    Returns:
        ``[B, G, kH*kW, Ho, Wo]`` (``[G, kH*kW, Ho, Wo]`` unbatched) of the map's dtype, in [0, 1]; NaN where the rate
        is NaN or infinite.

    Raises:
        ValueError: A shape or option does not fit; the message says what is expected.
        TypeError: The map's dtype is not supported, or an option is no int or pair of ints.

    Differentiable in dilation_map.
    """
    others = handed_over(
        dynamic_dilation_coverage,
        dilation_map=dilation_map,
        input_size=input_size,
        kernel_size=kernel_size,
        stride=stride,
        padding=padding,
        dilation=dilation,
    )
    if others is not None:
        coverage: Tensor = others
        return coverage
    height, width = pair("input_size", input_size)
    taps = pair("kernel_size", kernel_size)
    window = pair("stride", stride), pair("padding", padding), pair("dilation", dilation)
    if not isinstance(dilation_map, Tensor):
        raise TypeError(f"dilation_map must be a torch.Tensor, got {type(dilation_map).__name__}")
    if dilation_map.dim() not in (3, 4):
        raise ValueError(f"dilation_map must have shape [B, G, Ho, Wo] or [G, Ho, Wo], got {list(dilation_map.shape)}")
    *batch, groups, _, _ = dilation_map.shape
    # Made of the map, it is of the map's kind: a DTensor, a batch of vmap.
    ones = torch.ones_like(dilation_map.detach()[..., :1, :1]).expand(*batch, groups, height, width)
    with _without_autocast(dilation_map.device.type):  # shares are no values: they stay of the map's dtype
        columns = dynamic_dilation_unfold(ones, taps, dilation_map, *window, groups)
    options = Options(taps, *window, groups)
    positions = output_size((height, width), options)
    shares: Tensor = columns.unflatten(-2, (groups, taps[0] * taps[1])).unflatten(-1, positions)
    return shares
