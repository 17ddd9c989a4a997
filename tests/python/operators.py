"""The table of operators: a row each, from which test_operators.py makes its suites.

An operator that is added gets all of those tests by a row here. What is particular to it stands in suites of its own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from dynamic_dilation_unfold import (
    dynamic_dilation_aggregate,
    dynamic_dilation_conv2d,
    dynamic_dilation_correlate,
    dynamic_dilation_unfold,
)
from dynamic_dilation_unfold._operator import Operator
from dynamic_dilation_unfold._operators.aggregate import AGGREGATE
from dynamic_dilation_unfold._operators.conv2d import CONV2D
from dynamic_dilation_unfold._operators.correlate import CORRELATE
from dynamic_dilation_unfold._operators.unfold import UNFOLD
from helpers import CASES, Case, both, off_whole_positions, random_input
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
    return Sample(name or str(case), tensors, UNFOLD.read((*case.pairs, case.groups, case.padding_mode)))


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
_BORDER = [case.border for case in (_UNFOLD_CASE, *CASES)]


def _aggregate(input: Tensor, weights: Tensor, dilation_map: Tensor, *options: Any) -> Tensor:
    return dynamic_dilation_aggregate(input, weights, dilation_map, *options)


def _correlate(query: Tensor, key: Tensor, dilation_map: Tensor, *options: Any) -> Tensor:
    return dynamic_dilation_correlate(query, key, dilation_map, *options)


class HeadCase(NamedTuple):
    case: Case
    heads: int

    def __str__(self) -> str:
        return f"{self.case}-heads{self.heads}"


def _aggregate_sample(head_case: HeadCase, name: str = "") -> Sample:
    case, heads = head_case
    x, rates = _unfold_sample(case).tensors
    shape = (case.batch, heads, math.prod(both(case.kernel_size)), *case.out_size)
    tensors = x, random_input(shape, seed=5).double(), rates
    return Sample(name or str(head_case), tensors, AGGREGATE.read((*case.pairs, case.padding_mode)))


def _correlate_sample(head_case: HeadCase, name: str = "") -> Sample:
    case, heads = head_case
    key, rates = _unfold_sample(case).tensors
    query = random_input((*case.shape[:2], *case.out_size), seed=5).double()
    return Sample(name or str(head_case), (query, key, rates), CORRELATE.read((*case.pairs, heads, case.padding_mode)))


def _channels_last(tensor: Tensor) -> Tensor:
    return tensor.contiguous(memory_format=torch.channels_last)


def _aggregate_forms(head_case: HeadCase) -> Iterator[Sample]:
    (x, weights, rates), options = _aggregate_sample(head_case)[1:]
    yield Sample("unbatched", (x[0], weights[0], rates[0]), options)
    yield Sample("a map and weights for all images", (x, weights[:1], rates[:1]), options)
    yield Sample("channels_last", (_channels_last(x), weights, rates), options)
    yield Sample("one rate", (x, weights, rates[:1, :, :1, :1]), options)
    yield Sample("weights by position", (x, weights.movedim(2, 4).contiguous().movedim(4, 2), rates), options)


def _correlate_forms(head_case: HeadCase) -> Iterator[Sample]:
    (query, key, rates), options = _correlate_sample(head_case)[1:]
    yield Sample("unbatched", (query[0], key[0], rates[0]), options)
    yield Sample("a map for all images", (query, key, rates[:1]), options)
    yield Sample("channels_last", (_channels_last(query), _channels_last(key), rates), options)
    yield Sample("channels_last key", (query, _channels_last(key), rates), options)
    yield Sample("channels_last query", (_channels_last(query), key, rates), options)
    yield Sample("one rate", (query, key, rates[:1, :, :1, :1]), options)


_HEADS = HeadCase(Case(2, 4, 4, 5, padding=1, groups=2), 2)
_HEAD_CASES = [
    _HEADS,
    HeadCase(Case(1, 3, 6, 5, kernel_size=2), 1),
    HeadCase(Case(2, 12, 7, 6, kernel_size=(3, 5), stride=(2, 1), padding=(1, 2), dilation=(1, 2), groups=3), 2),
    HeadCase(Case(1, 12, 6, 4, kernel_size=(1, 3), stride=(1, 2), padding=(0, 3), groups=2), 3),
    HeadCase(Case(1, 40, 9, 10, padding=1), 1),
    HeadCase(Case(1, 2, 1, 1, padding=1), 2),
    HeadCase(Case(0, 4, 5, 6, padding=1), 2),
    HeadCase(Case(2, 12, 7, 6, kernel_size=(3, 5), stride=(2, 1), padding=(1, 2), dilation=(1, 2), groups=3).border, 2),
    HeadCase(Case(1, 2, 1, 1, padding=1).border, 2),
]
_HEAD_SMALL = [
    HeadCase(Case(2, 2, 1, 3, kernel_size=(1, 2)), 2),
    HeadCase(Case(1, 4, 3, 2, kernel_size=(3, 1), stride=(2, 1), padding=(1, 0), dilation=(1, 2), groups=2), 1),
    HeadCase(Case(1, 2, 2, 3, kernel_size=2, padding=(0, 1)).border, 1),
]


def _conv2d(
    input: Tensor, weight: Tensor, dilation_map: Tensor, bias: Any, mask: Any, stride: Any, *options: Any
) -> Tensor:
    padding, dilation, padding_mode = options
    return dynamic_dilation_conv2d(
        input, weight, dilation_map, bias, stride, padding, dilation, mask=mask, padding_mode=padding_mode
    )


def _conv2d_sample(
    case: Case, outputs: int = 4, conv_groups: int = 1, bias: bool = True, heads: int = 0, name: str = ""
) -> Sample:
    taps = both(case.kernel_size)
    weight = random_input((outputs, case.channels // conv_groups, *taps), 5).double()
    mask = random_input((case.batch, heads, taps[0] * taps[1], *case.out_size), 6).double() if heads else None
    tensors = (
        random_input(case.shape).double(),
        weight,
        off_whole_positions(case),
        random_input((outputs,), 7).double() if bias else None,
        mask,
    )
    return Sample(name or f"{case}-{conv_groups}-{heads}", tensors, CONV2D.read((*case.pairs[1:], case.padding_mode)))


def _conv2d_forms(case: Case) -> Iterator[Sample]:
    (x, weight, rates, bias, mask), options = _conv2d_sample(case, 4, 2, heads=2)[1:]
    assert bias is not None
    assert mask is not None
    yield Sample("unbatched", (x[0], weight, rates[0], bias, mask[0]), options)
    yield Sample("shared", (x, weight, rates[:1], bias, mask[:1]), options)
    channels_last = x.contiguous(memory_format=torch.channels_last)
    yield Sample("channels_last", (channels_last, weight, rates, None, mask), options)
    strided = x.repeat_interleave(2, 1)[:, ::2], weight.mT.contiguous().mT, rates.mT.contiguous().mT
    yield Sample("strided", (*strided, bias.repeat_interleave(2)[::2], None), options)


_CONV2D_CASE = Case(2, 4, 4, 5, padding=1, groups=2)
_CONV2D_CASES = [
    _conv2d_sample(_CONV2D_CASE, 6, 2, heads=4),
    _conv2d_sample(Case(2, 6, 10, 9, (3, 5), (2, 1), (1, 2), (1, 2), 3), 6, 3, bias=False),
    _conv2d_sample(Case(1, 4, 7, 6, kernel_size=(4, 1), padding=(3, 0)), 8, 4, heads=1),  # two outputs a channel
    _conv2d_sample(_CONV2D_CASE.border, 6, 2, heads=4),
    _conv2d_sample(Case(0, 4, 5, 6, padding=1), name="no images"),
    _conv2d_sample(Case(2, 4, 5, 6, padding=1), 0, name="no outputs"),
    _conv2d_sample(Case(2, 0, 5, 6, padding=1), heads=1, name="no channels"),
    _conv2d_sample(Case(2, 0, 5, 6, padding=1), bias=False, name="no channels, no bias"),
    *_conv2d_forms(_CONV2D_CASE),
]
_CONV2D_SMALL = [
    next(_conv2d_forms(Case(1, 2, 1, 2, kernel_size=(1, 2), padding=(0, 1)))),
    _conv2d_sample(Case(2, 2, 2, 1, kernel_size=2, padding=(0, 1), groups=2), 2, 2, bias=False),
    _conv2d_sample(Case(1, 2, 2, 2, kernel_size=(1, 2), padding=(0, 1)).border, 2, bias=False),
]

OPERATORS = [
    Row(
        UNFOLD,
        _unfold,
        [*map(_unfold_sample, [_UNFOLD_CASE, *CASES, *_EMPTY, *_BORDER]), *_unfold_forms(_UNFOLD_CASE)],
        [*map(_unfold_sample, [*_UNFOLD_SMALL, _UNFOLD_SMALL[1].border]), *list(_unfold_forms(_UNFOLD_SMALL[0]))[:3]],
    ),
    Row(
        AGGREGATE,
        _aggregate,
        [*map(_aggregate_sample, _HEAD_CASES), *_aggregate_forms(_HEADS)],
        [*map(_aggregate_sample, _HEAD_SMALL), *list(_aggregate_forms(_HEAD_SMALL[0]))[:3]],
    ),
    Row(
        CORRELATE,
        _correlate,
        [*map(_correlate_sample, _HEAD_CASES), *_correlate_forms(_HEADS)],
        [*map(_correlate_sample, _HEAD_SMALL), *list(_correlate_forms(_HEAD_SMALL[0]))[:3]],
    ),
    Row(CONV2D, _conv2d, _CONV2D_CASES, _CONV2D_SMALL),
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
