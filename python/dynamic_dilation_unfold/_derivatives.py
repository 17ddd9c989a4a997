"""Derivatives in differentiable torch, by transposing a function such as the reference: what no kernel computes."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.autograd import Function

from ._torch_private import unwrapped

if TYPE_CHECKING:
    from ._operator import Gradients, Mask, Operator, Tensors


def apply(function: type[Function], *arguments: Any) -> Any:
    """``function.apply``, which has no types in torch: called in this one place, for the type checker."""
    return function.apply(*arguments)


def has_dtensor(*tensors: Any) -> bool:
    module = sys.modules.get("torch.distributed.tensor")  # takes a second to import
    return module is not None and any(isinstance(t, module.DTensor) for t in tensors)


def refuse_dtensors(tensors: Sequence[Tensor | None]) -> None:
    if has_dtensor(*(t if t is None else unwrapped(t) for t in tensors)):
        raise RuntimeError(
            "of DTensors there are first derivatives in reverse mode alone: for second derivatives or forward mode, "
            "gather them with full_tensor()"
        )


def reference_of(operator: Operator, options: Any) -> Callable[..., Tensor]:
    """The reference as a function of the tensors."""

    def forward(*tensors: Tensor) -> Tensor:
        refuse_dtensors(tensors)
        return operator.reference(tensors, operator.resolved(tensors, options))

    return forward


def backward_of(operator: Operator, options: Any, mask: Mask) -> Callable[..., Tensors]:
    """The backward in differentiable torch, as a function of gradient and tensors."""

    def backward(grad: Tensor, *tensors: Tensor) -> Tensors:
        refuse_dtensors(tensors)
        return filled(operator.vjp(grad, tensors, operator.resolved(tensors, options), mask), tensors[0])

    return backward


def filled(grads: Gradients, like: Tensor) -> Tensors:
    """An operator cannot return None: a gradient that is not wanted is an empty tensor, of its own."""
    return tuple(like.new_zeros(0) if grad is None else grad for grad in grads)


def _restrict(function: Callable[..., Any], values: Tensors, chosen: list[int]) -> tuple[Callable[..., Any], Tensors]:
    """The function of the chosen arguments alone, the others held fixed, and their values."""

    def restricted(*arguments: Tensor) -> Any:
        full = list(values)
        for i, argument in zip(chosen, arguments, strict=True):
            full[i] = argument
        return function(*full)

    return restricted, tuple(values[i] for i in chosen)


def pullback(function: Callable[..., Any], values: Tensors, wanted: Mask, cotangents: Any) -> Gradients:
    """Gradients with respect to the wanted arguments, None for the others."""
    chosen = [i for i, want in enumerate(wanted) if want]
    if not chosen:
        return (None,) * len(values)
    restricted, arguments = _restrict(function, values, chosen)
    grads = dict(zip(chosen, torch.func.vjp(restricted, *arguments)[1](cotangents), strict=True))
    return tuple(grads.get(i) for i in range(len(values)))


def pushforward(function: Callable[..., Any], values: Tensors, tangents: Sequence[Tensor | None]) -> Any:
    """``jvp`` as the transpose of a transpose: torch's forward mode cannot nest, and this runs inside it."""
    chosen = [i for i, tangent in enumerate(tangents) if tangent is not None]
    restricted, arguments = _restrict(function, values, chosen)
    linearised: Any = torch.func.vjp(restricted, *arguments)  # torch's type allows for a third value
    outputs, transpose = linearised
    zeros = tuple(map(torch.zeros_like, outputs)) if isinstance(outputs, tuple) else torch.zeros_like(outputs)
    return torch.func.vjp(transpose, zeros)[1](tuple(tangents[i] for i in chosen))[0]
