"""Options: read once, at the call, in every form that holds whole numbers, and symbols where compilers want them."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from dynamic_dilation_unfold import DynamicDilationUnfold, dynamic_dilation_unfold, reference
from helpers import relative_error
from torch import Tensor

# Compilers warn about themselves: their own deprecated calls, devices they cannot use.
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning:torch"),
]

TORCH = tuple(int(n) for n in torch.__version__.split(".")[:2])

# --- Read once --------------------------------------------------------------------------------------------------------

CHANGING = {
    "list": lambda: [0, 0],
    "array": lambda: np.array([0, 0]),
    "tensor": lambda: torch.tensor([0, 0]),
    "list of arrays": lambda: [np.array(0), np.array(0)],
}


def assign(option, value):
    if isinstance(option, list) and isinstance(option[0], np.ndarray):
        for element in option:
            element[...] = value
    else:
        option[:] = type(option)([value, value]) if isinstance(option, list) else value


@pytest.mark.parametrize("form", CHANGING)
def test_options_changed_after_the_call(form, device):
    """Gradients are those of the options at each call, as F.unfold gives."""
    x = torch.randn(1, 2, 9, 9, dtype=torch.double, generator=torch.Generator().manual_seed(0)).to(device)
    rates = torch.ones(1, 1, 9, 9, dtype=torch.double, device=device).requires_grad_()
    option, total, expected = CHANGING[form](), 0, 0
    x, other = x.clone().requires_grad_(), x.clone().requires_grad_()
    for step in (1, 2, 4):
        assign(option, step)
        total = total + dynamic_dilation_unfold(x, 3, rates, padding=option, dilation=option).square().sum()
        expected = expected + F.unfold(other, 3, dilation=step, padding=step).square().sum()
    assign(option, 3)
    total.backward()
    expected.backward()
    assert relative_error(x.grad, other.grad) <= 1e-14
    assert rates.grad.any()


@pytest.mark.parametrize("form", CHANGING)
def test_options_changed_after_a_module_was_made(form):
    option = CHANGING[form]()
    assign(option, 1)
    module = DynamicDilationUnfold(3, padding=option, dilation=option)
    assign(option, 2)
    assert (module.padding, module.dilation) == ((1, 1), (1, 1))
    assert all(type(n) is int for n in (*module.padding, *module.dilation))


# --- Forms ------------------------------------------------------------------------------------------------------------

PAIRS = {
    "array": np.array,
    "array of 32 bits": lambda pair: np.array(pair, np.int32),
    "tensor": torch.tensor,
    "range": lambda pair: range(pair[0], pair[1] - 1, -1) if pair == (3, 2) else pair,
}


def test_padding_of_conv2d_is_explained():
    with pytest.raises(
        TypeError, match=r"^padding must be .*, got 'same'; dilation \* \(kernel_size - 1\) // 2 is that of"
    ):
        dynamic_dilation_unfold(torch.ones(1, 1, 3, 3), 3, torch.ones(1, 1, 3, 3), padding="same")


@pytest.mark.parametrize("function", [dynamic_dilation_unfold, reference])
@pytest.mark.parametrize("form", PAIRS)
def test_pairs(form, function):
    form = PAIRS[form]
    x, rates = torch.rand(1, 2, 9, 11), torch.rand(1, 1, 4, 6)
    expected = function(x, (3, 2), rates, (2, 2), (1, 2), (2, 4), 1)
    assert torch.equal(
        function(x, form((3, 2)), rates, form((2, 2)), form((1, 2)), form((2, 4)), np.int64(1)), expected
    )


# --- Symbols ----------------------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def _fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


class Depthwise(torch.nn.Module):
    """As many groups as channels, and half of the height as padding."""

    def forward(self, input: Tensor, dilation_map: Tensor) -> Tensor:
        return dynamic_dilation_unfold(
            input, 3, dilation_map, padding=(input.shape[2] // 6, 1), groups=input.shape[1], dilation=(1, 1)
        )


@pytest.mark.skipif(TORCH < (2, 5), reason=f"torch {torch.__version__} guards on sizes that options depend on")
@pytest.mark.parametrize("strict", [True, False])
def test_export_with_options_made_of_sizes(strict, device):
    dim = torch.export.Dim("channels", min=2, max=64)
    tensors = [torch.rand(2, 4, 6, 7, device=device) for _ in range(2)]
    dynamic = {"input": {1: dim}, "dilation_map": {1: dim}}
    program = torch.export.export(Depthwise(), tuple(tensors), dynamic_shapes=dynamic, strict=strict)
    for channels in (2, 4, 7):
        x, rates = (torch.rand(2, channels, 6, 7, device=device) for _ in range(2))
        assert torch.equal(program.module()(x, rates), Depthwise()(x, rates))


@pytest.mark.parametrize("dynamic", [None, True])
def test_compile_with_options_made_of_sizes(dynamic, device):
    compiled = torch.compile(Depthwise(), fullgraph=True, backend="aot_eager", dynamic=dynamic)
    for channels in (2, 4, 7):
        x, rates = (torch.rand(2, channels, 6, 7, device=device, requires_grad=True) for _ in range(2))
        actual, expected = compiled(x, rates), Depthwise()(x, rates)
        assert torch.equal(actual, expected)
        grads = [torch.autograd.grad(y.square().sum(), (x, rates)) for y in (actual, expected)]
        assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))


OPTIONS = {
    "np.int64": (np.int64(1), np.int64(2)),
    "array": (np.array([1, 1]), np.int64(2)),
    "tensor": (torch.tensor(1), torch.tensor(2)),
}


@pytest.mark.skipif(TORCH < (2, 13), reason=f"torch {torch.__version__} breaks the graph at values of tensors")
@pytest.mark.parametrize("form", OPTIONS)
def test_compile_with_options_of_numpy_and_tensors(form, device):
    """They are values of the program, not of its code: one program serves them all."""
    padding, groups = OPTIONS[form]
    x, rates = torch.rand(2, 4, 6, 7, device=device), torch.rand(2, 2, 6, 7, device=device)

    def call(x: Tensor, rates: Tensor, padding, groups) -> Tensor:
        return dynamic_dilation_unfold(x, 3, rates, padding=padding, groups=groups)

    compiled = torch.compile(call, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(x, rates, padding, groups), call(x, rates, 1, 2))
