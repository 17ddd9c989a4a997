"""vmap by folding: the mapped dimension joins the batch, so that one call of the kernels does the work."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor


def _lead(tensor: Tensor, dim: int | None, size: int, dims: int) -> Tensor:
    """``[size, B, ...]`` of ``dims`` dimensions, B = 1 for an unbatched call."""
    tensor = tensor.expand(size, *tensor.shape) if dim is None else tensor.movedim(dim, 0)
    return tensor if tensor.dim() == dims else tensor.unsqueeze(1)


def _fold(tensor: Tensor, batch: int) -> Tensor:
    size, _, *rest = tensor.shape
    return tensor.expand(size, batch, *rest).flatten(0, 1)


def unfold_over_batch(
    run: Callable[[Tensor, Tensor], Tensor],
    size: int,
    dims: Sequence[int | None],
    input: Tensor,
    dilation_map: Tensor,
) -> tuple[Tensor, int]:
    """``run`` for each of ``size`` slices: the output, and where its mapped dimension is."""
    unbatched = input.dim() - (dims[0] is not None) == 3
    input = _lead(input, dims[0], size, 5)
    batch = input.shape[1]
    # A map for all slices and images stays one: the operator broadcasts it over the larger batch too.
    shared = _lead(dilation_map, None, 1, 5)[0] if dims[1] is None else None
    if shared is None or shared.shape[0] != 1:
        shared = _fold(_lead(dilation_map, dims[1], size, 5), batch)
    output = run(_fold(input, batch), shared).unflatten(0, (size, batch))
    return output.squeeze(1) if unbatched else output, 0


def backward_over_batch(
    run: Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]],
    size: int,
    dims: Sequence[int | None],
    grad: Tensor,
    input: Tensor,
    dilation_map: Tensor,
    wanted: Sequence[bool],
) -> tuple[tuple[Tensor, Tensor], tuple[int | None, int | None]]:
    """``run`` for each of ``size`` slices, each with a gradient of the map of its own: the map is never shared."""
    unbatched = input.dim() - (dims[1] is not None) == 3
    grad, input, dilation_map = (
        _lead(t, dim, size, n) for t, dim, n in zip((grad, input, dilation_map), dims, (4, 5, 5), strict=False)
    )
    batch, maps = input.shape[1], dilation_map.shape[1]
    grads: list[Any] = list(run(*(_fold(t, batch) for t in (grad, input, dilation_map))))
    for i, want in enumerate(wanted):
        if want:
            grads[i] = grads[i].unflatten(0, (size, batch))
    if wanted[1] and maps != batch:
        grads[1] = grads[1].sum(1, keepdim=True)
    if unbatched:
        grads = [g.squeeze(1) if want else g for g, want in zip(grads, wanted, strict=True)]
    first, second = (0 if want else None for want in wanted)
    return (grads[0], grads[1]), (first, second)
