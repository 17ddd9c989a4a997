"""What torch does around an eager call: devices, autocast, checkpoints, replicas, and its cost."""

import concurrent.futures
import subprocess
import sys
import timeit
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from dynamic_dilation_unfold import (
    _C,
    DynamicDilationUnfold,
    _kernels,
    dynamic_dilation_unfold,
    reference,
)
from helpers import (
    CASES,
    HALVES,
    Case,
    Model,
    Result,
    assert_close,
    random_input,
    random_map,
    relative_error,
    run,
)
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torch_call import BACKWARD, CASE, UNFOLD, arguments, example, ours

# --- Devices, modes of execution, numbers ----------------------------------------------------------------------------


def test_devices_without_kernels_run_the_reference(device, monkeypatch):
    """Every device takes this path but those listed; the operators must then not touch the kernels."""
    monkeypatch.setattr(_kernels, "DEVICES", set())
    monkeypatch.setattr(_kernels, "_resolved", None)
    x, rates = example(device)
    output = UNFOLD(*arguments(x, rates))
    expected = run(reference, x, rates, torch.ones_like(output), CASE.options)
    assert torch.equal(output, expected.output)
    for wanted in [(True, True), (True, False), (False, True)]:
        grads = BACKWARD(torch.ones_like(output), *arguments(x, rates), "zeros", list(wanted))
        for grad, want, other in zip(grads, wanted, expected[1:], strict=True):
            # The reference's own scatter adds in any order on a GPU.
            assert relative_error(grad, other) <= 1e-6 if want else grad.numel() == 0


@pytest.mark.parametrize("recorded", [False, True])
def test_public_function_without_kernels(recorded, device, monkeypatch):
    """The same through the function and its backward. The C++ side declines a negated view, as other devices."""
    monkeypatch.setattr(_kernels, "DEVICES", set())
    for name in ("unfold", "unfold_backward"):
        monkeypatch.setattr(_C, name, None)
    grad = random_input(CASE.output_shape, seed=3).to(device)
    x, rates = map(torch._neg_view, example(device))
    expected = run(reference, x.clone(), rates.clone(), grad, CASE.options)
    if not recorded:
        assert torch.equal(ours(x, rates), expected.output)
        return
    for wanted in [(True, True), (True, False), (False, True)]:
        leaves = [t.detach().requires_grad_(want) for t, want in zip((x, rates), wanted, strict=True)]
        assert all(leaf.is_neg() for leaf in leaves)
        output = ours(*leaves)
        assert torch.equal(output, expected.output)
        output.backward(grad)
        for leaf, want, other in zip(leaves, wanted, expected[1:], strict=True):
            assert relative_error(leaf.grad, other) <= 1e-6 if want else leaf.grad is None


@pytest.mark.parametrize("wanted", ["input", "map", "both"])
def test_only_what_is_needed(wanted, device, monkeypatch):
    """Of the registered operator; test_gradients.py has the short way of plain calls."""
    asked = []
    original = _C.unfold_backward
    monkeypatch.setattr(_C, "unfold_backward", lambda *a: asked.append(tuple(map(bool, a[-1]))) or original(*a))
    expected = (wanted != "map", wanted != "input")
    x, rates = (t.requires_grad_(want) for t, want in zip(example(device), expected, strict=True))
    UNFOLD(*arguments(x, rates)).sum().backward()
    assert (x.grad is not None, rates.grad is not None) == expected
    assert asked == [expected]


@pytest.mark.parametrize("half", HALVES, ids=str)
@pytest.mark.parametrize("rate_type", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("input_type", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_autocast(input_type, rate_type, half, device, deterministic):
    x, rates = (
        random_input(CASE.shape).to(device, input_type),
        random_map("fractional", CASE.map_shape).to(device, rate_type),
    )
    grad = random_input(CASE.output_shape, seed=3).to(device, half)
    with torch.autocast(device, half):
        actual = run(dynamic_dilation_unfold, x, rates, grad, CASE.options)
    assert [t.dtype for t in actual] == [half, input_type, rate_type]
    expected = run(dynamic_dilation_unfold, x.to(half), rates.float(), grad, CASE.options)
    assert_same(actual, [expected.output, expected.grad_input.to(input_type), expected.grad_map.to(rate_type)])


def test_autocast_leaves_doubles_alone(device):
    x, rates = example(device, dtype=torch.double)
    with torch.autocast(device, torch.bfloat16):
        assert torch.equal(ours(x, rates), ours(*example(device, dtype=torch.double)))
        assert ours(x, rates).dtype == torch.double


def test_autocast_module(device):
    """A map made by a convolution under autocast is in half precision, beside an input that is not."""
    x = random_input(CASE.shape).to(device)
    rate = nn.Conv2d(4, 2, 3, padding=1).to(device)
    unfold = DynamicDilationUnfold(3, padding=1, groups=2)
    with torch.autocast(device, torch.bfloat16):
        rates = rate(x)
        output = unfold(x, rates)
    assert rates.dtype == output.dtype == torch.bfloat16
    assert torch.equal(output, ours(x.bfloat16(), rates.float()))
    output.sum().backward()
    assert rate.weight.grad is not None
    assert rate.weight.grad.dtype == torch.float32


def assert_same(actual: Any, expected: Any) -> None:
    for one, other in zip(actual, expected, strict=True):
        assert one.dtype == other.dtype
        assert torch.equal(one, other)


def test_deterministic_algorithms(device, deterministic):
    case = Case(2, 8, 33, 35, padding=1)
    x, rates = random_input(case.shape).to(device), random_map("mixed", case.map_shape).to(device)
    grad = random_input(case.output_shape, seed=2).to(device)
    first = run(dynamic_dilation_unfold, x, rates, grad, case.options)
    for _ in range(5):
        assert_same(run(dynamic_dilation_unfold, x, rates, grad, case.options), first)
    assert_close(first, run(reference, x.double(), rates.double(), grad.double(), case.options), 1e-5)


@pytest.mark.filterwarnings("ignore:`torch.cpu.amp.autocast:FutureWarning")  # torch 2.4's own call
@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpoint(reentrant, device, deterministic):
    grad = random_input(CASE.output_shape, seed=3).to(device)
    x, rates = (t.requires_grad_() for t in example(device))
    output = checkpoint(ours, x, rates, use_reentrant=reentrant)
    output.backward(grad)
    expected = run(dynamic_dilation_unfold, *example(device), grad, CASE.options)
    assert_same((output, x.grad, rates.grad), expected)


def test_saved_tensor_hooks(device, deterministic):
    """What is kept for backward goes through save_for_backward: hooks that offload see it, and changes are noticed."""
    x, rates = (t.requires_grad_() for t in example(device))
    packed: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: packed.append(t.data_ptr()) or t.clone(), lambda t: t):
        output = ours(x, rates)
    assert packed == [x.data_ptr(), rates.data_ptr()]
    other = ours(x, rates)
    assert_same(
        torch.autograd.grad(output.sum(), (x, rates)), torch.autograd.grad(other.sum(), (x, rates), retain_graph=True)
    )
    with torch.no_grad():
        rates.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        other.sum().backward()


def test_replicas_in_threads(device):
    """As nn.DataParallel does: replicas run in threads, and their gradients add up."""
    torch.manual_seed(0)
    model, x = Model().double().to(device), random_input((4, 4, 6, 7)).double().to(device)
    model(x).square().sum().backward()
    expected = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        outputs = list(pool.map(model, x.chunk(2)))
    torch.cat(outputs).square().sum().backward()
    for parameter, grad in zip(model.parameters(), expected, strict=True):
        assert relative_error(parameter.grad, grad) <= 1e-12


@pytest.mark.cuda
def test_data_parallel():
    if torch.cuda.device_count() == 0:
        pytest.skip("torch finds no CUDA device")
    torch.manual_seed(0)
    model, x = Model().double().cuda(), random_input((4, 4, 6, 7)).double().cuda()
    model(x).square().sum().backward()
    expected = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    nn.DataParallel(model)(x).square().sum().backward()
    for parameter, grad in zip(model.parameters(), expected, strict=True):
        assert relative_error(parameter.grad, grad) <= 1e-12


def test_inference_mode(device):
    x, rates = example(device)
    with torch.inference_mode():
        output = ours(x, rates)
    assert output.is_inference()
    assert torch.equal(output, ours(x, rates))


def test_vectors_of_results_are_comparable(device, deterministic):
    """The registered operator and the short way of plain calls give the same bits, where sums have a fixed order."""
    for case in CASES:
        x, rates = example(device, case)
        grad = random_input(case.output_shape, seed=2).to(device)
        short = run(dynamic_dilation_unfold, x, rates, grad, case.options)
        long = run(
            lambda input, dilation_map, case=case, **_: UNFOLD(*arguments(input, dilation_map, case)),
            x,
            rates,
            grad,
            {},
        )
        assert isinstance(long, Result)
        assert_same(long, short)


WITHOUT_DLPACK = """
import torch
torch.Tensor.__dlpack_c_exchange_api__ = None
from dynamic_dilation_unfold import dynamic_dilation_unfold, reference
x, rates = torch.rand(2, 4, 6, 7), torch.rand(2, 2, 6, 7) + 0.5
samples = [(x, rates), (x[0], rates[0]), (x, rates[:1]), (x[:, :, ::2], rates[:, :, ::2]), (x.half(), rates)]
for tensors in samples:
    columns = []
    for function in dynamic_dilation_unfold, reference:
        leaves = [t.detach().requires_grad_() for t in tensors]
        columns.append(function(leaves[0], 3, leaves[1], padding=1, groups=2))
        columns += torch.autograd.grad(columns[-1].square().sum(), leaves)
    for one, other in zip(columns[:3], columns[3:]):
        torch.testing.assert_close(one, other, rtol=1e-2 if one.dtype == torch.half else 1e-4, atol=1e-3)
"""


def test_older_ways_to_read_a_tensor():
    """torch < 2.10 has no C functions for it: then tensors are read through their attributes."""
    subprocess.run([sys.executable, "-c", WITHOUT_DLPACK], check=True)


# --- Cost of a call --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("direction", ["forward", "forward and backward"])
def test_call_overhead(direction):
    """On a tiny tensor with gradients recorded, a call costs no more than F.unfold's in the same run, but for noise.

    Backward as far as F.unfold has one: to the input. Before torch 2.10 it has to read tensors' attributes.
    """
    allowed = 1.15 if direction == "forward" or hasattr(Tensor, "__dlpack_c_exchange_api__") else 1.3
    x, rates = random_input((1, 4, 8, 8)).requires_grad_(), torch.ones(1, 1, 8, 8)
    grad = torch.ones(1, 36, 64)

    def once(function):
        return lambda: function() if direction == "forward" else torch.autograd.grad(function(), x, grad)

    def best(function) -> float:
        return min(timeit.repeat(once(function), number=100, repeat=5))

    # Minima over many short runs, taken in turns: other work on the machine only ever adds time.
    times = [
        (best(lambda: dynamic_dilation_unfold(x, 3, rates, padding=1)), best(lambda: F.unfold(x, 3, padding=1)))
        for _ in range(60)
    ]
    own, theirs = (min(column) for column in zip(*times, strict=True))
    assert own <= allowed * theirs
