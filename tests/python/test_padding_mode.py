"""padding_mode="border": an outside tap reads the nearest pixel, and does not move where it is outside."""

import oracle
import pytest
import torch
import torch.nn.functional as F
from dynamic_dilation_unfold import DynamicDilationUnfold, dynamic_dilation_unfold, reference
from dynamic_dilation_unfold._tools.grid_sample import grid_sample_unfold
from helpers import (
    CASES,
    DTYPES,
    Case,
    assert_close,
    assert_same_bits,
    off_whole_positions,
    random_input,
    random_map,
    run,
)
from torch import Tensor

FUNCTIONS = pytest.mark.parametrize("function", [reference, dynamic_dilation_unfold], ids=["reference", "kernels"])
LAYOUTS = pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)


@FUNCTIONS
@LAYOUTS
@pytest.mark.parametrize("case", [case.border for case in CASES if min(case.height, case.width) > 1], ids=str)
def test_against_grid_sample(case, layout, function, device):
    x, grad = random_input(case.shape).double(), random_input(case.output_shape, seed=2).double()
    x, rates, grad = (t.to(device) for t in (x, off_whole_positions(case), grad))
    emulated = lambda x, dilation_map, **options: grid_sample_unfold(  # noqa: E731
        x, dilation_map=dilation_map, align_corners=True, **options
    )
    expected = run(emulated, x, rates, grad, case.options)
    assert_close(run(function, x.contiguous(memory_format=layout), rates, grad, case.options), expected, 1e-12)


@FUNCTIONS
@LAYOUTS
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kernel_size", [1, 2, 3, 4, (1, 7), (5, 2)])
@pytest.mark.parametrize("options", [(1, 1, 1), (2, 3, 2)])
def test_ones_are_unfold_of_a_replicated_edge(kernel_size, options, dtype, layout, function, device):
    case = Case(2, 3, 11, 13, kernel_size, *options, padding_mode="border")
    x = random_input(case.shape).to(device, dtype).contiguous(memory_format=layout)
    (_, stride, (up, left), dilation) = case.pairs
    padded = F.pad(x.float(), (left, left, up, up), mode="replicate").to(dtype)
    expected = F.unfold(padded, kernel_size, dilation=dilation, stride=stride)
    actual = function(x, dilation_map=torch.ones(case.map_shape, device=device, dtype=dtype), **case.options)
    assert_same_bits(actual, expected)


# The first tap of a kernel of two in rows of four pixels, at 0.5 - 0.5 * rate from the first position:
# rate, value, d(value)/d(rate).
TAPS = [
    (0.5, 4.0, -2.0),  # at 0.25
    (1.0, 3.0, -2.0),  # at 0, where the derivative is the right-hand one
    (1.5, 3.0, 0.0),  # at -0.25
    (3.0, 3.0, 0.0),  # at -1
    (1e9, 3.0, 0.0),
    (-4.5, 2.75, 1.5),  # at 2.75
    (-5.0, 2.0, 0.0),  # at 3, the last pixel
    (-6.5, 2.0, 0.0),
    (-3e38, 2.0, 0.0),
]


@FUNCTIONS
@pytest.mark.parametrize(("rate", "value", "slope"), TAPS)
@pytest.mark.parametrize("vertical", [False, True])
def test_values_and_derivatives_at_the_edges(vertical, rate, value, slope, function, device):
    x = torch.tensor([3.0, 7.0, 5.0, 2.0], device=device).view((4, 1) if vertical else (1, 4)).expand(2, 5, -1, -1)
    rates = torch.full((2, 1, 3, 1) if vertical else (2, 1, 1, 3), rate, device=device, requires_grad=True)
    columns = function(x, (2, 1) if vertical else (1, 2), rates, padding_mode="border")
    first = columns.unflatten(1, (5, 2))[:, :, 0, 0]
    assert torch.equal(first, torch.full_like(first, value))
    (grad,) = torch.autograd.grad(first.sum(), rates)
    assert torch.equal(grad.flatten(1)[:, 0], torch.full((2,), 5 * slope, device=device))


@FUNCTIONS
def test_a_single_pixel_is_everywhere(function, device):
    x = torch.randn(1, 3, 1, 1, device=device).requires_grad_()
    rates = torch.tensor([[0.3, -7.0, 1e30], [1.0, 0.0, 2.5]], device=device)[None, None].requires_grad_()
    columns = function(x, (2, 3), rates, padding=(1, 2), padding_mode="border")
    assert torch.equal(columns, x.detach().repeat_interleave(6, 1).flatten(2).expand(1, 18, 6))
    grad_input, grad_map = torch.autograd.grad(columns.sum(), (x, rates))
    assert torch.equal(grad_input, torch.full_like(x, 36.0))
    assert not grad_map.any()


@FUNCTIONS
def test_what_is_not_finite(function, device):
    """A rate makes its own taps NaN; a pixel, the taps that read it, and none that read only the one beside it."""
    x = torch.ones(1, 1, 4, 5, device=device)
    x[0, 0, 1] = torch.nan
    ones = torch.ones(1, 1, 4, 5, device=device)
    columns = function(x, 3, ones, padding=1, padding_mode="border").view(3, 3, 4, 5)
    expected = torch.zeros_like(columns, dtype=torch.bool)
    for ky in range(3):
        for oy in range(4):
            tap = oy + ky - 1  # its cell is rows tap and tap + 1; above the image it is row 0 alone
            expected[ky, :, oy] = tap in (0, 1)
    assert torch.equal(columns.isnan(), expected)
    ones[0, 0, 2, 2] = torch.inf
    columns = function(torch.ones_like(x), 3, ones, padding=1, padding_mode="border").view(9, 4, 5)
    assert torch.equal(columns.isnan(), (ones == torch.inf)[0].expand(9, -1, -1))


@FUNCTIONS
@pytest.mark.parametrize("rate", [1.0, 1.5, -40.0])
def test_an_infinite_pixel_at_the_edge_is_what_taps_beyond_it_read(rate, function, device):
    case = Case(1, 2, 6, 7, padding=2, padding_mode="border")
    x, rates = random_input(case.shape).double(), torch.full(case.map_shape, rate, dtype=torch.float64)
    x[0, 0, :, -1] = torch.inf
    x[0, 1, 0] = -torch.inf
    columns = function(x.to(device), dilation_map=rates.to(device), **case.options)
    torch.testing.assert_close(columns.cpu(), oracle.unfold(case, x, rates), equal_nan=True)


def test_far_taps_give_their_gradient_to_the_corners(device):
    x = torch.zeros(1, 2, 4, 6, device=device, requires_grad=True)
    columns = dynamic_dilation_unfold(x, 2, torch.full((1, 1, 3, 5), 1e20, device=device), padding_mode="border")
    (grad,) = torch.autograd.grad(columns.sum(), x)
    expected = torch.zeros_like(grad)
    expected[:, :, ::3, ::5] = 15
    assert torch.equal(grad, expected)


def test_module(device):
    module = DynamicDilationUnfold(3, padding=1, padding_mode="border")
    assert "padding_mode=border" in repr(module)
    assert "padding_mode" not in repr(DynamicDilationUnfold(3))
    x, rates = torch.rand(2, 3, 5, 6, device=device), random_map("fractional", (2, 1, 5, 6)).to(device)
    expected = dynamic_dilation_unfold(x, 3, rates, 1, 1, 1, 1, "border")
    assert torch.equal(module(x, rates), expected)
    assert not torch.equal(module(x, rates), DynamicDilationUnfold(3, padding=1)(x, rates))


@pytest.mark.parametrize(
    ("given", "hint"),
    [
        ("reflect", ""),
        ("", ""),
        ("replicate", '; that is called "border" here'),
        ("constant", '; that is called "zeros" here'),
    ],
)
def test_a_mode_that_is_unknown(given, hint):
    x: Tensor = torch.ones(1, 1, 3, 3)
    for function in (dynamic_dilation_unfold, reference, lambda *a, **options: DynamicDilationUnfold(3, **options)):
        with pytest.raises(ValueError, match=rf'^padding_mode must be "zeros" or "border", got {given!r}{hint}$'):
            function(x, 3, x, padding=1, padding_mode=given)


@pytest.mark.parametrize("given", [1, None, b"border"])
def test_a_mode_that_is_no_text(given):
    x: Tensor = torch.ones(1, 1, 3, 3)
    with pytest.raises(TypeError, match='padding_mode must be "zeros" or "border", got'):
        dynamic_dilation_unfold(x, 3, x, padding=1, padding_mode=given)
