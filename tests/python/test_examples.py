"""The examples run, and do what they say."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path
from typing import Any

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"


def run(monkeypatch: pytest.MonkeyPatch, name: str, *arguments: str) -> Any:
    monkeypatch.setattr(sys, "argv", [name, *arguments])
    return runpy.run_path(str(EXAMPLES / name))["main"]()


def test_all_are_tested() -> None:
    assert {path.name for path in EXAMPLES.glob("*.py")} == {"adaptive_conv.py", "learn_map.py"}


def test_learn_map(monkeypatch: pytest.MonkeyPatch) -> None:
    assert run(monkeypatch, "learn_map.py", "--size", "16", "--steps", "150") < 0.1


def test_adaptive_conv(monkeypatch: pytest.MonkeyPatch) -> None:
    errors = run(monkeypatch, "adaptive_conv.py", "--steps", "120")
    assert errors["a dilation map"] < 0.5 * errors["one dilation"]
