"""What ci/check-docs and ci/check-lengths are there for, they find."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import pytest

CI = Path(__file__).parents[1]


@pytest.fixture
def docs() -> dict[str, Any]:
    return runpy.run_path(str(CI / "check-docs"))


@pytest.fixture
def lengths() -> dict[str, Any]:
    return runpy.run_path(str(CI / "check-lengths"))


TABLE = "# Title\n\n| purpose | file |\n|---|---|\n{rows}\n\n[a link](other.md)\n\n"
TABLE += "<!-- picture one: words -->\n\n```python\nx = 1  # one\n```\n"


@pytest.mark.parametrize(
    ("kind", "old", "new"),
    [
        ("code blocks", "x = 1", "x = 2"),
        ("heading levels", "# Title", "## Title"),
        ("links", "other.md", "another.md"),
        ("pictures", "picture one", "picture two"),
        ("table rows", "| b | `b` |\n", ""),
    ],
)
def test_translations_out_of_step(docs: dict[str, Any], kind: str, old: str, new: str, tmp_path: Path) -> None:
    text = TABLE.format(rows="| a | `a` |\n| b | `b` |\n")
    (tmp_path / "guide.md").write_text(text)
    translation = tmp_path / "guide.zh-CN.md"
    docs["out_of_step"].__globals__["ROOT"] = tmp_path
    translation.write_text(text.replace("# one", "# 一").replace(": words", ": 文字"))
    assert docs["out_of_step"](translation) == []
    translation.write_text(text.replace(old, new))
    assert kind in "\n".join(docs["out_of_step"](translation))


def test_places_that_are_not_named(docs: dict[str, Any], tmp_path: Path) -> None:
    check = docs["missing_places"]
    names = [f"folder{number}/" for number in range(10)]
    for name in names:
        (tmp_path / name).mkdir()
    contributing = tmp_path / "CONTRIBUTING.md"
    contributing.write_text(TABLE.format(rows="\n".join(f"| a | `{name}` |" for name in names)))
    check.__globals__["ROOT"] = tmp_path
    check.__globals__["tracked"] = lambda: [contributing, *(tmp_path / name / "file" for name in names)]
    assert check(contributing) == []
    check.__globals__["tracked"] = lambda: [tmp_path / "cellar/file"]
    assert "cellar/" in "\n".join(check(contributing))
    (tmp_path / "folder3").rmdir()
    assert "folder3/ does not exist" in "\n".join(check(contributing))


def test_lengths_of_device_functions(lengths: dict[str, Any]) -> None:
    text = """
// A __global__ word in a comment.
#define DDU_DEVICE __device__
template <typename T>
__global__ void __launch_bounds__(256, 2)
    first_kernel(const T* input) {
  if (input) {
  }
}
__device__ void declared(int);
namespace ddu {
static __device__ __forceinline__ float half_of(float x) {
  return x / 2;
}
}  // namespace ddu
"""
    assert lengths["device_functions"](text) == [("first_kernel", 5), ("half_of", 3)]


def test_what_is_too_long(lengths: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main = lengths["main"]
    short = "".join(f"__device__ int f{number}() {{\n  return 0;\n}}\n" for number in range(20))
    source = tmp_path / "kernels.cuh"
    main.__globals__.update(ROOT=tmp_path, tracked=lambda: [source])
    for text, said in (
        (short, ""),
        (short + "__global__ void long_kernel() {\n" + "  f0();\n" * 79 + "}\n", "long_kernel has 81 lines"),
        (short + "\n" * 341, "kernels.cuh: 401 lines"),
    ):
        source.write_text(text)
        with pytest.raises(SystemExit) as ended:
            main()
        assert bool(ended.value.code) == bool(said)
        assert said in capsys.readouterr().out
