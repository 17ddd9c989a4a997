"""Time the operator beside F.unfold, F.fold and an emulation with F.grid_sample.

Each workload is checked against the reference before it is timed. Times are medians of runs that take turns. The floors
are measured too: what it costs to fill the output once, and to read the gradient once.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F

from .. import cost
from ..functional import dynamic_dilation_unfold
from . import bench_plot, bench_report, consumers, convolution
from .arguments import claim, count, count_or_zero, duration, resolve_device, shape
from .bench_jobs import TOLERANCE, Problem, ours
from .machine import environment, free_memory
from .terminal import Bar, coloured, write
from .timing import Job, Times, busy, measure
from .workloads import MAPS, WORKLOADS, Workload, map_kind, small

_DTYPES = {str(dtype).removeprefix("torch."): dtype for dtype in TOLERANCE}
_OWN = "own"  # the workload of --shape
_CONVOLUTION = "convolution"  # likewise
_CONSUMERS = "consumers"  # operators without columns, which are measured otherwise


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", default="cpu", help="torch device (default: %(default)s)")
    which = parser.add_mutually_exclusive_group()
    which.add_argument(
        "--workload",
        nargs="+",
        choices=[*WORKLOADS, _CONSUMERS, _CONVOLUTION],
        default=["R"],
        help="R: 4x64x128x128, kernel 3; models: shapes of real models; shapes: kernels, strides, groups, "
        "few channels, small maps; sizes: from 1 MB to 8 GB of output; rates: rates up to 40 and wide dilations, each "
        "with a map and a type of its own; consumers: aggregate, correlate and attention beside the same on columns, "
        "alike; convolution: beside F.conv2d, alike (default: R)",
    )
    which.add_argument("--shape", type=shape, metavar="BxCxHxW", help="a shape of your own, such as 2x256x33x33")
    own = parser.add_argument_group("options of --shape")
    own.add_argument("--kernel", type=count, metavar="K", help="taps of the window along each side (default: 3)")
    own.add_argument("--stride", type=count, metavar="S", help="pixels between positions (default: 1)")
    own.add_argument("--dilation", type=count, metavar="D", help="base dilation in pixels (default: 1)")
    own.add_argument("--groups", type=count, metavar="G", help="channel groups with a map each (default: 1)")
    own.add_argument(
        "--padding", type=count_or_zero, metavar="P", help="zeros around the image (default: half of the window)"
    )
    own.add_argument("--channels-last", action="store_true", help="an input in torch.channels_last")
    parser.add_argument("--dtype", nargs="+", choices=_DTYPES, default=["float32"], help="default: float32")
    parser.add_argument(
        "--map",
        nargs="+",
        type=map_kind,
        default=list(MAPS),
        metavar="MAP",
        help=f"{', '.join(MAPS)}, or a range of rates such as 0.5-9 (default: the named ones)",
    )
    parser.add_argument("--seconds", type=duration, default=0.5, help="time for each function (default: %(default)s)")
    parser.add_argument("--quick", action="store_true", help="batches of one and few repetitions: for a try")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures to FILE")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw the figures into FILE (png, svg, pdf ...)")


def own_workload(args: argparse.Namespace) -> Workload | None:
    """That of ``--shape``, checked; exits with the reason where there is no such call."""
    given = {name: getattr(args, name) for name in ("kernel", "stride", "dilation", "groups", "padding")}
    if args.shape is None:
        for name, value in given.items():
            if value is not None:
                raise SystemExit(f"--{name} goes with --shape; the other workloads have their own")
        if args.channels_last:
            raise SystemExit("--channels-last goes with --shape; the other workloads have their own")
        return None
    kernel, dilation = given["kernel"] or 3, given["dilation"] or 1
    padding = dilation * (kernel - 1) // 2 if given["padding"] is None else given["padding"]
    workload = Workload(
        args.shape, kernel, given["stride"] or 1, padding, dilation, given["groups"] or 1, args.channels_last
    )
    try:  # the operator's own check, without memory
        input, rates = (torch.empty(sizes, device="meta") for sizes in (workload.shape, workload.map_shape()))
        ours(input, rates, workload)
    except (ValueError, RuntimeError) as error:
        raise SystemExit(f"Cannot measure {workload}: {str(error).splitlines()[0]}") from None
    return workload


def run(args: argparse.Namespace) -> int:
    own = own_workload(args)
    device = resolve_device(args.device)
    budget = 0.05 if args.quick else args.seconds
    if args.plot:
        bench_plot.require(args.plot)
        claim(args.plot)
    if args.json:
        claim(args.json)
    about = environment(device)
    print(bench_report.heading(about))
    results: list[dict[str, Any]] = []
    sets = {_OWN: [own]} if own else {name: WORKLOADS[name] for name in args.workload if name in WORKLOADS}
    problems = {name: _problems(workloads, args, device) for name, workloads in sets.items()}
    without_columns = _consumers(args, device) if not own and _CONSUMERS in args.workload else []
    convolved = convolution.convolutions(device) if not own and _CONVOLUTION in args.workload else []
    with Bar(sum(map(len, problems.values())) + len(without_columns) + len(convolved) + 1) as bar:
        for name, found in problems.items():
            records = []
            for workload, kind, dtype in found:
                bar.begin(f"{name}: {workload.label()}, {str(dtype).removeprefix('torch.')}, {kind}")
                records.append(measure_problem(name, workload, kind, dtype, device, budget))
                bar.end()
                if records[-1]["wrong"]:
                    write(f"Not timed, the result is wrong: {records[-1]['differences']}")
                    return 1
            if records:
                write(bench_report.full(records) if name in ("R", _OWN) else bench_report.compact(name, records))
            results += records
        records = []
        for consumer in without_columns:
            work = consumer.workload
            bar.begin(f"{consumer.operator}: {work.label()}, {str(work.dtype).removeprefix('torch.')}, {work.map}")
            records.append(consumers.measure_consumer(consumer, device, budget, compiled=not args.quick))
            bar.end()
            if records[-1]["wrong"]:
                write(f"Not timed, the two forms differ: {records[-1]['differences']}")
                return 1
        if records:
            write(consumers.report(records))
        results += records
        records = []
        for each in convolved:
            chosen = replace(each, workload=small(each.workload)) if args.quick else each
            bar.begin(f"convolution: {chosen.workload.label()}, {chosen.workload.dtype}, {chosen.workload.map}")
            records.append(convolution.measure_convolution(chosen, device, budget))
            bar.end()
            if records[-1]["wrong"]:
                write(f"Not timed, the result is not F.conv2d's: {records[-1]['differences']}")
                return 1
        if records:
            write(convolution.report(records))
        results += records
        if own and not results:
            return 1
        bar.begin("calls on a tiny tensor")
        overhead, warning = call_overhead(device, args.quick)
    print(bench_report.overhead(overhead))
    for text in [*(record["busy"] for record in results), warning]:
        if text:
            print(coloured(text, "yellow", sys.stdout))
            break
    if args.json:
        figures = {"about": about, "options": options(args), "results": results, "call_overhead": overhead}
        args.json.write_text(json.dumps(figures, indent=1) + "\n")
        print(f"figures: {args.json}")
    if args.plot:
        bench_plot.draw(results, about, args.plot)
        print(f"plot: {args.plot}")
    return 0


def _problems(
    workloads: list[Workload], args: argparse.Namespace, device: torch.device
) -> list[tuple[Workload, str, torch.dtype]]:
    """Workload, map and dtype of each that there is memory for."""
    found = []
    free = free_memory(device)
    for workload in workloads:
        workload = small(workload) if args.quick else workload
        for dtype in [workload.dtype] if workload.dtype else [_DTYPES[d] for d in args.dtype]:
            if _fits(workload, dtype, workload.bytes_needed(dtype.itemsize), free):
                found += [(workload, kind, dtype) for kind in ([workload.map] if workload.map else args.map)]
    return found


def _consumers(args: argparse.Namespace, device: torch.device) -> list[consumers.Consumer]:
    """Those that there is memory for, whose columns' forms have two unfolds."""
    found = []
    free = free_memory(device)
    for consumer in consumers.CONSUMERS:
        if args.quick:
            consumer = replace(consumer, workload=small(consumer.workload))
        dtype = consumer.workload.dtype
        assert dtype
        if _fits(consumer.workload, dtype, 2 * consumer.workload.bytes_needed(dtype.itemsize), free):
            found.append(consumer)
    return found


def _fits(workload: Workload, dtype: torch.dtype, need: int, free: int) -> bool:
    if need > free:
        amounts = f"needs {need / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free"
        print(f"left out: {workload}, {dtype} {amounts}", file=sys.stderr)
    return need <= free


def measure_problem(
    name: str, workload: Workload, kind: str, dtype: torch.dtype, device: torch.device, budget: float
) -> dict[str, Any]:
    problem = Problem.make(workload, kind, dtype, device)
    differences = problem.validate()
    sizes = (workload.shape, workload.map_shape(), workload.kernel, dtype, problem.rates.dtype)
    record: dict[str, Any] = {
        "workload": name,
        "label": workload.label(),
        "shape": workload.shape,
        "kernel": workload.kernel,
        "stride": workload.stride,
        "padding": workload.padding,
        "dilation": workload.dilation,
        "groups": workload.groups,
        "channels_last": workload.channels_last,
        "dtype": str(dtype).removeprefix("torch."),
        "map": kind,
        "output_bytes": workload.output_elements() * dtype.itemsize,
        "bytes": {"forward": cost.unfold(*sizes).bytes, "backward": cost.unfold_backward(*sizes).bytes},
        "differences": differences,
        "wrong": not max(differences.values()) < TOLERANCE[dtype],
        "unavailable": {},
        "busy": None,
    }
    if record["wrong"]:
        return record
    whole = name in ("R", _OWN)
    for direction, jobs in (
        ("forward", problem.forward_jobs()),
        ("backward", problem.backward_jobs(parts=whole, deterministic=whole or name == "rates")),
    ):
        for key, job in list(jobs.items()):
            try:
                job()
            except RuntimeError as error:  # a peer without a kernel for this dtype, or out of memory
                if key.startswith("ours"):
                    raise
                record["unavailable"][f"{direction}: {key}"] = str(error).splitlines()[0]
                del jobs[key]
        times = measure(jobs, device, budget)
        record[direction] = {key: value.median for key, value in times.items()}
        record["busy"] = record["busy"] or busy(times)
    return record


def call_overhead(device: torch.device, quick: bool) -> tuple[dict[str, dict[str, float]], str | None]:
    """Seconds of wall time a call on a tiny tensor, gradients on: the price of getting to the kernel and back.

    The least of several batches of calls, and a warning if they differ much.
    """
    workload = Workload((1, 4, 8, 8), 3)
    problem = Problem.make(workload, "ones", torch.float32, device)
    input, rates = problem.input.requires_grad_(), problem.rates.requires_grad_()
    fixed, grad = rates.detach(), torch.ones_like(ours(input, rates, workload))

    def unfold() -> torch.Tensor:
        return F.unfold(input, workload.kernel, padding=workload.padding)

    def unfold_and_back() -> Any:
        return torch.autograd.grad(unfold(), input, grad)

    def dynamic(rates: torch.Tensor) -> torch.Tensor:
        return dynamic_dilation_unfold(input, workload.kernel, rates, padding=workload.padding)

    jobs: dict[str, dict[str, Job]] = {
        "forward": {"F.unfold": unfold, "ours": lambda: dynamic(rates)},
        "forward and backward, input only": {
            "F.unfold": unfold_and_back,
            "ours": lambda: torch.autograd.grad(dynamic(fixed), input, grad),
        },
        # F.unfold has no second gradient to compute.
        "forward and backward": {
            "F.unfold": unfold_and_back,
            "ours": lambda: torch.autograd.grad(dynamic(rates), (input, rates), grad),
        },
    }
    calls, batches = (10, 15) if quick else (50, 100)  # short batches: some meet a moment of rest

    def batch(job: Job) -> float:
        start = time.perf_counter()
        for _ in range(calls):
            job()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return (time.perf_counter() - start) / calls

    figures, warning = {}, None
    for name, pair in jobs.items():
        samples = [{key: batch(job) for key, job in pair.items()} for _ in range(batches + 1)]
        times = {key: Times.of(sample[key] for sample in samples[1:]) for key in pair}
        figures[name] = {key: value.least for key, value in times.items()}
        warning = warning or busy(times)
    return figures, warning


def options(args: argparse.Namespace) -> dict[str, Any]:
    names = ("device", "workload", "shape", "dtype", "map", "seconds", "quick")
    return {key: getattr(args, key) for key in names}
