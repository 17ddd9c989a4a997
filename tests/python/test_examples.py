"""The examples run, and do what they say."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

EXAMPLES = Path(__file__).parents[2] / "examples"


def run(monkeypatch: pytest.MonkeyPatch, name: str, *arguments: str) -> Any:
    monkeypatch.setattr(sys, "argv", [name, *arguments])
    return runpy.run_path(str(EXAMPLES / name))["main"]()


def test_all_are_tested() -> None:
    """Here, or in test_evidence.py."""
    assert {path.name for path in EXAMPLES.glob("*.py")} == {
        "adaptive_conv.py",
        "atrous_pyramid.py",
        "denoise.py",
        "digits.py",
        "evidence.py",
        "fadc.py",
        "learn_map.py",
        "local_attention.py",
        "perspective.py",
        "training_step.py",
    }


def test_learn_map(monkeypatch: pytest.MonkeyPatch) -> None:
    assert run(monkeypatch, "learn_map.py", "--size", "16", "--steps", "150") < 0.1


def test_adaptive_conv(monkeypatch: pytest.MonkeyPatch) -> None:
    errors = run(monkeypatch, "adaptive_conv.py", "--steps", "120")
    assert errors["a dilation map"] < 0.5 * errors["one dilation"]


def test_atrous_pyramid(monkeypatch: pytest.MonkeyPatch) -> None:
    errors = run(monkeypatch, "atrous_pyramid.py", "--steps", "60", "--size", "24")
    assert errors["maps of them"] < 0.7 * errors["dilations 6, 12, 18"]


def test_training_step(monkeypatch: pytest.MonkeyPatch) -> None:
    peaks = run(monkeypatch, "training_step.py", "--shape", "2", "16", "64", "64", "--repeats", "1")
    columns = 2 * 144 * 64 * 64 * 4 / 1e6  # large beside the scratch memory of the threads, and beside scores
    assert peaks["convolution: F.conv2d, which has no map"] < columns
    assert peaks["convolution: dynamic_dilation_conv2d"] < 2 * columns  # chunks are large beside these
    for way in ("the columns alone", "convolution: torch.bmm(weight, columns)"):
        assert 2 * columns <= peaks[way] < 2.5 * columns
    assert 4 * columns <= peaks["attention: (q * k).sum"] < 5 * columns


def test_ways_of_a_training_step_agree() -> None:
    ways = runpy.run_path(str(EXAMPLES / "training_step.py"))["WAYS"]
    torch.manual_seed(0)
    x, weight = torch.randn(2, 8, 12, 12, dtype=torch.float64), torch.randn(8, 8, 3, 3, dtype=torch.float64)
    found = {name: way(x, torch.ones(2, 1, 12, 12, dtype=torch.float64), weight) for name, way in ways.items()}
    convolved = found["convolution: F.conv2d, which has no map"].flatten(2)
    for name in ("weight @ columns", "torch.bmm(weight, columns)", "dynamic_dilation_conv2d"):
        torch.testing.assert_close(found[f"convolution: {name}"].flatten(2), convolved)
    for name in ("attention: einsum", "attention: dynamic_dilation_attention"):
        torch.testing.assert_close(found[name], found["attention: (q * k).sum"])
