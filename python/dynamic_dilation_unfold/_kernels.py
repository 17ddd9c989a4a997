"""Tensors to addresses: calls of the C++ library, and the reference for devices without kernels."""

from __future__ import annotations

import torch
from torch import Tensor

from . import _C
from ._options import Options
from .reference import dynamic_dilation_unfold_reference

_DTYPES = {torch.float16: 0, torch.bfloat16: 1, torch.float32: 2, torch.float64: 3}


def check_tensors(input: Tensor, dilation_map: Tensor) -> None:
    """Raises for what no kernel takes: not tensors, dtypes, devices."""
    for name, value in (("input", input), ("dilation_map", dilation_map)):
        if not isinstance(value, Tensor):
            raise TypeError(f"{name} must be a torch.Tensor, got {type(value).__name__}")
    input_type, map_type = _DTYPES.get(input.dtype), _DTYPES.get(dilation_map.dtype)
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


def output_shape(input: Tensor, columns: int, positions: int) -> tuple[int, ...]:
    return (columns, positions) if input.dim() == 3 else (input.shape[0], columns, positions)


def _in_memory(tensor: Tensor) -> Tensor:
    """The tensor with its values laid out as the kernels read them: contiguous, and no negation left to a flag."""
    return tensor.resolve_neg().contiguous()


def unfold(input: Tensor, dilation_map: Tensor, options: Options) -> Tensor:
    geometry = _C.make_geometry(input.shape, dilation_map.shape, *options)
    device = input.device
    if device.type not in ("cpu", "cuda"):
        kernel_size, *others = options
        return dynamic_dilation_unfold_reference(input, kernel_size, dilation_map, *others)
    output = input.new_empty(output_shape(input, geometry.columns, geometry.positions))
    input, dilation_map = _in_memory(input), _in_memory(dilation_map)
    types = _DTYPES[input.dtype], _DTYPES[dilation_map.dtype]
    addresses = input.data_ptr(), dilation_map.data_ptr(), output.data_ptr()
    if device.type == "cpu":
        _C.cpu_unfold(geometry, *types, *addresses, torch.get_num_threads())
    else:
        with torch.cuda.device(device):
            _C.cuda_unfold(geometry, *types, *addresses, torch.cuda.current_stream().cuda_stream)
    return output


def unfold_backward(
    grad: Tensor, input: Tensor, dilation_map: Tensor, options: Options, need_input: bool, need_map: bool
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients with respect to input and map; None for one that is not wanted."""
    geometry = _C.make_geometry(input.shape, dilation_map.shape, *options)
    device = input.device
    if device.type not in ("cpu", "cuda"):
        both = reference_backward(grad, input, dilation_map, options)
        return both[0] if need_input else None, both[1] if need_map else None
    grad, input, dilation_map = _in_memory(grad), _in_memory(input), _in_memory(dilation_map)
    grad_input = torch.empty_like(input) if need_input else None
    grad_map = torch.empty_like(dilation_map) if need_map else None
    types = _DTYPES[input.dtype], _DTYPES[dilation_map.dtype]
    addresses = (
        grad.data_ptr(),
        input.data_ptr(),
        dilation_map.data_ptr(),
        0 if grad_input is None else grad_input.data_ptr(),
        0 if grad_map is None else grad_map.data_ptr(),
    )
    if device.type == "cpu":
        threads = torch.get_num_threads()
        scratch = _workspace(input, _C.cpu_workspace_bytes(geometry, *types, (*addresses, 0), threads))
        _C.cpu_unfold_backward(geometry, *types, (*addresses, scratch.data_ptr()), threads)
    else:
        deterministic = torch.are_deterministic_algorithms_enabled()
        with torch.cuda.device(device):
            scratch = _workspace(input, _C.cuda_workspace_bytes(geometry, *types, (*addresses, 0), deterministic))
            stream = torch.cuda.current_stream().cuda_stream
            _C.cuda_unfold_backward(geometry, *types, (*addresses, scratch.data_ptr()), deterministic, stream)
    return grad_input, grad_map


def _workspace(input: Tensor, size: int) -> Tensor:
    return torch.empty(size, dtype=torch.uint8, device=input.device)


def reference_backward(grad: Tensor, input: Tensor, dilation_map: Tensor, options: Options) -> tuple[Tensor, Tensor]:
    """Both gradients in differentiable torch: the transpose of the reference."""
    kernel_size, *others = options

    def forward(input: Tensor, dilation_map: Tensor) -> Tensor:
        return dynamic_dilation_unfold_reference(input, kernel_size, dilation_map, *others)

    _, pullback = torch.func.vjp(forward, input, dilation_map)
    grads: tuple[Tensor, Tensor] = pullback(grad)
    return grads
