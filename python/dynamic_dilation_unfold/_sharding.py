"""How DTensors shard through the operators.

Imported when the first DTensor is met, since torch.distributed.tensor takes a second to import.
"""

from __future__ import annotations

from typing import Any

from torch.distributed.tensor import Partial, Replicate, Shard
from torch.distributed.tensor.experimental import register_sharding

from ._operator import Operator
from ._torch_private import cache_by_all_options

__all__ = ["Partial", "Replicate", "Shard", "register", "splits_evenly"]

Placements = list[Any]


def splits_evenly(spec: Any, dim: int, count: int) -> bool:
    """Whether the ranks that share dimension ``dim`` of a tensor get equal parts of ``count``."""
    ways = 1
    for axis, placement in enumerate(spec.placements):
        if placement.is_shard(dim):
            ways *= spec.mesh.size(axis)
    return ways > 1 and count % ways == 0


def register(operator: Operator) -> None:
    n = operator.count

    def forward(*arguments: Any) -> list[tuple[Placements, Placements]]:
        specs, rest = arguments[:n], arguments[n:]
        ways = operator.shards(specs, operator.unpack(rest))
        return [([output], [*tensors, *[None] * len(rest)]) for output, tensors, _ in ways]

    def backward(*arguments: Any) -> list[tuple[Placements, Placements]]:
        specs, rest = arguments[1 : 1 + n], arguments[1 + n :]
        ways = operator.shards(specs, operator.unpack(rest[:-1]))

        def returned(grads: tuple[Any, ...]) -> Placements:
            return [g if want else Replicate() for g, want in zip(grads, rest[-1], strict=True)]

        def whole(output: Any) -> Any:
            """Of an output that is a sum still due, each rank needs the whole gradient."""
            return Replicate() if output.is_partial() else output

        return [(returned(grads), [whole(output), *tensors, *[None] * len(rest)]) for output, tensors, grads in ways]

    for op, rule, tensors in ((operator.op, forward, n), (operator.backward_op, backward, 1 + n)):
        register_sharding(op)(rule)
        cache_by_all_options(op, tensors)
