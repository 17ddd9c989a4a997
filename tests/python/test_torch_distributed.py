"""Training across processes: gloo ranks on the CPU, NCCL ranks where there are GPUs. Values against one process's."""

import functools
from typing import Any

import pytest
import torch
import torch.distributed as dist
from dynamic_dilation_unfold import dynamic_dilation_unfold
from helpers import Model, random_input, random_map, relative_error
from ranks import TORCH, launch, needs_processes, needs_rules, placement
from torch import Tensor, nn

pytestmark = needs_processes


def model_and_batch(kind: str) -> tuple[Model, Tensor]:
    torch.manual_seed(0)
    return Model().double().to(kind), random_input((4, 4, 6, 7)).double().to(kind)


def gradients_of_one_process(kind: str) -> dict[str, Tensor]:
    model, x = model_and_batch(kind)
    model(x).square().mean().backward()
    return {name: p.grad for name, p in model.named_parameters()}


# --- Data parallel ----------------------------------------------------------------------------------------------------


def data_parallel(rank: int, kind: str) -> None:
    model, x = model_and_batch(kind)
    parallel = nn.parallel.DistributedDataParallel(model, device_ids=[rank] if kind == "cuda" else None)
    parallel(x.chunk(2)[rank]).square().mean().backward()
    for name, expected in gradients_of_one_process(kind).items():
        assert relative_error(model.get_parameter(name).grad, expected) <= 1e-12


def test_distributed_data_parallel(kind):
    launch(data_parallel, 2, kind)


def fully_sharded(rank: int, kind: str) -> None:
    try:
        from torch.distributed.fsdp import fully_shard
    except ImportError:
        from torch.distributed._composable.fsdp import fully_shard

    model, x = model_and_batch(kind)
    reference, _ = model_and_batch(kind)
    optimiser = torch.optim.SGD(reference.parameters(), 0.1)
    reference(x).square().mean().backward()
    optimiser.step()
    expected = {name: (p.grad, p.detach()) for name, p in reference.named_parameters()}

    mesh = dist.device_mesh.init_device_mesh(kind, (2,))
    for part in (model.rate, model.head, model):
        fully_shard(part, mesh=mesh)
    optimiser = torch.optim.SGD(model.parameters(), 0.1)
    model(x.chunk(2)[rank]).square().mean().backward()
    optimiser.step()
    for name, (grad, value) in expected.items():
        parameter = model.get_parameter(name)
        assert relative_error(parameter.grad.full_tensor(), grad) <= 1e-12
        assert relative_error(parameter.full_tensor(), value) <= 1e-12


@pytest.mark.skipif(TORCH < (2, 6), reason=f"torch {torch.__version__} has no fully_shard on the CPU")
def test_fully_sharded_data_parallel(kind):
    launch(fully_sharded, 2, kind)


# --- DTensor ----------------------------------------------------------------------------------------------------------

# Name: groups, batch of the map, placements of input, map and map gradient ("S0" is split along dimension 0, "R" whole,
# "P" a sum that is still due), and whether a call may communicate.
SHARDINGS = {
    "batch": (1, 4, "S0", "S0", "S0", False),
    "batch with groups": (4, 4, "S0", "S0", "S0", False),
    "batch, map for all": (1, 1, "S0", "R", "P", False),
    "channels": (1, 4, "S1", "R", "P", False),
    "channels, map for all": (1, 1, "S1", "R", "P", False),
    "channels with their groups": (4, 4, "S1", "S1", "S1", False),
    "channels with their groups, map for all": (4, 1, "S1", "S1", "S1", False),
    "replicated": (4, 4, "R", "R", "R", False),
    "height": (4, 4, "S2", "S2", "R", True),
    "groups that do not split": (1, 4, "S1", "S2", "P", True),
}


def sharded(rank: int, kind: str, ranks: int, names: tuple[str, ...]) -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import distribute_tensor
    from torch.distributed.tensor.debug import CommDebugMode

    mesh = init_device_mesh(kind, (ranks,))
    for name in names:
        groups, map_batch, input_at, map_at, grad_at, may_communicate = SHARDINGS[name]
        # The same sizes of tensors with two windows: nothing of one call may be reused for the other.
        for kernel_size, padding in ((3, 1), (5, 2)):
            call = functools.partial(dynamic_dilation_unfold, kernel_size=kernel_size, padding=padding, groups=groups)
            x = random_input((4, 8, 5, 6)).to(kind)
            rates = random_map("fractional", (map_batch, groups, 5, 6)).to(kind)
            grad = random_input((4, 8 * kernel_size**2, 30), seed=2).to(kind)
            leaves = x.clone().requires_grad_(), rates.clone().requires_grad_()
            expected = call(leaves[0], dilation_map=leaves[1])
            expected.backward(grad)

            shards = (
                distribute_tensor(x, mesh, [placement(input_at)]).requires_grad_(),
                distribute_tensor(rates, mesh, [placement(map_at)]).requires_grad_(),
            )
            with CommDebugMode() as forward:
                output = call(shards[0], dilation_map=shards[1])
            grad_shards = distribute_tensor(grad, mesh, output.placements)
            with CommDebugMode() as backward:
                output.backward(grad_shards)
            assert (forward.get_total_counts() + backward.get_total_counts() > 0) == may_communicate, name
            if not may_communicate:
                assert output.placements == (placement(input_at),), name
                assert shards[0].grad.placements == (placement(input_at),), name
                assert shards[1].grad.placements == (placement(grad_at),), name
            assert torch.equal(output.full_tensor(), expected), name
            for shard, leaf in zip(shards, leaves, strict=True):
                assert relative_error(shard.grad.full_tensor(), leaf.grad) <= 1e-6, name


@needs_rules
@pytest.mark.parametrize("ranks", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_dtensor(ranks, kind):
    launch(sharded, ranks, kind, ranks, tuple(SHARDINGS))


def sharded_two_ways(rank: int, kind: str) -> None:
    """Batch over one axis of a mesh, channels with their groups over the other."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard, distribute_tensor

    mesh = init_device_mesh(kind, (2, 2))
    x, rates = random_input((4, 8, 5, 6)).to(kind), random_map("fractional", (4, 2, 5, 6)).to(kind)
    call = functools.partial(dynamic_dilation_unfold, kernel_size=3, padding=1, groups=2)
    leaves = x.clone().requires_grad_(), rates.clone().requires_grad_()
    expected = call(leaves[0], dilation_map=leaves[1])
    expected.square().sum().backward()
    shards = [distribute_tensor(t, mesh, [Shard(0), Shard(1)]).requires_grad_() for t in (x, rates)]
    output = call(shards[0], dilation_map=shards[1])
    assert output.placements == (Shard(0), Shard(1))
    assert output.to_local().shape == (2, 36, 30)
    output.square().sum().backward()
    assert torch.equal(output.full_tensor(), expected)
    for shard, leaf in zip(shards, leaves, strict=True):
        assert relative_error(shard.grad.full_tensor(), leaf.grad) <= 1e-6


@needs_rules
def test_dtensor_on_a_mesh_of_two_axes(kind):
    launch(sharded_two_ways, 4, kind)


class Pointwise(nn.Linear):
    """A convolution of size 1. Larger ones are wrong on DTensors with a split batch in some releases of torch."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input.movedim(1, -1)).movedim(-1, 1)


def sharded_model(rank: int, kind: str, ranks: int) -> None:
    """A module with replicated parameters on a split batch: only the parameters' gradients are communicated."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard, distribute_module, distribute_tensor
    from torch.distributed.tensor.debug import CommDebugMode

    mesh = init_device_mesh(kind, (ranks,))
    model, x = model_and_batch(kind)
    model.rate = Pointwise(4, 2).to(x)
    expected = model(x)
    expected.square().sum().backward()
    grads = {name: p.grad for name, p in model.named_parameters()}
    model.zero_grad()
    distribute_module(model, mesh)
    with CommDebugMode() as communication:
        output = model(distribute_tensor(x, mesh, [Shard(0)]))
        assert output.placements == (Shard(0),)
        output.square().sum().backward()
    assert "gather" not in str(communication.get_comm_counts())
    assert relative_error(output.full_tensor(), expected) <= 1e-12
    for name, grad in grads.items():
        assert relative_error(model.get_parameter(name).grad.full_tensor(), grad) <= 1e-12, name


@needs_rules
@pytest.mark.parametrize("ranks", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_dtensor_model(ranks, kind):
    launch(sharded_model, ranks, kind, ranks)


def refused(rank: int, kind: str) -> None:
    """The shapes of the whole tensors are validated, not those of the shards."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard, distribute_tensor

    mesh = init_device_mesh(kind, (2,))
    x, rates = (distribute_tensor(torch.ones(s), mesh, [Shard(1)]) for s in ((4, 8, 5, 6), (4, 4, 5, 6)))
    with pytest.raises(ValueError, match="dilation_map must have shape"):
        dynamic_dilation_unfold(x, 3, rates, padding=1, groups=2)


@needs_rules
def test_dtensor_errors():
    launch(refused, 2, "cpu")


def first_derivatives_alone(rank: int, kind: str) -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard, distribute_tensor

    mesh = init_device_mesh(kind, (2,))
    x, rates = (
        distribute_tensor(t.to(kind), mesh, [Shard(0)]).requires_grad_()
        for t in (random_input((4, 8, 5, 6)), random_map("fractional", (4, 4, 5, 6)))
    )
    message = "of DTensors there are first derivatives in reverse mode alone: .* gather them with full_tensor"
    loss = lambda rates: dynamic_dilation_unfold(x, 3, rates, padding=1, groups=4).square().sum()  # noqa: E731
    (grad,) = torch.autograd.grad(loss(rates), rates, create_graph=True)
    with pytest.raises(RuntimeError, match=message):
        torch.autograd.grad(grad.square().sum(), x)
    with pytest.raises(RuntimeError, match=message):
        torch.func.grad(lambda m: torch.func.grad(loss)(m).square().sum())(rates.detach())
    with pytest.raises(RuntimeError):  # torch's own, before the operator is called
        torch.func.jvp(loss, (rates.detach(),), (rates.detach(),))


@needs_rules
def test_dtensor_derivatives(kind):
    launch(first_derivatives_alone, 2, kind)


def compiled(rank: int, kind: str) -> None:
    """Groups stay on their ranks: nothing but the operators is in the programs."""
    from torch._dynamo.backends.common import aot_autograd
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard, distribute_tensor

    programs: list[list[Any]] = []

    def note(graph: Any, _: Any) -> Any:
        programs.append(
            [node.target for node in graph.graph.nodes if "unfold" in str(node.target) or "c10d" in str(node.target)]
        )
        return graph

    mesh = init_device_mesh(kind, (2,))
    x, rates = random_input((4, 8, 5, 6)).to(kind), random_map("fractional", (4, 4, 5, 6)).to(kind)
    call = functools.partial(dynamic_dilation_unfold, kernel_size=3, padding=1, groups=4)
    leaves = x.clone().requires_grad_(), rates.clone().requires_grad_()
    expected = call(leaves[0], dilation_map=leaves[1])
    expected.square().sum().backward()
    shards = [distribute_tensor(t, mesh, [Shard(1)]).requires_grad_() for t in (x, rates)]
    backend = aot_autograd(fw_compiler=note, bw_compiler=note)
    output = torch.compile(call, fullgraph=True, backend=backend)(shards[0], dilation_map=shards[1])
    assert output.placements == (Shard(1),)
    output.square().sum().backward()
    operators = torch.ops.dynamic_dilation_unfold
    assert programs == [[operators.unfold.default], [operators.unfold_backward.default]]
    assert torch.equal(output.full_tensor(), expected)
    for shard, leaf in zip(shards, leaves, strict=True):
        assert shard.grad.placements == (Shard(1),)
        assert relative_error(shard.grad.full_tensor(), leaf.grad) <= 1e-6


@pytest.mark.skipif(TORCH < (2, 13), reason=f"not tried with torch {torch.__version__}")
def test_compiled_dtensor(kind):
    launch(compiled, 2, kind)


def operator_alone(rank: int, kind: str) -> None:
    """The registered operator and torch.func keep groups on their ranks too."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard, distribute_tensor

    mesh = init_device_mesh(kind, (2,))
    x, rates = random_input((4, 8, 5, 6)).to(kind), random_map("fractional", (4, 4, 5, 6)).to(kind)
    call = lambda x, m: torch.ops.dynamic_dilation_unfold.unfold(x, m, [3] * 2, [1] * 2, [1] * 2, [1] * 2, 4)  # noqa: E731
    shards = [distribute_tensor(t, mesh, [Shard(1)]) for t in (x, rates)]
    assert call(*shards).placements == (Shard(1),)
    grad = lambda x, m: torch.func.grad(  # noqa: E731
        lambda m: dynamic_dilation_unfold(x, 3, m, padding=1, groups=4).square().sum()
    )(m)
    assert grad(*shards).placements == (Shard(1),)
    for function in (call, grad):
        assert relative_error(function(*shards).full_tensor(), function(x, rates)) <= 1e-6


@needs_rules
def test_dtensor_operator(kind):
    launch(operator_alone, 2, kind)
