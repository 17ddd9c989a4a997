"""A convolution that chooses its dilation at each position, beside one that cannot.

What is near looks large. From an image and the nearness of each point, both learn to compute a point's contrast with
its surroundings at the size that things have there. A 3x3 window with one dilation has to do for all sizes.
"""

from __future__ import annotations

import argparse

import torch
import torch.nn.functional as F
from dynamic_dilation_unfold import dynamic_dilation_unfold
from dynamic_dilation_unfold._tools.terminal import progress
from torch import Tensor, nn


class AdaptiveConv2d(nn.Module):
    """Convolution over a dilation map that a small convolution predicts: ``[B, C, H, W]`` -> ``[B, out, H, W]``.

    The map starts at 1 everywhere, where the module is a plain convolution.
    """

    def __init__(self, channels: int, out_channels: int, kernel_size: int = 3, groups: int = 1) -> None:
        super().__init__()
        self.kernel_size, self.groups = kernel_size, groups
        plain = nn.Conv2d(channels, out_channels, kernel_size)
        self.weight, self.bias = plain.weight, plain.bias
        self.rates = nn.Conv2d(channels, groups, 5, padding=2)
        nn.init.zeros_(self.rates.weight)
        nn.init.zeros_(self.rates.bias)

    def dilation_map(self, x: Tensor) -> Tensor:
        return 4 * torch.sigmoid(self.rates(x) - torch.log(torch.tensor(3.0)))  # 0 to 4, and 1 at the start

    def forward(self, x: Tensor) -> Tensor:
        padding = self.kernel_size // 2
        columns = dynamic_dilation_unfold(
            x, self.kernel_size, self.dilation_map(x), padding=padding, groups=self.groups
        )
        # Not `weight @ columns`, which copies the columns where the weight wants a gradient.
        weight = self.weight.flatten(1).expand(x.shape[0], -1, -1)
        y = torch.bmm(weight, columns) + self.bias[:, None]
        return y.view(x.shape[0], -1, *x.shape[2:])


class PlainConv2d(AdaptiveConv2d):
    """The same with a dilation of its own that is learnt, one for all positions."""

    def dilation_map(self, x: Tensor) -> Tensor:
        return super().dilation_map(torch.zeros_like(x))


def scene(count: int, size: int) -> tuple[Tensor, Tensor]:
    """Images with their nearness ``[N, 2, H, W]``, and the contrast at the size that goes with it ``[N, 1, H, W]``."""
    image = F.avg_pool2d(torch.randn(count, 1, size + 4, size + 4), 5, stride=1) * 5
    near = F.interpolate(torch.rand(count, 1, 3, 3), (size, size), mode="bilinear")
    taps = dynamic_dilation_unfold(image, 3, 0.5 + 3 * near, padding=1).view(count, 9, size, size)
    return torch.cat([image, near], 1), image - taps.mean(1, keepdim=True)


def train(model: nn.Module, steps: int, label: str) -> float:
    """Share of the contrast that the model leaves unexplained, on images that it has not seen."""
    torch.manual_seed(0)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    for _ in progress(range(steps), label):
        images, contrast = scene(8, 32)
        loss = (model(images) - contrast).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    images, contrast = scene(64, 32)
    with torch.no_grad():
        return ((model(images) - contrast).square().mean() / contrast.square().mean()).item()


def main() -> dict[str, float]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=200)
    args = parser.parse_args()
    torch.manual_seed(0)
    errors = {}
    for name, module in (("one dilation", PlainConv2d(2, 1)), ("a dilation map", AdaptiveConv2d(2, 1))):
        errors[name] = train(module, args.steps, name)
        print(f"{name}: {errors[name]:.1%} of the contrast unexplained")
    return errors


if __name__ == "__main__":
    main()
