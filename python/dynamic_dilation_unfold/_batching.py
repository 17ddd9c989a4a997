"""vmap by folding: the mapped dimension joins the batch, so that one call of the kernels does the work."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ._operator import Argument, Mask, Operator, Tensors

Dims = Sequence[int | None]  # which dimension of each tensor is mapped


def _lead(tensor: Tensor, dim: int | None, size: int, dims: int) -> Tensor:
    """``[size, B, ...]`` of ``1 + dims`` dimensions, B = 1 for an unbatched call."""
    tensor = tensor.expand(size, *tensor.shape) if dim is None else tensor.movedim(dim, 0)
    return tensor if tensor.dim() == 1 + dims else tensor.unsqueeze(1)


def _fold(tensor: Tensor, batch: int) -> Tensor:
    size, _, *rest = tensor.shape
    return tensor.expand(size, batch, *rest).flatten(0, 1)


def _is_unbatched(operator: Operator, dims: Dims, tensors: Tensors) -> bool:
    return tensors[0].dim() - (dims[0] is not None) == operator.arguments[0].dims - 1


def _loop(run: Callable[..., Any], size: int, dims: Dims, tensors: Tensors) -> list[Any]:
    """``run`` for each slice by itself."""

    def slices(i: int) -> list[Tensor]:
        return [t if dim is None else t.select(dim, i) for t, dim in zip(tensors, dims, strict=True)]

    return [run(*slices(i)) for i in range(size)]


def _has_mapped_weights(arguments: Sequence[Argument], dims: Dims) -> bool:
    """Whether a tensor that has no batch to fold into differs from slice to slice."""
    return any(a.batch == "none" and dim is not None for a, dim in zip(arguments, dims, strict=True))


def forward(
    operator: Operator, run: Callable[..., Tensor], size: int, dims: Dims, tensors: Tensors
) -> tuple[Tensor, int]:
    """``run`` for each of ``size`` slices: the output, and where its mapped dimension is."""
    if _has_mapped_weights(operator.arguments, dims):
        return torch.stack(_loop(run, size, dims, tensors)), 0
    batch = _lead(tensors[0], dims[0], size, operator.arguments[0].dims).shape[1]
    folded: list[Tensor] = []
    for argument, tensor, dim in zip(operator.arguments, tensors, dims, strict=True):
        if tensor is None or argument.batch == "none":
            folded.append(tensor)
            continue
        if argument.batch == "shared" and dim is None:
            # What all slices and images share stays one: the operator broadcasts it over the larger batch too.
            shared = _lead(tensor, None, 1, argument.dims)[0]
            if shared.shape[0] == 1:
                folded.append(shared)
                continue
        folded.append(_fold(_lead(tensor, dim, size, argument.dims), batch))
    output = run(*folded).unflatten(0, (size, batch))
    return output.squeeze(1) if _is_unbatched(operator, dims, tensors) else output, 0


def backward(
    operator: Operator,
    run: Callable[..., Tensors],
    size: int,
    dims: Dims,
    tensors: Tensors,  # the gradient first, or what is said to stand before it
    mask: Mask,  # of the results, which are like the tensors but for the first
    before: Sequence[Argument] = (),
) -> tuple[tuple[Tensor, ...], tuple[int | None, ...]]:
    """``run`` for each of ``size`` slices, each with gradients of its own: nothing is shared among slices."""
    arguments = (*before, Argument("grad", operator.output_dims), *operator.arguments)
    out_dims = tuple(0 if want else None for want in mask)
    own_weights = any(a.batch == "none" and want for a, want in zip(arguments[1:], mask, strict=True))
    if own_weights or _has_mapped_weights(arguments, dims):
        each = zip(*_loop(run, size, dims, tensors), strict=True)
        return tuple(torch.stack(g) if want else g[0] for g, want in zip(each, mask, strict=True)), out_dims
    own = 1 + len(before)
    unbatched = _is_unbatched(operator, dims[own:], tensors[own:])
    lead = [
        t if t is None or a.batch == "none" else _lead(t, dim, size, a.dims)
        for a, t, dim in zip(arguments, tensors, dims, strict=True)
    ]
    batch = lead[own].shape[1]
    grads = list(
        run(*(t if t is None or a.batch == "none" else _fold(t, batch) for a, t in zip(arguments, lead, strict=True)))
    )
    for i, want in enumerate(mask):
        if not want:
            continue
        grads[i] = grads[i].unflatten(0, (size, batch))
        if lead[1 + i].shape[1] != batch:
            grads[i] = grads[i].sum(1, keepdim=True)
        if unbatched:
            grads[i] = grads[i].squeeze(1)
    return tuple(grads), out_dims
