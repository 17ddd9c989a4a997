"""Attention to the taps of a window, as a layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .._functions.attention import dynamic_dilation_attention
from .._options import integer, pair
from .rates import DilationPredictor, check_channels, check_map


class DynamicDilationAttention2d(nn.Module):
    """Neighbourhood attention whose dilation is a map: :func:`dynamic_dilation_attention` with its projections.

    Shapes: input ``[B, channels, H, W]``, and with ``rates="given"`` a map ``[B or 1, map_groups, Ho or 1, Wo or 1]``,
    give ``[B, channels, Ho, Wo]`` with ``Ho = (H - 1) // stride + 1``. Where every rate is 1, as a predicted map is at
    the start, it is neighbourhood attention whose windows are cut at the edges.

    Query, key, value and output are 1x1 convolutions. The padding is ``dilation * (kernel_size - 1) / 2``, which
    centres windows on pixels; no tap outside the image takes part, unless ``padding_mode`` is "border".

    Args:
        channels: Of input and output.
        heads: Divides channels.
        kernel_size: Taps of the window, odd.
        stride: Pixels between positions.
        dilation: Base dilation, in pixels, which the map multiplies.
        map_groups: Planes of the map; 1, or a divisor of heads.
        rates: "predicted" by a :class:`DilationPredictor` from the input, or "given" to ``forward``.
        max_rate: The largest rate that is predicted.
        qkv_bias: Whether the projections to query, key and value have a bias.
        position_bias: Whether each head adds a learnt bias to the score of each tap, 0 at the start.
        padding_mode: What a tap outside the image reads: "zeros", where it takes no part, or "border".
        device, dtype: Of the parameters.

    Raises:
        ValueError: Heads, groups or kernel sizes do not fit; the message says what is expected.
        TypeError: A number is no int.
    """

    def __init__(
        self,
        channels: int,
        heads: int,
        kernel_size: int | Sequence[int],
        stride: int | Sequence[int] = 1,
        dilation: int | Sequence[int] = 1,
        map_groups: int = 1,
        rates: str = "predicted",
        max_rate: float = 4.0,
        qkv_bias: bool = True,
        position_bias: bool = True,
        padding_mode: str = "zeros",
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.channels, self.heads = integer("channels", channels), integer("heads", heads)
        self.kernel_size, self.stride = pair("kernel_size", kernel_size), pair("stride", stride)
        self.dilation, self.map_groups = pair("dilation", dilation), integer("map_groups", map_groups)
        height, width = ((k - 1) * d // 2 for k, d in zip(self.kernel_size, self.dilation, strict=True))
        self.padding = (height, width)
        if heads < 1 or channels % heads:
            raise ValueError(f"heads must be positive and divide channels, got {heads} heads for {channels} channels")
        if map_groups < 1 or heads % map_groups:
            raise ValueError(f"map_groups must be 1 or divide heads, got {map_groups} groups for {heads} heads")
        if not all(k % 2 for k in self.kernel_size):
            raise ValueError(f"kernel_size must be odd, so that windows have a pixel as centre, got {self.kernel_size}")
        if rates not in ("predicted", "given"):
            raise ValueError(f'rates must be "predicted" or "given", got {rates!r}')
        if padding_mode not in ("zeros", "border"):
            raise ValueError(f'padding_mode must be "zeros" or "border", got {padding_mode!r}')
        self.rates, self.max_rate, self.padding_mode = rates, max_rate, padding_mode
        made: Any = {"device": device, "dtype": dtype}
        self.query = nn.Conv2d(channels, channels, 1, stride=self.stride, bias=qkv_bias, **made)
        self.key = nn.Conv2d(channels, channels, 1, bias=qkv_bias, **made)
        self.value = nn.Conv2d(channels, channels, 1, bias=qkv_bias, **made)
        self.out = nn.Conv2d(channels, channels, 1, **made)
        self.position_bias: nn.Parameter | None = None
        if position_bias:
            taps = self.kernel_size[0] * self.kernel_size[1]
            self.position_bias = nn.Parameter(torch.zeros(heads, taps, 1, 1, **made))
        self.predictor: DilationPredictor | None = None
        if rates == "predicted":
            self.predictor = DilationPredictor(channels, map_groups, self.stride, max_rate=max_rate, **made)

    def reset_parameters(self) -> None:
        """Sets the position bias to 0. The module's parts reset themselves."""
        if self.position_bias is not None:
            nn.init.zeros_(self.position_bias)

    def forward(self, input: Tensor, dilation_map: Tensor | None = None) -> Tensor:
        """The attention of each position to the taps of its window.

        Args:
            input: ``[B, channels, H, W]``, or ``[channels, H, W]`` unbatched, of the parameters' dtype.
            dilation_map: With ``rates="given"``, and only then: ``[B or 1, map_groups, Ho or 1, Wo or 1]``, without
                ``B`` for an unbatched input. The input's dtype, or float32 beside a half input (recommended). 1 is the
                base dilation.

        Returns:
            ``[B, channels, Ho, Wo]``, or ``[channels, Ho, Wo]`` unbatched, with ``Ho = (H - 1) // stride + 1``, of the
            input's dtype.

        Raises:
            TypeError: The map is missing or not wanted, the input is no tensor, or dtypes do not go together.
            ValueError: A shape or option does not fit; the message says what is expected.
            RuntimeError: Torch's, where one of the layer's own convolutions has another dtype or device than the input.
        """
        check_map(dilation_map, self.rates)
        check_channels(input, self.channels)
        if self.predictor is not None:
            dilation_map = self.predictor(input)
        attended = dynamic_dilation_attention(
            self.query(input),
            self.key(input),
            self.value(input),
            dilation_map,  # type: ignore[arg-type]  # one of the two is there
            self.kernel_size,
            self.stride,
            self.padding,
            self.dilation,
            self.heads,
            self.position_bias,
            padding_mode=self.padding_mode,
        )
        projected: Tensor = self.out(attended)
        return projected

    def extra_repr(self) -> str:
        return (
            f"{self.channels}, heads={self.heads}, kernel_size={self.kernel_size}, stride={self.stride}, "
            f"dilation={self.dilation}, map_groups={self.map_groups}, rates={self.rates!r}, "
            f"padding_mode={self.padding_mode!r}"
        )
