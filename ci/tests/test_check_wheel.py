"""Faults that are put into a sound wheel, the one that DDU_WHEEL names, are found by ci/check-wheel."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Callable
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path

import pytest

# Of a file in the wheel, its name and content afterwards, or None where it is to be left out.
Change = Callable[[str, bytes], "tuple[str, bytes] | None"]

loader = SourceFileLoader("check_wheel", str(Path(__file__).parents[1] / "check-wheel"))
check_wheel = module_from_spec(spec_from_loader("check_wheel", loader))
loader.exec_module(check_wheel)

WHEEL = Path(os.environ["DDU_WHEEL"])
MODULE = next(iter(check_wheel.modules(WHEEL)))
PYTHON = MODULE.split("-")[1]
IS_ARM = WHEEL.name.endswith("aarch64.whl")
MACHINE, OTHER_MACHINE = ("aarch64", "x86_64") if IS_ARM else ("x86_64", "aarch64")
CODE, OTHER_CODE = (b"\xb7", b"\x3e") if IS_ARM else (b"\x3e", b"\xb7")  # byte 18 of an ELF file, after its type


def changed(folder: Path, change: Change, old: str = "", new: str = "") -> Path:
    """A copy of the wheel with a change in each file, and one in its own name."""
    target = folder / WHEEL.name.replace(old, new)
    with zipfile.ZipFile(WHEEL) as sound, zipfile.ZipFile(target, "w") as faulty:
        for name in sound.namelist():
            if not name.endswith("/") and (file := change(name, sound.read(name))):
                faulty.writestr(*file)
    return target


def without(ending: str) -> Change:
    return lambda name, data: None if name.endswith(ending) else (name, data)


def with_bytes(ending: str, old: bytes, new: bytes) -> Change:
    return lambda name, data: (name, data.replace(old, new, 1) if name.endswith(ending) else data)


def unchanged(name: str, data: bytes) -> tuple[str, bytes]:
    return name, data


def said_of(wheel: Path) -> str:
    return "".join(f"{problem}\n" for problem in check_wheel.check(wheel))


def test_the_wheel_is_sound() -> None:
    assert said_of(WHEEL) == ""


@pytest.mark.parametrize("name", sorted(check_wheel.REQUIRED | {MODULE}))
def test_a_missing_file(name: str, tmp_path: Path) -> None:
    assert f"missing: {name}\n" in said_of(changed(tmp_path, without(name)))


@pytest.mark.parametrize(
    ("said", "change"),
    [
        ("no licence", without("LICENSE")),
        ("unexpected: ", lambda name, data: (name.replace("reference.py", "tests/test.py"), data)),
        ("not of this wheel's", lambda name, data: (name.replace(f"-{PYTHON}-", "-399-"), data)),
        ("is for EM_", with_bytes("libddu.so", b"\3\0" + CODE, b"\3\0" + OTHER_CODE)),
        ("tells of /home/", with_bytes("functional.py", b"\n", b"\n# /home/someone/functional.py\n")),
        ("tells of /tmp/", with_bytes("RECORD", b"", b"/tmp/build/x.py,,\n")),
        ("tells of /opt/", with_bytes("Torch.cmake", b"", b"include(/opt/toolkit/share)\n")),
        ("the metadata says version", with_bytes("METADATA", b"\nVersion: ", b"\nVersion: 9")),
        ("the metadata says tags", with_bytes("WHEEL", b"\nTag: cp", b"\nTag: pp")),
        ("the metadata's addresses are", with_bytes("METADATA", b"\nProject-URL: Repo", b"\nProject-URL: Depo")),
        ("bound to one torch", with_bytes("METADATA", b"Dist: torch>=", b"Dist: torch==")),
        ("searches ['/wheels/lib']", with_bytes(MODULE, b"$ORIGIN/lib\0", b"/wheels/lib\0")),
    ],
)
def test_a_fault_inside(said: str, change: Change, tmp_path: Path) -> None:
    assert said in said_of(changed(tmp_path, change))


@pytest.mark.parametrize(
    ("said", "old", "new"),
    [("missing: ", f"cp{PYTHON}-cp{PYTHON}", "cp399-cp399"), ("is for EM_", MACHINE, OTHER_MACHINE)],
)
def test_a_wrong_name(said: str, old: str, new: str, tmp_path: Path) -> None:
    assert said in said_of(changed(tmp_path, unchanged, old, new))
