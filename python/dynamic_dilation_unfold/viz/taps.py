"""Where taps lie, how much of them is inside the image, and which pixels an output depends on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .._geometry import full_map
from .._options import PaddingMode, Pair, pair
from .._sampling import taps_of
from ..functional import dynamic_dilation_coverage, dynamic_dilation_unfold

Ints = int | Sequence[int]


class _Window(NamedTuple):
    """The options from which _geometry.py tells how many rates a map has."""

    kernel_size: Pair
    stride: Pair
    padding: Pair
    dilation: Pair
    padding_mode: PaddingMode = "zeros"  # where taps lie, not what they read

    @classmethod
    def read(cls, kernel_size: Ints, stride: Ints, padding: Ints, dilation: Ints) -> _Window:
        size, steps, pads, rate = map(pair, cls._fields, (kernel_size, stride, padding, dilation))
        return cls(size, steps, pads, rate)


def tap_positions(
    dilation_map: Tensor,
    kernel_size: Ints,
    stride: Ints = 1,
    padding: Ints = 0,
    dilation: Ints = 1,
    input_size: Sequence[int] | None = None,
) -> Tensor:
    r"""Where each tap of each position samples the image, in pixels.

    .. code-block:: none

        y = oy*s_h - p_h + (kH-1)/2*d_h + (ky - (kH-1)/2)*d_h*D[b, g, oy, ox]
        x = ox*s_w - p_w + (kW-1)/2*d_w + (kx - (kW-1)/2)*d_w*D[b, g, oy, ox]

    Args:
        dilation_map: Rates ``D [B, G, Ho, Wo]``, or ``[G, Ho, Wo]`` unbatched.
        kernel_size, stride, padding, dilation: As of the call that the map is for.
        input_size: ``(H, W)`` of the image. Needed where the map has one row or column that stands for all.

    Returns:
        ``[B, G, kH*kW, Ho, Wo, 2]`` (without ``B`` if the map is unbatched): y and x, 0 being the middle of the first
        pixel, of the taps in the order of columns, ``ky*kW + kx``. float64 for a float64 map, float32 for others. NaN
        where the rate is NaN or infinite. Differentiable in the map.

    Raises:
        ValueError: The map is no batch of planes, or is not the one of an image of that size.
    """
    if dilation_map.dim() not in (3, 4):
        raise ValueError(
            f"dilation_map must be [B, groups, Ho, Wo] or [groups, Ho, Wo], got shape {list(dilation_map.shape)}"
        )
    window = _Window.read(kernel_size, stride, padding, dilation)
    if input_size is not None:
        image = pair("input_size", input_size)
        *planes, _, _ = dilation_map.shape
        ones, rates = (torch.empty(shape, device="meta") for shape in ((*planes, *image), dilation_map.shape))
        dynamic_dilation_unfold(ones, kernel_size, rates, stride, padding, dilation, planes[-1])  # says what is wrong
        dilation_map = full_map(dilation_map, image, window)
    dtype = torch.promote_types(dilation_map.dtype, torch.float32)
    batched = dilation_map if dilation_map.dim() == 4 else dilation_map.unsqueeze(0)
    taps = taps_of(batched, dtype, window)
    y = (taps.y.to(dtype) + taps.fy).unsqueeze(3)  # [B, G, kH, 1, Ho, Wo]
    x = (taps.x.to(dtype) + taps.fx).unsqueeze(2)
    shape = (*batched.shape[:2], *window.kernel_size, *batched.shape[2:])
    found = torch.stack((y.expand(shape), x.expand(shape)), -1).flatten(2, 3)
    found = found + taps.nan_or_zero[:, :, None, ..., None]
    return found if dilation_map.dim() == 4 else found.squeeze(0)


def coverage_share(
    dilation_map: Tensor,
    input_size: Sequence[int],
    kernel_size: Ints,
    stride: Ints = 1,
    padding: Ints = 0,
    dilation: Ints = 1,
) -> Tensor:
    """How much of each window lies on the image: the mean over its taps of
    :func:`~dynamic_dilation_unfold.dynamic_dilation_coverage`, in [0, 1].

    1 minus the mean of the result is the share of taps that read the padding.

    Args:
        dilation_map: Rates ``[B, G, Ho, Wo]``, or ``[G, Ho, Wo]`` unbatched; rows and columns may be broadcast.
        input_size: ``(H, W)`` of the image.
        kernel_size, stride, padding, dilation: As of the call that the map is for.

    Returns:
        ``[B, G, Ho, Wo]`` (or without ``B``), of the map's dtype.

    Raises:
        ValueError: The map is not the one of an image of that size.
    """
    return dynamic_dilation_coverage(dilation_map, input_size, kernel_size, stride, padding, dilation).mean(-3)


def receptive_field(model: Callable[[Tensor], Tensor], input: Tensor, position: Sequence[int]) -> Tensor:
    """How much each pixel matters to one position of a model's output, through all its layers, by the gradient.

    The output's channels are weighted with fixed random numbers, so that channels which always add up to the same, as
    those of a softmax do, don't cancel.

    Args:
        model: From ``[B, C, H, W]`` to ``[B, channels, Ho, Wo]``, or to columns ``[B, channels, positions]``. For a
            module of several arguments, a function of the image: ``lambda x: conv(x, rates)``. Batch normalisation
            that trains joins all pixels: ``model.eval()`` first.
        input: ``[B, C, H, W]``, or unbatched, as the model takes it.
        position: ``(row, column)``, or ``(number,)`` of columns; negative ones count from the end.

    Returns:
        ``[B, H, W]`` (or ``[H, W]``), the input's dtype: the sum over channels of the gradient's magnitude. What is 0
        has no influence, or sits where the model's slope is 0, as behind a ReLU that is off.

    Raises:
        ValueError: There is no such position.
    """
    leaf = input.detach().requires_grad_()
    with torch.enable_grad():
        output = model(leaf)
        sizes = output.shape[output.dim() - len(position) :]
        if len(position) >= output.dim() or any(
            not -size <= at < size for at, size in zip(position, sizes, strict=True)
        ):
            raise ValueError(f"position {tuple(position)} is not in an output of shape {list(output.shape)}")
        index: tuple[Any, ...] = (..., *position)
        there = output[index]
        generator = torch.Generator().manual_seed(0)
        weights = torch.randn(there.shape[-1:], generator=generator, dtype=torch.float64).to(there)
        if not there.requires_grad:
            return input.new_zeros((*input.shape[:-3], *input.shape[-2:]))
        (gradient,) = torch.autograd.grad((there * weights).sum(), leaf)
    return gradient.abs().sum(-3)
