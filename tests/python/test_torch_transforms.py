"""Transforms of eager calls: second derivatives, forward mode, torch.func, vmap. Values against the reference's.

What holds for every operator is in test_operators.py; here is what unfold does beyond it.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from dynamic_dilation_unfold import _kernels, dynamic_dilation_unfold, reference
from helpers import Case, off_whole_positions, random_input, relative_error
from torch import Tensor, nn
from torch.autograd import forward_ad

# torch's own derivatives of some operators in forward mode are scripts, which it deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script`:DeprecationWarning")

TORCH = tuple(int(n) for n in torch.__version__.split(".")[:2])
CASE = Case(2, 4, 4, 5, padding=1, groups=2)
SMALL = Case(1, 1, 3, 4, kernel_size=(1, 3), padding=(0, 1))


def ours(input: Tensor, rates: Tensor, case: Case = CASE) -> Tensor:
    return dynamic_dilation_unfold(input, dilation_map=rates, **case.options)


def definition(input: Tensor, rates: Tensor, case: Case = CASE) -> Tensor:
    return reference(input, dilation_map=rates, **case.options)


def registered(input: Tensor, rates: Tensor, case: Case = CASE) -> Tensor:
    return torch.ops.dynamic_dilation_unfold.unfold(input, rates, *case.pairs, case.groups)


FUNCTIONS = pytest.mark.parametrize("function", [ours, registered])


def loss(function: Callable[..., Tensor], case: Case = CASE) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda input, rates: function(input, rates, case).sin().square().sum()


def example(device: str, case: Case = CASE, seed: int = 1) -> tuple[Tensor, Tensor]:
    return random_input(case.shape, seed).double().to(device), off_whole_positions(case, seed).to(device)


def assert_close(actual: Any, expected: Any, tolerance: float = 1e-12) -> None:
    one, other = (torch.utils._pytree.tree_leaves(v) for v in (actual, expected))
    assert len(one) == len(other)
    for a, b in zip(one, other, strict=True):
        assert relative_error(a, b) <= tolerance
        assert float(b.norm()) > 0  # nothing was compared with silent zeros


@pytest.fixture
def launches(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of kernels called, in order."""
    calls: list[str] = []

    def count(name: str, suffix: str, original: Callable[..., Any]) -> None:
        monkeypatch.setattr(
            _kernels, name, lambda operator, *a: calls.append(operator.name + suffix) or original(operator, *a)
        )

    count("forward", "", _kernels.forward)
    count("backward", "_backward", _kernels.backward)
    return calls


# --- Second derivatives -----------------------------------------------------------------------------------------------


@FUNCTIONS
def test_third_derivative(function, device):
    def third(function):
        x, rates = (t.requires_grad_() for t in example(device))
        value = loss(function)(x, rates)
        for _ in range(2):
            grads = torch.autograd.grad(value, (x, rates), create_graph=True)
            value = sum(g.square().sum() for g in grads)
        return torch.autograd.grad(value, (x, rates))

    assert_close(third(function), third(definition))


def test_gradient_penalty_step(device):
    def step(function) -> list[Tensor]:
        torch.manual_seed(0)
        rate, head = nn.Conv2d(4, 2, 3, padding=1), nn.Linear(36, 1)
        rate, head = rate.double().to(device), head.double().to(device)
        parameters = [*rate.parameters(), *head.parameters()]
        optimiser = torch.optim.SGD(parameters, 0.1)
        x = example(device)[0].requires_grad_()
        score = head(function(x, 1 + rate(x).tanh()).transpose(1, 2)).square().mean()
        (slope,) = torch.autograd.grad(score, x, create_graph=True)
        (score + (slope.norm() - 1).square()).backward()
        optimiser.step()
        return [p.detach() for p in parameters]

    assert_close(step(ours), step(definition))


def test_second_derivative_computes_what_is_needed(device, monkeypatch):
    """No gradient with respect to a map that does not require one, in any order of derivative."""
    wanted = []
    original = _kernels.backward
    monkeypatch.setattr(_kernels, "backward", lambda *a: wanted.append(a[-1]) or original(*a))
    x, rates = example(device)
    x.requires_grad_()
    (grad,) = torch.autograd.grad(loss(ours)(x, rates), x, create_graph=True)
    (second,) = torch.autograd.grad(grad.square().sum(), x)
    assert wanted
    assert all(tuple(map(bool, w)) == (True, False) for w in wanted)
    (expected,) = torch.autograd.grad(loss(definition)(x, rates), x, create_graph=True)
    assert_close(second, torch.autograd.grad(expected.square().sum(), x)[0])


# --- Forward mode -----------------------------------------------------------------------------------------------------


@FUNCTIONS
def test_dual_level(function, device):
    primals, tangents = example(device), example(device, seed=7)

    def tangent(function):
        with forward_ad.dual_level():
            duals = (forward_ad.make_dual(p, t) for p, t in zip(primals, tangents, strict=True))
            return forward_ad.unpack_dual(function(*duals)).tangent

    assert_close(tangent(function), tangent(definition))


@pytest.mark.parametrize("order", ["forward over reverse", "reverse over forward", "reverse over reverse"])
@FUNCTIONS
def test_hessian_vector_product(function, order, device):
    primals, tangents = example(device), example(device, seed=7)

    def product(function):
        f = loss(function)
        if order == "forward over reverse":
            return torch.func.jvp(torch.func.grad(f, argnums=(0, 1)), primals, tangents)[1]
        if order == "reverse over forward":
            return torch.func.grad(lambda *p: torch.func.jvp(f, p, tangents)[1], argnums=(0, 1))(*primals)
        return torch.func.vjp(torch.func.grad(f, argnums=(0, 1)), *primals)[1](tangents)

    assert_close(product(function), product(definition))


@pytest.mark.parametrize("transform", [torch.func.jacrev, torch.func.jacfwd])
@FUNCTIONS
def test_jacobian(function, transform, device):
    primals = example(device, SMALL)

    def jacobian(function):
        return transform(lambda x, m: function(x, m, SMALL), argnums=(0, 1))(*primals)

    assert_close(jacobian(function), jacobian(definition))


@FUNCTIONS
def test_hessian(function, device):
    primals = example(device, SMALL)
    for transform in (torch.func.hessian, lambda f: torch.func.jacrev(torch.func.jacrev(f))):
        actual, expected = (transform(lambda m, f=f: loss(f, SMALL)(primals[0], m)) for f in (function, definition))
        assert_close(actual(primals[1]), expected(primals[1]))


def jvp(function: Callable[[Tensor], Tensor], tangent: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda value: torch.func.jvp(function, (value,), (tangent,))[1]


NESTED = {
    "jvp of jvp": lambda f, t: jvp(jvp(lambda v: f(v).sin(), t), t),
    "jvp of jvp of jvp": lambda f, t: jvp(jvp(jvp(lambda v: f(v).sin(), t), t), t),
    "jvp of grad of jvp": lambda f, t: jvp(torch.func.grad(jvp(lambda v: f(v).sin().square().sum(), t)), t),
    "jvp of jvp of grad": lambda f, t: jvp(jvp(torch.func.grad(lambda v: f(v).sin().square().sum()), t), t),
    "grad of jvp of jvp": lambda f, t: torch.func.grad(jvp(jvp(lambda v: f(v).sin().square().sum(), t), t)),
    "jvp of jvp of vmap": lambda f, t: jvp(jvp(lambda v: torch.vmap(f)(torch.stack([v, v.cos()])).sin(), t), t),
    "vmap of jvp of jvp": lambda f, t: lambda v: torch.vmap(jvp(jvp(lambda u: f(u).sin(), t), t))(torch.stack([v, -v])),
}


@pytest.mark.parametrize("moving", [0, 1], ids=["input", "map"])
@pytest.mark.parametrize("name", NESTED)
@FUNCTIONS
def test_nested_forward_mode(function, name, moving, device):
    if function is registered and "vmap" in name and TORCH < (2, 7):
        pytest.skip(f"torch {torch.__version__} asserts in, or lacks, vmap rules of registered operators inside jvp")
    primals, tangents = example(device), example(device, seed=7)

    def derivative(function):
        def partial(value):
            return function(*(value if i == moving else primals[i] for i in (0, 1)))

        return NESTED[name](partial, tangents[moving])(primals[moving])

    assert_close(derivative(function), derivative(definition))


@FUNCTIONS
def test_jacfwd_of_jacfwd(function, device):
    primals = example(device, SMALL)

    def second(function):
        return torch.func.jacfwd(torch.func.jacfwd(loss(function, SMALL), (0, 1)), (0, 1))(*primals)

    assert_close(second(function)[0][1], second(definition)[0][1])
    assert_close(second(function)[1], second(definition)[1])


@pytest.mark.parametrize("recorded", ["by vjp", "by autograd"])
def test_nested_forward_mode_of_a_backward(recorded, device):
    """The transforms are around the backward alone, of a forward that was recorded before them."""
    tangent = torch.randn(CASE.output_shape, generator=torch.Generator().manual_seed(3), dtype=torch.double).to(device)

    def derivative(function):
        x, rates = example(device)
        if recorded == "by vjp":
            pull = torch.func.vjp(function, x, rates)[1]
        else:
            leaves = x.requires_grad_(), rates.requires_grad_()
            output = function(*leaves)
            pull = lambda grad: torch.autograd.grad(output, leaves, grad, retain_graph=True)  # noqa: E731
        inner = lambda grad: torch.func.jvp(lambda g: pull(g.sin()), (grad,), (grad.cos(),))[1]  # noqa: E731
        return torch.func.jvp(inner, (tangent.cos(),), (tangent,))[1]

    assert_close(derivative(ours), derivative(definition))


def test_dual_level_and_jvp_do_not_nest(device):
    """Torch has one level of its own for both, and says so."""
    x, rates = example(device)
    with forward_ad.dual_level(), pytest.raises(RuntimeError, match="Nested forward mode AD is not supported"):
        torch.func.jvp(lambda m: ours(x, m), (rates,), (rates,))


# --- vmap -------------------------------------------------------------------------------------------------------------

# Shapes of input and map of one slice.
SLICES = {
    "batched": (CASE.shape, CASE.map_shape),
    "broadcast": (CASE.shape, (1, *CASE.map_shape[1:])),
    "unbatched": (CASE.shape[1:], CASE.map_shape[1:]),
}
DIMS = [(0, 0), (0, None), (None, 0), (1, 2), (-1, 1), (2, None), (None, -1)]


def stacked(shape: tuple[int, ...], dim: int | None, seed: int, device: str) -> Tensor:
    if dim is not None:
        shape = list(shape)
        shape.insert(dim if dim >= 0 else len(shape) + 1 + dim, 3)
    return (torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.double) * 2 + 0.3).to(device)


@pytest.mark.parametrize("dims", DIMS, ids=str)
@pytest.mark.parametrize("slices", SLICES)
@FUNCTIONS
def test_vmap(function, slices, dims, device, launches):
    if function is registered and not hasattr(torch.library, "register_vmap"):
        pytest.skip(f"torch {torch.__version__} has no vmap rules for registered operators")
    arguments = [stacked(s, d, i, device) for i, (s, d) in enumerate(zip(SLICES[slices], dims, strict=True))]
    expected = torch.stack(
        [definition(*(select(t, d, i) for t, d in zip(arguments, dims, strict=True))) for i in range(3)]
    )
    assert_close(torch.vmap(function, in_dims=dims)(*arguments), expected)
    assert launches == ["unfold"]
    assert_close(torch.vmap(function, in_dims=dims, out_dims=1)(*arguments), expected.movedim(0, 1))


def select(tensor: Tensor, dim: int | None, index: int) -> Tensor:
    return tensor if dim is None else tensor.select(dim, index)


@pytest.mark.parametrize("dims", DIMS, ids=str)
@pytest.mark.parametrize("slices", SLICES)
def test_per_sample_gradients(slices, dims, device, launches):
    arguments = [stacked(s, d, i, device) for i, (s, d) in enumerate(zip(SLICES[slices], dims, strict=True))]
    actual = torch.vmap(torch.func.grad(loss(ours), argnums=(0, 1)), in_dims=dims)(*arguments)
    assert launches == ["unfold", "unfold_backward"]
    one_by_one = torch.func.grad(loss(definition), argnums=(0, 1))
    each = [one_by_one(*(select(t, d, i) for t, d in zip(arguments, dims, strict=True))) for i in range(3)]
    assert_close(actual, [torch.stack(grads) for grads in zip(*each, strict=True)])


def test_vmap_of_vmap(device, launches):
    x, rates = stacked((3, *CASE.shape), 0, 0, device), stacked((3, *CASE.map_shape), 0, 1, device)
    actual = torch.vmap(torch.vmap(ours))(x, rates)
    assert launches == ["unfold"]
    expected = torch.stack(
        [torch.stack([definition(a, b) for a, b in zip(*pair, strict=True)]) for pair in zip(x, rates, strict=True)]
    )
    assert_close(actual, expected)


@pytest.mark.parametrize("wanted", [(True, False), (False, True)])
def test_vmap_of_backward_computes_what_is_needed(wanted, device):
    """One gradient of each slice, the other argument fixed and shared."""
    x, rates = (
        stacked(CASE.shape, 0 if wanted[0] else None, 0, device),
        stacked(CASE.map_shape, None if wanted[0] else 0, 1, device),
    )
    argnum, dims = (0, (0, None)) if wanted[0] else (1, (None, 0))
    actual = torch.vmap(torch.func.grad(loss(ours), argnums=argnum), in_dims=dims)(x, rates)
    one_by_one = torch.func.grad(loss(definition), argnums=argnum)
    expected = [one_by_one(select(x, dims[0], i), select(rates, dims[1], i)) for i in range(3)]
    assert_close(actual, torch.stack(expected))


def test_batched_gradients(device):
    """torch.autograd.grad(is_grads_batched=True) is vmap over a backward that was recorded without it."""
    x, rates = (t.requires_grad_() for t in example(device))
    grads = torch.randn(5, *CASE.output_shape, dtype=torch.double, device=device)
    actual = torch.autograd.grad(ours(x, rates), (x, rates), grads, is_grads_batched=True, retain_graph=True)
    each = [torch.autograd.grad(definition(x, rates), (x, rates), g) for g in grads]
    assert_close(actual, [torch.stack(g) for g in zip(*each, strict=True)])


def test_escaped_tensor(device):
    """A tensor that outlives its transform still has its value."""
    kept: list[Tensor] = []
    x, rates = example(device)
    torch.func.grad(lambda x: kept.append(x) or x.sum())(x)
    assert_close(ours(kept[0], rates), definition(x, rates))


@pytest.mark.parametrize("zero", ["input", "map"])
def test_tensors_without_memory(zero, device):
    """The zeros of forward-mode differentiation own no memory."""
    x, rates = example(device)
    if zero == "input":
        x = torch._efficientzerotensor(x.shape, dtype=x.dtype, device=device)
        assert not ours(x, rates).any()
    else:
        zeros = torch._efficientzerotensor(rates.shape, dtype=rates.dtype, device=device)
        assert_close(ours(x, zeros), definition(x, torch.zeros_like(rates)))


def test_negative_views(device):
    """Flags of a view that negate its values are resolved, not ignored."""
    x, rates = example(device)
    x, rates = torch._neg_view(x), torch._neg_view(rates)
    assert x.is_neg()
    assert_close(ours(x, rates), definition(x.clone(), rates.clone()))
