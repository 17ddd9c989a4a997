"""The options of one call, read once into values of our own: what the caller changes later does not matter."""

from __future__ import annotations

import operator
import reprlib
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple, get_type_hints

import torch

Int = int  # or torch.SymInt: sizes of compilers and exporters stay symbols
Pair = tuple[Int, Int]
PaddingMode = Literal["zeros", "border"]


def pair(name: str, value: Any) -> Pair:
    """``3`` or ``(3, 3)``, as any kind of integers and sequence, -> ``(3, 3)``; TypeError if not."""
    if type(value) is int:
        return (_checked(name, value), value)
    try:
        sequence = _sequence(value)
        height, width = map(_index, (value, value) if sequence is None else sequence)
    except (TypeError, ValueError):
        is_same = name == "padding" and isinstance(value, str) and value == "same"
        advice = "; dilation * (kernel_size - 1) // 2 is that of odd windows" if is_same else ""
        raise TypeError(f"{name} must be an int or a pair of ints, got {reprlib.repr(value)}{advice}") from None
    return (_checked(name, height), _checked(name, width))


def integer(name: str, value: Any) -> Int:
    try:
        number = _index(value)
    except (TypeError, ValueError):
        raise TypeError(f"{name} must be an int, got {reprlib.repr(value)}") from None
    return _checked(name, number)


_MODES_ELSEWHERE = {"constant": "zeros", "replicate": "border", "edge": "border", "nearest": "border"}


def padding_mode(name: str, value: Any) -> PaddingMode:
    """A name of F.grid_sample's; those of F.pad are pointed to it."""
    if value == "zeros":
        return "zeros"
    if value == "border":
        return "border"
    message = f'{name} must be "zeros" or "border", got {reprlib.repr(value)}'
    if not isinstance(value, str):
        raise TypeError(message)
    here = _MODES_ELSEWHERE.get(value)
    raise ValueError(f'{message}; that is called "{here}" here' if here else message)


def _sequence(value: Any) -> Sequence[Any] | None:
    """The elements of a sequence, an array or a tensor of one dimension; None for a single value."""
    if isinstance(value, (str, bytes)):
        raise TypeError
    if isinstance(value, (tuple, list, Sequence)):
        return value
    if getattr(value, "ndim", 0) == 1 and len(value) == 2:
        return (value[0], value[1])
    return None


def _index(value: Any) -> Int:
    if type(value) is int or isinstance(value, torch.SymInt):
        return value  # type: ignore[return-value]  # a symbol serves as an int
    if torch.compiler.is_compiling() and hasattr(value, "tolist"):
        return value.tolist()  # type: ignore[no-any-return]  # of NumPy or torch; a symbol, whose dtype cannot be asked
    if isinstance(value, bool) or getattr(value, "dtype", None) in (torch.bool, bool):
        raise TypeError
    return operator.index(value)


def _checked(name: str, value: Int) -> Int:
    """What the C++ library can be asked about; it knows the real limits."""
    if type(value) is int and not torch.compiler.is_compiling() and not -(2**63) <= value < 2**63:
        raise ValueError(f"{name} must fit 64 bits, got {value}")
    return value


class Kind(NamedTuple):
    """How options of one type stand in an operator's schema, and how a caller's value is read."""

    schema: str
    read: Callable[[str, Any], Any]


def _given(name: str, value: Any) -> Any:
    return value


_KINDS: dict[Any, Kind] = {
    Pair: Kind("SymInt[2]", pair),
    int: Kind("SymInt", integer),
    float: Kind("float", lambda name, value: float(value)),
    str: Kind("str", _given),
    PaddingMode: Kind("str", padding_mode),
}


def kinds_of(options: type) -> dict[str, Kind]:
    """Name -> kind of the fields of a NamedTuple, in order."""
    return {name: _KINDS[kind] for name, kind in get_type_hints(options).items()}
