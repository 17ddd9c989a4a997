"""Half types: positions, weights and sums in float32, and every result rounded once.

So a result may differ from the exact one by half a unit in its last place, and hardly more. The tests also run what the
bound is there to catch, and see it fail.
"""

import pytest
import torch
from dynamic_dilation_unfold import dynamic_dilation_unfold, reference
from dynamic_dilation_unfold._tools.grid_sample import grid_sample_unfold
from helpers import (
    HALVES,
    Case,
    random_input,
    random_map,
    relative_error,
    run,
)

CASES = [
    Case(2, 3, 19, 33, padding=1),
    Case(1, 2, 3, 3000, kernel_size=(3, 5), padding=4, dilation=2),
    Case(1, 4, 2000, 5, kernel_size=(4, 3), stride=(2, 1), padding=(3, 1), groups=2),
]


def excess(actual, exact):
    """By how much an element exceeds what one rounding may cost, in units of that; at most 1 is right."""
    info = torch.finfo(actual.dtype)
    actual, exact = actual.cpu().double(), exact.cpu().double()
    rounding = info.eps / 2 * exact.abs() + info.smallest_normal * info.eps / 2
    float32 = 2e-6 * exact.abs().max()
    return (actual - exact).abs() / (rounding + float32)


def exact_result(x, rates, grad, options):
    return run(reference, *(t.double() for t in (x, rates, grad)), options)


@pytest.mark.parametrize("map_type", ["same", "float32"])
@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("kind", ["fractional", "negative", "eighths", "far"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_one_rounding(case, kind, dtype, map_type, device):
    x, grad = random_input(case.shape).to(dtype), random_input(case.output_shape, seed=2).to(dtype)
    rates = random_map(kind, case.map_shape).to(dtype if map_type == "same" else torch.float32)
    exact = exact_result(x, rates, grad, case.options)
    for function in (dynamic_dilation_unfold, reference):
        actual = run(function, x.to(device), rates.to(device), grad.to(device), case.options)
        assert actual.output.dtype == actual.grad_input.dtype == dtype
        assert actual.grad_map.dtype == rates.dtype
        assert excess(actual.output, exact.output).max() <= 1
        assert excess(actual.grad_input, exact.grad_input).max() <= 1
        if map_type == "same":
            assert excess(actual.grad_map, exact.grad_map).max() <= 1
        else:
            assert relative_error(actual.grad_map, exact.grad_map) <= 1e-6


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("width", [65, 3000])
def test_half_positions_would_fail(width, dtype, device):
    case = Case(1, 2, 5, width, padding=1)
    x, rates = random_input(case.shape).to(dtype), random_map("fractional", case.map_shape)
    exact = reference(x.double(), dilation_map=rates.double(), **case.options)

    def emulation(rounded):
        options = {"align_corners": True, "rounded": rounded, **case.options}
        return grid_sample_unfold(x.double(), dilation_map=rates.double(), **options).to(dtype)

    spoilt = excess(emulation(lambda position: position.to(dtype).double()), exact)
    assert (spoilt > 10).double().mean() > 0.1
    # The bound is not at fault: the same emulation with its positions left alone keeps it, and so do the kernels.
    assert excess(emulation(lambda position: position), exact).max() <= 1
    actual = dynamic_dilation_unfold(x.to(device), dilation_map=rates.to(device), **case.options)
    assert excess(actual, exact).max() <= 1


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_sums_of_half_gradients_are_float32(dtype, device):
    """With D = 0 all 49 taps of a position meet in one pixel."""
    case = Case(1, 1, 24, 24, kernel_size=7, padding=3)
    grad = random_input(case.output_shape).to(dtype)
    x, rates = torch.zeros(case.shape, dtype=dtype), torch.zeros(case.map_shape, dtype=dtype)
    exact = grad.double().sum(1).view(case.shape)
    actual = run(dynamic_dilation_unfold, x.to(device), rates.to(device), grad.to(device), case.options)
    assert excess(actual.grad_input, exact).max() <= 1
    summed_in_half = torch.zeros_like(x)
    for tap in range(49):
        summed_in_half += grad[:, tap].view(case.shape)
    assert (excess(summed_in_half, exact) > 1).double().mean() > 0.1


def test_sums_may_pass_the_largest_half(device):
    case = Case(1, 1, 1, 8, kernel_size=(1, 3), padding=(0, 1))
    grad = torch.tensor([60000.0, 60000.0, -60000.0], dtype=torch.float16).view(1, 3, 1).expand(1, 3, 8)
    x = torch.ones(case.shape, dtype=torch.float16, device=device)
    result = run(dynamic_dilation_unfold, x, torch.zeros(case.map_shape, device=device), grad.to(device), case.options)
    assert torch.equal(result.grad_input.cpu(), torch.full(case.shape, 60000.0, dtype=torch.float16))


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_float32_map_keeps_what_half_types_round_away(dtype, device):
    x = torch.arange(-8.0, 8.0).view(1, 1, 1, 16).to(device, dtype)
    rates = torch.full((1, 1, 1, 16), 1.0001, device=device)
    assert torch.all(rates.to(dtype) == 1)
    ramp = torch.zeros(1, 1, 1, 16, dtype=dtype, device=device).requires_grad_()
    output = dynamic_dilation_unfold(ramp, (1, 3), rates, padding=(0, 1))
    (weights,) = torch.autograd.grad(output[0, 2, 4], ramp)
    assert 0.00009 < weights.flatten()[6] < 0.00011  # the share of the pixel beyond
    assert torch.equal(dynamic_dilation_unfold(x, (1, 3), rates.to(dtype), padding=(0, 1))[0, 1], x.flatten())
