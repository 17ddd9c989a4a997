"""The operators under torch.func, forward mode, modes, profilers and tensor subclasses.

Two Functions for all operators. They know every transform but forward mode inside forward mode, which is left to the
reference (torch calls ``Function.jvp`` without the outer tangents), and cost some 10 us a call.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from . import _batching, _kernels
from . import _torch_private as private
from ._derivatives import apply, backward_of, filled, reference_of
from ._operator import Gradients, Mask, Operator, Tensors


def forward(operator: Operator, tensors: Tensors, options: Any) -> Tensor:
    if _forward_mode_is_nested(tensors):
        return reference_of(operator, options)(*tensors)
    output: Tensor = apply(_TransformedForward, operator, options, *tensors)
    return output


def backward(operator: Operator, grad: Tensor, tensors: Tensors, options: Any, mask: Mask) -> Tensors:
    """Gradients that can be differentiated again; an empty tensor for one that is not wanted."""
    if _forward_mode_is_nested((grad, *tensors)):
        return backward_of(operator, options, mask)(*map(private.alive, (grad, *tensors)))  # as Function.apply does
    grads: Tensors = apply(_TransformedBackward, operator, options, mask, grad, *tensors)
    return grads


def gradients(operator: Operator, grad: Tensor, tensors: Tensors, options: Any, mask: Mask) -> Gradients:
    """Gradients of a recorded call by the route that the backward's surroundings want, None for one not wanted."""
    grad = _kernels.dense(grad)
    grads: Tensors
    if torch.compiler.is_compiling():
        grads = operator.call_backward_op(grad, tensors, options, mask)
    elif not torch.is_grad_enabled() and _kernels.may_read(grad, *tensors):
        return _kernels.backward(operator, grad, tensors, options, mask)
    else:
        grads = backward(operator, grad, tensors, options, mask)
    return tuple(g if want else None for g, want in zip(grads, mask, strict=True))


def _forward_mode_is_nested(tensors: Tensors) -> bool:
    """Whether one ``torch.func.jvp`` runs, or may run, inside another."""
    transforms = private.transforms()
    return private.has_tangent(tensors) if transforms is None else transforms.count("Jvp") > 1


class _TransformedForward(Function):
    @staticmethod
    def forward(operator: Operator, options: Any, *tensors: Tensor) -> Tensor:
        if _kernels.may_read(*tensors):
            return _kernels.forward(operator, tensors, options)
        output: Tensor = operator.op(*tensors, *options)
        return output

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.operator, ctx.options, *tensors = inputs
        ctx.save_for_backward(*tensors)
        ctx.save_for_forward(*tensors)
        ctx.set_materialize_grads(False)  # what is None costs no call of a kernel

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None) -> tuple[Tensor | None, ...]:
        if grad is None:
            return (None,) * len(ctx.needs_input_grad)
        return None, None, *gradients(ctx.operator, grad, ctx.saved_tensors, ctx.options, ctx.needs_input_grad[2:])

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        from . import _second  # not needed before the first call

        return _second.jvp(ctx.operator, ctx.saved_tensors, tangents[2:], ctx.options, _Transformed())

    @staticmethod
    def vmap(info: Any, dims: tuple[Any, ...], operator: Operator, options: Any, *tensors: Tensor) -> Any:
        run = lambda *t: apply(_TransformedForward, operator, options, *t)  # noqa: E731
        return _batching.forward(operator, run, info.batch_size, dims[2:], tensors)


class _TransformedBackward(Function):
    """Its own derivatives are calls of both Functions again, and of the reference; see ``_second.py``."""

    @staticmethod
    def forward(operator: Operator, options: Any, mask: Mask, *tensors: Tensor) -> Tensors:
        grad, *others = tensors
        if _kernels.may_read(*tensors):
            return filled(_kernels.backward(operator, grad, tuple(others), options, mask), others[0])
        return operator.call_backward_op(grad, tuple(others), options, mask)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensors) -> None:
        ctx.operator, ctx.options, ctx.mask, *tensors = inputs
        ctx.save_for_backward(*tensors)
        ctx.save_for_forward(*tensors)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor | None) -> tuple[Tensor | None, ...]:
        from . import _second

        grads = _second.vjp_of_backward(
            ctx.operator, ctx.saved_tensors, cotangents, ctx.options, ctx.mask, ctx.needs_input_grad[3:], _Transformed()
        )
        return None, None, None, *grads

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        from . import _second

        return _second.jvp_of_backward(
            ctx.operator, ctx.saved_tensors, tangents[3:], ctx.options, ctx.mask, _Transformed()
        )

    @staticmethod
    def vmap(info: Any, dims: tuple[Any, ...], operator: Operator, options: Any, mask: Mask, *tensors: Tensor) -> Any:
        run = lambda *t: apply(_TransformedBackward, operator, options, mask, *t)  # noqa: E731
        return _batching.backward(operator, run, info.batch_size, dims[3:], tensors, mask)


class _Transformed:
    """Calls by these Functions, for second derivatives."""

    def forward(self, operator: Operator, tensors: Tensors, options: Any) -> Tensor:
        return forward(operator, tensors, options)

    def backward(self, operator: Operator, grad: Tensor, tensors: Tensors, options: Any, mask: Mask) -> Tensors:
        return backward(operator, grad, tensors, options, mask)
