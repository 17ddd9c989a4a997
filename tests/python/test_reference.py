"""The oracles agree: the definition tap by tap, the reference in torch, and the kernels."""

import oracle
import pytest
import torch
import torch.nn.functional as F
from dynamic_dilation_unfold import dynamic_dilation_unfold, reference
from helpers import CASES, DTYPES, Case, Result, assert_close, assert_same_bits, random_input, random_map, run

KINDS = ["fractional", "negative", "zero", "eighths", "far", "huge", "mixed"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("case", [*CASES, *(case.border for case in CASES)], ids=str)
def test_against_the_definition(case, kind, device):
    x = random_input(case.shape).double()
    rates = random_map(kind, case.map_shape).double()
    grad = random_input(case.output_shape, seed=2).double()
    expected = Result(oracle.unfold(case, x, rates), *oracle.unfold_backward(case, grad, x, rates))
    for function in (reference, dynamic_dilation_unfold):
        actual = run(function, x.to(device), rates.to(device), grad.to(device), case.options)
        assert_close(actual, expected, 1e-14)


def test_broadcast_map_against_the_definition(device):
    case = Case(3, 2, 5, 6, padding=1, groups=2)
    x, grad = random_input(case.shape).double(), random_input(case.output_shape, seed=2).double()
    rates = random_map("fractional", (1, *case.map_shape[1:])).double()
    expected = Result(oracle.unfold(case, x, rates), *oracle.unfold_backward(case, grad, x, rates))
    for function in (reference, dynamic_dilation_unfold):
        actual = run(function, x.to(device), rates.to(device), grad.to(device), case.options)
        assert_close(actual, expected, 1e-14)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_reference_of_ones_is_unfold(case, dtype, device):
    x = random_input(case.shape).to(device, dtype)
    rates = torch.ones(case.map_shape, device=device, dtype=dtype)
    options = case.options
    del options["groups"]
    assert_same_bits(reference(x, dilation_map=rates, **case.options), F.unfold(x, **options))


def test_reference_is_twice_differentiable():
    case = Case(1, 2, 4, 5, padding=1)
    x = random_input(case.shape).double().requires_grad_()
    rates = (random_map("eighths", case.map_shape).double() + 1 / 32).requires_grad_()
    options = case.options
    assert torch.autograd.gradgradcheck(lambda x, m: reference(x, dilation_map=m, **options), (x, rates))
