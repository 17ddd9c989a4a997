"""One to five channels: on the CPU the first three are taken one by one, with vectors over positions."""

import dataclasses
import math

import pytest
import torch
from dynamic_dilation_unfold import dynamic_dilation_unfold, reference
from helpers import Case, assert_close, assert_same_bits, both, random_input, random_map, run

# Several tiles, rows that end within a vector, a single tap, strides, even kernels, fewer positions than a vector.
CASES = [
    Case(2, 1, 21, 150, padding=1),
    Case(1, 1, 19, 37, kernel_size=5, padding=4, dilation=2),
    Case(1, 1, 13, 45, kernel_size=(2, 3), stride=(1, 2), padding=(1, 2)),
    Case(1, 1, 9, 33, kernel_size=1),
    Case(3, 1, 3, 2, kernel_size=(4, 1), padding=(2, 0)),
]
CHANNELS = pytest.mark.parametrize("channels", [1, 2, 3, 4, 5])


def rates_of(kind, shape):
    """A rate for all positions, whole ones of each position's own, or a map of helpers.random_map."""
    if isinstance(kind, float):
        return torch.full(shape, kind)
    if kind == "whole":
        return torch.randint(-3, 4, shape, generator=torch.Generator().manual_seed(3)).float()
    return random_map(kind, shape)


@CHANNELS
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("padding_mode", ["zeros", "border"])
@pytest.mark.parametrize("kind", [1.0, 1.375, "whole", "eighths", "mixed"])
def test_against_the_reference(kind, padding_mode, dtype, channels, device):
    for case in CASES:
        case = dataclasses.replace(case, channels=channels, padding_mode=padding_mode)
        # Eighths: exact in every type, and so are most sums.
        x, grad = (
            random_input(shape, 4).mul(8).round().clamp(-24, 24) / 8 for shape in (case.shape, case.output_shape)
        )
        made = [t.to(device, dtype) for t in (x, rates_of(kind, case.map_shape).clamp(-256, 256), grad)]
        expected = run(reference, *(t.double() for t in made), case.options)
        eps = torch.finfo(dtype).eps
        assert_close(run(dynamic_dilation_unfold, *made, case.options), expected, 4 * eps)
        made[0] = made[0].contiguous(memory_format=torch.channels_last)
        assert_close(run(dynamic_dilation_unfold, *made, case.options), expected, 4 * eps)


@CHANNELS
@pytest.mark.parametrize("kind", [1.0, "whole"])
def test_whole_rates_copy(kind, channels, device):
    """The pixels' own bits, with the sign of a zero."""
    for case in CASES[:2]:
        case = dataclasses.replace(case, channels=channels)
        x = random_input(case.shape).to(device)
        x[..., ::2] = -0.0
        output = dynamic_dilation_unfold(x, dilation_map=rates_of(kind, case.map_shape).to(device), **case.options)
        taps = output.unflatten(1, (channels, -1))
        assert_same_bits(taps[:, :, taps.shape[2] // 2], x.flatten(2))
        assert torch.equal(taps[:, :, taps.shape[2] // 2].signbit(), x.flatten(2).signbit())


@CHANNELS
@pytest.mark.parametrize("kind", [1.0, "whole"])
def test_an_infinite_gradient(kind, channels, device):
    """It reaches its own pixel alone, as in F.fold; on CUDA the cell that its tap touches, as in F.grid_sample."""
    for case in CASES[:2]:
        case = dataclasses.replace(case, channels=channels)
        x, rates = random_input(case.shape).to(device), rates_of(kind, case.map_shape).to(device)
        grad = random_input(case.output_shape, seed=2).to(device)
        grad[:, math.prod(both(case.kernel_size)) // 2, 40] = torch.inf  # of a tap on the image
        actual, expected = (run(f, x, rates, grad, case.options) for f in (dynamic_dilation_unfold, reference))
        found, cell = actual.grad_input, ~expected.grad_input.isfinite()
        assert 0 < cell.sum() <= 4 * len(x)
        if device == "cpu":
            assert not found.isnan().any()
            assert found[cell].isinf().sum() == len(x)
        else:
            assert not found[cell].isfinite().any()
        torch.testing.assert_close(found[~cell], expected.grad_input[~cell])


@CHANNELS
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("kind", [1.0, 1.375, "whole", "eighths"])
def test_what_is_not_finite(kind, value, channels, device):
    """Pixels reach the cells that touch them, and rates their own position."""
    case = dataclasses.replace(CASES[0], channels=channels)
    x, grad = random_input(case.shape).to(device), random_input(case.output_shape, seed=2).to(device)
    rates = rates_of(kind, case.map_shape).to(device)
    x[0, -1, 7, 70] = value
    rates[1, 0, 3, 5] = value
    actual, expected = (run(f, x, rates, grad, case.options) for f in (dynamic_dilation_unfold, reference))
    for one, other in zip(actual, expected, strict=True):
        assert torch.equal(one.isfinite(), other.isfinite())
        assert torch.allclose(one[one.isfinite()], other[other.isfinite()], rtol=1e-4, atol=1e-4)
