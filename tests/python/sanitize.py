"""Runs every CUDA kernel, for compute-sanitizer to watch. Not collected by pytest.

    python sanitize.py [unfold] [sums] [attention] [conv2d] [--dtype float16 float32]

All of them in all types by default. Kernels are templates of the type, the size of the window, and how they read and
store: the tensors are small, and there is a call for each of those that the device has.
"""

import argparse
import itertools
import os
import time
from collections.abc import Callable
from typing import Any

import torch
from dynamic_dilation_unfold import (
    dynamic_dilation_aggregate,
    dynamic_dilation_attention,
    dynamic_dilation_conv2d,
    dynamic_dilation_correlate,
    dynamic_dilation_unfold,
)
from helpers import DTYPES, Case, random_input, random_map
from torch import Tensor

FORMATS = [torch.contiguous_format, torch.channels_last]


def on_device(*tensors: Tensor | None, dtype: torch.dtype, format: torch.memory_format = FORMATS[0]) -> list[Any]:
    """Leaves whose values are copied from the CPU.

    initcheck, which watches our kernels alone, would take what a kernel of torch's wrote for memory that nobody wrote.
    """
    made = []
    for tensor in tensors:
        if tensor is not None:
            tensor = tensor.to(dtype)
            tensor = tensor.contiguous(memory_format=format) if tensor.dim() == 4 else tensor
            tensor = tensor.to("cuda").requires_grad_()
        made.append(tensor)
    return made


def differentiate(
    function: Callable[..., Tensor], tensors: dict[str, Any], options: dict[str, Any], grad: Tensor, alone: int = 0
) -> None:
    """The call and its backward: for all gradients together, and for each of the first ``alone`` tensors by itself."""
    grad = grad.detach()
    leaves = [t for t in tensors.values() if t is not None]
    torch.autograd.grad(function(**tensors, **options), leaves, grad)
    for wanted in list(tensors)[:alone]:
        others = {name: t if name == wanted or t is None else t.detach() for name, t in tensors.items()}
        torch.autograd.grad(function(**others, **options), others[wanted], grad)


def unfold(dtype: torch.dtype) -> None:
    cases = [
        Case(1, 5, 20, 37, padding=1),
        Case(2, 2, 9, 33, padding=1, groups=2),  # one channel a group
        Case(1, 3, 18, 20, kernel_size=5, padding=2),
        Case(1, 2, 18, 20, kernel_size=7, padding=3),
        Case(1, 3, 15, 17, kernel_size=(2, 3), stride=2),
        Case(1, 64, 5, 9, padding=1),  # sixteen lanes for a position
        Case(1, 2, 14, 15, kernel_size=11, padding=5),  # as many taps as integer sums take
        Case(1, 9, 150, 130, padding=1, stride=5),  # does not fit in the windows of wide tiles
    ]
    # What the call would choose, often windows that hold a small image whole; and what DDU_CUDA_PATH asks for: windows
    # of the usual size, which leave tiles to the next kernels, wide ones, and none.
    ways = [("fractional", ""), ("mixed", ""), ("mixed", "planar"), ("mixed", "wide"), ("mixed", "channels_last")]
    if dtype == torch.float64:  # goes to the channels-last kernels at once
        del ways[2:]
    for case, (kind, path), ordered in itertools.product(cases, ways, [False, True]):
        if case.height > 100 and (kind, path) != ("mixed", ""):
            continue
        os.environ["DDU_CUDA_PATH"] = path
        torch.use_deterministic_algorithms(ordered)
        for format in FORMATS[: 1 if path else 2]:
            (x,) = on_device(random_input(case.shape), dtype=dtype, format=format)
            made = random_map(kind, case.map_shape), random_input(case.output_shape, 2)
            rates, grad = on_device(*made, dtype=dtype)
            differentiate(dynamic_dilation_unfold, {"input": x, "dilation_map": rates}, case.options, grad, alone=2)
    del os.environ["DDU_CUDA_PATH"]


def sums(dtype: torch.dtype) -> None:
    cases = [  # with heads
        (Case(2, 8, 9, 20, padding=1, groups=2), 2),
        (Case(1, 5, 9, 20, padding=1), 1),  # channels_last has no whole vectors
        (Case(1, 12, 9, 10, kernel_size=(2, 3), stride=2, groups=3), 1),  # a head with several groups
        (Case(1, 80, 5, 9, padding=1).border, 1),  # more channels than lanes take at once
    ]
    for (case, heads), format, ordered in itertools.product(cases, FORMATS, [False, True]):
        torch.use_deterministic_algorithms(ordered)
        options = {name: value for name, value in case.options.items() if name != "groups"}
        taps = case.output_shape[1] // case.channels
        values, factors = (case.batch, case.channels, *case.out_size), (case.batch, heads, taps, *case.out_size)
        image, query = on_device(random_input(case.shape), random_input(values, 2), dtype=dtype, format=format)
        (scores,) = on_device(random_input(factors, 3), dtype=dtype)
        (rates,) = on_device(random_map("mixed", case.map_shape), dtype=dtype)
        tensors = {"input": image, "weights": scores, "dilation_map": rates}
        differentiate(dynamic_dilation_aggregate, tensors, options, query, alone=2)
        tensors = {"query": query, "key": image, "dilation_map": rates}
        differentiate(dynamic_dilation_correlate, tensors, {**options, "heads": heads}, scores, alone=2)


def attention(dtype: torch.dtype) -> None:
    torch.use_deterministic_algorithms(False)
    cases = [
        (Case(2, 16, 9, 20, padding=1, groups=2), 2),
        (Case(1, 24, 9, 10, kernel_size=(2, 3), stride=2), 3),
        (Case(1, 64, 5, 9, kernel_size=5, padding=2).border, 1),
    ]
    for (case, heads), format, biased in itertools.product(cases, FORMATS, [False, True]):
        options = {name: value for name, value in case.options.items() if name != "groups"}
        taps = case.output_shape[1] // case.channels
        values = (case.batch, case.channels, *case.out_size)
        made = [random_input(values, 2), random_input(case.shape), random_input(case.shape, 4), random_input(values, 5)]
        query, key, value, grad = on_device(*made, dtype=dtype, format=format)
        (rates,) = on_device(random_map("mixed", case.map_shape), dtype=dtype)
        of_scores = random_input((case.batch, heads, taps, *case.out_size), 3)
        (bias,) = on_device(of_scores if biased else None, dtype=torch.float32)  # as the kernels take it
        tensors = {"query": query, "key": key, "value": value, "dilation_map": rates, "bias": bias}
        differentiate(dynamic_dilation_attention, tensors, {**options, "heads": heads}, grad, alone=1)


def conv2d(dtype: torch.dtype) -> None:
    torch.use_deterministic_algorithms(False)
    torch.backends.cudnn.allow_tf32 = True
    # With outputs, weight groups and heads of the mask.
    cases = [
        (Case(2, 64, 9, 18, padding=1), 64, 1, 0),
        (Case(1, 32, 17, 18, padding=1, groups=2), 128, 1, 2),
        (Case(1, 32, 9, 10, padding=1), 256, 1, 0),
        (Case(1, 32, 12, 17, kernel_size=5, padding=2, stride=2), 16, 2, 1),
        (Case(1, 10, 9, 10, padding=1).border, 130, 1, 0),  # no whole vectors: a channels_last input is padded
        (Case(1, 64, 9, 10, kernel_size=(1, 3), padding=(0, 1)), 64, 4, 2),
        (Case(2, 24, 9, 11, padding=1), 24, 6, 0),  # small groups, several at once
        (Case(1, 30, 9, 10, padding=1, stride=2), 20, 10, 1),
        (Case(2, 20, 9, 11, padding=1, groups=2), 40, 20, 2),  # depthwise
    ]
    for (case, outputs, groups, heads), format in itertools.product(cases, FORMATS):
        options = {name: value for name, value in case.options.items() if name not in ("groups", "kernel_size")}
        taps = case.pairs[0]
        weight = random_input((outputs, case.channels // groups, *taps), 5)
        mask = random_input((case.batch, heads, taps[0] * taps[1], *case.out_size), 6) if heads else None
        grad = random_input((case.batch, outputs, *case.out_size), 7)
        for kind in ("fractional", "mixed"):
            image = random_input(case.shape)
            if kind == "mixed":
                image[0, 0, 0, 0] = float("inf")  # the kernel for 3x3 taps leaves such images to the other
            x, grad_output = on_device(image, grad, dtype=dtype, format=format)
            rates, factors = on_device(random_map(kind, case.map_shape), mask, dtype=dtype)
            of_weight, bias = on_device(weight, random_input((outputs,), 8), dtype=dtype)
            tensors = {"input": x, "weight": of_weight, "dilation_map": rates, "bias": bias, "mask": factors}
            differentiate(dynamic_dilation_conv2d, tensors, options, grad_output, alone=3)


PARTS = {"unfold": unfold, "sums": sums, "attention": attention, "conv2d": conv2d}
TYPES = {str(dtype).removeprefix("torch."): dtype for dtype in DTYPES}

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--dtype", nargs="+", choices=TYPES, default=list(TYPES))
    given = parser.parse_args()
    for part, name in itertools.product(given.parts or PARTS, given.dtype):
        if name == "float64" and part in ("attention", "conv2d"):
            continue  # has no kernels of its own
        started = time.perf_counter()
        PARTS[part](TYPES[name])
        torch.cuda.synchronize()
        print(f"{part} {name}: {time.perf_counter() - started:.1f} s", flush=True)
