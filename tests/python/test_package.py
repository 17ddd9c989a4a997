"""The package from outside: names, signatures, forms of arguments, and what importing it does to the process."""

import importlib.metadata
import importlib.resources
import inspect
import re
import subprocess
import sys
from pathlib import Path

import dynamic_dilation_unfold as package
import numpy as np
import pytest
import schemas
import torch
from dynamic_dilation_unfold import _C, DynamicDilationUnfold, dynamic_dilation_unfold, reference

DEFAULTS = {"stride": 1, "padding": 0, "dilation": 1, "groups": 1, "padding_mode": "zeros"}
linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


@pytest.mark.parametrize("function", [dynamic_dilation_unfold, reference])
def test_signature(function):
    parameters = inspect.signature(function).parameters
    assert list(parameters) == ["input", "kernel_size", "dilation_map", *DEFAULTS]
    assert {n: p.default for n, p in parameters.items() if p.default is not p.empty} == DEFAULTS
    assert all(p.kind is p.POSITIONAL_OR_KEYWORD for p in parameters.values())


def test_signature_of_the_module():
    parameters = inspect.signature(DynamicDilationUnfold).parameters
    assert list(parameters) == ["kernel_size", *DEFAULTS]
    assert {n: p.default for n, p in parameters.items() if p.default is not p.empty} == DEFAULTS
    assert list(inspect.signature(DynamicDilationUnfold.forward).parameters) == ["self", "input", "dilation_map"]


def test_version_is_that_of_the_distribution():
    # A build for one CUDA version may add a local part: 0.1.0+cu130.
    assert package.__version__ == importlib.metadata.version("dynamic-dilation-unfold").partition("+")[0]


def test_names_and_types_are_shipped():
    assert set(package.__all__) <= set(dir(package))
    files = importlib.resources.files("dynamic_dilation_unfold")
    assert files.joinpath("py.typed").is_file()
    assert files.joinpath("_C.pyi").is_file()


def test_schemas_for_cpp():
    """A file of the sources is made from the descriptions: see schemas.py, which says how."""
    shipped = Path(package.cmake_prefix_path, "include", "ddu", "torch", "schemas.h")
    assert shipped.read_text() == schemas.header()


class Index:
    def __init__(self, value):
        self.value = value

    def __index__(self):
        return self.value


@pytest.mark.parametrize(
    "form", [tuple, list, torch.Size, lambda pair: [np.int64(v) for v in pair], lambda pair: [Index(v) for v in pair]]
)
def test_pairs(form):
    x, rates = torch.rand(1, 2, 9, 11), torch.rand(1, 1, 4, 6)
    expected = dynamic_dilation_unfold(x, (3, 2), rates, (2, 2), (1, 2), (2, 4), 1)
    actual = dynamic_dilation_unfold(x, form((3, 2)), rates, form((2, 2)), form((1, 2)), form((2, 4)), 1)
    assert torch.equal(actual, expected)


@pytest.mark.parametrize("form", [int, np.int32, torch.tensor, Index])
def test_ints(form):
    x, rates = torch.rand(1, 2, 9, 11), torch.rand(1, 2, 4, 5)
    expected = dynamic_dilation_unfold(x, (3, 3), rates, (2, 2), (1, 1), (2, 2), 2)
    actual = dynamic_dilation_unfold(x, form(3), rates, form(2), form(1), form(2), form(2))
    assert torch.equal(actual, expected)


def test_every_argument_by_name():
    x, rates = torch.rand(2, 4, 8, 9), torch.rand(2, 2, 3, 5)
    options = {
        "groups": 2,
        "dilation": (2, 1),
        "padding": (1, 0),
        "stride": 2,
        "dilation_map": rates,
        "kernel_size": (3, 1),
    }
    expected = dynamic_dilation_unfold(x, (3, 1), rates, 2, (1, 0), (2, 1), 2)
    assert torch.equal(dynamic_dilation_unfold(**options, input=x), expected)


# --- the process -----------------------------------------------------------------------------------------------------

USE = """
x = torch.rand(2, 4, 64, 64).requires_grad_()
m = torch.rand(2, 1, 64, 64).requires_grad_()
dynamic_dilation_unfold.dynamic_dilation_unfold(x, 3, m, padding=1).sum().backward()
torch.rand(1 << 20).exp_()
"""


def python(*lines):
    """Runs a program in a new interpreter, where warnings are errors, and returns what it prints."""
    command = [sys.executable, "-W", "error", "-c", "\n".join(lines)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


@linux
@pytest.mark.skipif(not _C.has_openmp, reason="built without OpenMP")
@pytest.mark.parametrize(
    "imports",
    ["torch, dynamic_dilation_unfold", "dynamic_dilation_unfold, torch", "numpy, dynamic_dilation_unfold, torch"],
)
def test_one_openmp_library(imports):
    lines = python(f"import {imports}", USE, "print(open('/proc/self/maps').read())").splitlines()
    loaded = {line.split()[-1] for line in lines if re.search(r"/lib(gomp|omp|iomp5)[-.]", line)}
    assert len(loaded) == 1, loaded


@linux
@pytest.mark.skipif(not _C.has_openmp, reason="built without OpenMP")
def test_threads_are_those_of_torch():
    """As many threads as torch.set_num_threads says, and torch's own: its operators add none."""
    count = "len(os.listdir('/proc/self/task'))"
    before, ours, theirs = map(
        int,
        python(
            "import os, torch, dynamic_dilation_unfold",
            "torch.set_num_threads(5)",
            "x, m = torch.rand(4, 8, 64, 64), torch.rand(4, 1, 64, 64)",
            f"print({count})",
            "dynamic_dilation_unfold.dynamic_dilation_unfold(x, 3, m, padding=1)",
            f"print({count})",
            "torch.rand(1 << 22).exp_()",
            f"print({count})",
        ).split(),
    )
    assert ours == before + 4
    assert theirs == ours


def test_import_needs_no_gpu_and_initialises_none():
    assert python("import dynamic_dilation_unfold, torch", "print(torch.cuda.is_initialized())").strip() == "False"


def test_import_leaves_for_later_what_a_call_may_not_need():
    """Counts rather than times it: the modules of the package, and what it has torch make of its operators."""
    program = """
import sys, torch
made = []
for name in {"register_fake", "register_vmap"} & set(dir(torch.library)):
    setattr(torch.library, name, lambda op, *args, name=name, make=getattr(torch.library, name), **named: (
        made.append(f"{name} {op}"), make(op, *args, **named))[1])
import dynamic_dilation_unfold as d
loaded = [name for name in sys.modules if name.startswith(d.__name__)]
print(*loaded)
print("torch.utils.flop_counter" in sys.modules)
print(len(made))
x, m = torch.rand(1, 1, 3, 3), torch.rand(1, 1, 3, 3)
d.dynamic_dilation_unfold(x, 3, m, padding=1)
print(len(made))
op = torch.ops.dynamic_dilation_unfold.unfold.default
assert op is torch.ops.dynamic_dilation_unfold.unfold.default
print(*op(x.to("meta"), m.to("meta"), [3, 3], [1, 1], [1, 1], [1, 1], 1).shape)
print(len(made) - hasattr(torch.library, "register_vmap"))
"""
    loaded, counter, *counts = python(program).splitlines()
    is_counting = counter == "True"
    modules = [name.partition(".")[2] for name in loaded.split()]
    assert "functional" in modules
    later = (
        "_tools",
        "_attention",
        "_fused_attention",
        "_chunks",
        "_chunk_memory",
        "_chunk_products",
        "_second",
        "_sharding",
        "_modules",
        "modules",
        "cost",
        "viz",
        "onnx",
    )
    assert not [name for name in modules if name.split(".")[0] in later]
    assert not is_counting  # torch's counter of FLOPs takes two milliseconds to import
    assert len(modules) <= 32  # each takes a few tenths of a millisecond
    assert counts == ["0", "0", "1 9 9", "1"]  # those of the one operator whose name was asked of torch.ops


def test_what_is_left_for_later_is_there():
    assert package.DynamicDilationUnfold is package.modules.DynamicDilationUnfold
    assert package.cost.unfold((1, 1, 3, 3), (1, 1, 3, 3), 3).flops > 0
    assert set(package.__all__) <= set(dir(package))
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = package.nothing


def test_import_leaves_torch_as_it_was():
    state = (
        "print(torch.get_num_threads(), torch.get_default_dtype(), torch.is_grad_enabled(), torch.initial_seed() >= 0)"
    )
    assert python("import torch", state) == python("import torch, dynamic_dilation_unfold", state)


def test_errors_of_the_library_are_python_exceptions():
    with pytest.raises(ValueError, match="stride"):
        _C.check_geometry((1, 3, 3), (1, 3, 3), (3, 3), (0, 1), (1, 1), (1, 1), 1, "zeros")
