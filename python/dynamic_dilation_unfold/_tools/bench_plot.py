"""The benchmark's figures as a plot. matplotlib is imported when it is asked for."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .bench_report import NAMES, Record
from .timing import seconds

_OURS, _PEERS, _FLOORS = "#0072b2", "#b0b0b0", "#e0e0e0"
# Records of unfold have a backward, those of operators without columns a whole step.
_TITLES = {
    "forward": "forward",
    "backward": "backward, both gradients",
    "step": "forward and backward to all arguments",
}


def require(path: Path) -> None:
    """Exits with the reason where no plot can be made of that name."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise SystemExit(
            "--plot draws with matplotlib, which is missing.\n"
            'Install it with:  pip install "dynamic-dilation-unfold[viz]"  (in a checkout:  pip install ".[viz]")'
        ) from None
    formats = Figure().canvas.get_supported_filetypes()
    if path.suffix.lstrip(".").lower() not in formats:
        raise SystemExit(f"Cannot plot to {path}: the formats are {', '.join(sorted(formats))}")


def draw(records: Sequence[Record], about: dict[str, Any], path: Path) -> Any:
    """A row for each problem, forward beside backward; as JSON files of the benchmark have them. The figure."""
    from matplotlib.figure import Figure

    directions = [[name for name in _TITLES if name in record] for record in records]
    heights = [max(len(r[name]) for name in own) + 1.5 for r, own in zip(records, directions, strict=True)]
    figure = Figure(figsize=(13, 0.8 + 0.24 * sum(heights)), dpi=100, layout="constrained", facecolor="white")
    grid = figure.subplots(len(records), 2, squeeze=False, height_ratios=heights)
    for row, record, own in zip(grid, records, directions, strict=True):
        for axes, direction in zip(row, own, strict=True):
            _bars(axes, record[direction], _names(record))
            where = f"{record['workload']}: {record['label']}, {record['dtype']}, {record['map']}"
            axes.set_title(f"{where}; {_TITLES[direction]}", fontsize=9, loc="left")
    figure.suptitle(f"{about['device_name']}, torch {about['torch']}, {about['date'][:10]}", fontsize=10)
    figure.savefig(path)
    return figure


def _names(record: Record) -> dict[str, str]:
    """What the bars are called, in their order."""
    if "backward" in record:
        return NAMES
    ours = f"dynamic_dilation_{record.get('operator', 'conv2d')}"
    return {
        "ours": ours,
        "with a mask": f"{ours}, with a mask",
        "columns": "the same on columns",
        "F.conv2d": "F.conv2d",
    }


def _bars(axes: Any, times: dict[str, float], called: dict[str, str]) -> None:
    names = [name for name in called if name in times]
    colours = [_OURS if n.startswith(("ours", "with")) else _FLOORS if n in ("fill", "read") else _PEERS for n in names]
    bars = axes.barh([called[name] for name in names], [times[name] * 1e3 for name in names], color=colours)
    axes.bar_label(bars, [seconds(times[name]) for name in names], padding=3, fontsize=8)
    axes.invert_yaxis()
    axes.margins(x=0.15)
    axes.tick_params(labelsize=8)
    axes.set_xlabel("milliseconds", fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)
