"""What the benchmark measures: workloads, maps, and the functions that are compared."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from ..functional import dynamic_dilation_unfold
from ..reference import dynamic_dilation_unfold_reference
from .grid_sample import grid_sample_unfold
from .timing import Job

MAPS = ("ones", "smooth", "noise", "wide")
# Relative norm of the difference from the reference that rounding explains.
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4, torch.float16: 4e-3, torch.bfloat16: 2e-2}


@dataclass(frozen=True)
class Workload:
    shape: tuple[int, int, int, int]
    kernel: int
    stride: int = 1
    padding: int = 1
    groups: int = 1
    dtype: torch.dtype | None = None  # None: whichever is asked for

    def map_shape(self) -> tuple[int, int, int, int]:
        batch, _, height, width = self.shape
        image = torch.empty(1, 1, height, width, device="meta")
        pooled = F.conv2d(image, image.new_empty(1, 1, self.kernel, self.kernel), None, self.stride, self.padding)
        return (batch, self.groups, pooled.shape[2], pooled.shape[3])

    def output_elements(self) -> int:
        batch, _, height, width = self.map_shape()
        return batch * self.shape[1] * self.kernel**2 * height * width

    def bytes_needed(self, size: int) -> int:
        """Of all that is alive while backward is measured: columns, and the grids of the emulation."""
        batch, groups, height, width = self.map_shape()
        grid = 8 * batch * groups * self.kernel**2 * height * width
        return 6 * size * self.output_elements() + 8 * grid

    def __str__(self) -> str:
        text = f"{'x'.join(map(str, self.shape))}, kernel {self.kernel}, padding {self.padding}"
        text += f", stride {self.stride}" if self.stride != 1 else ""
        return text + (f", groups {self.groups}" if self.groups != 1 else "")


R = Workload((4, 64, 128, 128), 3)
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
}


Unfold = Callable[[Tensor, Tensor, Workload], Tensor]


def small(workload: Workload) -> Workload:
    return replace(workload, shape=(1, *workload.shape[1:]))


def make_map(kind: str, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Ones; or rates in [0.5, 3]; or wide ones in [0.5, 16], so that near positions have taps far apart."""
    generator = torch.Generator(device).manual_seed(1)
    batch, groups, height, width = shape
    if kind == "ones":
        rates = torch.ones(shape, device=device)
    elif kind == "smooth":
        coarse = torch.rand(batch, groups, 8, 8, generator=generator, device=device)
        rates = F.interpolate(coarse, (height, width), mode="bicubic", align_corners=False).clamp(0, 1) * 2.5 + 0.5
    else:
        rates = torch.rand(shape, generator=generator, device=device) * (15.5 if kind == "wide" else 2.5) + 0.5
    return rates.to(dtype if dtype == torch.float64 else torch.float32)


def emulation(input: Tensor, rates: Tensor, workload: Workload) -> Tensor:
    return grid_sample_unfold(input, workload.kernel, rates, workload.stride, workload.padding, 1, workload.groups)


def ours(input: Tensor, rates: Tensor, workload: Workload) -> Tensor:
    options = (workload.stride, workload.padding, 1, workload.groups)
    return dynamic_dilation_unfold(input, workload.kernel, rates, *options)


@dataclass
class Problem:
    workload: Workload
    input: Tensor
    rates: Tensor

    @classmethod
    def make(cls, workload: Workload, kind: str, dtype: torch.dtype, device: torch.device) -> Problem:
        generator = torch.Generator(device).manual_seed(0)
        input = torch.randn(workload.shape, generator=generator, device=device).to(dtype)
        return cls(workload, input, make_map(kind, workload.map_shape(), dtype, device))

    def validate(self) -> dict[str, float]:
        """Relative difference from the reference, of the whole result's last sample and of both gradients.

        One channel of each group is compared, which bounds the reference's memory; the gradients are those of an input
        of these channels.
        """
        workload, step = self.workload, self.workload.shape[1] // self.workload.groups
        columns = ours(self.input, self.rates, workload)[-1:]
        planes = columns.view(1, -1, workload.kernel**2, columns.shape[2])
        found = [planes[:, step - 1 :: step].flatten(1, 2)]
        part, rates = self.input[-1:, step - 1 :: step].clone(), self.rates[-1:]
        grad = torch.randn_like(found[0])

        def with_gradients(function: Callable[[Tensor, Tensor], Tensor]) -> list[Tensor]:
            leaves = part.clone().requires_grad_(), rates.clone().requires_grad_()
            columns = function(*leaves)
            return [columns.detach(), *torch.autograd.grad(columns, leaves, grad)]

        found += with_gradients(partial(ours, workload=workload))[1:]
        expected = with_gradients(
            lambda x, r: dynamic_dilation_unfold_reference(
                x, workload.kernel, r, workload.stride, workload.padding, groups=workload.groups
            )
        )
        return {
            name: relative_difference(*pair)
            for name, *pair in zip(("columns", "input's gradient", "map's gradient"), found, expected, strict=True)
        }

    def forward_jobs(self) -> dict[str, Job]:
        workload, input, rates = self.workload, self.input, self.rates
        output = torch.empty_like(ours(input, rates, workload))
        return {
            "fill": lambda: output.fill_(1),
            "allocation": lambda: torch.empty_like(output).fill_(1),
            "F.unfold": lambda: F.unfold(input, workload.kernel, 1, workload.padding, workload.stride),
            "grid_sample": lambda: emulation(input, rates, workload),
            "ours": lambda: ours(input, rates, workload),
        }

    def backward_jobs(self, thorough: bool) -> dict[str, Job]:
        workload, size = self.workload, self.input.shape[2:]
        grad = torch.randn_like(ours(self.input, self.rates, workload))
        jobs: dict[str, Job] = {
            "read": lambda: grad.sum(),
            "F.fold": lambda: F.fold(grad, size, workload.kernel, 1, workload.padding, workload.stride),
            "grid_sample": _Backward(self, emulation, grad),
            "ours": _Backward(self, ours, grad),
        }
        if grad.device.type == "cpu" and grad.element_size() == 2:
            del jobs["grid_sample"]  # torch's kernel crashes on large grids in a half type
        if thorough:
            jobs["ours, input only"] = _Backward(self, ours, grad, rates=False)
            jobs["ours, map only"] = _Backward(self, ours, grad, input=False)
        if thorough and grad.device.type == "cuda":
            jobs["ours, deterministic"] = _deterministic(_Backward(self, ours, grad))
        return jobs


class _Backward:
    """Runs a graph backward, which it makes at the first call."""

    def __init__(
        self, problem: Problem, function: Unfold, grad: Tensor, input: bool = True, rates: bool = True
    ) -> None:
        self.function, self.workload, self.grad = function, problem.workload, grad
        self.leaves = problem.input.detach().requires_grad_(input), problem.rates.detach().requires_grad_(rates)
        self.columns: Tensor | None = None

    def __call__(self) -> None:
        if self.columns is None:
            self.columns = self.function(*self.leaves, self.workload)
        wanted = [leaf for leaf in self.leaves if leaf.requires_grad]
        torch.autograd.grad(self.columns, wanted, self.grad, retain_graph=True)


def relative_difference(found: Tensor, expected: Tensor) -> float:
    found, expected = found.double(), expected.double()
    return float((found - expected).norm() / expected.norm())


def _deterministic(job: Job) -> Job:
    def run() -> None:
        torch.use_deterministic_algorithms(True)
        try:
            job()
        finally:
            torch.use_deterministic_algorithms(False)

    return run
