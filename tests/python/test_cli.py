"""``python -m dynamic_dilation_unfold``: the command line that its commands share."""

from __future__ import annotations

from pathlib import Path

import pytest
from command import exit_status, run
from dynamic_dilation_unfold import __version__
from dynamic_dilation_unfold._tools import arguments, bench, cli, demo

COMMANDS = ["demo", "bench", "info", "selftest"]


def test_module_runs() -> None:
    result = run("--help")
    assert result.returncode == 0, result.stderr
    for command in COMMANDS:
        assert command in result.stdout


def test_no_command_prints_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_status("--help") == 0
    expected = capsys.readouterr().out
    assert cli.main([]) == 0
    assert capsys.readouterr().out == expected


@pytest.mark.parametrize("command", COMMANDS)
def test_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_status(command, "--help") == 0
    assert capsys.readouterr().out.startswith(f"usage: python -m dynamic_dilation_unfold {command} [-h]")


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_status("--version") == 0
    assert capsys.readouterr().out == f"{__version__}\n"


@pytest.mark.parametrize(
    ("option", "file"),
    [
        ("--cmakedir", "DynamicDilationUnfoldConfig.cmake"),
        ("--includedir", "ddu/unfold.h"),
        ("--pkgconfigdir", "dynamic-dilation-unfold.pc"),
    ],
)
def test_folders_for_builds(option: str, file: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_status(option) == 0
    assert Path(capsys.readouterr().out.removesuffix("\n"), file).is_file()


@pytest.mark.parametrize(
    ("given", "usage", "error"),
    [
        (["nothing"], "usage: python -m dynamic_dilation_unfold [-h]", "argument COMMAND: invalid choice: 'nothing'"),
        (["--foo"], "usage: python -m dynamic_dilation_unfold [-h]", "unrecognized arguments: --foo"),
        *(
            ([command, "--foo"], f"usage: python -m dynamic_dilation_unfold {command} [-h]", "unrecognized arguments:")
            for command in COMMANDS
        ),
        (["bench", "--workload", "x"], "usage: python -m dynamic_dilation_unfold bench", "argument --workload: "),
    ],
)
def test_wrong_arguments(given: list[str], usage: str, error: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The usage is that of the command that was meant."""
    assert exit_status(*given) == 2
    shown, _, said = capsys.readouterr().err.partition("error: ")
    assert shown.startswith(usage)
    assert said.startswith(error)


@pytest.mark.parametrize("command", ["demo", "bench", "selftest"])
@pytest.mark.parametrize("device", ["nonsense", "meta", "mps", "cuda:99", "xpu", "cuda:x"])
def test_device_that_is_not_there(
    device: str, command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(demo, "require_extra", lambda: None)
    message = str(exit_status(command, "--device", device))
    assert message.startswith(f"Cannot use device {device}: ")
    assert "\n" not in message
    if not device.startswith("cuda"):
        assert message.endswith(": there are kernels for cpu and cuda")
    assert capsys.readouterr().out == ""


def test_a_device_that_the_build_cannot_serve(monkeypatch: pytest.MonkeyPatch) -> None:
    """The reason is the diagnosis, as of a call that fails."""
    monkeypatch.setattr(arguments, "explain", lambda message: "this build has no CUDA kernels; install that wheel")

    def fails(*_: object, **__: object) -> None:
        raise RuntimeError("libddu's own words\nand more")

    monkeypatch.setattr(arguments.torch, "ones", fails)
    message = "Cannot use device cuda: this build has no CUDA kernels; install that wheel"
    assert exit_status("bench", "--device", "cuda") == message
    assert exit_status("bench", "--device", "cpu") == "Cannot use device cpu: libddu's own words"


def test_an_interrupt_is_no_error_of_ours(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted(device: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(bench, "resolve_device", interrupted)
    assert cli.main(["bench"]) == 130
    assert capsys.readouterr().err == "interrupted\n"
