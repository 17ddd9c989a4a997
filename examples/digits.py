"""Handwritten digits of any size: a case where a rate at each position might be expected to help.

scikit-learn's digits are enlarged at random, up to three times, and put somewhere into an image. A network
has to say which they are. Each layer predicts its rates from its own input.
"""

from __future__ import annotations

from functools import cache
from itertools import pairwise
from typing import Any

import evidence
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn

SIZE = 24
SMALLEST, LARGEST = 8, 24
TRAINED_ON = 1300  # of 1797


@cache
def digits() -> tuple[Tensor, Tensor]:
    """``[1797, 1, 8, 8]`` in [0, 1], and which they are."""
    found = load_digits()
    return torch.tensor(found.images, dtype=torch.float32).unsqueeze(1) / 16, torch.tensor(found.target)


def placed(chosen: Tensor, generator: torch.Generator) -> Tensor:
    """Those digits, each of a random size and at a random place: ``[N, 1, SIZE, SIZE]``."""
    images = torch.zeros(len(chosen), 1, SIZE, SIZE)
    for image, number in zip(images, chosen.tolist(), strict=True):
        size = int(torch.randint(SMALLEST, LARGEST + 1, (), generator=generator))
        top, left = torch.randint(SIZE - size + 1, (2,), generator=generator).tolist()
        digit = digits()[0][number : number + 1]
        scaled = F.interpolate(digit, (size, size), mode="bilinear", align_corners=False)
        image[:, top : top + size, left : left + size] = scaled[0]
    return images + 0.1 * torch.randn(images.shape, generator=generator)


class Network(nn.Module):
    """Logits ``[B, 10]`` of images ``[B, 1, SIZE, SIZE]``."""

    def __init__(self, variant: str, widths: tuple[int, ...] = (1, 8, 16, 24)) -> None:
        super().__init__()
        pairs = list(pairwise(widths))
        self.rates = nn.ModuleList([evidence.make_rates(variant, n) for n, _ in pairs])
        self.layers = nn.ModuleList([evidence.RateConv2d(n, m) for n, m in pairs])
        self.norms = nn.ModuleList([nn.BatchNorm2d(m) for _, m in pairs])
        self.head = nn.Linear(widths[-1], 10)

    def forward(self, x: Tensor) -> Tensor:
        for number, (rates, layer, norm) in enumerate(zip(self.rates, self.layers, self.norms, strict=True)):
            x = F.relu(norm(layer(x, *rates(x))))
            x = F.max_pool2d(x, 2) if number < 2 else x.amax((2, 3))
        return self.head(x)


def loss(model: nn.Module, generator: torch.Generator) -> Tensor:
    chosen = torch.randint(TRAINED_ON, (16,), generator=generator)
    return F.cross_entropy(model(placed(chosen, generator)), digits()[1][chosen])


def accuracy(model: nn.Module) -> dict[str, float]:
    """On the digits that were not trained on, each once."""
    chosen = torch.arange(TRAINED_ON, len(digits()[1]))
    images = placed(chosen, torch.Generator().manual_seed(10**6))
    with torch.no_grad():
        return {"accuracy": (model(images).argmax(1) == digits()[1][chosen]).float().mean().item()}


def run(variant: str, seed: int, steps: int) -> tuple[nn.Module, dict[str, float]]:
    model = Network(variant)
    evidence.train(model, loss, steps, seed, variant)
    return model, accuracy(model.eval())


def main(arguments: Any = None) -> dict[str, Any]:
    return evidence.main(__doc__, ("fixed 1", "learnt", "predicted"), 200, run, arguments)


if __name__ == "__main__":
    main()
