"""Pictures of taps and maps, by matplotlib, which is imported when something is drawn."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor

from .labels import Language, checked, font_families, label
from .taps import Ints, tap_positions

if TYPE_CHECKING:
    from matplotlib.axes import Axes

ACCENT = "#00e5ff"
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


def draw_map(
    dilation_map: Tensor,
    group: int = 0,
    axes: Axes | None = None,
    colorbar_axes: Axes | None = None,
    label: str | None = None,
    language: Language = "en",
    **options: Any,
) -> Axes:
    """A group's map as a picture, with the scale of its colours.

    Args:
        dilation_map: Rates ``[B, G, Ho, Wo]``, of which the first batch element is drawn, ``[G, Ho, Wo]`` or
            ``[Ho, Wo]``. Anything else with a number for each position may be drawn as well, with its own label.
        group: Which plane.
        axes: Where to draw; those of a new pyplot figure if None.
        colorbar_axes: Where to put the scale; beside the map if None.
        label: Of the scale; "dilation" if None.
        language: Of that label, "en" or "zh".
        **options: Of ``Axes.imshow``, such as ``cmap``, ``vmin`` and ``vmax``.

    Returns:
        The axes. Their only image is the map, and its ``colorbar`` the scale.
    """
    language = checked(language)
    axes = _axes(axes)
    shown = show(axes, _plane(dilation_map, group), **{"cmap": "viridis", **options})
    figure = shown.figure
    scale = figure.colorbar(shown, cax=colorbar_axes, ax=None if colorbar_axes is not None else axes)
    scale.set_label(_label("dilation", language) if label is None else label, fontfamily=font_families(language))
    return axes


def draw_taps(
    image: Tensor,
    dilation_map: Tensor,
    positions: Sequence[tuple[int, int]],
    kernel_size: Ints = 3,
    stride: Ints = 1,
    padding: Ints = 0,
    dilation: Ints = 1,
    *,
    group: int = 0,
    names: Sequence[str] | None = None,
    close_up: float | None = None,
    axes: Axes | None = None,
    language: Language = "en",
) -> Axes:
    """An image, and on it the taps of some positions.

    Args:
        image: ``[C, H, W]`` or ``[B, C, H, W]``, of which the first batch element is drawn, with 1 or 3 channels of
            values in [0, 1], or ``[H, W]`` of any values.
        dilation_map: As for :func:`tap_positions`, of this image; of a batch the first element is drawn.
        positions: ``(row, column)`` of the map.
        kernel_size, stride, padding, dilation: As of the call that the map is for.
        group: Which plane of the map.
        names: Of the positions; A, B, C ... if None. Of a single position the name stands in the title alone, and not
            at all if None.
        close_up: Show this many pixels to each side of the only position; the whole image if None.
        axes: Where to draw; those of a new pyplot figure if None.
        language: Of the title, "en" or "zh".

    Returns:
        The axes. Each position has a line without a stroke, whose markers are its taps.

    Raises:
        ValueError: The map is not of this image, a position is not in the map, or a close-up is to have several.
    """
    language = checked(language)
    several = len(positions) != 1
    if close_up is not None and several:
        raise ValueError(f"close_up shows the surroundings of one position, got {len(positions)}")
    if names is not None and len(names) != len(positions):
        raise ValueError(f"names must have one for each of {len(positions)} positions, got {len(names)}")
    found = tap_positions(dilation_map, kernel_size, stride, padding, dilation, input_size=tuple(image.shape[-2:]))
    found = found.detach().cpu()
    taps = found[0, group] if found.dim() == 6 else found[group]  # [taps, Ho, Wo, 2]
    height, width = taps.shape[1:3]
    for row, column in positions:
        if not (0 <= row < height and 0 <= column < width):
            raise ValueError(f"position {(row, column)} is not in a map of {height} x {width}")
    rates = _plane(dilation_map, group).expand(height, width)
    axes = _axes(axes)
    show(axes, _plane(image, None))
    for number, (row, column) in enumerate(positions):
        y, x = taps[:, row, column].unbind(-1)
        axes.plot(x.numpy(), y.numpy(), "o", color=ACCENT, markersize=4.5, mec="black", mew=0.6)
        if several:
            mark(axes, float(x.mean()), float(y.mean()), (names or LETTERS)[number % len(names or LETTERS)])
        else:
            title = _label("taps" if names else "taps of one", language)
            text = title.format(name=names[0] if names else "", rate=float(rates[row, column]))
            axes.set_title(text, fontsize=10, fontfamily=font_families(language))
    if close_up is not None:
        top, left = taps[:, row, column].mean(0).tolist()
        axes.set_xlim(left - close_up, left + close_up)
        axes.set_ylim(top + close_up, top - close_up)
    return axes


def mark(axes: Axes, x: float, y: float, name: str, dot: bool = False) -> None:
    """A name beside a place of a picture, and a dot there if asked for."""
    if dot:
        axes.plot(x, y, "o", markersize=5, color=ACCENT, markeredgecolor="black")
    style = {"boxstyle": "round,pad=0.15", "facecolor": "black", "alpha": 0.65, "edgecolor": "none"}
    axes.annotate(name, (x, y), (7, 5), textcoords="offset points", color=ACCENT, fontweight="bold", bbox=style)


def show(axes: Axes, image: Tensor, **options: Any) -> Any:
    """A picture ``[C, H, W]`` or ``[H, W]`` without axes around it; the artist of matplotlib."""
    pixels = image.detach().cpu().float()
    if pixels.dim() == 3:
        pixels = pixels[0] if len(pixels) == 1 else pixels.clamp(0, 1).movedim(0, -1)
    if pixels.dim() == 2 and "cmap" not in options:
        options["cmap"] = "gray"
    shown = axes.imshow(pixels.numpy(), interpolation="nearest", **options)
    axes.set_axis_off()
    return shown


_label = label  # draw_map has an argument of that name


def _axes(axes: Axes | None) -> Axes:
    if axes is not None:
        return axes
    try:
        from matplotlib import pyplot
    except ImportError:
        raise ImportError(
            'drawing needs matplotlib, which is not installed: pip install "dynamic-dilation-unfold[viz]"'
        ) from None
    return pyplot.subplots(layout="constrained")[1]


def _plane(tensor: Tensor, group: int | None) -> Tensor:
    """Of the first batch element: the plane of a group, or all channels."""
    if tensor.dim() not in (2, 3, 4):
        raise ValueError(f"a picture is [H, W], [C, H, W] or [B, C, H, W], got shape {list(tensor.shape)}")
    planes = (tensor[0] if tensor.dim() == 4 else tensor).detach().cpu()
    if planes.dim() == 2:
        return planes
    if group is not None:
        if not 0 <= group < len(planes):
            raise ValueError(f"group must be one of the map's {len(planes)}, got {group}")
        return planes[group]
    if len(planes) not in (1, 3):
        raise ValueError(f"an image to draw has 1 or 3 channels, got shape {list(tensor.shape)}")
    return planes
