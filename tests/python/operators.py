"""The table of operators: a row each, from which test_operators.py makes its suites.

An operator that is added gets all of those tests by a row here. What is particular to it stands in suites of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from dynamic_dilation_unfold import dynamic_dilation_unfold
from dynamic_dilation_unfold._operator import Operator
from dynamic_dilation_unfold._operators.unfold import UNFOLD
from helpers import CASES, Case, off_whole_positions, random_input
from torch import Tensor


class Sample(NamedTuple):
    """A call: tensors in float64 on the CPU, where the operator has derivatives, and options as its description's."""

    name: str
    tensors: tuple[Tensor | None, ...]
    options: Any


class Row(NamedTuple):
    operator: Operator
    public: Callable[..., Tensor]  # the public function as (*tensors, *options)
    samples: list[Sample]
    small: list[Sample]  # for compilers, and for derivatives by finite differences: a few, of a few elements

    def __str__(self) -> str:
        return self.operator.name


def _unfold(input: Tensor, dilation_map: Tensor, kernel_size: Any, *options: Any) -> Tensor:
    return dynamic_dilation_unfold(input, kernel_size, dilation_map, *options)


def _unfold_sample(case: Case, name: str = "") -> Sample:
    tensors = random_input(case.shape).double(), off_whole_positions(case)
    return Sample(name or str(case), tensors, UNFOLD.read((*case.pairs, case.groups)))


def _unfold_forms(case: Case) -> Iterator[Sample]:
    (x, rates), options = _unfold_sample(case)[1:]
    yield Sample("unbatched", (x[0], rates[0]), options)
    yield Sample("a map for all images", (x, rates[:1]), options)
    yield Sample("channels_last", (x.contiguous(memory_format=torch.channels_last), rates), options)
    yield Sample("transposed", tuple(t.mT.contiguous().mT for t in (x, rates)), options)
    yield Sample("every second channel", (x.repeat_interleave(2, 1)[:, ::2], rates), options)


_UNFOLD_CASE = Case(2, 4, 4, 5, padding=1, groups=2)
_UNFOLD_SMALL = [
    Case(2, 2, 3, 4, padding=1),
    Case(1, 4, 4, 3, kernel_size=(2, 3), stride=(2, 1), padding=(0, 2), dilation=(1, 2), groups=2),
]
_EMPTY = [Case(0, 4, 5, 6, padding=1), Case(2, 0, 5, 6, padding=1)]

OPERATORS = [
    Row(
        UNFOLD,
        _unfold,
        [*map(_unfold_sample, [_UNFOLD_CASE, *CASES, *_EMPTY]), *_unfold_forms(_UNFOLD_CASE)],
        [*map(_unfold_sample, _UNFOLD_SMALL), *list(_unfold_forms(_UNFOLD_SMALL[0]))[:3]],
    )
]


def typed(row: Row, sample: Sample, device: str, dtype: torch.dtype, map_dtype: torch.dtype | None = None) -> Any:
    """The tensors of a sample as leaves, maps in a dtype of their own."""
    return tuple(
        t if t is None else t.detach().to(device, map_dtype if a.is_map and map_dtype else dtype)
        for a, t in zip(row.operator.arguments, sample.tensors, strict=True)
    )


def definition(row: Row, options: Any) -> Callable[..., Tensor]:
    """The operator's reference as a function of its tensors."""
    return lambda *tensors: row.operator.reference(row.operator.full_maps(tensors, options), options)
