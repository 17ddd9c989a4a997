"""What holds for every operator, made from the table in operators.py and from the descriptions.

Values are compared with the operator's reference; what torch makes of it, with what its kernels do.
"""

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from dynamic_dilation_unfold import _dispatch
from helpers import DTYPES, HALVES, TOLERANCE, relative_error
from operators import OPERATORS, Row, Sample, definition, typed
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

TORCH = tuple(int(n) for n in torch.__version__.split(".")[:2])

# torch's own derivatives of some operators in forward mode are scripts, and its compilers' calls are deprecated too.
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf"),
]


def over(kind: str) -> Any:
    """Every row with each of its samples."""
    pairs = [pytest.param(row, s, id=f"{row}-{s.name}") for row in OPERATORS for s in getattr(row, kind)]
    return pytest.mark.parametrize(("row", "sample"), pairs)


rows = pytest.mark.parametrize("row", OPERATORS, ids=str)
ALL, SMALL = over("samples"), over("small")
# Dtypes of values and of maps.
MIXED = [*((t, t) for t in DTYPES), *((t, torch.float32) for t in HALVES)]
TYPES = pytest.mark.parametrize(("dtype", "map_dtype"), MIXED, ids=str)
ERRORS = {**TOLERANCE, torch.float16: 2e-3, torch.bfloat16: 2e-2}


def present(tensors: Sequence[Tensor | None]) -> list[int]:
    return [i for i, t in enumerate(tensors) if t is not None]


def leaves(tensors: Sequence[Tensor | None], mask: Sequence[bool] | None = None) -> tuple[Any, ...]:
    mask = [True] * len(tensors) if mask is None else mask
    return tuple(t if t is None else t.detach().requires_grad_(w) for t, w in zip(tensors, mask, strict=True))


def public(row: Row, sample: Sample) -> Callable[..., Tensor]:
    return lambda *tensors: row.public(*tensors, *sample.options)


def registered(row: Row, sample: Sample) -> Callable[..., Tensor]:
    return lambda *tensors: row.operator.op(*row.operator.full_maps(tensors, sample.options), *sample.options)


FUNCTIONS = pytest.mark.parametrize("function", [public, registered])


def with_gradients(function: Callable[..., Tensor], tensors: Sequence[Any], grad: Tensor | None = None) -> list[Tensor]:
    inputs = leaves(tensors)
    output = function(*inputs)
    grad = torch.ones_like(output) if grad is None else grad.to(output.device, output.dtype)
    return [output.detach(), *torch.autograd.grad(output, [inputs[i] for i in present(inputs)], grad)]


def assert_close(actual: Any, expected: Any, tolerance: float = 1e-12) -> None:
    one, other = (torch.utils._pytree.tree_leaves(v) for v in (actual, expected))
    assert len(one) == len(other)
    for a, b in zip(one, other, strict=True):
        assert relative_error(a, b) <= tolerance
    assert any(float(b.norm()) > 0 for b in other) or not all(b.numel() for b in other)  # no silent zeros


def random_like(output: Tensor, seed: int = 3) -> Tensor:
    return torch.randn(output.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.double).to(
        output.device, output.dtype
    )


def loss(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return lambda *tensors: function(*tensors).sin().square().sum()


def masks(sample: Sample) -> list[tuple[bool, ...]]:
    """Which gradients to ask for: all combinations of up to three tensors; of more, each alone and all of them."""
    given = [t is not None for t in sample.tensors]
    combinations = itertools.product(*([True, False] if is_given else [False] for is_given in given))
    return [m for m in combinations if any(m) and (sum(given) <= 3 or sum(m) in (1, sum(given)))]


def wanted(sample: Sample) -> list[bool]:
    return [t is not None for t in sample.tensors]


def test_the_table_has_every_operator():
    assert {row.operator.name for row in OPERATORS} == {operator.name for operator in _dispatch.operators}


# --- Values -----------------------------------------------------------------------------------------------------------


@ALL
@TYPES
@FUNCTIONS
def test_kernels_against_the_reference(function, dtype, map_dtype, row, sample, device):
    tensors = typed(row, sample, device, dtype, map_dtype)
    exact = [t if t is None else t.cpu().double() for t in tensors]
    expected = definition(row, sample.options)(*exact)
    grad = random_like(expected).to(dtype)
    actual = with_gradients(function(row, sample), tensors, grad)
    assert [t.dtype for t in actual] == [dtype, *(tensors[i].dtype for i in present(tensors))]
    assert_close(actual, with_gradients(definition(row, sample.options), exact, grad), ERRORS[dtype])


@SMALL
def test_output_masks(row, sample, device):
    """Each gradient is the same whichever others are wanted, and nothing where it is not."""
    tensors = row.operator.full_maps(typed(row, sample, device, torch.double), sample.options)
    grad = random_like(row.operator.op(*tensors, *sample.options))
    full = row.operator.backward_op(grad, *tensors, *sample.options, wanted(sample))
    for mask in masks(sample):
        grads = row.operator.backward_op(grad, *tensors, *sample.options, list(mask))
        for one, other, want in zip(grads, full, mask, strict=True):
            assert relative_error(one, other) <= 1e-12 if want else one.numel() == 0
        inputs = leaves(tensors, mask)
        public(row, sample)(*inputs).backward(grad)
        assert [t is not None and t.grad is not None for t in inputs] == list(mask)


@ALL
def test_deterministic(row, sample, device, deterministic):
    tensors = typed(row, sample, device, torch.float32)
    first = with_gradients(public(row, sample), tensors)
    for _ in range(3):
        for one, other in zip(with_gradients(public(row, sample), tensors), first, strict=True):
            assert torch.equal(one, other)


@SMALL
@pytest.mark.parametrize("half", HALVES, ids=str)
def test_autocast(half, row, sample, device):
    """Values take autocast's dtype and maps float32, gradients the tensors' own; float64 stays as it is."""
    tensors = leaves(typed(row, sample, device, torch.float32, torch.bfloat16))
    cast = typed(row, sample._replace(tensors=tensors), device, half, torch.float32)
    with torch.autocast(device, half):
        output = public(row, sample)(*tensors)
        doubles = public(row, sample)(*typed(row, sample, device, torch.double))
    assert output.dtype == half
    assert torch.equal(output, public(row, sample)(*cast))
    assert doubles.dtype == torch.double
    output.sum().backward()
    assert all(t is None or t.grad.dtype == t.dtype for t in tensors)


# --- Derivatives ------------------------------------------------------------------------------------------------------


@SMALL
def test_finite_differences(row, sample, device):
    """Backward and forward mode, and backward of backward."""
    inputs = leaves(typed(row, sample, device, torch.double))
    for function in (public, registered):
        f = function(row, sample)
        assert torch.autograd.gradcheck(f, inputs, check_forward_ad=True, nondet_tol=1e-12)
        assert torch.autograd.gradgradcheck(f, inputs, nondet_tol=1e-12)


@SMALL
@FUNCTIONS
def test_jvp(function, row, sample, device):
    """Of each tensor alone, and of all."""
    tensors = typed(row, sample, device, torch.double)
    everything = present(tensors)

    def jvp(f: Callable[..., Tensor], moving: Sequence[int]) -> Any:
        def moved(*values: Tensor) -> Tensor:
            full = list(tensors)
            for i, value in zip(moving, values, strict=True):
                full[i] = value
            return f(*full)

        chosen = tuple(tensors[i] for i in moving)
        return torch.func.jvp(moved, chosen, tuple(t.cos() for t in chosen))

    for moving in {*((i,) for i in everything), tuple(everything)}:
        assert_close(jvp(function(row, sample), moving), jvp(definition(row, sample.options), moving))


@SMALL
@FUNCTIONS
def test_vmap(function, row, sample, device):
    """Over each tensor alone, and over all; the outputs and, of the function, the gradients of each slice."""
    if function is registered and not hasattr(torch.library, "register_vmap"):
        pytest.skip(f"torch {torch.__version__} has no vmap rules for registered operators")
    tensors = typed(row, sample, device, torch.double)
    everything, exact = present(tensors), definition(row, sample.options)
    for mapped in {*((i,) for i in everything), tuple(everything)}:
        dims = tuple(0 if i in mapped else None for i in range(len(tensors)))
        stacks = [t if d is None else torch.stack([t, t.cos(), t + 0.3]) for t, d in zip(tensors, dims, strict=True)]
        slices = [[t if d is None else t[i] for t, d in zip(stacks, dims, strict=True)] for i in range(3)]
        actual = torch.vmap(function(row, sample), in_dims=dims)(*stacks)
        assert_close(actual, torch.stack([exact(*s) for s in slices]))
        if function is public:
            numbers = tuple(everything)
            actual = torch.vmap(torch.func.grad(loss(function(row, sample)), numbers), in_dims=dims)(*stacks)
            each = [torch.func.grad(loss(exact), numbers)(*s) for s in slices]
            assert_close(actual, [torch.stack(g) for g in zip(*each, strict=True)])


# --- As torch sees it -------------------------------------------------------------------------------------------------


def opcheck(row: Row, sample: Sample, tensors: Sequence[Tensor | None], mask: Sequence[bool]) -> None:
    torch.library.opcheck(row.operator.op, (*leaves(tensors, mask), *sample.options))
    grad = random_like(row.operator.op(*tensors, *sample.options))
    torch.library.opcheck(row.operator.backward_op, (grad, *tensors, *sample.options, list(mask)))


# Every sample in float32, and the first of each operator in every dtype.
OPCHECKED = [(row, sample, torch.float32, None) for row in OPERATORS for sample in row.samples] + [
    (row, row.samples[0], *types) for row in OPERATORS for types in MIXED if types[0] != torch.float32
]


@pytest.mark.parametrize(
    ("row", "sample", "dtype", "map_dtype"), OPCHECKED, ids=[f"{r}-{s.name}-{d}-{m}" for r, s, d, m in OPCHECKED]
)
def test_opcheck(row, sample, dtype, map_dtype, device):
    tensors = row.operator.full_maps(typed(row, sample, device, dtype, map_dtype), sample.options)
    opcheck(row, sample, tensors, wanted(sample))


@rows
def test_opcheck_of_some_gradients(row, device):
    """Where not all are wanted: half a second for each combination, so of one sample."""
    sample = row.samples[0]
    tensors = row.operator.full_maps(typed(row, sample, device, torch.float32), sample.options)
    for mask in masks(sample):
        if list(mask) != wanted(sample):
            opcheck(row, sample, tensors, mask)


@rows
def test_opcheck_of_second_derivatives(row, device):
    sample = row.small[0]
    tensors = leaves(row.operator.full_maps(typed(row, sample, device, torch.double), sample.options))
    grad = random_like(row.operator.op(*tensors, *sample.options)).detach().requires_grad_()
    torch.library.opcheck(row.operator.backward_op, (grad, *tensors, *sample.options, wanted(sample)))


@ALL
def test_fakes_and_kernels_agree(row, sample, device):
    tensors = typed(row, sample, device, torch.float32)
    tensors = row.operator.full_maps(tensors, sample.options)
    mode = FakeTensorMode()
    fakes = [t if t is None else mode.from_tensor(t) for t in tensors]
    with mode:
        fake = row.operator.op(*fakes, *sample.options)
        fake_grads = row.operator.backward_op(fake, *fakes, *sample.options, wanted(sample))
    real = row.operator.op(*tensors, *sample.options)
    grads = row.operator.backward_op(real, *tensors, *sample.options, wanted(sample))
    for one, other in zip((fake, *fake_grads), (real, *grads), strict=True):
        assert (one.shape, one.stride(), one.dtype, one.device) == (
            other.shape,
            other.stride(),
            other.dtype,
            other.device,
        )
    assert public(row, sample)(*(t if t is None else t.to("meta") for t in tensors)).shape == real.shape


@SMALL
def test_functionalize(row, sample, device):
    tensors = typed(row, sample, device, torch.double)
    assert torch.equal(torch.func.functionalize(public(row, sample))(*tensors), public(row, sample)(*tensors))


@SMALL
def test_compile(row, sample, device):
    torch._dynamo.reset()
    tensors = typed(row, sample, device, torch.float32)
    compiled = torch.compile(public(row, sample), fullgraph=True, backend="aot_eager")
    assert_close(with_gradients(compiled, tensors), with_gradients(public(row, sample), tensors), 1e-6)


@SMALL
def test_export(row, sample, device):
    class Module(torch.nn.Module):
        def forward(self, *tensors: Tensor) -> Tensor:
            return row.public(*tensors, *sample.options)

    tensors = typed(row, sample, device, torch.float32)
    program = torch.export.export(Module(), tensors)
    called = [n.target for n in program.graph.nodes if getattr(n.target, "namespace", "") == _dispatch.NAME]
    assert called == [row.operator.op]
    assert torch.equal(program.module()(*tensors), public(row, sample)(*tensors))


@pytest.mark.skipif(TORCH < (2, 5), reason=f"torch {torch.__version__}'s counter does not find registered formulas")
@SMALL
def test_flops(row, sample, device):
    operator, tensors = row.operator, typed(row, sample, device, torch.float32)
    tensors = operator.full_maps(tensors, sample.options)
    shapes = [None if t is None else t.shape for t in tensors]
    forward = operator.flops(shapes, sample.options)
    assert forward > 0
    for mask in masks(sample):
        with FlopCounterMode(display=False) as counter:
            output = public(row, sample)(*leaves(tensors, mask))
            assert counter.get_total_flops() == forward
            output.sum().backward()
        backward = operator.backward_flops(shapes, sample.options, mask)
        assert backward > 0
        assert counter.get_total_flops() == forward + backward


# --- Errors -----------------------------------------------------------------------------------------------------------


@rows
@FUNCTIONS
def test_errors(function, row, device):
    """Each tensor in turn of a wrong kind. The message names it, or both where only one is wrong beside the other."""
    sample = row.samples[0]
    tensors = typed(row, sample, device, torch.float32)
    for i in present(tensors):
        name = row.operator.arguments[i].name

        def call(wrong: Any, i: int = i) -> Tensor:
            return row.public(*tensors[:i], wrong, *tensors[i + 1 :], *sample.options)

        if function is registered:
            call = lambda wrong, i=i: row.operator.op(*tensors[:i], wrong, *tensors[i + 1 :], *sample.options)  # noqa: E731
        for dtype in (torch.int64, torch.complex64, torch.bool):
            with pytest.raises(TypeError, match=rf"{name}.*{dtype}"):
                call(tensors[i].to(dtype))
        if row.operator.count > 1:
            with pytest.raises(TypeError, match=name):
                call(tensors[i].double())
            with pytest.raises(RuntimeError, match="one device"):
                call(tensors[i].to("meta"))
        if function is public:
            with pytest.raises(TypeError, match=f"{name} must be a dense tensor"):
                call(tensors[i].to_sparse())
            with pytest.raises(TypeError, match=rf"{name} must be (None or )?a torch\.Tensor, got list"):
                call(tensors[i].tolist())
