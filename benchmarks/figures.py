"""Writes the figures of the records in results/ into the tables of README.md and docs/, in both languages.

With --check nothing is written, and it fails where a table has other figures: a test does so.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent


def record(name: str) -> Any:
    return json.loads((ROOT / "benchmarks" / "results" / f"{name}.json").read_text("utf-8"))


def rows_of_unfold() -> list[list[str]]:
    """Microseconds of the standard shape in float32, a column for each map."""
    found = [r for r in record("h100-r")["results"] if r["dtype"] == "float32"]
    keys = [("forward", key) for key in ("fill", "F.unfold", "grid_sample", "ours")]
    keys += [("backward", key) for key in ("read", "F.fold", "grid_sample", "ours")]
    keys += [("backward", f"ours, {kind}") for kind in ("input only", "map only", "deterministic")]
    return [[f"{1e6 * r[direction][key]:.0f}" for r in found] for direction, key in keys]


def rows_of_fadc() -> list[list[str]]:
    """Milliseconds and megabytes of FADC's step, by the rate and by torchvision's deform_conv2d."""
    found = record("fadc-h100")["figures"].values()
    return [[f"{r['forward ms']:.2f}", f"{r['step ms']:.2f}", f"{r['peak MB']:.0f}"] for r in found]


def rows_of_steps() -> list[list[str]]:
    """Milliseconds and megabytes of a training step."""
    found = record("training-step-h100")["figures"].values()
    return [[f"{r['step ms']:.2f}", f"{r['peak MB']:.0f}"] for r in found]


def fill_table(text: str, after: str, rows: Sequence[Sequence[str]]) -> str:
    """The text with the last cells of a table's rows replaced; ``after`` ends the table's head."""
    start = text.index(after) + len(after)
    before, lines = text[:start], text[start:].split("\n")
    for number, cells in enumerate(rows, 2):  # past the end of the head, and the line of dashes
        kept = lines[number].strip("|").split(" | ")[: -len(cells)]
        lines[number] = f"|{' | '.join([*kept, *cells])} |"
    return before + "\n".join(lines)


def fill_pairs(text: str, between: str, pairs: Sequence[tuple[str, str]]) -> str:
    """The text with each "number between number" replaced by the next pair."""
    found = iter(pairs)
    text = re.sub(rf"\d+{between}\d+", lambda _: between.join(next(found)), text)
    assert next(found, None) is None, f"too few of {between!r}"
    return text


def figures() -> dict[str, str]:
    """Documents, as they should be."""
    unfold, fadc, steps = rows_of_unfold(), rows_of_fadc(), rows_of_steps()
    deterministic = [(unfold[-1][column], unfold[7][column]) for column in (0, 3)]  # ones, wide
    found = {}
    for suffix, between in (("", " instead of "), (".zh-CN", " 微秒而不是 ")):
        readme, speed = (ROOT / f"{name}{suffix}.md" for name in ("README", "docs/speed"))
        text = fill_table(readme.read_text("utf-8"), "| ones | smooth | noise | wide |", unfold)
        found[str(readme)] = fill_table(text, ", MB |" if not suffix else "，MB |", steps)
        text = fill_pairs(speed.read_text("utf-8"), between, deterministic)
        found[str(speed)] = fill_table(text, "| MB |", fadc)
    return found


def main(arguments: Sequence[str]) -> int:
    differ = {path: text for path, text in figures().items() if Path(path).read_text("utf-8") != text}
    for path, text in differ.items():
        if "--check" in arguments:
            print(f"{path}: not the figures of benchmarks/results: run benchmarks/figures.py", file=sys.stderr)
        else:
            Path(path).write_text(text, "utf-8")
            print(f"new figures: {path}")
    return 1 if differ and "--check" in arguments else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
