"""Where taps lie and what they read, in differentiable torch: the definition that the operators' references share."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from math import prod
from typing import Any, NamedTuple

import torch
from torch import Tensor

_FEW = 1 << 19  # elements of columns
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


class Taps(NamedTuple):
    """Where the taps of each position lie: ``y, fy [B, G, kH, Ho, Wo]`` and ``x, fx [B, G, kW, Ho, Wo]``, as _cells."""

    y: Tensor
    fy: Tensor
    x: Tensor
    fx: Tensor
    finite: Tensor  # [B, G, Ho, Wo]: whether the rate is
    # Likewise. A rate that is not finite makes its taps NaN, and its own gradient too; to the others this adds 0.
    nan_or_zero: Tensor
    border: bool  # padding_mode


def taps_of(dilation_map: Tensor, dtype: torch.dtype, options: Any) -> Taps:
    """Of a full map ``[B, G, Ho, Wo]``, computed in ``dtype``."""
    given = dilation_map.to(dtype)
    finite = given.isfinite()
    rate = torch.where(finite, given, 0)
    y, x = (
        _cells(rate, 2 + i, options.kernel_size[i], options.stride[i], options.padding[i], options.dilation[i])
        for i in (0, 1)
    )
    nan_or_zero = given.nan_to_num() * torch.where(finite, 0.0, torch.nan)
    return Taps(*y, *x, finite, nan_or_zero, options.padding_mode == "border")


def _pixels(index: Tensor, fraction: Tensor, size: int, border: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Both pixels of each cell along an axis, and its fraction. Those outside the image, ``size`` among them, are 0.

    Of an image that goes on as its edge, a cell outside has the nearest pixel alone, and does not move.
    """
    if not border:
        return index, index + 1, fraction
    one = (index < 0) | (index >= size - 1)
    first = index.clamp(0, size - 1)
    return first, torch.where(one, size, first + 1), torch.where(one, 0, fraction)


def sample(input: Tensor, taps: Taps, rows: slice, columns: slice) -> Tensor:
    """``[B, G, C/G, n, Ho, Wo]`` of ``input [B, C, H, W]``: what lies at the ``n`` taps of some rows and columns."""
    batch, channels, height, width = input.shape
    groups = taps.finite.shape[1]
    y, fy = (t[:, :, rows].unsqueeze(3) for t in (taps.y, taps.fy))  # [B, G, n, 1, Ho, Wo]
    x, fx = (t[:, :, columns].unsqueeze(2) for t in (taps.x, taps.fx))  # [B, G, 1, n, Ho, Wo]
    y, y_next, fy = _pixels(y, fy, height, taps.border)
    x, x_next, fx = _pixels(x, fx, width, taps.border)
    pixels = input.reshape(batch, groups, channels // groups, height * width)

    def corner(iy: Tensor, ix: Tensor) -> Tensor:
        index = iy.clamp(0, height - 1) * width + ix.clamp(0, width - 1)
        inside = (iy >= 0) & (iy < height) & (ix >= 0) & (ix < width) & taps.finite[:, :, None, None]
        index, inside = (t.flatten(2).unsqueeze(2).expand(batch, -1, channels // groups, -1) for t in (index, inside))
        return torch.where(inside, pixels.gather(3, index), 0)

    def weight(wy: Tensor, wx: Tensor) -> Tensor:
        return (wy * wx).flatten(2).unsqueeze(2)

    values = (
        weight(1 - fy, 1 - fx) * corner(y, x)
        + weight(1 - fy, fx) * corner(y, x_next)
        + weight(fy, 1 - fx) * corner(y_next, x)
        + weight(fy, fx) * corner(y_next, x_next)
    )
    # The number of taps by its bounds: a compiler's symbols know no -1 in an empty tensor.
    count = y.shape[2] * x.shape[3]
    sampled: Tensor = values.unflatten(3, (count, *taps.finite.shape[2:])) + taps.nan_or_zero[:, :, None, None]
    return sampled


def batched(sampled: Callable[..., Tensor], tensors: Sequence[Tensor], options: Any) -> Tensor:
    """``sampled(*tensors, options)`` of tensors without a batch, the first one an image or like one, or with it."""
    if tensors[0].dim() == 4:
        return sampled(*tensors, options)
    return sampled(*(t.unsqueeze(0) for t in tensors), options).squeeze(0)


def columns(input: Tensor, dilation_map: Tensor, options: Any) -> Tensor:
    """``[B, C*kH*kW, Ho*Wo]`` of ``input [B, C, H, W]`` and a full map."""
    accumulate = torch.promote_types(input.dtype, torch.float32)
    taps = sample(input.to(accumulate), taps_of(dilation_map, accumulate, options), slice(None), slice(None))
    rows = input.shape[1] * options.kernel_size[0] * options.kernel_size[1]
    result: Tensor = taps.reshape(input.shape[0], rows, dilation_map.shape[2] * dilation_map.shape[3]).to(input.dtype)
    return result


def each_tap(input: Tensor, dilation_map: Tensor, options: Any) -> Iterator[Tensor]:
    """``[B, C, Ho, Wo]`` of ``input [B, C, H, W]`` for each tap in turn, in the dtype that sums have."""
    accumulate = torch.promote_types(input.dtype, torch.float32)
    pixels, taps = input.to(accumulate), taps_of(dilation_map, accumulate, options)
    shape = (*input.shape[:2], *dilation_map.shape[2:])
    height, width = options.kernel_size
    if not torch.compiler.is_compiling() and prod(shape) * height * width <= _FEW:
        # Few enough to be had at once, in far fewer operators. A compiler would make a guard of the comparison.
        yield from (
            sample(pixels, taps, slice(None), slice(None)).reshape(*shape[:2], height * width, *shape[2:]).unbind(2)
        )
        return
    for ky in range(height):
        for kx in range(width):
            yield sample(pixels, taps, slice(ky, ky + 1), slice(kx, kx + 1)).reshape(shape)


def aggregate(input: Tensor, weights: Tensor, dilation_map: Tensor, options: Any) -> Tensor:
    """``[B, C, Ho, Wo]``: the taps, each times its weight of ``[B, heads, kH*kW, Ho, Wo]``, summed."""
    heads = weights.shape[1]
    total: Any = 0
    for tap, weight in zip(each_tap(input, dilation_map, options), weights.unbind(2), strict=True):
        of_heads = tap.unflatten(1, (heads, input.shape[1] // heads))
        total = total + of_heads * weight.to(tap.dtype).unsqueeze(2)
    result: Tensor = total.flatten(1, 2).to(input.dtype)
    return result


def correlate(query: Tensor, key: Tensor, dilation_map: Tensor, options: Any) -> Tensor:
    """``[B, heads, kH*kW, Ho, Wo]``: the product of query and tap, summed over the channels of a head."""
    per_head = (options.heads, query.shape[1] // options.heads)
    scores = [(query.to(tap.dtype) * tap).unflatten(1, per_head).sum(2) for tap in each_tap(key, dilation_map, options)]
    return torch.stack(scores, 2).to(query.dtype)
