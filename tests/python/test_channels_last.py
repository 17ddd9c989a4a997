"""Inputs in torch.channels_last: read as they lie, with gradients that lie so too, wherever a call goes."""

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from dynamic_dilation_unfold import _C, dynamic_dilation_unfold
from helpers import (
    CASES,
    DTYPES,
    HALVES,
    TOLERANCE,
    Case,
    assert_same_bits,
    random_input,
    random_map,
    relative_error,
    run,
)
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch_call import UNFOLD, arguments, example, ours

CASE = Case(2, 6, 9, 11, padding=1, groups=2)
# One channel, one pixel, one image, one row: where both formats have the same strides, or some of them say nothing.
AMBIGUOUS = [
    Case(2, 1, 5, 6, padding=1),
    Case(2, 6, 1, 1, padding=1, groups=2),
    Case(1, 1, 1, 1, padding=1),
    Case(1, 6, 5, 6, padding=1),
    Case(2, 6, 1, 7, padding=1),
    Case(2, 6, 7, 1, padding=1),
    Case(0, 6, 5, 6, padding=1),
    Case(2, 0, 5, 6, padding=1),
]


def channels_last(tensor: Tensor) -> Tensor:
    return tensor.contiguous(memory_format=torch.channels_last)


@pytest.fixture
def reads(device: str) -> bool:
    """Whether the kernels of the device read the format; else an input is copied, and its gradient is contiguous."""
    return device in _C.reads_channels_last


def strides_of_gradient(input: Tensor, reads: bool) -> tuple[int, ...]:
    lies_so = reads and not input.is_contiguous()
    return torch.empty(input.shape, memory_format=torch.channels_last if lies_so else torch.contiguous_format).stride()


def test_the_cpu_reads_it():
    assert "cpu" in _C.reads_channels_last


@pytest.mark.parametrize(
    ("dtype", "map_dtype"), [*((t, t) for t in DTYPES), *((t, torch.float32) for t in HALVES)], ids=str
)
@pytest.mark.parametrize("kind", ["fractional", "mixed"])
@pytest.mark.parametrize("case", [CASE, *CASES, *AMBIGUOUS], ids=str)
def test_values_and_strides(case, kind, dtype, map_dtype, device, reads):
    x, grad = (t.to(device, dtype) for t in (random_input(case.shape), random_input(case.output_shape, seed=2)))
    rates = random_map(kind, case.map_shape).to(device, map_dtype)
    expected = run(dynamic_dilation_unfold, x, rates, grad, case.options)
    x = channels_last(x)
    actual = run(dynamic_dilation_unfold, x, rates, grad, case.options)
    if device == "cpu":
        assert_same_bits(actual, expected)
    else:  # where the two come from different kernels, and sums are in no fixed order
        for one, other in zip(actual, expected, strict=True):
            assert torch.equal(one.isnan(), other.isnan())
            assert relative_error(one.nan_to_num(0.0), other.nan_to_num(0.0)) <= TOLERANCE.get(dtype, 1e-2)
    assert actual.output.is_contiguous()
    assert actual.grad_map.is_contiguous()
    assert actual.grad_input.stride() == strides_of_gradient(x, reads)


@pytest.mark.parametrize("strange", [False, True])
@pytest.mark.parametrize("wide", [slice(0), slice(24, 40), slice(None)], ids=["no", "some", "all"])
@pytest.mark.parametrize("channels", [20, 32])
def test_planes_whose_rates_are_wide_in_some_rows(channels, wide, strange, device):
    """CUDA turns what is needed of the planes to rows: by blocks without a window, or by those that read rows."""
    x = random_input((2, channels, 67, 129)).to(device, torch.float32)
    if strange:
        x[1, channels // 2, 30, 64], x[0, 0, 3, 4] = torch.inf, torch.nan
    rates = torch.full((2, 1, 67, 129), 1.25, device=device)
    rates[:, :, wide] = 13.5
    actual = dynamic_dilation_unfold(x, 3, rates, padding=1)
    expected = dynamic_dilation_unfold(channels_last(x), 3, rates, padding=1)
    assert torch.equal(actual.isnan(), expected.isnan())
    actual, expected = (columns.nan_to_num(0.0, 0.0, 0.0) for columns in (actual, expected))
    assert relative_error(actual, expected) <= TOLERANCE[torch.float32]


def test_nothing_is_copied():
    """Neither by torch.contiguous nor otherwise: the only memory is the results', and at most scratch beside it."""
    case = Case(1, 32, 64, 64, kernel_size=1)
    x, rates = channels_last(random_input(case.shape)).requires_grad_(), random_map("fractional", case.map_shape)

    def allocated(function: Callable[[], Any]) -> int:
        with torch.profiler.profile(profile_memory=True) as profile:
            kept = function()
        assert kept is not None
        names = [event.key for event in profile.key_averages()]
        assert not [n for n in names if n in ("aten::contiguous", "aten::clone", "aten::copy_")]
        return sum(max(event.self_cpu_memory_usage, 0) for event in profile.key_averages())

    output = ours(x, rates, case)
    grad = torch.ones_like(output)
    bytes_of_input = 4 * x.numel()
    with torch.no_grad():
        assert bytes_of_input <= allocated(lambda: ours(x, rates, case)) < 1.5 * bytes_of_input
    assert bytes_of_input <= allocated(lambda: torch.autograd.grad(output, x, grad)) < 1.5 * bytes_of_input


def test_unbatched_inputs_have_no_such_format(device):
    """[C, H, W] with channels last is strided as any other view is: copied, with a contiguous gradient."""
    x, rates = example(device, CASE)
    x, rates, grad = x[0], rates[0], random_input(CASE.output_shape, seed=2)[0].to(device)
    expected = run(dynamic_dilation_unfold, x, rates, grad, CASE.options)
    actual = run(dynamic_dilation_unfold, channels_last(x[None])[0], rates, grad, CASE.options)
    assert_same_bits(actual.output, expected.output)
    assert relative_error(actual.grad_input, expected.grad_input) <= TOLERANCE[torch.float32]
    assert actual.grad_input.is_contiguous()


@pytest.mark.parametrize("case", [CASE, *AMBIGUOUS], ids=str)
def test_fakes_agree(case, device, reads):
    """Of the registered operator, which compilers see: wrong strides would be wrong values."""
    x, rates = example(device, case)
    x = channels_last(x)
    with FakeTensorMode() as mode:
        fakes = [mode.from_tensor(t).requires_grad_() for t in (x, rates)]
        output = ours(*fakes, case)
        fake_grad, _ = torch.autograd.grad(output, fakes, torch.empty_like(output))
    leaf = x.clone().requires_grad_()
    assert leaf.stride() == x.stride()
    (grad,) = torch.autograd.grad(UNFOLD(*arguments(leaf, rates, case)).sum(), leaf)
    assert fake_grad.stride() == grad.stride() == strides_of_gradient(x, reads)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning:torch")
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
@pytest.mark.parametrize("dynamic", [False, True])
def test_compile(backend, dynamic, device, reads):
    torch._dynamo.reset()

    def step(x: Tensor, rates: Tensor) -> Tensor:
        return (ours(x * 2, rates, CASE) + 1).square()

    x, rates = example(device, CASE)
    results = []
    for function in (step, torch.compile(step, fullgraph=True, dynamic=dynamic, backend=backend)):
        leaves = channels_last(x).requires_grad_(), rates.clone().requires_grad_()
        output = function(*leaves)
        results.append((output, *torch.autograd.grad(output.sum(), leaves)))
    for one, other in zip(*results, strict=True):
        assert relative_error(other, one) <= TOLERANCE[torch.float32]
    if reads:
        assert results[1][1].is_contiguous(memory_format=torch.channels_last)


def derivatives(x: Tensor, rates: Tensor) -> dict[str, Any]:
    """Each by transforms and by autograd."""
    f = lambda x, m: ours(x, m, CASE)  # noqa: E731
    loss = lambda x, m: f(x, m).sin().square().sum()  # noqa: E731
    tangent, images = x.cos(), torch.stack([x, x.sin()])
    leaf = x.detach().clone().requires_grad_()
    (first,) = torch.autograd.grad(loss(leaf, rates), leaf, create_graph=True)
    return {
        "jvp": torch.func.jvp(lambda x: f(x, rates), (x,), (tangent,))[1],
        "vmap": torch.vmap(f, in_dims=(0, None))(images, rates),
        "vmap of grad": torch.vmap(torch.func.grad(loss), in_dims=(0, None))(images, rates),
        "vmap of each image": torch.vmap(f)(x, rates),
        "grad": torch.func.grad(loss)(x, rates),
        "forward over reverse": torch.func.jvp(lambda x: torch.func.grad(loss)(x, rates), (x,), (tangent,))[1],
        "double backward": torch.autograd.grad(first.square().sum(), leaf)[0],
    }


# torch's own derivatives of some operators in forward mode are scripts, which it deprecates.
@pytest.mark.filterwarnings("ignore:`torch.jit.script`:DeprecationWarning")
def test_transforms(device):
    x, rates = example(device, CASE, torch.double)
    expected, actual = derivatives(x, rates), derivatives(channels_last(x), rates)
    for name, value in expected.items():
        assert relative_error(actual[name], value) <= 1e-12, name
        assert float(value.norm()) > 0


def test_plain_calls_and_transforms_agree_on_strides(device, reads):
    x, rates = example(device, CASE)
    x = channels_last(x)
    loss = lambda x: ours(x, rates, CASE).sum()  # noqa: E731
    assert torch.func.grad(loss)(x).stride() == strides_of_gradient(x, reads)


WITHOUT_DLPACK = """
import torch
torch.Tensor.__dlpack_c_exchange_api__ = None
from dynamic_dilation_unfold import dynamic_dilation_unfold
def run(x):
    x = x.detach().requires_grad_()
    output = dynamic_dilation_unfold(x, 3, torch.full((1, 1, *x.shape[2:]), 1.5), padding=1)
    return output, torch.autograd.grad(output.square().sum(), x)[0]
for shape in (2, 3, 5, 6), (2, 1, 5, 6), (2, 3, 1, 1), (0, 3, 5, 6):
    x = torch.randn(shape)
    other = x.contiguous(memory_format=torch.channels_last)
    for one, expected in zip(run(other), run(x)):
        assert torch.equal(one, expected), shape
    lies_so = not other.is_contiguous()
    grad = run(other)[1]
    assert grad.is_contiguous() != lies_so, shape
    assert grad.is_contiguous(memory_format=torch.channels_last) or not lies_so, shape
"""


def test_older_ways_to_read_a_tensor():
    """torch < 2.10: the format is asked for in Python."""
    subprocess.run([sys.executable, "-c", WITHOUT_DLPACK], check=True)
