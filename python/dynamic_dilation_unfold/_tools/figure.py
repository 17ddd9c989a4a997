"""The demo's picture: how it is laid out, and what it says in either language."""

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

from ..viz.drawing import ACCENT, draw_map, draw_taps, mark, show
from ..viz.labels import Language, checked, font_families
from .smoothing import KERNEL, Result, psnr

NO_BREAK = "\u00a0"
WIDE, TALL = 2.2, 1.5  # sides' ratios from which pictures stand in a column or a row
CLOSE_UP = 7.5  # pixels on each side of a position whose taps are drawn

TEXTS: dict[Language, dict[str, str]] = {
    "en": {
        "photograph": "Photograph with noise added, {quality}",
        "map": "Dilation map made from it: small at edges",
        "fixed": "Mean of taps, dilation {rate:.2f} everywhere, {quality}",
        "adaptive": "Mean of taps, dilation map, {quality}",
        "before": "before the noise",
        "noisy": "with noise",
        "fixed, near": "fixed dilation",
        "adaptive, near": "dilation map",
    },
    "zh": {
        "photograph": "带噪声的照片，{quality}",
        "map": "由照片生成的扩张率图：边缘处小",
        "fixed": "采样点均值，扩张率处处为 {rate:.2f}，{quality}",
        "adaptive": "采样点均值，按扩张率图，{quality}",
        "before": "加噪声前",
        "noisy": "带噪声",
        "fixed, near": "固定扩张率",
        "adaptive, near": "扩张率图",
    },
}


@dataclass
class Layout:
    """A figure and its axes: four pictures, the map's scale, and two times four close-ups."""

    figure: Any
    pictures: list[Any]  # photograph, map, its scale, with the fixed dilation, with the map
    taps: list[Any]
    zooms: list[Any]
    title_width: int = 100  # letters above a picture


def draw(result: Result, path: Path, language: Language = "en") -> Layout:
    language = checked(language)
    texts, fonts = TEXTS[language], font_families(language)
    letter_width = 2 if language == "zh" else 1  # of Latin letters
    layout = make_layout(*result.rates.shape)
    photograph, dilation_map, scale, fixed, adaptive = layout.pictures
    positions = telling_positions(result.rates)

    def title(axes: Any, name: str, image: Tensor | None = None) -> None:
        quality = "" if image is None else f"PSNR {psnr(image, result.clean):.1f} dB".replace(" ", NO_BREAK)
        text = texts[name].format(quality=quality, rate=result.fixed_rate)
        lines = textwrap.wrap(text, layout.title_width // letter_width)
        axes.set_title("\n".join(lines), fontfamily=fonts)

    show(photograph, result.noisy)
    title(photograph, "photograph", result.noisy)
    for letter, (row, column) in zip("ABCD", positions, strict=True):
        mark(photograph, column, row, letter, dot=True)

    draw_map(result.rates, axes=dilation_map, colorbar_axes=scale, language=language)
    title(dilation_map, "map")

    for axes, letter, position in zip(layout.taps, "ABCD", positions, strict=True):
        draw_taps(
            result.noisy,
            result.rates[None],
            [position],
            KERNEL,
            padding=KERNEL // 2,
            names=letter,
            close_up=CLOSE_UP,
            axes=axes,
            language=language,
        )

    top, left, height, width = _zoom(result)
    for axes, name, image in ((fixed, "fixed", result.fixed), (adaptive, "adaptive", result.adaptive)):
        show(axes, image)
        title(axes, name, image)
        axes.add_patch(Rectangle((left, top), width, height, fill=False, edgecolor=ACCENT, linewidth=1.8))

    named = {
        "before": result.clean,
        "noisy": result.noisy,
        "fixed, near": result.fixed,
        "adaptive, near": result.adaptive,
    }
    for axes, (name, image) in zip(layout.zooms, named.items(), strict=True):
        show(axes, image[:, top : top + height, left : left + width])
        axes.set_title(texts[name], fontsize=10, fontfamily=fonts)

    layout.figure.savefig(path)
    return layout


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


def telling_positions(rates: Tensor) -> list[tuple[int, int]]:
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
