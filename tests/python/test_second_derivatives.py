"""Second derivatives and forward mode by the kernels: in parts, without the reference, within their memory.

That they are exact for small calls, in every combination of routes, is in test_operators.py.
"""

import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from dynamic_dilation_unfold import _second
from helpers import random_map, relative_error
from operators import OPERATORS, Row, Sample, definition, typed
from torch import Tensor

# torch's own derivatives of some operators in forward mode are scripts.
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script`:DeprecationWarning")
ROOT = Path(__file__).parents[2]
LINEAR = [row for row in OPERATORS if row.operator.is_linear]
rows = pytest.mark.parametrize("row", LINEAR, ids=str)
# Of each operator groups and heads that cut the channels at different places, a batch, a map for all images, an edge.
PARTED = [
    pytest.param(row, sample, id=f"{row}-{sample.name}")
    for row in LINEAR
    for sample in row.samples
    if sample.tensors[0].dim() == 3 or sample.name.startswith(("2x12", "a map for all", "2x6x10", "0x4"))
]


def of(row: Row, sample: Sample) -> Callable[..., Tensor]:
    return lambda *tensors: row.public(*tensors, *sample.options)


def double_backward(function: Callable[..., Tensor], tensors: tuple[Tensor, ...], wanted: list[int]) -> list[Tensor]:
    """Of all tensors, through the gradients of the wanted ones."""
    leaves = [t.detach().requires_grad_() for t in tensors]
    first = torch.autograd.grad(function(*leaves).sin().sum(), [leaves[i] for i in wanted], create_graph=True)
    total = sum(((gradient + 0.3).square() * gradient.detach().cos()).sum() for gradient in first)
    return list(torch.autograd.grad(total, leaves))


def test_linear_operators():
    assert {row.operator.name for row in LINEAR} == {"unfold", "aggregate", "correlate"}


@pytest.mark.parametrize(("row", "sample"), PARTED)
def test_parts(row, sample, device, monkeypatch):
    """One channel, or one group, at a time."""
    monkeypatch.setattr(_second, "PART_BYTES", {})
    monkeypatch.setattr(_second, "OTHER_PART_BYTES", 0)
    tensors = typed(row, sample, device, torch.double)
    exact = definition(row, sample.options)
    everything = list(range(len(tensors)))
    for wanted in (everything, everything[-1:]):
        pairs = zip(*(double_backward(f, tensors, wanted) for f in (of(row, sample), exact)), strict=True)
        assert all(relative_error(one, other) <= 1e-11 for one, other in pairs)
    tangents = tuple(t.cos() for t in tensors)
    one, other = (torch.func.jvp(f, tensors, tangents)[1] for f in (of(row, sample), exact))
    assert relative_error(one, other) <= 1e-12


@rows
def test_without_a_tangent_of_the_map_all_is_kernels(row, device, monkeypatch):
    """The definition is not asked: neither for a penalty on gradients of the other tensors, nor for their tangents."""
    sample = row.samples[0]
    tensors = typed(row, sample, device, torch.double)
    exact, others = definition(row, sample.options), list(range(len(tensors) - 1))
    tangents = tuple(t.cos() for t in tensors[:-1])

    def jvp(function: Callable[..., Tensor]) -> Tensor:
        tangent: Tensor = torch.func.jvp(lambda *t: function(*t, tensors[-1]), tensors[:-1], tangents)[1]
        return tangent

    expected = [*double_backward(exact, tensors, others), jvp(exact)]

    def refuse(*arguments: Any) -> Tensor:
        raise AssertionError("the reference was called")

    monkeypatch.setattr(type(row.operator), "reference", refuse)
    actual = [*double_backward(of(row, sample), tensors, others), jvp(of(row, sample))]
    assert all(relative_error(one, other) <= 1e-12 for one, other in zip(actual, expected, strict=True))


@pytest.mark.parametrize("name", ["aggregate", "correlate"])
def test_memory(name):
    """Far less than columns, which are 9 inputs, and of which the reference keeps several."""
    peak_memory = runpy.run_path(str(ROOT / "examples" / "training_step.py"))["peak_memory"]
    row = next(row for row in LINEAR if row.operator.name == name)
    x, rates = torch.randn(2, 64, 64, 64), random_map("fractional", (2, 1, 64, 64))
    second = torch.randn(2, 4, 9, 64, 64) if name == "aggregate" else torch.randn_like(x)
    window = (3, 1, 1, 1) if name == "aggregate" else (3, 1, 1, 1, 4)
    options = row.operator.read((*window, "zeros"))
    tensors = (x, second, rates)

    def penalty() -> None:
        leaves = [t.detach().requires_grad_(i < 2) for i, t in enumerate(tensors)]
        output = row.public(*leaves, *options)
        first = torch.autograd.grad(output.square().sum(), leaves[:2], create_graph=True)
        sum(gradient.square().sum() for gradient in first).backward()

    def tangent() -> None:
        torch.func.jvp(lambda rates: row.public(*tensors[:2], rates, *options), (rates,), (rates,))

    # Forward, gradients, squares, their cotangents and gradients are each of the inputs' size.
    for job, inputs in ((penalty, 14), (tangent, 9)):
        job()
        peak = peak_memory(job, torch.device("cpu"))
        assert peak < inputs * x.nbytes, (job.__name__, peak / x.nbytes)
