"""Time the operator beside F.unfold, F.fold and an emulation with F.grid_sample.

Each workload is checked against the reference before it is timed. Times are medians. The floors are measured too: what
it costs to fill the output once, and to read the gradient once.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import time
from datetime import datetime, timezone
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch.nn import functional as F

from .. import __version__, cost
from ..functional import dynamic_dilation_unfold
from . import bench_report
from .bench_jobs import MAPS, TOLERANCE, WORKLOADS, Problem, Workload, ours, small
from .timing import Job, measure, resolve_device

_DTYPES = {str(dtype).removeprefix("torch."): dtype for dtype in TOLERANCE}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", default="cpu", help="torch device (default: %(default)s)")
    parser.add_argument(
        "--workload",
        nargs="+",
        choices=WORKLOADS,
        default=["R"],
        help="R: 4x64x128x128, kernel 3; models: shapes of real models; shapes: kernels, strides, groups, "
        "few channels, small maps; sizes: from 1 MB to 8 GB of output (default: R)",
    )
    parser.add_argument("--dtype", nargs="+", choices=_DTYPES, default=["float32"], help="default: float32")
    parser.add_argument("--map", nargs="+", choices=MAPS, default=list(MAPS), help="default: all")
    parser.add_argument("--seconds", type=float, default=0.5, help="time for each function (default: %(default)s)")
    parser.add_argument("--quick", action="store_true", help="batches of one and few repetitions: for a try")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures to FILE")


def run(args: argparse.Namespace) -> int:
    device = resolve_device(args.device)
    budget = 0.05 if args.quick else args.seconds
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)  # a path that cannot be fails now, not after the run
    about = environment(device)
    print(bench_report.heading(about))
    results = []
    for name in args.workload:
        records = []
        for workload in WORKLOADS[name]:
            workload = small(workload) if args.quick else workload
            for dtype in [workload.dtype] if workload.dtype else [_DTYPES[d] for d in args.dtype]:
                if workload.bytes_needed(dtype.itemsize) > free_memory(device):
                    print(f"left out, more memory needed than there is: {workload}", file=sys.stderr)
                    continue
                for kind in args.map:
                    print(f"measuring {workload}, {dtype}, map {kind} ...", file=sys.stderr, flush=True)
                    record = measure_problem(name, workload, kind, dtype, device, budget)
                    records.append(record)
                    if record["wrong"]:
                        print(f"Not timed, the result is wrong: {record['differences']}")
                        return 1
        print(bench_report.full(records) if name == "R" else bench_report.compact(name, records))
        results += records
    overhead = call_overhead(device, args.quick)
    print(bench_report.overhead(overhead))
    if args.json:
        figures = {"about": about, "options": options(args), "results": results, "call_overhead": overhead}
        args.json.write_text(json.dumps(figures, indent=1) + "\n")
        print(f"figures: {args.json}")
    return 0


def measure_problem(
    name: str, workload: Workload, kind: str, dtype: torch.dtype, device: torch.device, budget: float
) -> dict[str, Any]:
    problem = Problem.make(workload, kind, dtype, device)
    differences = problem.validate()
    sizes = (workload.shape, workload.map_shape(), workload.kernel, dtype, problem.rates.dtype)
    record: dict[str, Any] = {
        "workload": name,
        "shape": workload.shape,
        "kernel": workload.kernel,
        "stride": workload.stride,
        "padding": workload.padding,
        "groups": workload.groups,
        "dtype": str(dtype).removeprefix("torch."),
        "map": kind,
        "output_bytes": workload.output_elements() * dtype.itemsize,
        "bytes": {"forward": cost.unfold(*sizes).bytes, "backward": cost.unfold_backward(*sizes).bytes},
        "differences": differences,
        "wrong": not max(differences.values()) < TOLERANCE[dtype],
        "unavailable": {},
    }
    if record["wrong"]:
        return record
    for direction, jobs in (
        ("forward", problem.forward_jobs()),
        ("backward", problem.backward_jobs(thorough=name == "R")),
    ):
        for key, job in list(jobs.items()):
            try:
                job()
            except RuntimeError as error:  # a peer without a kernel for this dtype, or out of memory
                if key.startswith("ours"):
                    raise
                record["unavailable"][f"{direction}: {key}"] = str(error).splitlines()[0]
                del jobs[key]
        record[direction] = measure(jobs, device, budget)
    return record


def call_overhead(device: torch.device, quick: bool) -> dict[str, dict[str, float]]:
    """Seconds of wall time a call on a tiny tensor, gradients on: the price of getting to the kernel and back."""
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
    calls, batches = (50, 3) if quick else (500, 11)

    def batch(job: Job) -> float:
        start = time.perf_counter()
        for _ in range(calls):
            job()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return (time.perf_counter() - start) / calls

    figures = {}
    for name, pair in jobs.items():
        samples = [{key: batch(job) for key, job in pair.items()} for _ in range(batches + 1)]
        figures[name] = {key: median(sample[key] for sample in samples[1:]) for key in pair}
    return figures


def free_memory(device: torch.device) -> int:
    if device.type == "cuda":
        torch.cuda.empty_cache()
        return torch.cuda.mem_get_info(device)[0]
    try:
        with open("/proc/meminfo") as file:
            fields = dict(line.split(":", 1) for line in file)
        return int(fields["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError):
        return 4 << 30


def environment(device: torch.device) -> dict[str, Any]:
    about = {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "device": str(device),
        "device_name": torch.cuda.get_device_name(device) if device.type == "cuda" else cpu_name(),
        "cpu": cpu_name(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "dynamic_dilation_unfold": __version__,
    }
    return about | commit()


def cpu_name() -> str:
    try:
        with open("/proc/cpuinfo") as file:
            return next(line.split(":", 1)[1].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def commit() -> dict[str, Any]:
    """Of the checkout that this file is tracked in; nothing is known of an installed copy."""

    def git(*arguments: str) -> str:
        here = Path(__file__).resolve()
        command = ["git", "-C", str(here.parent), *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", Path(__file__).name)
        return {"commit": git("rev-parse", "HEAD"), "modified": bool(git("status", "--porcelain", "-uno"))}
    except (OSError, subprocess.CalledProcessError):
        return {"commit": None}


def options(args: argparse.Namespace) -> dict[str, Any]:
    return {key: getattr(args, key) for key in ("device", "workload", "dtype", "map", "seconds", "quick")}
