"""The operator as a user can write it without this package: the benchmark's peer, and one of the tests' oracles."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from .._options import pair


def grid_sample_unfold(
    input: Tensor,
    kernel_size: int | Sequence[int],
    dilation_map: Tensor,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    padding_mode: str = "zeros",
    *,
    align_corners: bool = False,
    rounded: Callable[[Tensor], Tensor] = lambda position: position,
) -> Tensor:
    """One F.grid_sample whose grid has a row for each tap and output row, so that its result has F.unfold's layout.

    Arguments and result are those of the operator, batched.

    Args:
        align_corners: How the grid states positions: exactly for sizes of ``2^n``, or with True for ``2^n + 1``.
        rounded: May spoil the positions, to show what their precision is worth.
    """
    kernel, strides, paddings = pair("kernel_size", kernel_size), pair("stride", stride), pair("padding", padding)
    dilations = pair("dilation", dilation)
    batch, channels, *sizes = input.shape
    positions = dilation_map.shape[2:]
    axes = []
    for axis in (0, 1):
        taps = torch.arange(kernel[axis], device=input.device, dtype=dilation_map.dtype) - (kernel[axis] - 1) / 2
        centres = torch.arange(positions[axis], device=input.device, dtype=dilation_map.dtype) * strides[axis]
        centres = centres - paddings[axis] + (kernel[axis] - 1) / 2 * dilations[axis]
        offsets = (taps * dilations[axis]).view(-1, 1, 1) * dilation_map.unsqueeze(2)
        position = rounded(centres.view((-1, 1) if axis == 0 else (1, -1)) + offsets)  # [B, G, k, Ho, Wo]
        if align_corners:
            axes.append(2 * position / (sizes[axis] - 1) - 1)
        else:
            axes.append((2 * position + 1) / sizes[axis] - 1)
    shape = (*axes[0].shape[:2], *kernel, *positions)
    grid = torch.stack((axes[1].unsqueeze(2).expand(shape), axes[0].unsqueeze(3).expand(shape)), -1)
    grid = grid.view(batch * groups, kernel[0] * kernel[1] * positions[0], positions[1], 2)
    planes = input.reshape(batch * groups, channels // groups, *sizes)
    columns = F.grid_sample(planes, grid.to(input.dtype), padding_mode=padding_mode, align_corners=align_corners)
    return columns.reshape(batch, channels * kernel[0] * kernel[1], positions[0] * positions[1])
