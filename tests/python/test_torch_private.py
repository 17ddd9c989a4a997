"""Private names of torch: all in one file, and none that the package cannot do without."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import dynamic_dilation_unfold
import pytest
import without_private_names

PACKAGE = Path(dynamic_dilation_unfold.__file__).parent
PRIVATE = re.compile(r"\b(torch|forward_ad|Tensor|Function)(\.\w+)*\._[a-zA-Z]\w*")


def test_names_stand_in_one_file():
    found = {
        f"{path.relative_to(PACKAGE)}: {match[0]}"
        for path in PACKAGE.rglob("*.py")
        if path.name != "_torch_private.py"
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, (ast.Attribute, ast.ImportFrom))
        for match in [PRIVATE.search(ast.unparse(node).replace("from ", "").replace(" import ", "."))]
        if match
    }
    assert not found


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_torch_without_each_name():
    """As a later release may be: every route still gives the reference's results, without each name and without all."""
    run = subprocess.run([sys.executable, without_private_names.__file__], capture_output=True, text=True, timeout=900)
    assert run.returncode == 0, run.stdout + run.stderr
    names = [line.rpartition(" ")[0] for line in run.stdout.splitlines()]
    assert names[-1] == "all"
    assert len(names) > 20
