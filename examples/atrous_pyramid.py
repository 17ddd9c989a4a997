"""An atrous pyramid whose dilations become maps, in one line.

DeepLab looks at each position with 3x3 windows of the dilations 6, 12 and 18, the same three everywhere. Here such a
network is first trained as it is, and then once more from where it stands: as it is, and with its dilated convolutions
converted, so that each position chooses how far its windows reach. Where things lie that must be compared depends on
the position: the task is to tell whether a pixel is brighter than its surroundings at a distance that an input channel
gives.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from dynamic_dilation_unfold import convert
from dynamic_dilation_unfold._tools.terminal import progress
from torch import Tensor, nn


class AtrousPyramid(nn.Module):
    """``[B, in, H, W]`` -> ``[B, out, H, W]``: DeepLabv3's branches and the convolution that puts them together."""

    def __init__(self, in_channels: int, out_channels: int, width: int = 8, rates: Sequence[int] = (6, 12, 18)) -> None:
        super().__init__()
        self.branches = nn.ModuleList(
            [
                nn.Conv2d(in_channels, width, 1),
                *(nn.Conv2d(in_channels, width, 3, padding=rate, dilation=rate) for rate in rates),
            ]
        )
        self.project = nn.Conv2d(width * len(self.branches), out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.project(torch.cat([F.relu(branch(x)) for branch in self.branches], 1))


def scene(count: int, size: int) -> tuple[Tensor, Tensor]:
    """Images with the distance at each point ``[N, 2, H, W]``, and what to find ``[N, 1, H, W]``."""
    image = F.avg_pool2d(torch.randn(count, 1, size + 8, size + 8), 9, stride=1) * 9
    reach = F.interpolate(torch.rand(count, 1, 2, 2), (size, size), mode="bilinear")  # 0 to 1 for 3 to 9 pixels
    row, column = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    around = torch.zeros_like(image)
    for down, right in ((-1, 0), (1, 0), (0, -1), (0, 1)):
        y, x = (row + down * (3 + 6 * reach), column + right * (3 + 6 * reach))
        grid = torch.stack([x[:, 0], y[:, 0]], -1) * 2 / (size - 1) - 1
        around += F.grid_sample(image, grid, align_corners=True) / 4
    return torch.cat([image, reach], 1), image - around


def train(model: nn.Module, steps: int, size: int, label: str) -> float:
    """Share of the contrast that the model leaves unexplained, on images that it has not seen."""
    torch.manual_seed(0)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in progress(range(steps), label):
        images, contrast = scene(4, size)
        loss = (model(images) - contrast).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    torch.manual_seed(1)
    images, contrast = scene(16, size)
    with torch.no_grad():
        return ((model(images) - contrast).square().mean() / contrast.square().mean()).item()


def main() -> dict[str, float]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--size", type=int, default=48)
    args = parser.parse_args()
    torch.manual_seed(0)
    fixed = AtrousPyramid(2, 1)
    train(fixed, args.steps, args.size, "fixed dilations")
    adaptive = copy.deepcopy(fixed)

    print(convert(adaptive, max_rate=2.0))  # the line

    images, _ = scene(2, args.size)
    assert torch.allclose(adaptive(images), fixed(images), atol=1e-4)  # so far
    errors = {}
    for name, model in (("dilations 6, 12, 18", fixed), ("maps of them", adaptive)):
        errors[name] = train(model, args.steps, args.size, name)
        print(f"{name}: {errors[name]:.1%} of the contrast unexplained")
    return errors


if __name__ == "__main__":
    main()
