"""What a training step costs by the way its columns are used: time, and the memory that it takes at its peak.

Each way computes the same from an image ``[B, C, H, W]`` as the others of its kind, then the gradients of the image, of
the dilation map and of its weight. The memory is what torch allocates on top of those tensors.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from itertools import accumulate
from pathlib import Path

import torch
import torch.nn.functional as F
from dynamic_dilation_unfold import (
    dynamic_dilation_attention,
    dynamic_dilation_conv2d,
    dynamic_dilation_coverage,
    dynamic_dilation_unfold,
)
from dynamic_dilation_unfold._tools.machine import environment
from dynamic_dilation_unfold._tools.terminal import progress, write
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

HEADS = 4


def unfold(x: Tensor, rates: Tensor) -> Tensor:
    return dynamic_dilation_unfold(x, 3, rates, padding=1)


def columns(x: Tensor, rates: Tensor, weight: Tensor) -> Tensor:
    return unfold(x, rates)


def conv2d(x: Tensor, rates: Tensor, weight: Tensor) -> Tensor:
    return F.conv2d(x, weight, padding=1)


def conv_matmul(x: Tensor, rates: Tensor, weight: Tensor) -> Tensor:
    return weight.flatten(1) @ unfold(x, rates)


def conv_bmm(x: Tensor, rates: Tensor, weight: Tensor) -> Tensor:
    return torch.bmm(weight.flatten(1).expand(len(x), -1, -1), unfold(x, rates))


def conv_without_columns(x: Tensor, rates: Tensor, weight: Tensor) -> Tensor:
    return dynamic_dilation_conv2d(x, weight, rates, padding=1)


def heads(x: Tensor, rates: Tensor) -> tuple[Tensor, Tensor]:
    """Queries ``[B, heads, C', L]``, and the taps around each ``[B, heads, C', 9, L]``."""
    batch, channels, height, width = x.shape
    taps = unfold(x, rates).view(batch, HEADS, channels // HEADS, 9, height * width)
    return x.view(batch, HEADS, channels // HEADS, height * width), taps


def weights_of(scores: Tensor, x: Tensor, rates: Tensor) -> Tensor:
    """The softmax over taps ``[B, heads, 9, L]``, in which what lies outside the image takes no part."""
    weights = scores.softmax(2)
    inside = dynamic_dilation_coverage(rates, x.shape[2:], 3, padding=1).flatten(3)
    return weights / (weights * inside).sum(2, keepdim=True)


def attention_einsum(x: Tensor, rates: Tensor, weight: Tensor) -> Tensor:
    query, taps = heads(x, rates)
    scores = torch.einsum("bhcl,bhctl->bhtl", query, taps)
    attended = torch.einsum("bhtl,bhctl->bhcl", weights_of(scores, x, rates), taps)
    return attended.reshape(x.shape)


def attention_sum(x: Tensor, rates: Tensor, weight: Tensor) -> Tensor:
    query, taps = heads(x, rates)
    scores = (query.unsqueeze(3) * taps).sum(2)
    attended = (weights_of(scores, x, rates).unsqueeze(2) * taps).sum(3)
    return attended.reshape(x.shape)


def attention_without_columns(x: Tensor, rates: Tensor, weight: Tensor) -> Tensor:
    return dynamic_dilation_attention(x, x, x, rates, 3, padding=1, heads=HEADS, scale=1)


WAYS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "the columns alone": columns,
    "convolution: F.conv2d, which has no map": conv2d,
    "convolution: weight @ columns": conv_matmul,
    "convolution: torch.bmm(weight, columns)": conv_bmm,
    "convolution: dynamic_dilation_conv2d": conv_without_columns,
    "attention: einsum": attention_einsum,
    "attention: (q * k).sum": attention_sum,
    "attention: dynamic_dilation_attention": attention_without_columns,
}


def peak_memory(step: Callable[[], object], device: torch.device) -> int:
    """Most bytes that torch had allocated at once while the step ran, beside those of before."""
    if device.type == "cuda":
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        step()
        return torch.cuda.max_memory_allocated(device) - before
    # For a CPU torch keeps no such statistics, but its profiler notes each allocation and release.
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        step()
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder, "trace.json")
        profiled.export_chrome_trace(str(trace))
        events = json.loads(trace.read_text("utf-8"))["traceEvents"]
    changes = sorted((e["ts"], e["args"]["Bytes"]) for e in events if e.get("name") == "[memory]")
    return max(accumulate(change for _, change in changes))


def measure(way: Callable[..., Tensor], inputs: list[Tensor], repeats: int) -> tuple[float, float, float]:
    """Least milliseconds of forward and of a whole step, and megabytes at the step's peak."""

    def clock() -> float:
        if inputs[0].is_cuda:
            torch.cuda.synchronize()
        return time.perf_counter() * 1e3

    def step() -> tuple[float, float]:
        for tensor in inputs:
            tensor.grad = None
        start = clock()
        output = way(*inputs)
        middle = clock()
        output.backward(torch.ones_like(output))
        return middle - start, clock() - start

    step()  # what is made once is made here
    times = [step() for _ in range(repeats)]
    for tensor in inputs:
        tensor.grad = None
    megabytes = peak_memory(step, inputs[0].device) / 1e6
    return min(forward for forward, _ in times), min(whole for _, whole in times), megabytes


def main() -> dict[str, float]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--shape", type=int, nargs=4, default=[4, 64, 128, 128], metavar=("B", "C", "H", "W"))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write a record to FILE")
    args = parser.parse_args()
    torch.manual_seed(0)
    batch, channels, height, width = args.shape
    coarse = torch.rand(batch, 1, 8, 8, device=args.device)
    rates = 0.5 + 2.5 * F.interpolate(coarse, (height, width), mode="bilinear")  # smooth, 0.5 to 3
    inputs = [
        torch.randn(args.shape, device=args.device).requires_grad_(),
        rates.requires_grad_(),
        (torch.randn(channels, channels, 3, 3, device=args.device) / channels).requires_grad_(),
    ]
    size = 9 * inputs[0].numel() * 4 / 1e6
    print(f"{'x'.join(map(str, args.shape))} float32, 3x3 taps: {size:.0f} MB of columns")
    print(f"{'':42}{'forward ms':>12}{'step ms':>12}{'peak MB':>12}")
    figures = {}
    for name, way in progress(WAYS.items(), "timing"):
        forward, whole, peak = measure(way, inputs, args.repeats)
        figures[name] = {"forward ms": forward, "step ms": whole, "peak MB": peak}
        write(f"{name:42}{forward:12.2f}{whole:12.2f}{peak:12.0f}")
    if args.json:
        sizes = " ".join(map(str, args.shape))
        command = f"python examples/training_step.py --device {args.device} --shape {sizes}"
        record = {"about": environment(torch.device(args.device)), "command": command, "figures": figures}
        args.json.write_text(json.dumps(record, indent=1) + "\n")
        print(f"record: {args.json}")
    return {name: figure["peak MB"] for name, figure in figures.items()}


if __name__ == "__main__":
    main()
