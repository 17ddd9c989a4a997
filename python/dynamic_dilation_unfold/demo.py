"""Smooth a photograph with a dilation map made from its own edges, and draw the result.

Noise is added to the photograph. Averaging the taps of a window removes noise and blurs edges; a map that is small
at edges and large in flat areas removes it where there is nothing to blur.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ._timing import measure, resolve_device, seconds
from .functional import dynamic_dilation_unfold
from .reference import dynamic_dilation_unfold_reference

KERNEL = 5
NOISE = 0.06  # standard deviation, of a full scale of 1
RATES = (0.25, 2.0)
SHORTEST_SIDE = 32
LONGEST_SIDE = 768  # keeps the check against the reference, which needs many copies of the columns, within memory


@dataclass
class Result:
    """Images are ``[3, H, W]``, the map ``[H, W]``, all on the CPU."""

    clean: Tensor
    noisy: Tensor
    rates: Tensor
    fixed: Tensor
    adaptive: Tensor
    fixed_rate: float


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--image", type=Path, metavar="FILE", help="photograph to use instead of the one supplied")
    parser.add_argument(
        "--output", type=Path, default=Path(), metavar="DIR", help="folder for the picture (default: .)"
    )
    parser.add_argument("--device", default="cpu", help="torch device (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="seed of the noise (default: %(default)s)")


def require_extra() -> None:
    try:
        import matplotlib  # noqa: F401
        import skimage  # noqa: F401
    except ImportError as error:
        raise SystemExit(
            f"The demo draws with matplotlib and reads its photograph from scikit-image, but {error.name} is missing.\n"
            'Install them with:  pip install "dynamic-dilation-unfold[demo]"  (in a checkout:  pip install ".[demo]")'
        ) from None


@contextmanager
def step(text: str) -> Iterator[None]:
    print(f"{text} ...", end=" ", flush=True)
    start = time.perf_counter()
    yield
    print(f"{time.perf_counter() - start:.1f} s", flush=True)


def load(path: Path | None) -> Tensor:
    """``[1, 3, H, W]`` in [0, 1]."""
    import numpy as np
    from PIL import Image, ImageOps
    from skimage import data, util

    if path is None:
        pixels: Any = data.coffee()
    else:
        try:
            with Image.open(path) as image:
                photograph = ImageOps.exif_transpose(image).convert("RGB")
        except OSError as error:
            raise SystemExit(f"Cannot read {path} as an image: {error}") from None
        if min(photograph.size) < SHORTEST_SIDE:
            raise SystemExit(f"{path} is too small: {photograph.size}, and {SHORTEST_SIDE} pixels are needed")
        photograph.thumbnail((LONGEST_SIDE, LONGEST_SIDE))
        pixels = np.asarray(photograph)
    return torch.from_numpy(util.img_as_float32(pixels)).permute(2, 0, 1)[None].contiguous()


def map_from_content(image: Tensor) -> Tensor:
    """Rates ``[1, 1, H, W]``: the smallest on edges, the largest where the photograph is flat, fractional between."""
    from skimage import filters

    grey = image[0].mean(0).numpy()
    edges = torch.from_numpy(filters.sobel(filters.gaussian(grey, 2)))
    low, high = RATES
    rates = low + (high - low) * torch.exp(-edges / (1.5 * edges.median() + 1e-6))
    return rates[None, None].to(image.dtype)


def pool(image: Tensor, rates: Tensor) -> Tensor:
    """Mean of the taps of each window that lie inside the image."""
    batch, channels, height, width = image.shape
    # Taps outside read 0. A plane of ones, sampled alongside, tells how much of the window is inside.
    planes = torch.cat([image, torch.ones_like(image[:, :1])], 1)
    columns = dynamic_dilation_unfold(planes, KERNEL, rates, padding=KERNEL // 2)
    means = columns.view(batch, channels + 1, KERNEL**2, height, width).mean(2)
    return means[:, :-1] / means[:, -1:]


def psnr(image: Tensor, clean: Tensor) -> float:
    return -10 * float((image - clean).square().mean().log10())


def check(image: Tensor, rates: Tensor) -> float:
    """Largest difference from the reference."""
    arguments = (image, KERNEL, rates)
    columns = dynamic_dilation_unfold(*arguments, padding=KERNEL // 2)
    expected = dynamic_dilation_unfold_reference(*arguments, padding=KERNEL // 2)
    return float((columns - expected).abs().max())


def run(args: argparse.Namespace) -> int:
    require_extra()
    device = resolve_device(args.device)
    from ._figure import draw

    clean = load(args.image)
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(args.seed))
    noisy = (clean + NOISE * noise).clamp(0, 1)
    rates = map_from_content(noisy)
    height, width = rates.shape[2:]
    print(f"photograph {width} x {height}, noise {NOISE}, rates {rates.min():.2f} to {rates.max():.2f}, on {device}")

    image, on_device = noisy.to(device), rates.to(device)
    fixed_rate = float(rates.mean())
    adaptive = pool(image, on_device).cpu()
    fixed = pool(image, torch.full_like(on_device, fixed_rate)).cpu()
    result = Result(clean[0], noisy[0], rates[0, 0], fixed[0], adaptive[0], fixed_rate)
    print(
        f"PSNR against the photograph without noise: noisy {psnr(noisy, clean):.2f} dB, fixed dilation "
        f"{psnr(fixed, clean):.2f} dB, dilation map {psnr(adaptive, clean):.2f} dB"
    )

    with step("checking against the reference"):
        error = check(image, on_device)
    print(f"largest difference from the reference: {error:.1e}")
    if not error < 1e-5:
        print("That is more than rounding explains: this build computes wrong values.")
        return 1

    with step("timing"):
        times = measure(
            {
                "F.unfold": lambda: F.unfold(image, KERNEL, padding=KERNEL // 2),
                "dynamic_dilation_unfold": lambda: dynamic_dilation_unfold(
                    image, KERNEL, on_device, padding=KERNEL // 2
                ),
            },
            device,
            budget=0.5,
        )
    print(", ".join(f"{name} {seconds(value)}" for name, value in times.items()))

    with step("drawing"):
        path = draw(result, args.output)
    print(f"picture: {path}")
    return 0
