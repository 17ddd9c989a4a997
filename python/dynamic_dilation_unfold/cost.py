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
# gradient.
_FORWARD, _GRAD_INPUT, _GRAD_MAP = 8, 8, 22


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


def _columns(input: Sequence[int], dilation_map: Sequence[int], kernel_size: int | Sequence[int]) -> int:
    return prod(input[:-2]) * prod(pair("kernel_size", kernel_size)) * prod(dilation_map[-2:])


def _map_bytes(dilation_map: Sequence[int], dtype: torch.dtype, map_dtype: torch.dtype | None) -> int:
    return prod(dilation_map) * (map_dtype or dtype).itemsize
