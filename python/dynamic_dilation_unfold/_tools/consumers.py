"""The benchmark's workload "consumers": operators without columns beside the same on columns of the unfold.

Both are checked against each other in the type that is timed. The columns' forms are compiled, where torch can; a form
that cannot be compiled or has no memory is left out, and the reason said.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..functional import (
    dynamic_dilation_aggregate,
    dynamic_dilation_attention,
    dynamic_dilation_correlate,
    dynamic_dilation_coverage,
    dynamic_dilation_unfold,
)
from .bench_jobs import TOLERANCE, relative_difference
from .tables import aligned
from .timing import Job, measure_directions, seconds
from .workloads import R, Workload, make_map

Form = Callable[..., Tensor]


@dataclass(frozen=True)
class Consumer:
    operator: str
    workload: Workload  # with a map and a dtype
    heads: int


def _on_r() -> list[Workload]:
    found = []
    for dtype, maps in ((torch.float32, ("0.5-3", "0.5-16")), (torch.float16, ("0.5-3",))):
        found += [replace(R, dtype=dtype, map=kind, channels_last=last) for last in (False, True) for kind in maps]
    return found


_K7 = Workload((8, 96, 56, 56), 7, padding=3, dtype=torch.float32, map="0.5-3", channels_last=True)
CONSUMERS = [
    *(Consumer(operator, workload, 4) for operator in ("aggregate", "correlate", "attention") for workload in _on_r()),
    *(Consumer("attention", replace(_K7, dtype=dtype), 3) for dtype in (torch.float32, torch.float16)),
]


def _columns(image: Tensor, rates: Tensor, of: Consumer) -> Tensor:
    """``[B, heads, C / heads, taps, Ho, Wo]``."""
    work = of.workload
    columns = dynamic_dilation_unfold(image, work.kernel, rates, padding=work.padding)
    return columns.view(*columns.shape[:1], of.heads, -1, work.kernel**2, *rates.shape[-2:])


def _aggregate(columns: Tensor, weights: Tensor) -> Tensor:
    return (columns * weights.unsqueeze(2)).sum(3, dtype=torch.float32).to(columns.dtype).flatten(1, 2)


def _correlate(query: Tensor, columns: Tensor) -> Tensor:
    queries = query.reshape(*columns.shape[:3], *query.shape[-2:]).unsqueeze(3)
    return (columns * queries).sum(2, dtype=torch.float32).to(columns.dtype)


def _aggregate_columns(image: Tensor, weights: Tensor, rates: Tensor, of: Consumer) -> Tensor:
    return _aggregate(_columns(image, rates, of), weights)


def _correlate_columns(query: Tensor, key: Tensor, rates: Tensor, of: Consumer) -> Tensor:
    return _correlate(query, _columns(key, rates, of))


def _attention_columns(query: Tensor, key: Tensor, value: Tensor, rates: Tensor, of: Consumer) -> Tensor:
    work = of.workload
    covered = dynamic_dilation_coverage(rates, key.shape[-2:], work.kernel, padding=work.padding)
    scores = _correlate(query * (key.shape[1] / of.heads) ** -0.5, _columns(key, rates, of)).float()
    weights = (scores - scores.amax(2, keepdim=True)).exp()
    weights = weights / (weights * covered).sum(2, keepdim=True).clamp_min(1e-30)
    return _aggregate(_columns(value, rates, of), weights.to(value.dtype))


def _ours(operator: Form, *tensors: Tensor, of: Consumer) -> Tensor:
    heads = {} if operator is dynamic_dilation_aggregate else {"heads": of.heads}
    return operator(*tensors, of.workload.kernel, padding=of.workload.padding, **heads)


_FORMS: dict[str, tuple[Form, Form]] = {
    "aggregate": (partial(_ours, dynamic_dilation_aggregate), _aggregate_columns),
    "correlate": (partial(_ours, dynamic_dilation_correlate), _correlate_columns),
    "attention": (partial(_ours, dynamic_dilation_attention), _attention_columns),
}


def make_tensors(of: Consumer, device: torch.device) -> tuple[Tensor, ...]:
    """The operator's tensor arguments, which all want gradients."""
    work, generator = of.workload, torch.Generator(device).manual_seed(0)
    assert work.dtype
    assert work.map
    rates = make_map(work.map, work.map_shape(), work.dtype, device)
    positions = rates.shape[-2:]

    def normal(*shape: int) -> Tensor:
        tensor = torch.randn(shape, generator=generator, device=device).to(work.dtype)
        channels_last = work.channels_last and tensor.dim() == 4
        return tensor.contiguous(memory_format=torch.channels_last) if channels_last else tensor

    image, query = normal(*work.shape), normal(*work.shape[:2], *positions)
    tensors = {
        "aggregate": (image, normal(work.shape[0], of.heads, work.kernel**2, *positions)),
        "correlate": (query, image),
        "attention": (query, image, normal(*work.shape)),
    }[of.operator]
    return tuple(tensor.requires_grad_() for tensor in (*tensors, rates))


def _step(form: Form, tensors: tuple[Tensor, ...], of: Consumer, grad: Tensor) -> tuple[Tensor, ...]:
    return torch.autograd.grad(form(*tensors, of=of), tensors, grad)


def measure_consumer(of: Consumer, device: torch.device, budget: float, compiled: bool) -> dict[str, Any]:
    """Seconds and bytes of a forward without gradients, and of a forward and backward to all arguments."""
    work, (ours, columns) = of.workload, _FORMS[of.operator]
    assert work.dtype
    tensors = make_tensors(of, device)
    fixed = tuple(tensor.detach() for tensor in tensors)
    record: dict[str, Any] = {
        "workload": "consumers",
        "operator": of.operator,
        "label": work.label(),
        "heads": of.heads,
        "dtype": str(work.dtype).removeprefix("torch."),
        "map": work.map,
        "channels_last": work.channels_last,
        "unavailable": {},
        "busy": None,
    }
    grad = torch.randn_like(ours(*fixed, of=of))
    if compiled:
        torch.compiler.reset()  # it gives up on a function that it has compiled for eight shapes and types
    forms = {"ours": ours, "columns": torch.compile(columns) if compiled else columns}
    steps: dict[str, dict[str, Job]] = {"forward": {}, "step": {}}
    found = {}
    for name, form in forms.items():
        try:
            found[name] = form(*fixed, of=of), *_step(form, tensors, of, grad)
        except Exception as error:  # what a compiler raises is its own
            if name == "ours":
                raise
            record["unavailable"][name] = (str(error).splitlines() or [type(error).__name__])[0]
            continue
        steps["forward"][name] = partial(form, *fixed, of=of)
        steps["step"][name] = partial(_step, form, tensors, of, grad)
    differences = [relative_difference(*pair) for pair in zip(found["ours"], found.get("columns", ()), strict=False)]
    record["differences"] = dict(
        zip(("output", *(f"gradient {i}" for i in range(len(tensors)))), differences, strict=False)
    )
    # The columns' form rounds what is summed, and so its gradients, where this does not.
    record["wrong"] = not max(differences, default=0.0) < 4 * TOLERANCE[work.dtype]
    del found
    if not record["wrong"]:
        measure_directions(record, steps, device, budget)
    return record


def report(records: list[dict[str, Any]]) -> str:
    """A line for each: times of both forms, and what a step allocates."""
    heads = ["operator", "input", "dtype", "map", "heads"]
    heads += [f"{direction} {name}" for direction in ("forward", "step") for name in ("ours", "columns")]
    rows = [[*heads, "step ours", "step columns"]]
    for record in records:
        row = [record["operator"], record["label"], record["dtype"], record["map"], str(record["heads"])]
        for direction in ("forward", "step"):
            times = record[direction]
            row += [seconds(times[name]) if name in times else "-" for name in ("ours", "columns")]
        peaks = record["step bytes"]
        row += [f"{peaks[name] / 1e6:.0f} MB" if peaks.get(name) else "-" for name in ("ours", "columns")]
        rows.append(row)
    text = "\nconsumers: forward, and a step (forward and backward to all arguments), beside the same on columns"
    reasons = {f"  no {name}: {why}" for record in records for name, why in record["unavailable"].items()}
    return "\n".join([text, *aligned(rows, left=4), *sorted(reasons)])
