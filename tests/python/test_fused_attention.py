"""Attention by one kernel on CUDA, against the composition that every other call is."""

import copy

import pytest
import torch
from dynamic_dilation_unfold import _C, _attention, functional
from helpers import HALVES, relative_error
from test_attention import example
from torch.utils._pytree import tree_map

pytestmark = pytest.mark.cuda

FLOAT = torch.float32
TOLERANCE = {torch.float32: 2e-6, torch.float16: 4e-3, torch.bfloat16: 3e-2}


@pytest.fixture
def calls(monkeypatch):
    """Counts calls of the kernels that served."""
    counts = {"attention_forward": 0, "attention_backward": 0}

    def counted(name):
        kernel = getattr(_C, name)

        def call(*arguments):
            found = kernel(*arguments)
            counts[name] += found is not None
            return found

        return call

    for name in counts:
        monkeypatch.setattr(_C, name, counted(name))
    return counts


def tensors(dtype=FLOAT, channels_last=False, channels=8):
    query, key, value, rates, bias = example("cuda")
    each = torch.arange(channels, device="cuda").view(-1, 1, 1)
    images = [(t.repeat_interleave(channels // 8, 1) + each).cos().to(dtype) for t in (query, key, value)]
    if channels_last:
        images = [t.contiguous(memory_format=torch.channels_last) for t in images]
    return [*images, rates.float(), bias.float()]


def attend(query, key, value, rates, bias=None, **options):
    return functional.attention(query, key, value, rates, 3, padding=1, heads=4, bias=bias, **options)


def with_gradients(given, function=attend, **options):
    leaves = [t.detach().requires_grad_() for t in given]
    output = function(*leaves, **options)
    return [output.detach(), *torch.autograd.grad(output.float().sin().sum(), leaves)]


def composed(given, function=attend, **options):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_attention, "fused", lambda *_: None)
        return with_gradients(given, function, **options)


def assert_close(actual, expected, tolerance):
    for i, (a, b) in enumerate(zip(actual, expected, strict=True)):
        assert (a.shape, a.dtype, a.stride()) == (b.shape, b.dtype, b.stride()), i
        assert b.any(), i
        assert relative_error(a, b) <= tolerance, i


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("dtype", [FLOAT, *HALVES], ids=str)
def test_values(dtype, channels_last, calls):
    """With and without a bias, of a head or of every score; and beside the exact one no worse than the composition."""
    given = tensors(dtype, channels_last, 32)
    own = given[4].expand(2, -1, -1, 5, 6).cos()
    for case, options in (
        (given, {}),
        (given[:4], {"scale": 1, "padding_mode": "border"}),
        ([*given[:4], own], {}),
        ([*given[:4], own[0, :, :, :1]], {}),
        ([*given[:3], given[3][:1, :1, :, :1], given[4]], {}),
    ):
        calls.update(attention_forward=0, attention_backward=0)
        actual = with_gradients(case, **options)
        assert calls == {"attention_forward": 1, "attention_backward": 1}
        expected = composed([t.double() for t in case], **options)
        assert_close(actual, [e.to(a.dtype) for a, e in zip(actual, expected, strict=True)], TOLERANCE[dtype])
        assert_close(actual, composed(case, **options), 2 * TOLERANCE[dtype])


def test_unbatched(calls):
    given = [t[0] for t in tensors()[:4]] + [tensors()[4]]
    actual = with_gradients(given)
    assert calls == {"attention_forward": 1, "attention_backward": 1}
    assert_close(actual, composed(given), TOLERANCE[FLOAT])


def test_some_gradients(calls):
    given = tensors()
    expected = composed(given)[1:]
    for i in range(len(given)):
        leaves = [t.detach().requires_grad_(i == j) for j, t in enumerate(given)]
        (gradient,) = torch.autograd.grad(attend(*leaves).sin().sum(), leaves[i : i + 1])
        assert relative_error(gradient, expected[i]) <= TOLERANCE[FLOAT]
    assert calls["attention_backward"] == len(given)


def test_edges():
    """Rates, pixels and biases that are not finite; masked taps; scores that overflow a plain exponential."""
    query, key, value, rates, bias = tensors()
    cases = {"rates": [query, key, value, rates.clone(), bias]}
    cases["rates"][3][0, 0, 2, 3:5] = torch.tensor([torch.nan, torch.inf])
    cases["pixels"] = [query, key.clone(), value.clone(), rates, bias]
    cases["pixels"][1][0, 3, 2, 2], cases["pixels"][2][1, 5, 4, 1] = torch.nan, torch.inf
    mask = bias.expand(-1, -1, 5, 6).clone()
    mask[0, 4] = mask[1, :, 2, 2] = -torch.inf  # a tap; all taps of a position
    cases["mask"] = [query, key, value, rates, mask]
    cases["large"] = [1e3 * query, key, value, rates, bias]
    for name, given in cases.items():
        actual, expected = attend(*given), composed(given)[0]
        assert torch.equal(actual.isnan(), expected.isnan()), name
        finite = expected.isfinite()
        assert relative_error(actual[finite], expected[finite]) <= 2e-4, name


def test_what_meets_no_pixel():
    query, (key, value) = torch.randn(1, 8, 9, 9, device="cuda"), torch.randn(2, 1, 8, 3, 3, device="cuda")
    rates = torch.zeros(1, 1, 9, 9, device="cuda")
    leaves = [t.requires_grad_() for t in (query, key, value, rates)]
    output = functional.attention(*leaves, 3, padding=4, heads=2)
    outside = torch.ones(9, 9, dtype=torch.bool, device="cuda")
    outside[3:6, 3:6] = False
    assert (output[..., outside] == 0).all()
    assert relative_error(output[..., 3:6, 3:6], value) <= 1e-6
    grads = torch.autograd.grad(output.square().sum(), leaves)
    assert all(g.isfinite().all() for g in grads)
    assert (grads[0][..., outside] == 0).all()
    assert (grads[3][..., outside] == 0).all()


def test_what_is_composed(calls, deterministic):
    """Deterministic calls; and, of others, float64, wide heads, values of other channels, odd channels_last ones."""
    given = tensors()
    once, again = with_gradients(given), with_gradients(given)
    assert all(torch.equal(a, b) for a, b in zip(once, again, strict=True))
    torch.use_deterministic_algorithms(False)
    attend(*(t.double() for t in given))
    attend(*tensors(channels=320))
    attend(given[0], given[1], torch.cat([given[2]] * 2, 1), *given[3:])
    attend(*tensors(channels=24, channels_last=True))
    assert not any(calls.values())


def test_deterministic_backward_of_a_kernels_forward(calls):
    given = tensors()
    leaves = [t.detach().requires_grad_() for t in given]
    output = attend(*leaves)
    torch.use_deterministic_algorithms(True)
    try:
        grads = torch.autograd.grad(output.sin().sum(), leaves)
    finally:
        torch.use_deterministic_algorithms(False)
    assert calls == {"attention_forward": 1, "attention_backward": 0}
    assert_close([output.detach(), *grads], composed(given), TOLERANCE[FLOAT])


def test_double_backward(calls):
    def twice(given):
        leaves = [t.detach().requires_grad_() for t in given]
        first = torch.autograd.grad(attend(*leaves).sin().sum(), leaves, create_graph=True)
        return list(torch.autograd.grad(sum(g.square().sum() for g in first), leaves))

    given = tensors()
    actual = twice(given)
    assert calls["attention_forward"] == 1
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_attention, "fused", lambda *_: None)
        assert_close(actual, twice(given), 1e-4)


@pytest.mark.parametrize("half", HALVES, ids=str)
def test_autocast(half, calls):
    given = tensors()

    def cast(*leaves):
        with torch.autocast("cuda", half):
            return attend(*leaves)

    actual = with_gradients(given, cast)
    assert calls == {"attention_forward": 1, "attention_backward": 1}
    assert actual[0].dtype == half
    assert [g.dtype for g in actual[1:]] == [t.dtype for t in given]
    assert_close(actual, composed(given, cast), 2 * TOLERANCE[half])


def test_copies_compile_and_graphs(calls):
    """What looks at single operators gets them; a captured graph replays the kernels."""
    given = tensors()
    expected = attend(*given)
    calls.update(attention_forward=0)
    compiled = torch.compile(attend, fullgraph=True, backend="aot_eager")(*given)
    stacked = torch.vmap(lambda *t: attend(*t))(*(t[None] for t in given))[0]
    assert calls["attention_forward"] == 0
    for other in (compiled, stacked):
        assert relative_error(other, expected) <= TOLERANCE[FLOAT]
    fixed = tree_map(copy.deepcopy, given)
    graph = torch.cuda.CUDAGraph()
    torch.cuda.synchronize()
    with torch.cuda.graph(graph):
        output = attend(*fixed)
    fixed[0].copy_(2 * given[0])
    graph.replay()
    assert relative_error(output, attend(2 * given[0], *given[1:])) <= 1e-7


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("kernel_size", [3, 7])
def test_memory_of_a_step(kernel_size, channels_last):
    """Output and three gradients, and of planes two arrays of sums: never scores, at most 8 inputs."""
    size = (2, 64, 96, 96)
    query, key, value = torch.randn(3, *size, device="cuda")
    if channels_last:
        query, key, value = (t.contiguous(memory_format=torch.channels_last) for t in (query, key, value))
    rates = torch.rand(2, 1, 96, 96, device="cuda")
    leaves = [t.requires_grad_() for t in (query, key, value, rates)]
    grad = torch.randn_like(query)

    def step():
        output = functional.attention(*leaves, kernel_size, padding=kernel_size // 2, heads=4)
        return torch.autograd.grad(output, leaves, grad)

    step()
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    step()
    inputs = (torch.cuda.max_memory_allocated() - before) / key.nbytes
    assert 4 <= inputs <= (4.3 if channels_last else 6.3)
