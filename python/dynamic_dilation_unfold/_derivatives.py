"""Derivatives in differentiable torch, by transposing the reference: whatever the kernels do not compute."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ._options import Options
from .reference import dynamic_dilation_unfold_reference

Tensors = tuple[Tensor, ...]
Gradients = tuple[Tensor | None, Tensor | None]


def has_dtensor(*tensors: Any) -> bool:
    module = sys.modules.get("torch.distributed.tensor")  # takes a second to import
    return module is not None and any(isinstance(t, module.DTensor) for t in tensors)


def _unwrapped(tensor: Tensor) -> Tensor:
    """The tensor below the wrappers of torch.func's transforms."""
    functorch = torch._C._functorch
    while functorch.is_functorch_wrapped_tensor(tensor):
        tensor = functorch.get_unwrapped(tensor)
    return tensor


def reference_of(options: Options) -> Callable[[Tensor, Tensor], Tensor]:
    kernel_size, stride, padding, dilation, groups = options

    def forward(input: Tensor, dilation_map: Tensor) -> Tensor:
        if has_dtensor(_unwrapped(input), _unwrapped(dilation_map)):
            raise RuntimeError(
                "of DTensors there are first derivatives in reverse mode alone: for second derivatives or forward "
                "mode, gather them with full_tensor()"
            )
        own_groups = groups or dilation_map.shape[-3]  # see _ops.py
        return dynamic_dilation_unfold_reference(
            input, kernel_size, dilation_map, stride, padding, dilation, own_groups
        )

    return forward


def _restrict(function: Callable[..., Any], values: Tensors, chosen: list[int]) -> tuple[Callable[..., Any], Tensors]:
    """The function of the chosen arguments alone, the others held fixed, and their values."""

    def restricted(*arguments: Tensor) -> Any:
        full = list(values)
        for i, argument in zip(chosen, arguments, strict=True):
            full[i] = argument
        return function(*full)

    return restricted, tuple(values[i] for i in chosen)


def pullback(
    function: Callable[..., Any], values: Tensors, wanted: Sequence[bool], cotangents: Any
) -> tuple[Tensor | None, ...]:
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
    zeros = torch.utils._pytree.tree_map(torch.zeros_like, outputs)
    return torch.func.vjp(transpose, zeros)[1](tuple(tangents[i] for i in chosen))[0]


def reference_backward(
    grad: Tensor, input: Tensor, dilation_map: Tensor, options: Options, wanted: Sequence[bool]
) -> Gradients:
    grads = pullback(reference_of(options), (input, dilation_map), wanted, grad)
    return grads[0], grads[1]


def backward_of(options: Options, wanted: Sequence[bool]) -> Callable[[Tensor, Tensor, Tensor], Tensors]:
    """``unfold_backward`` as a function that differentiates: the operator's outputs, where one not wanted is empty."""

    def backward(grad: Tensor, input: Tensor, dilation_map: Tensor) -> Tensors:
        return filled(reference_backward(grad, input, dilation_map, options, wanted), input)

    return backward


def filled(grads: Gradients, like: Tensor) -> tuple[Tensor, Tensor]:
    """An operator cannot return None: a gradient that is not wanted is an empty tensor."""
    empty = like.new_zeros(0)
    return empty if grads[0] is None else grads[0], empty if grads[1] is None else grads[1]
