"""Laws that hold for every geometry, on geometries that hypothesis picks."""

import functools

import hypothesis.strategies as st
import oracle
import pytest
import torch
import torch.nn.functional as F
from dynamic_dilation_unfold import dynamic_dilation_unfold, reference
from helpers import (
    HALVES,
    TOLERANCE,
    Case,
    Result,
    assert_close,
    assert_same_bits,
    random_input,
    random_map,
    relative_error,
    run,
)
from hypothesis import given, settings

KINDS = st.sampled_from(["eighths", "far", "huge", "mixed", "zero", "ones"])
SEEDS = st.integers(0, 2**31 - 1)
# Ten times what larger tensors keep: the few corners of a tap may cancel.
CLOSE = {dtype: 10 * tolerance for dtype, tolerance in TOLERANCE.items()}
EXAMPLES = settings.default.max_examples  # of the profile; see conftest.py


@st.composite
def cases(draw, largest=12, channels=4):
    """A call whose window fits."""

    def pair(low, high):
        return draw(st.integers(low, high)), draw(st.integers(low, high))

    kernel, stride, padding, dilation = pair(1, 5), pair(1, 3), pair(0, 4), pair(1, 3)
    least = [max(1, d * (k - 1) + 1 - 2 * p) for k, p, d in zip(kernel, padding, dilation, strict=True)]
    height, width = (n + draw(st.integers(0, largest)) for n in least)
    groups = draw(st.integers(1, 3))
    per_group = draw(st.integers(1, channels))
    batch = draw(st.integers(1, 3))
    return Case(batch, groups * per_group, height, width, kernel, stride, padding, dilation, groups)


def tensors(case, kind, seed, dtype=torch.float32, device="cpu", broadcast=False):
    """Input, map and gradient."""
    made = (
        random_input(case.shape, seed),
        random_map(kind, (1, *case.map_shape[1:]) if broadcast else case.map_shape, seed + 1),
        random_input(case.output_shape, seed + 2),
    )
    return [t.to(device, dtype) for t in made]


def gradient_terms(made, options):
    """The gradients of input and map, had all their terms one sign: those of a small tensor may cancel, and then errors
    count against these."""
    options = dict(options)
    x, rates, grad = (t.cpu().double() for t in made)
    of_input = run(reference, x, rates, grad.abs(), options).grad_input  # weights are not negative
    function = functools.partial(reference, x, options.pop("kernel_size"), **options)
    _, slopes = torch.autograd.functional.jvp(function, rates, torch.ones_like(rates))
    of_map = (grad * slopes).abs().unflatten(-2, (rates.shape[-3], -1)).sum(-2)
    of_map = of_map if rates.dim() == 3 else of_map.unflatten(0, (rates.shape[0], -1)).sum(1)
    return of_input, of_map.reshape(rates.shape)


def assert_near(actual, expected, made, options, tolerance, rounding=0.0):
    """Results of the tensors ``made``, up to ``tolerance`` and to the ``rounding`` of their own type."""
    assert relative_error(actual.output, expected.output) <= tolerance + rounding
    for one, other, terms in zip(actual[1:], expected[1:], gradient_terms(made, options), strict=True):
        one, other = one.cpu().double(), other.cpu().double()
        error = float((one - other).norm())
        assert error <= tolerance * float(terms.norm()) + rounding * float(other.norm())


@settings(max_examples=EXAMPLES // 2)
@given(cases(largest=3, channels=2), KINDS, SEEDS, st.booleans())
def test_reference_is_the_definition(case, kind, seed, broadcast):
    x, rates, grad = tensors(case, kind, seed, torch.float64, broadcast=broadcast)
    expected = Result(oracle.unfold(case, x, rates), *oracle.unfold_backward(case, grad, x, rates))
    assert_close(run(reference, x, rates, grad, case.options), expected, CLOSE[torch.float64])


@settings(max_examples=EXAMPLES * 3)
@given(case=cases(), kind=KINDS, seed=SEEDS, broadcast=st.booleans(), dtype=st.sampled_from(list(CLOSE)))
def test_kernels_are_the_reference(device, case, kind, seed, broadcast, dtype):
    made = tensors(case, kind, seed, dtype, broadcast=broadcast)
    exact = run(reference, *(t.double() for t in made), case.options)
    actual = run(dynamic_dilation_unfold, *(t.to(device) for t in made), case.options)
    assert_near(actual, exact, made, case.options, CLOSE[dtype])


@given(case=cases(), kind=st.sampled_from(["eighths", "far", "zero"]), seed=SEEDS, dtype=st.sampled_from(HALVES))
def test_half_outputs_are_rounded_once(device, case, kind, seed, dtype):
    made = tensors(case, kind, seed, dtype)
    exact = run(reference, *(t.double() for t in made), case.options)
    actual = run(dynamic_dilation_unfold, *(t.to(device) for t in made), case.options)
    assert [t.dtype for t in actual] == [dtype] * 3
    assert_near(actual, exact, made, case.options, CLOSE[torch.float32], rounding=torch.finfo(dtype).eps / 2)


@settings(max_examples=EXAMPLES * 2)
@given(case=cases(), seed=SEEDS)
def test_ones_are_unfold(device, case, seed):
    x = random_input(case.shape, seed).to(device)
    actual = dynamic_dilation_unfold(x, dilation_map=torch.ones(case.map_shape, device=device), **case.options)
    options = case.options
    del options["groups"]
    assert_same_bits(actual, F.unfold(x, **options))


sizes = st.tuples(st.integers(0, 9), st.integers(0, 9))


@settings(max_examples=EXAMPLES * 6)
@given(sizes, *(st.tuples(st.integers(low, 4), st.integers(low, 4)) for low in (0, 0, -1, 0)))
def test_same_shapes_and_complaints_as_unfold(size, kernel_size, stride, padding, dilation):
    """What F.unfold takes is taken, and what it refuses is a ValueError."""
    x = torch.zeros(1, 1, *size)
    try:
        expected = F.unfold(x, kernel_size, dilation, padding, stride)
    except (RuntimeError, ValueError):
        with pytest.raises(ValueError, match=r"must|window"):
            dynamic_dilation_unfold(x, kernel_size, torch.zeros(1, 1, 1, 1), stride, padding, dilation)
        return
    case = Case(1, 1, *size, kernel_size, stride, padding, dilation)
    actual = dynamic_dilation_unfold(x, dilation_map=torch.zeros(case.map_shape), **case.options)
    assert actual.shape == expected.shape


@given(case=cases(), kind=KINDS, seed=SEEDS)
def test_padding_is_a_frame_of_zeros(device, case, kind, seed):
    x, rates, grad = tensors(case, kind, seed, device=device)
    result = run(dynamic_dilation_unfold, x, rates, grad, case.options)
    ph, pw = case.padding
    framed = run(dynamic_dilation_unfold, F.pad(x, (pw, pw, ph, ph)), rates, grad, {**case.options, "padding": 0})
    height, width = case.shape[2:]
    inner = framed.grad_input[..., ph : ph + height, pw : pw + width]
    expected = Result(framed.output, inner, framed.grad_map)
    assert_near(result, expected, (x, rates, grad), case.options, CLOSE[torch.float32])


@given(case=cases(), kind=KINDS, seed=SEEDS)
def test_turning_the_image_turns_the_result(device, case, kind, seed):
    """Transposing the image, its map and the options transposes taps and positions."""
    x, rates, _ = tensors(case, kind, seed, device=device)
    options = {name: value[::-1] if isinstance(value, tuple) else value for name, value in case.options.items()}
    turned = dynamic_dilation_unfold(x.mT, dilation_map=rates.mT, **options)
    (kh, kw), (height, width) = case.kernel_size, case.out_size
    turned = turned.view(case.batch, -1, kw, kh, width, height).transpose(2, 3).transpose(4, 5)
    expected = dynamic_dilation_unfold(x, dilation_map=rates, **case.options)
    assert relative_error(turned.reshape(expected.shape), expected) <= CLOSE[torch.float32]


@given(case=cases(), kind=KINDS, seed=SEEDS, factor=st.floats(-8, 8, width=16, allow_subnormal=False))
def test_linear_in_the_input(device, case, kind, seed, factor):
    x, rates, grad = tensors(case, kind, seed, torch.float64, device)
    other = random_input(case.shape, seed + 3).to(device, torch.float64)

    def unfold(x):
        return dynamic_dilation_unfold(x, dilation_map=rates, **case.options)

    assert relative_error(unfold(x + factor * other), unfold(x) + factor * unfold(other)) <= 1e-13
    back = run(dynamic_dilation_unfold, x, rates, grad, case.options).grad_input
    assert abs(float((unfold(other) * grad).sum() - (other * back).sum())) <= 1e-12 * float(
        grad.norm() * other.norm() + 1
    )


@given(case=cases(), kind=KINDS, seed=SEEDS)
def test_images_and_channels_do_not_see_each_other(device, case, kind, seed):
    x, rates, grad = tensors(case, kind, seed, device=device)
    together = run(dynamic_dilation_unfold, x, rates, grad, case.options)
    b, g, per_group = case.batch - 1, case.groups - 1, case.channels // case.groups
    own = slice(g * per_group, (g + 1) * per_group)
    taps = grad.shape[1] // case.channels
    columns = slice(own.start * taps, own.stop * taps)
    made, options = (x[b, own], rates[b, g : g + 1], grad[b, columns]), {**case.options, "groups": 1}
    alone = run(dynamic_dilation_unfold, *made, options)
    part = Result(together.output[b, columns], together.grad_input[b, own], together.grad_map[b, g : g + 1])
    assert_near(alone, part, made, options, CLOSE[torch.float32])


@given(case=cases(), seed=SEEDS, value=st.sampled_from([torch.nan, torch.inf, -torch.inf]), kind=KINDS)
def test_rates_that_are_not_finite_poison_their_position_only(device, case, seed, value, kind):
    x, rates, grad = tensors(case, kind, seed, device=device)
    bad = torch.rand(rates.shape, generator=torch.Generator().manual_seed(seed)).to(device) < 0.1
    result = run(dynamic_dilation_unfold, x, rates.masked_fill(bad, value), grad, case.options)
    columns = bad.flatten(2).repeat_interleave(grad.shape[1] // case.groups, 1)
    assert torch.equal(result.output.isnan(), columns)
    assert torch.equal(result.grad_map.isnan(), bad)
    without = run(dynamic_dilation_unfold, x, rates, grad.masked_fill(columns, 0), case.options)
    assert relative_error(result.grad_input, without.grad_input) <= CLOSE[torch.float32]
