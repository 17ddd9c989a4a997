"""benchmarks/compare_sass.py tells kernels that are the same code from those that are not."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import pytest

SASS = """
\tcode for sm_90
\t\tFunction : first
\t.headerflags\t@"EF_CUDA_SM90"
        /*0000*/                   LDC R1, c[0x0][0x28] ;   /* 0x00000a00ff017b82 */
                                                            /* 0x000fe20000000800 */
        /*0010*/              @P0  EXIT ;                   /* 0x0000000000067919 */
        /*0020*/                   NOP;                     /* 0x0000000000007918 */
\t\tFunction : second
        /*0000*/                   EXIT ;                   /* 0x000000000000794d */
"""
RESOURCES = """
 Function first:
  REG:32 STACK:0 SHARED:1024 LOCAL:8 CONSTANT[0]:560 TEXTURE:0
 Function second:
  REG:8 STACK:0 SHARED:0 LOCAL:0 CONSTANT[0]:528 TEXTURE:0
"""


@pytest.fixture
def script() -> dict[str, Any]:
    return runpy.run_path(str(Path(__file__).parents[2] / "benchmarks" / "compare_sass.py"))


def test_reads_what_cuobjdump_prints(script: dict[str, Any]) -> None:
    code = script["read_code"](SASS)
    assert code == {"first": ["LDC R1, c[0x0][0x28]", "@P0  EXIT", "NOP"], "second": ["EXIT"]}
    resources = script["read_resources"](RESOURCES)
    assert (resources["first"]["REG"], resources["first"]["LOCAL"], resources["second"]["REG"]) == (32, 8, 8)
    assert script["instructions"](script["Kernel"](code["first"], {})) == 2


@pytest.mark.parametrize(
    ("line", "registers", "verdict"),
    [
        ("LDC R1, c[0x0][0x28]", 32, "identical"),
        ("LDC R1, c[0x0][0x30]", 32, "moved"),
        ("LDC R2, c[0x0][0x28]", 32, "changed"),
        ("LDC R1, c[0x0][0x28]", 40, "changed"),
    ],
)
def test_verdicts(script: dict[str, Any], line: str, registers: int, verdict: str) -> None:
    kernel = script["Kernel"]
    before = kernel(["LDC R1, c[0x0][0x28]", "EXIT"], {"REG": 32})
    assert script["compare"](before, kernel([line, "EXIT"], {"REG": registers})) == verdict


def test_names_without_what_does_not_tell_kernels_apart(script: dict[str, Any]) -> None:
    name = "void ddu::cuda::(anonymous namespace)::walk<float, (int)3, true>(ddu::cuda::Params<float>, int (*)(int))"
    assert script["shorten"](name) == "walk<float, (int)3, true>"


def test_one_kernel_in_several_files(script: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    other = SASS.replace("R1", "R2")
    listings = {"one": SASS, "same": SASS, "other": other}

    def run(*command: str, text: str | None = None) -> str:
        if command[0] == "c++filt":
            return text or ""
        return RESOURCES if "-res-usage" in command else listings[command[-1]]

    read_kernels = script["read_kernels"]
    monkeypatch.setitem(read_kernels.__globals__, "run", run)
    assert list(read_kernels("one,same", None, [])) == ["first", "second"]
    with pytest.raises(SystemExit, match="two kernels of one,other are called first"):
        read_kernels("one,other", None, [])
