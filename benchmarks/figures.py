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


def fill_numbers(text: str, after: str, numbers: Sequence[str]) -> str:
    """The text with the next numbers behind ``after`` that have a decimal point replaced."""
    start = text.index(after)
    given = iter(numbers)
    return text[:start] + re.sub(r"\d+\.\d+", lambda _: next(given), text[start:], count=len(numbers))


def shares_of_rates() -> tuple[list[str], list[str], list[str]]:
    """What calls of "h100-rates" take in float32: of their floors, with near and wide rates and channels_last; of
    F.unfold's and F.fold's times, with near and wide rates; of those, with one channel and with three.
    """
    found = {(r["label"], r["map"]): r for r in record("h100-rates")["results"] if r["dtype"] == "float32"}

    def shares(label: str, rates: str, *floors: str) -> list[float]:
        directions = zip(("forward", "backward"), floors, strict=True)
        return [found[label, rates][way]["ours"] / found[label, rates][way][floor] for way, floor in directions]

    standard, torchs = "4x64x128x128 k3", ("F.unfold", "F.fold")
    near = shares(standard, "0.5-3", "fill", "read")
    wide = [shares(standard, f"0.5-{most}", "fill", "read") for most in (9, 16, 40)]
    last = [shares(f"{standard} channels_last", f"0.5-{most}", "fill", "read") for most in (3, 16)]
    forward, backward = zip(*wide, strict=True)
    floors = [*near, max(forward), min(backward), max(backward), *map(max, zip(*last, strict=True))]
    both = shares(standard, "0.5-3", *torchs) + shares(standard, "0.5-16", *torchs)
    few = [share for c in (1, 3) for share in shares(f"4x{c}x512x512 k3", "0.5-16", *torchs)]
    return [f"{x:.1f}" for x in floors], [f"{x:.2f}" for x in both], [f"{x:.2f}" for x in few]


def rows_of_cpu() -> list[list[str]]:
    """Of float32 on a CPU, forward in F.unfold's time and both gradients in F.fold's, on one thread and two."""
    threads = [
        {(r["label"], r["map"]): r for r in record(f"cpu-rates-{n}")["results"] if r["dtype"] == "float32"}
        for n in (1, 2)
    ]
    standard = "4x64x128x128 k3"
    calls = [
        (standard, "0.5-3"),
        (standard, "0.5-16"),
        ("4x256x64x64 k3 d12", "0.5-1.5"),
        ("2x256x128x256 k3 d12", "0.5-1.5"),
        ("4x64x128x128 k7 d2", "0.5-3"),
    ]
    calls += [(f"4x{channels}x512x512 k3", "0.5-16") for channels in (1, 3)]
    ways = [("forward", "F.unfold"), ("backward", "F.fold")]
    return [[f"{t[call][way]['ours'] / t[call][way][of]:.2f}" for way, of in ways for t in threads] for call in calls]


def figures() -> dict[str, str]:
    """Documents, as they should be."""
    unfold, fadc, steps, cpu = rows_of_unfold(), rows_of_fadc(), rows_of_steps(), rows_of_cpu()
    deterministic = [(unfold[-1][column], unfold[7][column]) for column in (0, 3)]  # ones, wide
    floors, of_torch, of_few = shares_of_rates()
    found = {}
    for suffix, between in (("", " instead of "), (".zh-CN", " 微秒而不是 ")):
        chinese = bool(suffix)
        readme, speed = (ROOT / f"{name}{suffix}.md" for name in ("README", "docs/speed"))
        text = fill_table(readme.read_text("utf-8"), "| ones | smooth | noise | wide |", unfold)
        text = fill_numbers(text, "扩张率不超过 3 时，前向" if chinese else "rates up to 3 take", of_torch)
        found[str(readme)] = fill_table(text, "，MB |" if chinese else ", MB |", steps)
        text = fill_pairs(speed.read_text("utf-8"), between, deterministic)
        text = fill_numbers(text, "扩张率不超过 3 时，前向" if chinese else "With rates to 3 the forward", floors)
        text = fill_numbers(text, "只有一到三个通道时" if chinese else "with one to three channels", of_few)
        text = fill_table(text, "| MB |", fadc)
        found[str(speed)] = fill_table(
            text, "| 两个梯度，两个线程 |" if chinese else "| both gradients, two threads |", cpu
        )
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
