#!/usr/bin/env python3
"""Shows where kernels wait for their loads from global memory: every instruction that waits for some, in order.

    python benchmarks/sass_waits.py FILE [--arch sm_90] [--kernel NAME]

FILE has device code: `libddu.so`, an object or a cubin. Since Volta an instruction names the scoreboards, of six, that
it waits for, and a load the one that it holds until it is done. Many loads share one, and a wait for it is a wait for
all of them. So a line far from the use of the loads that it lists, such as an addition of integers after the taps of
the main loop, is a wait for nothing: look for another load of that register on a way of its own, which that way may
leave without having waited. The order is that of the code, not as it branches. Needs what compare_sass.py needs.
"""

from __future__ import annotations

import argparse
import re
from typing import NamedTuple

from compare_sass import run, shorten


class Instruction(NamedTuple):
    text: str
    waits: set[int]  # scoreboards
    holds: int | None  # until its result is there


def read_instructions(listing: str) -> dict[str, list[Instruction]]:
    """Each function in what `cuobjdump -sass` prints: two words an instruction, the second with its control bits."""
    functions: dict[str, list[Instruction]] = {}
    code: list[Instruction] = []
    text = ""
    for line in listing.splitlines():
        if started := re.match(r"\s*Function : (\S+)", line):
            code = functions.setdefault(started[1], [])
        elif first := re.match(r"\s*/\*[0-9a-f]+\*/\s+(.*?);", line):
            text = first[1].strip()
        elif second := re.match(r"\s+/\* 0x([0-9a-f]+) \*/", line):
            control = (
                int(second[1], 16) >> 41
            )  # stall 4, yield 1, scoreboard of the result 3, of the operands 3, waits 6
            result, waits = control >> 5 & 7, control >> 11 & 63
            code.append(Instruction(text, {i for i in range(6) if waits >> i & 1}, result if result < 6 else None))
    return functions


def waits_for_loads(code: list[Instruction]) -> list[tuple[int, str, list[str]]]:
    """Index and text of the instructions that wait for loads from global memory, with the registers of these."""
    found = []
    loading: list[list[str]] = [[] for _ in range(6)]
    for index, instruction in enumerate(code):
        awaited = [register for board in sorted(instruction.waits) for register in loading[board]]
        for board in instruction.waits:
            loading[board] = []
        if awaited:
            found.append((index, instruction.text, awaited))
        load = re.match(r"(?:@!?U?P\w+ )?\s*LDG\S* (R\d+)", instruction.text)
        if load and instruction.holds is not None:
            loading[instruction.holds].append(load[1])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file")
    parser.add_argument("--arch", help="of several in the file, as cuobjdump names it: sm_90")
    parser.add_argument("--kernel", default="", metavar="NAME", help="only kernels whose name contains NAME")
    given = parser.parse_args()
    select = ["-arch", given.arch] if given.arch else []
    functions = read_instructions(run("cuobjdump", *select, "-sass", given.file))
    names = run("c++filt", text="\n".join(functions)).splitlines()
    for name, code in zip(names, functions.values(), strict=True):
        if given.kernel not in name and given.kernel not in shorten(name):
            continue
        print(f"{shorten(name)}  ({len(code)} instructions)")
        for index, text, registers in waits_for_loads(code):
            print(f"    {index:5d}  {text:60s} {len(registers):3d}: {' '.join(registers)}")


if __name__ == "__main__":
    main()
