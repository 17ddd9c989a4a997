"""The operators as modules."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from ._modules.attention import DynamicDilationAttention2d
from ._modules.conv2d import DynamicDilationConv2d
from ._modules.convert import Conversion, convert
from ._modules.pool import DynamicDilationPool2d
from ._modules.rates import DilationPredictor
from ._operators.unfold import UNFOLD
from .functional import dynamic_dilation_unfold

__all__ = [
    "Conversion",
    "DilationPredictor",
    "DynamicDilationAttention2d",
    "DynamicDilationConv2d",
    "DynamicDilationPool2d",
    "DynamicDilationUnfold",
    "convert",
]


class DynamicDilationUnfold(nn.Module):
    """:func:`dynamic_dilation_unfold` with its options fixed. It has no parameters and no state.

    Shapes: input ``[B, C, H, W]`` and dilation_map ``[B or 1, groups, Ho, Wo]`` give ``[B, C*kH*kW, Ho*Wo]``; each also
    without ``B``.

    Raises:
        ValueError: ``padding_mode`` is neither of the two. Whether sizes are in range is checked at each call.
        TypeError: An option is not what it must be: an int, or a pair of ints.
    """

    def __init__(
        self,
        kernel_size: int | Sequence[int],
        stride: int | Sequence[int] = 1,
        padding: int | Sequence[int] = 0,
        dilation: int | Sequence[int] = 1,
        groups: int = 1,
        padding_mode: str = "zeros",
    ) -> None:
        super().__init__()
        options = UNFOLD.read((kernel_size, stride, padding, dilation, groups, padding_mode))
        self.kernel_size, self.stride, self.padding, self.dilation, self.groups, self.padding_mode = options

    def forward(self, input: Tensor, dilation_map: Tensor) -> Tensor:
        """The columns of an image.

        Args:
            input: ``[B, C, H, W]``, or ``[C, H, W]`` unbatched; float16, bfloat16, float32 or float64.
            dilation_map: ``[B or 1, groups, Ho or 1, Wo or 1]``, without ``B`` for an unbatched input. The input's
                dtype, or float32 beside a half input (recommended). 1 is the base dilation.

        Returns:
            ``[B, C*kH*kW, Ho*Wo]``, or ``[C*kH*kW, Ho*Wo]`` unbatched, of the input's dtype.

        Raises:
            ValueError: A shape or option does not fit; the message says what is expected.
            TypeError: A dtype is not supported, or the dtypes do not go together.
        """
        return dynamic_dilation_unfold(
            input,
            self.kernel_size,
            dilation_map,
            self.stride,
            self.padding,
            self.dilation,
            self.groups,
            self.padding_mode,
        )

    def extra_repr(self) -> str:
        return (
            f"kernel_size={self.kernel_size}, stride={self.stride}, padding={self.padding}, "
            f"dilation={self.dilation}, groups={self.groups}"
            + (f", padding_mode={self.padding_mode}" if self.padding_mode != "zeros" else "")
        )
