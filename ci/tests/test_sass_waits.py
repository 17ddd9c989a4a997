"""benchmarks/sass_waits.py finds the instructions that wait for loads from global memory."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def listed(text: str, *, holds: int = 7, waits: int = 0) -> str:
    control = (holds << 5 | 7 << 8 | waits << 11) << 41
    return f"        /*0000*/     {text} ;   /* 0x{0:016x} */\n               /* 0x{control:016x} */\n"


def test_waits_for_all_loads_of_a_scoreboard(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    script = runpy.run_path(str(BENCHMARKS / "sass_waits.py"))
    listing = "\t\tFunction : first\n" + "".join(
        [
            listed("@P0 LDG.E.EF R8, desc[UR4][R2.64]", holds=5),
            listed("LDG.E R9, desc[UR4][R4.64]", holds=5),
            listed("LDG.E R10, desc[UR4][R4.64]", holds=1),
            listed("LDS R11, [R3]", holds=0),
            listed("FADD R12, R11, 1", waits=1 << 0),  # of shared memory: not listed
            listed("IMAD R13, R1, 0x4, RZ", waits=1 << 5),
            listed("FADD R14, R8, R9", waits=1 << 5),  # nothing is under way any more
        ]
    )
    code = script["read_instructions"](listing)["first"]
    assert (code[0].holds, code[4].holds, code[5].waits) == (5, None, {5})
    assert script["waits_for_loads"](code) == [(5, "IMAD R13, R1, 0x4, RZ", ["R8", "R9"])]
