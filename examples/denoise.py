"""A small denoiser of photographs: does it help to choose the dilation of its windows at each position?

The photographs are some that come with scikit-image. Crops of six are trained on, with fresh noise at every step; three
others are what the table is about. The rates are predicted from what the first layer finds.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import evidence
import torch
import torch.nn.functional as F
from skimage import color, data, util
from torch import Tensor, nn

NOISE = 0.1  # standard deviation, of a full scale of 1
TRAINED_ON = ("camera", "chelsea", "coins", "moon", "brick", "gravel")
HELD_OUT = ("astronaut", "coffee", "rocket")


@cache
def photograph(name: str) -> Tensor:
    """In grey, ``[H, W]`` in [0, 1]."""
    pixels = util.img_as_float32(getattr(data, name)())
    return torch.from_numpy(color.rgb2gray(pixels) if pixels.ndim == 3 else pixels)


def crops(count: int, size: int, generator: torch.Generator) -> Tensor:
    """``[count, 1, size, size]`` of the photographs that are trained on."""
    found = []
    for _ in range(count):
        image = photograph(TRAINED_ON[int(torch.randint(len(TRAINED_ON), (), generator=generator))])
        top, left = (int(torch.randint(n - size + 1, (), generator=generator)) for n in image.shape)
        found.append(image[top : top + size, left : left + size])
    return torch.stack(found).unsqueeze(1)


class Network(nn.Module):
    """The photograph without noise ``[B, 1, H, W]`` of one with it."""

    def __init__(self, variant: str, width: int = 12) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, width, 3, padding=1)
        self.rates = evidence.make_rates(variant, width)
        self.layers = nn.ModuleList([evidence.RateConv2d(width, width) for _ in range(2)])
        self.last = nn.Conv2d(width, 1, 3, padding=1)

    def forward(self, noisy: Tensor) -> Tensor:
        x = F.relu(self.first(noisy))
        rates, gate = self.rates(x)
        for layer in self.layers:
            x = F.relu(layer(x, rates, gate))
        return noisy - self.last(x)


def loss(model: nn.Module, generator: torch.Generator) -> Tensor:
    clean = crops(4, 48, generator)
    noise = torch.randn(clean.shape, generator=generator)
    return (model(clean + NOISE * noise) - clean).square().mean()


def quality(model: nn.Module) -> dict[str, float]:
    """Mean PSNR of the middles of the photographs held out, and the mean of the rates there."""
    generator = torch.Generator().manual_seed(10**6)
    found, rates = [], []
    for name in HELD_OUT:
        image = photograph(name)
        top, left = ((n - 128) // 2 for n in image.shape)
        clean = image[None, None, top : top + 128, left : left + 128]
        noisy = clean + NOISE * torch.randn(clean.shape, generator=generator)
        with torch.no_grad():
            found.append(-10 * (model(noisy) - clean).square().mean().log10().item())
            rates.append(model.rates(F.relu(model.first(noisy)))[0])
    spread = torch.cat([r.flatten() for r in rates])
    deviation = spread.std().item() if len(spread) > len(HELD_OUT) else 0.0
    return {"PSNR": sum(found) / len(found), "mean rate": spread.mean().item(), "their deviation": deviation}


def run(variant: str, seed: int, steps: int) -> tuple[nn.Module, dict[str, float]]:
    model = Network(variant)
    evidence.train(model, loss, steps, seed, variant)
    return model, quality(model)


def main(arguments: Any = None) -> dict[str, Any]:
    return evidence.main(__doc__, ("fixed 1", "fixed 2", "learnt", "predicted"), 250, run, arguments)


if __name__ == "__main__":
    main()
