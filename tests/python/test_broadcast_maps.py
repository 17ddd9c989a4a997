"""Maps of one row, one column or one rate: broadcast on every route, with gradients of the map's own shape."""

import contextlib
import re

import pytest
import torch
from dynamic_dilation_unfold import DynamicDilationUnfold, dynamic_dilation_unfold, reference
from helpers import Case, random_input, random_map, relative_error, run
from torch import Tensor

# Compilers warn about themselves: their own deprecated calls, devices they cannot use.
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning:torch"),
]

CASE = Case(2, 4, 6, 7, padding=1, groups=2)
MAPS = [(1, 2, 1, 1), (2, 2, 1, 1), (2, 2, 1, 7), (1, 2, 6, 1), (1, 2, 1, 7), (2, 2, 6, 1), (1, 2, 6, 7)]
UNBATCHED = [(2, 1, 1), (2, 1, 7), (2, 6, 1)]


def example(shape: tuple[int, ...], device: str, dtype=torch.double) -> tuple[Tensor, Tensor]:
    x = random_input(CASE.shape if len(shape) == 4 else CASE.shape[1:])
    return x.to(device, dtype), random_map("fractional", shape).to(device, dtype)


def full(shape: tuple[int, ...]) -> tuple[int, ...]:
    return (*shape[:-2], 6, 7)


def ours(x: Tensor, rates: Tensor) -> Tensor:
    return dynamic_dilation_unfold(x, 3, rates, padding=1, groups=2)


def expanded(x: Tensor, rates: Tensor) -> Tensor:
    return reference(x, 3, rates.expand(full(rates.shape)), padding=1, groups=2)


def loss(function):
    return lambda x, rates: function(x, rates).sin().square().sum()


@pytest.mark.parametrize("shape", [*MAPS, *UNBATCHED], ids=str)
@pytest.mark.parametrize(
    "function", [dynamic_dilation_unfold, reference, DynamicDilationUnfold], ids=lambda f: f.__name__
)
def test_eager(function, shape, device):
    x, rates = example(shape, device)
    grad = torch.ones_like(expanded(x, rates)).cumsum(-1).sin()

    def call(input, dilation_map, **options):
        if function is DynamicDilationUnfold:
            return DynamicDilationUnfold(**options)(input, dilation_map)
        return function(input, dilation_map=dilation_map, **options)

    actual = run(call, x, rates, grad, CASE.options)
    expected = run(lambda input, dilation_map: expanded(input, dilation_map), x, rates, grad, {})
    assert actual.grad_map.shape == shape
    for one, other in zip(actual, expected, strict=True):
        assert relative_error(one, other) <= 1e-13
        assert other.any()


@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16], ids=str)
def test_half_and_autocast(half, device):
    x, rates = example((1, 2, 1, 1), device, torch.float)
    assert torch.equal(ours(x.to(half), rates), ours(x.to(half), rates.expand(1, 2, 6, 7)))
    with torch.autocast(device, half):
        assert torch.equal(ours(x, rates), ours(x.to(half), rates))


ROUTES = {
    "grad": lambda f: torch.func.grad(loss(f), (0, 1)),
    "jvp": lambda f: lambda x, m: torch.func.jvp(f, (x, m), (x.cos(), m.sin()))[1],
    "double backward": lambda f: torch.func.grad(lambda x, m: torch.func.grad(loss(f), 1)(x, m).square().sum(), (0, 1)),
    "vmap": lambda f: torch.func.vmap(lambda x, m: f(x, m), in_dims=(0, None)),
    "per-sample gradients": lambda f: torch.func.vmap(torch.func.grad(loss(f), 1), in_dims=(0, None)),
    "functionalize": lambda f: torch.func.functionalize(torch.func.grad(loss(f), (0, 1))),
    "compile": lambda f: torch.compile(f, fullgraph=True, backend="aot_eager"),
    "dynamic compile": lambda f: torch.compile(f, fullgraph=True, backend="aot_eager", dynamic=True),
}


@pytest.mark.parametrize("shape", [(1, 2, 1, 1), (1, 2, 1, 7)], ids=str)
@pytest.mark.parametrize("route", ROUTES)
def test_routes(route, shape, device):
    x, rates = example(shape, device)
    torch._dynamo.reset()
    if "vmap" in route or "sample" in route:
        x = x[:, None]
    actual, expected = (
        torch.utils._pytree.tree_leaves(ROUTES[route](f)(x, rates))
        for f in (ours, expanded if "compile" not in route else ours)
    )
    if "compile" in route:
        expected = [expanded(x, rates)]
    for one, other in zip(actual, expected, strict=True):
        assert relative_error(one, other) <= 1e-12
        assert other.any()


def test_compiled_gradient(device):
    torch._dynamo.reset()
    grads = []
    for function in (torch.compile(ours, fullgraph=True, backend="aot_eager"), expanded):
        leaves = [t.requires_grad_() for t in example((1, 2, 1, 7), device)]
        grads.append(torch.autograd.grad(function(*leaves).square().sum(), leaves))
    assert grads[0][1].shape == (1, 2, 1, 7)
    assert all(relative_error(a, b) <= 1e-12 for a, b in zip(*grads, strict=True))


def test_export(device):
    class Rates(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.rates = torch.nn.Parameter(torch.tensor([1.5, 0.7], device=device).view(1, 2, 1, 1))

        def forward(self, input):
            return ours(input, self.rates)

    x = example(MAPS[0], device, torch.float)[0]
    dim = torch.export.Dim
    dynamic = {"input": {2: dim("height", min=2, max=99), 3: dim("width", min=2, max=99)}}
    program = torch.export.export(Rates(), (x,), dynamic_shapes=dynamic)
    for size in ((6, 7), (9, 4)):
        other = torch.rand(2, 4, *size, device=device)
        assert torch.equal(program.module()(other), Rates()(other))


def test_jit_trace(device):
    tensors = example((1, 2, 1, 7), device)
    traced = torch.jit.trace(ours, tensors)
    assert torch.equal(traced(tensors[0] + 1, tensors[1]), ours(tensors[0] + 1, tensors[1]))


def test_one_position(device):
    """A map that is full and has one position is taken as it is."""
    x = random_input((2, 4, 3, 3)).to(device)
    rates = random_map("fractional", (2, 1, 1, 1)).to(device)
    assert relative_error(dynamic_dilation_unfold(x, 3, rates), reference(x, 3, rates)) <= 1e-6


MESSAGE = "dilation_map must have shape [2, 2, 6, 7] (or batch 1) for input [2, 4, 6, 7] with groups=2, got {}"


@pytest.mark.parametrize("function", [dynamic_dilation_unfold, reference])
@pytest.mark.parametrize("shape", [(2, 1, 1, 1), (1, 3, 1, 7), (3, 2, 1, 1), (1, 2, 5, 1), (1, 2, 1, 8), (1, 2, 2, 7)])
def test_maps_that_do_not_fit(shape, function, device):
    """The message is that of a full map, and names the shape that was given."""
    x, rates = example(CASE.map_shape, device)[0], random_map("ones", shape).double().to(device)
    with pytest.raises(ValueError, match=re.escape(MESSAGE.format(list(shape)))):
        function(x, 3, rates, padding=1, groups=2)


def test_windows_that_do_not_fit(device):
    x, rates = torch.rand(1, 1, 2, 2, device=device), torch.rand(1, 1, 1, 1, device=device)
    for function in (dynamic_dilation_unfold, reference):
        with pytest.raises(ValueError, match="no output position fits"):
            function(x, 3, rates)
        with pytest.raises(ValueError, match=r"stride must be between 1 and"):
            function(x, 1, rates, stride=0)


def test_under_modes(device):
    with torch.inference_mode():
        assert torch.equal(ours(*example(MAPS[0], device)), ours(*(t.clone() for t in example(MAPS[0], device))))
    with contextlib.nullcontext():
        assert ours(*(t.to("meta") for t in example(MAPS[0], device))).shape == CASE.output_shape
