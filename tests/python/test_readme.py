"""The code in the READMEs runs as written, and is the same in both languages."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
READMES = ("README.md", "README.zh-CN.md")


def blocks(name: str) -> list[tuple[int, str, str]]:
    """Line, language and code of each fenced block."""
    text = (ROOT / name).read_text("utf-8")
    return [
        (text.count("\n", 0, match.start(2)), match[1], match[2])
        for match in re.finditer(r"^```(\w+)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    ]


PYTHON = [
    pytest.param(name, line, code, id=f"{name}:{line + 1}")
    for name in READMES
    for line, language, code in blocks(name)
    if language == "python"
]


@pytest.mark.parametrize(("name", "line", "code"), PYTHON)
def test_block_runs(name: str, line: int, code: str) -> None:
    torch.manual_seed(0)
    source = compile("\n" * line + code, str(ROOT / name), "exec")  # errors then name the line of the file
    exec(source, {"__name__": "__main__"})


def test_blocks_are_found() -> None:
    for name in READMES:
        fences = (ROOT / name).read_text("utf-8").count("\n```python\n")
        assert fences >= 7
        assert sum(language == "python" for _, language, _ in blocks(name)) == fences


def test_both_languages_have_the_same_blocks() -> None:
    english, chinese = ([block[1:] for block in blocks(name)] for name in READMES)
    assert english == chinese
