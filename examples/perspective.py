"""Telling two materials apart in perspective, where what is near looks large: a case for a rate at each position.

A plane that recedes shows two materials whose textures differ by their scale alone, one and a half times; perspective
changes the scale of what is seen four times from one side of the image to the other. The network sees the image and how
near each point is, and labels each pixel. A window of one rate sees the near material A as it sees the far material B.
"""

from __future__ import annotations

import math
from typing import Any

import evidence
import torch
import torch.nn.functional as F
from torch import Tensor, nn

SIZE = 48
NEAREST = 4.0  # pixels for what takes one where it is farthest
WAVELENGTHS = (2.4, 3.6)  # of the materials, in pixels of the farthest place


def scenes(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Image and nearness ``[count, 2, SIZE, SIZE]``, and the material ``[count, SIZE, SIZE]`` of each pixel."""
    steps = torch.linspace(0, 1, SIZE)
    scale = 1 + (NEAREST - 1) * steps
    # On the plane, of which the camera sees one step for each pixel where it is farthest.
    down = SIZE * torch.log(scale) / (NEAREST - 1)
    along = (torch.arange(SIZE) - SIZE / 2) / scale[:, None]

    def waves(length: float) -> Tensor:
        shape = (count, 16, 1, 1)
        angle = 2 * math.pi * torch.rand(shape, generator=generator)
        phase = 2 * math.pi * torch.rand(shape, generator=generator)
        number = 2 * math.pi / length * (0.85 + 0.3 * torch.rand(shape, generator=generator))
        return torch.cos(number * (angle.cos() * along + angle.sin() * down[:, None]) + phase).sum(1) / 8**0.5

    coarse = torch.rand(count, 1, 5, 5, generator=generator)
    material = F.interpolate(coarse, (SIZE, SIZE), mode="bicubic")[:, 0] > 0.5
    image = torch.where(material, waves(WAVELENGTHS[1]), waves(WAVELENGTHS[0]))
    image = image + 0.3 * torch.randn(image.shape, generator=generator)
    nearness = steps[:, None].expand(count, SIZE, SIZE)
    both = torch.stack([image, nearness], 1)
    labels = material.long()
    turned = torch.rand(count, generator=generator) < 0.5  # what is far is above or below
    both = torch.where(turned[:, None, None, None], both.flip(2), both)
    return both, torch.where(turned[:, None, None], labels.flip(1), labels)


class Network(nn.Module):
    """Logits ``[B, 2, H, W]`` of images with their nearness ``[B, 2, H, W]``."""

    def __init__(self, variant: str, width: int = 12) -> None:
        super().__init__()
        self.rates = evidence.make_rates(variant, 2)
        self.layers = nn.ModuleList([evidence.RateConv2d(n, width) for n in (2, width, width)])
        self.head = nn.Conv2d(width, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        rates, gate = self.rates(x)
        for layer in self.layers:
            x = F.relu(layer(x, rates, gate))
        return self.head(x)


def loss(model: nn.Module, generator: torch.Generator) -> Tensor:
    images, labels = scenes(4, generator)
    return F.cross_entropy(model(images), labels)


def accuracy(model: nn.Module) -> dict[str, float]:
    """Share of pixels labelled rightly, and of the predicted rates how they go with the scale."""
    images, labels = scenes(32, torch.Generator().manual_seed(10**6))
    with torch.no_grad():
        right = (model(images).argmax(1) == labels).float().mean().item()
        rates = model.rates(images)[0].expand(len(images), 1, SIZE, SIZE)
    return {"accuracy": right, "far rate": _at(rates, images, 0), "near rate": _at(rates, images, 1)}


def _at(rates: Tensor, images: Tensor, nearness: float) -> float:
    return rates[:, 0][(images[:, 1] - nearness).abs() < 0.1].mean().item()


def run(variant: str, seed: int, steps: int) -> tuple[nn.Module, dict[str, float]]:
    model = Network(variant)
    evidence.train(model, loss, steps, seed, variant)
    return model, accuracy(model)


def main(arguments: Any = None) -> dict[str, Any]:
    return evidence.main(__doc__, ("fixed 1", "fixed 2", "learnt", "predicted"), 250, run, arguments)


if __name__ == "__main__":
    main()
