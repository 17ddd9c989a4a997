"""The options of one call, normalised."""

from __future__ import annotations

import operator
import reprlib
from collections.abc import Sequence
from typing import NamedTuple

Pair = tuple[int, int]


class Options(NamedTuple):
    """Pairs are (height, width). Values are checked by ``make_geometry`` of the C++ library."""

    kernel_size: Pair
    stride: Pair
    padding: Pair
    dilation: Pair
    groups: int


def pair(name: str, value: int | Sequence[int]) -> Pair:
    """``3`` or ``(3, 3)`` -> ``(3, 3)``; TypeError naming the argument for anything else."""
    if type(value) is int:
        return (_int64(name, value), value)
    try:
        if isinstance(value, Sequence) and not isinstance(value, str):
            height, width = (operator.index(v) for v in value)
        else:
            height = width = operator.index(value)
    except (TypeError, ValueError):
        raise TypeError(f"{name} must be an int or a pair of ints, got {reprlib.repr(value)}") from None
    return (_int64(name, height), _int64(name, width))


def _int64(name: str, value: int) -> int:
    """What the C++ library can be asked about; it knows the real limits."""
    if not -(2**63) <= value < 2**63:
        raise ValueError(f"{name} must fit 64 bits, got {value}")
    return value


def make_options(
    kernel_size: int | Sequence[int],
    stride: int | Sequence[int],
    padding: int | Sequence[int],
    dilation: int | Sequence[int],
    groups: int,
) -> Options:
    try:
        count = operator.index(groups)
    except TypeError:
        raise TypeError(f"groups must be an int, got {reprlib.repr(groups)}") from None
    return Options(
        pair("kernel_size", kernel_size),
        pair("stride", stride),
        pair("padding", padding),
        pair("dilation", dilation),
        _int64("groups", count),
    )
