"""Surroundings that once ended in an error: functionalize, tracers with a __torch_function__, sparse gradients, and
an import after the package was removed."""

import subprocess
import sys

import pytest
import torch
from dynamic_dilation_unfold import DynamicDilationUnfold, dynamic_dilation_unfold, reference
from helpers import Case, Model, assert_close, off_whole_positions, random_input, relative_error, run
from torch import Tensor, nn

CASE = Case(2, 4, 6, 7, padding=1, groups=2)


def example(device: str) -> tuple[Tensor, Tensor]:
    return random_input(CASE.shape).double().to(device), off_whole_positions(CASE).to(device)


def ours(x: Tensor, rates: Tensor) -> Tensor:
    return dynamic_dilation_unfold(x, 3, rates, padding=1, groups=2)


def definition(x: Tensor, rates: Tensor) -> Tensor:
    return reference(x, 3, rates, padding=1, groups=2)


def loss(function):
    return lambda x, rates: function(x, rates).sin().square().sum()


pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script`:DeprecationWarning")  # torch's own, in forward mode

# --- functionalize ----------------------------------------------------------------------------------------------------

functionalize, grad, jvp, vmap = (torch.func.functionalize, torch.func.grad, torch.func.jvp, torch.func.vmap)
FUNCTIONALIZED = {
    "alone": lambda f: functionalize(f),
    "around grad": lambda f: functionalize(grad(loss(f), (0, 1))),
    "in grad": lambda f: grad(loss(functionalize(f)), (0, 1)),
    "around vmap": lambda f: functionalize(vmap(lambda x, m: f(x[None], m[None]))),
    "in vmap": lambda f: vmap(functionalize(lambda x, m: f(x[None], m[None]))),
    "around jvp": lambda f: functionalize(lambda x, m: jvp(f, (x, m), (x.cos(), m.cos()))[1]),
    "in jvp": lambda f: lambda x, m: jvp(functionalize(f), (x, m), (x.cos(), m.cos()))[1],
    "around grad of grad": lambda f: functionalize(grad(lambda x, m: grad(loss(f))(x, m).square().sum(), (0, 1))),
}


@pytest.mark.parametrize("name", FUNCTIONALIZED)
def test_functionalize(name, device):
    if "vmap" in name and not hasattr(torch.library, "register_vmap"):
        pytest.skip(f"torch {torch.__version__} has no vmap rules for registered operators")
    actual, expected = (FUNCTIONALIZED[name](f)(*example(device)) for f in (ours, definition))
    pairs = zip(*(torch.utils._pytree.tree_leaves(v) for v in (actual, expected)), strict=True)
    for one, other in pairs:
        assert relative_error(one, other) <= 1e-12
        assert other.any()


@pytest.mark.parametrize("functional", ["input", "map", "both"])
def test_functional_tensors(functional, device):
    """What functionalize makes of a tensor, by itself."""
    x, rates = example(device)
    expected = ours(x, rates)
    if functional != "map":
        x = torch._to_functional_tensor(x)
    if functional != "input":
        rates = torch._to_functional_tensor(rates)
    output = ours(x, rates)
    torch._sync(output)
    assert torch.equal(torch._from_functional_tensor(output), expected)


# --- __torch_function__ -----------------------------------------------------------------------------------------------


class Block(nn.Module):
    """A user's module around ours, with an option made of a size."""

    def __init__(self) -> None:
        super().__init__()
        self.unfold = DynamicDilationUnfold(3, padding=1, groups=2)

    def forward(self, x, rates):
        return self.unfold(x, rates) + dynamic_dilation_unfold(x, 3, rates, padding=(1, 1), groups=rates.shape[1])


@pytest.mark.parametrize("root", [Block(), ours, definition], ids=["module", "function", "reference"])
def test_symbolic_trace(root, device):
    traced = torch.fx.symbolic_trace(root)
    targets = {node.target for node in traced.graph.nodes if node.op == "call_function"}
    assert targets & {dynamic_dilation_unfold, reference}
    tensors = example(device)
    grads = torch.ones_like(root(*tensors))
    actual = run(lambda input, dilation_map: traced(input, dilation_map), *tensors, grads, {})
    assert_close(actual, run(lambda input, dilation_map: root(input, dilation_map), *tensors, grads, {}), 1e-13)


def test_symbolic_trace_of_a_model(device):
    torch.manual_seed(0)
    model, x = Model().to(device), random_input((2, 4, 6, 7)).to(device)
    assert torch.equal(torch.fx.symbolic_trace(model)(x), model(x))


class Quantity:
    """A number with a unit, as libraries of units have: no tensor, but torch's functions take it."""

    def __init__(self, value):
        self.value = value

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        plain = lambda v: v.value if isinstance(v, cls) else v  # noqa: E731
        return cls(function(*map(plain, args), **{name: plain(v) for name, v in (kwargs or {}).items()}))


@pytest.mark.parametrize("which", ["input", "map", "option"])
@pytest.mark.parametrize("function", [dynamic_dilation_unfold, reference])
def test_torch_function(function, which, device):
    values = [*example(device), 2]
    values = [Quantity(v) if n == which else v for n, v in zip(("input", "map", "option"), values, strict=True)]
    output = function(values[0], 3, values[1], padding=1, groups=values[2])
    assert type(output) is Quantity
    assert torch.equal(output.value, function(example(device)[0], 3, example(device)[1], padding=1, groups=2))


# --- Gradients that are not dense -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "function",
    [ours, lambda x, m: torch.ops.dynamic_dilation_unfold.unfold(x, m, [3], [1], [1], [1], 2)],
    ids=["function", "operator"],
)
def test_sparse_gradients(function, device):
    tensors = [t.requires_grad_() for t in example(device)]
    grad = torch.zeros(CASE.output_shape, dtype=torch.double, device=device)
    grad[0, 3, 5], grad[1, 7, 2] = 1.5, -2
    actual = torch.autograd.grad(function(*tensors), tensors, grad.to_sparse())
    expected = torch.autograd.grad(ours(*tensors), tensors, grad)
    assert all(torch.equal(a, b) for a, b in zip(actual, expected, strict=True))


# --- Imports ----------------------------------------------------------------------------------------------------------

AGAIN = """
import gc, sys, torch
import dynamic_dilation_unfold as first

def check(package):
    x, m = torch.rand(2, 4, 6, 7), torch.rand(2, 2, 6, 7)
    grads = []
    for function in package.dynamic_dilation_unfold, package.reference:
        leaves = x.clone().requires_grad_(), m.clone().requires_grad_()
        output = function(leaves[0], 3, leaves[1], padding=1, groups=2)
        grads += [output.detach(), *torch.autograd.grad(output.square().sum(), leaves)]
    for one, other in zip(grads[:3], grads[3:]):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
    operator = torch.ops.dynamic_dilation_unfold.unfold(x, m, [3], [1], [1], [1], 2)
    torch.testing.assert_close(operator, grads[0])
    tangent = torch.func.jvp(lambda v: package.dynamic_dilation_unfold(v, 3, m, padding=1, groups=2), (x,), (x,))[1]
    torch.testing.assert_close(tangent, grads[0])
    from torch.utils.flop_counter import FlopCounterMode  # which nobody has imported before the first check
    with FlopCounterMode(display=False) as counter:
        package.dynamic_dilation_unfold(x, 3, m, padding=1, groups=2)
    if hasattr(torch.library, "register_vmap"):  # torch >= 2.5, whose counter finds registered formulas
        assert counter.get_total_flops() == package.cost.unfold(x.shape, m.shape, 3).flops

check(first)
kept = first.dynamic_dilation_unfold(torch.ones(1, 1, 4, 4), 3, torch.ones(1, 1, 4, 4, requires_grad=True), padding=1)
for turn in range(3):
    for name in [n for n in sys.modules if n.partition(".")[0] == "dynamic_dilation_unfold"]:
        del sys.modules[name]
    import dynamic_dilation_unfold as again
    assert again is not first
    check(again)
check(first)  # who kept the old one can go on
kept.sum().backward()
"""


def test_import_after_removal():
    subprocess.run([sys.executable, "-c", AGAIN], check=True)
