"""Attention and coverage, against columns that are there; the layers are in test_attention_layers.py."""

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from dynamic_dilation_unfold import (
    _dispatch,
    dynamic_dilation_attention,
    dynamic_dilation_coverage,
    dynamic_dilation_unfold,
    functional,
)
from helpers import HALVES, Case, off_whole_positions, random_input, relative_error
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

CASE = Case(2, 8, 5, 6, padding=1, groups=2)
CASES = [
    CASE,
    Case(1, 12, 7, 6, kernel_size=(3, 5), stride=(2, 1), padding=(1, 2), dilation=(1, 2), groups=4),
    Case(2, 4, 4, 5, kernel_size=2, padding=3),  # some windows are outside
]
SMALL = Case(1, 2, 2, 2, kernel_size=(1, 2), padding=(0, 1))


def example(device: str, case: Case = CASE, heads: int = 4, value_channels: int | None = None) -> list[Tensor]:
    """Query, key, value, map and bias."""
    query = random_input((*case.shape[:2], *case.out_size), 4)
    key = random_input(case.shape, 5)
    value = random_input((case.batch, value_channels or case.channels, *case.shape[2:]), 6)
    bias = random_input((heads, math.prod(case.pairs[0]), 1, 1), 7)
    return [t.double().to(device) for t in (query, key, value, off_whole_positions(case), bias)]


def attend(case: Case, heads: int, **options: Any) -> Any:
    window = [getattr(case, name) for name in ("kernel_size", "stride", "padding", "dilation")]
    return lambda q, k, v, m, bias=None: dynamic_dilation_attention(q, k, v, m, *window, heads, bias, **options)


def with_columns(case: Case, heads: int, scale: float | None = None) -> Any:
    """SPEC's formula, on columns, without any subtraction."""

    def attention(query: Tensor, key: Tensor, value: Tensor, rates: Tensor, bias: Tensor | None = None) -> Tensor:
        batch, channels = query.shape[:2]
        taps, positions = math.prod(case.pairs[0]), query[0, 0].numel()

        def columns(image: Tensor) -> Tensor:
            unfolded = dynamic_dilation_unfold(image, dilation_map=rates, **case.options)
            return unfolded.view(batch, heads, -1, taps, positions)

        of_query = query.reshape(batch, heads, -1, positions)
        scores = torch.einsum("bhcl,bhctl->bhtl", of_query, columns(key))
        scores = scores * (scale or (channels / heads) ** -0.5)
        if bias is not None:
            scores = scores + bias.flatten(-2)
        inside = columns(torch.ones_like(key[:, :heads]))[:, :, 0]
        total = (scores.exp() * inside).sum(2, keepdim=True)
        weights = torch.where(total > 0, scores.exp() / torch.where(total > 0, total, 1), 0)
        return torch.einsum("bhtl,bhctl->bhcl", weights, columns(value)).reshape(batch, -1, *query.shape[2:])

    return attention


def assert_close(actual: Any, expected: Any, tolerance: float = 1e-12) -> None:
    for a, b in zip(*map(torch.utils._pytree.tree_leaves, (actual, expected)), strict=True):
        assert relative_error(a, b) <= tolerance
        assert b.detach().any()


def gradients(function: Any, tensors: list[Tensor]) -> list[Tensor]:
    leaves = [t.detach().requires_grad_() for t in tensors]
    output = function(*leaves)
    return [output.detach(), *torch.autograd.grad(output.sin().sum(), leaves)]


# --- Values -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("scale", [None, 0.3])
def test_against_columns(case, scale, device):
    heads = 4
    tensors = example(device, case, heads, 2 * case.channels)
    assert_close(
        gradients(attend(case, heads, scale=scale), tensors), gradients(with_columns(case, heads, scale), tensors)
    )


def test_unbatched_and_one_map(device):
    query, key, value, rates, bias = example(device)
    function, expected = attend(CASE, 4), with_columns(CASE, 4)(query, key, value, rates, bias)
    assert_close(function(query[0], key[0], value[0], rates[0], bias), expected[0])
    one = rates[:1, :, :1, :1]
    everywhere = one.expand_as(rates).contiguous()
    assert_close(function(query, key, value, one, bias), with_columns(CASE, 4)(query, key, value, everywhere, bias))


def test_border(device):
    """Where taps read the edge all of them count: the softmax is an ordinary one."""
    query, key, value, rates, _ = example(device, CASE, 1)
    rates = rates[:, :1]
    weights = functional.correlate(query, key, rates, 3, padding=1, padding_mode="border") / 8**0.5
    expected = functional.aggregate(value, weights.softmax(2), rates, 3, padding=1, padding_mode="border")
    assert_close(attend(CASE, 1, padding_mode="border")(query, key, value, rates), expected)
    ones = attend(CASE, 1, padding_mode="border")(query, key, torch.ones_like(value), rates)
    assert_close(ones, torch.ones_like(ones))


@settings(max_examples=20)
@given(seed=st.integers(0, 1000), far=st.floats(-3, 30, allow_subnormal=False), factor=st.sampled_from([1.0, 1e3]))
def test_ones_give_ones(device, seed, far, factor):
    """Whatever the scores are, wherever any tap meets the image."""
    generator = torch.Generator().manual_seed(seed)
    query, key = factor * torch.randn(2, 1, 4, 5, 6, generator=generator, dtype=torch.double).to(device)
    rates = (torch.rand(1, 2, 5, 6, generator=generator, dtype=torch.double) * far).to(device).requires_grad_()
    output = dynamic_dilation_attention(query, key, torch.ones_like(key), rates, 3, padding=1, heads=2)
    torch.testing.assert_close(output, torch.ones_like(output), atol=1e-9, rtol=0)
    output.sum().backward()
    assert rates.grad.isfinite().all()


def test_where_nothing_meets_the_image(device):
    """0, with gradients that are 0 and finite, also where some taps outside would have the largest scores."""
    x = torch.randn(1, 2, 3, 3, dtype=torch.double, device=device)
    rates = torch.zeros(1, 1, 9, 9, dtype=torch.double, device=device)  # all taps on the centre; padding 4, kernel 3
    query = torch.randn(1, 2, 9, 9, dtype=torch.double, device=device)
    bias = torch.full((1, 9, 1, 1), 800.0, dtype=torch.double, device=device)
    leaves = [t.requires_grad_() for t in (query, x, x.clone(), rates, bias)]
    output = dynamic_dilation_attention(*leaves[:4], 3, padding=4, bias=bias)
    outside = torch.ones(9, 9, dtype=torch.bool, device=device)
    outside[3:6, 3:6] = False
    assert (output[..., outside] == 0).all()
    assert_close(output[..., 3:6, 3:6], leaves[2])
    grads = torch.autograd.grad(output.square().sum(), leaves)
    assert all(g.isfinite().all() for g in grads)
    assert (grads[0][..., outside] == 0).all()
    assert (grads[3][..., outside] == 0).all()


def test_scores_outside_do_not_count(device):
    """Taps outside have score 0. The largest score of those inside is subtracted, far below it as they are."""
    x = torch.full((1, 1, 3, 3), -1000.0, device=device)
    output = dynamic_dilation_attention(-x, x, x, torch.ones(1, 1, 3, 3, device=device), 3, padding=1)
    torch.testing.assert_close(output, x)


@pytest.mark.parametrize("half", HALVES, ids=str)
def test_half(half, device):
    query, key, value, rates, bias = example(device)
    halves = [t.to(half) for t in (query, key, value)]
    output = attend(CASE, 4)(*halves, rates.float(), bias.to(half))
    assert output.dtype == half
    exact = with_columns(CASE, 4)(*(t.double() for t in halves), rates, bias.to(half).double())
    assert relative_error(output, exact) <= 8 * torch.finfo(half).eps
    with torch.autocast(device, half):
        cast = attend(CASE, 4)(query.float(), key.float(), value.float(), rates.float(), bias.float())
    assert cast.dtype == half
    assert relative_error(cast, exact) <= 8 * torch.finfo(half).eps


def test_half_values_of_a_window_that_barely_meets_the_image(device):
    """Its weights would not be float16 numbers."""
    rates = torch.full((1, 1, 1, 1), 1 - 2.0**-18, device=device)
    x = torch.full((1, 1, 1, 1), 3.0, device=device, dtype=torch.float16, requires_grad=True)
    query = torch.ones(1, 1, 1, 1, device=device, dtype=torch.float16)
    output = dynamic_dilation_attention(query, x, x, rates, 2, padding=(1, 1), stride=2, dilation=2)
    output.sum().backward()
    assert output.isfinite().all()
    assert x.grad.isfinite().all()


def test_channels_last(device):
    query, key, value, rates, bias = example(device)
    lying = [t.contiguous(memory_format=torch.channels_last) for t in (query, key, value)]
    output = attend(CASE, 4)(*lying, rates, bias)
    assert output.is_contiguous(memory_format=torch.channels_last)
    assert_close(output, attend(CASE, 4)(query, key, value, rates, bias))


# --- As torch sees it -------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:`torch.jit.script`:DeprecationWarning")
def test_finite_differences(device):
    tensors = [t.requires_grad_() for t in example(device, SMALL, 1)]
    assert torch.autograd.gradcheck(attend(SMALL, 1), tensors, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(attend(SMALL, 1), tensors)


@pytest.mark.filterwarnings("ignore:`torch.jit.script`:DeprecationWarning")
def test_transforms(device):
    tensors, exact = example(device), with_columns(CASE, 4)
    tangents = [t.cos() for t in tensors]
    function = attend(CASE, 4)
    assert_close(*(torch.func.jvp(f, tuple(tensors), tuple(tangents))[1] for f in (function, exact)))
    stacks = [torch.stack([t, t + 0.01]) for t in tensors]
    each = torch.stack([exact(*slices) for slices in zip(*stacks, strict=True)])
    assert_close(torch.vmap(function)(*stacks), each)
    assert torch.equal(torch.func.functionalize(function)(*tensors), function(*tensors))


class Attention(nn.Module):
    def forward(self, query: Tensor, key: Tensor, value: Tensor, rates: Tensor) -> Tensor:
        return dynamic_dilation_attention(query, key, value, rates, 3, padding=1, heads=4)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_compile_and_export(device):
    tensors = [t.float() for t in example(device)[:4]]
    module = Attention()
    expected = gradients(module, tensors)
    torch._dynamo.reset()
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager", dynamic=True)
    assert_close(gradients(compiled, tensors), expected, 1e-6)
    program = torch.export.export(module, tuple(tensors))
    called = [n.target._opname for n in program.graph.nodes if getattr(n.target, "namespace", "") == _dispatch.NAME]
    assert sorted(called) == ["aggregate", "correlate", "unfold"]
    assert_close(program.module()(*tensors), expected[0], 1e-6)


def test_fx_keeps_the_calls():
    class Both(nn.Module):
        def forward(self, query: Tensor, key: Tensor, rates: Tensor) -> tuple[Tensor, Tensor]:
            return (
                dynamic_dilation_attention(query, key, key, rates, 3, padding=1, heads=4),
                dynamic_dilation_coverage(rates, (5, 6), 3, padding=1),
            )

    traced = torch.fx.symbolic_trace(Both())
    calls = [n.target for n in traced.graph.nodes if n.op == "call_function"]
    assert calls == [dynamic_dilation_attention, dynamic_dilation_coverage]
    query, key, _, rates, _ = example("cpu")
    for one, other in zip(traced(query, key, rates), Both()(query, key, rates), strict=True):
        assert torch.equal(one, other)


def test_learnt_scale(device):
    query, key, value, rates, _ = example(device)
    scale = torch.tensor(0.3, dtype=torch.double, device=device, requires_grad=True)
    output = attend(CASE, 4, scale=scale)(query, key, value, rates)
    assert_close(output, attend(CASE, 4, scale=0.3)(query, key, value, rates))
    output.square().sum().backward()
    assert scale.grad


def test_errors(device):
    query, key, value, rates, bias = example(device)
    good = {
        "query": query,
        "key": key,
        "value": value,
        "dilation_map": rates,
        "kernel_size": 3,
        "padding": 1,
        "heads": 4,
    }
    for wrong, error, message in [
        ({"heads": 3}, ValueError, "heads must be positive and divide"),
        ({"heads": 1}, ValueError, "1 or divide the heads, got 2 groups for 1 heads"),
        ({"value": value[:, :, 1:]}, ValueError, r"value must have shape \[2, channels, 5, 6\]"),
        ({"value": value[0]}, ValueError, "must all have 4 dimensions"),
        ({"value": value.float()}, TypeError, "query and value must have one dtype"),
        ({"key": key.float()}, TypeError, "query and key must have one dtype"),
        ({"query": query[:, :, 1:]}, ValueError, "query must have shape"),
        ({"query": [1.0]}, TypeError, "query must be a torch.Tensor, got list"),
        ({"bias": [0.0]}, TypeError, "bias must be None or a torch.Tensor of a floating dtype, got list"),
        ({"bias": bias.long()}, TypeError, "bias must be None or a torch.Tensor of a floating dtype, got torch.int64"),
        ({"bias": bias.to("meta")}, RuntimeError, "query and bias must be on one device"),
        ({"value": value.to("meta")}, RuntimeError, "query and value must be on one device"),
        ({"key": key.to("meta")}, RuntimeError, "query and key must be on one device"),
        (
            {"dilation_map": rates.half()},
            TypeError,
            "dilation_map must have query's dtype torch.float64, got torch.float16",
        ),
        (
            {"dilation_map": rates[:, :, 1:]},
            ValueError,
            r"dilation_map must have shape \[2, 2, 5, 6\].*got \[2, 2, 4, 6\]",
        ),
        ({"dilation_map": rates[:, :0]}, ValueError, "must be 1 or divide the heads, got 0 groups"),
        ({"key": key[:, 1:]}, ValueError, r"same batch and channels, got query \[2, 8, 5, 6\] and key \[2, 7, 5, 6\]"),
        ({"query": query[:1]}, ValueError, r"same batch and channels, got query \[1, 8, 5, 6\]"),
        ({"value": value[:1]}, ValueError, r"value must have shape \[2, channels, 5, 6\].*got \[1, 8, 5, 6\]"),
        ({"value": value[:, 1:]}, ValueError, r"divide the channels of query .* and value \[2, 7, 5, 6\], got 4"),
        ({"heads": 0}, ValueError, "heads must be positive"),
        ({"heads": 2.5}, TypeError, "heads must be an int"),
        ({"scale": "1"}, TypeError, "scale must be None or a number, got str"),
        ({"stride": 0}, ValueError, "stride"),
        ({"bias": bias[:3]}, ValueError, r"bias must broadcast to the scores' shape \[2, 4, 9, 5, 6\]"),
        ({"kernel_size": 5}, ValueError, "dilation_map must have shape"),
        ({"padding_mode": "reflect"}, ValueError, "padding_mode"),
    ]:
        with pytest.raises(error, match=message):
            dynamic_dilation_attention(**{**good, **wrong})


# --- Coverage ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES, ids=str)
def test_coverage(case, device):
    rates = off_whole_positions(case).to(device)
    options = {name: value for name, value in case.options.items() if name != "groups"}
    coverage = dynamic_dilation_coverage(rates, case.shape[2:], **options)
    assert coverage.shape == (case.batch, case.groups, math.prod(case.pairs[0]), *case.out_size)
    ones = torch.ones(case.batch, case.groups, *case.shape[2:], device=device, dtype=torch.double)
    columns = dynamic_dilation_unfold(ones, dilation_map=rates, **case.options)
    assert torch.equal(coverage.flatten(), columns.flatten())
    assert coverage.min() >= 0
    assert coverage.max() <= 1 + 1e-15
    assert torch.equal(dynamic_dilation_coverage(rates[0], case.shape[2:], **options), coverage[0])


def test_coverage_of_one_rate(device):
    rates = torch.full((1, 1, 1, 1), 2.0, device=device, requires_grad=True)
    coverage = dynamic_dilation_coverage(rates, 4, 3, padding=1)
    expected = F.unfold(torch.ones(1, 1, 4, 4, device=device), 3, dilation=2, padding=2).view(1, 1, 9, 4, 4)
    assert torch.equal(coverage, expected)
    coverage.sum().backward()
    assert rates.grad.shape == rates.shape
    with pytest.raises(ValueError, match="dilation_map must have shape"):
        dynamic_dilation_coverage(torch.ones(3, 3), 4, 3)
    with pytest.raises(TypeError, match="input_size must be an int or a pair"):
        dynamic_dilation_coverage(rates, (4, 4, 4), 3)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.filterwarnings("ignore:`torch.jit.script`:DeprecationWarning")
def test_coverage_as_torch_sees_it(device):
    """Transforms, a compiler, an exporter; and autocast, which leaves it the map's dtype."""
    rates = off_whole_positions(CASE).to(device)
    cover = lambda rates: dynamic_dilation_coverage(rates, (5, 6), 3, padding=1)  # noqa: E731
    assert torch.autograd.gradcheck(cover, rates[:1, :1].requires_grad_(), check_forward_ad=True)
    stack = torch.stack([rates.detach(), rates.detach() / 2])
    assert_close(torch.vmap(cover)(stack), torch.stack([cover(each) for each in stack]))
    given = rates.detach().float()
    torch._dynamo.reset()
    compiled = torch.compile(cover, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(given), cover(given))

    class Coverage(nn.Module):
        def forward(self, rates: Tensor) -> Tensor:
            return cover(rates)

    assert torch.equal(torch.export.export(Coverage(), (given,)).module()(given), cover(given))
    with torch.autocast(device, torch.bfloat16):
        for function in (cover, compiled):
            assert function(given).dtype == torch.float32
            assert torch.equal(function(given), cover(given))
    assert torch.equal(compiled(given), cover(given))
