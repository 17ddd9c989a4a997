"""Compilers and exporters. Values against eager mode's."""

import contextlib
import importlib.machinery
import re
import sys
import types
from pathlib import Path
from typing import Any

import plain_package
import pytest
import torch
from dynamic_dilation_unfold import dynamic_dilation_unfold, reference
from dynamic_dilation_unfold import onnx as exporter
from helpers import CASES, Case, Model, random_input, random_map, relative_error, run
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend
from torch._inductor import config as inductor

# Compilers warn about themselves: their own deprecated calls, devices they cannot use.
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning:torch"),
]

# The first has no two sizes alike: the compiler takes those for one symbol.
SHAPES = [(3, 4, 6, 7), (2, 4, 9, 5), (5, 4, 12, 11), (4, 4, 7, 8)]
ROOT = Path(__file__).parents[2]
TORCH = tuple(int(n) for n in torch.__version__.split(".")[:2])


@pytest.fixture(autouse=True)
def _fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def unfold(input: Tensor, dilation_map: Tensor) -> Tensor:
    return dynamic_dilation_unfold(input, 3, dilation_map, padding=1, groups=2)


def example(shape: tuple[int, ...], device: str) -> tuple[Tensor, Tensor]:
    return random_input(shape).to(device), random_map("fractional", (shape[0], 2, *shape[2:])).to(device)


@pytest.fixture
def model(device: str) -> Model:
    torch.manual_seed(0)
    return Model().to(device)


# --- torch.compile ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compile(backend, case, device):
    x, rates = random_input(case.shape).to(device), random_map("mixed", case.map_shape).to(device)
    grad = random_input(case.output_shape, seed=2).to(device)
    compiled = torch.compile(dynamic_dilation_unfold, fullgraph=True, backend=backend)
    torch.use_deterministic_algorithms(device == "cuda")  # else sums there are in no fixed order
    try:
        actual = run(compiled, x, rates, grad, case.options)
        expected = run(dynamic_dilation_unfold, x, rates, grad, case.options)
    finally:
        torch.use_deterministic_algorithms(False)
    for one, other in zip(actual, expected, strict=True):
        assert torch.equal(one, other)


def test_no_recompilation(device):
    """One program for every batch, height and width, forward and backward."""
    counter = CompileCounterWithBackend("inductor")
    compiled = torch.compile(unfold, fullgraph=True, dynamic=True, backend=counter)
    for shape in SHAPES:
        x, rates = example(shape, device)
        grad = random_input((shape[0], 36, shape[2] * shape[3]), seed=2).to(device)
        actual = run(lambda input, dilation_map: compiled(input, dilation_map), x, rates, grad, {})
        expected = run(lambda input, dilation_map: unfold(input, dilation_map), x, rates, grad, {})
        assert all(torch.equal(a, b) for a, b in zip(actual, expected, strict=True))
    assert counter.frame_count == 1


def test_shapes_become_dynamic(device):
    """Without being told, the compiler makes the sizes symbols when they first change, once."""
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(unfold, fullgraph=True, backend=counter)
    for shape in SHAPES:
        tensors = example(shape, device)
        assert torch.equal(compiled(*tensors), unfold(*tensors))
    assert counter.frame_count == 2


@pytest.mark.parametrize(
    ("backend", "autocast", "dynamic"),
    [("inductor", False, True), ("inductor", True, False), ("aot_eager", True, True)],
)
def test_training_step(backend, autocast, dynamic, model, device):
    # Else what lies between operators stays float32, the rates are not eager's, and their gradient jumps.
    rounds = TORCH >= (2, 13)  # as an option that fails on the CPU in 2.7
    options = {"emulate_precision_casts": True} if rounds and backend == "inductor" and autocast else {}
    compiled = torch.compile(model, fullgraph=True, dynamic=dynamic, backend=backend)

    def step(forward: Any, x: Tensor) -> list[Tensor]:
        model.zero_grad()
        with torch.autocast(device, torch.bfloat16, enabled=autocast):
            output = forward(x)
        output.float().square().mean().backward()
        return [output.detach(), *(p.grad.clone() for p in model.parameters())]

    for shape in SHAPES[:2]:
        x = example(shape, device)[0]
        with inductor.patch(options):
            actual = step(compiled, x)
        expected = step(model, x)
        assert [t.dtype for t in actual] == [t.dtype for t in expected]
        if backend == "inductor" and autocast:
            # The rates' own layer apart, where Inductor cannot be told to round between operators.
            compared = slice(None) if rounds else slice(-2, None)
            assert relative_error(actual[0], expected[0]) <= 0.05
            assert all(relative_error(a, b) <= 0.02 for a, b in zip(actual[compared], expected[compared], strict=True))
        else:
            assert all(relative_error(a, b) <= 1e-5 for a, b in zip(actual, expected, strict=True))


def test_errors_in_compiled_programs(device):
    """A compiled program of symbolic sizes checks them when it runs."""
    compiled = torch.compile(unfold, fullgraph=True, dynamic=True, backend="aot_eager")
    x, rates = example(SHAPES[0], device)
    compiled(x, rates)
    with pytest.raises(Exception, match="dilation_map must have shape"):
        compiled(x, rates[..., 1:])
    with pytest.raises(Exception, match="dilation_map must have the input's dtype"):
        compiled(x, rates.double())


TRANSFORMS = {
    "grad": lambda f: torch.func.grad(lambda x, m: f(x, m).square().sum(), argnums=(0, 1)),
    "jvp of input": lambda f: lambda x, m: torch.func.jvp(lambda x: f(x, m), (x,), (x.cos(),))[1],
    "jvp of both": lambda f: lambda x, m: torch.func.jvp(f, (x, m), (x.cos(), m.sin()))[1],
    "vmap": lambda f: lambda x, m: torch.vmap(f)(x, m),
    "per-sample gradients": lambda f: torch.vmap(
        torch.func.grad(lambda x, m: f(x, m).square().sum(), argnums=(0, 1)), in_dims=(0, None)
    ),
    "Hessian-vector product": lambda f: (
        lambda x, m: torch.func.jvp(torch.func.grad(lambda m: f(x, m).sin().sum()), (m,), (m.cos(),))[1]
    ),
}


@pytest.mark.parametrize("name", TRANSFORMS)
def test_compiled_transforms(name, device):
    x, rates = example(SHAPES[0], device)
    if name == "vmap":
        x, rates = x[:, None], rates[:, None]
    if name == "per-sample gradients":
        rates = rates[0]
    compiled = torch.compile(TRANSFORMS[name](unfold), fullgraph=True, backend="aot_eager")
    expected = TRANSFORMS[name](lambda x, m: reference(x, 3, m, padding=1, groups=2))(x, rates)
    for a, b in zip(*(torch.utils._pytree.tree_leaves(v) for v in (compiled(x, rates), expected)), strict=True):
        assert relative_error(a, b) <= 1e-5
        assert float(b.norm()) > 0


def test_compiled_nested_forward_mode_is_not_silent(device):
    """Torch 2.13 cannot compile ``jvp`` in ``jvp`` of any function. Where a release can, the value is right."""
    x, rates = (t.double() for t in example(SHAPES[0], device))

    def second(function):
        inner = lambda m: torch.func.jvp(lambda m: function(x, m), (m,), (m.cos(),))[1]  # noqa: E731
        return lambda m: torch.func.jvp(inner, (m,), (m.sin(),))[1]

    with contextlib.suppress(torch._dynamo.exc.TorchDynamoException, RuntimeError):
        actual = torch.compile(second(unfold), backend="aot_eager")(rates)
        expected = second(lambda x, m: reference(x, 3, m, padding=1, groups=2))(rates)
        assert relative_error(actual, expected) <= 1e-12


def test_compiled_double_backward_says_so(device):
    x, rates = (t.requires_grad_() for t in example(SHAPES[0], device))
    output = torch.compile(unfold, fullgraph=True, backend="aot_eager")(x, rates)
    (grad,) = torch.autograd.grad(output.square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="does not currently support double backward"):
        grad.sum().backward()


@pytest.mark.skipif(
    not hasattr(torch._dynamo.config, "compiled_autograd"), reason=f"torch {torch.__version__} has no compiled autograd"
)
def test_compiled_autograd(device):
    """Backward as a compiled program, of a forward that was recorded in eager mode."""

    def grads(compiled: bool) -> tuple[Tensor, Tensor]:
        x, rates = (t.requires_grad_() for t in example(SHAPES[0], device))
        loss = unfold(x, rates).square().sum()
        step = lambda: loss.backward()  # noqa: E731
        with torch._dynamo.config.patch(compiled_autograd=compiled):
            (torch.compile(step, backend="aot_eager") if compiled else step)()
        return x.grad, rates.grad

    assert all(torch.equal(a, b) for a, b in zip(grads(True), grads(False), strict=True))


# --- torch.export, AOTInductor, ONNX, TorchScript ---------------------------------------------------------------------


def exported(model: Model, device: str) -> Any:
    sizes = {name: torch.export.Dim(name, min=2, max=512) for name in ("batch", "height", "width")}
    dynamic_shapes = {"input": {0: sizes["batch"], 2: sizes["height"], 3: sizes["width"]}}
    return torch.export.export(model, (example(SHAPES[0], device)[0],), dynamic_shapes=dynamic_shapes)


def assert_equal_results(program: Any, model: Model, device: str, tolerance: float = 0) -> None:
    for shape in SHAPES:
        x = example(shape, device)[0]
        with torch.no_grad():
            assert relative_error(program(x), model(x)) <= tolerance


def test_export(model, device, tmp_path):
    program = exported(model, device)
    operators = [node.target for node in program.graph.nodes if "unfold" in str(node.target)]
    assert operators == [torch.ops.dynamic_dilation_unfold.unfold.default]
    assert_equal_results(program.module(), model, device)
    torch.export.save(program, tmp_path / "model.pt2")
    assert_equal_results(torch.export.load(tmp_path / "model.pt2").module(), model, device)


@pytest.mark.skipif(TORCH < (2, 6), reason=f"torch {torch.__version__} has no AOTInductor packages")
def test_aot_inductor(model, device, tmp_path):
    if device != "cpu" and (reason := plain_package.why_not(device)):
        pytest.skip(reason)
    path = torch._inductor.aoti_compile_and_package(exported(model, device), package_path=str(tmp_path / "model.pt2"))
    assert_equal_results(torch._inductor.aoti_load_package(path), model, device, 1e-6)


@pytest.mark.skipif(TORCH < (2, 6), reason=f"torch {torch.__version__} does not export programs to ONNX")
@pytest.mark.parametrize("from_program", [False, True], ids=["module", "exported program"])
def test_onnx(from_program, tmp_path):
    onnx = pytest.importorskip("onnx", reason="onnx is not installed")
    pytest.importorskip("onnxscript", reason="onnxscript is not installed")
    onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    torch.manual_seed(0)
    model = Model().eval()
    path = tmp_path / "model.onnx"
    if from_program:
        exporter.export(exported(model, "cpu"), path=path, verbose=False)
    else:
        dim = torch.export.Dim
        dynamic = {"input": {0: dim("b", max=64), 2: dim("h", min=2, max=512), 3: dim("w", min=2, max=512)}}
        x = example(SHAPES[0], "cpu")[0]
        exporter.export(model, (x,), path, dynamic_shapes=dynamic, verbose=False)
    assert {node.domain for node in onnx.load(path).graph.node} == {""}  # standard operators alone
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    program = lambda x: torch.from_numpy(session.run(None, {name: x.numpy()})[0])  # noqa: E731
    assert_equal_results(program, model, "cpu", 1e-6)


def test_onnx_says_what_it_needs(monkeypatch):
    monkeypatch.delattr(torch.export, "default_decompositions", raising=False)
    with pytest.raises(RuntimeError, match=r"ONNX export needs torch >= 2.6, this is "):
        exporter.export(Model(), example(SHAPES[0], "cpu")[:1])


@pytest.mark.skipif(TORCH < (2, 6), reason=f"torch {torch.__version__} does not export programs to ONNX")
@pytest.mark.parametrize("missing", ["onnx", "onnxscript"])
def test_onnx_says_what_is_not_installed(missing, tmp_path, monkeypatch):
    path = tmp_path / "model.onnx"
    for name in ("onnx", "onnxscript"):  # whether or not they are
        module = types.ModuleType(name)
        module.__spec__ = importlib.machinery.ModuleSpec(name, None)
        monkeypatch.setitem(sys.modules, name, None if name == missing else module)
    sentence = f'ONNX export needs {missing}, which is not installed: pip install "dynamic-dilation-unfold[onnx]"'
    with pytest.raises(ModuleNotFoundError) as caught:
        exporter.export(Model(), example(SHAPES[0], "cpu")[:1], path)
    assert str(caught.value) == sentence
    assert not path.exists()


def test_the_onnx_extra_is_what_the_export_needs():
    extra = re.search(r"^onnx = \[(.*)\]$", (ROOT / "pyproject.toml").read_text("utf-8"), re.MULTILINE)
    assert extra
    assert set(re.findall(r'"(.*?)"', extra[1])) == {"onnx", "onnxscript"}


def documented_code() -> list[str]:
    text = (ROOT / "docs" / "torch.md").read_text("utf-8")
    return re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


@pytest.mark.skipif(TORCH < (2, 6), reason=f"torch {torch.__version__} does not export programs to ONNX")
def test_documented_code(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert documented_code()
    for code in documented_code():
        exec(code, {})
    assert (tmp_path / "unfold.onnx").exists()


def test_jit_trace(model, device, tmp_path: Path):
    traced = torch.jit.trace(model, example(SHAPES[0], device)[0])
    assert "dynamic_dilation_unfold::unfold" in str(traced.inlined_graph)
    assert_equal_results(traced, model, device)
    traced.save(str(tmp_path / "model.pt"))
    loaded = torch.jit.load(str(tmp_path / "model.pt"))
    assert_equal_results(loaded, model, device)
    grads = []
    for forward in (loaded, model):
        x = example(SHAPES[1], device)[0].requires_grad_()
        grads.append(torch.autograd.grad(forward(x).square().sum(), x)[0])
    assert relative_error(*grads) <= 1e-5


def test_jit_script_says_what_it_cannot():
    with pytest.raises(RuntimeError, match="Unknown type constructor Sequence"):
        torch.jit.script(Model())


def test_traced_function(device):
    case = Case(2, 4, 6, 7, padding=1, groups=2)
    x, rates = random_input(case.shape).to(device), random_map("mixed", case.map_shape).to(device)
    with torch.no_grad():
        traced = torch.jit.trace(unfold, (x, rates))
        assert torch.equal(traced(x + 1, rates), unfold(x + 1, rates))
