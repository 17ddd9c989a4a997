"""The functions that the benchmark compares, on one problem."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from ..functional import dynamic_dilation_unfold
from ..reference import dynamic_dilation_unfold_reference
from .grid_sample import grid_sample_unfold
from .timing import Job
from .workloads import Workload, make_map

# Relative norm of the difference from the reference that rounding explains.
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4, torch.float16: 4e-3, torch.bfloat16: 2e-2}

Unfold = Callable[[Tensor, Tensor, Workload], Tensor]


def ours(input: Tensor, rates: Tensor, workload: Workload) -> Tensor:
    return dynamic_dilation_unfold(input, workload.kernel, rates, *workload.options)


def emulation(input: Tensor, rates: Tensor, workload: Workload) -> Tensor:
    return grid_sample_unfold(input, workload.kernel, rates, *workload.options)


@dataclass
class Problem:
    workload: Workload
    input: Tensor
    rates: Tensor

    @classmethod
    def make(cls, workload: Workload, kind: str, dtype: torch.dtype, device: torch.device) -> Problem:
        generator = torch.Generator(device).manual_seed(0)
        input = torch.randn(workload.shape, generator=generator, device=device).to(dtype)
        if workload.channels_last:
            input = input.contiguous(memory_format=torch.channels_last)
        return cls(workload, input, make_map(kind, workload.map_shape(), dtype, device))

    def validate(self) -> dict[str, float]:
        """Relative difference from the reference, of the whole result's last sample and of that sample's gradients.

        One channel of each group is compared, which bounds the reference's memory; the columns' gradient is zero for
        the others, so that the map's gradient is theirs alone.
        """
        workload, step = self.workload, self.workload.shape[1] // self.workload.groups
        chosen = slice(step - 1, None, step)

        def of_chosen(columns: Tensor) -> Tensor:
            return columns.view(1, -1, workload.kernel**2, columns.shape[2])[:, chosen]

        columns = of_chosen(ours(self.input, self.rates, workload)[-1:])
        leaves = self.input[-1:].detach().requires_grad_(), self.rates[-1:].detach().requires_grad_()
        again = ours(*leaves, workload)
        grad = torch.zeros_like(again)
        of_chosen(grad).copy_(torch.randn_like(columns))
        of_input, of_map = torch.autograd.grad(again, leaves, grad)

        part = self.input[-1:, chosen].clone().requires_grad_(), leaves[1].detach().clone().requires_grad_()
        expected = dynamic_dilation_unfold_reference(part[0], workload.kernel, part[1], *workload.options)
        expected_grads = torch.autograd.grad(expected, part, of_chosen(grad).flatten(1, 2))
        return {
            "columns": relative_difference(columns.flatten(1, 2), expected.detach()),
            "input's gradient": relative_difference(of_input[:, chosen], expected_grads[0]),
            "map's gradient": relative_difference(of_map, expected_grads[1]),
        }

    def forward_jobs(self) -> dict[str, Job]:
        workload, input, rates = self.workload, self.input, self.rates
        stride, padding, dilation, _ = workload.options
        output = torch.empty_like(ours(input, rates, workload))
        return {
            "fill": lambda: output.fill_(1),
            "allocation": lambda: torch.empty_like(output).fill_(1),
            "F.unfold": lambda: F.unfold(input, workload.kernel, dilation, padding, stride),
            "grid_sample": lambda: emulation(input, rates, workload),
            "ours": lambda: ours(input, rates, workload),
        }

    def backward_jobs(self, parts: bool, deterministic: bool) -> dict[str, Job]:
        """``parts``: each gradient alone too. ``deterministic``: that too, where it takes kernels of its own."""
        workload, size = self.workload, self.input.shape[2:]
        stride, padding, dilation, _ = workload.options
        grad = torch.randn_like(ours(self.input, self.rates, workload))
        jobs: dict[str, Job] = {
            "read": lambda: grad.sum(),
            "F.fold": lambda: F.fold(grad, size, workload.kernel, dilation, padding, stride),
            "grid_sample": _Backward(self, emulation, grad),
            "ours": _Backward(self, ours, grad),
        }
        if grad.device.type == "cpu" and grad.element_size() == 2:
            del jobs["grid_sample"]  # torch's kernel crashes on large grids in a half type
        if parts:
            jobs["ours, input only"] = _Backward(self, ours, grad, rates=False)
            jobs["ours, map only"] = _Backward(self, ours, grad, input=False)
        if deterministic and grad.device.type == "cuda":
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
