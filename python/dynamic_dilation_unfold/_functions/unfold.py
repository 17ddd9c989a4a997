"""unfold as a function."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from .._C import unfold_plain
from .._eager import call, install, is_compiling
from .._operators.unfold import UNFOLD

install(UNFOLD)


def dynamic_dilation_unfold(
    input: Tensor,
    kernel_size: int | Sequence[int],
    dilation_map: Tensor,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    padding_mode: str = "zeros",
) -> Tensor:
    r"""``torch.nn.functional.unfold`` whose dilation is a map.

    The tap ``(ky, kx)`` of output position ``(oy, ox)`` samples channel ``c`` of the input bilinearly at

    .. code-block:: none

        y = oy*s_h - p_h + (kH-1)/2*d_h + (ky - (kH-1)/2)*d_h*D[b, g, oy, ox]        g = c // (C / groups)
        x = ox*s_w - p_w + (kW-1)/2*d_w + (kx - (kW-1)/2)*d_w*D[b, g, oy, ox]

    so the window keeps the centre that F.unfold gives it, and the map scales its taps about that centre. Pixels outside
    the image count as 0, or as the nearest pixel of its edge. A map of ones gives F.unfold's result bit for bit (finite
    inputs), and with ``padding_mode="border"`` that of an image padded by ``F.pad(mode="replicate")``.

    Args:
        input: ``[B, C, H, W]``, or ``[C, H, W]`` unbatched; float16, bfloat16, float32 or float64.
        kernel_size: Taps of the window, ``k`` or ``(kH, kW)``.
        dilation_map: Rates ``D [B, groups, Ho, Wo]``, or ``[groups, Ho, Wo]`` unbatched, where batch, height and width
            may be 1 and are broadcast: ``[1, groups, 1, 1]`` is one rate for each group. The input's dtype, or float32
            beside a half input (recommended). 1 is the base dilation, fractions and negative rates are allowed, 0 puts
            every tap on the centre. A rate that is NaN or infinite makes the taps of its position NaN.
        stride: Pixels between positions.
        padding: Pixels around the image over which positions go on.
        dilation: Base dilation, in pixels, which the map multiplies.
        groups: Channel groups with a map plane each; must divide C.
        padding_mode: What a tap outside the image reads, with F.grid_sample's names: ``"zeros"``, or ``"border"``, the
            nearest pixel, as if its coordinates were clamped to ``[0, H-1]`` and ``[0, W-1]``; a coordinate below 0, or
            at the last pixel and beyond, then has derivative 0.

    Returns:
        Columns ``[B, C*kH*kW, Ho*Wo]`` in F.unfold's layout (``[C*kH*kW, Ho*Wo]`` unbatched), of the input's dtype,
        with ``Ho = (H + 2*padding - dilation*(kernel_size - 1) - 1) // stride + 1``, and ``Wo`` alike.

    Raises:
        ValueError: A shape or option does not fit; the message says what is expected.
        TypeError: A dtype is not supported, or the dtypes do not go together.
        RuntimeError: The tensors are on different devices, or this build cannot serve the device.

    Differentiable in input and dilation_map. At whole positions, where bilinear interpolation has a kink, the
    derivative is the right-hand one, as in F.grid_sample.
    """
    if not is_compiling():
        output = unfold_plain(input, dilation_map, kernel_size, stride, padding, dilation, groups, padding_mode)
        if output is not None:
            return output
    given = (kernel_size, stride, padding, dilation, groups, padding_mode)
    result: Tensor = call(dynamic_dilation_unfold, UNFOLD, (input, dilation_map), given)
    return result
