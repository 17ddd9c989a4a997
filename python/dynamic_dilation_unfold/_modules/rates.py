"""Where a layer has its dilation map from."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .._options import integer


def bounded_rates(z: Tensor, min_rate: float, max_rate: float) -> Tensor:
    """1 where ``z`` is 0, and between the bounds; float32 for half types, in which rates near 1 are all 1."""
    if z.dtype in (torch.float16, torch.bfloat16):
        z = z.float()
    t = z.tanh()
    # torch.where of two numbers would round them to the default dtype, whatever z's is.
    rates: Tensor = 1 + torch.where(z > 0, (max_rate - 1) * t, (1 - min_rate) * t)
    return rates


def check_bounds(min_rate: float, max_rate: float) -> None:
    try:
        fit = min_rate < 1 < max_rate and math.isfinite(max_rate - min_rate)
    except TypeError:
        fit = False
    if not fit:
        raise ValueError(
            f"min_rate must be below 1, max_rate above 1, and both finite, got {min_rate!r} and {max_rate!r}"
        )


def check_channels(input: Tensor, channels: int) -> None:
    """Raises for an input that a layer was not made for, before one of its parts says so in words of its own."""
    # What stands for a tensor has its methods: a proxy of a tracer. torch 2.4 compiles no question about a tensor's.
    if not isinstance(input, Tensor) and not hasattr(input, "dim"):
        raise TypeError(f"input must be a torch.Tensor, got {type(input).__name__}")
    if input.dim() not in (3, 4) or input.shape[-3] != channels:
        shapes = f"[B, {channels}, H, W] or [{channels}, H, W]"
        raise ValueError(f"input must have shape {shapes}, as this layer was made, got {list(input.shape)}")


def check_map(dilation_map: Tensor | None, rates: str) -> None:
    """Raises unless a call has a map where, and only where, the layer's rates are given."""
    if (dilation_map is None) == (rates == "given"):
        needs = 'a dilation_map: give it after the input, or make the layer with rates="predicted"'
        has = 'no dilation_map: to give one, make the layer with rates="given"'
        raise TypeError(f"a layer with rates={rates!r} takes {needs if dilation_map is None else has}")


class ZeroConv2d(nn.Conv2d):
    """A convolution that starts at 0, also where a network is reset module by module, as after it was made on meta."""

    def reset_parameters(self) -> None:
        super().reset_parameters()
        for parameter in self.parameters(recurse=False):
            nn.init.zeros_(parameter)


class DilationPredictor(nn.Module):
    """A dilation map from an image, by one convolution: ``[B, C, H, W]`` -> ``[B, groups, Ho, Wo]``.

    ``rate = 1 + (max_rate - 1) * tanh(z)`` where the convolution's result ``z`` is positive, ``1 + (1 - min_rate) *
    tanh(z)`` elsewhere. Weights and bias start at 0, so every rate starts at exactly 1 and all of them get gradients
    from the first step. Its 3x3 window, padded by 1, gives one rate for each pixel, or each ``stride``-th.

    Args:
        channels: C.
        groups: Planes of the map, at least 1.
        stride: Pixels between positions, of the layer that takes the map.
        min_rate, max_rate: The map's bounds, finite, with ``min_rate < 1 < max_rate``.
        device, dtype: Of the parameters.

    Raises:
        ValueError: There are no groups, or the bounds do not fit.
        TypeError: ``groups`` is no int.
    """

    def __init__(
        self,
        channels: int,
        groups: int = 1,
        stride: int | Sequence[int] = 1,
        min_rate: float = 0.0,
        max_rate: float = 4.0,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_bounds(min_rate, max_rate)
        groups = integer("groups", groups)
        if groups < 1:
            raise ValueError(f"groups must be at least 1, got {groups}")
        self.min_rate, self.max_rate = min_rate, max_rate
        strides: Any = stride
        self.conv = ZeroConv2d(channels, groups, 3, stride=strides, padding=1, device=device, dtype=dtype)

    def forward(self, input: Tensor) -> Tensor:
        """The map of an image.

        Args:
            input: ``[B, C, H, W]``, or ``[C, H, W]`` unbatched, of the parameters' dtype.

        Returns:
            Rates ``[B, groups, Ho, Wo]``, or ``[groups, Ho, Wo]`` unbatched, with ``Ho = (H - 1) // stride + 1``, of
            the input's dtype, but float32 for half types.

        Raises:
            ValueError: The input's shape is not what the layer was made for.
            TypeError: The input is no tensor.
            RuntimeError: Torch's, where the input has another dtype or device than the parameters.
        """
        check_channels(input, self.conv.in_channels)
        z = self.conv(input)
        return bounded_rates(z, self.min_rate, self.max_rate)

    def extra_repr(self) -> str:
        return f"min_rate={self.min_rate}, max_rate={self.max_rate}"
