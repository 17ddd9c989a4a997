"""The operator in pure torch: the definition that everything else is tested against.

It runs on any device, differentiates as often as torch does, and is the path of devices without kernels and of those
derivatives that no kernel computes (``_second.py``). It needs a few copies of the columns as memory.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from . import _eager
from ._operators.unfold import UNFOLD


def dynamic_dilation_unfold_reference(
    input: Tensor,
    kernel_size: int | Sequence[int],
    dilation_map: Tensor,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    padding_mode: str = "zeros",
) -> Tensor:
    """Same arguments, shapes, values and errors as :func:`dynamic_dilation_unfold.dynamic_dilation_unfold`.

    A zero may lose its sign: ``-0.0`` times a weight is added to zeros of the other corners.
    """
    given = (kernel_size, stride, padding, dilation, groups, padding_mode)
    output: Tensor = _eager.reference(dynamic_dilation_unfold_reference, UNFOLD, (input, dilation_map), given)
    return output
