"""What a command line may say, and the sentence that refuses the rest before any work is done."""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import torch

from .._kernels import DEVICES
from ..functional import dynamic_dilation_unfold
from .diagnosis import explain


def count(text: str, least: int = 1) -> int:
    try:
        value = int(text)
    except ValueError:
        value = least - 1
    if not least <= value < 2**31:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number from {least} to {2**31 - 1}")
    return value


def count_or_zero(text: str) -> int:
    return count(text, least=0)


def shape(text: str) -> tuple[int, ...]:
    """``2x256x33x33``."""
    sizes = text.lower().split("x")
    if len(sizes) != 4:
        raise argparse.ArgumentTypeError(f"{text!r} is no shape BxCxHxW such as 2x256x33x33")
    return tuple(map(count, sizes))


def seed(text: str) -> int:
    """What torch.Generator takes."""
    try:
        value = int(text)
    except ValueError:
        value = 2**64
    if not -(2**63) <= value < 2**64:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number from -2^63 to 2^64 - 1")
    return value


def duration(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (0 < value < math.inf):
        raise argparse.ArgumentTypeError(f"{text!r} is no positive number of seconds")
    return value


def resolve_device(name: str) -> torch.device:
    """The device, with its index, once a call on it has worked; exits with the reason where none does."""
    try:
        kind = torch.device(name).type
    except RuntimeError:
        kind = ""
    if kind not in DEVICES:
        raise SystemExit(f"Cannot use device {name}: there are kernels for {' and '.join(sorted(DEVICES))}")
    try:
        one = torch.ones(1, 1, 1, 1, device=name)
        dynamic_dilation_unfold(one, 1, one)
    except (RuntimeError, AssertionError) as error:
        reason = explain(str(error)) if kind == "cuda" else str(error)
        raise SystemExit(f"Cannot use device {name}: {reason.splitlines()[0]}") from None
    if kind == "cuda":
        torch.cuda.set_device(one.device)
    return one.device


def claim(path: Path) -> None:
    """Makes the folder of a file that is going to be written; exits with the reason where it cannot be."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        new = not path.exists()
        with path.open("ab"):
            pass
        if new:
            path.unlink()
    except OSError as error:
        raise SystemExit(f"Cannot write {path}: {error.strerror or error}") from None
