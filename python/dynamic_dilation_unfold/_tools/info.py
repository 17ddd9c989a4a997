"""Say what this build contains, what the machine has, and whether they fit.

The last line is "ready", or what is wrong and the command that mends it; the exit status is then 1.
"""

from __future__ import annotations

import argparse
import json
import platform
import re
from pathlib import Path
from typing import Any

import torch

from .. import _C
from .diagnosis import READY, gather, text, verdict


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print JSON")


def openmp_libraries() -> list[str]:
    """Those that this process has loaded, where the system tells: more than one would mean two pools of threads."""
    maps = Path("/proc/self/maps")
    found = re.findall(r"\s(/.*/lib(?:gomp|omp|iomp5)[-.].*)$", maps.read_text() if maps.exists() else "", re.MULTILINE)
    return sorted(set(found))


def collect() -> dict[str, Any]:
    state = gather()
    tag = state.version.partition("+")[2] or ("cpu" if state.toolkit is None else "none, built from source")
    return {
        "version": state.version,
        "tag": tag,
        "toolkit": text(state.toolkit) if state.toolkit else None,
        "architectures": state.architectures.split(";") if state.architectures else [],
        "cpu": _C.cpu_capability,
        "threads": torch.get_num_threads(),
        "openmp": openmp_libraries() if _C.has_openmp else [],
        "python": platform.python_version(),
        "system": platform.platform(),
        "torch": state.torch,
        "torch_cuda": text(state.torch_cuda) if state.torch_cuda else None,
        "driver": text(state.driver) if state.driver else None,
        "driver_error": state.driver_error or None,
        "gpus": [
            {"name": gpu.name, "capability": text(gpu.capability), "covered": state.covers(gpu)} for gpu in state.gpus
        ],
        "verdict": verdict(state),
    }


def lines(about: dict[str, Any]) -> list[tuple[str, str]]:
    gpus = [
        (
            f"GPU {index}",
            f"{gpu['name']}, compute capability {gpu['capability']}, {'covered' if gpu['covered'] else 'NOT covered'}",
        )
        for index, gpu in enumerate(about["gpus"])
    ]
    error = f", error {about['driver_error']}" if about["driver_error"] else ""
    return [
        ("version", about["version"]),
        ("wheel tag", about["tag"]),
        ("CUDA toolkit", about["toolkit"] or "none"),
        ("architectures", " ".join(about["architectures"]) or "none"),
        ("CPU kernels", f"{about['cpu']}, {about['threads']} threads"),
        ("OpenMP", " ".join(about["openmp"]) or ("not in this build" if not _C.has_openmp else "unknown")),
        ("Python", f"{about['python']} on {about['system']}"),
        ("torch", f"{about['torch']}, CUDA {about['torch_cuda'] or 'none'}"),
        ("driver", f"CUDA {about['driver']}{error}" if about["driver"] else "none"),
        *(gpus or [("GPUs", "none")]),
        ("verdict", about["verdict"]),
    ]


def text_of(about: dict[str, Any]) -> str:
    return "\n".join(f"{name:<14} {value}" for name, value in lines(about))


def run(args: argparse.Namespace) -> int:
    about = collect()
    print(json.dumps(about, indent=1) if args.json else text_of(about))
    return 0 if about["verdict"] == READY else 1
