"""What only CUDA has: streams, graphs, devices, memory, determinism and the sizes that fill a card."""

import itertools
import warnings

import pytest
import torch
from dynamic_dilation_unfold import dynamic_dilation_unfold, reference
from helpers import TOLERANCE, Case, assert_close, assert_same_bits, random_input, random_map, relative_error, run
from operators import OPERATORS, typed

pytestmark = pytest.mark.cuda

TOLERANCE = TOLERANCE | {torch.float16: 5e-4, torch.bfloat16: 4e-3}  # a rounding to the type

CASE = Case(2, 12, 40, 72, padding=1, groups=2)
CASES = [CASE, Case(1, 3, 33, 70, kernel_size=5, padding=2), Case(2, 4, 30, 31, kernel_size=2, stride=2)]


def tensors(case, kind="fractional", dtype=torch.float32, device="cuda"):
    largest = torch.finfo(dtype).max
    rates = random_map(kind, case.map_shape).double().clamp(-largest, largest)
    return [t.to(device, dtype) for t in (random_input(case.shape), rates, random_input(case.output_shape, seed=2))]


def sleep():
    """Keeps the current stream busy for some milliseconds: work on another stream that should wait, then shows."""
    torch.cuda._sleep(20_000_000)


# --- Streams, graphs, devices ----------------------------------------------------------------------------------------


def test_work_goes_to_the_current_stream():
    x, rates, grad = tensors(CASE)
    expected = run(dynamic_dilation_unfold, x, rates, grad, CASE.options)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        sleep()
        late = x.clone()  # there only when the stream gets so far
        actual = run(dynamic_dilation_unfold, late, rates, grad, CASE.options)
    stream.synchronize()
    assert_close(actual, expected, TOLERANCE[torch.float32])


def test_streams_side_by_side():
    made = [tensors(case) for case in CASES]
    expected = [run(dynamic_dilation_unfold, *m, case.options) for m, case in zip(made, CASES, strict=True)]
    streams = [torch.cuda.Stream() for _ in CASES]
    torch.cuda.synchronize()
    results = []
    for _ in range(5):
        for stream, m, case in zip(streams, made, CASES, strict=True):
            with torch.cuda.stream(stream):
                results.append(run(dynamic_dilation_unfold, *m, case.options))
    torch.cuda.synchronize()
    for actual, other in zip(results, itertools.cycle(expected), strict=False):
        assert_close(actual, other, TOLERANCE[torch.float32])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_calls_close_upon_each_other(dtype):
    """The kernels of a call may overlap: none adds to what is not clear yet, and none rounds what is not complete.

    With a map of ones and whole numbers as gradients the sums are exact, in any order.
    """
    case = Case(4, 32, 160, 160, padding=1)
    x, rates = torch.zeros(case.shape, dtype=dtype, device="cuda"), torch.ones(case.map_shape, device="cuda")
    grads = [torch.randint(-8, 9, case.output_shape, device="cuda").to(dtype) for _ in range(3)]
    expected = [torch.nn.functional.fold(grad.float(), case.shape[2:], 3, padding=1).to(dtype) for grad in grads]
    results = [run(dynamic_dilation_unfold, x, rates, grad, case.options)[1] for grad in grads * 10]
    for actual, other in zip(results, itertools.cycle(expected), strict=False):
        assert_same_bits(actual, other)


def test_nothing_waits_for_the_device():
    x, rates, grad = tensors(CASE)
    run(dynamic_dilation_unfold, x, rates, grad, CASE.options)
    torch.cuda.synchronize()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch calls this mode a prototype
            torch.cuda.set_sync_debug_mode("error")
        sleep()
        run(dynamic_dilation_unfold, x, rates, grad, CASE.options)
        assert not torch.cuda.current_stream().query(), "the call returned before its work was done"
    finally:
        torch.cuda.set_sync_debug_mode("default")
    torch.cuda.synchronize()


def captured(step):
    """A graph of the step, and what replays write."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        return graph, step()


def step_of(x, rates, grad, case):
    """A function that computes the output and both gradients of what is in the tensors when it is called."""
    x.requires_grad_()
    rates.requires_grad_()

    def step():
        output = dynamic_dilation_unfold(x, dilation_map=rates, **case.options)
        return output.detach(), *torch.autograd.grad(output, (x, rates), grad)

    return step


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_graph_replays_forward_and_backward(case, dtype):
    x, rates, grad = tensors(case, dtype=dtype)
    step = step_of(x, rates, grad, case)
    graph, results = captured(step)
    with torch.no_grad():
        x.copy_(random_input(case.shape, seed=7))
        rates.copy_(random_map("eighths", case.map_shape, seed=8))
    graph.replay()
    for one, other in zip(results, step(), strict=True):
        assert relative_error(one, other) <= TOLERANCE[dtype]


def maps_after_ones(shape):
    """Maps under which windows leave ever more to other kernels, one that is not all numbers, and ones again."""
    uniform = torch.rand(shape, generator=torch.Generator().manual_seed(3))
    strange = 16 * uniform
    strange[..., ::7, ::5] = torch.nan
    return [random_map("fractional", shape), 16 * uniform, 40 * uniform, strange, torch.ones(shape)]


@pytest.mark.parametrize("ordered", [False, True], ids=["default", "deterministic"])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=["nchw", "nhwc"])
@pytest.mark.parametrize("kernel_size", [3, 7])
def test_graph_of_ones_serves_any_map(kernel_size, memory_format, ordered, request):
    """Of an image that no window holds: a replay has work for kernels that had none when they were captured."""
    if ordered:
        request.getfixturevalue("deterministic")
    case = Case(1, 16, 128, 128, kernel_size, padding=kernel_size // 2)
    x, rates, grad = tensors(case, "ones")
    step = step_of(x.contiguous(memory_format=memory_format), rates, grad, case)
    graph, results = captured(step)
    for values in maps_after_ones(case.map_shape):
        with torch.no_grad():
            rates.copy_(values)
        graph.replay()
        for one, other in zip(results, step(), strict=True):
            if ordered:
                assert_same_bits(one, other)
            assert_same_bits(one.isnan(), other.isnan())
            assert relative_error(one.nan_to_num(nan=0.0), other.nan_to_num(nan=0.0)) <= TOLERANCE[torch.float32]


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("row", OPERATORS, ids=str)
def test_graph_of_every_operator(row, channels_last):
    sample, *_ = row.samples
    leaves = [t if t is None else t.requires_grad_() for t in typed(row, sample, "cuda", torch.float32)]
    image = row.operator.image
    if channels_last:
        leaves[image] = leaves[image].detach().contiguous(memory_format=torch.channels_last).requires_grad_()
    given = [t for t in leaves if t is not None]

    def step():
        output = row.public(*leaves, *sample.options)
        return output.detach(), *torch.autograd.grad(output, given, torch.ones_like(output))

    graph, results = captured(step)
    with torch.no_grad():
        leaves[image].mul_(-2)
    graph.replay()
    for one, other in zip(results, step(), strict=True):
        assert relative_error(one, other) <= TOLERANCE[torch.float32]


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="one CUDA device")
def test_tensors_of_another_device():
    expected = run(dynamic_dilation_unfold, *tensors(CASE), CASE.options)
    assert torch.cuda.current_device() == 0
    actual = run(dynamic_dilation_unfold, *tensors(CASE, device="cuda:1"), CASE.options)
    assert torch.cuda.current_device() == 0
    assert all(t.device.index == 1 for t in actual)
    assert_close(actual, expected, TOLERANCE[torch.float32])
    x, rates, _ = tensors(CASE)
    with pytest.raises(RuntimeError, match=r"one device.*cuda:0.*cuda:1"):
        dynamic_dilation_unfold(x, dilation_map=rates.to("cuda:1"), **CASE.options)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="one CUDA device")
@pytest.mark.parametrize("row", OPERATORS, ids=str)
def test_every_operator_on_another_device(row):
    sample, *_ = row.samples
    results = []
    for device in ("cuda:0", "cuda:1"):
        leaves = [t if t is None else t.requires_grad_() for t in typed(row, sample, device, torch.float32)]
        output = row.public(*leaves, *sample.options)
        output.sum().backward()
        results.append([output.detach(), *(t.grad for t in leaves if t is not None)])
    assert torch.cuda.current_device() == 0
    assert all(t.device.index == 1 for t in results[1])
    for one, other in zip(*results, strict=True):
        assert relative_error(one.cpu(), other.cpu()) <= TOLERANCE[torch.float32]
    mixed = typed(row, sample, "cuda:0", torch.float32)
    moved = [t.to("cuda:1") if a.is_map else t for a, t in zip(row.operator.arguments, mixed, strict=True)]
    with pytest.raises(RuntimeError, match=r"one device.*cuda:0.*cuda:1"):
        row.public(*moved, *sample.options)


# --- Determinism -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["fractional", "zero", "mixed", "huge"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_deterministic_gradients_repeat(case, kind, deterministic):
    made = tensors(case, kind)
    first = run(dynamic_dilation_unfold, *made, case.options)
    for _ in range(100):
        assert_same_bits(run(dynamic_dilation_unfold, *made, case.options), first)


@pytest.mark.parametrize("dtype", list(TOLERANCE), ids=str)
@pytest.mark.parametrize("kind", ["fractional", "far", "mixed"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_deterministic_gradients_are_right(case, kind, dtype, deterministic):
    made = tensors(case, kind, dtype)
    expected = run(reference, *(t.double().cpu() for t in made), case.options)
    assert_close(run(dynamic_dilation_unfold, *made, case.options), expected, TOLERANCE[dtype])


def test_deterministic_gradients_of_any_range(deterministic):
    """Tiles whose gradients have no common scale, or are not finite, are gathered."""
    x, rates, grad = tensors(CASE)
    grad *= torch.logspace(-12, 12, grad.shape[-1], device="cuda")
    expected = run(reference, *(t.double().cpu() for t in (x, rates, grad)), CASE.options)
    actual = run(dynamic_dilation_unfold, x, rates, grad, CASE.options)
    assert_close(actual, expected, TOLERANCE[torch.float32])
    grad[0, 0, 5 * 72 + 20] = torch.inf
    assert int((~run(dynamic_dilation_unfold, x, rates, grad, CASE.options).grad_input.isfinite()).sum()) in (2, 4)


# --- Memory and size -------------------------------------------------------------------------------------------------


def peak(function):
    torch.cuda.empty_cache()  # else a block of the cache may be handed out whole though it is larger
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    kept = function()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before, kept


@pytest.mark.parametrize("dtype", list(TOLERANCE), ids=str)
def test_memory(dtype):
    case = Case(2, 64, 96, 96, padding=1)
    x, rates, grad = (t.requires_grad_() for t in tensors(case, dtype=dtype))
    size = {t: t.numel() * t.element_size() for t in (x, rates, grad)}
    slack = (1 << 20) + (1 << 16)  # the allocator rounds up, and leaves up to a megabyte of a block unused

    used, output = peak(lambda: dynamic_dilation_unfold(x, dilation_map=rates, **case.options))
    copy = size[x]  # of the input, channels last: for tiles whose window does not fit, and for all of float64
    assert used <= size[grad] + copy + slack, "forward: the output, and the scratch memory of wide rates"
    used, _ = peak(lambda: torch.autograd.grad(output, (x, rates), grad.detach()))
    accumulated = max(dtype.itemsize, 4)
    sums = 2 * accumulated * (x.numel() + rates.numel())  # of the tiles with a window, and of those without
    assert used <= size[x] + size[rates] + copy + sums + slack, "backward: the gradients, and scratch memory"


LARGE = [
    pytest.param((1, 256, 1024, 1024), torch.float32, id="float32"),
    pytest.param((1, 260, 1024, 1024), torch.float16, id="float16"),
]


@pytest.mark.parametrize(("shape", "dtype"), LARGE)
def test_outputs_beyond_32_bits(shape, dtype):
    """More than 2^31 elements: what lies far out is as right as what lies near."""
    batch, channels, height, width = shape
    needed = 3 * batch * channels * 9 * height * width * dtype.itemsize
    if torch.cuda.mem_get_info()[0] < needed:
        pytest.skip(f"needs {needed >> 30} GiB of free device memory")
    generator = torch.Generator("cuda").manual_seed(0)
    x = torch.randn(shape, device="cuda", generator=generator).to(dtype).requires_grad_()
    rates = (0.5 + torch.rand(batch, 1, height, width, device="cuda", generator=generator)).to(dtype).requires_grad_()
    output = dynamic_dilation_unfold(x, 3, rates, padding=1)
    assert output.numel() > 2**31
    grad = torch.zeros_like(output)
    planes = [0, channels // 2, channels - 1]
    for plane in planes:
        grad[:, plane * 9 : plane * 9 + 9] = torch.randn(batch, 9, height * width, device="cuda", generator=generator)
    grad_input, grad_map = torch.autograd.grad(output, (x, rates), grad)
    chosen = x.detach()[:, planes].double().requires_grad_()
    exact_rates = rates.detach().double().requires_grad_()
    expected = reference(chosen, 3, exact_rates, padding=1)
    columns = [plane * 9 + tap for plane in planes for tap in range(9)]
    assert relative_error(output[:, columns], expected) <= TOLERANCE[dtype]
    exact = torch.autograd.grad(expected, (chosen, exact_rates), grad[:, columns].double())
    assert relative_error(grad_input[:, planes], exact[0]) <= TOLERANCE[dtype]
    assert relative_error(grad_map, exact[1]) <= TOLERANCE[dtype]


@pytest.mark.parametrize("rate", [7.0, 40.0, 1e4])
def test_one_enormous_rate_is_slower_and_right(rate):
    x, rates, grad = tensors(CASE)
    rates[0, 0, 20, 35] = rate
    expected = run(reference, *(t.double().cpu() for t in (x, rates, grad)), CASE.options)
    assert_close(run(dynamic_dilation_unfold, x, rates, grad, CASE.options), expected, TOLERANCE[torch.float32])
