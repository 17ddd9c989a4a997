"""Try the installed build in about ten seconds, and print what a bug report needs.

The kernels of each device there is are compared with the reference, forward and backward. The exit status is 1 if
anything is wrong.
"""

from __future__ import annotations

import argparse
import sys
import time
import traceback
from typing import Any

import torch

from . import info
from .arguments import resolve_device
from .diagnosis import READY
from .selftest_checks import Check, WrongResult, checks
from .terminal import coloured, progress, write


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", help="torch device (default: the CPU, and a CUDA device if there is one)")
    parser.add_argument("--compile", action="store_true", help="torch.compile too, which takes a minute")


def run(args: argparse.Namespace) -> int:
    asked = [resolve_device(args.device)] if args.device else None
    about = info.collect()
    print(info.text_of(about))
    start, failed, count = time.perf_counter(), 0, 0
    passes, fails = marks(sys.stdout.encoding)
    for device in asked or devices(about):
        print(f"\n{device}")
        for name, check in progress(checks(device, args.compile).items(), f"checking {device}", unit="check"):
            began, reason = time.perf_counter(), failure(check, device)
            mark = coloured(fails, "red", sys.stdout) if reason else coloured(passes, "green", sys.stdout)
            write(f"  {mark} {name:<72}{time.perf_counter() - began:5.1f} s")
            if reason:
                write(reason)
            failed, count = failed + bool(reason), count + 1
    if not asked and "cuda" not in {device.type for device in devices(about)}:
        why = "there is no CUDA device" if about["verdict"] == READY else about["verdict"]
        print(f"\ncuda was left out: {why}")
    if not args.compile:
        print("torch.compile was left out: --compile adds it")
    result = f"{failed} of {count} checks FAILED" if failed else f"{count} checks passed"
    result = coloured(result, "red" if failed else "green", sys.stdout)
    print(f"\n{result} in {time.perf_counter() - start:.1f} s")
    return 1 if failed else 0


def marks(encoding: str | None) -> tuple[str, str]:
    """For what passed and what failed, as far as the terminal can show them."""
    try:
        "✓✗".encode(encoding or "ascii")
    except (UnicodeEncodeError, LookupError):
        return "ok  ", "FAIL"
    return "✓", "✗"


def devices(about: dict[str, Any]) -> list[torch.device]:
    usable = about["toolkit"] and about["verdict"] == READY and torch.cuda.is_available()
    return [torch.device("cpu"), *([torch.device("cuda", 0)] if usable else [])]


def failure(check: Check, device: torch.device) -> str | None:
    """What went wrong, indented; with a traceback if it was no wrong value."""
    try:
        check(device)
    except WrongResult as error:
        return f"      {error}"
    except Exception:
        return "".join(f"      {line}\n" for line in traceback.format_exc().splitlines()).rstrip()
    return None
