"""Ways to run ``python -m dynamic_dilation_unfold``."""

from __future__ import annotations

import subprocess
import sys

import pytest
from dynamic_dilation_unfold._tools import cli

MODULE = [sys.executable, "-m", "dynamic_dilation_unfold"]


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    """In a process of its own."""
    return subprocess.run([*MODULE, *arguments], capture_output=True, text=True, timeout=300)


def exit_status(*arguments: str) -> int | str | None:
    """Of a command that exits: a number, or the sentence that it prints."""
    with pytest.raises(SystemExit) as caught:
        cli.main(arguments)
    return caught.value.code
