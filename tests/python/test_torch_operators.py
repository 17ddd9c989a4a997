"""The registered unfold under modes, subclasses, fakes and the profiler, and its FLOPs; see test_operators.py."""

from typing import Any

import pytest
import torch
from dynamic_dilation_unfold import (
    dynamic_dilation_unfold,
)
from helpers import (
    CASES,
    run,
)
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode
from torch_call import BACKWARD, CASE, UNFOLD, example, ours

TORCH = tuple(int(n) for n in torch.__version__.split(".")[:2])


class Log(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.operators: list[Any] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.operators.append(function)
        return function(*args, **(kwargs or {}))


def test_modes_see_one_operator(device):
    x, rates = (t.requires_grad_() for t in example(device))
    with Log() as log:
        output = ours(x, rates)
    assert log.operators == [UNFOLD]
    assert torch.equal(output, ours(x, rates))
    with Log() as log:
        torch.autograd.grad(output, (x, rates), torch.ones_like(output))
    assert [f for f in log.operators if f.namespace != "aten"] == [BACKWARD]


class Tagged(Tensor):
    """A subclass that notes the functions called with it."""

    calls: list[Any] = []  # noqa: RUF012

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        cls.calls.append(function)
        return super().__torch_function__(function, types, args, kwargs or {})


class Wrapper(Tensor):
    """A subclass that holds another tensor, and notes the operators called with it."""

    calls: list[Any] = []  # noqa: RUF012

    @staticmethod
    def __new__(cls, inner: Tensor) -> "Wrapper":
        kept = {"dtype": inner.dtype, "device": inner.device, "strides": inner.stride()}
        wrapper = Tensor._make_wrapper_subclass(cls, inner.shape, **kept)
        wrapper.inner = inner
        return wrapper

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        cls.calls.append(function)
        unwrap = lambda v: v.inner if isinstance(v, Wrapper) else v  # noqa: E731
        wrap = lambda v: Wrapper(v) if isinstance(v, Tensor) else v  # noqa: E731
        args, kwargs = torch.utils._pytree.tree_map(unwrap, (args, kwargs or {}))
        return torch.utils._pytree.tree_map(wrap, function(*args, **kwargs))


@pytest.mark.parametrize("wrapped", ["input", "map", "both"])
def test_wrapper_subclasses_dispatch_the_operator(wrapped, device):
    tensors = example(device)
    expected = run(dynamic_dilation_unfold, *tensors, torch.ones(CASE.output_shape, device=device), CASE.options)
    Wrapper.calls.clear()
    x, rates = (
        (Wrapper(t) if wrapped in (name, "both") else t).requires_grad_()
        for name, t in zip(("input", "map"), tensors, strict=True)
    )
    output = ours(x, rates)
    assert type(output) is Wrapper
    grads = torch.autograd.grad(output, (x, rates), Wrapper(torch.ones(CASE.output_shape, device=device)))
    assert [f for f in Wrapper.calls if f.namespace != "aten"] == [UNFOLD, BACKWARD]
    actual = [t.inner if isinstance(t, Wrapper) else t for t in (output, *grads)]
    assert all(torch.equal(a, b) for a, b in zip(actual, expected, strict=True))


def test_subclasses_see_the_operator(device):
    x, rates = example(device)
    Tagged.calls.clear()
    output = ours(x.as_subclass(Tagged), rates)
    assert type(output) is Tagged
    assert UNFOLD in Tagged.calls
    assert torch.equal(output.as_subclass(Tensor), ours(x, rates))


def test_function_modes_see_the_operator(device):
    class Mode(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, function, types, args=(), kwargs=None):
            called.append(function)
            return function(*args, **(kwargs or {}))

    called: list[Any] = []
    with Mode():
        ours(*example(device))
    assert UNFOLD in called


def test_fakes_are_validated(device):
    x, rates = example(device)
    mode = FakeTensorMode()
    fakes = mode.from_tensor(x), mode.from_tensor(rates[..., 1:])
    with mode, pytest.raises(ValueError, match="dilation_map must have shape"):
        ours(*fakes)
    with pytest.raises(TypeError, match="dilation_map must have the input's dtype"):
        ours(x.to("meta"), rates.to("meta").double())


def test_profiler_names_the_operator(device):
    x, rates = (t.requires_grad_() for t in example(device))
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        ours(x, rates).sum().backward()
    names = {event.key for event in profile.key_averages()}
    assert {"dynamic_dilation_unfold::unfold", "dynamic_dilation_unfold::unfold_backward"} <= names


@pytest.mark.skipif(
    TORCH < (2, 5), reason=f"the counter of torch {torch.__version__} does not find registered formulas"
)
@pytest.mark.parametrize(("wanted", "per_sample"), [("input", 8 + 8), ("map", 8 + 22), ("both", 8 + 8 + 22)])
def test_flops(wanted, per_sample, device):
    case = CASES[2]
    x, rates = example(device, case)
    x.requires_grad_(wanted != "map")
    rates.requires_grad_(wanted != "input")
    with FlopCounterMode(display=False) as counter:
        output = ours(x, rates, case)
        assert counter.get_total_flops() == 8 * output.numel()
        output.sum().backward()
    assert counter.get_total_flops() == per_sample * output.numel()
