"""The options of one call, normalised."""

from __future__ import annotations

import operator
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
        return (value, value)
    try:
        if isinstance(value, Sequence) and not isinstance(value, str):
            height, width = value
            return (operator.index(height), operator.index(width))
        single = operator.index(value)  # type: ignore[arg-type]
        return (single, single)
    except (TypeError, ValueError):
        raise TypeError(f"{name} must be an int or a pair of ints, got {value!r}") from None


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
        raise TypeError(f"groups must be an int, got {groups!r}") from None
    return Options(
        pair("kernel_size", kernel_size),
        pair("stride", stride),
        pair("padding", padding),
        pair("dilation", dilation),
        count,
    )
