"""Tensors to addresses: calls of the C++ library, and the reference for devices without kernels."""

from __future__ import annotations

import contextlib
from typing import Any

import torch
from torch import Tensor

from . import _C
from ._derivatives import reference_backward, reference_of
from ._options import Options

DTYPES = {torch.float16: 0, torch.bfloat16: 1, torch.float32: 2, torch.float64: 3}
DEVICES = {"cpu", "cuda"}  # with kernels; the others run the reference


def _torch_empty(size: tuple[int, ...], stride: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    return torch.empty(size, dtype=dtype)


# What Inductor's programs allocate with: half the time of torch.empty, which counts on a small tensor.
empty_strided = getattr(torch._C._dynamo.guards, "_empty_strided_cpu", _torch_empty)


def check_tensors(input: Tensor, dilation_map: Tensor) -> None:
    """Raises for what no kernel takes: not tensors, dtypes, devices."""
    for name, value in (("input", input), ("dilation_map", dilation_map)):
        if not isinstance(value, Tensor):
            raise TypeError(f"{name} must be a torch.Tensor, got {type(value).__name__}")
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


def output_shape(input: Tensor, columns: int, positions: int) -> tuple[int, ...]:
    return (columns, positions) if input.dim() == 3 else (input.shape[0], columns, positions)


def is_wrapper(tensor: Tensor) -> bool:
    """Whether a tensor of torch's own type stands for another: vmap batched it, or it outlived a transform."""
    functorch = torch._C._functorch
    return functorch.is_functorch_wrapped_tensor(tensor) or functorch.is_legacy_batchedtensor(tensor)


def _in_memory(tensor: Tensor) -> Tensor:
    """The tensor with its values laid out as the kernels read them, none of them implied by a flag."""
    if tensor._is_zerotensor():
        return torch.zeros(tensor.shape, dtype=tensor.dtype, device=tensor.device)
    return tensor.resolve_neg().contiguous()


def unfold(input: Tensor, dilation_map: Tensor, options: Options) -> Tensor:
    geometry = _C.make_geometry(input.shape, dilation_map.shape, *options)
    device = input.device
    if device.type not in DEVICES:
        return reference_of(options)(input, dilation_map)
    input, dilation_map = _in_memory(input), _in_memory(dilation_map)
    if device.type == "cpu":
        on_cpu = _C.cpu_unfold(input, dilation_map, *options)
        assert on_cpu is not None
        return on_cpu
    output = input.new_empty(output_shape(input, geometry.columns, geometry.positions))
    types = DTYPES[input.dtype], DTYPES[dilation_map.dtype]
    with _current(device.index):
        stream = torch._C._cuda_getCurrentRawStream(device.index)
        _C.cuda_unfold(geometry, *types, input.data_ptr(), dilation_map.data_ptr(), output.data_ptr(), stream)
    return output


def unfold_backward(
    grad: Tensor, input: Tensor, dilation_map: Tensor, options: Options, wanted: tuple[bool, bool]
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients with respect to input and map; None for one that is not wanted."""
    geometry = _C.make_geometry(input.shape, dilation_map.shape, *options)
    device = input.device
    if device.type not in DEVICES:
        return reference_backward(grad, input, dilation_map, options, wanted)
    grad, input, dilation_map = _in_memory(grad), _in_memory(input), _in_memory(dilation_map)
    grad_input = torch.empty_like(input) if wanted[0] else None
    grad_map = torch.empty_like(dilation_map) if wanted[1] else None
    types = DTYPES[input.dtype], DTYPES[dilation_map.dtype]
    addresses = (
        grad.data_ptr(),
        input.data_ptr(),
        dilation_map.data_ptr(),
        0 if grad_input is None else grad_input.data_ptr(),
        0 if grad_map is None else grad_map.data_ptr(),
    )
    if device.type == "cpu":
        threads = torch.get_num_threads()
        scratch = _scratch(_C.cpu_workspace_bytes(geometry, *types, (*addresses, 0), threads), device)
        _C.cpu_unfold_backward(geometry, *types, (*addresses, scratch.data_ptr()), threads)
    else:
        deterministic = torch.are_deterministic_algorithms_enabled()
        with _current(device.index):
            scratch = _scratch(_C.cuda_workspace_bytes(geometry, *types, (*addresses, 0), deterministic), device)
            stream = torch._C._cuda_getCurrentRawStream(device.index)
            _C.cuda_unfold_backward(geometry, *types, (*addresses, scratch.data_ptr()), deterministic, stream)
    return grad_input, grad_map


def _scratch(size: int, device: torch.device) -> Tensor:
    return torch.empty(size, dtype=torch.uint8, device=device)


def _current(index: int) -> contextlib.AbstractContextManager[Any]:
    """Makes a CUDA device the current one; torch's own guard costs a launch's time even when there is nothing to do."""
    return contextlib.nullcontext() if torch.cuda.current_device() == index else torch.cuda.device(index)
