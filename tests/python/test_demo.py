"""``python -m dynamic_dilation_unfold demo``: what it computes, prints and draws."""

from __future__ import annotations

import importlib.util
import sys
import textwrap
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from command import exit_status, run
from dynamic_dilation_unfold._tools import cli, demo, smoothing
from dynamic_dilation_unfold._tools.timing import Times

missing = [name for name in ("matplotlib", "skimage") if importlib.util.find_spec(name) is None]
needs_demo_extra = pytest.mark.skipif(bool(missing), reason=f"not installed: {', '.join(missing)}")
PICTURE = "dynamic_dilation_unfold_demo.png"
DOCUMENTED = Path(__file__).parents[2] / "docs" / "demo.png"


def write_image(path: Path, *shape: int) -> Path:
    from PIL import Image

    pixels = torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    Image.fromarray(pixels.numpy()).save(path)
    return path


@needs_demo_extra
def test_demo(tmp_path: Path) -> None:
    result = run("demo", "--output", str(tmp_path / "new"))
    assert result.returncode == 0, result.stderr
    picture = tmp_path / "new" / PICTURE
    assert f"picture: {picture}" in result.stdout
    assert "difference from the reference" in result.stdout
    lines = result.stdout.splitlines()
    heads = next(line for line in lines if line.startswith("time of a call"))
    assert heads.split()[-3:] == ["dynamic_dilation_unfold", "F.grid_sample", "F.unfold*"]
    for image in ("this photograph, 3 channels", "a feature map of 128 x 128, 64 channels"):
        assert next(line for line in lines if line.startswith(image)).count("s  ") >= 2
    assert_like_the_documented(picture)


def assert_like_the_documented(picture: Path) -> None:
    """README's picture is the demo's: layout and colours, as far as versions of matplotlib agree on them."""
    import numpy as np
    from dynamic_dilation_unfold._tools.figure import ACCENT
    from matplotlib.colors import to_rgb
    from PIL import Image

    drawn, documented = (Image.open(path).convert("RGB") for path in (picture, DOCUMENTED))
    for one, other in zip(drawn.size, documented.size, strict=True):
        assert abs(one - other) <= 0.01 * one
    small = [np.asarray(image.resize((155, 74)), float) for image in (drawn, documented)]
    assert abs(small[0] - small[1]).mean() < 4
    accent = np.round(255 * np.array(to_rgb(ACCENT)))
    counts = [(abs(np.asarray(image) - accent) < 16).all(-1).sum() for image in (drawn, documented)]
    assert min(counts) > 0.6 * max(counts)


@needs_demo_extra
@pytest.mark.parametrize(
    "shape", [(80, 120), (80, 120, 3), (80, 120, 4), (900, 100, 3), (40, 900, 3), (900, 40, 3), (32, 32, 3)]
)
def test_demo_with_an_image(shape: tuple[int, ...], tmp_path: Path) -> None:
    image = smoothing.load(write_image(tmp_path / "image.png", *shape))
    assert image.shape[:2] == (1, 3)
    assert max(image.shape) <= smoothing.LONGEST_SIDE
    assert min(image.shape[2:]) >= smoothing.SHORTEST_SIDE
    assert 0 <= image.min() < image.max() <= 1


@needs_demo_extra
def test_demo_with_an_image_that_it_scales(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image = write_image(tmp_path / "image.png", 40, 900, 3)
    assert cli.main(["demo", "--image", str(image), "--output", str(tmp_path), "--seed", str(2**64 - 1)]) == 0
    assert "photograph 768 x 34" in capsys.readouterr().out
    assert (tmp_path / PICTURE).read_bytes().startswith(b"\x89PNG")


@needs_demo_extra
@pytest.mark.parametrize("size", [(400, 600), (34, 768), (768, 34), (32, 32), (200, 100), (100, 200), (100, 160)])
def test_the_picture_is_full(size: tuple[int, int]) -> None:
    """No picture of any shape is a strip, and none lies on another."""
    from dynamic_dilation_unfold._tools import figure

    layout = figure.make_layout(*size)
    longest_title = "Mean of taps, dilation 1.07 everywhere, PSNR 33.0 dB"
    photograph, dilation_map, _, fixed, adaptive = layout.pictures
    pictures = [photograph, dilation_map, fixed, adaptive]
    for axes in pictures:
        axes.imshow(torch.zeros(size).numpy())
        axes.set_title("\n".join(textwrap.wrap(longest_title, layout.title_width)))
    for axes in (*layout.taps, *layout.zooms):
        axes.imshow(torch.zeros(20, 20).numpy())
        axes.set_title("title")
    layout.figure.draw_without_rendering()
    boxes = [axes.get_tightbbox() for axes in (*pictures, *layout.taps, *layout.zooms)]
    for index, one in enumerate(boxes):
        assert not any(one.x0 < b.x1 and b.x0 < one.x1 and one.y0 < b.y1 and b.y0 < one.y1 for b in boxes[:index])
    for axes in pictures:  # about a pixel of the screen for each of its own
        box = axes.get_window_extent()
        assert box.width * box.height > 0.6 * size[0] * size[1]
    covered = sum(box.width * box.height for box in boxes)
    assert covered > 0.45 * layout.figure.bbox.width * layout.figure.bbox.height


@needs_demo_extra
@pytest.mark.parametrize("size", [(32, 32), (34, 768), (768, 34), (100, 150)])
def test_taps_are_drawn_at_four_positions_well_inside(size: tuple[int, int]) -> None:
    from dynamic_dilation_unfold._tools import figure

    for rates in (torch.rand(size, generator=torch.Generator().manual_seed(0)), torch.ones(size)):
        positions = figure.telling_positions(rates)
        assert len(set(positions)) == 4
        for row, column in positions:
            assert figure.CLOSE_UP < row < size[0] - figure.CLOSE_UP - 1
            assert figure.CLOSE_UP < column < size[1] - figure.CLOSE_UP - 1
    rates = torch.linspace(0.25, 2, size[0] * size[1]).view(size)
    found = [float(rates[position]) for position in figure.telling_positions(rates)]
    assert found == sorted(found)


@needs_demo_extra
def test_demo_smooths_flat_areas_and_keeps_edges() -> None:
    clean = smoothing.load(None)
    noisy = clean + smoothing.NOISE * torch.randn(clean.shape, generator=torch.Generator().manual_seed(0))
    rates = smoothing.map_from_content(noisy)
    assert smoothing.RATES[0] <= rates.min() < 0.5
    assert 1.5 < rates.max() <= smoothing.RATES[1]
    fixed = smoothing.pool(noisy, torch.full_like(rates, rates.mean().item()))
    adaptive = smoothing.pool(noisy, rates)
    assert smoothing.psnr(adaptive, clean) > smoothing.psnr(fixed, clean) + 1
    assert smoothing.psnr(adaptive, clean) > smoothing.psnr(noisy, clean) + 1


@needs_demo_extra
@pytest.mark.filterwarnings("ignore:no font with Chinese characters:UserWarning")  # depends on the machine
@pytest.mark.parametrize("language", ["en", "zh"])
def test_what_the_picture_says(language: Any, tmp_path: Path) -> None:
    from dynamic_dilation_unfold._tools import figure
    from dynamic_dilation_unfold.viz.labels import chinese_font

    generator = torch.Generator().manual_seed(0)
    clean, noisy, fixed, adaptive = torch.rand(4, 3, 60, 90, generator=generator)
    rates = 0.5 + torch.rand(60, 90, generator=generator)
    layout = figure.draw(smoothing.Result(clean, noisy, rates, fixed, adaptive, 1.0), tmp_path / "a.png", language)
    texts = figure.TEXTS[language if chinese_font() else "en"]
    titles = [axes.get_title() for axes in (*layout.pictures, *layout.zooms)]
    assert titles[1] == texts["map"]
    assert "PSNR" in titles[0]
    assert texts["before"] in titles
    assert len(layout.pictures[0].texts) == 4
    assert [len(axes.lines[0].get_xdata()) for axes in layout.taps] == [smoothing.KERNEL**2] * 4
    assert all(letter in axes.get_title() for letter, axes in zip("ABCD", layout.taps, strict=True))


def test_pool_averages_what_is_inside() -> None:
    rates = torch.full((1, 1, 9, 9), 1.5)
    torch.testing.assert_close(smoothing.pool(torch.full((1, 2, 9, 9), 0.3), rates), torch.full((1, 2, 9, 9), 0.3))


def test_the_speed_lines_warn_of_a_busy_machine() -> None:
    quiet, noisy = Times.of([1e-3, 1.1e-3, 1.2e-3]), Times.of([10.9e-6, 6.3e-3, 7e-3])
    lines = demo.speed({"small": {"a": quiet, "b": quiet}, "large": {"a": noisy, "b": quiet}})
    assert lines[1].split() == ["small", "1.00", "ms", "1.00", "ms"]
    assert lines[2].split() == ["large", "10.9", "us", "1.00", "ms"]  # the least, which is the machine's own
    assert lines[-1].startswith("warning: this machine is busy: a took 10.9 us at best and 6.30 ms usually")
    assert not any("warning" in line for line in demo.speed({"small": {"a": quiet}}))


# --- What cannot be is refused at once, in a sentence -----------------------------------------------------------------


def refusal(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    message = str(exit_status("demo", *arguments))
    assert "\n" not in message
    assert capsys.readouterr().out == ""  # before the work
    return message


@needs_demo_extra
@pytest.mark.parametrize(
    ("shape", "problem"),
    [
        ((60, 9), "too small: 9 x 60, and each side needs 32 pixels"),
        ((31, 100), "too small: 100 x 31, and each side needs 32 pixels"),
        ((50, 4000), "too narrow: 4000 x 50, scaled to 768 x 10, and each side needs 32 pixels"),
    ],
)
def test_an_image_too_small(
    shape: tuple[int, int], problem: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_image(tmp_path / "image.png", *shape)
    assert refusal(capsys, "--image", str(path)) == f"{path} is {problem}"


@needs_demo_extra
@pytest.mark.parametrize("side", [10_000, 14_000])  # PIL warns of the one and refuses the other
def test_an_image_too_large(side: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from PIL import Image

    path = tmp_path / "large.png"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        Image.new("1", (side, side)).save(path)
    message = refusal(capsys, "--image", str(path), "--output", str(tmp_path / "new"))
    assert message == f"{path} is too large: at most 89 megapixels are read; scale it down first"
    assert not (tmp_path / "new").exists()


def cut(whole: bytes) -> bytes:
    return whole[: len(whole) // 2]


def damaged(whole: bytes) -> bytes:
    return whole[:40] + b"\0" * 20 + whole[60:]


@needs_demo_extra
@pytest.mark.parametrize("spoil", [None, lambda whole: b"no image", lambda whole: b"", cut, damaged])
def test_an_image_that_is_none(spoil: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "image.png"
    if spoil:
        path.write_bytes(spoil(write_image(path, 80, 120, 3).read_bytes()))
    message = refusal(capsys, "--image", str(path), "--output", str(tmp_path))
    assert message.startswith(f"Cannot read {path} as an image: ")
    assert refusal(capsys, "--image", str(tmp_path)).startswith(f"Cannot read {tmp_path} as an image: ")


@needs_demo_extra
def test_a_picture_that_cannot_be_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    inside = tmp_path / "file" / "folder"
    assert refusal(capsys, "--output", str(inside)) == f"Cannot write {inside / PICTURE}: Not a directory"
    (tmp_path / PICTURE).mkdir()
    assert refusal(capsys, "--output", str(tmp_path)) == f"Cannot write {tmp_path / PICTURE}: Is a directory"


@pytest.mark.parametrize(
    ("option", "value", "problem"),
    [
        ("--output", "file", f"file is a file; give the folder for {PICTURE}"),
        ("--output", "new.png", f"new.png names a file; give the folder for {PICTURE}"),
        ("--seed", str(10**25), f"'{10**25}' is no whole number from -2^63 to 2^64 - 1"),
        ("--seed", str(-(2**63) - 1), f"'{-(2**63) - 1}' is no whole number from -2^63 to 2^64 - 1"),
        ("--seed", "1.5", "'1.5' is no whole number from -2^63 to 2^64 - 1"),
    ],
)
def test_arguments_that_cannot_be(
    option: str,
    value: str,
    problem: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    assert exit_status("demo", f"{option}={value}") == 2
    usage, _, error = capsys.readouterr().err.partition("error: ")
    assert usage.startswith("usage: python -m dynamic_dilation_unfold demo")
    assert error == f"argument {option}: {problem}\n"


def test_demo_without_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)  # makes its import fail
    assert 'pip install ".[demo]"' in str(exit_status("demo"))
