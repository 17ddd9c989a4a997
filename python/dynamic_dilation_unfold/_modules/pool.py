"""Pooling over the taps of a window, in which nothing outside the image takes part."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .._functions.aggregate import dynamic_dilation_aggregate
from .._functions.attention import dynamic_dilation_attention
from .._functions.coverage import dynamic_dilation_coverage
from .._geometry import output_size
from .._options import integer, pair


class DynamicDilationPool2d(nn.Module):
    """The mean, or a softmax's mean, of the taps of each window. It has no parameters and no state.

    Shapes: input ``[B, C, H, W]`` and dilation_map ``[B or 1, G, Ho or 1, Wo or 1]`` give ``[B, C, Ho, Wo]``; each also
    without ``B``. Taps count by the share of them that is inside the image (:func:`dynamic_dilation_coverage`), so an
    image of ones gives ones up to its edges, and 0 only where no tap meets it.

    Args:
        kernel_size: Taps of the window, ``k`` or ``(kH, kW)``.
        stride: Pixels between positions; ``kernel_size`` if not given, as in nn.AvgPool2d.
        padding: Pixels around the image.
        dilation: Base dilation, in pixels, which the map multiplies.
        mode: "mean": with a map of ones nn.AvgPool2d's with ``count_include_pad=False``. "softmax": between mean and
            maximum; the taps weighted by the softmax of ``temperature`` times their mean over the channels of a head.
        temperature: Of the softmax: 0 is the mean, large values are near the maximum.
        heads: Of the softmax: the channels of a head have one set of weights. As many heads as channels weigh each by
            itself, and the weights are then as large as columns. A multiple of the map's groups, or the map has one.

    Raises:
        ValueError: ``mode`` is neither of the two. Whether sizes are in range is checked at each call.
        TypeError: An option is not what it must be: an int, or a pair of ints.
    """

    def __init__(
        self,
        kernel_size: int | Sequence[int],
        stride: int | Sequence[int] | None = None,
        padding: int | Sequence[int] = 0,
        dilation: int | Sequence[int] = 1,
        mode: str = "mean",
        temperature: float = 1.0,
        heads: int = 1,
    ) -> None:
        super().__init__()
        if mode not in ("mean", "softmax"):
            raise ValueError(f'mode must be "mean" or "softmax", got {mode!r}')
        self.kernel_size = pair("kernel_size", kernel_size)
        self.stride = self.kernel_size if stride is None else pair("stride", stride)
        self.padding, self.dilation = pair("padding", padding), pair("dilation", dilation)
        self.mode, self.temperature, self.heads = mode, float(temperature), integer("heads", heads)

    def forward(self, input: Tensor, dilation_map: Tensor) -> Tensor:
        """The means of an image's windows.

        Args:
            input: ``[B, C, H, W]``, or ``[C, H, W]`` unbatched; float16, bfloat16, float32 or float64.
            dilation_map: ``[B or 1, G, Ho or 1, Wo or 1]``, without ``B`` for an unbatched input. The input's dtype, or
                float32 beside a half input (recommended). 1 is the base dilation.

        Returns:
            ``[B, C, Ho, Wo]``, or ``[C, Ho, Wo]`` unbatched, of the input's dtype.

        Raises:
            ValueError: A shape or option does not fit; the message says what is expected.
            TypeError: One of the two is no tensor, or the dtypes are not supported or do not go together.
        """
        for name, tensor in (("input", input), ("dilation_map", dilation_map)):
            _check(name, tensor)
        window = (self.kernel_size, self.stride, self.padding, self.dilation)
        if self.mode == "softmax":
            positions = [max(size, 0) for size in output_size(input.shape[-2:], self)]
            query = torch.ones_like(input[..., :1, :1]).expand(*input.shape[:-2], *positions)
            scale = self.temperature * self.heads / input.shape[-3]
            return dynamic_dilation_attention(query, input, input, dilation_map, *window, self.heads, scale=scale)
        accumulate = torch.promote_types(input.dtype, torch.float32)
        inside = dynamic_dilation_coverage(dilation_map.to(accumulate), input.shape[-2:], *window)
        total = inside.sum(-3, keepdim=True)
        weights = 1 / total.masked_fill(total < torch.finfo(input.dtype).tiny, torch.inf)
        return dynamic_dilation_aggregate(input, weights.to(input.dtype).expand_as(inside), dilation_map, *window)

    def extra_repr(self) -> str:
        softmax = f", temperature={self.temperature}, heads={self.heads}" if self.mode == "softmax" else ""
        return (
            f"kernel_size={self.kernel_size}, stride={self.stride}, padding={self.padding}, "
            f"dilation={self.dilation}, mode={self.mode!r}{softmax}"
        )


def _check(name: str, tensor: Tensor) -> None:
    """What coverage would say of other tensors than the caller gave, or torch in words of its own."""
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(tensor).__name__}")
    if not tensor.is_floating_point():
        raise TypeError(f"{name} must be float16, bfloat16, float32 or float64, got {tensor.dtype}")
    if tensor.dim() not in (3, 4):
        raise ValueError(f"{name} must have 4 dimensions, or 3 without a batch, got shape {list(tensor.shape)}")
