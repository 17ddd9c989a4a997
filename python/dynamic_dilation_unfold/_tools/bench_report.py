"""The benchmark's figures as text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .timing import seconds

Record = dict[str, Any]

_NAMES = {
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


def heading(about: dict[str, Any]) -> str:
    revision = about["commit"][:12] + ("+" if about["modified"] else "") if about["commit"] else "unknown"
    return (
        f"{about['device_name']}, {about['cpu_capability']}, {about['threads']} threads, torch {about['torch']}\n"
        f"dynamic_dilation_unfold {about['dynamic_dilation_unfold']}, commit {revision}, {about['date']}"
    )


def _ratio(times: dict[str, float], of: str, to: str) -> str:
    return f"{times[of] / times[to]:.2f}" if of in times and to in times else "-"


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
        names = [name for name in _NAMES if any(name in record[direction] for record in columns)]
        for name in names:
            times = [record[direction].get(name) for record in columns]
            lines.append(_line("  " + _NAMES[name], ["-" if time is None else seconds(time) for time in times]))
            if name.startswith("ours"):
                others = peers if name == "ours" else ("ours",)
                if name == "ours":
                    rates = [r["bytes"][direction] / r[direction][name] / 1e9 for r in columns]
                    lines.append(_line("    GB/s of the bytes that must move", [f"{rate:.1f}" for rate in rates]))
                for peer in others:
                    label = "both gradients" if peer == "ours" else _NAMES[peer].removesuffix(" (floor)")
                    lines.append(_line(f"    / {label}", [_ratio(r[direction], name, peer) for r in columns]))
    for record in columns:
        lines += [f"  no {what} (map {record['map']}): {why}" for what, why in record["unavailable"].items()]
    return lines


def _title(record: Record) -> str:
    size = record["output_bytes"] / 1e6
    text = f"{_shape(record)}, {record['dtype']}, padding {record['padding']}, output {size:.0f} MB"
    return f"{record['workload']}: {text}"


def _shape(record: Record) -> str:
    text = f"{'x'.join(map(str, record['shape']))} k{record['kernel']}"
    text += f" s{record['stride']}" if record["stride"] != 1 else ""
    return text + (f" g{record['groups']}" if record["groups"] != 1 else "")


def _line(label: str, cells: Sequence[str]) -> str:
    return f"{label:<44}" + "".join(f"{cell:>12}" for cell in cells)


def compact(name: str, records: Sequence[Record]) -> str:
    """A line for each problem."""
    heads = ("fill", "F.unfold", "ours", "/fill", "/F.unfold", "read", "F.fold", "ours", "/read", "/F.fold")
    row = "{:<24}{:<9}{:<7}{:>9}" + "{:>10}" * len(heads)
    lines = ["", f"{name}: forward, then backward (both gradients)"]
    lines.append(row.format("input", "dtype", "map", "output", *heads))
    for record in records:
        cells = []
        for direction, peers in _PEERS.items():
            times = record[direction]
            cells += [seconds(times[key]) if key in times else "-" for key in (*peers[:2], "ours")]
            cells += [_ratio(times, "ours", peer) for peer in peers[:2]]
        size = f"{record['output_bytes'] / 1e6:.1f} MB"
        lines.append(row.format(_shape(record), record["dtype"], record["map"], size, *cells))
    return "\n".join(lines)


def overhead(figures: dict[str, dict[str, float]]) -> str:
    lines = ["", "wall time of a call on a tiny tensor (1x4x8x8, kernel 3), gradients on"]
    for name, times in figures.items():
        lines.append(
            f"  {name:<34}F.unfold {seconds(times['F.unfold'])}, dynamic_dilation_unfold {seconds(times['ours'])} "
            f"({_ratio(times, 'ours', 'F.unfold')})"
        )
    return "\n".join(lines)
