"""What the demo computes: a photograph, a dilation map made from its edges, and the mean of the taps."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..functional import dynamic_dilation_unfold
from ..reference import dynamic_dilation_unfold_reference

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


def load(path: Path | None) -> Tensor:
    """``[1, 3, H, W]`` in [0, 1]; exits with the reason where that cannot be."""
    import numpy as np
    from skimage import data, util

    pixels: Any = data.coffee() if path is None else np.asarray(_photograph(path))
    return torch.from_numpy(util.img_as_float32(pixels)).permute(2, 0, 1)[None].contiguous()


def _photograph(path: Path) -> Any:
    from PIL import Image, ImageOps

    most = Image.MAX_IMAGE_PIXELS or 2**26
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path) as image:
                photograph = ImageOps.exif_transpose(image).convert("RGB")
    except (Image.DecompressionBombWarning, Image.DecompressionBombError):
        raise SystemExit(
            f"{path} is too large: at most {most // 10**6} megapixels are read; scale it down first"
        ) from None
    except Exception as error:  # decoders of broken files raise what they will
        raise SystemExit(f"Cannot read {path} as an image: {error}") from None
    size = photograph.size
    photograph.thumbnail((LONGEST_SIDE, LONGEST_SIDE))
    if min(photograph.size) < SHORTEST_SIDE:
        small, narrow = f"{size[0]} x {size[1]}", f"{photograph.size[0]} x {photograph.size[1]}"
        problem = f"too small: {small}" if photograph.size == size else f"too narrow: {small}, scaled to {narrow}"
        raise SystemExit(f"{path} is {problem}, and each side needs {SHORTEST_SIDE} pixels")
    return photograph


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
