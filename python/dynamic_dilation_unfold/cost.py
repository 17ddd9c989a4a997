"""What a call costs at least, from its shapes: arithmetic, and bytes to and from memory.

``torch.utils.flop_counter`` counts FLOPs by these formulas; it knows no bytes. The benchmark divides bytes by time.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import NamedTuple

import torch

from ._options import pair

# For each tap of each position and channel, multiply-adds counting 2 as in torch.utils.flop_counter: 4 corners times
# their weights; 4 weights times the gradient; the slope in y and x (4 corners each) and along the tap (2), times the
# gradient. An operator that sums taps or channels multiplies and adds each tap once more, and in backward forms the
# tap's gradient as a product first.
_FORWARD, _GRAD_INPUT, _GRAD_MAP = 8, 8, 22
_SUM = 2


class Cost(NamedTuple):
    """``bytes`` is the least traffic: each tensor that is read or written passes once."""

    flops: int
    bytes: int


def unfold(
    input: Sequence[int],
    dilation_map: Sequence[int],
    kernel_size: int | Sequence[int],
    dtype: torch.dtype = torch.float32,
    map_dtype: torch.dtype | None = None,
) -> Cost:
    """Reads input and map, writes the columns.

    Args:
        input, dilation_map: Their shapes, as :func:`dynamic_dilation_unfold.dynamic_dilation_unfold` takes them.
        kernel_size: Taps of the window.
        dtype, map_dtype: Of input and map; ``map_dtype`` is ``dtype`` where it is not given.
    """
    columns = _columns(input, dilation_map, kernel_size)
    return Cost(
        _FORWARD * columns, (prod(input) + columns) * dtype.itemsize + _map_bytes(dilation_map, dtype, map_dtype)
    )


def unfold_backward(
    input: Sequence[int],
    dilation_map: Sequence[int],
    kernel_size: int | Sequence[int],
    dtype: torch.dtype = torch.float32,
    map_dtype: torch.dtype | None = None,
    output_mask: Sequence[bool] = (True, True),
) -> Cost:
    """Reads the gradient of the columns and the map, and for the map's gradient the input; writes what is asked for.

    Args:
        output_mask: Whether the gradients of input and map are computed. The others are :func:`unfold`'s.
    """
    columns, rates = _columns(input, dilation_map, kernel_size), _map_bytes(dilation_map, dtype, map_dtype)
    of_input, of_map = output_mask
    if not (of_input or of_map):
        return Cost(0, 0)
    flops = (_GRAD_INPUT * bool(of_input) + _GRAD_MAP * bool(of_map)) * columns
    images = bool(of_input) + bool(of_map)  # one written, one read
    return Cost(flops, (columns + images * prod(input)) * dtype.itemsize + (1 + bool(of_map)) * rates)


def aggregate(
    input: Sequence[int],
    weights: Sequence[int],
    dilation_map: Sequence[int],
    kernel_size: int | Sequence[int],
    dtype: torch.dtype = torch.float32,
    map_dtype: torch.dtype | None = None,
) -> Cost:
    """Reads input, weights and map, writes the sums.

    Args:
        input, weights, dilation_map: Their shapes, as :func:`dynamic_dilation_unfold.dynamic_dilation_aggregate` takes
            them. The others are :func:`unfold`'s.
    """
    values = _values(input, dilation_map)
    elements = prod(input) + prod(weights) + values
    return _sums(values, elements, dilation_map, kernel_size, dtype, map_dtype)


def aggregate_backward(
    input: Sequence[int],
    weights: Sequence[int],
    dilation_map: Sequence[int],
    kernel_size: int | Sequence[int],
    dtype: torch.dtype = torch.float32,
    map_dtype: torch.dtype | None = None,
    output_mask: Sequence[bool] = (True, True, True),
) -> Cost:
    """Reads the gradient of the sums and what it takes of input, weights and map; writes what is asked for.

    Args:
        output_mask: Whether the gradients of input, weights and map are computed. The others are :func:`aggregate`'s.
    """
    of_input, of_weights, of_map = map(bool, output_mask)
    image, factors, values = prod(input), prod(weights), _values(input, dilation_map)
    elements = values  # the gradient of the sums
    elements += factors * (of_input or of_map) + image * (of_weights or of_map)
    elements += image * of_input + factors * of_weights
    masks = (of_input, of_weights, of_map)
    return _sums_backward(values, elements, dilation_map, kernel_size, dtype, map_dtype, masks)


def correlate(
    query: Sequence[int],
    key: Sequence[int],
    dilation_map: Sequence[int],
    kernel_size: int | Sequence[int],
    dtype: torch.dtype = torch.float32,
    map_dtype: torch.dtype | None = None,
    heads: int = 1,
) -> Cost:
    """Reads query, key and map, writes the scores.

    Args:
        query, key, dilation_map: Their shapes, as :func:`dynamic_dilation_unfold.dynamic_dilation_correlate` takes
            them. ``heads`` divides the channels, the others are :func:`unfold`'s.
    """
    values = prod(query)
    elements = values + prod(key) + _scores(query, kernel_size, heads)
    return _sums(values, elements, dilation_map, kernel_size, dtype, map_dtype)


def correlate_backward(
    query: Sequence[int],
    key: Sequence[int],
    dilation_map: Sequence[int],
    kernel_size: int | Sequence[int],
    dtype: torch.dtype = torch.float32,
    map_dtype: torch.dtype | None = None,
    heads: int = 1,
    output_mask: Sequence[bool] = (True, True, True),
) -> Cost:
    """Reads the gradient of the scores and what it takes of query, key and map; writes what is asked for.

    Args:
        output_mask: Whether the gradients of query, key and map are computed. The others are :func:`correlate`'s.
    """
    of_query, of_key, of_map = map(bool, output_mask)
    values, image = prod(query), prod(key)
    elements = _scores(query, kernel_size, heads)  # their gradient
    elements += values * (of_key or of_map) + image * (of_query or of_map)
    elements += values * of_query + image * of_key
    masks = (of_key, of_query, of_map)
    return _sums_backward(values, elements, dilation_map, kernel_size, dtype, map_dtype, masks)


def _sums(
    values: int,
    elements: int,
    dilation_map: Sequence[int],
    kernel_size: int | Sequence[int],
    dtype: torch.dtype,
    map_dtype: torch.dtype | None,
) -> Cost:
    flops = (_FORWARD + _SUM) * values * _taps(kernel_size)
    return Cost(flops, elements * dtype.itemsize + _map_bytes(dilation_map, dtype, map_dtype))


def _sums_backward(
    values: int,
    elements: int,
    dilation_map: Sequence[int],
    kernel_size: int | Sequence[int],
    dtype: torch.dtype,
    map_dtype: torch.dtype | None,
    masks: tuple[bool, bool, bool],
) -> Cost:
    """``masks`` are those of the image that is sampled, of the other factor of the products, and of the map."""
    if not any(masks):
        return Cost(0, 0)
    of_image, of_factor, of_map = masks
    each = (_GRAD_INPUT + _SUM) * of_image + (_FORWARD + _SUM) * of_factor + (_GRAD_MAP + _SUM) * of_map
    rates = _map_bytes(dilation_map, dtype, map_dtype)
    return Cost(each * values * _taps(kernel_size), elements * dtype.itemsize + (1 + of_map) * rates)


def _values(input: Sequence[int], dilation_map: Sequence[int]) -> int:
    return prod(input[:-2]) * prod(dilation_map[-2:])


def _taps(kernel_size: int | Sequence[int]) -> int:
    return prod(pair("kernel_size", kernel_size))


def _scores(query: Sequence[int], kernel_size: int | Sequence[int], heads: int) -> int:
    return prod(query[:-3]) * heads * _taps(kernel_size) * prod(query[-2:])


def conv2d(
    input: Sequence[int],
    weight: Sequence[int],
    dilation_map: Sequence[int],
    bias: bool = False,
    mask: Sequence[int] | None = None,
    dtype: torch.dtype = torch.float32,
    map_dtype: torch.dtype | None = None,
) -> Cost:
    """Reads input, weight, map, bias and mask, writes the output.

    Args:
        input, weight, dilation_map, mask: Their shapes, as :func:`dynamic_dilation_unfold.dynamic_dilation_conv2d`
            takes them. The others are :func:`unfold`'s.
        bias: Whether there is one.
    """
    columns, products, outputs = _convolution(input, weight, dilation_map)
    flops = _FORWARD * columns + 2 * products + columns * (mask is not None)
    elements = prod(input) + prod(weight) + weight[0] * bias + prod(mask or (0,)) + outputs
    return Cost(flops, elements * dtype.itemsize + _map_bytes(dilation_map, dtype, map_dtype))


def conv2d_backward(
    input: Sequence[int],
    weight: Sequence[int],
    dilation_map: Sequence[int],
    bias: bool = False,
    mask: Sequence[int] | None = None,
    dtype: torch.dtype = torch.float32,
    map_dtype: torch.dtype | None = None,
    output_mask: Sequence[bool] = (True, True, True, True, True),
) -> Cost:
    """Reads the gradient of the output and what it takes of the tensors; writes what is asked for.

    Args:
        output_mask: Whether the gradients of input, weight, map, bias and mask are computed. The others are
            :func:`conv2d`'s.
    """
    of_input, of_weight, of_map, of_bias, of_mask = map(bool, output_mask)
    of_bias, of_mask = of_bias and bias, of_mask and mask is not None
    columns, products, outputs = _convolution(input, weight, dilation_map)
    of_columns, samples = of_input or of_map or of_mask, of_weight or of_mask
    flops = 2 * products * (of_columns + of_weight) + outputs * of_bias + _FORWARD * columns * samples
    flops += columns * (_GRAD_INPUT * of_input + _GRAD_MAP * of_map + 2 * of_mask)
    flops += columns * (mask is not None) * ((of_input or of_map) + of_weight)
    image, factors = prod(input), prod(mask or (0,))
    elements = outputs + image * (of_map or samples) + prod(weight) * of_columns + factors
    elements += image * of_input + prod(weight) * of_weight + weight[0] * of_bias + factors * of_mask
    if not flops:
        return Cost(0, 0)
    rates = _map_bytes(dilation_map, dtype, map_dtype)
    return Cost(flops, elements * dtype.itemsize + (1 + of_map) * rates)


def _convolution(input: Sequence[int], weight: Sequence[int], dilation_map: Sequence[int]) -> tuple[int, int, int]:
    """Elements of the columns, multiplications of the product, elements of the output."""
    positions = prod(input[:-3]) * prod(dilation_map[-2:])
    return positions * input[-3] * prod(weight[2:]), positions * prod(weight), positions * weight[0]


def _columns(input: Sequence[int], dilation_map: Sequence[int], kernel_size: int | Sequence[int]) -> int:
    return _values(input, dilation_map) * _taps(kernel_size)


def _map_bytes(dilation_map: Sequence[int], dtype: torch.dtype, map_dtype: torch.dtype | None) -> int:
    return prod(dilation_map) * (map_dtype or dtype).itemsize
