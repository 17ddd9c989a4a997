"""The demo's picture."""

from __future__ import annotations

import math
import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor
from torch.nn import functional as F

from .smoothing import KERNEL, Result, psnr

ACCENT = "#00e5ff"
NO_BREAK = "\u00a0"
WIDE, TALL = 2.2, 1.5  # sides' ratios from which pictures stand in a column or a row
CLOSE_UP = 7.5  # pixels on each side of a position whose taps are drawn


@dataclass
class Layout:
    """A figure and its axes: four pictures, the map's scale, and two times four close-ups."""

    figure: Any
    pictures: list[Any]  # photograph, map, its scale, with the fixed dilation, with the map
    taps: list[Any]
    zooms: list[Any]
    title_width: int = 100  # letters above a picture


def draw(result: Result, path: Path) -> None:
    layout = make_layout(*result.rates.shape)
    photograph, dilation_map, scale, fixed, adaptive = layout.pictures
    positions = tap_positions(result.rates)

    def title(axes: Any, text: str) -> None:
        axes.set_title("\n".join(textwrap.wrap(text, layout.title_width)))

    def quality(image: Tensor) -> str:
        return f"PSNR {psnr(image, result.clean):.1f} dB".replace(" ", NO_BREAK)

    _image(photograph, result.noisy)
    title(photograph, f"Photograph with noise added, {quality(result.noisy)}")
    for letter, (row, column) in zip("ABCD", positions, strict=True):
        photograph.plot(column, row, "o", markersize=5, color=ACCENT, markeredgecolor="black")
        style = {"boxstyle": "round,pad=0.15", "facecolor": "black", "alpha": 0.65, "edgecolor": "none"}
        photograph.annotate(
            letter, (column, row), (7, 5), textcoords="offset points", color=ACCENT, fontweight="bold", bbox=style
        )

    shown = _image(dilation_map, result.rates, cmap="viridis").images[0]
    title(dilation_map, "Dilation map made from it: small at edges")
    layout.figure.colorbar(shown, cax=scale, label="dilation (1 = neighbouring pixels)")

    for axes, letter, (row, column) in zip(layout.taps, "ABCD", positions, strict=True):
        _draw_taps(axes, result, row, column, letter)

    top, left, height, width = _zoom(result)
    for axes, image, text in (
        (fixed, result.fixed, f"Mean of taps, dilation {result.fixed_rate:.2f} everywhere"),
        (adaptive, result.adaptive, "Mean of taps, dilation map"),
    ):
        title(_image(axes, image), f"{text}, {quality(image)}")
        frame = Rectangle((left, top), width, height, fill=False, edgecolor=ACCENT, linewidth=1.8)
        axes.add_patch(frame)

    named = {
        "before the noise": result.clean,
        "with noise": result.noisy,
        "fixed dilation": result.fixed,
        "dilation map": result.adaptive,
    }
    for axes, (name, image) in zip(layout.zooms, named.items(), strict=True):
        crop = image[:, top : top + height, left : left + width]
        _image(axes, crop).set_title(name, fontsize=10)

    layout.figure.savefig(path)


def make_layout(height: int, width: int) -> Layout:
    """Two by two pictures beside their close-ups; one below the other if they are wide, side by side if tall."""
    if width > WIDE * height:
        return _stacked(width / height)
    return _side_by_side(width / height) if height > TALL * width else _square(width / height)


def _figure(width: float, height: float) -> Any:
    figure = Figure(figsize=(width, height), dpi=100, layout="constrained", facecolor="white")
    figure.get_layout_engine().set(w_pad=0.06, h_pad=0.06, wspace=0.02, hspace=0.02)
    return figure


def _fill(figure: Any, grid: Any) -> list[Any]:
    return [figure.add_subplot(grid[row, column]) for row in range(grid.nrows) for column in range(grid.ncols)]


def _square(aspect: float) -> Layout:
    figure = _figure(15.5, 2 * (4.9 / aspect + 0.45))
    grid = figure.add_gridspec(2, 4, width_ratios=(1, 1, 0.025, 0.95))
    cells = ((0, 0), (0, 1), (0, 2), (1, 0), (1, 1))
    axes = [figure.add_subplot(grid[cell]) for cell in cells]
    taps, zooms = (_fill(figure, grid[row, 3].subgridspec(2, 2)) for row in (0, 1))
    return Layout(figure, axes, taps, zooms)


def _stacked(aspect: float) -> Layout:
    picture, high, low = max(1.1, 14.2 / aspect + 0.45), 3.7, 2.3  # a zoom is twice as wide as high
    figure = _figure(15.5, 4 * picture + high + low)
    grid = figure.add_gridspec(6, 2, width_ratios=(1, 0.012), height_ratios=(*[picture] * 4, high, low))
    cells = ((0, 0), (1, 0), (slice(0, 4), 1), (2, 0), (3, 0))
    axes = [figure.add_subplot(grid[cell]) for cell in cells]
    taps, zooms = (_fill(figure, grid[row, :].subgridspec(1, 4)) for row in (4, 5))
    return Layout(figure, axes, taps, zooms)


def _side_by_side(aspect: float) -> Layout:
    tall = 11.0
    picture, close_up = max(2.2, (tall - 0.9) * aspect), 2.6
    figure = _figure(4 * picture + 2 * close_up + 0.8, tall)
    grid = figure.add_gridspec(1, 7, width_ratios=(picture, picture, 0.12, picture, picture, close_up, close_up))
    axes = [figure.add_subplot(grid[0, column]) for column in range(5)]
    taps, zooms = (_fill(figure, grid[0, column].subgridspec(4, 1)) for column in (5, 6))
    return Layout(figure, axes, taps, zooms, title_width=int(10 * picture))


def _image(axes: Any, image: Tensor, **options: Any) -> Any:
    pixels = image.movedim(0, -1) if image.dim() == 3 else image
    axes.imshow(pixels.numpy(), interpolation="nearest", **options)
    axes.set_axis_off()
    return axes


def tap_positions(rates: Tensor) -> list[tuple[int, int]]:
    """Four positions, well inside and as far apart as there is room, from the smallest rate to the largest."""
    height, width = rates.shape
    margin = round(CLOSE_UP) + 2
    inner = rates[margin : height - margin, margin : width - margin]
    rows, columns = torch.meshgrid(torch.arange(inner.shape[0]), torch.arange(inner.shape[1]), indexing="ij")
    apart = math.sqrt(height * width) / 5
    chosen: list[tuple[int, int]] = []
    while len(chosen) < 4:
        distance = (rates - inner.quantile((0.01, 0.35, 0.65, 0.99)[len(chosen)])).abs()
        distance = distance[margin : height - margin, margin : width - margin]
        for row, column in chosen:
            near = (rows - row).square() + (columns - column).square() < apart**2
            distance = torch.where(near, torch.inf, distance)
        if distance.isinf().all():
            apart /= 2
            continue
        best = int(distance.argmin())
        chosen.append((best // inner.shape[1], best % inner.shape[1]))
    return [(row + margin, column + margin) for row, column in chosen]


def _draw_taps(axes: Any, result: Result, row: int, column: int, letter: str) -> None:
    _image(axes, result.noisy)
    rate = float(result.rates[row, column])
    offsets = [(tap - (KERNEL - 1) / 2) * rate for tap in range(KERNEL)]
    for dy in offsets:
        axes.plot(
            [column + dx for dx in offsets],
            [row + dy] * KERNEL,
            "o",
            color=ACCENT,
            markersize=4.5,
            mec="black",
            mew=0.6,
        )
    axes.set_xlim(column - CLOSE_UP, column + CLOSE_UP)
    axes.set_ylim(row + CLOSE_UP, row - CLOSE_UP)
    axes.set_title(f"taps at {letter}: dilation {rate:.2f}", fontsize=10)


def _zoom(result: Result) -> tuple[int, int, int, int]:
    """Top, left, height and width of a sixteenth of the picture: where the two results differ most."""
    height, width = result.rates.shape
    aspect = min(2.0, max(0.5, width / height))
    size = math.sqrt(height * width) / 4
    high = min(height, round(size / math.sqrt(aspect)))
    wide = min(width, round(size * math.sqrt(aspect)))
    gain = (result.fixed - result.clean).square().sum(0) - (result.adaptive - result.clean).square().sum(0)
    sums = F.avg_pool2d(gain[None, None], (high, wide), stride=1)[0, 0]
    best = int(sums.argmax())
    return best // sums.shape[1], best % sums.shape[1], high, wide
