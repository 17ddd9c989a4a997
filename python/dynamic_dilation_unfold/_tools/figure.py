"""The demo's picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor
from torch.nn import functional as F

from .smoothing import KERNEL, Result, psnr

ACCENT = "#00e5ff"
CLOSE_UP = 7.5  # pixels on each side of a position whose taps are drawn


def draw(result: Result, path: Path) -> None:
    shape = result.rates.shape
    row_height = 4.9 * min(1.4, max(0.6, shape[0] / shape[1])) + 0.45
    figure = Figure(figsize=(15.5, 2 * row_height), dpi=100, layout="constrained", facecolor="white")
    figure.get_layout_engine().set(w_pad=0.06, h_pad=0.06, wspace=0.02, hspace=0.02)
    grid = figure.add_gridspec(2, 4, width_ratios=(1, 1, 0.025, 0.95))
    positions = _tap_positions(result.rates)
    zoom = _zoom_corner(result)

    noisy = _image(figure.add_subplot(grid[0, 0]), result.noisy)
    noisy.set_title(f"Photograph with noise added, PSNR {psnr(result.noisy, result.clean):.1f} dB")
    for letter, (row, column) in zip("ABCD", positions, strict=False):
        noisy.plot(column, row, "o", markersize=5, color=ACCENT, markeredgecolor="black")
        style = {"boxstyle": "round,pad=0.15", "facecolor": "black", "alpha": 0.65, "edgecolor": "none"}
        noisy.annotate(
            letter, (column, row), (7, 5), textcoords="offset points", color=ACCENT, fontweight="bold", bbox=style
        )

    rates = figure.add_subplot(grid[0, 1])
    shown = _image(rates, result.rates, cmap="viridis").images[0]
    rates.set_title("Dilation map made from it: small at edges")
    figure.colorbar(shown, cax=figure.add_subplot(grid[0, 2]), label="dilation (1 = neighbouring pixels)")

    taps = grid[0, 3].subgridspec(2, 2)
    for index, (row, column) in enumerate(positions):
        _draw_taps(figure.add_subplot(taps[index // 2, index % 2]), result, row, column, "ABCD"[index])

    for place, image, title in (
        (grid[1, 0], result.fixed, f"Mean of taps, dilation {result.fixed_rate:.2f} everywhere"),
        (grid[1, 1], result.adaptive, "Mean of taps, dilation map"),
    ):
        axes = _image(figure.add_subplot(place), image)
        axes.set_title(f"{title}, PSNR {psnr(image, result.clean):.1f} dB")
        height, width = _zoom_size(result)
        axes.add_patch(Rectangle((zoom[1], zoom[0]), width, height, fill=False, edgecolor=ACCENT, linewidth=1.8))

    zooms = grid[1, 3].subgridspec(2, 2)
    named = (
        ("before the noise", result.clean),
        ("with noise", result.noisy),
        ("fixed dilation", result.fixed),
        ("dilation map", result.adaptive),
    )
    for index, (name, image) in enumerate(named):
        height, width = _zoom_size(result)
        crop = image[:, zoom[0] : zoom[0] + height, zoom[1] : zoom[1] + width]
        _image(figure.add_subplot(zooms[index // 2, index % 2]), crop).set_title(name, fontsize=10)

    figure.savefig(path)


def _image(axes: Any, image: Tensor, **options: Any) -> Any:
    pixels = image.movedim(0, -1) if image.dim() == 3 else image
    axes.imshow(pixels.numpy(), interpolation="nearest", **options)
    axes.set_axis_off()
    return axes


def _tap_positions(rates: Tensor) -> list[tuple[int, int]]:
    """Four positions, well inside and apart, from the smallest rate to the largest."""
    height, width = rates.shape
    margin = round(CLOSE_UP) + 2
    inner = rates[margin : height - margin, margin : width - margin]
    chosen: list[tuple[int, int]] = []
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    for share in (0.01, 0.35, 0.65, 0.99):
        distance = (rates - inner.quantile(share)).abs()
        distance[:margin], distance[height - margin :] = torch.inf, torch.inf
        distance[:, :margin], distance[:, width - margin :] = torch.inf, torch.inf
        for row, column in chosen:
            near = (rows - row).square() + (columns - column).square() < (min(height, width) // 4) ** 2
            distance[near] = torch.inf
        best = int(distance.argmin())
        chosen.append((best // width, best % width))
    return chosen


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


def _zoom_size(result: Result) -> tuple[int, int]:
    height, width = result.rates.shape
    return height // 4, width // 4


def _zoom_corner(result: Result) -> tuple[int, int]:
    """Where the two results differ most."""
    gain = (result.fixed - result.clean).square().sum(0) - (result.adaptive - result.clean).square().sum(0)
    height, width = _zoom_size(result)
    sums = F.avg_pool2d(gain[None, None], (height, width), stride=1)[0, 0]
    best = int(sums.argmax())
    return best // sums.shape[1], best % sums.shape[1]
