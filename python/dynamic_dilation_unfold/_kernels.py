"""Calls of the kernels, and the reference for devices without any."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from . import _C
from . import _torch_private as private
from ._derivatives import reference_of
from ._operator import Gradients, Mask, Operator, Tensors

DTYPES = {torch.float16: 0, torch.bfloat16: 1, torch.float32: 2, torch.float64: 3}
DEVICES = {"cpu", "cuda"}  # with kernels; the others run the reference


def has_kernels(operator: Operator, device: torch.device) -> bool:
    return device.type in DEVICES and hasattr(_C, operator.name)


def check_tensors(operator: Operator, tensors: Tensors) -> None:
    """Raises for what no kernel takes: not tensors, layouts, dtypes, devices."""
    operator.require_tensors(tensors)
    operator.require_dense(tensors)
    given = [(a, t) for a, t in zip(operator.arguments, tensors, strict=True) if t is not None]
    (named, first), *others = given
    value_type = DTYPES.get(first.dtype)
    if value_type is None and not others:
        raise TypeError(f"{named.name} must be float16, bfloat16, float32 or float64, got {first.dtype}")
    for argument, tensor in others:
        names = f"{named.name} and {argument.name}"
        tensor_type = DTYPES.get(tensor.dtype)
        if value_type is None or tensor_type is None:
            raise TypeError(
                f"{names} must be float16, bfloat16, float32 or float64, "
                f"got {named.name} {first.dtype} and {argument.name} {tensor.dtype}"
            )
        if argument.is_map:
            _C.check_types(value_type, tensor_type)
        elif tensor.dtype != first.dtype:
            raise TypeError(f"{names} must have one dtype, got {first.dtype} and {tensor.dtype}")
        if tensor.device != first.device:
            raise RuntimeError(
                f"{names} must be on one device, got {named.name} on {first.device} "
                f"and {argument.name} on {tensor.device}"
            )


def check_shapes(operator: Operator, tensors: Tensors, options: Any) -> None:
    """Raises for sizes and options that do not fit; symbols are checked when the compiled program runs."""
    values: list[Any] = [n for t in tensors if t is not None for n in t.shape]
    for option in options:
        values += option if isinstance(option, tuple) else [option]
    if all(isinstance(value, (int, float, str)) for value in values):
        operator.check_shapes([None if t is None else t.shape for t in tensors], options)


def check_grad(grad: Tensor, like: Tensor, shape: tuple[int, ...]) -> None:
    """Raises for a gradient that is not like the output, whose shape is given."""
    if (grad.shape, grad.dtype, grad.device) != (shape, like.dtype, like.device):
        raise ValueError(
            f"grad must be {like.dtype} of shape {list(shape)} on {like.device}, as the output is, "
            f"got {grad.dtype} of shape {list(grad.shape)} on {grad.device}"
        )


def dense(grad: Tensor) -> Tensor:
    """A gradient as the kernels read it: some losses give a sparse one."""
    return grad if grad.layout == torch.strided else grad.to_dense()


def may_read(*tensors: Tensor | None) -> bool:
    """Whether the kernels may be called without torch's dispatcher.

    Calls that enter in C++ ask ``is_plain`` alone (``python/direct/call.h``): in a wrapper of torch's they find no
    memory, so they return None, and the call comes here.
    """
    return _C.is_plain(*tensors) and not any(map(private.is_wrapper, tensors))


def new_output(operator: Operator, tensors: Tensors, options: Any) -> Tensor:
    """Memory for the output, in the format in which the kernels write it."""
    is_like_image = operator.output_dims == 4
    first, shape = tensors[0], operator.output_shape(tensors, options)
    return torch.empty(
        shape, dtype=first.dtype, device=first.device, memory_format=format_of(operator, tensors, is_like_image)
    )


def new_gradient(operator: Operator, tensors: Tensors, index: int) -> Tensor:
    """Memory for the gradient of one of the tensors, in the format in which the kernels write it."""
    follows_image = operator.arguments[index].channels_last
    return torch.empty_like(tensors[index], memory_format=format_of(operator, tensors, follows_image))


def format_of(operator: Operator, tensors: Tensors, follows_image: bool) -> torch.memory_format:
    image = tensors[operator.image]
    reads = follows_image and image.dim() == 4 and image.device.type in _C.reads_channels_last
    if reads and not image.is_contiguous() and image.is_contiguous(memory_format=torch.channels_last):
        return torch.channels_last
    return torch.contiguous_format


def _resolved(tensor: Tensor | None) -> Tensor | None:
    """The tensor with its values in memory, none of them implied by a flag."""
    if tensor is None:
        return None
    if private.is_zero_tensor(tensor):
        return torch.zeros(tensor.shape, dtype=tensor.dtype, device=tensor.device)
    return tensor.resolve_neg()


def _all_resolved(tensors: Tensors) -> Tensors:
    return tuple(map(_resolved, tensors))  # type: ignore[arg-type]  # None stands for itself


def forward(operator: Operator, tensors: Tensors, options: Any) -> Tensor:
    options = operator.resolved(tensors, options)
    check_shapes(operator, tensors, options)
    if operator.in_torch:
        with _alone(tensors[0].device):
            return operator.compute(_all_resolved(tensors), options)
    if not has_kernels(operator, tensors[0].device):
        return reference_of(operator, options)(*tensors)
    with on_device(tensors[0].device):
        output: Tensor | None = getattr(_C, operator.name)(*map(_resolved, tensors), *options)
    if output is None:
        raise _without_memory(operator, tensors)
    return output


def backward(operator: Operator, grad: Tensor, tensors: Tensors, options: Any, mask: Mask) -> Gradients:
    """Gradients with respect to the tensors; None for one that is not wanted."""
    options = operator.resolved(tensors, options)
    check_shapes(operator, tensors, options)
    grad = dense(grad)
    check_grad(grad, tensors[0], operator.output_shape(tensors, options))
    if operator.in_torch:
        with _alone(tensors[0].device):
            return operator.compute_backward(_all_resolved((grad,))[0], _all_resolved(tensors), options, mask)
    if not has_kernels(operator, tensors[0].device):
        return operator.vjp(grad, tensors, options, mask)
    with on_device(tensors[0].device):
        call = getattr(_C, f"{operator.name}_backward")
        grads: Gradients | None = call(_resolved(grad), *map(_resolved, tensors), *options, tuple(mask))
    if grads is None:
        raise _without_memory(operator, tensors, grad)
    return grads


def _without_memory(operator: Operator, tensors: Tensors, grad: Tensor | None = None) -> RuntimeError:
    """The error about the first of the tensors that has nothing to read."""
    named = {"grad": grad} | {a.name: t for a, t in zip(operator.arguments, tensors, strict=True)}
    present = {name: t for name, t in named.items() if t is not None}
    freed = (name for name, t in present.items() if t.numel() > 0 and t.untyped_storage().nbytes() == 0)
    name = next(freed, " or ".join(present))
    return RuntimeError(f"{name} has no memory that the kernels could read: was its storage freed?")


@contextlib.contextmanager
def _alone(device: torch.device) -> Iterator[None]:
    """For work in torch: no autograd and no autocast, on the current device."""
    kind = device.type
    with contextlib.ExitStack() as stack:
        stack.enter_context(torch.no_grad())
        if kind in private.AUTOCAST_DEVICES and torch.is_autocast_enabled(kind):
            stack.enter_context(torch.autocast(kind, enabled=False))
        if kind == "cuda":
            stack.enter_context(torch.cuda.device(device))
        yield


def on_device(device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """Makes a CUDA device the current one."""
    return contextlib.nullcontext() if device.type == "cpu" else torch.cuda.device(device)
