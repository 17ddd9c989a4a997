#!/usr/bin/env python3
"""Times two builds of the package on one CUDA device, in turns, and prints the ratio of their times.

    pip install --no-deps --target OLD old.whl && pip install --no-deps --target NEW new.whl
    python benchmarks/compare_builds.py OLD NEW [--rounds 3] [--json FILE]

Each round starts a process for each build, which times every case on the device's clock with cold caches. The figure of
a case is the least of its rounds' medians, since what disturbs a measurement only ever adds to it.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from statistics import median
from typing import Any

R = (4, 64, 128, 128)
# name: (shape, kernel size, base dilation, largest rate, dtype, deterministic)
CASES = {
    "R ones": (R, 3, 1, 1.0, "float32", False),
    "R to 3": (R, 3, 1, 3.0, "float32", False),
    "R float16 ones": (R, 3, 1, 1.0, "float16", False),
    "R float16 to 3": (R, 3, 1, 3.0, "float16", False),
    "R bfloat16 to 3": (R, 3, 1, 3.0, "bfloat16", False),
    "R deterministic ones": (R, 3, 1, 1.0, "float32", True),
    "R deterministic to 3": (R, 3, 1, 3.0, "float32", True),
    "R float16 deterministic to 3": (R, 3, 1, 3.0, "float16", True),
    "R k5 to 2": (R, 5, 1, 2.0, "float32", False),
    "R k7 ones": (R, 7, 1, 1.0, "float32", False),
    "R k7 float16 ones": (R, 7, 1, 1.0, "float16", False),
    "C1 512x512 to 2": ((4, 1, 512, 512), 3, 1, 2.0, "float32", False),
    "256x64x64 to 2": ((8, 256, 64, 64), 3, 1, 2.0, "float32", False),
    "k4x2, any kernel": ((4, 64, 128, 128), (4, 2), 1, 1.5, "float32", False),
    "tiny": ((1, 8, 64, 64), 3, 1, 1.0, "float32", False),
}


def jobs(case: tuple[Any, ...]) -> Iterator[tuple[str, Callable[[], object]]]:
    import torch
    from dynamic_dilation_unfold import dynamic_dilation_unfold

    shape, kernel, dilation, rate, dtype, deterministic = case
    torch.use_deterministic_algorithms(deterministic)
    kernel = (kernel, kernel) if isinstance(kernel, int) else kernel
    padding = tuple(dilation * (k - 1) // 2 for k in kernel)
    torch.manual_seed(0)
    x = torch.randn(shape, device="cuda", dtype=getattr(torch, dtype), requires_grad=True)
    sizes = [s + 2 * p - dilation * (k - 1) for s, p, k in zip(shape[2:], padding, kernel, strict=True)]
    rates = torch.empty(shape[0], 1, *sizes, device="cuda").uniform_(0.5, rate) if rate > 1 else None
    rates = torch.ones(shape[0], 1, *sizes, device="cuda") if rates is None else rates
    rates.requires_grad_()
    call = lambda: dynamic_dilation_unfold(x, kernel, rates, padding=padding, dilation=dilation)  # noqa: E731
    columns = call()
    grad = torch.randn_like(columns)
    with torch.no_grad():
        yield "forward", call
    yield "backward", lambda: torch.autograd.grad(columns, (x, rates), grad, retain_graph=True)


def worker() -> None:
    import torch

    flush = torch.empty(1 << 30, dtype=torch.uint8, device="cuda")

    def microseconds(job: Callable[[], object], runs: int = 40) -> float:
        for _ in range(5):
            job()
        pairs = []
        for _ in range(runs):
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            flush.fill_(0)
            begin.record()
            job()
            end.record()
            pairs.append((begin, end))
        torch.cuda.synchronize()
        return median(begin.elapsed_time(end) for begin, end in pairs) * 1e3

    times = {}
    for name, case in CASES.items():
        for what, job in jobs(case):
            times[f"{name}: {what}"] = microseconds(job)
    print(json.dumps({"device": torch.cuda.get_device_name(), "times": times}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("builds", nargs="*", metavar="FOLDER", help="two folders that hold the installed package")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", metavar="FILE")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        return worker()
    if len(args.builds) != 2:
        parser.error("two folders are needed")
    best: list[dict[str, float]] = [{}, {}]
    device = ""
    for _ in range(args.rounds):
        for times, folder in zip(best, args.builds, strict=True):
            environment = {**os.environ, "PYTHONPATH": os.path.abspath(folder)}
            command = [sys.executable, os.path.abspath(__file__), "--worker"]
            run = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, cwd="/")
            result = json.loads(run.stdout)
            device = result["device"]
            for name, value in result["times"].items():
                times[name] = min(value, times.get(name, value))
    print(f"{device}, microseconds: {args.builds[0]}, {args.builds[1]}, ratio")
    for name, old in best[0].items():
        print(f"{name:42s} {old:8.1f} {best[1][name]:8.1f} {best[1][name] / old:6.3f}")
    if args.json:
        with open(args.json, "w") as file:
            json.dump({"device": device, "builds": args.builds, "times": best}, file, indent=1)


if __name__ == "__main__":
    main()
