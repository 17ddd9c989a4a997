"""What Python knows of shapes: F.unfold's rule, and maps that are broadcast. The C++ library validates them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from ._options import Int


def output_size(image: Sequence[Int], options: Any) -> tuple[Int, Int]:
    """Positions along height and width, symbols for an image of symbolic sizes. Less than 1 where no window fits."""
    height, width = (
        (size + 2 * p - d * (k - 1) - 1) // s + 1
        for size, k, s, p, d in zip(
            image, options.kernel_size, options.stride, options.padding, options.dilation, strict=True
        )
    )
    return height, width


def full_map(dilation_map: Tensor, image: Sequence[Int], options: Any) -> Tensor:
    """The map with a rate for each position: one row or one column stands for all.

    Done once, at the edge of a call, so that nothing behind it knows of such maps; the gradient is summed by torch. A
    map that does not fit stays as it is, for the error that says so.
    """
    if dilation_map.dim() < 3 or len(image) != 2 or any(stride == 0 for stride in options.stride):
        return dilation_map
    *planes, height, width = dilation_map.shape
    if height != 1 and width != 1:
        return dilation_map
    positions = output_size(image, options)
    wanted = tuple(out if given == 1 else given for given, out in zip((height, width), positions, strict=True))
    if wanted == (height, width) or any(size < 1 for size in wanted):
        return dilation_map
    if all(isinstance(n, int) for n in (*wanted, *positions)) and wanted != positions:
        return dilation_map
    return dilation_map.expand(*planes, *wanted)
