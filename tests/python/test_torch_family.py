"""What torch does around the operators without columns: compilers, exporters, transforms in one another, processes.

An attention layer has aggregate, correlate and, for the coverage, unfold; layers of convolutions have conv2d. What
holds for each operator by itself is in test_operators.py; values here are compared with eager mode, one process or the
reference.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from dynamic_dilation_unfold import (
    DynamicDilationAttention2d,
    DynamicDilationConv2d,
    _dispatch,
    dynamic_dilation_attention,
)
from dynamic_dilation_unfold import onnx as exporter
from helpers import random_input, relative_error
from operators import OPERATORS, Row, Sample, definition, typed
from ranks import launch, needs_rules, placement
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning:torch"),
    pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths"),
]
TORCH = tuple(int(n) for n in torch.__version__.split(".")[:2])
WITHOUT_COLUMNS = [row for row in OPERATORS if row.operator.name != "unfold"]
SUMS = [row for row in WITHOUT_COLUMNS if row.operator.name in ("aggregate", "correlate")]
rows = pytest.mark.parametrize("row", WITHOUT_COLUMNS, ids=str)
SHAPES = [(3, 4, 6, 7), (5, 4, 9, 5)]


@pytest.fixture(autouse=True)
def _fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


class Convolutions(nn.Module):
    """Layers with every kind of groups, an even window, bias, mask and border."""

    def __init__(self) -> None:
        super().__init__()
        self.first = DynamicDilationConv2d(4, 6, (3, 2), padding="same", groups=2, map_groups=4, modulated=True)
        self.second = DynamicDilationConv2d(6, 3, 3, 2, 1, bias=False, padding_mode="border", rates="learned")
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=0.3)

    def forward(self, input: Tensor) -> Tensor:
        return self.second(self.first(input).sigmoid())


# The operators that a model calls, sorted.
CALLED = {DynamicDilationAttention2d: ["aggregate", "correlate", "unfold"], Convolutions: ["conv2d", "conv2d"]}


@pytest.fixture(params=CALLED, ids=lambda kind: kind.__name__)
def model(request: pytest.FixtureRequest, device: str) -> nn.Module:
    torch.manual_seed(0)
    if request.param is Convolutions:
        return Convolutions().to(device)
    layer = DynamicDilationAttention2d(4, 2, 3).to(device)
    nn.init.normal_(layer.predictor.conv.weight, std=0.3)
    return layer


def image(shape: tuple[int, ...], device: str) -> Tensor:
    return random_input(shape).to(device)


def step(model: nn.Module, forward: Any, x: Tensor) -> list[Tensor]:
    model.zero_grad()
    output = forward(x)
    output.square().mean().backward()
    return [output.detach(), *(p.grad.clone() for p in model.parameters())]


def assert_close(actual: Any, expected: Any, tolerance: float = 1e-5) -> None:
    one, other = (torch.utils._pytree.tree_leaves(v) for v in (actual, expected))
    scale = max(float(b.detach().norm()) for b in other)
    for a, b in zip(one, other, strict=True):
        assert float((a - b).detach().norm()) <= tolerance * scale  # the key's bias has no gradient but rounding
    assert scale > 0


# --- Compilers and exporters ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_compiled_training(backend, model, device):
    counter = CompileCounterWithBackend(backend)
    compiled = torch.compile(model, fullgraph=True, dynamic=True, backend=counter)
    programs = []  # the first compilation of a process may start twice; Inductor's of nn.Conv2d fixes its height
    for shape in SHAPES:
        x = image(shape, device)
        assert_close(step(model, compiled, x), step(model, model, x))
        programs.append(counter.frame_count)
    if backend == "aot_eager":
        assert programs[0] == programs[1]


def exported(model: nn.Module, device: str) -> Any:
    # At least two positions for each layer: torch broadcasts a single rate to a size that is not 1, or is.
    sizes = {name: torch.export.Dim(name, min=3, max=512) for name in ("batch", "height", "width")}
    dynamic_shapes = {"input": {0: sizes["batch"], 2: sizes["height"], 3: sizes["width"]}}
    return torch.export.export(model, (image(SHAPES[0], device),), dynamic_shapes=dynamic_shapes)


def assert_equal_results(program: Any, model: nn.Module, device: str) -> None:
    for shape in SHAPES:
        with torch.no_grad():
            assert relative_error(program(image(shape, device)), model(image(shape, device))) <= 1e-5


def test_export(model, device, tmp_path):
    program = exported(model, device)
    called = [n.target._opname for n in program.graph.nodes if getattr(n.target, "namespace", "") == _dispatch.NAME]
    assert sorted(called) == CALLED[type(model)]
    torch.export.save(program, tmp_path / "model.pt2")
    assert_equal_results(torch.export.load(tmp_path / "model.pt2").module(), model, device)


@pytest.mark.slow
@pytest.mark.skipif(TORCH < (2, 6), reason=f"torch {torch.__version__} has no AOTInductor packages")
def test_aot_inductor(model, tmp_path):
    """On the CPU, as ONNX below; of a package for CUDA see test_torch_compile.py and tests/consumer/cases.py."""
    program = exported(model.cpu(), "cpu")
    path = torch._inductor.aoti_compile_and_package(program, package_path=str(tmp_path / "model.pt2"))
    assert_equal_results(torch._inductor.aoti_load_package(path), model, "cpu")


@pytest.mark.skipif(TORCH < (2, 6), reason=f"torch {torch.__version__} does not export programs to ONNX")
def test_onnx(model, tmp_path):
    onnx = pytest.importorskip("onnx", reason="onnx is not installed")
    pytest.importorskip("onnxscript", reason="onnxscript is not installed")
    onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    path = tmp_path / "model.onnx"
    exporter.export(exported(model.cpu(), "cpu"), path=path, verbose=False)
    assert {node.domain for node in onnx.load(path).graph.node} == {""}  # standard operators alone
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    assert_equal_results(lambda x: torch.from_numpy(session.run(None, {name: x.numpy()})[0]), model, "cpu")


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")  # a trace keeps the number of channels
def test_jit_trace(model, device, tmp_path: Path):
    traced = torch.jit.trace(model, image(SHAPES[0], device))
    traced.save(str(tmp_path / "model.pt"))
    loaded = torch.jit.load(str(tmp_path / "model.pt"))
    for name in CALLED[type(model)]:
        assert f"dynamic_dilation_unfold::{name}" in str(loaded.inlined_graph)
    with torch.no_grad():
        assert relative_error(loaded(image(SHAPES[0], device)), model(image(SHAPES[0], device))) <= 1e-5


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpoint(reentrant, model, device):
    from torch.utils.checkpoint import checkpoint

    x = image(SHAPES[0], device).requires_grad_()
    assert_close(step(model, lambda x: checkpoint(model, x, use_reentrant=reentrant), x), step(model, model, x))


def test_compiled_autograd(model, device):
    if not hasattr(torch._dynamo.config, "compiled_autograd"):
        pytest.skip(f"torch {torch.__version__} has no compiled autograd")
    if TORCH < (2, 5) and isinstance(model, DynamicDilationAttention2d):
        pytest.skip(f"torch {torch.__version__}'s compiled autograd knows no gradients that a backward takes")
    x = image(SHAPES[0], device)
    expected = step(model, model, x)
    model.zero_grad()
    loss = model(x).square().mean()
    with torch._dynamo.config.patch(compiled_autograd=True):
        torch.compile(lambda: loss.backward(), backend="aot_eager")()
    assert_close([p.grad for p in model.parameters()], expected[1:])


# --- Transforms -------------------------------------------------------------------------------------------------------

TRANSFORMS = {
    "hessian-vector product": lambda f, t: torch.func.jvp(torch.func.grad(lambda v: f(v).sin().sum()), (t,), (t,))[1],
    "jvp of jvp": lambda f, t: torch.func.jvp(
        lambda v: torch.func.jvp(lambda u: f(u).sin(), (v,), (t,))[1], (t,), (t,)
    )[1],
    "per-sample gradients": lambda f, t: torch.vmap(torch.func.grad(lambda v: f(v).sin().sum()))(torch.stack([t, -t])),
    "third derivative": lambda f, t: torch.func.grad(
        lambda v: torch.func.grad(lambda u: torch.func.grad(lambda w: f(w).sin().sum())(u).square().sum())(v).sum()
    )(t),
}


def sample_of(row: Row) -> Sample:
    """With all the tensors that the operator takes."""
    return next(s for s in row.small[1:] + row.small[:1] if all(t is not None for t in s.tensors))


@pytest.mark.parametrize("name", TRANSFORMS)
@rows
def test_nested_transforms(row: Row, name, device):
    """Of each tensor that an operator takes."""
    sample = sample_of(row)
    tensors = typed(row, sample, device, torch.double)
    exact = definition(row, sample.options)
    for i in range(len(tensors)):

        def partial(function: Any, value: Tensor, i: int = i) -> Tensor:
            return function(*tensors[:i], value, *tensors[i + 1 :])

        public = lambda *t: row.public(*t, *sample.options)  # noqa: E731
        actual, expected = (TRANSFORMS[name](lambda v, f=f: partial(f, v), tensors[i]) for f in (public, exact))
        assert relative_error(actual, expected) <= 1e-11


@pytest.mark.parametrize("name", ["hessian-vector product", "per-sample gradients"])
@rows
def test_compiled_transforms(row: Row, name, device):
    sample = sample_of(row)
    tensors = typed(row, sample, device, torch.double)

    def function(value: Tensor) -> Tensor:
        return TRANSFORMS[name](lambda v: row.public(v, *tensors[1:], *sample.options), value)

    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    assert relative_error(compiled(tensors[0]), function(tensors[0])) <= 1e-11


@rows
def test_fx_keeps_the_call(row: Row):
    sample = sample_of(row)
    tensors = typed(row, sample, "cpu", torch.float32)

    class Module(nn.Module):
        def forward(self, one: Tensor, two: Tensor, three: Tensor, four: Any = None, five: Any = None) -> Tensor:
            return row.public(*(one, two, three, four, five)[: len(tensors)], *sample.options)

    traced = torch.fx.symbolic_trace(Module())
    assert len([n for n in traced.graph.nodes if n.op == "call_function"]) == 1
    assert torch.equal(traced(*tensors), Module()(*tensors))


# --- Processes --------------------------------------------------------------------------------------------------------

# Placements of the image and what lies like it, of the factors that are given or returned, and of the map.
WAYS = {"batch": ("S0", "S0", "S0"), "channels": ("S1", "S1", "S1"), "one map": ("S0", "S0", "R")}


def wide(row: Row, way: str) -> Sample:
    """A call whose batch, heads and groups can be split in two."""
    generator = torch.Generator().manual_seed(0)
    draw = lambda *shape: torch.randn(shape, generator=generator, dtype=torch.double)  # noqa: E731
    rates = 1.3 + 0.3 * draw(1 if way == "one map" else 4, 2, 3, 4).tanh()
    window = ((3, 3), (1, 1), (1, 1), (1, 1))
    if row.operator.name == "aggregate":
        return Sample(way, (draw(4, 8, 3, 4), draw(4, 4, 9, 3, 4), rates), row.operator.read((*window, "zeros")))
    return Sample(way, (draw(4, 8, 3, 4), draw(4, 8, 3, 4), rates), row.operator.read((*window, 4, "zeros")))


def sharded(rank: int, kind: str) -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard, distribute_tensor
    from torch.distributed.tensor.debug import CommDebugMode

    mesh = init_device_mesh(kind, (2,))
    for row in SUMS:
        for way, (image_at, factors_at, map_at) in WAYS.items():
            sample = wide(row, way)
            given = [factors_at if t.dim() == 5 else image_at for t in sample.tensors[:2]]
            leaves = [t.to(kind).requires_grad_() for t in sample.tensors]
            expected = row.public(*leaves, *sample.options)
            expected.square().sum().backward()
            shards = [
                distribute_tensor(t.to(kind), mesh, [placement(at)]).requires_grad_()
                for t, at in zip(sample.tensors, (*given, map_at), strict=True)
            ]
            with CommDebugMode() as communication:
                output = row.public(*shards, *sample.options)
                output.square().sum().backward()
            assert communication.get_total_counts() == 0, (str(row), way)
            assert output.placements == (placement(image_at),), (str(row), way)
            assert relative_error(output.full_tensor(), expected) <= 1e-12
            for shard, leaf in zip(shards, leaves, strict=True):
                assert relative_error(shard.grad.full_tensor(), leaf.grad) <= 1e-12, (str(row), way)
    # The composition, on a split batch.
    projected = [random_input((4, 4, 3, 4), seed).double().to(kind) for seed in (1, 2, 3)]
    rates = (1 + random_input((4, 1, 3, 4)).abs()).double().to(kind)
    attend = lambda *t: dynamic_dilation_attention(*t, 3, padding=1, heads=2)  # noqa: E731
    shards = [distribute_tensor(t, mesh, [Shard(0)]) for t in (*projected, rates)]
    output = attend(*shards)
    assert output.placements == (Shard(0),)
    assert relative_error(output.full_tensor(), attend(*projected, rates)) <= 1e-12


@pytest.mark.skipif(not dist.is_available(), reason="this torch has no torch.distributed")
@needs_rules
def test_dtensor():
    launch(sharded, 2, "cpu")
