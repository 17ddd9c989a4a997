"""Smooth a photograph with a dilation map made from its own edges, and draw the result.

Noise is added to the photograph. Averaging the taps of a window removes noise and blurs edges; a map that is small
at edges and large in flat areas removes it where there is nothing to blur.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from ..functional import dynamic_dilation_unfold
from .arguments import claim, resolve_device, seed
from .grid_sample import grid_sample_unfold
from .smoothing import KERNEL, NOISE, Result, check, load, map_from_content, pool, psnr
from .tables import aligned
from .terminal import Bar, write
from .timing import Times, busy, measure, seconds

PICTURE = "dynamic_dilation_unfold_demo.png"
PICTURE_FORMATS = {".bmp", ".gif", ".jpeg", ".jpg", ".pdf", ".png", ".svg", ".tif", ".tiff", ".webp"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--image", type=Path, metavar="FILE", help="photograph to use instead of the one supplied")
    parser.add_argument(
        "--output", type=folder, default=Path(), metavar="DIR", help="folder for the picture (default: .)"
    )
    parser.add_argument("--device", default="cpu", help="torch device (default: %(default)s)")
    parser.add_argument("--seed", type=seed, default=0, metavar="N", help="seed of the noise (default: %(default)s)")
    parser.add_argument("--language", choices=("en", "zh"), default="en", help="of the picture (default: %(default)s)")


def folder(text: str) -> Path:
    path = Path(text)
    if path.exists() and not path.is_dir():
        raise argparse.ArgumentTypeError(f"{text} is a file; give the folder for {PICTURE}")
    if not path.exists() and path.suffix.lower() in PICTURE_FORMATS:
        raise argparse.ArgumentTypeError(f"{text} names a file; give the folder for {PICTURE}")
    return path


def require_extra() -> None:
    try:
        import matplotlib  # noqa: F401
        import skimage  # noqa: F401
    except ImportError as error:
        raise SystemExit(
            f"The demo draws with matplotlib and reads its photograph from scikit-image, but {error.name} is missing.\n"
            'Install them with:  pip install "dynamic-dilation-unfold[demo]"  (in a checkout:  pip install ".[demo]")'
        ) from None


def run(args: argparse.Namespace) -> int:
    require_extra()
    device = resolve_device(args.device)
    clean = load(args.image)
    path = args.output / PICTURE
    claim(path)
    from .figure import draw

    with Bar(4) as bar:
        with bar.step("smoothing"):
            noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(args.seed))
            noisy = (clean + NOISE * noise).clamp(0, 1)
            rates = map_from_content(noisy)
            image, on_device = noisy.to(device), rates.to(device)
            fixed_rate = float(rates.mean())
            adaptive = pool(image, on_device).cpu()
            fixed = pool(image, torch.full_like(on_device, fixed_rate)).cpu()
        result = Result(clean[0], noisy[0], rates[0, 0], fixed[0], adaptive[0], fixed_rate)
        height, width = rates.shape[2:]
        write(
            f"photograph {width} x {height}, noise {NOISE}, rates {rates.min():.2f} to {rates.max():.2f}, on {device}"
        )
        write(
            f"PSNR against the photograph without noise: noisy {psnr(noisy, clean):.2f} dB, fixed dilation "
            f"{psnr(fixed, clean):.2f} dB, dilation map {psnr(adaptive, clean):.2f} dB"
        )

        with bar.step("checking against the reference"):
            error = check(image, on_device)
        write(f"largest difference from the reference: {error:.1e}")
        if not error < 1e-5:
            write("That is more than rounding explains: this build computes wrong values.")
            return 1

        with bar.step("timing"):
            features = torch.randn(1, 64, 128, 128, generator=torch.Generator().manual_seed(0)).to(device)
            times = {
                f"this photograph, {image.shape[1]} channels": time_calls(image, on_device),
                "a feature map of 128 x 128, 64 channels": time_calls(features, F.interpolate(on_device, (128, 128))),
            }
        write("\n".join(speed(times)))

        with bar.step("drawing"):
            draw(result, path, args.language)
    print(f"picture: {path}")
    return 0


def time_calls(image: Tensor, rates: Tensor) -> dict[str, Times]:
    padding = KERNEL // 2
    jobs = {
        "dynamic_dilation_unfold": lambda: dynamic_dilation_unfold(image, KERNEL, rates, padding=padding),
        "F.grid_sample": lambda: grid_sample_unfold(image, KERNEL, rates, padding=padding),
        "F.unfold*": lambda: F.unfold(image, KERNEL, padding=padding),
    }
    return measure(jobs, image.device, budget=0.5, at_least=5)


def speed(times: dict[str, dict[str, Times]]) -> list[str]:
    """A line for each image, the least of several runs; and a warning where they differ much."""
    rows = [[f"time of a call, {KERNEL}x{KERNEL} taps", *next(iter(times.values()))]]
    rows += [[name, *(seconds(value.least) for value in values.values())] for name, values in times.items()]
    warnings = [text for values in times.values() if (text := busy(values))]
    return [*aligned(rows, left=1), "* one whole dilation for all positions: another job, for scale", *warnings[:1]]
