"""What the benchmark measures: sizes, options and maps."""

from __future__ import annotations

import argparse
import re
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from .._geometry import output_size
from .._operators.unfold import UNFOLD

MAPS = ("ones", "smooth", "noise", "wide")
_RANGES = {"noise": (0.5, 3.0), "wide": (0.5, 16.0)}


@dataclass(frozen=True)
class Workload:
    shape: tuple[int, ...]  # B, C, H, W
    kernel: int
    stride: int = 1
    padding: int = 1
    dilation: int = 1
    groups: int = 1
    channels_last: bool = False
    dtype: torch.dtype | None = None  # None: whichever is asked for
    map: str | None = None  # likewise

    @property
    def options(self) -> tuple[int, int, int, int]:
        """As the operator takes them after kernel size and map."""
        return (self.stride, self.padding, self.dilation, self.groups)

    def map_shape(self) -> tuple[int, int, int, int]:
        options = UNFOLD.read((self.kernel, *self.options))
        height, width = (max(0, size) for size in output_size(self.shape[2:], options))
        return (self.shape[0], self.groups, height, width)

    def output_elements(self) -> int:
        batch, _, height, width = self.map_shape()
        return batch * self.shape[1] * self.kernel**2 * height * width

    def bytes_needed(self, size: int) -> int:
        """Of all that is alive while backward is measured: columns, and the grids of the emulation."""
        batch, groups, height, width = self.map_shape()
        grid = 8 * batch * groups * self.kernel**2 * height * width
        return 6 * size * self.output_elements() + 8 * grid

    def label(self) -> str:
        """Short: ``2x256x33x33 k3 d6``."""
        text = f"{'x'.join(map(str, self.shape))} k{self.kernel}"
        for letter, value in (("s", self.stride), ("d", self.dilation), ("g", self.groups)):
            text += f" {letter}{value}" if value != 1 else ""
        return text + (" channels_last" if self.channels_last else "")

    def __str__(self) -> str:
        text = f"{'x'.join(map(str, self.shape))}, kernel {self.kernel}, padding {self.padding}"
        for name in ("stride", "dilation", "groups"):
            text += f", {name} {getattr(self, name)}" if getattr(self, name) != 1 else ""
        return text + (", channels_last" if self.channels_last else "")


R = Workload((4, 64, 128, 128), 3)
_FLOAT32 = replace(R, dtype=torch.float32)


def _atrous(shape: tuple[int, ...], dilation: int) -> Workload:
    return Workload(shape, 3, padding=dilation, dilation=dilation, dtype=torch.float32, map="0.5-1.5")


WORKLOADS: dict[str, list[Workload]] = {
    "R": [R],
    "models": [
        Workload((4, 256, 64, 64), 3),
        Workload((4, 512, 32, 32), 3),
        Workload((128, 24, 56, 56), 3),
        Workload((8, 64, 64, 64), 5, padding=2),
        Workload((1, 64, 720, 1280), 3, groups=8, dtype=torch.float16),
        Workload((8, 64, 128, 128), 7, padding=3, dtype=torch.float16),
        Workload((1, 32, 16, 16), 3),
    ],
    "shapes": [
        Workload((4, 64, 64, 64), 5, padding=2),
        Workload((4, 64, 64, 64), 7, padding=3),
        Workload((4, 64, 128, 128), 2, padding=0),
        Workload((4, 64, 64, 64), 4, padding=1),
        Workload((4, 64, 128, 128), 3, stride=2),
        Workload((4, 64, 128, 128), 3, groups=8),
        Workload((4, 1, 512, 512), 3),
        Workload((4, 3, 512, 512), 3),
        Workload((4, 256, 14, 14), 3),
        Workload((128, 32, 32, 32), 3),
    ],
    "sizes": [
        Workload((1, 8, 64, 64), 3),
        Workload((1, 64, 64, 64), 3),
        Workload((1, 64, 128, 128), 3),
        R,
        Workload((16, 64, 128, 128), 3),
        Workload((54, 64, 128, 128), 3),
        Workload((212, 64, 128, 128), 3),
    ],
    "rates": [
        *(replace(_FLOAT32, map=f"0.5-{most}") for most in (3, 9, 16, 40)),
        *(replace(_FLOAT32, map=f"0.5-{most}", channels_last=True) for most in (3, 16)),
        *(replace(R, map="0.5-16", dtype=dtype) for dtype in (torch.float16, torch.bfloat16)),
        _atrous((4, 256, 64, 64), 12),
        _atrous((4, 256, 64, 64), 18),
        _atrous((2, 256, 128, 256), 12),
        Workload((4, 64, 128, 128), 7, padding=6, dilation=2, dtype=torch.float32, map="0.5-3"),
        Workload((2, 64, 64, 64), 11, padding=5, dtype=torch.float32, map="0.5-3"),
        replace(R, dtype=torch.float64, map="0.5-16"),
        Workload((4, 1, 512, 512), 3, dtype=torch.float32, map="0.5-16"),
        Workload((4, 3, 512, 512), 3, dtype=torch.float32, map="0.5-16"),
        Workload((4, 20, 128, 129), 3, dtype=torch.float32, map="0.5-16"),
    ],
}


def small(workload: Workload) -> Workload:
    return replace(workload, shape=(1, *workload.shape[1:]))


def rates_between(kind: str) -> tuple[float, float] | None:
    """The least and largest rate of ``0.5-9`` and its like; None for a map of another kind."""
    match = re.fullmatch(r"(\d+\.?\d*|\.\d+)-(\d+\.?\d*|\.\d+)", kind)
    return (float(match[1]), float(match[2])) if match else _RANGES.get(kind)


def map_kind(text: str) -> str:
    """Of a command line."""
    between = rates_between(text)
    if text not in MAPS and (not between or between[0] > between[1]):
        raise argparse.ArgumentTypeError(f"{text!r} is none of {', '.join(MAPS)}, and no range of rates such as 0.5-9")
    return text


def make_map(kind: str, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Ones; rates in [0.5, 3] that change slowly; or rates of a range, drawn for each position."""
    generator = torch.Generator(device).manual_seed(1)
    batch, groups, height, width = shape
    between = rates_between(kind)
    if kind == "ones":
        rates = torch.ones(shape, device=device)
    elif between:
        rates = torch.rand(shape, generator=generator, device=device) * (between[1] - between[0]) + between[0]
    else:
        coarse = torch.rand(batch, groups, 8, 8, generator=generator, device=device)
        rates = F.interpolate(coarse, (height, width), mode="bicubic", align_corners=False).clamp(0, 1) * 2.5 + 0.5
    return rates.to(dtype if dtype == torch.float64 else torch.float32)
