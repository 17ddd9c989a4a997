"""conv2d as a function."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from .._C import conv2d_plain
from .._eager import call, install, is_compiling, overridden
from .._operators.conv2d import CONV2D
from .._options import pair

install(CONV2D)


def dynamic_dilation_conv2d(
    input: Tensor,
    weight: Tensor,
    dilation_map: Tensor,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] | str = 0,
    dilation: int | Sequence[int] = 1,
    mask: Tensor | None = None,
    padding_mode: str = "zeros",
) -> Tensor:
    r"""``torch.nn.functional.conv2d`` whose dilation is a map.

    .. code-block:: none

        out[b, o, oy, ox] = bias[o] + sum over c, t of weight[o, c, t] * mask[b, h(c), t, oy, ox] * S[b, c, t, oy, ox]

    where ``S`` is what :func:`dynamic_dilation_unfold` has at channel ``c`` and tap ``t = ky*kW + kx``. Columns are
    made a few at a time, and never all in memory. A map of ones without a mask gives F.conv2d's result but for
    rounding; any map gives that of torchvision's ``deform_conv2d`` with offsets ``(D - 1) * (k - middle) * dilation``.

    Args:
        input: ``[B, C, H, W]``, or ``[C, H, W]`` unbatched; float16, bfloat16, float32 or float64. A channels_last one
            gives a channels_last output.
        weight: ``[O, C/conv_groups, kH, kW]``, as F.conv2d has it: how many groups there are follows from C. They
            divide O, and have nothing to do with the map's.
        dilation_map: Rates ``D [B, groups, Ho, Wo]``, or ``[groups, Ho, Wo]`` unbatched, where batch, height and width
            may be 1 and are broadcast. Each of its groups is for ``C/groups`` channels. The input's dtype, or float32
            beside a half input (recommended). 1 is the base dilation.
        bias: ``[O]``.
        stride: Pixels between positions.
        padding: Pixels around the image, or "valid" for none, or "same" for as many positions as pixels: this needs
            stride 1, and pads an odd number with one more at the end, as F.conv2d does.
        dilation: Base dilation, in pixels, which the map multiplies.
        mask: Factors of the taps ``[B or 1, heads, kH*kW, Ho, Wo]``, without ``B`` for an unbatched input: each of the
            heads is for ``C/heads`` channels.
        padding_mode: What a tap outside the image reads: "zeros" for 0, "border" for the nearest pixel.

    Returns:
        ``[B, O, Ho, Wo]``, or ``[O, Ho, Wo]`` unbatched, of the input's dtype. Sums are float32 for half types, and
        rounded once; on CUDA the sampled values are rounded before the product.

    Raises:
        ValueError: A shape or option does not fit; the message says what is expected.
        TypeError: A dtype is not supported, or the dtypes do not go together.
        RuntimeError: The tensors are on different devices, or this build cannot serve the device.

    Differentiable in input, weight, dilation_map, bias and mask, with the derivatives of
    :func:`dynamic_dilation_unfold`.
    """
    tensors: tuple[Any, ...] = (input, weight, dilation_map, bias, mask)
    if isinstance(padding, str) and not _is_handed_over((*tensors, stride, dilation)):
        CONV2D.require_tensors(tensors)
        input, padding = _padded(input, weight, padding, stride, dilation, padding_mode)
        tensors = (input, *tensors[1:])
    if not is_compiling():
        output = conv2d_plain(input, weight, dilation_map, bias, mask, stride, padding, dilation, padding_mode)
        if output is not None:
            return output
    result: Tensor = call(dynamic_dilation_conv2d, CONV2D, tensors, (stride, padding, dilation, padding_mode))
    return result


def _is_handed_over(values: Sequence[Any]) -> bool:
    return not is_compiling() and bool(overridden(values))


def _padded(
    input: Tensor, weight: Tensor, padding: str, stride: Any, dilation: Any, padding_mode: str
) -> tuple[Tensor, tuple[Any, ...]]:
    """The input, with a row or column more where "same" wants an odd number of them, and the padding in numbers."""
    if padding not in ("same", "valid"):
        raise ValueError(f'padding must be an int, a pair of ints, "same" or "valid", got "{padding}"')
    if padding == "valid" or weight.dim() != 4:
        return input, (0, 0)
    if any(step != 1 for step in pair("stride", stride)):
        raise ValueError(f'padding="same" needs stride 1, got {stride}')
    totals = [d * (size - 1) for d, size in zip(pair("dilation", dilation), weight.shape[-2:], strict=True)]
    if any(total % 2 for total in totals):
        odd_height, odd_width = (total % 2 for total in totals)
        mode = "replicate" if padding_mode == "border" else "constant"
        # torch replicates batches alone.
        batched = input if input.dim() == 4 else input.unsqueeze(0)
        input = F.pad(batched, (0, odd_width, 0, odd_height), mode).reshape(
            *input.shape[:-2], input.shape[-2] + odd_height, input.shape[-1] + odd_width
        )
    return input, tuple(total // 2 for total in totals)
