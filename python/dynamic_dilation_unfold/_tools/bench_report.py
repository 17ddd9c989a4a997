"""The benchmark's figures as text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .tables import aligned
from .timing import seconds

Record = dict[str, Any]

NAMES = {
    "fill": "fill of the output (floor)",
    "read": "read of the gradient (floor)",
    "allocation": "allocation and fill of an output",
    "F.unfold": "F.unfold",
    "F.fold": "F.fold",
    "grid_sample": "F.grid_sample emulation",
    "ours": "dynamic_dilation_unfold",
    "ours, input only": "dynamic_dilation_unfold, input only",
    "ours, map only": "dynamic_dilation_unfold, map only",
    "ours, deterministic": "dynamic_dilation_unfold, deterministic",
}
_PEERS = {"forward": ("fill", "F.unfold", "grid_sample"), "backward": ("read", "F.fold", "grid_sample")}
TITLES = {"forward": "forward", "backward": "backward, both gradients"}


def heading(about: dict[str, Any]) -> str:
    revision = about["commit"][:12] + ("+" if about["modified"] else "") if about["commit"] else "unknown"
    return (
        f"{about['device_name']}, {about['cpu_capability']}, {about['threads']} threads, torch {about['torch']}\n"
        f"dynamic_dilation_unfold {about['dynamic_dilation_unfold']}, commit {revision}, {about['date']}"
    )


def _ratio(times: dict[str, float], of: str, to: str) -> str:
    return f"{times[of] / times[to]:.2f}" if of in times and to in times else "-"


def _time(times: dict[str, float], name: str) -> str:
    return seconds(times[name]) if name in times else "-"


def full(records: Sequence[Record]) -> str:
    """A table for each shape and dtype: functions down, maps across."""
    tables: dict[str, list[Record]] = {}
    for record in records:
        tables.setdefault(_title(record), []).append(record)
    return "\n".join("\n".join(_table(title, columns)) for title, columns in tables.items())


def _table(title: str, columns: list[Record]) -> list[str]:
    lines = ["", title]
    for direction, peers in _PEERS.items():
        lines.append(_line(direction, [record["map"] for record in columns]))
        names = [name for name in NAMES if any(name in record[direction] for record in columns)]
        for name in names:
            lines.append(_line("  " + NAMES[name], [_time(record[direction], name) for record in columns]))
            if name.startswith("ours"):
                others = peers if name == "ours" else ("ours",)
                if name == "ours":
                    rates = [r["bytes"][direction] / r[direction][name] / 1e9 for r in columns]
                    lines.append(_line("    GB/s of the bytes that must move", [f"{rate:.1f}" for rate in rates]))
                for peer in others:
                    label = "both gradients" if peer == "ours" else NAMES[peer].removesuffix(" (floor)")
                    lines.append(_line(f"    / {label}", [_ratio(r[direction], name, peer) for r in columns]))
    for record in columns:
        lines += [f"  no {what} (map {record['map']}): {why}" for what, why in record["unavailable"].items()]
    return lines


def _title(record: Record) -> str:
    size = record["output_bytes"] / 1e6
    text = f"{record['label']}, {record['dtype']}, padding {record['padding']}, output {size:.0f} MB"
    return f"{record['workload']}: {text}"


def _line(label: str, cells: Sequence[str]) -> str:
    return f"{label:<44}" + "".join(f"{cell:>12}" for cell in cells)


def compact(name: str, records: Sequence[Record]) -> str:
    """A table for each direction, with a line for each problem."""
    lines = []
    for direction, peers in _PEERS.items():
        names = [*peers, "ours", "ours, deterministic"]
        if not any(names[-1] in record[direction] for record in records):
            names.pop()
        heads = ["input", "dtype", "map", "output"]
        heads += ["deterministic" if name.startswith("ours,") else name for name in names]
        heads += [f"ours/{peer}" for peer in peers] + ["deterministic/ours"] * (len(names) - 4)
        rows = [heads]
        for record in records:
            times = record[direction]
            row = [record["label"], record["dtype"], record["map"], f"{record['output_bytes'] / 1e6:.1f} MB"]
            row += [_time(times, key) for key in names] + [_ratio(times, "ours", peer) for peer in peers]
            rows.append(row + [_ratio(times, key, "ours") for key in names[4:]])
        lines += ["", f"{name}: {TITLES[direction]}", *aligned(rows, left=3)]
    return "\n".join(lines)


def overhead(figures: dict[str, dict[str, float]]) -> str:
    lines = ["", "wall time of a call on a tiny tensor (1x4x8x8, kernel 3), gradients on, at best"]
    for name, times in figures.items():
        lines.append(
            f"  {name:<34}F.unfold {seconds(times['F.unfold'])}, dynamic_dilation_unfold {seconds(times['ours'])} "
            f"({_ratio(times, 'ours', 'F.unfold')})"
        )
    return "\n".join(lines)
