"""Attention in parts on a CPU, against the same all at once; and the memory of a training step on any device."""

import runpy
from pathlib import Path
from typing import Any

import pytest
import torch
from dynamic_dilation_unfold import _attention, cost, functional
from helpers import relative_error
from test_attention import CASE, assert_close, attend, example, gradients
from torch.utils.flop_counter import FlopCounterMode

ROOT = Path(__file__).parents[2]
TORCH = tuple(int(n) for n in torch.__version__.split(".")[:2])


@pytest.mark.parametrize("padding_mode", ["zeros", "border"])
def test_parts(padding_mode, device, monkeypatch):
    """A head, or a group's heads, of an image at a time: the same as all at once, and all that was asked for."""
    monkeypatch.setattr(_attention, "DEVICES", {device})
    monkeypatch.setattr(_attention, "LEAST_BYTES", 0)
    of_parts = []
    weights_of = _attention.weights_of
    monkeypatch.setattr(_attention, "weights_of", lambda t, o: of_parts.append(o.heads) or weights_of(t, o))
    case = CASE if padding_mode == "zeros" else CASE.border
    query, key, value, rates, bias = example(device, case, 4, 12)
    function = attend(case, 4, padding_mode=padding_mode)
    own = bias.expand(2, -1, -1, 5, 6).cos()  # of each image and position
    for tensors, heads in (
        ([query, key, value, rates, bias], 1),
        ([query, key, value, rates[:1, :1, :, :1], own], 1),
        ([query[0], key[0], value[0], rates[0], bias], 1),
    ):
        of_parts.clear()
        actual = gradients(function, tensors)
        assert of_parts[-1] == heads
        assert len(of_parts) >= 4
        with monkeypatch.context() as whole:
            whole.setattr(_attention, "DEVICES", set())
            of_parts.clear()
            assert_close(actual, gradients(function, tensors))
            assert of_parts == [4]
    # Of some of the gradients, and the same in a half type beside a float32 map.
    expected = actual[1:]
    for i, tensor in enumerate(tensors):
        leaves = [t.detach().requires_grad_(t is tensor) for t in tensors]
        (gradient,) = torch.autograd.grad(function(*leaves).sin().sum(), leaves[i : i + 1])
        assert_close(gradient, expected[i])
    halves = [*(t.bfloat16() for t in tensors[:3]), tensors[3].float(), tensors[4].bfloat16()]
    found = gradients(function, halves)
    assert [t.dtype for t in found] == [torch.bfloat16, *(t.dtype for t in halves)]
    assert all(relative_error(one, other) <= 0.05 for one, other in zip(found, actual, strict=True))


def test_double_backward(device, monkeypatch):
    """Of a call in parts, through its backward, is that of the composition; several parts lie as their image does."""
    monkeypatch.setattr(_attention, "DEVICES", {device})
    monkeypatch.setattr(_attention, "LEAST_BYTES", 0)
    query, key, value, rates, bias = example(device)
    tensors = [*(t.contiguous(memory_format=torch.channels_last) for t in (query, key, value)), rates, bias]

    def twice() -> list[Any]:
        leaves = [t.detach().requires_grad_() for t in tensors]
        output = attend(CASE, 4)(*leaves)
        assert output.is_contiguous(memory_format=torch.channels_last)
        first = torch.autograd.grad(output.sin().sum(), leaves, create_graph=True)
        return list(torch.autograd.grad(sum(g.square().sum() for g in first), leaves))

    actual = twice()
    monkeypatch.setattr(_attention, "DEVICES", set())
    assert_close(actual, twice(), 1e-10)


@pytest.mark.skipif(TORCH < (2, 5), reason=f"torch {torch.__version__}'s counter does not find registered formulas")
def test_flops(device):
    """Those of what it is composed of, each once in forward; a profiler sees the same operators by name."""
    query, key, value, rates, bias = example(device)
    with FlopCounterMode(display=False) as counter:
        attend(CASE, 4)(query, key, value, rates, bias)
    shapes = query.shape, key.shape, rates.shape
    expected = cost.correlate(*shapes, 3, heads=4).flops + cost.unfold((2, 2, 5, 6), rates.shape, 3).flops
    expected += cost.aggregate(value.shape, (2, 4, 9, 5, 6), rates.shape, 3).flops
    assert counter.get_total_flops() == expected
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        attend(CASE, 4)(query, key, value, rates, bias)
    names = {event.name for event in profile.events()}
    assert {f"dynamic_dilation_unfold::{name}" for name in ("correlate", "unfold", "aggregate")} <= names


def test_memory_of_a_training_step(device):
    """At most 8 inputs beside the tensors given, where columns alone are 9; see docs/torch.md for what counts.

    On a CPU sums need 5: kernels there have no copies of the image and its gradient in rows of channels.
    """
    peak_memory = runpy.run_path(str(ROOT / "examples" / "training_step.py"))["peak_memory"]
    x, weights = torch.randn(4, 64, 48, 48, device=device), torch.randn(4, 4, 9, 48, 48, device=device)
    rates = (0.5 + 2.5 * torch.rand(4, 1, 48, 48, device=device)).requires_grad_()
    sums = 5 if device == "cpu" else 8
    x.requires_grad_()
    weights.requires_grad_()
    calls = {
        "aggregate": (lambda: functional.aggregate(x, weights, rates, 3, padding=1), sums),
        "correlate": (lambda: functional.correlate(x, x, rates, 3, padding=1, heads=4), sums),
        "attention": (lambda: functional.attention(x, x, x, rates, 3, padding=1, heads=4), 8),
        "attention, 7x7": (lambda: functional.attention(x, x, x, rates, 7, padding=3, heads=2), 8),
    }

    def step(call: Any) -> None:
        x.grad = weights.grad = rates.grad = None
        output = call()
        output.backward(torch.ones_like(output))

    threads = torch.get_num_threads()
    torch.set_num_threads(min(threads, 2))  # each has scratch memory of its own, much for so small an image
    try:
        for name, (call, inputs) in calls.items():
            step(call)
            x.grad = weights.grad = rates.grad = None
            peak = peak_memory(lambda call=call: step(call), torch.device(device))
            assert 2 * x.nbytes < peak < inputs * x.nbytes, name
    finally:
        torch.set_num_threads(threads)
