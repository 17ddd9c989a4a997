"""What the experiments of this folder share: a layer with three kinds of rates, a training loop, a table over seeds.

Each compares networks that differ in nothing but where their rates come from:

fixed      a rate that stays what it is
learnt     one rate for a layer, trained with the weights
predicted  a rate for each position, from a small convolution over what the network sees

All have that small convolution and are trained alike, for as many steps. Where it predicts no rates, it gates what the
layer returns, which is as adaptive as a network without our operator gets: so the number of parameters is the same, but
for the learnt rate itself. All begin at the same rate, with the gate at 1.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from dynamic_dilation_unfold import dynamic_dilation_conv2d
from dynamic_dilation_unfold._tools.machine import environment
from dynamic_dilation_unfold._tools.tables import aligned
from dynamic_dilation_unfold._tools.terminal import progress, write
from torch import Tensor, nn

MAX_RATE = 5.0


class Rates(nn.Module):
    """Rates ``[B or 1, 1, H, W]`` between 0 and MAX_RATE, and a gate ``[B or 1, 1, H, W]`` between 0 and 2."""

    def __init__(self, kind: str, channels: int, start: float = 1.0) -> None:
        super().__init__()
        self.kind, self.start = kind, start
        self.predictor = nn.Conv2d(channels, 1, 5, padding=2)
        nn.init.zeros_(self.predictor.weight)
        nn.init.zeros_(self.predictor.bias)
        if kind == "learnt":
            self.rate = nn.Parameter(torch.zeros(1, 1, 1, 1))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        found, one = self.predictor(x), x.new_ones(1, 1, 1, 1)
        if self.kind == "predicted":
            return self._bounded(found), one
        rate = self._bounded(self.rate) if self.kind == "learnt" else self.start * one
        return rate, 2 * found.sigmoid()

    def _bounded(self, logit: Tensor) -> Tensor:
        return MAX_RATE * torch.sigmoid(logit + math.log(self.start / (MAX_RATE - self.start)))


class RateConv2d(nn.Conv2d):
    """A 3x3 convolution over windows of given rates, with a gate on what it adds up to."""

    def __init__(self, channels: int, out_channels: int) -> None:
        super().__init__(channels, out_channels, 3, padding=1)

    def forward(self, x: Tensor, rates: Tensor, gate: Tensor) -> Tensor:
        y = dynamic_dilation_conv2d(x, self.weight, rates, padding=1)
        return y * gate + self.bias[:, None, None]


def make_rates(variant: str, channels: int) -> Rates:
    """Of "fixed 2", "learnt" and "predicted"; the latter two start at 1, or at a number behind their names."""
    kind, _, start = variant.partition(" ")
    return Rates(kind, channels, float(start or 1))


def train(
    model: nn.Module, step: Callable[[nn.Module, torch.Generator], Tensor], steps: int, seed: int, label: str
) -> None:
    """``step`` gives the loss of one batch; Adam, with a rate that falls to 0 along a cosine."""
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in progress(range(steps), label):
        optimizer.zero_grad()
        loss = step(model, generator)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()


# Seed -> figures, of which the first is what the table is about.
Run = Callable[[str, int, int], tuple[nn.Module, dict[str, float]]]


def main(description: str, variants: tuple[str, ...], steps: int, run: Run, arguments: Any = None) -> dict[str, Any]:
    """The command line of an experiment: runs each variant for each seed, prints a table, writes a record.

    Args:
        run: Variant, seed and steps -> the trained model and its figures on data that it has not seen.

    Returns:
        Variant -> figure -> mean over the seeds.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=steps, help="of each training (default: %(default)s)")
    parser.add_argument("--seeds", type=int, default=3, help="how many (default: %(default)s)")
    parser.add_argument("--jobs", type=int, default=1, help="trainings side by side (default: %(default)s)")
    parser.add_argument("--quick", action="store_true", help="one seed and a tenth of the steps: for a try")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write a record to FILE")
    args = parser.parse_args(arguments)
    count, seeds = (max(2, args.steps // 10), 1) if args.quick else (args.steps, args.seeds)
    about = environment(torch.device("cpu")) | {"threads": 1}  # before: a checkout may move on while it trains
    todo = [(variant, seed, count, run) for seed in range(seeds) for variant in variants]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # small tensors
    try:
        runs = side_by_side(todo, args.jobs) if args.jobs > 1 else [one_run(*one) for one in todo]
    finally:
        torch.set_num_threads(threads)
    print("\n".join(table(variants, runs)))
    if args.json:
        command = f"python examples/{Path(sys.argv[0]).name} --steps {count} --seeds {seeds}"
        args.json.parent.mkdir(parents=True, exist_ok=True)
        record = {"about": about, "command": command, "steps": count, "seeds": seeds, "runs": runs}
        args.json.write_text(json.dumps(record, indent=1) + "\n")
        print(f"record: {args.json}")
    return {variant: means(variant, runs) for variant in variants}


def side_by_side(todo: list[tuple[str, int, int, Run]], jobs: int) -> list[dict[str, Any]]:
    """The arguments of each one_run, in processes of their own."""
    with ProcessPoolExecutor(jobs, get_context("spawn"), torch.set_num_threads, (1,)) as processes:
        return list(processes.map(one_run, *zip(*todo, strict=True)))


def one_run(variant: str, seed: int, steps: int, run: Run) -> dict[str, Any]:
    torch.manual_seed(seed)
    start = time.perf_counter()
    model, figures = run(variant, seed, steps)
    seconds = time.perf_counter() - start
    text = ", ".join(f"{name} {value:.4g}" for name, value in figures.items())
    write(f"{variant}, seed {seed}: {text} ({seconds:.0f} s)")
    parameters = sum(p.numel() for p in model.parameters())
    return {
        "variant": variant,
        "seed": seed,
        "parameters": parameters,
        "figures": figures,
        "seconds": round(seconds, 1),
    }


def means(variant: str, runs: list[dict[str, Any]]) -> dict[str, float]:
    figures: list[Mapping[str, float]] = [run["figures"] for run in runs if run["variant"] == variant]
    return {name: statistics.fmean(one[name] for one in figures) for name in figures[0]}


def table(variants: tuple[str, ...], runs: list[dict[str, Any]]) -> list[str]:
    """Mean, least and largest over the seeds."""
    rows = [["rates", "parameters", *runs[0]["figures"]]]
    for variant in variants:
        own = [run for run in runs if run["variant"] == variant]
        row = [variant, str(own[0]["parameters"])]
        for name in own[0]["figures"]:
            values = [run["figures"][name] for run in own]
            row.append(f"{statistics.fmean(values):.4g} ({min(values):.4g} to {max(values):.4g})")
        rows.append(row)
    return aligned(rows, left=1)
