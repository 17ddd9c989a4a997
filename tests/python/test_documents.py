"""The Python code in README and in docs/ runs as written, and is the same in both languages."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
READMES = ("README.md", "README.zh-CN.md")
# What docs/cpp.md exports is a package for a program without Python; ci/cpp-consumer makes and runs it.
PAGES = sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md") if not path.name.startswith("cpp."))
TORCH = torch.torch_version.TorchVersion(torch.__version__)


def blocks(name: str) -> list[tuple[int, str, str]]:
    """Line, language and code of each fenced block."""
    text = (ROOT / name).read_text("utf-8")
    return [
        (text.count("\n", 0, match.start(2)), match[1], match[2])
        for match in re.finditer(r"^```(\w+)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    ]


PYTHON = [
    pytest.param(name, line, code, id=f"{name}:{line + 1}")
    for name in (*READMES, *PAGES)
    for line, language, code in blocks(name)
    # A translation has the same code, which a test below and ci/check-docs compare: it runs once.
    if language == "python" and not (name in PAGES and ".zh-CN." in name)
]


@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch", "ignore::FutureWarning:torch")  # as the exporter gives
@pytest.mark.filterwarnings("ignore::FutureWarning:copyreg")
@pytest.mark.parametrize(("name", "line", "code"), PYTHON)
def test_block_runs(name: str, line: int, code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if "viz.draw" in code:
        pytest.importorskip("matplotlib")  # of the demo's extra, where ci/demo runs these tests
        monkeypatch.setenv("MPLBACKEND", "Agg")
    if "onnx.export" in code and TORCH < "2.6":
        pytest.skip("ONNX export needs torch >= 2.6")
    monkeypatch.chdir(tmp_path)  # files that it writes go there
    torch.manual_seed(0)
    source = compile("\n" * line + code, str(ROOT / name), "exec")  # errors then name the line of the file
    exec(source, {"__name__": "__main__"})


def test_blocks_are_found() -> None:
    for name in (*READMES, *PAGES):
        fences = (ROOT / name).read_text("utf-8").count("\n```python\n")
        assert fences >= 7 or name not in READMES
        assert sum(language == "python" for _, language, _ in blocks(name)) == fences


def translatable(language: str, code: str) -> object:
    """What a translation must keep of a block: of Python all but its comments, of a drawing the number of its lines."""
    if language == "python":
        return ast.unparse(ast.parse(code))
    return code.count("\n") if language == "text" else code


@pytest.mark.parametrize("name", [name for name in (*READMES, *PAGES) if ".zh-CN." not in name])
def test_both_languages_have_the_same_blocks(name: str) -> None:
    english, chinese = (
        [(language, translatable(language, code)) for _, language, code in blocks(file)]
        for file in (name, name.replace(".md", ".zh-CN.md"))
    )
    assert english == chinese


def test_tables_have_the_figures_of_the_records() -> None:
    script = ROOT / "benchmarks" / "figures.py"
    run = subprocess.run([sys.executable, script, "--check"], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
