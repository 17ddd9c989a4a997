"""Whether this build serves this machine's GPUs and torch, and if not, the command that installs one that does."""

from __future__ import annotations

import ctypes
import importlib.metadata
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch

from .. import _C
from .wheels import WHEELS, Version

READY = "ready"

UPDATE = "update the driver"
_NO_DEVICE = 100  # CUDA_ERROR_NO_DEVICE: the driver starts, and has nothing to drive


@dataclass(frozen=True)
class Gpu:
    name: str
    capability: Version


@dataclass(frozen=True)
class State:
    """What decides the verdict."""

    version: str  # of the distribution: 0.1.0+cu130
    toolkit: Version | None  # CUDA that this build was made with
    architectures: str  # that it has kernels for, as CMake writes them
    index: str  # where the wheels' indexes are, a folder per tag; "" if this build was not told
    torch: str
    torch_cuda: Version | None
    torch_hip: bool
    driver: Version | None  # the newest CUDA that it serves
    gpus: tuple[Gpu, ...]
    driver_error: int = 0  # of cuInit, if the driver does not start

    def covers(self, gpu: Gpu) -> bool:
        return self.toolkit is not None and _covers(self.toolkit, self.architectures, self.driver, gpu)


def text(version: Version) -> str:
    return f"{version[0]}.{version[1]}"


def _covers(toolkit: Version, architectures: str, driver: Version | None, gpu: Gpu) -> bool:
    """Machine code serves its major number from its minor number on; PTX all that is newer, if the driver reads it."""
    for architecture in filter(None, architectures.split(";")):
        match = re.fullmatch(r"(\d+)(\d)([af]?)(-real|-virtual)?", architecture)
        if not match:
            return True  # "all" and its like
        number, only, form = (int(match[1]), int(match[2])), match[3], match[4]
        if form != "-virtual" and (number == gpu.capability if only == "a" else _same_major(number, gpu.capability)):
            return True
        if form != "-real" and not only and number <= gpu.capability and driver is not None and driver >= toolkit:
            return True
    return False


def _same_major(number: Version, capability: Version) -> bool:
    return number[0] == capability[0] and number[1] <= capability[1]


def _best_wheel(state: State) -> str | None:
    """The newest no newer than torch's CUDA, else the oldest, of those with machine code for every GPU, or PTX."""
    for driver in (None, state.driver):  # PTX is nothing without a driver
        fit = [
            tag
            for tag, (toolkit, architectures) in WHEELS.items()
            if state.driver
            and toolkit[0] <= state.driver[0]
            and all(_covers(toolkit, architectures, driver, gpu) for gpu in state.gpus)
        ]
        known = [tag for tag in fit if state.torch_cuda and WHEELS[tag][0] <= state.torch_cuda]
        if fit:
            return known[-1] if known else fit[0]
    return None


def _mend(state: State) -> str:
    tag = _best_wheel(state)
    public = state.version.partition("+")[0]
    if tag and state.index:
        return (
            f"install the wheel for CUDA {text(WHEELS[tag][0])}: pip install --force-reinstall --no-deps "
            f"--index-url {state.index}/{tag}/ dynamic-dilation-unfold=={public}+{tag}"
        )
    assert state.driver
    if state.driver[0] < min(toolkit[0] for toolkit, _ in WHEELS.values()):
        return UPDATE
    architectures = ";".join(sorted({"{}{}-real".format(*gpu.capability) for gpu in state.gpus}))
    return (
        f"build it from its sources with an nvcc of CUDA {state.driver[0]}: pip install --force-reinstall --no-deps "
        f"-C cmake.define.DDU_CUDA=ON -C 'cmake.define.CMAKE_CUDA_ARCHITECTURES={architectures}' "
        f"--no-binary dynamic-dilation-unfold dynamic-dilation-unfold=={public}"
    )


def _torch_cuda(state: State) -> Version | None:
    """Of torch's own wheels, the CUDA of those that serve driver and GPUs."""
    assert state.driver
    capabilities = [gpu.capability for gpu in state.gpus]
    if state.driver[0] >= 13 and min(capabilities) >= (7, 5):
        return 13, 0
    if state.driver >= (12, 8) and max(capabilities) >= (10, 0):
        return 12, 8
    if state.driver[0] >= 12:
        return 12, 6
    return (11, 8) if state.driver[0] == 11 else None


def _mend_torch(state: State) -> str | None:
    """The command that installs such a torch, and then, if this build does not serve beside it, a wheel that does."""
    cuda = _torch_cuda(state)
    if not cuda:
        return None
    after = replace(state, torch_cuda=cuda)
    rest = "" if verdict(after) == READY else _mend(after)
    if rest == UPDATE:
        return None
    index = f"https://download.pytorch.org/whl/cu{cuda[0]}{cuda[1]}"
    return f"pip install --force-reinstall torch --index-url {index}" + (f"; then {rest}" if rest else "")


def verdict(state: State) -> str:
    """``READY``, or what is wrong and the command that mends it."""
    if state.torch_hip:
        return (
            f"torch {state.torch} is built for ROCm, for which there are no kernels: move the tensors to the CPU, "
            "or call dynamic_dilation_unfold.reference, which runs on any device"
        )
    if not state.toolkit and not state.torch_cuda:
        return READY  # on the CPU, as was asked for
    if state.driver_error:
        return (
            f"the NVIDIA driver does not start (CUDA error {state.driver_error}): reboot, or reinstall the driver, "
            "whose parts may be of different versions"
        )
    if not state.gpus or not state.driver:
        return READY  # on the CPU
    if not state.torch_cuda:
        command = _mend_torch(state)
        return f"torch {state.torch} is built without CUDA: " + (
            f"install one with CUDA: {command}" if command else f"{UPDATE}, then install one with CUDA"
        )
    if state.torch_cuda[0] > state.driver[0]:
        command = _mend_torch(state)
        return (
            f"torch {state.torch} is built for CUDA {text(state.torch_cuda)} and the driver serves CUDA "
            f"{text(state.driver)}: {UPDATE}" + (f", or install an older torch: {command}" if command else "")
        )
    if not state.toolkit:
        return f"this build has no CUDA kernels; {_mend(state)}"
    if state.toolkit[0] > state.driver[0]:
        ours, theirs = text(state.toolkit), text(state.driver)
        return f"this build is for CUDA {ours} and the driver serves CUDA {theirs}; {_mend(state)}"
    for gpu in state.gpus:
        if not state.covers(gpu):
            return (
                f"this build has kernels for the architectures {state.architectures}, and none that {gpu.name} of "
                f"compute capability {text(gpu.capability)} can run; {_mend(state)}"
            )
    return READY


def explain(message: str) -> str:
    """The verdict in place of libddu's message that it cannot serve a device; see direct.cpp."""
    found = verdict(gather())
    return message if found == READY else found


def gather() -> State:
    driver, gpus, driver_error = _driver()
    try:
        version = importlib.metadata.version("dynamic-dilation-unfold")
    except importlib.metadata.PackageNotFoundError:  # run from the sources
        version = _C.version
    toolkit = _C.cuda_toolkit_version
    torch_cuda = re.match(r"(\d+)\.(\d+)", torch.version.cuda or "")
    return State(
        version=version,
        toolkit=(toolkit // 1000, toolkit % 1000 // 10) if toolkit else None,
        architectures=_C.cuda_architectures,
        index=_C.wheel_index if sys.platform == "linux" else "",
        torch=torch.__version__,
        torch_cuda=(int(torch_cuda[1]), int(torch_cuda[2])) if torch_cuda else None,
        torch_hip=torch.version.hip is not None,
        driver=driver,
        gpus=gpus,
        driver_error=driver_error,
    )


def _driver() -> tuple[Version | None, tuple[Gpu, ...], int]:
    """The newest CUDA that the driver serves, its GPUs, its error: from the driver, whatever torch was built for."""
    try:
        cuda = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return None, (), 0
    number = ctypes.c_int()
    if cuda.cuDriverGetVersion(ctypes.byref(number)) != 0:
        return None, (), 0
    version = (number.value // 1000, number.value % 1000 // 10)
    error: int = cuda.cuInit(0)
    return version, () if error else tuple(_gpus(cuda)), 0 if error == _NO_DEVICE else error


def _gpus(cuda: ctypes.CDLL) -> Iterator[Gpu]:
    count, device, major, minor = (ctypes.c_int() for _ in range(4))
    name = ctypes.create_string_buffer(256)
    if cuda.cuDeviceGetCount(ctypes.byref(count)) != 0:
        return
    for index in range(count.value):
        cuda.cuDeviceGet(ctypes.byref(device), index)
        cuda.cuDeviceGetName(name, len(name), device)
        cuda.cuDeviceGetAttribute(ctypes.byref(major), 75, device)  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR
        cuda.cuDeviceGetAttribute(ctypes.byref(minor), 76, device)  # ..._MINOR
        yield Gpu(name.value.decode(), (major.value, minor.value))
