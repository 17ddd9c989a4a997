"""Repeated runs, on the CPU's clock or the device's."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch

Job = Callable[[], object]

_FLUSH_BYTES = 1 << 30
# A median this many times the least run, and this many seconds above it, tells of a busy machine.
_QUIET, _JITTER = 1.5, 5e-6


@dataclass(frozen=True)
class Times:
    """Seconds of the runs of one job."""

    least: float
    median: float

    @classmethod
    def of(cls, samples: Iterable[float]) -> Times:
        values = sorted(samples)
        return cls(values[0], median(values))

    @property
    def spread(self) -> float:
        """How many times the least run the median is, but for the clock's own jitter."""
        return max(1.0, (self.median - _JITTER) / self.least) if self.least else 1.0


def busy(times: Mapping[str, Times]) -> str | None:
    """A warning, if the runs of a job differ by more than a quiet machine explains."""
    name = max(times, key=lambda name: times[name].spread, default=None)
    if name is None or times[name].spread < _QUIET:
        return None
    found = times[name]
    return (
        f"warning: this machine is busy: {name} took {seconds(found.least)} at best and {seconds(found.median)} "
        "usually, so these times are rough"
    )


class _HostTimer:
    def __init__(self, device: torch.device) -> None:
        self.synchronize: Callable[[], None] = getattr(torch, device.type).synchronize

    def sample(self, job: Job) -> float:
        start = time.perf_counter()
        job()
        self.synchronize()
        return time.perf_counter() - start

    def durations(self, samples: list[float]) -> list[float]:
        return samples


class _CudaTimer:
    """Events around each run, read after all of them.

    A large fill goes before each run: it evicts the caches, as whatever came before would, and it lets the CPU get
    ahead, so that the events see the device's work and not the wait for the launch.
    """

    def __init__(self, device: torch.device) -> None:
        size = min(_FLUSH_BYTES, torch.cuda.get_device_properties(device).total_memory // 16)
        self.device = device
        self.flush = torch.empty(size, dtype=torch.uint8, device=device)

    def sample(self, job: Job) -> tuple[Any, Any]:
        event: Any = torch.cuda.Event
        begin, end = event(enable_timing=True), event(enable_timing=True)
        self.flush.fill_(0)
        begin.record()
        job()
        end.record()
        return begin, end

    def durations(self, samples: list[tuple[Any, Any]]) -> list[float]:
        torch.cuda.synchronize(self.device)
        return [begin.elapsed_time(end) * 1e-3 for begin, end in samples]


def measure(
    jobs: Mapping[str, Job], device: torch.device, budget: float, at_least: int = 3, at_most: int = 100
) -> dict[str, Times]:
    """Seconds of each job. They take turns, so that a slow spell of the machine meets all of them alike.

    A job runs for about ``budget`` seconds, within the limits on its number of runs.
    """
    host = _HostTimer(device)
    timer: Any = _CudaTimer(device) if device.type == "cuda" else host
    turns = {}
    for name, job in jobs.items():
        first = host.sample(job)  # allocates, builds what is built once
        estimate = min(first, host.sample(job)) if first < budget else first
        turns[name] = max(at_least, min(at_most, int(budget / estimate)))
    samples: dict[str, list[Any]] = {name: [] for name in jobs}
    for turn in range(max(turns.values(), default=0)):
        for name, job in jobs.items():
            if turn < turns[name]:
                samples[name].append(timer.sample(job))
    return {name: Times.of(timer.durations(values)) for name, values in samples.items()}


def peak(job: Job, device: torch.device) -> int:
    """Bytes that a run allocates at most, beyond what is there."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        job()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    with warnings.catch_warnings():  # torch 2.11 warns, once, whoever profiles without a schedule
        warnings.filterwarnings("ignore", "Warning. Profiler clears events")
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
            job()
    assert profile.profiler
    alive = most = 0
    results: Any = profile.profiler.kineto_results
    for event in results.events():
        if event.name() == "[memory]":
            alive += event.nbytes()
            most = max(most, alive)
    return most


def measure_directions(
    record: dict[str, Any], directions: Mapping[str, Mapping[str, Job]], device: torch.device, budget: float
) -> None:
    """Adds to a record what the jobs of each direction take: seconds under its name, and what a run allocates.

    ``record["busy"]`` keeps the first sign that something else ran beside them.
    """
    for direction, jobs in directions.items():
        record[f"{direction} bytes"] = {name: peak(job, device) for name, job in jobs.items()}
        times = measure(jobs, device, budget)
        record[direction] = {name: value.median for name, value in times.items()}
        record["busy"] = record["busy"] or busy(times)


def seconds(value: float) -> str:
    """Three digits with a unit: ``61.2 ms``."""
    unit, scale = next(((u, s) for u, s in (("s", 1.0), ("ms", 1e3)) if value * s >= 0.9995), ("us", 1e6))
    return f"{value * scale:#.3g}".rstrip(".") + f" {unit}"
