"""What the self-test tries: each check raises WrongResult, or whatever a call raised."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from .._operators.conv2d import CONV2D
from ..functional import dynamic_dilation_conv2d, dynamic_dilation_unfold
from ..reference import dynamic_dilation_unfold_reference
from .workloads import Workload

Check = Callable[[torch.device], None]
Operator = Callable[[Tensor, Tensor], Tensor]

# Of the relative norm of a difference: a few roundings of the type. Columns of a half type are rounded once.
_TOLERANCE = {torch.float64: 1e-13, torch.float32: 2e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}
# Sizes that fill no tile, strides, groups, even and wide windows, few channels and many.
_SMALL = Workload((2, 4, 9, 11), 3, groups=2)
_WORKLOADS = [
    Workload((2, 8, 19, 33), 3),
    Workload((1, 6, 17, 12), 5, padding=4, dilation=2, groups=3),
    Workload((2, 3, 21, 16), 4, stride=2, padding=3),
    Workload((1, 1, 40, 70), 7, padding=3),
    Workload((1, 64, 24, 40), 3, padding=6, dilation=6),
]


class Convolution(NamedTuple):
    """One of kernel size 3, which keeps the size."""

    shape: tuple[int, int, int, int]
    outputs: int
    groups: int = 1  # of the weight
    map_groups: int = 1
    heads: int | None = None  # of the mask; None for no mask


# Those that CUDA has kernels for, and those that a CPU has: for groups of few channels.
_CONVOLUTIONS = [
    Convolution((2, 5, 9, 11), 6),
    Convolution((1, 64, 24, 40), 32, map_groups=2, heads=4),
    Convolution((2, 32, 19, 33), 32, groups=2, heads=1),
    Convolution((2, 8, 19, 33), 8, groups=4, map_groups=2, heads=2),
    Convolution((1, 16, 9, 11), 16, groups=16, heads=16),
]
# Where a device multiplies numbers of the input's half type, or TF32 for float32, what it multiplies is rounded too.
_TOLERANCE_OF_PRODUCTS = {torch.float64: 1e-13, torch.float32: 2e-3, torch.float16: 2e-3, torch.bfloat16: 1.2e-2}


class WrongResult(Exception):
    """Its text says what was found and what is right."""


def checks(device: torch.device, compile: bool) -> dict[str, Check]:
    found: dict[str, Check] = {"a map of ones gives F.unfold's result, bit for bit": ones_are_unfold}
    for dtype in _TOLERANCE:
        name = str(dtype).removeprefix("torch.")
        found[f"{name}: columns and both gradients are the reference's"] = partial(as_reference, dtype=dtype)
        found[f"conv2d in {name}: the output and all gradients are the reference's"] = partial(convolution, dtype=dtype)
    found |= {
        "rates from -3 to 40": any_rates,
        "a rate that is NaN makes its own taps NaN, and no others": nan_stays_where_it_is,
        "a channels_last input gives the same": channels_last,
        "second derivatives": second_derivatives,
        "torch.func: jvp and vmap": transforms,
        "autocast gives columns of its type": autocast,
        "deterministic gradients are the same, bit for bit, every time": deterministic,
    }
    if device.type == "cpu":
        found["one thread and several give the same, bit for bit"] = threads
    if device.type == "cuda":
        found["a captured graph gives the same, for other values too"] = graph
    if compile:
        found["torch.compile gives the same, and the same gradients"] = compiled
    return found


# --- Tools of the checks ---------------------------------------------------------------------------------------------


def require(holds: bool, otherwise: str) -> None:
    if not holds:
        raise WrongResult(otherwise)


def close(name: str, actual: Tensor, expected: Tensor, tolerance: float) -> None:
    require(actual.shape == expected.shape, f"{name}: shape {list(actual.shape)}, {list(expected.shape)} is right")
    actual, expected = actual.detach().double(), expected.detach().double()
    difference = float((actual - expected).norm() / expected.norm().clamp_min(1e-30))
    require(difference <= tolerance, f"{name}: relative difference {difference:.1e}, at most {tolerance:.0e} is right")


def same_bits(name: str, actual: Tensor, expected: Tensor) -> None:
    require(torch.equal(actual, expected), f"{name}: not the same bits")


def unfold_of(workload: Workload) -> Operator:
    return lambda input, rates: dynamic_dilation_unfold(input, workload.kernel, rates, *workload.options)


def reference_of(workload: Workload) -> Operator:
    return lambda input, rates: dynamic_dilation_unfold_reference(input, workload.kernel, rates, *workload.options)


def tensors(
    workload: Workload, device: torch.device, low: float = 0.5, high: float = 3.0
) -> tuple[Tensor, Tensor, Tensor]:
    """Input, map and the columns' gradient: float64, with values that float32 has.

    The rates are odd multiples of 1/128, so that no tap that moves lies on a whole position: there derivatives jump.
    """
    generator = torch.Generator().manual_seed(0)
    batch, channels, _, _ = workload.shape
    _, _, height, width = workload.map_shape()
    input = torch.randn(workload.shape, generator=generator)
    grad = torch.randn((batch, channels * workload.kernel**2, height * width), generator=generator)
    uniform = torch.rand(workload.map_shape(), generator=generator) * (high - low) + low
    rates = (uniform * 64).floor() / 64 + 1 / 128
    return input.double().to(device), rates.double().to(device), grad.double().to(device)


def with_gradients(operator: Operator, input: Tensor, rates: Tensor, grad: Tensor) -> dict[str, Tensor]:
    leaves = input.detach().requires_grad_(), rates.detach().requires_grad_()
    columns = operator(*leaves)
    of_input, of_map = torch.autograd.grad(columns, leaves, grad.to(columns.dtype))
    return {"columns": columns.detach(), "input's gradient": of_input, "map's gradient": of_map}


def compare(workload: Workload, device: torch.device, dtype: torch.dtype, low: float = 0.5, high: float = 3.0) -> None:
    """The kernels of a type with the reference in float64."""
    input, rates, grad = tensors(workload, device, low, high)
    input, grad = input.to(dtype), grad.to(dtype)
    map_dtype = dtype if dtype == torch.float64 else torch.float32
    actual = with_gradients(unfold_of(workload), input, rates.to(map_dtype), grad)
    expected = with_gradients(reference_of(workload), input.double(), rates, grad.double())
    for name, value in actual.items():
        close(f"{workload}: {name}", value, expected[name], _TOLERANCE[dtype])


# --- The checks ------------------------------------------------------------------------------------------------------


def ones_are_unfold(device: torch.device) -> None:
    for workload in _WORKLOADS:
        stride, padding, dilation, _ = workload.options
        for dtype in (torch.float32, torch.float64):
            input, rates, _ = (tensor.to(dtype) for tensor in tensors(workload, device))
            expected = F.unfold(input, workload.kernel, dilation, padding, stride)
            same_bits(f"{workload}, {dtype}", unfold_of(workload)(input, torch.ones_like(rates)), expected)


def as_reference(device: torch.device, dtype: torch.dtype) -> None:
    for workload in _WORKLOADS:
        compare(workload, device, dtype)


def convolution(device: torch.device, dtype: torch.dtype) -> None:
    tolerance = (_TOLERANCE if device.type == "cpu" else _TOLERANCE_OF_PRODUCTS)[dtype]
    options = CONV2D.read((1, 1, 1, "zeros"))
    map_dtype = dtype if dtype == torch.float64 else torch.float32
    for sizes in _CONVOLUTIONS:
        input, rates, _ = tensors(Workload(sizes.shape, 3, groups=sizes.map_groups), device)
        batch, channels, height, width = sizes.shape
        generator = torch.Generator().manual_seed(1)

        def new(*shape: int, generator: torch.Generator = generator) -> Tensor:
            return torch.randn(shape, generator=generator).double().to(device)

        weight, bias = new(sizes.outputs, channels // sizes.groups, 3, 3), new(sizes.outputs)
        mask = None if sizes.heads is None else new(batch, sizes.heads, 9, height, width)
        named = {"input": input, "weight": weight, "map": rates, "bias": bias, "mask": mask}
        given: Any = [
            t if t is None else t.to(map_dtype if name == "map" else dtype).requires_grad_()
            for name, t in named.items()
        ]
        exact: Any = [t if t is None else t.detach().double().requires_grad_() for t in given]
        output = dynamic_dilation_conv2d(given[0], given[1], given[2], given[3], 1, 1, 1, given[4])
        expected = CONV2D.reference(tuple(exact), options)
        close(f"{sizes}: output", output, expected, tolerance)
        grad = new(*expected.shape).to(dtype)
        grads = torch.autograd.grad(output, [t for t in given if t is not None], grad)
        right = torch.autograd.grad(expected, [t for t in exact if t is not None], grad.double())
        for name, actual, wanted in zip([n for n, t in named.items() if t is not None], grads, right, strict=True):
            close(f"{sizes}: {name}'s gradient", actual, wanted, tolerance)


def any_rates(device: torch.device) -> None:
    for workload in _WORKLOADS:
        for low, high in ((-3.0, 0.0), (0.5, 16.0), (0.5, 40.0)):
            compare(workload, device, torch.float32, low, high)


def nan_stays_where_it_is(device: torch.device) -> None:
    input, rates, _ = tensors(_SMALL, device)
    expected = unfold_of(_SMALL)(input, rates)
    rates[1, 0, 4, 5] = torch.nan
    columns = unfold_of(_SMALL)(input, rates)
    wrong = columns.isnan()
    step = columns.shape[1] // _SMALL.groups
    position = 4 * rates.shape[3] + 5
    require(bool(wrong[1, :step, position].all()) and int(wrong.sum()) == step, "NaN is elsewhere")
    same_bits("the others", columns[~wrong], expected[~wrong])


def channels_last(device: torch.device) -> None:
    for workload in _WORKLOADS:
        input, rates, grad = (tensor.float() for tensor in tensors(workload, device))
        other = input.contiguous(memory_format=torch.channels_last)
        expected = with_gradients(unfold_of(workload), input, rates, grad)
        for name, value in with_gradients(unfold_of(workload), other, rates, grad).items():
            close(f"{workload}: {name}", value, expected[name], _TOLERANCE[torch.float32])


def second_derivatives(device: torch.device) -> None:
    """Of a sum of squares, whose gradient's gradient is not zero."""
    input, rates, _ = tensors(_SMALL, device)
    results = []
    for operator in (unfold_of(_SMALL), reference_of(_SMALL)):
        leaves = input.detach().requires_grad_(), rates.detach().requires_grad_()
        first = torch.autograd.grad(operator(*leaves).square().sum(), leaves, create_graph=True)
        results.append(torch.autograd.grad(first[0].square().sum() + first[1].square().sum(), leaves))
    for name, actual, expected in zip(("input", "map"), *results, strict=True):
        close(f"second derivative by {name}", actual, expected, 1e-12)


def transforms(device: torch.device) -> None:
    input, rates, _ = tensors(_SMALL, device)
    tangents = input.cos(), rates.cos()
    actual = torch.func.jvp(unfold_of(_SMALL), (input, rates), tangents)
    expected = torch.func.jvp(reference_of(_SMALL), (input, rates), tangents)
    close("jvp: columns", actual[0], expected[0], 1e-12)
    close("jvp: tangent", actual[1], expected[1], 1e-12)
    inputs, maps = torch.stack([input, input.sin()]), torch.stack([rates, rates + 1])
    looped = torch.stack([unfold_of(_SMALL)(*pair) for pair in zip(inputs, maps, strict=True)])
    close("vmap", torch.vmap(unfold_of(_SMALL))(inputs, maps), looped, 1e-12)


def autocast(device: torch.device) -> None:
    input, rates, _ = (tensor.float() for tensor in tensors(_SMALL, device))
    with torch.autocast(device.type, dtype=torch.bfloat16):
        columns = unfold_of(_SMALL)(input, rates)
    require(columns.dtype == torch.bfloat16, f"columns are {columns.dtype}, torch.bfloat16 is right")
    close("columns", columns, unfold_of(_SMALL)(input, rates), 2 * _TOLERANCE[torch.bfloat16])


def deterministic(device: torch.device) -> None:
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        for workload in _WORKLOADS:
            input, rates, grad = (tensor.float() for tensor in tensors(workload, device, 0.5, 16.0))
            first, *others = (with_gradients(unfold_of(workload), input, rates, grad) for _ in range(5))
            for name, value in first.items():
                for other in others:
                    same_bits(f"{workload}: {name}", other[name], value)
    finally:
        torch.use_deterministic_algorithms(before)


def threads(device: torch.device) -> None:
    before = torch.get_num_threads()
    try:
        for workload in _WORKLOADS:
            arguments = [tensor.float() for tensor in tensors(workload, device)]
            found = []
            for count in (1, 4):
                torch.set_num_threads(count)
                found.append(with_gradients(unfold_of(workload), *arguments))
            for name, value in found[0].items():
                same_bits(f"{workload}: {name}", found[1][name], value)
    finally:
        torch.set_num_threads(before)


def graph(device: torch.device) -> None:
    workload = _WORKLOADS[0]
    input, rates, _ = (tensor.float() for tensor in tensors(workload, device))
    operator = unfold_of(workload)
    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):
        operator(input, rates)
    torch.cuda.current_stream(device).wait_stream(stream)
    captured = torch.cuda.CUDAGraph()
    with torch.cuda.graph(captured):
        columns = operator(input, rates)
    for _ in range(2):
        captured.replay()
        same_bits("columns", columns, operator(input, rates))
        input.mul_(-2)
        rates.mul_(5)


def compiled(device: torch.device) -> None:
    workload = _WORKLOADS[0]
    input, rates, grad = (tensor.float() for tensor in tensors(workload, device))

    def model(input: Tensor, rates: Tensor) -> Tensor:
        return unfold_of(workload)(input, rates).sin()

    expected = with_gradients(model, input, rates, grad)
    for name, value in with_gradients(torch.compile(model, fullgraph=True), input, rates, grad).items():
        close(name, value, expected[name], 1e-5)
