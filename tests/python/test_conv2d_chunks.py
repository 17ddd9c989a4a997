"""The chunks of dynamic_dilation_conv2d: how large they are, and what they do once and not each time."""

from collections.abc import Callable

import pytest
import torch
from dynamic_dilation_unfold import _C, _chunk_memory, _chunk_products, _chunks, _kernels, dynamic_dilation_conv2d
from dynamic_dilation_unfold._operators import conv2d
from dynamic_dilation_unfold._operators.conv2d import CONV2D
from helpers import relative_error
from torch import Tensor


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.double)


def measured(run: Callable[[], object]) -> tuple[object, int]:
    """A result, and what torch had allocated for it on the CPU at its peak."""
    with torch.profiler.profile(profile_memory=True) as profile:
        result = run()
    alive = peak = 0
    for event in profile.profiler.kineto_results.events():
        if event.name() == "[memory]":
            alive += event.nbytes()
            peak = max(peak, alive)
    return result, peak


def test_memory_of_chunks_serves_the_next_call(monkeypatch):
    """Whatever the last call left there, and though it ran in inference mode."""
    monkeypatch.setattr(_chunk_memory, "_kept", [])
    tensors = [t.requires_grad_() for t in (random(2, 4, 7, 9), random(6, 4, 3, 3, seed=1), random(1, 1, 7, 9, seed=2))]

    def step() -> list[Tensor]:
        output = dynamic_dilation_conv2d(*tensors, padding=1)
        return [output, *torch.autograd.grad(output.sum(), tensors)]

    with torch.inference_mode():
        dynamic_dilation_conv2d(*tensors, padding=1)
    (kept,) = _chunk_memory._kept
    expected = step()
    (kept,) = _chunk_memory._kept
    kept.fill_(255)  # NaN
    assert all(torch.equal(a, b) for a, b in zip(step(), expected, strict=True))
    assert _chunk_memory._kept[0] is kept
    _chunk_memory.Memory(_chunk_memory.KEPT_BYTES + 1, kept.device).leave()
    assert _chunk_memory._kept == []  # too much to keep


@pytest.mark.parametrize(
    ("image", "weight"),
    [
        ((2, 64, 64, 64), (8, 64, 5, 5)),
        ((1, 3, 256, 256), (256, 3, 7, 7)),  # too few channels for a good product of some of them
        ((1, 64, 1, 8192), (8, 64, 1, 25)),  # one row
        ((1, 3, 1, 65536), (256, 3, 1, 49)),  # and both
    ],
    ids=str,
)
def test_memory_is_not_the_columns(image, weight, monkeypatch):
    """What torch allocates at once beside the output, in forward and in backward, is less than a quarter of them."""
    monkeypatch.setattr(_chunk_memory, "_kept", [])
    x, taps = random(*image).float().requires_grad_(), weight[2] * weight[3]
    w, rates = random(*weight, seed=1).float().requires_grad_(), torch.full((1, 1, 1, 1), 1.5, requires_grad=True)
    padding = weight[2] // 2, weight[3] // 2
    output, peak = measured(lambda: dynamic_dilation_conv2d(x, w, rates, padding=padding))
    assert output.nbytes < peak < output.nbytes + x.nbytes * taps / 4
    grad = torch.ones_like(output)
    _, peak = measured(lambda: torch.autograd.grad(output, [x, w, rates], grad))
    assert x.nbytes <= peak < x.nbytes * taps / 4


@pytest.mark.parametrize(
    ("channels", "counts", "most", "step"),
    [
        (64, [1, 1, 1], 28, 16),
        (66, [1, 1, 1], 28, 22),
        (67, [1, 1, 1], 28, 23),  # 23, 23 and 21
        (62, [1, 1, 1], 28, 21),  # not 2
        (67, [1, 1, 1], 100, 67),
        (67, [1, 67, 1], 28, 1),
        (134, [1, 2, 1], 28, 1),
    ],
)
def test_channels_of_a_chunk(channels, counts, most, step):
    assert _chunks.channel_step(channels, counts, most) == step


@pytest.mark.parametrize("kernels", [True, False])
@pytest.mark.parametrize("dtype", [torch.double, torch.bfloat16], ids=str)
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last, None], ids=str)
def test_chunks_of_all_kinds(memory_format, dtype, kernels, monkeypatch):
    """Parts of a row, some of seven channels, of an input that lies in either format or in none: read as it is once."""
    monkeypatch.setitem(_chunks.CHUNK_BYTES, "cpu", 3000)
    monkeypatch.setattr(_chunks, "GROWTH", 1)
    if not kernels:
        monkeypatch.setattr(_kernels, "DEVICES", ())
    x, weight, rates = random(2, 7, 3, 40), random(3, 7, 3, 3, seed=1), 2 * random(2, 1, 3, 40, seed=2).sigmoid()
    mask, grad = random(2, 1, 9, 3, 40, seed=3), random(2, 3, 3, 40, seed=4).to(dtype)
    given = [t.to(dtype) for t in (x, weight, rates, mask)]
    if memory_format is None:
        given[0] = torch.stack([given[0], given[0]], -1)[..., 1]
    else:
        given[0] = given[0].contiguous(memory_format=memory_format)
    leaves = [t.detach().requires_grad_() for t in given]
    read, made = [], _C.unfold_part

    def unfold_part(input: Tensor, *others: object) -> Tensor:
        read.append(input)
        return made(input, *others)

    monkeypatch.setattr(_C, "unfold_part", unfold_part)
    output = dynamic_dilation_conv2d(*leaves[:3], padding=1, mask=leaves[3])
    if kernels:
        assert len(read) > 6  # more than one for each row
        assert len({id(input) for input in read}) == 2  # one for each image
        assert all(t.is_contiguous() or t.is_contiguous(memory_format=torch.channels_last) for t in read)
    read.clear()
    monkeypatch.setitem(_chunks.CHUNK_BYTES, "cpu", 20000)  # two or four channels
    actual = [output, *torch.autograd.grad(output, leaves, grad)]
    if kernels:
        assert len({id(input) for input in read}) == (8 if dtype == torch.double else 4)
    exact = [t.detach().double().requires_grad_() for t in given]
    expected = CONV2D.reference((*exact[:3], None, exact[3]), CONV2D.read((1, 1, 1, "zeros")))
    for a, b in zip(actual, [expected, *torch.autograd.grad(expected, exact, grad.double())], strict=True):
        assert relative_error(a, b) < (1e-12 if dtype == torch.double else 4e-3)


def test_products_of_half_types_are_of_some_images_at_once(monkeypatch):
    """The weight's gradient takes about as much memory as it is told to, or as an image's."""
    monkeypatch.setattr(_chunk_products, "_wide", lambda dtype: {})  # a CPU has no product that keeps float32 sums
    a, b = random(23, 2, 64, 10).bfloat16(), random(23, 2, 32, 10, seed=1).bfloat16()
    total = torch.zeros(2, 64, 32)
    _, peak = measured(lambda: _chunk_products.add_product(total, a, b, 4 * total.nbytes))
    assert relative_error(total, torch.einsum("ngmp,ngkp->gmk", a.double(), b.double())) < 4e-3
    assert peak < 8 * total.nbytes  # of all images 23 times, and half of that before they are converted for their sum
    total.zero_()
    _chunk_products.add_product(total, a, b, 0)
    assert relative_error(total, torch.einsum("ngmp,ngkp->gmk", a.double(), b.double())) < 4e-3


@pytest.mark.parametrize(("outputs", "served"), [(32, True), (64, False)])
def test_half_types_are_converted_for_kernels_that_there_are(outputs, served):
    tensors = tuple(t.bfloat16() for t in (random(1, 16, 5, 6), random(outputs, 4, 3, 3), random(1, 1, 5, 6)))
    read = conv2d._for_kernels((*tensors, None, None), CONV2D.read((1, 1, 1, "zeros")))
    assert all((a is b) != served for a, b in zip(read[:3], tensors, strict=True))
