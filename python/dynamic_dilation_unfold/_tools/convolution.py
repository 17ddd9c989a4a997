"""The benchmark's workload "convolution": dynamic_dilation_conv2d beside F.conv2d, which has no map.

With a map of ones both are checked against each other in the type that is timed. A step is forward and backward to all
arguments; bytes are what it allocates at most.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from .._functions.conv2d import dynamic_dilation_conv2d
from .bench_jobs import TOLERANCE, relative_difference
from .tables import aligned
from .timing import Job, measure_directions, seconds
from .workloads import R, Workload, make_map

_OURS, _PLAIN, _MASKED = "ours", "F.conv2d", "with a mask"


@dataclass(frozen=True)
class Convolution:
    workload: Workload  # with a map and a dtype
    outputs: int
    groups: int = 1  # of the weight, not of the map


def _in_types(workload: Workload, outputs: int, maps: tuple[str, ...], groups: int = 1) -> list[Convolution]:
    return [
        Convolution(replace(workload, dtype=dtype, map=kind, channels_last=last), outputs, groups)
        for dtype in (torch.bfloat16, torch.float16, torch.float32)
        for last in (True, False)
        for kind in maps
    ]


_ATROUS = Workload((4, 256, 64, 64), 3, padding=12, dilation=12)
ON_CUDA = [
    *_in_types(R, 64, ("0.5-3", "0.5-16")),
    *_in_types(R, 256, ("0.5-3",)),
    *_in_types(_ATROUS, 256, ("0.5-1.5",)),
    *_in_types(R, 64, ("0.5-3",), groups=64),  # depthwise
]
ON_CPU = [
    Convolution(Workload((2, 64, 64, 64), 3, dtype=torch.float32, map="0.5-3"), 64),
    Convolution(Workload((8, 256, 33, 33), 3, padding=12, dilation=12, dtype=torch.float32, map="0.5-1.5"), 256),
    Convolution(Workload((2, 64, 64, 64), 3, dtype=torch.float32, map="0.5-3"), 64, groups=64),
]


def convolutions(device: torch.device) -> list[Convolution]:
    return ON_CUDA if device.type == "cuda" else ON_CPU


def _ours(x: Tensor, weight: Tensor, rates: Tensor, mask: Tensor | None = None, *, of: Workload) -> Tensor:
    return dynamic_dilation_conv2d(x, weight, rates, None, of.stride, of.padding, of.dilation, mask)


def _plain(x: Tensor, weight: Tensor, *, of: Workload) -> Tensor:
    return F.conv2d(x, weight, None, of.stride, of.padding, of.dilation, x.shape[1] // weight.shape[1])


def _step(form: Callable[..., Tensor], tensors: tuple[Tensor, ...], grad: Tensor) -> tuple[Tensor, ...]:
    return torch.autograd.grad(form(*tensors), tensors, grad)


def measure_convolution(of: Convolution, device: torch.device, budget: float) -> dict[str, Any]:
    """Seconds and bytes of a forward without gradients, and of a forward and backward to all arguments."""
    work, generator = of.workload, torch.Generator(device).manual_seed(0)
    assert work.dtype
    assert work.map

    def normal(*shape: int) -> Tensor:
        tensor = torch.randn(shape, generator=generator, device=device).to(work.dtype)
        last = work.channels_last and tensor.dim() == 4
        return tensor.contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)

    x, weight = normal(*work.shape), normal(of.outputs, work.shape[1] // of.groups, work.kernel, work.kernel)
    rates = make_map(work.map, work.map_shape(), torch.float32 if work.dtype.itemsize == 2 else work.dtype, device)
    mask = normal(work.shape[0], 1, work.kernel**2, *rates.shape[-2:]).sigmoid()
    ours, plain = partial(_ours, of=work), partial(_plain, of=work)
    expected = plain(x, weight)
    difference = relative_difference(ours(x, weight, torch.ones_like(rates)), expected)
    record: dict[str, Any] = {
        "workload": "convolution",
        "label": work.label(),
        "outputs": of.outputs,
        "weight_groups": of.groups,
        "dtype": str(work.dtype).removeprefix("torch."),
        "map": work.map,
        "channels_last": work.channels_last,
        "differences": {"output": difference},
        "wrong": not difference < 4 * TOLERANCE[work.dtype],
        "busy": None,
    }
    if record["wrong"]:
        return record
    forms: dict[str, tuple[Callable[..., Tensor], tuple[Tensor, ...]]] = {
        _OURS: (ours, (x, weight, rates)),
        _MASKED: (ours, (x, weight, rates, mask)),
        _PLAIN: (plain, (x, weight)),
    }
    grad = torch.randn_like(expected)
    leaves = {name: tuple(t.detach().requires_grad_() for t in tensors) for name, (_, tensors) in forms.items()}
    jobs: dict[str, dict[str, Job]] = {
        "forward": {name: partial(form, *tensors) for name, (form, tensors) in forms.items()},
        "step": {name: partial(_step, form, leaves[name], grad) for name, (form, _) in forms.items()},
    }
    measure_directions(record, jobs, device, budget)
    return record


def report(records: list[dict[str, Any]]) -> str:
    """A line for each, and how many times F.conv2d's time and memory ours takes."""
    names = (_OURS, _MASKED, _PLAIN)
    rows = [["input", "outputs", "dtype", "map"]]
    rows[0] += [f"{direction} {name}" for direction in ("forward", "step") for name in names]
    rows[0] += [f"step {name}" for name in (_OURS, _PLAIN)] + ["forward", "step", "memory"]
    for record in records:
        groups = f" in {record['weight_groups']} groups" if record["weight_groups"] > 1 else ""
        row = [record["label"], f"{record['outputs']}{groups}", record["dtype"], record["map"]]
        row += [seconds(record[direction][name]) for direction in ("forward", "step") for name in names]
        row += [f"{record['step bytes'][name] / 1e6:.0f} MB" for name in (_OURS, _PLAIN)]
        for figure in ("forward", "step", "step bytes"):
            row.append(f"{record[figure][_OURS] / max(record[figure][_PLAIN], 1e-12):.2f}x")
        rows.append(row)
    text = "\nconvolution: forward, and a step (forward and backward to all arguments), beside F.conv2d without a map"
    return "\n".join([text, *aligned(rows, left=4)])
