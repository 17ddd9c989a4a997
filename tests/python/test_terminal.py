"""What the commands show on a terminal, and that they are silent where there is none."""

from __future__ import annotations

import io
import sys
from typing import Any

import pytest
from dynamic_dilation_unfold._tools import cli, selftest, terminal


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def terminal_of(monkeypatch: pytest.MonkeyPatch, stream: str = "stderr") -> Terminal:
    """Makes a stream one. No fixture: pytest replaces the streams between those and the test."""
    made = Terminal()
    monkeypatch.setattr(sys, stream, made)
    return made


def test_a_loop_on_a_terminal_has_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = terminal_of(monkeypatch)
    assert list(terminal.progress([1, 2, 3], "counting")) == [1, 2, 3]
    assert "counting:   0%|" in screen.getvalue()
    assert "0/3" in screen.getvalue()
    assert screen.getvalue().endswith("\r")  # it goes when the loop has ended


def test_parts_on_a_terminal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    screen = terminal_of(monkeypatch)
    with terminal.Bar(2) as bar:
        with bar.step("washing"):
            pass
        bar.begin("drying")
        bar.end()
    for text in ("washing", "0 of 2", "drying"):
        assert text in screen.getvalue()
    assert capsys.readouterr().out.startswith("washing: 0.0 s")


@pytest.mark.parametrize("with_tqdm", [True, False])
def test_no_terminal_no_bar(
    with_tqdm: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if not with_tqdm:
        monkeypatch.setitem(sys.modules, "tqdm", None)  # makes its import fail
    assert list(terminal.progress(iter([1, 2, 3]), "counting", total=3)) == [1, 2, 3]
    with terminal.Bar(1) as bar, bar.step("washing"):
        terminal.write("a line")
    written = capsys.readouterr()
    assert written.err == ""
    assert written.out == "a line\nwashing: 0.0 s\n"


def test_without_tqdm_a_terminal_has_no_bar_either(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = terminal_of(monkeypatch)
    monkeypatch.setitem(sys.modules, "tqdm", None)
    assert list(terminal.progress([1, 2], "counting")) == [1, 2]
    assert screen.getvalue() == ""


@pytest.mark.skipif(sys.platform == "win32", reason="there it depends on the terminal's program")
def test_colours_are_for_terminals(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NO_COLOR", "TERM"):
        monkeypatch.delenv(name, raising=False)
    assert terminal.coloured("fine", "green", Terminal()) == "\x1b[32mfine\x1b[0m"
    assert terminal.coloured("fine", "green", io.StringIO()) == "fine"
    monkeypatch.setenv("NO_COLOR", "1")
    assert terminal.coloured("fine", "green", Terminal()) == "fine"
    monkeypatch.delenv("NO_COLOR")
    monkeypatch.setenv("TERM", "dumb")
    assert terminal.coloured("fine", "green", Terminal()) == "fine"


def test_the_selftest_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = terminal_of(monkeypatch)

    def found(device: Any, compile: bool) -> dict[str, Any]:
        return {"a": lambda device: None, "b": lambda device: None}

    monkeypatch.setattr(selftest, "checks", found)
    output = terminal_of(monkeypatch, "stdout")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert cli.main(["selftest", "--device", "cpu"]) == 0
    assert "checking cpu:   0%|" in screen.getvalue()
    assert "0/2" in screen.getvalue()
    assert output.getvalue().count("\x1b[32m") == 3
