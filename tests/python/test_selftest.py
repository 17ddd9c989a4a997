"""``python -m dynamic_dilation_unfold selftest``: that it passes here, and that each of its checks can fail."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from dynamic_dilation_unfold import dynamic_dilation_conv2d, dynamic_dilation_unfold
from dynamic_dilation_unfold._tools import cli, selftest, selftest_checks
from torch import Tensor

CPU = torch.device("cpu")
# torch's own way to its decompositions of forward-mode derivatives.
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.script. is (deprecated|not supported):DeprecationWarning")


def test_selftest(device: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["selftest", "--device", device]) == 0
    output = capsys.readouterr().out
    count = len(selftest_checks.checks(torch.device(device), compile=False))
    passes, fails = selftest.marks("utf-8")
    assert output.count(f"  {passes} ") + output.count("  ok   ") == count
    assert fails not in output
    assert f"\n{count} checks passed in " in output
    assert "verdict " in output  # what info prints stands above


def scaled(*args: Any, **options: Any) -> Tensor:
    return dynamic_dilation_unfold(*args, **options) * 1.01


def without_second_derivatives(*args: Any, **options: Any) -> Tensor:
    columns = dynamic_dilation_unfold(*args, **options)
    return columns + (columns.detach() - columns) * 0.5


def transposed(input: Tensor, *args: Any, **options: Any) -> Tensor:
    """Reads a channels_last input as if it lay like any other."""
    if not input.is_contiguous():
        input = input.movedim(1, 3).reshape(input.shape)
    return dynamic_dilation_unfold(input, *args, **options)


def wide_type(*args: Any, **options: Any) -> Tensor:
    return dynamic_dilation_unfold(*args, **options).float()


def noisy(*args: Any, **options: Any) -> Tensor:
    columns = dynamic_dilation_unfold(*args, **options)
    return columns * (1 + 1e-7 * torch.rand_like(columns))


def poisonous(*args: Any, **options: Any) -> Tensor:
    columns = dynamic_dilation_unfold(*args, **options)
    return columns + columns[:, :1] * 0


def by_threads(*args: Any, **options: Any) -> Tensor:
    return dynamic_dilation_unfold(*args, **options) + torch.get_num_threads() * 1e-3


def near_only(input: Tensor, kernel: Any, rates: Tensor, *options: Any) -> Tensor:
    return dynamic_dilation_unfold(input, kernel, rates.clamp(-3, 15), *options)


@pytest.mark.parametrize(
    ("spoilt", "fail"),
    [
        (scaled, {"a map of ones", "float64", "float32", "float16", "bfloat16", "rates", "torch.func"}),
        (without_second_derivatives, {"second derivatives"}),
        (transposed, {"a channels_last input"}),
        (wide_type, {"autocast"}),
        (noisy, {"deterministic", "a map of ones"}),
        (poisonous, {"a rate that is NaN"}),
        (by_threads, {"one thread"}),
        (near_only, {"rates"}),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_each_check_can_fail(spoilt: Callable[..., Tensor], fail: set[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selftest_checks, "dynamic_dilation_unfold", spoilt)
    checks = selftest_checks.checks(CPU, compile=False)
    for start in fail:
        (check,) = (check for name, check in checks.items() if name.startswith(start))
        with pytest.raises(selftest_checks.WrongResult):
            check(CPU)


@pytest.mark.parametrize("spoilt", ["output", "input", "weight", "map", "bias", "mask"])
@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "bfloat16"])
def test_a_check_of_convolutions_can_fail(spoilt: str, dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """By its output or by one of its gradients, which are 5 % off."""

    def off(argument: Any, name: str) -> Any:
        if argument is None or name != spoilt:
            return argument
        return argument + (argument - argument.detach()) * 0.05

    def wrong(*arguments: Any) -> Tensor:
        names = ("input", "weight", "map", "bias", "stride", "padding", "dilation", "mask")
        output = dynamic_dilation_conv2d(*map(off, arguments, names))
        return output * 1.05 if spoilt == "output" else output

    (check,) = (c for n, c in selftest_checks.checks(CPU, compile=False).items() if n.startswith(f"conv2d in {dtype}:"))
    monkeypatch.setattr(selftest_checks, "dynamic_dilation_conv2d", wrong)
    with pytest.raises(selftest_checks.WrongResult, match=rf"\): {spoilt}"):
        check(CPU)


def test_what_fails_is_said(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def wrong(device: torch.device) -> None:
        raise selftest_checks.WrongResult("columns: relative difference 1.0, at most 1e-13 is right")

    def breaks(device: torch.device) -> None:
        raise RuntimeError("the kernel did not start")

    found = {"a": wrong, "b": breaks, "c": lambda device: None}
    monkeypatch.setattr(selftest, "checks", lambda device, compile: found)
    assert cli.main(["selftest", "--device", "cpu"]) == 1
    output = capsys.readouterr().out
    assert "      columns: relative difference 1.0, at most 1e-13 is right\n" in output
    assert "      RuntimeError: the kernel did not start\n" in output
    assert "\n2 of 3 checks FAILED in " in output


@pytest.mark.parametrize(
    ("encoding", "expected"),
    [("utf-8", ("✓", "✗")), ("cp1252", ("ok  ", "FAIL")), ("ascii", ("ok  ", "FAIL")), (None, ("ok  ", "FAIL"))],
)
def test_terminals_without_ticks(encoding: str | None, expected: tuple[str, str]) -> None:
    assert selftest.marks(encoding) == expected


@pytest.mark.parametrize(
    ("about", "sentence"),
    [
        ({"toolkit": None, "verdict": "ready"}, "cuda was left out: there is no CUDA device"),
        ({"toolkit": "13.0", "verdict": "update the driver"}, "cuda was left out: update the driver"),
    ],
)
def test_no_cuda(
    about: dict[str, Any], sentence: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(selftest.info, "collect", lambda: about)
    monkeypatch.setattr(selftest.info, "text_of", str)
    monkeypatch.setattr(selftest, "checks", lambda device, compile: {})
    assert cli.main(["selftest"]) == 0
    assert sentence in capsys.readouterr().out
