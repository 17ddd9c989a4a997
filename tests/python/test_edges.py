"""The edges of the domain: rates and pixels that are zero, mirrored, far away or not finite, and empty tensors."""

import os

import oracle
import pytest
import torch
from dynamic_dilation_unfold import dynamic_dilation_unfold, reference
from dynamic_dilation_unfold._tools.grid_sample import grid_sample_unfold
from helpers import (
    CASES,
    DTYPES,
    FLOATS,
    HALVES,
    TOLERANCE,
    Case,
    assert_same_bits,
    both,
    random_input,
    random_map,
    relative_error,
    run,
)

CASE = Case(2, 4, 9, 11, padding=1, groups=2)
FUNCTIONS = pytest.mark.parametrize("function", [dynamic_dilation_unfold, reference], ids=["kernels", "reference"])


def tensors(case, kind, device, dtype=torch.float32):
    """Input, map and gradient. The gradient is in eighths, so that fixed-point sums are as exact as floating ones."""
    rates = random_map(kind, case.map_shape)
    made = (random_input(case.shape), rates, random_input(case.output_shape, seed=2).mul(8).round() / 8)
    return [t.to(device, dtype) for t in made]


# --- finite rates ----------------------------------------------------------------------------------------------------


@FUNCTIONS
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_zero_puts_every_tap_on_the_centre(dtype, function, device):
    x, rates, grad = tensors(CASE, "zero", device, dtype)
    result = run(function, x, rates, grad, CASE.options)
    assert_same_bits(result.output.view(2, 4, 9, 9, 11), x[:, :, None].expand(-1, -1, 9, -1, -1))
    assert result.grad_map.count_nonzero() > 0.9 * result.grad_map.numel()


@FUNCTIONS
@pytest.mark.parametrize("case", CASES, ids=str)
def test_negative_rates_mirror_the_taps(case, function, device):
    x, rates, _ = tensors(case, "eighths", device)
    kh, kw = both(case.kernel_size)
    taps = function(x, dilation_map=rates, **case.options).unflatten(1, (-1, kh, kw))
    mirrored = function(x, dilation_map=-rates, **case.options).unflatten(1, (-1, kh, kw))
    assert_same_bits(mirrored, taps.flip(2, 3))


HUGE = [100.0, 3e4, 2.0**31, -(2.0**31), 2.0**32 + 1, 2.0**63, -1e19, 3e38, -3.4e38]


@FUNCTIONS
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("rate", HUGE)
def test_huge_rates_see_zeros(rate, dtype, function, device):
    x, rates, grad = tensors(CASE, "ones", device, dtype)
    result = run(function, x, rates * rate, grad, CASE.options)
    assert_same_bits(result.output.view(2, 4, 9, 99)[:, :, 4], x.view(2, 4, 99))  # the centre does not move
    result.output.view(2, 4, 9, 99)[:, :, 4] = 0
    assert not result.output.any()
    assert not result.grad_map.any()
    assert_same_bits(result.grad_input, grad.view(2, 4, 9, 9, 11)[:, :, 4])


@FUNCTIONS
@pytest.mark.parametrize("rate", [1.7e308, -1.7e308])
def test_largest_doubles(rate, function, device):
    case = Case(1, 2, 5, 6, kernel_size=5, padding=2)  # the outer taps' positions overflow
    x, rates, grad = tensors(case, "ones", device, torch.float64)
    result = run(function, x, rates * rate, grad, case.options)
    assert_same_bits(result.grad_input, grad.view(1, 2, 25, 5, 6)[:, :, 12])
    assert not result.grad_map.any()


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_largest_halves(dtype, device):
    x, rates, grad = tensors(CASE, "ones", device, dtype)
    result = run(dynamic_dilation_unfold, x, rates * torch.finfo(dtype).max, grad, CASE.options)
    assert_same_bits(result.grad_input, grad.view(2, 4, 9, 9, 11)[:, :, 4])
    assert not result.grad_map.any()


# --- rates that are not finite ---------------------------------------------------------------------------------------


@FUNCTIONS
@pytest.mark.parametrize("broadcast", [False, True], ids=["own-map", "broadcast-map"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_rates_that_are_not_finite(value, dtype, broadcast, function, device):
    x, rates, grad = tensors(CASE, "eighths", device, dtype)
    rates = rates[:1] if broadcast else rates
    plain = run(function, x, rates, grad, CASE.options)
    bad = torch.zeros(rates.shape, dtype=torch.bool, device=device)
    bad[0, 0, 0, 0] = bad[0, 0, 4, 5] = bad[0, 1, 8, 10] = bad[-1, 1, 2] = True
    result = run(function, x, rates.masked_fill(bad, value), grad, CASE.options)
    # [B, G, Ho, Wo] -> [B, C*taps, Ho*Wo]: two channels of nine taps a group.
    columns = bad.expand(CASE.map_shape).repeat_interleave(18, 1).flatten(2)
    assert torch.equal(result.output.isnan(), columns)
    assert_same_bits(result.output[~columns], plain.output[~columns])
    assert torch.equal(result.grad_map.isnan(), bad)
    tolerance = TOLERANCE.get(dtype, torch.finfo(dtype).eps)
    if device == "cpu" or os.environ.get("DDU_CUDA_PATH", "planar") == "planar":
        assert_same_bits(result.grad_map[~bad], plain.grad_map[~bad])
    else:  # where sums of several blocks are added up in any order
        assert relative_error(result.grad_map[~bad], plain.grad_map[~bad]) <= 4 * tolerance
    # The input gets what it would get without these positions.
    without = run(function, x, rates, grad.masked_fill(columns, 0), CASE.options)
    assert relative_error(result.grad_input, without.grad_input) <= tolerance
    assert result.grad_input.isfinite().all()


@FUNCTIONS
def test_map_of_nan_alone(function, device):
    x, rates, grad = tensors(CASE, "ones", device)
    result = run(function, x, rates * torch.nan, grad, CASE.options)
    assert result.output.isnan().all()
    assert result.grad_map.isnan().all()
    assert not result.grad_input.any()


# --- pixels that are not finite --------------------------------------------------------------------------------------


@FUNCTIONS
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("kind", ["ones", "eighths", "fractional", "zero"])
@pytest.mark.parametrize("case", [Case(1, 2, 9, 17, padding=1), Case(1, 1, 17, 9, (2, 5), 2, (3, 4), (2, 1))], ids=str)
def test_pixels_that_are_not_finite_reach_the_cells_that_touch_them(case, kind, value, function, device):
    x, rates, grad = (t.cpu() for t in tensors(case, kind, device, torch.float64))
    for pixel in ((0, 0), (4, 5), (8, 8)):
        x[(0, 0, *pixel)] = value
    result = run(function, x.to(device), rates.to(device), grad.to(device), case.options)
    emulated = grid_sample_unfold(x, dilation_map=rates, align_corners=True, **case.options)
    for expected in (oracle.unfold(case, x, rates), emulated):
        assert torch.equal(result.output.cpu().isnan(), expected.isnan())
        assert torch.equal(result.output.cpu().isfinite(), expected.isfinite())
        finite = expected.isfinite()
        assert relative_error(result.output.cpu()[finite], expected[finite]) <= 1e-13
    assert result.grad_input.isfinite().all()
    if value != value:
        _, grad_map = oracle.unfold_backward(case, grad, x, rates)
        assert torch.equal(result.grad_map.cpu().isnan(), grad_map.isnan())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_one_nan_among_ones_spoils_four_positions_a_tap(dtype, device):
    x = torch.ones(1, 1, 8, 9, device=device, dtype=dtype)
    x[0, 0, 4, 4] = torch.nan
    output = dynamic_dilation_unfold(x, 3, torch.ones(1, 1, 8, 9, device=device, dtype=dtype), padding=1)
    # The cell of a tap on pixel (y, x) is y..y+1, x..x+1: weight 0 does not hide a NaN.
    assert output.isnan().sum(-1).tolist() == [[4] * 9]


# --- nothing to do ---------------------------------------------------------------------------------------------------


@FUNCTIONS
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    "case",
    [Case(0, 4, 5, 6, padding=1), Case(2, 0, 5, 6, padding=1), Case(2, 0, 5, 6, padding=1, groups=3), Case(0, 0, 5, 6)],
    ids=str,
)
def test_empty(case, dtype, function, device):
    x, rates, grad = tensors(case, "fractional", device, dtype)
    result = run(function, x, rates, grad, case.options)
    assert result.output.shape == case.output_shape
    assert result.grad_input.shape == case.shape
    assert torch.equal(result.grad_map, torch.zeros_like(rates))


@FUNCTIONS
def test_empty_batch_with_a_broadcast_map(function, device):
    case = Case(0, 4, 5, 6, padding=1)
    rates = torch.ones(1, 1, 5, 6, device=device)
    result = run(
        function, torch.empty(case.shape, device=device), rates, torch.empty(0, 36, 30, device=device), case.options
    )
    assert result.output.shape == case.output_shape
    assert torch.equal(result.grad_map, torch.zeros_like(rates))


@FUNCTIONS
def test_empty_unbatched(function, device):
    x = torch.empty(0, 5, 6, device=device)
    assert function(x, 3, torch.ones(1, 5, 6, device=device), padding=1).shape == (0, 30)


# --- devices without kernels -----------------------------------------------------------------------------------------


def test_devices_without_kernels_run_the_reference():
    x = torch.empty(2, 4, 5, 6, device="meta", requires_grad=True)
    rates = torch.empty(1, 2, 5, 6, device="meta", requires_grad=True)
    output = dynamic_dilation_unfold(x, 3, rates, padding=1, groups=2)
    assert output.device.type == "meta"
    assert output.shape == (2, 36, 30)
    grad_input, grad_map = torch.autograd.grad(output, (x, rates), torch.empty_like(output))
    assert grad_input.shape == x.shape
    assert grad_map.shape == rates.shape
