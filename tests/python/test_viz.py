"""``dynamic_dilation_unfold.viz``: where taps lie, and pictures by their structure."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from dynamic_dilation_unfold import dynamic_dilation_unfold, viz
from dynamic_dilation_unfold.viz import labels
from helpers import CASES, Case, random_map
from torch import Tensor

needs_matplotlib = pytest.mark.skipif(importlib.util.find_spec("matplotlib") is None, reason="matplotlib is missing")


@pytest.fixture
def axes() -> Iterator[Any]:
    from matplotlib.figure import Figure

    return Figure().subplots()


# --- Where taps lie ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES, ids=str)
def test_tap_positions_are_those_that_the_operator_samples(case: Case) -> None:
    """Of an image whose pixels are their own coordinates, as long as the tap lies inside it."""
    rates = random_map("fractional", case.map_shape).double()
    taps = viz.tap_positions(rates, *case.pairs, input_size=(case.height, case.width))
    count = case.output_shape[1] // case.channels
    assert taps.shape == (case.batch, case.groups, count, *case.out_size, 2)
    for axis, size in enumerate((case.height, case.width)):
        pixels = torch.arange(size, dtype=torch.float64).view((-1, 1) if axis == 0 else (1, -1))
        image = pixels.expand(case.batch, case.groups, case.height, case.width)
        columns = dynamic_dilation_unfold(image, dilation_map=rates, **case.options)
        sampled = columns.view(case.batch, case.groups, count, *case.out_size)
        inside = (taps[..., 0] >= 0) & (taps[..., 0] <= case.height - 1)
        inside &= (taps[..., 1] >= 0) & (taps[..., 1] <= case.width - 1)
        assert inside.any() or min(case.height, case.width) == 1
        torch.testing.assert_close(taps[..., axis][inside], sampled[inside])


def test_tap_positions_of_other_maps() -> None:
    whole = viz.tap_positions(torch.full((1, 2, 4, 5), 1.5), 3, padding=1)
    assert torch.equal(viz.tap_positions(torch.full((2, 4, 5), 1.5), 3, padding=1), whole[0])
    broadcast = torch.full((1, 2, 1, 1), 1.5, requires_grad=True)
    taps = viz.tap_positions(broadcast, 3, padding=1, input_size=(4, 5))
    assert torch.equal(taps, whole)
    (gradient,) = torch.autograd.grad(taps[..., 2, 1, 0, 0].sum(), broadcast)
    assert gradient.tolist() == [[[[-1.0]], [[-1.0]]]]  # the third tap lies one pixel above the centre
    assert viz.tap_positions(torch.ones(1, 1, 4, 5).half(), 3).dtype == torch.float32


def test_taps_of_a_rate_that_is_none_are_nan() -> None:
    rates = torch.ones(1, 1, 3, 3)
    rates[0, 0, 0, 1], rates[0, 0, 2, 2] = torch.nan, torch.inf
    lost = viz.tap_positions(rates, 3, padding=1).isnan()
    assert lost[..., 0, 1, :].all()
    assert lost[..., 2, 2, :].all()
    assert int(lost.sum()) == 2 * 9 * 2


def test_maps_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match=r"dilation_map must be \[B, groups, Ho, Wo\].*got shape \[4, 5\]"):
        viz.tap_positions(torch.ones(4, 5), 3)
    with pytest.raises(ValueError, match="this map fits padding="):  # the operator's own words, and its advice
        viz.tap_positions(torch.ones(1, 1, 4, 5), 3, input_size=(4, 5))


def test_coverage_share() -> None:
    share = viz.coverage_share(torch.ones(2, 1, 4, 5), (4, 5), 3, padding=1)
    assert share.shape == (2, 1, 4, 5)
    assert share[0, 0, 0].tolist() == pytest.approx([4 / 9, 6 / 9, 6 / 9, 6 / 9, 4 / 9])
    assert share[0, 0, 1, 1] == 1
    broadcast = viz.coverage_share(torch.tensor([0.0, 100.0]).view(2, 1, 1), (4, 5), 3, padding=1)
    assert broadcast.shape == (2, 4, 5)
    assert (broadcast[0] == 1).all()  # on the centre
    torch.testing.assert_close(broadcast[1], torch.full((4, 5), 1 / 9))  # the centre alone is inside


def test_receptive_field_of_layers() -> None:
    rates = torch.full((1, 1, 1, 1), 2.0)

    def two_layers(x: Tensor) -> Tensor:
        for _ in range(2):
            x = (
                dynamic_dilation_unfold(x, 3, rates, padding=2, dilation=1)
                .sum(1)
                .view(1, 1, *[n + 2 for n in x.shape[2:]])
            )
        return x

    image = torch.randn(1, 1, 15, 15)
    field = viz.receptive_field(two_layers, image, (9, 9))
    assert field.shape == (1, 15, 15)
    reached = field[0].nonzero()
    assert reached.amin(0).tolist() == [3, 3]  # two rates of 2 to each side of 7
    assert reached.amax(0).tolist() == [11, 11]
    assert field[0, 3::2, 3::2][:5, :5].all()
    assert not field[0, 4::2].any()
    assert not image.requires_grad


def test_receptive_field_of_other_outputs() -> None:
    image, rates = torch.randn(2, 3, 6, 7), torch.ones(2, 1, 6, 7)
    columns = viz.receptive_field(lambda x: dynamic_dilation_unfold(x, 3, rates, padding=1), image, (-1,))
    assert columns.shape == (2, 6, 7)
    assert columns[1].nonzero().amin(0).tolist() == [4, 5]
    softmax = viz.receptive_field(lambda x: x.softmax(1), image, (2, 3))  # its channels add up to 1
    assert softmax[:, 2, 3].min() > 1e-3
    assert int((softmax > 0).sum()) == 2
    assert viz.receptive_field(lambda x: x.tanh(), image[0], (2, 3)).shape == (6, 7)
    assert not viz.receptive_field(lambda x: torch.zeros(2, 4, 6, 7), image, (0, 0)).any()
    with pytest.raises(ValueError, match=r"position \(6, 0\) is not in an output of shape \[2, 3, 6, 7\]"):
        viz.receptive_field(lambda x: x, image, (6, 0))


# --- Pictures ---------------------------------------------------------------------------------------------------------


@needs_matplotlib
def test_draw_map(axes: Any) -> None:
    rates = torch.rand(2, 2, 5, 6)
    assert viz.draw_map(rates, group=1, axes=axes, vmin=0.0, vmax=4.0) is axes
    (image,) = axes.images
    assert torch.equal(torch.as_tensor(image.get_array()), rates[0, 1])
    assert image.get_clim() == (0, 4)
    assert len(axes.figure.axes) == 2
    assert image.colorbar.ax.get_ylabel() == "dilation (1 = neighbouring pixels)"


@needs_matplotlib
def test_draw_map_beside_a_scale_of_ones_own() -> None:
    from matplotlib.figure import Figure

    picture, scale = Figure().subplots(1, 2)
    viz.draw_map(torch.rand(5, 6), axes=picture, colorbar_axes=scale, label="influence")
    assert len(picture.figure.axes) == 2
    assert picture.images[0].colorbar.ax is scale
    assert scale.get_ylabel() == "influence"


@needs_matplotlib
def test_draw_taps(axes: Any) -> None:
    rates = torch.full((1, 2, 8, 9), 1.5)
    viz.draw_taps(torch.rand(1, 3, 8, 9), rates, [(2, 3), (5, 5)], padding=1, group=1, axes=axes)
    assert axes.images[0].get_array().shape == (8, 9, 3)
    first, second = axes.lines
    assert first.get_xydata().tolist() == [[x, y] for y in (0.5, 2, 3.5) for x in (1.5, 3, 4.5)]
    assert second.get_linestyle() == "None"
    assert [(text.get_text(), text.xy) for text in axes.texts] == [("A", (3, 2)), ("B", (5, 5))]
    assert not axes.get_title()


@needs_matplotlib
def test_draw_taps_close_up(axes: Any) -> None:
    rates = torch.full((1, 4, 4), 0.5)  # stride 2: position (1, 2) has its centre at row 2, column 4
    viz.draw_taps(torch.rand(8, 8), rates, [(1, 2)], stride=2, padding=1, names="Q", close_up=3, axes=axes)
    assert axes.get_title() == "taps at Q: dilation 0.50"
    assert axes.get_xlim() == (1, 7)
    assert axes.get_ylim() == (5, -1)
    (taps,) = axes.lines
    assert len(taps.get_xdata()) == 9


@needs_matplotlib
def test_drawing_into_a_new_figure(monkeypatch: pytest.MonkeyPatch) -> None:
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    for axes in (viz.draw_map(torch.rand(1, 4, 5)), viz.draw_taps(torch.rand(1, 4, 5), torch.ones(1, 2, 3), [(0, 0)])):
        assert axes.images
        assert axes.figure.number in pyplot.get_fignums()
        pyplot.close(axes.figure)


@needs_matplotlib
def test_labels_in_chinese(axes: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(labels, "chinese_font", lambda: "A Chinese Font")
    viz.draw_map(torch.ones(1, 4, 5), axes=axes, language="zh")
    label = axes.images[0].colorbar.ax.yaxis.label
    assert "扩张率" in label.get_text()
    assert label.get_fontfamily()[0] == "A Chinese Font"
    viz.draw_taps(torch.rand(4, 5), torch.ones(1, 2, 3), [(0, 0)], axes=axes, language="zh")
    assert "采样点" in axes.get_title()
    monkeypatch.setattr(labels, "chinese_font", lambda: None)
    with pytest.warns(UserWarning, match="no font with Chinese characters was found, so the labels are in English"):
        viz.draw_taps(torch.rand(4, 5), torch.ones(1, 2, 3), [(0, 0)], axes=axes, language="zh")
    assert axes.get_title().startswith("taps")
    with pytest.raises(ValueError, match="language must be one of 'en', 'zh', got 'de'"):
        viz.draw_map(torch.ones(1, 4, 5), axes=axes, language="de")  # type: ignore[arg-type]


def test_both_languages_say_the_same() -> None:
    from string import Formatter

    def fields(texts: dict[str, str]) -> dict[str, set[str | None]]:
        return {name: {field for _, field, _, _ in Formatter().parse(text)} - {None} for name, text in texts.items()}

    english, chinese = labels._LABELS.values()
    assert fields(english) == fields(chinese)


@needs_matplotlib
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"positions": [(9, 0)]}, r"position \(9, 0\) is not in a map of 8 x 9"),
        ({"positions": [(0, 0), (1, 1)], "close_up": 3}, "close_up shows the surroundings of one position, got 2"),
        ({"names": "AB"}, "names must have one for each of 1 positions, got 2"),
        ({"image": torch.rand(2, 8, 9)}, r"an image to draw has 1 or 3 channels, got shape \[2, 8, 9\]"),
        ({"image": torch.rand(3, 7, 9)}, "dilation_map"),
    ],
)
def test_pictures_that_cannot_be(options: dict[str, Any], message: str, axes: Any) -> None:
    given = {"image": torch.rand(3, 8, 9), "positions": [(0, 0)], "padding": 1, "axes": axes} | options
    with pytest.raises(ValueError, match=message):
        viz.draw_taps(dilation_map=torch.ones(1, 8, 9), **given)


def test_drawing_without_matplotlib(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)  # makes its import fail
    with pytest.raises(ImportError, match=r'pip install "dynamic-dilation-unfold\[viz\]"'):
        viz.draw_map(torch.ones(1, 4, 5))


def test_importing_viz_imports_no_matplotlib() -> None:
    code = "import sys, dynamic_dilation_unfold.viz; sys.exit('matplotlib' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
