"""Recover a dilation map by gradient descent, from the columns that it gave."""

from __future__ import annotations

import argparse

import torch
import torch.nn.functional as F
from dynamic_dilation_unfold import dynamic_dilation_unfold
from torch import Tensor


def problem(size: int) -> tuple[Tensor, Tensor]:
    """A smooth image (a map's gradient is a slope of the image) and a map from 0.8 to 2.2."""
    image = F.avg_pool2d(torch.randn(1, 16, size + 6, size + 6), 7, stride=1) * 7
    steps = torch.linspace(0, 1, size)
    return image, (0.8 + 0.7 * (steps + steps[:, None])).view(1, 1, size, size)


def learn(image: Tensor, columns: Tensor, steps: int) -> Tensor:
    size = image.shape[2:]
    rates = torch.full((1, 1, *size), 1.5, requires_grad=True)
    optimizer = torch.optim.Adam([rates], lr=0.03)
    for step in range(steps):
        optimizer.zero_grad()
        loss = (dynamic_dilation_unfold(image, 3, rates, padding=1) - columns).square().mean()
        loss.backward()
        optimizer.step()
        if step % 50 == 0:
            print(f"step {step:4}  loss {loss.item():.6f}")
    return rates.detach()


def main() -> float:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--steps", type=int, default=200)
    args = parser.parse_args()
    torch.manual_seed(0)
    image, wanted = problem(args.size)
    columns = dynamic_dilation_unfold(image, 3, wanted, padding=1)
    found = learn(image, columns, args.steps)
    error = (found - wanted).abs().mean().item()
    start = (wanted - 1.5).abs().mean().item()
    print(f"mean distance from the map: {start:.4f} at the start, {error:.4f} now")
    return error / start


if __name__ == "__main__":
    main()
