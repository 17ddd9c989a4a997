"""conv2d as a function."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
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
        rounded once; on CUDA the sampled values are rounded before the product. float32 factors are rounded to TF32
        where F.conv2d would; but products of columns, where there is no kernel of its own for a call, obey the
        settings of torch's matrix products, as ``torch.set_float32_matmul_precision``.

    Raises:
        ValueError: A shape or option does not fit; the message says what is expected.
        TypeError: A dtype is not supported, or the dtypes do not go together.
        RuntimeError: The tensors are on different devices, or this build cannot serve the device. Deterministic
            algorithms on CUDA use torch's matrix products, which need ``CUBLAS_WORKSPACE_CONFIG=:4096:8`` in the
            environment.

    Differentiable in input, weight, dilation_map, bias and mask, with the derivatives of
    :func:`dynamic_dilation_unfold`.
    """
    tensors: tuple[Any, ...] = (input, weight, dilation_map, bias, mask)
    given = input
    if isinstance(padding, str) and not _is_handed_over((*tensors, stride, dilation)):
        CONV2D.require_tensors(tensors)
        if not is_compiling():
            CONV2D.require_dense(tensors)
        input, padding = _padded(input, weight, padding, stride, dilation, padding_mode)
        tensors = (input, *tensors[1:])
    options = (stride, padding, dilation, padding_mode)
    result: Tensor
    if is_compiling():
        result = call(dynamic_dilation_conv2d, CONV2D, tensors, options)
        return result
    try:
        output = conv2d_plain(input, weight, dilation_map, bias, mask, *options)
        result = call(dynamic_dilation_conv2d, CONV2D, tensors, options) if output is None else output
    except ValueError as error:
        if input is given:
            raise
        raise _of_given_input(error, input, given) from None
    return result


def _is_handed_over(values: Sequence[Any]) -> bool:
    return not is_compiling() and bool(overridden(values))


def _padded(
    input: Tensor, weight: Tensor, padding: str, stride: Any, dilation: Any, padding_mode: str
) -> tuple[Tensor, tuple[Any, ...]]:
    """The input, with a row or column more where "same" wants an odd number of them, and the padding in numbers.

    What no call takes stays as it is, for the error that says so.
    """
    if padding not in ("same", "valid"):
        raise ValueError(f'padding must be an int, a pair of ints, "same" or "valid", got "{padding}"')
    if padding == "valid" or weight.dim() != 4:
        return input, (0, 0)
    if any(step != 1 for step in pair("stride", stride)):
        raise ValueError(f'padding="same" needs stride 1, got {stride}')
    steps = pair("dilation", dilation)
    if not is_compiling() and (min(steps) < 1 or 0 in weight.shape[-2:]):
        return input, (0, 0)
    totals = [d * (size - 1) for d, size in zip(steps, weight.shape[-2:], strict=True)]
    is_image = input.dim() in (3, 4) and (is_compiling() or 0 not in input.shape[-2:])
    odd = tuple(total % 2 for total in totals)
    if is_image and any(odd) and padding_mode != "border":
        input = F.pad(input, (0, odd[1], 0, odd[0]))
    elif is_image:
        for dim, more in zip((-2, -1), odd, strict=True):  # as ddu/torch/conv2d.h does, so that gradients are equal
            input = torch.cat((input, input.narrow(dim, -1, 1)), dim) if more else input
    return input, tuple(total // 2 for total in totals)


def _of_given_input(error: ValueError, padded: Tensor, given: Tensor) -> ValueError:
    """The error about a padded input, with the shape as it was given and without options that fit the padded one."""
    message = str(error).partition("; this map fits")[0]
    return ValueError(message.replace(f"input {list(padded.shape)}", f"input {list(given.shape)}"))
