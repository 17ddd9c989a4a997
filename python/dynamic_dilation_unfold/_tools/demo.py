"""Smooth a photograph with a dilation map made from its own edges, and draw the result.

Noise is added to the photograph. Averaging the taps of a window removes noise and blurs edges; a map that is small
at edges and large in flat areas removes it where there is nothing to blur.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch.nn import functional as F

from ..functional import dynamic_dilation_unfold
from .smoothing import KERNEL, NOISE, Result, check, load, map_from_content, pool, psnr
from .timing import measure, resolve_device, seconds


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


def run(args: argparse.Namespace) -> int:
    require_extra()
    device = resolve_device(args.device)
    from .figure import draw

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
