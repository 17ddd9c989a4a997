"""The adaptive dilation of FADC (Chen et al., Frequency-Adaptive Dilated Convolution, CVPR 2024) on this operator.

It predicts one rate for each position, and a weight for each tap. A deformable convolution wants two offsets for each
tap instead, so the rate is spread over 18 of them. Here it is used as it is. The values and gradients of both are
compared, with zeros and with the edge's pixels around the image, then their times and memory.

The other way is torchvision's deform_conv2d where torchvision is installed, else the same by F.grid_sample.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from dynamic_dilation_unfold import dynamic_dilation_conv2d
from dynamic_dilation_unfold._tools.machine import environment
from dynamic_dilation_unfold._tools.tables import aligned
from dynamic_dilation_unfold._tools.terminal import progress
from torch import Tensor, nn
from training_step import measure

try:
    from torchvision.ops import deform_conv2d
except (ImportError, RuntimeError):  # not there, or made for another torch
    deform_conv2d = None

TAPS = torch.tensor([[y, x] for y in (-1.0, 0.0, 1.0) for x in (-1.0, 0.0, 1.0)])  # 3x3, from the centre
MODES = ("zeros", "border")

Way = Callable[[Tensor, Tensor, Tensor, Tensor, str], Tensor]


class AdaptiveDilation(nn.Module):
    """FADC's predictions from ``[B, C, H, W]``: rates ``[B, 1, H, W]``, and a weight of each tap ``[B, 9, H, W]``."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.rate = nn.Conv2d(channels, 1, 3, padding=1)
        self.weight = nn.Conv2d(channels, 9, 3, padding=1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return F.relu(1 + self.rate(x)), self.weight(x).sigmoid()


def by_the_rate(x: Tensor, rates: Tensor, mask: Tensor, weight: Tensor, padding_mode: str) -> Tensor:
    """The convolution whose dilation is a map; the mask is the same for all channels."""
    return dynamic_dilation_conv2d(x, weight, rates, padding=1, mask=mask.unsqueeze(1), padding_mode=padding_mode)


def offsets_of(rates: Tensor) -> Tensor:
    """``[B, 18, H, W]``: what each tap has to be moved, from where a dilation of 1 puts it."""
    return ((rates - 1).unsqueeze(2) * TAPS.to(rates).view(1, 9, 2, 1, 1)).flatten(1, 2)


def by_deform_conv2d(x: Tensor, rates: Tensor, mask: Tensor, weight: Tensor, padding_mode: str) -> Tensor:
    """torchvision's. It knows zeros alone, so that the edge's pixels are put around the image as far as taps reach."""
    if padding_mode == "zeros":
        return deform_conv2d(x, offsets_of(rates), weight, padding=1, mask=mask)
    reach = int(rates.detach().abs().amax().ceil()) + 1
    around = [reach - 1] * 4
    padded, offsets = F.pad(x, [reach] * 4, mode="replicate"), F.pad(offsets_of(rates), around)
    y = deform_conv2d(padded, offsets, weight, mask=F.pad(mask, around))
    return y[..., reach - 1 : reach - 1 + x.shape[2], reach - 1 : reach - 1 + x.shape[3]]


def by_grid_sample(x: Tensor, rates: Tensor, mask: Tensor, weight: Tensor, padding_mode: str) -> Tensor:
    """A sampled image for each of the nine taps, and the sum of their products."""
    height, width = x.shape[2:]
    offsets = offsets_of(rates).unflatten(1, (9, 2)) + TAPS.to(rates).view(1, 9, 2, 1, 1)
    rows = torch.arange(height, device=x.device, dtype=x.dtype)[:, None]
    columns = torch.arange(width, device=x.device, dtype=x.dtype)
    y: Any = 0
    for tap in range(9):
        at = torch.stack((columns + offsets[:, tap, 1], rows + offsets[:, tap, 0]), -1)
        grid = 2 * at / torch.tensor([width - 1, height - 1], device=x.device, dtype=x.dtype) - 1
        sampled = F.grid_sample(x, grid, padding_mode=padding_mode, align_corners=True)
        y = y + F.conv2d(sampled * mask[:, tap : tap + 1], weight[:, :, tap // 3, tap % 3, None, None])
    return y


OTHER: Way = by_deform_conv2d if deform_conv2d else by_grid_sample


def differences(channels: int, size: int, device: str) -> dict[str, float]:
    """Relative norms, in float64: of the values and of each gradient, for both kinds of padding."""
    x, weight, module = problem(1, channels, size, device, torch.float64)
    found = {}
    for mode in MODES:
        results = []
        for way in (by_the_rate, OTHER):
            rates, mask = module(x)
            # At 0 every tap is on a whole pixel, where interpolation has a kink, of which each way may take a side.
            leaves = [t.detach().requires_grad_() for t in (x, rates.clamp_min(0.01), mask, weight)]
            y = way(*leaves, mode)
            results.append((y, *torch.autograd.grad(y.square().sum(), leaves)))
        names = ("values", "of the image", "of the rates", "of the mask", "of the weight")
        for name, one, other in zip(names, *results, strict=True):
            found[f"{mode}, {name}"] = ((one - other).norm() / other.norm()).item()
    return found


def problem(batch: int, channels: int, size: int, device: str, dtype: Any) -> tuple[Tensor, Tensor, AdaptiveDilation]:
    torch.manual_seed(0)
    x = torch.randn(batch, channels, size, size, device=device, dtype=dtype)
    weight = torch.randn(channels, channels, 3, 3, device=device, dtype=dtype) / channels
    return x, weight, AdaptiveDilation(channels).to(device, dtype)


def main(arguments: Any = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--shape", type=int, nargs=3, default=[4, 64, 128], metavar=("B", "C", "SIZE"))
    parser.add_argument("--channels-last", action="store_true", help="time a channels_last image")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="a small image, once: for a try")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write a record to FILE")
    args = parser.parse_args(arguments)
    batch, channels, size = (1, 8, 32) if args.quick else args.shape
    found = differences(8, 24, args.device)
    print(f"difference from {OTHER.__name__}, in float64, of values and gradients")
    print("\n".join(aligned([[name, f"{value:.1e}"] for name, value in found.items()], left=1)))
    x, weight, module = problem(batch, channels, size, args.device, torch.float32)
    if args.channels_last:
        x = x.contiguous(memory_format=torch.channels_last)
    inputs = [t.detach().requires_grad_() for t in (x, *module(x), weight)]
    figures = {}
    for mode, way in progress([(m, w) for m in MODES for w in (by_the_rate, OTHER)], "timing"):

        def step(*tensors: Tensor, mode: str = mode, way: Way = way) -> Tensor:
            return way(*tensors, mode)

        forward, whole, memory = measure(step, inputs, 1 if args.quick else args.repeats)
        figures[f"{mode}: {way.__name__}"] = {"forward ms": forward, "step ms": whole, "peak MB": memory}
    rows = [[f"{batch}x{channels}x{size}x{size}, float32", "forward ms", "step ms", "peak MB"]]
    rows += [[name, *(f"{value:.2f}" for value in values.values())] for name, values in figures.items()]
    print("\n".join(aligned(rows, left=1)))
    if args.json:
        about = environment(torch.device(args.device))
        command = f"python examples/fadc.py --device {args.device} --shape {batch} {channels} {size}"
        command += " --channels-last" * args.channels_last
        record = {"about": about, "command": command, "differences": found, "figures": figures}
        args.json.write_text(json.dumps(record, indent=1) + "\n")
        print(f"record: {args.json}")
    return {"differences": found, "figures": figures}


if __name__ == "__main__":
    main()
