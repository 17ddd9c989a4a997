#!/usr/bin/env python3
"""Says which kernels of two builds are the same code: compares their disassembly, kernel by kernel.

    python benchmarks/compare_sass.py BEFORE AFTER [--arch sm_90] [--rename REGEX=NEW]... [--diff NAME]

BEFORE and AFTER are files with device code: `libddu.so`, objects or cubins, or several of them with commas between.
Kernels are matched by their demangled names. Where one was renamed, `--rename` rewrites the names of BEFORE first
(Python's `re.sub`, applied in the order given). `--diff NAME` prints how the kernels whose name contains NAME differ.

Each kernel is one of

    identical   the same instructions with the same registers
    moved       the same but for the offsets of its parameters in constant memory
    changed     anything else: instructions, registers, stack and spills before and after
    gone, new   only in one of the two

A rename or a move of code should leave `identical`; a field added to a parameter struct, `moved`. What `changed` costs
only a timing can tell (compare_builds.py). Needs `cuobjdump` and `nvdisasm` of the CUDA toolkit (PyPI has them too:
nvidia-cuda-cuobjdump, nvidia-cuda-nvdisasm) and `c++filt`.
"""

import argparse
import difflib
import re
import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple


class Kernel(NamedTuple):
    code: list[str]  # instructions without addresses and encodings
    resources: dict[str, int]  # REG, STACK, LOCAL, SHARED as cuobjdump names them


def run(*command: str, text: str | None = None) -> str:
    return subprocess.run(command, input=text, capture_output=True, text=True, check=True).stdout


def read_code(listing: str) -> dict[str, list[str]]:
    """The instructions of each function in what `cuobjdump -sass` prints."""
    functions: dict[str, list[str]] = {}
    code: list[str] = []
    for line in listing.splitlines():
        if started := re.match(r"\s*Function : (\S+)", line):
            code = functions.setdefault(started[1], [])
        elif instruction := re.match(r"\s*/\*[0-9a-f]+\*/\s+(.*?);", line):
            code.append(instruction[1].strip())
    return functions


def read_resources(listing: str) -> dict[str, dict[str, int]]:
    """The registers and memory of each function in what `cuobjdump -res-usage` prints."""
    found = re.findall(r"Function (\S+):\n\s*(REG.*)", listing)
    return {name: {key: int(value) for key, value in re.findall(r"(\w+):(\d+)", line)} for name, line in found}


def read_kernels(files: str, arch: str | None, renames: list[tuple[str, str]]) -> dict[str, Kernel]:
    select = ["-arch", arch] if arch else []
    kernels: dict[str, Kernel] = {}
    for file in files.split(","):
        code = read_code(run("cuobjdump", *select, "-sass", file))
        resources = read_resources(run("cuobjdump", *select, "-res-usage", file))
        demangled = run("c++filt", text="\n".join(code)).splitlines()
        for mangled, name in zip(code, demangled, strict=True):
            short = shorten(name)
            for pattern, replacement in renames:
                short = re.sub(pattern, replacement, short)
            kernel = Kernel(code[mangled], resources.get(mangled, {}))
            # Several sources may use one template.
            if kernels.setdefault(short, kernel) != kernel:
                raise SystemExit(f"two kernels of {files} are called {short}: choose one architecture with --arch")
    return kernels


def shorten(name: str) -> str:
    """Without result, namespaces and parameters: a kernel's name and template arguments tell it apart."""
    name = re.sub(r"\(anonymous namespace\)::|ddu::cuda::|ddu::", "", name)
    name = re.sub(r"^void ", "", name)
    depth = 0
    for i, character in enumerate(name):
        depth += {"<": 1, ">": -1}.get(character, 0)
        if character == "(" and depth == 0:
            return name[:i]
    return name


def without_parameters(code: list[str]) -> list[str]:
    """The code with every offset into the bank of parameters left out."""
    return [re.sub(r"c\[0x0\]\[[^]]*\]", "c[parameter]", line) for line in code]


def compare(before: Kernel, after: Kernel) -> str:
    same = all(before.resources.get(key) == after.resources.get(key) for key in ("REG", "STACK", "LOCAL", "SHARED"))
    if same and before.code == after.code:
        return "identical"
    if same and without_parameters(before.code) == without_parameters(after.code):
        return "moved"
    return "changed"


def describe(before: Kernel, after: Kernel) -> str:
    words = [f"instructions {instructions(before)} -> {instructions(after)}"]
    for key, meaning in {"REG": "registers", "STACK": "stack", "LOCAL": "local", "SHARED": "shared"}.items():
        old, new = before.resources.get(key, 0), after.resources.get(key, 0)
        if key == "REG" or old != new:
            words.append(f"{meaning} {old} -> {new}")
    return ", ".join(words)


def instructions(kernel: Kernel) -> int:
    """How many instructions there are but for the padding behind the last one."""
    return sum(not line.startswith("NOP") for line in kernel.code)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before")
    parser.add_argument("after")
    parser.add_argument("--arch", help="of several in a file, as cuobjdump names it: sm_90")
    parser.add_argument("--rename", action="append", default=[], metavar="REGEX=NEW", help="of names in BEFORE")
    parser.add_argument("--diff", metavar="NAME", help="print how the code of these kernels differs")
    given = parser.parse_args()
    if missing := [tool for tool in ("cuobjdump", "nvdisasm", "c++filt") if not shutil.which(tool)]:
        parser.error(f"not found: {', '.join(missing)} (what they come with stands above: --help)")
    for file in f"{given.before},{given.after}".split(","):
        if not Path(file).is_file():
            parser.error(f"there is no file {file}")

    renames = [(pattern, new) for pattern, _, new in (rename.partition("=") for rename in given.rename)]
    before, after = read_kernels(given.before, given.arch, renames), read_kernels(given.after, given.arch, [])
    counts = dict.fromkeys(["identical", "moved", "changed", "gone", "new"], 0)
    for name in sorted(before.keys() | after.keys()):
        if name not in after:
            verdict, details = "gone", f"instructions {instructions(before[name])}"
        elif name not in before:
            verdict, details = "new", describe(after[name], after[name])
        else:
            verdict, details = compare(before[name], after[name]), describe(before[name], after[name])
        counts[verdict] += 1
        print(f"{verdict:9}  {name}  ({details})")
        if given.diff and given.diff in name and verdict == "changed":
            lines = difflib.unified_diff(before[name].code, after[name].code, "before", "after", lineterm="", n=2)
            print("\n".join(f"    {line}" for line in lines))
    print(", ".join(f"{count} {verdict}" for verdict, count in counts.items()))
    return 0 if counts["identical"] + counts["moved"] == len(before) == len(after) else 1


if __name__ == "__main__":
    raise SystemExit(main())
