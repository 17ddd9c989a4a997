"""Attention of each position to 25 taps around it, at fixed rates and at predicted ones, on perspective.py's scenes.

Outside the image there is nothing to attend to: the softmax counts each tap by how much of it is inside.
"""

from __future__ import annotations

from typing import Any

import evidence
import perspective
import torch
import torch.nn.functional as F
from dynamic_dilation_unfold import dynamic_dilation_attention
from torch import Tensor, nn

KERNEL = 5


class LocalAttention(nn.Module):
    """``[B, C, H, W]`` of the same, with rates ``[B or 1, 1, H or 1, W or 1]``."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.projection = nn.Conv2d(channels, 3 * channels, 1)
        self.bias = nn.Parameter(torch.zeros(heads, KERNEL**2, 1, 1))
        self.out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor, rates: Tensor, gate: Tensor) -> Tensor:
        query, key, value = self.projection(x).chunk(3, 1)
        options = {"padding": KERNEL // 2, "heads": self.heads, "bias": self.bias}
        return self.out(dynamic_dilation_attention(query, key, value, rates, KERNEL, **options)) * gate


class Network(nn.Module):
    """Logits ``[B, 2, H, W]`` of images with their nearness ``[B, 2, H, W]``."""

    def __init__(self, variant: str, width: int = 8) -> None:
        super().__init__()
        self.rates = evidence.make_rates(variant, 2)
        self.first = nn.Conv2d(2, width, 1)
        self.attention = nn.ModuleList([LocalAttention(width, 2) for _ in range(2)])
        self.mixing = nn.ModuleList([nn.Conv2d(width, width, 1) for _ in range(2)])
        self.head = nn.Conv2d(width, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        rates, gate = self.rates(x)
        x = self.first(x)
        for attention, mixing in zip(self.attention, self.mixing, strict=True):
            x = x + attention(x, rates, gate)
            x = x + mixing(F.relu(x))
        return self.head(F.relu(x))


def run(variant: str, seed: int, steps: int) -> tuple[nn.Module, dict[str, float]]:
    model = Network(variant)
    evidence.train(model, perspective.loss, steps, seed, variant)
    return model, perspective.accuracy(model)


def main(arguments: Any = None) -> dict[str, Any]:
    return evidence.main(__doc__, ("fixed 1", "fixed 2", "learnt", "predicted"), 120, run, arguments)


if __name__ == "__main__":
    main()
