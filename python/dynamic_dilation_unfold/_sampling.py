"""Where taps lie and what they read, in differentiable torch: the definition that the operators' references share."""

from __future__ import annotations

import torch
from torch import Tensor

from ._options import Pair

_FAR = 2.0**30  # beyond every image; cut in floating point, before the conversion to an integer


def _cells(rate: Tensor, axis: int, kernel: int, stride: int, padding: int, dilation: int) -> tuple[Tensor, Tensor]:
    """First pixel and fraction of each tap's cell along an axis of ``rate [B, G, Ho, Wo]``: each ``[B, G, k, Ho, Wo]``.

    A tap lies at ``o*s - p + (k-1)/2*d + (i - (k-1)/2)*d*rate``. The centre is a whole or half number of pixels, so its
    whole part stays an integer and the fraction keeps its precision however large the image is.
    """
    span = (kernel - 1) * dilation
    positions = torch.arange(rate.shape[axis], device=rate.device)
    base = positions * stride - padding + span // 2
    shape = [1] * 5
    shape[axis + 1 if axis > 0 else axis] = -1
    taps = (torch.arange(kernel, device=rate.device, dtype=rate.dtype) - (kernel - 1) / 2) * dilation
    distance = (span % 2) / 2 + taps.view(-1, 1, 1) * rate.unsqueeze(2)
    distance = distance.clamp(-_FAR, _FAR)
    whole = distance.detach().floor()
    return base.view(shape) + whole.long(), distance - whole


def columns(
    input: Tensor, dilation_map: Tensor, kernel: Pair, stride: Pair, padding: Pair, dilation: Pair, groups: int
) -> Tensor:
    """``[B, C*kH*kW, Ho*Wo]`` of ``input [B, C, H, W]`` and a full map; each also without ``B``."""
    if input.dim() == 3:
        batched = columns(input.unsqueeze(0), dilation_map.unsqueeze(0), kernel, stride, padding, dilation, groups)
        return batched.squeeze(0)
    batch, channels, height, width = input.shape
    accumulate = torch.promote_types(input.dtype, torch.float32)
    given = dilation_map.to(accumulate)
    finite = given.isfinite()
    rate = torch.where(finite, given, 0)
    y, fy = _cells(rate, 2, kernel[0], stride[0], padding[0], dilation[0])
    x, fx = _cells(rate, 3, kernel[1], stride[1], padding[1], dilation[1])
    y, fy = y.unsqueeze(3), fy.unsqueeze(3)  # [B, G, kH, 1, Ho, Wo]
    x, fx = x.unsqueeze(2), fx.unsqueeze(2)  # [B, G, 1, kW, Ho, Wo]

    pixels = input.to(accumulate).reshape(batch, groups, channels // groups, height * width)

    def corner(iy: Tensor, ix: Tensor) -> Tensor:
        inside = (iy >= 0) & (iy < height) & (ix >= 0) & (ix < width) & finite[:, :, None, None]
        index = iy.clamp(0, height - 1) * width + ix.clamp(0, width - 1)
        index, inside = (t.flatten(2).unsqueeze(2).expand(batch, -1, channels // groups, -1) for t in (index, inside))
        return torch.where(inside, pixels.gather(3, index), 0)

    def weight(wy: Tensor, wx: Tensor) -> Tensor:
        return (wy * wx).flatten(2).unsqueeze(2)

    taps = (
        weight(1 - fy, 1 - fx) * corner(y, x)
        + weight(1 - fy, fx) * corner(y, x + 1)
        + weight(fy, 1 - fx) * corner(y + 1, x)
        + weight(fy, fx) * corner(y + 1, x + 1)
    )
    positions = rate.shape[2] * rate.shape[3]
    # A rate that is not finite makes its taps NaN, and its own gradient too; to the others this adds 0.
    poison = given.nan_to_num() * torch.where(finite, 0.0, torch.nan)
    taps = taps.unflatten(3, (-1, positions)) + poison.flatten(2)[:, :, None, None]
    result: Tensor = taps.reshape(batch, channels * kernel[0] * kernel[1], positions).to(input.dtype)
    return result
