"""``python -m dynamic_dilation_unfold demo``: what it computes, prints and draws."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest
import torch
from command import exit_status, run
from dynamic_dilation_unfold._tools import cli, smoothing

missing = [name for name in ("matplotlib", "skimage") if importlib.util.find_spec(name) is None]
needs_demo_extra = pytest.mark.skipif(bool(missing), reason=f"not installed: {', '.join(missing)}")


@needs_demo_extra
def test_demo(tmp_path: Path) -> None:
    result = run("demo", "--output", str(tmp_path / "new"))
    assert result.returncode == 0, result.stderr
    picture = tmp_path / "new" / "dynamic_dilation_unfold_demo.png"
    assert f"picture: {picture}" in result.stdout
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert "difference from the reference" in result.stdout


@needs_demo_extra
@pytest.mark.parametrize("shape", [(80, 120), (80, 120, 3), (80, 120, 4), (900, 100, 3)])
def test_demo_with_an_image(shape: tuple[int, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from PIL import Image

    path = tmp_path / "image.png"
    pixels = torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    Image.fromarray(pixels.numpy()).save(path)
    image = smoothing.load(path)
    assert image.shape[:2] == (1, 3)
    assert max(image.shape) <= smoothing.LONGEST_SIDE
    assert 0 <= image.min() < image.max() <= 1
    if len(shape) == 2:
        assert cli.main(["demo", "--image", str(path), "--output", str(tmp_path)]) == 0
        assert "photograph 120 x 80" in capsys.readouterr().out


@needs_demo_extra
def test_demo_with_a_tiny_image(tmp_path: Path) -> None:
    from PIL import Image

    path = tmp_path / "tiny.png"
    Image.new("RGB", (9, 60)).save(path)
    assert "too small: 9 x 60, and each side needs 32 pixels" in str(exit_status("demo", "--image", str(path)))


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


def test_pool_averages_what_is_inside() -> None:
    rates = torch.full((1, 1, 9, 9), 1.5)
    torch.testing.assert_close(smoothing.pool(torch.full((1, 2, 9, 9), 0.3), rates), torch.full((1, 2, 9, 9), 0.3))


@needs_demo_extra
@pytest.mark.parametrize(("name", "content"), [("missing.png", None), ("text.png", b"no image")])
def test_demo_without_an_image(name: str, content: bytes | None, tmp_path: Path) -> None:
    if content:
        (tmp_path / name).write_bytes(content)
    message = str(exit_status("demo", "--image", str(tmp_path / name), "--output", str(tmp_path)))
    assert message.startswith(f"Cannot read {tmp_path / name} as an image: ")


def test_demo_without_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)  # makes its import fail
    assert 'pip install ".[demo]"' in str(exit_status("demo"))
