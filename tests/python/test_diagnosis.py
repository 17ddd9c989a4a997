"""What the package says of a machine, for states of machines that this one is not in."""

from __future__ import annotations

import ctypes
import dataclasses
import json
import re
import subprocess
import sys

import pytest
import torch
from dynamic_dilation_unfold import _C
from dynamic_dilation_unfold._tools import cli, diagnosis
from dynamic_dilation_unfold._tools.diagnosis import READY, Gpu, State, verdict
from dynamic_dilation_unfold._tools.wheels import WHEELS

MAXWELL, PASCAL, VOLTA = Gpu("GTX 980", (5, 2)), Gpu("GTX 1080", (6, 1)), Gpu("V100", (7, 0))
HOPPER, BLACKWELL, FUTURE = Gpu("H200", (9, 0)), Gpu("RTX 5090", (12, 0)), Gpu("X", (15, 0))
INDEX = "https://wheels.example/whl"

CPU = State(
    version="1.2.3",
    toolkit=None,
    architectures="",
    index=INDEX,
    torch="2.13.0",
    torch_cuda=(13, 0),
    torch_hip=False,
    driver=(13, 0),
    gpus=(HOPPER,),
)
CU130 = dataclasses.replace(CPU, version="1.2.3+cu130", toolkit=(13, 0), architectures=WHEELS["cu130"][1])
CU126 = dataclasses.replace(CPU, version="1.2.3+cu126", toolkit=(12, 6), architectures=WHEELS["cu126"][1])


def pip(tag: str) -> str:
    return f"pip install --force-reinstall --no-deps --index-url {INDEX}/{tag}/ dynamic-dilation-unfold==1.2.3+{tag}"


def torch_for(cuda: str) -> str:
    return f"pip install --force-reinstall torch --index-url https://download.pytorch.org/whl/{cuda}"


def change(state: State, **changes: object) -> State:
    return dataclasses.replace(state, **changes)


NO_KERNELS = "this build has no CUDA kernels; "
TOO_NEW = "torch 2.13.0 is built for CUDA 13.0 and the driver serves CUDA"
NO_CUDA = "torch 2.13.0 is built without CUDA: "
DOES_NOT_START = "the NVIDIA driver does not start"
REBOOT = "reboot, or reinstall the driver, whose parts may be of different versions"
STATES = [
    # Nothing is wrong.
    (CU130, READY),
    (change(CU130, gpus=(HOPPER, BLACKWELL, FUTURE)), READY),  # the last by PTX
    (change(CU126, gpus=(MAXWELL, PASCAL, BLACKWELL)), READY),
    (change(CU126, torch_cuda=(12, 1), driver=(12, 2)), READY),  # any driver of the major version runs machine code
    (change(CU130, architectures="all-major", gpus=(PASCAL,)), READY),  # not known, so not denied
    (change(CU130, gpus=()), READY),
    (change(CU130, driver=None, gpus=()), READY),
    (change(CPU, torch_cuda=None), READY),
    (change(CPU, torch_cuda=None, driver=None, gpus=()), READY),
    # The CPU's wheel beside torch with CUDA: the wheel for torch's CUDA, as far as driver and GPUs allow.
    (CPU, f"{NO_KERNELS}install the wheel for CUDA 13.0: {pip('cu130')}"),
    (change(CPU, torch_cuda=(12, 6)), f"{NO_KERNELS}install the wheel for CUDA 12.6: {pip('cu126')}"),
    (change(CPU, torch_cuda=(12, 9)), f"{NO_KERNELS}install the wheel for CUDA 12.8: {pip('cu128')}"),
    (change(CPU, torch_cuda=(11, 8)), f"{NO_KERNELS}install the wheel for CUDA 12.6: {pip('cu126')}"),
    (change(CPU, torch_cuda=(13, 2), driver=(13, 2)), f"{NO_KERNELS}install the wheel for CUDA 13.0: {pip('cu130')}"),
    (change(CPU, gpus=(VOLTA,)), f"{NO_KERNELS}install the wheel for CUDA 12.8: {pip('cu128')}"),
    (change(CPU, gpus=(HOPPER, MAXWELL)), f"{NO_KERNELS}install the wheel for CUDA 12.6: {pip('cu126')}"),
    (
        change(CPU, torch_cuda=(12, 6), driver=(12, 6), gpus=(BLACKWELL,)),
        f"{NO_KERNELS}install the wheel for CUDA 12.8: {pip('cu128')}",
    ),
    # A build that was not told where wheels are, or a GPU that no wheel serves.
    (
        change(CPU, index="", gpus=(HOPPER, MAXWELL)),
        f"{NO_KERNELS}build it from its sources with an nvcc of CUDA 13: pip install --force-reinstall --no-deps "
        "-C cmake.define.DDU_CUDA=ON -C 'cmake.define.CMAKE_CUDA_ARCHITECTURES=52-real;90-real' "
        "--no-binary dynamic-dilation-unfold dynamic-dilation-unfold==1.2.3",
    ),
    (
        change(CPU, torch_cuda=(12, 6), driver=(12, 6), gpus=(FUTURE,)),  # the driver cannot read newer PTX
        f"{NO_KERNELS}install the wheel for CUDA 12.6: {pip('cu126')}",
    ),
    (
        change(CPU, torch_cuda=(12, 1), driver=(12, 2), gpus=(FUTURE,)),
        f"{NO_KERNELS}build it from its sources with an nvcc of CUDA 12: pip install --force-reinstall --no-deps "
        "-C cmake.define.DDU_CUDA=ON -C 'cmake.define.CMAKE_CUDA_ARCHITECTURES=150-real' "
        "--no-binary dynamic-dilation-unfold dynamic-dilation-unfold==1.2.3",
    ),
    # Architectures.
    (
        change(CU130, gpus=(HOPPER, PASCAL)),
        f"this build has kernels for the architectures {WHEELS['cu130'][1]}, and none that GTX 1080 of compute "
        f"capability 6.1 can run; install the wheel for CUDA 12.6: {pip('cu126')}",
    ),
    (
        change(CU126, architectures="90a-real", gpus=(Gpu("H", (9, 1)),)),
        "this build has kernels for the architectures 90a-real, and none that H of compute capability 9.1 can run; "
        f"install the wheel for CUDA 13.0: {pip('cu130')}",
    ),
    # Drivers.
    (
        change(CU130, torch="2.8.0", torch_cuda=(12, 8), driver=(12, 4)),
        f"this build is for CUDA 13.0 and the driver serves CUDA 12.4; install the wheel for CUDA 12.8: {pip('cu128')}",
    ),
    (
        change(CU130, torch="2.4.0", torch_cuda=(11, 8), driver=(11, 8)),
        "this build is for CUDA 13.0 and the driver serves CUDA 11.8; update the driver",
    ),
    (
        change(CU130, driver=(12, 4)),
        f"{TOO_NEW} 12.4: update the driver, or install an older torch: {torch_for('cu126')}; then install the "
        f"wheel for CUDA 12.6: {pip('cu126')}",
    ),
    (
        change(CU130, driver=(12, 8), gpus=(HOPPER, BLACKWELL)),
        f"{TOO_NEW} 12.8: update the driver, or install an older torch: {torch_for('cu128')}; then install the "
        f"wheel for CUDA 12.8: {pip('cu128')}",
    ),
    (
        change(CPU, driver=(12, 4)),
        f"{TOO_NEW} 12.4: update the driver, or install an older torch: {torch_for('cu126')}; then install the "
        f"wheel for CUDA 12.6: {pip('cu126')}",
    ),
    (
        change(CU126, driver=(12, 4)),  # which serves beside the older torch too
        f"{TOO_NEW} 12.4: update the driver, or install an older torch: {torch_for('cu126')}",
    ),
    (
        change(CU126, toolkit=(11, 8), driver=(11, 8)),
        f"{TOO_NEW} 11.8: update the driver, or install an older torch: {torch_for('cu118')}",
    ),
    (change(CU130, driver=(11, 8)), f"{TOO_NEW} 11.8: update the driver"),  # no wheel serves it
    (
        change(CU130, driver=(10, 2)),
        f"{TOO_NEW} 10.2: update the driver",
    ),
    (change(CU130, gpus=(), driver_error=803), f"{DOES_NOT_START} (CUDA error 803): {REBOOT}"),
    (change(CPU, gpus=(), driver_error=999), f"{DOES_NOT_START} (CUDA error 999): {REBOOT}"),
    (change(CU130, torch_cuda=None, gpus=(), driver_error=3), f"{DOES_NOT_START} (CUDA error 3): {REBOOT}"),
    (change(CPU, torch_cuda=None, gpus=(), driver_error=804), READY),  # on the CPU, as both are made for
    # torch without CUDA beside a build with it.
    (change(CU130, torch_cuda=None), f"{NO_CUDA}install one with CUDA: {torch_for('cu130')}"),
    (change(CU130, torch_cuda=None, driver=None, gpus=()), READY),
    (change(CU130, torch_cuda=None, gpus=()), READY),
    (change(CU126, torch_cuda=None, driver=(12, 2)), f"{NO_CUDA}install one with CUDA: {torch_for('cu126')}"),
    (change(CU126, torch_cuda=None, gpus=(PASCAL,)), f"{NO_CUDA}install one with CUDA: {torch_for('cu126')}"),
    (
        change(CU126, torch_cuda=None, driver=(12, 9), gpus=(BLACKWELL,)),
        f"{NO_CUDA}install one with CUDA: {torch_for('cu128')}",
    ),
    (
        change(CU130, torch_cuda=None, driver=(12, 4)),
        f"{NO_CUDA}install one with CUDA: {torch_for('cu126')}; then install the wheel for CUDA 12.6: {pip('cu126')}",
    ),
    (
        change(CU130, torch_cuda=None, driver=(10, 2)),
        f"{NO_CUDA}update the driver, then install one with CUDA",
    ),
    (
        change(CPU, torch="2.13.0", torch_cuda=None, torch_hip=True, driver=None, gpus=()),
        "torch 2.13.0 is built for ROCm, for which there are no kernels: move the tensors to the CPU, or call "
        "dynamic_dilation_unfold.reference, which runs on any device",
    ),
]


@pytest.mark.parametrize(("state", "sentence"), STATES)
def test_verdict(state: State, sentence: str) -> None:
    assert verdict(state) == sentence


@pytest.mark.parametrize("state", [state for state, sentence in STATES if "install the wheel" in sentence])
def test_the_wheel_that_is_named_mends_it(state: State) -> None:
    tag = verdict(state).rpartition("+")[2]
    toolkit, architectures = WHEELS[tag]
    mended = change(state, toolkit=toolkit, architectures=architectures)
    if torch := re.search(r"download\.pytorch\.org/whl/cu(\d\d)(\d)", verdict(state)):
        assert verdict(change(state, torch_cuda=(int(torch[1]), int(torch[2])))) != READY
        mended = change(mended, torch_cuda=(int(torch[1]), int(torch[2])))
    assert verdict(mended) == READY


def test_this_machine_as_torch_sees_it() -> None:
    state = diagnosis.gather()
    assert state.torch == torch.__version__
    assert (state.toolkit is None) == (_C.cuda_toolkit_version == 0)
    if torch.version.cuda and torch.cuda.is_available():
        seen = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
        assert [(gpu.name, gpu.capability) for gpu in state.gpus] == [(p.name, (p.major, p.minor)) for p in seen]


class Driver:
    """What diagnosis asks of libcuda, for two GPUs."""

    gpus = (HOPPER, PASCAL)

    def __init__(self, status: int = 0) -> None:
        self.status = status

    def cuDriverGetVersion(self, version: ctypes._Pointer[ctypes.c_int]) -> int:
        version._obj.value = 12040
        return 0

    def cuInit(self, flags: int) -> int:
        return self.status

    def cuDeviceGetCount(self, count: ctypes._Pointer[ctypes.c_int]) -> int:
        count._obj.value = len(self.gpus)
        return 0

    def cuDeviceGet(self, device: ctypes._Pointer[ctypes.c_int], index: int) -> int:
        device._obj.value = index
        return 0

    def cuDeviceGetName(self, name: ctypes.Array[ctypes.c_char], size: int, device: ctypes.c_int) -> int:
        name.value = self.gpus[device.value].name.encode()
        return 0

    def cuDeviceGetAttribute(self, value: ctypes._Pointer[ctypes.c_int], attribute: int, device: ctypes.c_int) -> int:
        value._obj.value = self.gpus[device.value].capability[{75: 0, 76: 1}[attribute]]
        return 0


@pytest.mark.parametrize(
    ("status", "gpus", "error"), [(0, (HOPPER, PASCAL), 0), (100, (), 0), (3, (), 3), (803, (), 803), (999, (), 999)]
)
def test_driver(status: int, gpus: tuple[Gpu, ...], error: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda name: Driver(status))
    state = diagnosis.gather()
    assert (state.driver, state.gpus, state.driver_error) == ((12, 4), gpus, error)


def test_no_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(ctypes, "CDLL", missing)
    state = diagnosis.gather()
    assert (state.driver, state.gpus, state.driver_error) == (None, (), 0)
    assert verdict(state) == READY


# --- The command, and the exception of a call -------------------------------------------------------------------------


BROKEN = change(CU130, gpus=(), driver_error=803)
INFORMED = [CU130, CPU, change(CU130, gpus=(PASCAL,)), change(CPU, driver=None, gpus=()), BROKEN]


@pytest.mark.parametrize("state", INFORMED)
def test_info(state: State, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("dynamic_dilation_unfold._tools.info.gather", lambda: state)
    status = 0 if verdict(state) == READY else 1
    assert cli.main(["info"]) == status
    *_, before, last = capsys.readouterr().out.splitlines()
    assert last.split(maxsplit=1) == ["verdict", verdict(state)]
    if state.gpus:
        assert state.gpus[0].name in before
        assert ("NOT covered" in before) == (not state.covers(state.gpus[0]))
    assert cli.main(["info", "--json"]) == status
    about = json.loads(capsys.readouterr().out)
    assert about["verdict"] == verdict(state)
    assert about["driver_error"] == (state.driver_error or None)
    assert about["tag"] == (state.version.partition("+")[2] or "cpu")
    assert about["architectures"] == (state.architectures.split(";") if state.architectures else [])
    assert [gpu["covered"] for gpu in about["gpus"]] == [state.covers(gpu) for gpu in state.gpus]


# A stand-in for a CUDA tensor, and for what torch would be asked about one.
CALL = """
import sys
import torch
torch.Tensor.__dlpack_c_exchange_api__ = None  # it sees through the stand-in
torch._C._cuda_getDevice = lambda: 0
torch._C._cuda_getCurrentRawStream = lambda index: 0
torch._C._dynamo.guards._empty_strided_cuda = lambda size, stride, dtype: torch.empty_strided(size, stride, dtype=dtype)
from dynamic_dilation_unfold import _C
from dynamic_dilation_unfold._tools import diagnosis

class Stand(torch.Tensor):
    is_cpu = property(lambda self: False)
    is_cuda = property(lambda self: True)
    def get_device(self):
        return 0

if sys.argv[1]:
    diagnosis.verdict = lambda state: sys.argv[1]
x = torch.ones(1, 2, 8, 8).as_subclass(Stand)
try:
    _C.unfold(x, x[:, :1], 3, 1, 1, 1, 1, "zeros")
except RuntimeError as error:
    print(error)
"""


def message(sentence: str) -> str:
    command = [sys.executable, "-c", CALL, sentence]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.skipif(torch.cuda.is_available(), reason="the stand-in has no memory on a CUDA device")
def test_a_call_raises_the_verdict() -> None:
    sentence = verdict(CPU)
    assert message(sentence) == sentence
    # With nothing to blame, libddu's own words.
    own = "has no CUDA kernels" if _C.cuda_toolkit_version == 0 else "needs a driver for CUDA"
    assert message("").startswith("this build of dynamic_dilation_unfold ")
    assert own in message("")
