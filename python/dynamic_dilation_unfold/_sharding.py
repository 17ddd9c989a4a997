"""How DTensors shard through the operators: over the batch, or over channels with their groups.

Imported when the first DTensor is met, since torch.distributed.tensor takes a second to import.
"""

from __future__ import annotations

from typing import Any

from torch.distributed.tensor import DTensor, Partial, Replicate, Shard
from torch.distributed.tensor._op_schema import RuntimeSchemaInfo
from torch.distributed.tensor.experimental import register_sharding

Placements = list[Any]


def _splits_evenly(spec: Any, dim: int, count: int) -> bool:
    """Whether the ranks that share dimension ``dim`` of a tensor get equal parts of ``count``."""
    ways = 1
    for axis, placement in enumerate(spec.placements):
        if placement.is_shard(dim):
            ways *= spec.mesh.size(axis)
    return ways > 1 and count % ways == 0


def _shards(input: Any, dilation_map: Any, given_groups: int) -> list[tuple[Any, Any, Any]]:
    """Each way to split along one axis of a mesh: placements of the input, of the map, and of the map's gradient.

    The columns and their gradient split as the input does, since their dimensions are its batch and its channels.
    """
    channel = input.ndim - 3
    groups = dilation_map.shape[channel]
    ways: list[tuple[Any, Any, Any]] = [(Replicate(), Replicate(), Replicate())]
    if channel == 1:
        shared = dilation_map.shape[0] == 1
        ways.append((Shard(0), Replicate(), Partial()) if shared else (Shard(0), Shard(0), Shard(0)))
    # Columns are chunked by their own count, so channels must split evenly for both to be cut at the same place.
    if groups == 1 and _splits_evenly(input, channel, input.shape[channel]):
        ways.append((Shard(channel), Replicate(), Partial()))
    # A shard has fewer groups than the call was given, unless that leaves them to the map.
    if given_groups == 0 and groups > 1 and _splits_evenly(input, channel, groups):
        ways.append((Shard(channel), Shard(channel), Shard(channel)))
    return ways


def _unfold(input: Any, dilation_map: Any, *options: Any) -> list[tuple[Placements, Placements]]:
    return [([x], [x, rate, *[None] * len(options)]) for x, rate, _ in _shards(input, dilation_map, options[4])]


def _unfold_backward(grad: Any, input: Any, dilation_map: Any, *rest: Any) -> list[tuple[Placements, Placements]]:
    wanted = rest[5]

    def outputs(*placements: Any) -> Placements:
        return [p if want else Replicate() for p, want in zip(placements, wanted, strict=True)]

    return [
        (outputs(x, grad_rate), [x, x, rate, *[None] * len(rest)])
        for x, rate, grad_rate in _shards(input, dilation_map, rest[4])
    ]


def register(unfold_op: Any, backward_op: Any) -> None:
    propagator = DTensor._op_dispatcher.sharding_propagator
    for op, rule, tensors in ((unfold_op, _unfold, 2), (backward_op, _unfold_backward, 3)):
        register_sharding(op)(rule)
        # Placements are cached by the arguments from a position on, which register_sharding takes to be the first int:
        # that would leave out kernel_size and the other pairs, so that the next call with another one met stale shapes.
        strategy = propagator.op_strategy_funcs[op]
        propagator.register_op_strategy(op, strategy, RuntimeSchemaInfo(tensors, needs_pytree=True))
