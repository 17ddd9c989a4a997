"""Draws the pictures of the pages, as SVG whose text is text: the reader's own fonts show it, in either language."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from dynamic_dilation_unfold import dynamic_dilation_unfold
from matplotlib.axes import Axes
from matplotlib.figure import Figure

RESULTS = Path(__file__).resolve().parents[2] / "benchmarks" / "results"
OURS, OTHERS, FLOOR = "#0072b2", ["#999999", "#cc79a7"], "#d9d9d9"
TAP = "#d55e00"
Draw = Callable[[Callable[[str, str], str]], Figure]
DRAWN: dict[str, Draw] = {}


def picture(function: Draw) -> Draw:
    DRAWN[function.__name__.replace("_", "-")] = function
    return function


def draw(name: str, path: Path, language: str) -> None:
    """Writes a picture; equal calls write equal files."""
    style = {"svg.fonttype": "none", "svg.hashsalt": name, "font.size": 10, "font.family": "sans-serif"}
    with mpl.rc_context(style), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font")  # Chinese is measured without its font
        torch.manual_seed(0)
        figure = DRAWN[name](lambda english, chinese: chinese if language == "zh-CN" else english)
        figure.savefig(path, metadata={"Date": None})
        plt.close(figure)
    text = path.read_text("utf-8")
    # matplotlib asks for its own fonts by name: any that the reader has will do.
    path.write_text(text.replace("'DejaVu Sans'", "system-ui, 'Noto Sans CJK SC', 'Microsoft YaHei'"), "utf-8")


def taps(image: Axes, rate: float, size: int = 7, kernel: int = 3) -> None:
    """A window around the middle pixel of a small grid."""
    middle = size // 2
    for line in range(size + 1):
        image.axhline(line - 0.5, color=FLOOR, linewidth=0.8)
        image.axvline(line - 0.5, color=FLOOR, linewidth=0.8)
    offsets = [(k - (kernel - 1) / 2) * rate for k in range(kernel)]
    image.scatter(
        [middle + x for _ in offsets for x in offsets],
        [middle + y for y in offsets for _ in offsets],
        s=34,
        color=TAP,
        zorder=3,
    )
    image.set(xlim=(-0.5, size - 0.5), ylim=(size - 0.5, -0.5), xticks=[], yticks=[], aspect="equal")
    for spine in image.spines.values():
        spine.set_visible(False)


@picture
def rates(say: Callable[[str, str], str]) -> Figure:
    """What a rate does to the taps of one position."""
    figure, axes = plt.subplots(1, 5, figsize=(9, 2.2), layout="constrained")
    notes = {
        0.0: say("all on the centre", "都在中心"),
        0.5: say("between pixels", "像素之间"),
        1.0: say("as F.unfold", "同 F.unfold"),
        2.0: say("F.unfold, dilation 2", "F.unfold，dilation 2"),
        2.6: say("any fraction", "任意小数"),
    }
    for axis, (rate, note) in zip(axes, notes.items(), strict=True):
        taps(axis, rate)
        axis.set_title(say(f"rate {rate:g}", f"扩张率 {rate:g}"), fontsize=10)
        axis.set_xlabel(note, fontsize=9)
    return figure


def smooth_noise(size: int, reach: int, channels: int = 1) -> torch.Tensor:
    return F.avg_pool2d(torch.randn(1, channels, size + reach - 1, size + reach - 1), reach, stride=1) * reach


@picture
def map_and_mean(say: Callable[[str, str], str]) -> Figure:
    """A mean of taps over a map that grows from left to right."""
    size = 96
    image = torch.zeros(1, 1, size, size)
    image[..., ::12, :] = image[..., :, ::12] = 1
    map_ = torch.linspace(0, 6, size).expand(1, 1, size, size).contiguous()
    mean = dynamic_dilation_unfold(image, 5, map_, padding=2).view(25, size, size).mean(0)
    figure, axes = plt.subplots(1, 3, figsize=(9, 3), layout="constrained")
    titles = say("image", "图像"), say("dilation map", "扩张率图"), say("mean of 5x5 taps", "5x5 个采样点的均值")
    for axis, values, title in zip(axes, (image[0, 0], map_[0, 0], mean), titles, strict=True):
        shown = axis.imshow(values, cmap="viridis" if axis is axes[1] else "gray", interpolation="nearest")
        axis.set(title=title, xticks=[], yticks=[])
        if axis is axes[1]:
            figure.colorbar(shown, ax=axis, shrink=0.8)
    return figure


@picture
def four_scales(say: Callable[[str, str], str]) -> Figure:
    """Four groups of channels, four scales of the same contrast."""
    size = 96
    image = smooth_noise(size, 5).expand(1, 4, size, size)
    scales = (0.5, 1.0, 2.0, 4.0)
    map_ = torch.tensor(scales).view(1, 4, 1, 1)
    columns = dynamic_dilation_unfold(image, 3, map_, padding=1, groups=4).view(4, 9, size, size)
    contrast = image[0] - columns.mean(1)
    figure, axes = plt.subplots(1, 4, figsize=(9, 2.6), layout="constrained")
    for axis, values, rate in zip(axes, contrast, scales, strict=True):
        axis.imshow(values, cmap="gray", vmin=-2, vmax=2, interpolation="nearest")
        axis.set(title=say(f"group of rate {rate:g}", f"扩张率 {rate:g} 的组"), xticks=[], yticks=[])
    return figure


@cache
def steps_of_learning() -> tuple[dict[int, torch.Tensor], torch.Tensor]:
    """The maps after some steps, and the one that is wanted: the problem of examples/learn_map.py."""
    size = 32
    image = smooth_noise(size, 7, 16)
    steps = torch.linspace(0, 1, size)
    wanted = (0.8 + 0.7 * (steps + steps[:, None])).view(1, 1, size, size)
    target = dynamic_dilation_unfold(image, 3, wanted, padding=1)
    found = torch.full((1, 1, size, size), 1.5, requires_grad=True)
    optimizer = torch.optim.Adam([found], lr=0.03)
    seen = {}
    for step in range(201):
        if step in (0, 20, 60, 200):
            seen[step] = found.detach()[0, 0].clone()
        optimizer.zero_grad()
        (dynamic_dilation_unfold(image, 3, found, padding=1) - target).square().mean().backward()
        optimizer.step()
    return seen, wanted[0, 0]


@picture
def learnt_map(say: Callable[[str, str], str]) -> Figure:
    """A map found by gradient descent."""
    seen, wanted = steps_of_learning()
    figure, axes = plt.subplots(1, 5, figsize=(9, 2.4), layout="constrained")
    titles = [say(f"step {step}", f"第 {step} 步") for step in seen] + [say("wanted", "目标")]
    for axis, values, title in zip(axes, [*seen.values(), wanted], titles, strict=True):
        shown = axis.imshow(values, vmin=0.8, vmax=2.2, interpolation="nearest")
        axis.set(title=title, xticks=[], yticks=[])
    figure.colorbar(shown, ax=axes, shrink=0.7)
    return figure


def record(name: str) -> list[dict]:
    return json.loads((RESULTS / f"{name}.json").read_text("utf-8"))["results"]


def bars(say: Callable[[str, str], str], direction: str, rows: list[tuple[str, str, str]], title: str) -> Figure:
    """Microseconds of each way for each kind of map, from the record of the standard shape in float32."""
    found = {r["map"]: r[direction] for r in record("h100-r") if r["dtype"] == "float32"}
    figure, axis = plt.subplots(figsize=(8, 3.4), layout="constrained")
    width = 0.8 / len(rows)
    for number, (key, label, colour) in enumerate(rows):
        values = [1e6 * found[kind][key] for kind in found]
        places = [position + (number - (len(rows) - 1) / 2) * width for position in range(len(found))]
        drawn = axis.bar(places, values, width * 0.92, label=label, color=colour)
        axis.bar_label(drawn, fmt="%.0f", fontsize=8)
    kinds = {
        "ones": say("ones", "全为 1"),
        "smooth": say("smooth, 0.5 to 3", "平滑，0.5 到 3"),
        "noise": say("noise, 0.5 to 3", "随机，0.5 到 3"),
        "wide": say("noise, 0.5 to 16", "随机，0.5 到 16"),
    }
    axis.set_xticks(range(len(found)), [kinds.get(kind, kind) for kind in found])
    axis.set(ylabel=say("microseconds", "微秒"), title=title)
    axis.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside lower center", ncols=len(rows), frameon=False, fontsize=9)
    return figure


@picture
def speed_forward(say: Callable[[str, str], str]) -> Figure:
    rows = [
        ("fill", say("fill of the output (floor)", "写一遍输出（下限）"), FLOOR),
        ("F.unfold", "F.unfold", OTHERS[0]),
        ("grid_sample", "F.grid_sample", OTHERS[1]),
        ("ours", say("this", "本库"), OURS),
    ]
    return bars(say, "forward", rows, say("Forward", "前向"))


@picture
def speed_backward(say: Callable[[str, str], str]) -> Figure:
    rows = [
        ("read", say("read of the gradient (floor)", "读一遍梯度（下限）"), FLOOR),
        ("F.fold", "F.fold", OTHERS[0]),
        ("grid_sample", "F.grid_sample", OTHERS[1]),
        ("ours", say("this, both gradients", "本库，两个梯度"), OURS),
    ]
    return bars(say, "backward", rows, say("Backward", "反向"))


@picture
def speed_rates(say: Callable[[str, str], str]) -> Figure:
    """The first rows of the record: one shape, contiguous, with maps that reach further and further."""
    rows = [r for r in record("h100-rates") if r["shape"] == [4, 64, 128, 128] and r["kernel"] == 3]
    rows = [r for r in rows if r["dtype"] == "float32" and r["padding"] == 1 and not r["channels_last"]]
    largest = [float(r["map"].partition("-")[2]) for r in rows]
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.2), layout="constrained")
    titles = say("Forward", "前向"), say("Backward, both gradients", "反向，两个梯度")
    for axis, direction, title in zip(axes, ("forward", "backward"), titles, strict=True):
        plain = "F.unfold" if direction == "forward" else "F.fold"
        labels = {plain: plain, "grid_sample": "F.grid_sample", "ours": say("this", "本库")}
        for (key, label), colour in zip(labels.items(), [*OTHERS, OURS], strict=True):
            axis.plot(largest, [1e6 * r[direction][key] for r in rows], "o-", color=colour, label=label)
        axis.set(title=title, xlabel=say("largest rate", "最大扩张率"), ylim=(0, None), xticks=largest)
        axis.spines[["top", "right"]].set_visible(False)
        axis.legend(frameon=False, fontsize=9)
    axes[0].set_ylabel(say("microseconds", "微秒"))
    return figure


@picture
def speed_consumers(say: Callable[[str, str], str]) -> Figure:
    """Operators without columns beside the same on columns: float32, contiguous but for 7x7 taps; logarithmic."""
    kept = [r for r in record("h100-consumers") if r["dtype"] == "float32" and r["map"] == "0.5-3"]
    kept = [r for r in kept if r["channels_last"] == ("k7" in r["label"])]
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
    names = [r["operator"] + ("\n7x7" if "k7" in r["label"] else "\n3x3") for r in kept]
    rows = [
        ("columns", say("on columns, compiled", "在展开列上计算，经编译"), OTHERS[0]),
        ("ours", say("this", "本库"), OURS),
    ]
    in_pairs(axes, say, kept, names, rows)
    for axis in axes:
        axis.set_yscale("log")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=2, frameon=False, fontsize=9)
    return figure


@picture
def speed_convolution(say: Callable[[str, str], str]) -> Figure:
    """The convolution whose dilation is a map beside F.conv2d, in two types and layouts."""
    found = record("h100-convolution")
    figure, grid = plt.subplots(2, 2, figsize=(9, 6), layout="constrained")
    rows = [
        ("F.conv2d", say("F.conv2d, which has no map", "F.conv2d，没有扩张率图"), OTHERS[0]),
        ("ours", say("this", "本库"), OURS),
        ("with a mask", say("this, with a mask", "本库，带掩码"), "#56b4e9"),
    ]
    for axes, (dtype, last) in zip(grid, (("bfloat16", True), ("float32", False)), strict=True):
        kept = [r for r in found if r["dtype"] == dtype and r["channels_last"] == last]
        names = [f"{r['label'].split('x')[1]}→{r['outputs']}\n{r['map']}" for r in kept]
        in_pairs(axes, say, kept, names, rows)
        for axis in axes:
            axis.set_title(f"{axis.get_title()}: {dtype}, {'channels_last' if last else 'NCHW'}", fontsize=10)
    figure.legend(
        *grid[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False, fontsize=9
    )
    return figure


def in_pairs(
    axes: Sequence[Axes],
    say: Callable[[str, str], str],
    kept: list[dict],
    names: list[str],
    rows: list[tuple[str, str, str]],
) -> None:
    """Microseconds of a forward, and of forward and backward: a group of bars for each record."""
    width = 0.84 / len(rows)
    titles = {"forward": say("Forward", "前向"), "step": say("Forward and backward", "前向与反向")}
    for axis, (direction, title) in zip(axes, titles.items(), strict=True):
        for number, (key, label, colour) in enumerate(rows):
            places = [position + (number - (len(rows) - 1) / 2) * width for position in range(len(kept))]
            values = [1e6 * r[direction][key] for r in kept]
            drawn = axis.bar(places, values, width * 0.92, label=label, color=colour)
            axis.bar_label(drawn, fmt="%.0f", fontsize=7)
        axis.set_xticks(range(len(kept)), names, fontsize=8)
        axis.set_title(title)
        axis.margins(y=0.12)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel(say("microseconds", "微秒"))
