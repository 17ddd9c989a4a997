"""The C API of libddu, called as another language would: through ctypes, on plain memory."""

import ctypes
import sys
from ctypes import POINTER, byref, c_char_p, c_int, c_int32, c_int64, c_size_t, c_void_p
from pathlib import Path

import numpy as np
import pytest
import torch
from dynamic_dilation_unfold import __version__, cmake_prefix_path, dynamic_dilation_unfold

OK, INVALID_ARGUMENT, TYPE_ERROR = 0, 1, 2
FLOAT32, FLOAT64 = 2, 3
Pair = c_int64 * 2


class Options(ctypes.Structure):
    _fields_ = [
        *[(name, Pair) for name in ("kernel_size", "stride", "padding", "dilation")],
        ("groups", c_int64),
        ("padding_mode", c_int32),
        ("part", c_int32),
        ("origin", Pair),
    ]


class Types(ctypes.Structure):
    _fields_ = [("input", c_int32), ("map", c_int32)]


class Geometry(ctypes.Structure):
    _fields_ = [
        *[(name, c_int64) for name in ("batch", "channels", "groups", "map_batch")],
        *[(name, c_int64 * 7) for name in ("h", "w")],
        ("padding_mode", c_int32),
    ]


class Unfold(ctypes.Structure):
    _fields_ = [(name, c_void_p) for name in ("input", "dilation_map", "output", "workspace")] + [
        ("input_format", c_int32)
    ]


class UnfoldBackward(ctypes.Structure):
    _fields_ = [
        (name, c_void_p) for name in ("grad_output", "input", "dilation_map", "grad_input", "grad_map", "workspace")
    ] + [("input_format", c_int32)]


@pytest.fixture(scope="module")
def ddu():
    library = ctypes.CDLL(
        str(Path(cmake_prefix_path, "lib", "libddu" + (".dylib" if sys.platform == "darwin" else ".so")))
    )
    library.ddu_last_error.restype = library.ddu_version.restype = c_char_p
    shape = [POINTER(c_int64), c_int]
    library.ddu_make_geometry.argtypes = [*shape, *shape, POINTER(Options), POINTER(Geometry)]
    library.ddu_cpu_unfold.argtypes = [POINTER(Geometry), Types, POINTER(Unfold), c_int]
    library.ddu_cpu_unfold_workspace_bytes.argtypes = [*library.ddu_cpu_unfold.argtypes, POINTER(c_size_t)]
    library.ddu_cpu_unfold_backward.argtypes = [POINTER(Geometry), Types, POINTER(UnfoldBackward), c_int]
    library.ddu_cpu_unfold_backward_workspace_bytes.argtypes = [
        *library.ddu_cpu_unfold_backward.argtypes,
        POINTER(c_size_t),
    ]
    return library


def make_geometry(ddu, input, rates, groups):
    options = Options(Pair(3, 2), Pair(1, 2), Pair(1, 0), Pair(1, 1), groups)
    geometry = Geometry()
    shapes = [((c_int64 * a.ndim)(*a.shape), a.ndim) for a in (input, rates)]
    return ddu.ddu_make_geometry(*shapes[0], *shapes[1], byref(options), byref(geometry)), geometry


def test_equals_python(ddu):
    torch.manual_seed(0)
    x, rates = torch.randn(2, 4, 7, 8, requires_grad=True), torch.rand(2, 2, 7, 4, requires_grad=True)
    expected = dynamic_dilation_unfold(x, (3, 2), rates, (1, 2), (1, 0), groups=2)
    grad = torch.randn_like(expected)
    expected.backward(grad)

    input, dilation_map, grad_output = (t.detach().numpy() for t in (x, rates, grad))
    status, geometry = make_geometry(ddu, input, dilation_map, 2)
    assert status == OK
    assert (geometry.h[1], geometry.w[1]) == (7, 4)
    types = Types(FLOAT32, FLOAT32)
    output = np.empty(expected.shape, np.float32)
    forward, size = Unfold(input.ctypes.data, dilation_map.ctypes.data, output.ctypes.data), c_size_t()
    assert ddu.ddu_cpu_unfold_workspace_bytes(byref(geometry), types, byref(forward), 2, byref(size)) == OK
    memory = np.empty(size.value + 64, np.uint8)
    forward.workspace = (memory.ctypes.data + 63) // 64 * 64
    assert ddu.ddu_cpu_unfold(byref(geometry), types, byref(forward), 2) == OK
    assert np.array_equal(output, expected.detach().numpy())

    grad_input, grad_map = np.empty_like(input), np.empty_like(dilation_map)
    backward = UnfoldBackward(*(a.ctypes.data for a in (grad_output, input, dilation_map, grad_input, grad_map)), None)
    assert ddu.ddu_cpu_unfold_backward_workspace_bytes(byref(geometry), types, byref(backward), 2, byref(size)) == OK
    memory = np.empty(size.value + 64, np.uint8)
    backward.workspace = (memory.ctypes.data + 63) // 64 * 64
    assert ddu.ddu_cpu_unfold_backward(byref(geometry), types, byref(backward), 2) == OK
    assert np.array_equal(grad_input, x.grad.numpy())
    assert np.array_equal(grad_map, rates.grad.numpy())


def test_errors_have_a_code_and_a_text(ddu):
    input, dilation_map = np.ones((1, 4, 7, 8), np.float32), np.ones((1, 1, 7, 4), np.float32)
    status, _ = make_geometry(ddu, input, dilation_map, 3)
    assert status == INVALID_ARGUMENT
    assert ddu.ddu_last_error() == b"groups must be positive and divide the input's 4 channels, got 3"
    status, geometry = make_geometry(ddu, input, dilation_map, 1)
    assert status == OK
    forward = Unfold(1, 1, 1)  # never read
    assert ddu.ddu_cpu_unfold(byref(geometry), Types(FLOAT32, FLOAT64), byref(forward), 1) == TYPE_ERROR
    assert ddu.ddu_last_error() == b"dilation_map must have the input's dtype float32, got float64"


def test_version(ddu):
    assert ddu.ddu_version().decode() == __version__
