"""Derivatives: against finite differences, at the kinks of bilinear interpolation, and only those asked for."""

import oracle
import pytest
import torch
import torch.nn.functional as F
from dynamic_dilation_unfold import dynamic_dilation_unfold, reference
from dynamic_dilation_unfold._tools.grid_sample import grid_sample_unfold
from helpers import (
    CASES,
    DTYPES,
    TOLERANCE,
    Case,
    assert_same_bits,
    off_whole_positions,
    random_input,
    random_map,
    relative_error,
    run,
)

SMALL = [
    Case(2, 2, 4, 5, padding=1),
    Case(1, 4, 5, 4, kernel_size=(2, 3), stride=(2, 1), padding=(0, 2), dilation=(1, 2), groups=2),
    Case(1, 1, 3, 6, kernel_size=(1, 4), padding=(0, 3)),
]


@pytest.mark.parametrize("wanted", ["input", "map", "both"])
@pytest.mark.parametrize("broadcast", [False, True], ids=["own-map", "broadcast-map"])
@pytest.mark.parametrize("case", SMALL, ids=str)
def test_gradcheck(case, broadcast, wanted, device):
    x = random_input(case.shape).double().to(device).requires_grad_(wanted != "map")
    rates = off_whole_positions(case)[: 1 if broadcast else None].to(device).requires_grad_(wanted != "input")
    options = case.options
    assert torch.autograd.gradcheck(
        lambda x, m: dynamic_dilation_unfold(x, dilation_map=m, **options), (x, rates), nondet_tol=1e-12
    )


def test_gradcheck_unbatched(device):
    case = SMALL[0]
    x = random_input(case.shape)[0].double().to(device).requires_grad_()
    rates = off_whole_positions(case)[0].to(device).requires_grad_()
    options = case.options
    assert torch.autograd.gradcheck(
        lambda x, m: dynamic_dilation_unfold(x, dilation_map=m, **options), (x, rates), nondet_tol=1e-12
    )


@pytest.mark.parametrize("case", CASES, ids=str)
def test_input_gradient_is_the_transpose(case, device):
    x, grad = random_input(case.shape).double().to(device), random_input(case.output_shape, seed=2).double().to(device)
    rates = random_map("mixed", case.map_shape).double().to(device)
    result = run(dynamic_dilation_unfold, x, rates, grad, case.options)
    there, back = (result.output * grad).sum(), (x * result.grad_input).sum()
    assert float((there - back).abs()) <= 1e-13 * float(result.output.norm() * grad.norm())


@pytest.mark.parametrize("kind", ["ones", "zero", "eighths", "fractional", "far"])
@pytest.mark.parametrize(
    # sizes of 2^n + 1 keep the normalised coordinates exact
    "case",
    [Case(2, 3, 9, 17, padding=1), Case(1, 2, 17, 5, (2, 5), (2, 1), (1, 4), (1, 2))],
    ids=str,
)
def test_kinks_are_those_of_grid_sample(case, kind, device):
    x = random_input(case.shape).double().to(device).requires_grad_()
    rates = random_map(kind, case.map_shape).double().to(device).requires_grad_()
    grad = random_input(case.output_shape, seed=2).double().to(device)
    expected = grid_sample_unfold(x, dilation_map=rates, align_corners=True, **case.options)
    expected_grads = torch.autograd.grad(expected, (x, rates), grad)
    result = run(dynamic_dilation_unfold, x, rates, grad, case.options)
    for actual, other in zip(result, (expected, *expected_grads), strict=True):
        assert relative_error(actual, other) <= 1e-13


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_right_hand_derivative_at_whole_positions(dtype, device):
    """A row of pixels under a (1, 3) window with D = 1: every tap is on a pixel, or on the border's -1 and W."""
    pixels = torch.tensor([3.0, -1.0, 4.0, 1.0, -5.0])
    x = pixels.view(1, 1, 1, 5).to(device, dtype)
    rates = torch.ones(1, 1, 1, 5, device=device, dtype=dtype, requires_grad=True)
    output = dynamic_dilation_unfold(x, (1, 3), rates, padding=(0, 1))
    slopes = F.pad(pixels, (1, 2)).diff()  # slope right of pixel -1, 0, ..., 5
    for tap, offset in enumerate((-1, 0, 1)):
        mask = torch.zeros_like(output)
        mask[0, tap] = 1
        (grad,) = torch.autograd.grad(output, rates, mask, retain_graph=True)
        expected = offset * slopes[tap : tap + 5] if offset else torch.zeros(5)
        assert_same_bits(grad[0, 0, 0].float() + 0.0, expected + 0.0)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_border_taps_at_minus_one_pull_on_the_map(dtype, device):
    """Where D = 1 and padding = 1 the border's taps lie at -1: growing D leaves the image, shrinking it comes back."""
    x = torch.ones(1, 1, 3, 3, device=device, dtype=dtype)
    rates = torch.ones(1, 1, 3, 3, device=device, dtype=dtype, requires_grad=True)
    dynamic_dilation_unfold(x, 3, rates, padding=1).sum().backward()
    case = Case(1, 1, 3, 3, padding=1)
    ones = torch.ones(case.output_shape)
    _, expected = oracle.unfold_backward(case, ones, torch.ones(case.shape), torch.ones(case.map_shape))
    assert torch.equal(rates.grad.cpu().double(), expected)
    assert expected[0, 0, 0, 0] < 0


@pytest.mark.parametrize("rate", [40.0, -40.0, 1e8, 3e38, -3e38])
def test_no_gradient_from_outside_the_image(rate, device):
    case = Case(1, 2, 6, 6, kernel_size=2, padding=1)
    x, grad = random_input(case.shape).to(device), random_input(case.output_shape, seed=2).to(device)
    result = run(dynamic_dilation_unfold, x, torch.full(case.map_shape, rate, device=device), grad, case.options)
    for tensor in result:
        assert not tensor.any()


# --- only what is asked ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("of_input", "of_map"), [(True, False), (False, True), (True, True)])
def test_only_the_gradients_asked_for(of_input, of_map, device):
    case = Case(2, 4, 6, 7, padding=1, groups=2)
    x = random_input(case.shape).to(device).requires_grad_(of_input)
    rates = random_map("fractional", case.map_shape).to(device).requires_grad_(of_map)
    grad = random_input(case.output_shape, seed=2).to(device)
    output = dynamic_dilation_unfold(x, dilation_map=rates, **case.options)
    output.backward(grad, retain_graph=True)
    with torch.no_grad():
        computed = output.grad_fn.apply(grad)  # None is what the kernel did not compute
    assert [g is not None for g in computed] == [of_input, of_map, False]
    expected = run(reference, *(t.detach().double() for t in (x, rates, grad)), case.options)
    for leaf, wanted, exact in ((x, of_input, expected.grad_input), (rates, of_map, expected.grad_map)):
        assert (leaf.grad is not None) == wanted
        if wanted:
            assert relative_error(leaf.grad, exact) <= TOLERANCE[torch.float32]


def test_no_graph_without_requires_grad(device):
    case = Case(1, 2, 5, 5, padding=1)
    x = random_input(case.shape).to(device).requires_grad_()
    rates = random_map("fractional", case.map_shape).to(device)
    assert not dynamic_dilation_unfold(x.detach(), dilation_map=rates, **case.options).requires_grad
    with torch.no_grad():
        assert not dynamic_dilation_unfold(x, dilation_map=rates, **case.options).requires_grad
    with torch.inference_mode():
        assert dynamic_dilation_unfold(x, dilation_map=rates, **case.options).is_inference()


# --- gradients of every size -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("exponent", [-90, -30, 30, 90])
def test_gradients_of_every_scale(exponent, device):
    case = Case(1, 4, 33, 40, padding=1)
    x, rates = random_input(case.shape).to(device), random_map("fractional", case.map_shape).to(device)
    grad = random_input(case.output_shape, seed=2).to(device)
    plain = run(dynamic_dilation_unfold, x, rates, grad, case.options)
    scaled = run(dynamic_dilation_unfold, x, rates, grad * 2.0**exponent, case.options)
    for name in ("grad_input", "grad_map"):
        one, other = getattr(plain, name), getattr(scaled, name).double() * 2.0**-exponent
        assert relative_error(other, one) <= TOLERANCE[torch.float32], name


def test_small_gradients_beside_large_ones(device):
    """A loss with a mask or a spike: where the gradient is small, it keeps its digits."""
    case = Case(1, 2, 24, 64, padding=1)
    x, rates = random_input(case.shape), random_map("fractional", case.map_shape)
    grad = random_input(case.output_shape, seed=2).view(*case.output_shape[:2], 24, 64)
    grad[..., 32:] *= 1e-6
    tensors = [x, rates, grad.flatten(2)]
    actual = run(dynamic_dilation_unfold, *(t.to(device) for t in tensors), case.options)
    exact = run(reference, *(t.double() for t in tensors), case.options)
    for side in (slice(0, 28), slice(36, 64)):  # the largest rate is 3: no tap reaches across
        for name in ("grad_input", "grad_map"):
            error = relative_error(getattr(actual, name)[..., side], getattr(exact, name)[..., side])
            assert error <= TOLERANCE[torch.float32], (name, side)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_gradients_that_are_not_finite_stay_where_they_are(value, device):
    case = Case(1, 2, 12, 40, padding=1)
    x, rates = random_input(case.shape).to(device), random_map("fractional", case.map_shape).to(device)
    grad = random_input(case.output_shape, seed=2).to(device)
    plain = run(dynamic_dilation_unfold, x, rates, grad, case.options)
    spiked = grad.clone()
    spiked[0, 0, 5 * 40 + 20] = value  # channel 0, first tap, position (5, 20)
    result = run(dynamic_dilation_unfold, x, rates, spiked, case.options)
    touched = ~result.grad_input.isfinite()
    assert int(touched.sum()) == 4
    assert not touched[:, 1].any()
    assert (~result.grad_map.isfinite()).nonzero().tolist() == [[0, 0, 5, 20]]
    for one, other, hit in (
        (result.grad_input, plain.grad_input, touched),
        (result.grad_map, plain.grad_map, ~result.grad_map.isfinite()),
    ):
        assert relative_error(one[~hit], other[~hit]) <= TOLERANCE[torch.float32]
