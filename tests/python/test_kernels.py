"""The kernels against the reference in float64: maps, sizes, layouts, and how exact float32 is."""

import math

import pytest
import torch
from dynamic_dilation_unfold import _C, dynamic_dilation_unfold, reference
from helpers import (
    FLOATS,
    TOLERANCE,
    Case,
    assert_close,
    assert_same_bits,
    random_input,
    random_map,
    run,
)

SHAPES = [
    Case(1, 1, 1, 1, padding=1),
    Case(2, 3, 1, 129, padding=1),
    Case(1, 2, 151, 1, padding=1),
    Case(1, 5, 2, 151, kernel_size=5, padding=2),
    Case(2, 3, 129, 151, padding=1),
    Case(1, 17, 33, 65, padding=2, dilation=2),
    Case(1, 64, 16, 18, padding=1),
    Case(2, 66, 9, 10, kernel_size=2, groups=6),
    Case(1, 12, 40, 31, kernel_size=(5, 3), stride=(2, 3), padding=(2, 1), groups=4),
    Case(1, 4, 29, 30, kernel_size=7, padding=9, dilation=3, groups=2),
    Case(1, 2, 40, 40, kernel_size=(13, 11), padding=6),
    Case(1, 1, 20, 20, kernel_size=33, padding=16),
]


def compare(case, x, rates, grad):
    """Runs the kernels in the tensors' dtype and the reference in float64 on the CPU.

    A pixel at the edge gets the gradients of all taps outside that read it: of a window larger than the image so many
    that the rounding of their sum shows. Where they are added one by one, in any order, it grows with the root of their
    number: torch's own float32 gradients of the reference are off as much.
    """
    actual = run(dynamic_dilation_unfold, x, rates, grad, case.options)
    exact = (t.cpu().double() for t in (x, rates, grad))
    tolerance = TOLERANCE[x.dtype]
    if case.padding_mode == "border" and x.is_cuda:
        terms = math.prod(case.output_shape[1:]) / case.channels
        tolerance = max(tolerance, terms**0.5 * torch.finfo(x.dtype).eps / 8)
    elif case.padding_mode == "border" and case.options["kernel_size"] == 33:
        tolerance *= 1.5
    assert_close(actual, run(reference, *exact, case.options), tolerance)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("kind", ["fractional", "negative", "zero", "eighths", "far", "huge", "mixed"])
@pytest.mark.parametrize("case", SHAPES, ids=str)
def test_maps_and_shapes(case, kind, dtype, device):
    x, grad = random_input(case.shape), random_input(case.output_shape, seed=2)
    rates = random_map(kind, case.map_shape)
    compare(case, *(t.to(device, dtype) for t in (x, rates, grad)))


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("kind", ["eighths", "mixed"])
@pytest.mark.parametrize("case", [case.border for case in SHAPES], ids=str)
def test_border(case, kind, dtype, device):
    x, grad = random_input(case.shape), random_input(case.output_shape, seed=2)
    compare(case, *(t.to(device, dtype) for t in (x, random_map(kind, case.map_shape), grad)))


@pytest.mark.parametrize(
    "case",
    [
        Case(70000, 1, 2, 2, padding=1),
        Case(1, 70000, 1, 2, padding=1, groups=70000),
        Case(1, 1, 70000, 3, padding=1),
        Case(1, 1, 3, 70000, padding=1),
    ],
    ids=str,
)
def test_one_size_beyond_16_bits(case, device):
    x, grad = random_input(case.shape), random_input(case.output_shape, seed=2)
    compare(case, *(t.to(device) for t in (x, random_map("eighths", case.map_shape), grad)))


# A position kept as one float32 is off by 5e-4 pixels at column 10,000: 500 times this tolerance.
@pytest.mark.parametrize("case", [Case(1, 2, 3, 20000, padding=1), Case(1, 2, 20000, 4, (5, 4), padding=2)], ids=str)
def test_float32_is_exact_far_from_the_origin(case, device):
    x, grad = random_input(case.shape), random_input(case.output_shape, seed=2)
    compare(case, *(t.to(device) for t in (x, random_map("fractional", case.map_shape), grad)))


@pytest.mark.parametrize(
    "case", [Case(2, 256, 24, 20, padding=1), Case(1, 2048, 7, 7, padding=1), Case(1, 256, 8, 9, 7, padding=3)], ids=str
)
def test_float32_sums_over_many_channels(case, device):
    x, grad = random_input(case.shape), random_input(case.output_shape, seed=2)
    compare(case, *(t.to(device) for t in (x, random_map("fractional", case.map_shape), grad)))


LAYOUT_CASE = Case(2, 6, 11, 13, padding=1, groups=2)


def channels_last(t):
    return t.contiguous(memory_format=torch.channels_last)


def transposed(t):
    return t.transpose(-1, -2).contiguous().transpose(-1, -2)


def strided(t):
    wide = torch.full((*t.shape[:-1], 2 * t.shape[-1]), torch.nan, device=t.device, dtype=t.dtype)
    wide[..., ::2] = t
    return wide[..., ::2]


def misaligned(t):
    """Contiguous, but not on the 16 bytes that vector loads want."""
    return torch.cat([t.new_full((1,), torch.nan), t.flatten()])[1:].view(t.shape)


def negated(t):
    return torch._neg_view(-t)


LAYOUTS = [channels_last, transposed, strided, misaligned, negated]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layout_of_input_and_map(layout, device):
    case = LAYOUT_CASE
    x, grad = random_input(case.shape).to(device), random_input(case.output_shape, seed=2).to(device)
    rates = random_map("eighths", case.map_shape).to(device)
    assert torch.equal(layout(x), x)
    plain = run(dynamic_dilation_unfold, x, rates, grad, case.options)
    actual = run(dynamic_dilation_unfold, layout(x), layout(rates), grad, case.options)
    if layout is not channels_last or device not in _C.reads_channels_last:  # else other kernels read it
        assert_same_bits(actual.output, plain.output)
    assert_close(actual, plain, TOLERANCE[torch.float32])


def test_gradient_lies_as_a_channels_last_input_does(device):
    case = LAYOUT_CASE
    x = channels_last(random_input(case.shape).to(device)).requires_grad_()
    rates = random_map("eighths", case.map_shape).to(device)
    (grad,) = torch.autograd.grad(dynamic_dilation_unfold(x, dilation_map=rates, **case.options).sum(), x)
    assert grad.is_contiguous(memory_format=torch.channels_last) == (device in _C.reads_channels_last)


@pytest.mark.parametrize("path", ["planar", "wide", "channels_last"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=str)
def test_all_paths_of_cuda_give_the_same(path, dtype, device, monkeypatch):
    if device != "cuda":
        pytest.skip("CUDA's kernels have three paths")
    case = Case(2, 6, 40, 70, padding=1, groups=2)
    x, grad = random_input(case.shape).to(device, dtype), random_input(case.output_shape, seed=2).to(device, dtype)
    rates = random_map("eighths", case.map_shape).to(device)
    rates[:, :, :20] *= 9  # tiles with a window, and tiles without
    either = run(dynamic_dilation_unfold, x, rates, grad, case.options)
    monkeypatch.setenv("DDU_CUDA_PATH", path)
    assert_close(
        run(dynamic_dilation_unfold, x, rates, grad, case.options),
        either,
        2e-3 if dtype == torch.float16 else TOLERANCE[dtype],
    )


@pytest.mark.parametrize("path", ["", "planar", "wide", "channels_last"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=str)
@pytest.mark.usefixtures("deterministic")
def test_deterministic_gradients_of_all_paths_repeat(path, dtype, device, monkeypatch):
    if device != "cuda":
        pytest.skip("CUDA's kernels have several paths")
    case = Case(2, 12, 40, 72, padding=6, dilation=6)  # whose base dilation alone needs more than a small window
    x, grad = random_input(case.shape).to(device, dtype), random_input(case.output_shape, seed=2).to(device, dtype)
    rates = random_map("eighths", case.map_shape).to(device)
    rates[:, :, :20] *= 2  # tiles with a window, of both sizes, and tiles without
    monkeypatch.setenv("DDU_CUDA_PATH", path)
    once, again = (run(dynamic_dilation_unfold, x, rates, grad, case.options) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(once, again, strict=True))
    monkeypatch.setenv("DDU_CUDA_PATH", "channels_last")
    either = run(dynamic_dilation_unfold, x, rates, grad, case.options)
    assert_close(once, either, 2e-3 if dtype == torch.float16 else TOLERANCE[dtype])


@pytest.mark.parametrize("layout", [transposed, strided, misaligned, negated])
def test_layout_of_gradient(layout, device):
    case = LAYOUT_CASE
    x, grad = random_input(case.shape).to(device), random_input(case.output_shape, seed=2).to(device)
    rates = random_map("eighths", case.map_shape).to(device)
    plain = run(dynamic_dilation_unfold, x, rates, grad, case.options)
    assert_close(run(dynamic_dilation_unfold, x, rates, layout(grad), case.options), plain, TOLERANCE[torch.float32])


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=str)
def test_expanded_tensors(dtype, device):
    case = Case(3, 4, 7, 8, padding=1)
    x = random_input((1, 1, 7, 8)).to(device, dtype).expand(case.shape)
    rates = random_map("eighths", (1, 1, 1, 1)).to(device, dtype).expand(case.map_shape)
    actual = dynamic_dilation_unfold(x, dilation_map=rates, **case.options)
    assert_same_bits(actual, dynamic_dilation_unfold(x.contiguous(), dilation_map=rates.contiguous(), **case.options))
    leaf = x.detach().requires_grad_()
    dynamic_dilation_unfold(leaf, dilation_map=rates, **case.options).sum().backward()  # an expanded gradient
    assert leaf.grad.shape == case.shape


def test_unbatched_is_a_batch_of_one(device):
    case = LAYOUT_CASE
    x, rates = random_input(case.shape)[0].to(device), random_map("fractional", case.map_shape)[0].to(device)
    grad = random_input(case.output_shape, seed=2)[0].to(device)
    alone = run(dynamic_dilation_unfold, x, rates, grad, case.options)
    assert alone.output.shape == case.output_shape[1:]
    batch = run(dynamic_dilation_unfold, x[None], rates[None], grad[None], case.options)
    assert_same_bits(alone.output, batch.output[0])
    assert_close(alone, type(batch)(*(t[0] for t in batch)), TOLERANCE[torch.float32])


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_map_of_batch_one_broadcasts(dtype, device):
    case = Case(5, 4, 11, 13, padding=1, groups=2)
    x, grad = (t.to(device, dtype) for t in (random_input(case.shape), random_input(case.output_shape, seed=2)))
    rates = random_map("fractional", (1, *case.map_shape[1:])).to(device, dtype)
    shared = run(dynamic_dilation_unfold, x, rates, grad, case.options)
    apart = run(dynamic_dilation_unfold, x, rates.expand(case.map_shape), grad, case.options)
    assert_same_bits(shared.output, apart.output)
    expected = type(apart)(apart.output, apart.grad_input, apart.grad_map.sum(0, keepdim=True))
    assert_close(shared, expected, TOLERANCE[dtype])


def test_groups_are_separate_calls(device):
    case = Case(2, 12, 9, 10, padding=1, groups=3)
    x, rates = random_input(case.shape).to(device), random_map("fractional", case.map_shape).to(device)
    together = dynamic_dilation_unfold(x, dilation_map=rates, **case.options)
    apart = [
        dynamic_dilation_unfold(part, 3, plane, padding=1)
        for part, plane in zip(x.split(4, 1), rates.split(1, 1), strict=True)
    ]
    assert_same_bits(together, torch.cat(apart, 1))


def test_inputs_are_left_alone(device):
    case = LAYOUT_CASE
    tensors = [random_input(case.shape), random_map("mixed", case.map_shape), random_input(case.output_shape, seed=2)]
    tensors = [t.to(device) for t in tensors]
    copies = [t.clone() for t in tensors]
    run(dynamic_dilation_unfold, *tensors, case.options)
    for tensor, copy in zip(tensors, copies, strict=True):
        assert_same_bits(tensor, copy)
