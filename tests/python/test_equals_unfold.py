"""A map of ones is F.unfold bit for bit, and a whole constant n is F.unfold(dilation=n) at the same centres."""

import pytest
import torch
import torch.nn.functional as F
from dynamic_dilation_unfold import dynamic_dilation_unfold
from helpers import DTYPES, Case, assert_same_bits, both, random_input

KERNELS = [1, 2, 3, 4, 5, 6, 7, (1, 7), (7, 2), (3, 5), (6, 1)]
WINDOWS = [  # stride, padding, dilation
    (1, 0, 1),
    (1, 1, 1),
    (2, 3, 1),
    (3, 2, 2),
    (1, (4, 0), (1, 3)),
    ((1, 2), (0, 5), (2, 1)),
    ((4, 1), (2, 2), (3, 2)),
    ((2, 5), 6, 2),
]


def unfold(input, kernel_size, stride, padding, dilation):
    return F.unfold(input, kernel_size, dilation=dilation, padding=padding, stride=stride)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("stride", "padding", "dilation"), WINDOWS)
@pytest.mark.parametrize("kernel_size", KERNELS)
def test_map_of_ones(kernel_size, stride, padding, dilation, dtype, device):
    case = Case(2, 3, 23, 27, kernel_size, stride, padding, dilation)
    x = random_input(case.shape).to(device, dtype)
    actual = dynamic_dilation_unfold(
        x, kernel_size, torch.ones(case.map_shape, device=device, dtype=dtype), stride, padding, dilation
    )
    assert_same_bits(actual, unfold(x, kernel_size, stride, padding, dilation))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    "case",
    [
        Case(1, 1, 1, 1, padding=1),
        Case(1, 2, 1, 2, kernel_size=2, padding=1),
        Case(2, 3, 2, 129, padding=1),
        Case(1, 5, 129, 151, padding=1),
        Case(1, 2, 151, 129, kernel_size=4, stride=2, padding=3, dilation=2),
        Case(1, 1, 3, 20000, padding=1),
        Case(1, 1, 20000, 2, kernel_size=(5, 2), padding=(2, 1)),
        Case(1, 7, 12, 12, kernel_size=33, padding=16),
    ],
    ids=str,
)
def test_map_of_ones_on_awkward_sizes(case, dtype, device):
    x = random_input(case.shape).to(device, dtype)
    actual = dynamic_dilation_unfold(
        x, dilation_map=torch.ones(case.map_shape, device=device, dtype=dtype), **case.options
    )
    options = case.options
    del options["groups"]
    assert_same_bits(actual, F.unfold(x, **options))


@pytest.mark.parametrize("channels", [1, 3, 17])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kernel_size", [1, 2, 3, 5, 7])
def test_zeros_keep_their_sign(kernel_size, dtype, channels, device):
    case = Case(2, channels, 23, 27, kernel_size, padding=3)
    x = random_input(case.shape).to(device, dtype)
    x[x > 0.3] = -0.0
    actual = dynamic_dilation_unfold(x, kernel_size, torch.ones(case.map_shape, dtype=dtype, device=device), padding=3)
    assert torch.equal(actual.signbit(), F.unfold(x, kernel_size, padding=3).signbit())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_float32_map_beside_half_input(dtype, device):
    x = random_input((2, 3, 17, 19)).to(device, dtype)
    actual = dynamic_dilation_unfold(x, 3, torch.ones(2, 1, 17, 19, device=device), padding=1)
    assert_same_bits(actual, F.unfold(x, 3, padding=1))


def centre_shift(rate, kernel_size, dilation):
    """How far F.unfold's centre moves, in half pixels, when its dilation is multiplied: more padding moves it back."""
    return [(rate - 1) * d * (k - 1) for k, d in zip(both(kernel_size), both(dilation), strict=True)]


WHOLE = [
    (rate, kernel_size, dilation)
    for rate in (2, 3, 4, 7)
    for kernel_size in (1, 3, 5, 7, (3, 7), 2, 4, (2, 5))
    for dilation in (1, 2, (1, 2))
    # An even kernel at an even rate can sit between pixels, where F.unfold cannot go.
    if all(shift % 2 == 0 for shift in centre_shift(rate, kernel_size, dilation))
]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("rate", "kernel_size", "dilation"), WHOLE)
def test_whole_constant(rate, kernel_size, dilation, dtype, device):
    case = Case(1, 3, 31, 29, kernel_size, (1, 2), (2, 5), dilation)
    x = random_input(case.shape).to(device, dtype)
    rates = torch.full(case.map_shape, float(rate), device=device, dtype=dtype)
    shift = centre_shift(rate, kernel_size, dilation)
    padding = (2 + shift[0] // 2, 5 + shift[1] // 2)
    dilations = tuple(rate * d for d in both(dilation))
    expected = unfold(x, kernel_size, case.stride, padding, dilations)
    assert_same_bits(dynamic_dilation_unfold(x, dilation_map=rates, **case.options), expected)


@pytest.mark.parametrize(
    "case", [Case(2, 3, 13, 11, padding=1), Case(1, 2, 9, 14, (2, 5), (2, 1), (3, 2), (1, 2))], ids=str
)
def test_gradient_of_a_map_of_ones_is_fold(case, device):
    # Small integers add up exactly, so the order of the sum does not show.
    generator = torch.Generator().manual_seed(0)
    grad = torch.randint(-8, 9, case.output_shape, generator=generator).to(device, torch.float32)
    x = random_input(case.shape).to(device).requires_grad_()
    output = dynamic_dilation_unfold(x, dilation_map=torch.ones(case.map_shape, device=device), **case.options)
    options = case.options
    del options["groups"]
    (actual,) = torch.autograd.grad(output, x, grad)
    assert_same_bits(actual, F.fold(grad, case.shape[2:], **options))
