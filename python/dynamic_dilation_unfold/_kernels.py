"""Calls of the kernels, and the reference for devices without any."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from . import _C
from ._derivatives import reference_backward, reference_of
from ._options import Options

DTYPES = {torch.float16: 0, torch.bfloat16: 1, torch.float32: 2, torch.float64: 3}
DEVICES = {"cpu", "cuda"}  # with kernels; the others run the reference


def check_tensors(input: Tensor, dilation_map: Tensor) -> None:
    """Raises for what no kernel takes: not tensors, layouts, dtypes, devices."""
    for name, value in (("input", input), ("dilation_map", dilation_map)):
        if not isinstance(value, Tensor):
            raise TypeError(f"{name} must be a torch.Tensor, got {type(value).__name__}")
        if value.layout != torch.strided or value.is_nested:
            layout = "a nested tensor" if value.is_nested else value.layout
            raise TypeError(f"{name} must be a dense tensor of layout torch.strided, got {layout}")
    input_type, map_type = DTYPES.get(input.dtype), DTYPES.get(dilation_map.dtype)
    if input_type is None or map_type is None:
        raise TypeError(
            "input and dilation_map must be float16, bfloat16, float32 or float64, "
            f"got input {input.dtype} and dilation_map {dilation_map.dtype}"
        )
    _C.check_types(input_type, map_type)
    if input.device != dilation_map.device:
        raise RuntimeError(
            f"input and dilation_map must be on one device, got input on {input.device} "
            f"and dilation_map on {dilation_map.device}"
        )


def output_shape(input: Tensor, dilation_map: Tensor, kernel_size: Sequence[int]) -> tuple[int, ...]:
    columns = input.shape[-3] * kernel_size[0] * kernel_size[1]
    positions = dilation_map.shape[-2] * dilation_map.shape[-1]
    return (columns, positions) if input.dim() == 3 else (input.shape[0], columns, positions)


def check_grad(grad: Tensor, input: Tensor, shape: tuple[int, ...]) -> None:
    """Raises for a gradient that is not like the output, whose shape is given."""
    if (grad.shape, grad.dtype, grad.device) != (shape, input.dtype, input.device):
        raise ValueError(
            f"grad must be {input.dtype} of shape {list(shape)} on {input.device}, as the output is, "
            f"got {grad.dtype} of shape {list(grad.shape)} on {grad.device}"
        )


def is_wrapper(tensor: Tensor) -> bool:
    """Whether a tensor of torch's own type stands for another: vmap batched it, or it outlived a transform."""
    functorch = torch._C._functorch
    return functorch.is_functorch_wrapped_tensor(tensor) or functorch.is_legacy_batchedtensor(tensor)


def _resolved(tensor: Tensor) -> Tensor:
    """The tensor with its values in memory, none of them implied by a flag."""
    if tensor._is_zerotensor():
        return torch.zeros(tensor.shape, dtype=tensor.dtype, device=tensor.device)
    return tensor.resolve_neg()


def unfold(input: Tensor, dilation_map: Tensor, options: Options) -> Tensor:
    _C.check_geometry(input.shape, dilation_map.shape, *options)
    if input.device.type not in DEVICES:
        return reference_of(options)(input, dilation_map)
    with _current(input.device):
        output = _C.unfold(_resolved(input), _resolved(dilation_map), *options)
    if output is None:
        raise _without_memory(input=input, dilation_map=dilation_map)
    return output


def unfold_backward(
    grad: Tensor, input: Tensor, dilation_map: Tensor, options: Options, wanted: Sequence[bool]
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients with respect to input and map; None for one that is not wanted."""
    _C.check_geometry(input.shape, dilation_map.shape, *options)
    check_grad(grad, input, output_shape(input, dilation_map, options.kernel_size))
    if input.device.type not in DEVICES:
        return reference_backward(grad, input, dilation_map, options, wanted)
    want_input, want_map = wanted
    with _current(input.device):
        grads = _C.unfold_backward(
            _resolved(grad), _resolved(input), _resolved(dilation_map), *options, want_input, want_map
        )
    if grads is None:
        raise _without_memory(grad=grad, input=input, dilation_map=dilation_map)
    return grads


def _without_memory(**tensors: Tensor) -> RuntimeError:
    """The error about the first of the tensors that has nothing to read."""
    freed = (name for name, t in tensors.items() if t.numel() > 0 and t.untyped_storage().nbytes() == 0)
    name = next(freed, " or ".join(tensors))
    return RuntimeError(f"{name} has no memory that the kernels could read: was its storage freed?")


def _current(device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """Makes a CUDA device the current one."""
    return contextlib.nullcontext() if device.type == "cpu" else torch.cuda.device(device)
