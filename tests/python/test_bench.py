"""``python -m dynamic_dilation_unfold bench``: what it measures and writes."""

from __future__ import annotations

import importlib.util
import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from command import exit_status
from dynamic_dilation_unfold._tools import (
    bench,
    bench_jobs,
    bench_plot,
    bench_report,
    cli,
    consumers,
    convolution,
    machine,
    timing,
    workloads,
)
from dynamic_dilation_unfold._tools.timing import Times
from dynamic_dilation_unfold._tools.workloads import Workload


def test_bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(workloads.WORKLOADS, "R", [Workload((2, 4, 24, 20), 3)])
    path = tmp_path / "new" / "figures.json"
    dtypes = ["float16", "bfloat16", "float32", "float64"]
    assert cli.main(["bench", "--quick", "--dtype", *dtypes, "--json", str(path)]) == 0
    output = capsys.readouterr().out
    for text in (
        "F.unfold",
        "F.fold",
        "F.grid_sample",
        "fill of the output",
        "read of the gradient",
        "input only",
        "GB/s",
    ):
        assert text in output
    figures = json.loads(path.read_text())
    assert {(r["dtype"], r["map"]) for r in figures["results"]} == {(d, m) for d in dtypes for m in workloads.MAPS}
    for record in figures["results"]:
        assert record["shape"] == [1, 4, 24, 20]
        assert record["bytes"]["backward"] > record["bytes"]["forward"] > record["output_bytes"]
        for direction, at_least in (("forward", ("fill", "ours")), ("backward", ("read", "ours", "ours, map only"))):
            assert set(at_least) <= set(record[direction])
            assert all(time > 0 for time in record[direction].values())
    assert figures["about"]["torch"] == torch.__version__
    assert figures["call_overhead"]["forward and backward"]["ours"] > 0


def test_bench_lists(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    shapes = [Workload((1, 8, 12, 12), 4, stride=2, groups=2), Workload((1, 1, 9, 9), 3)]
    monkeypatch.setitem(workloads.WORKLOADS, "shapes", shapes)
    assert cli.main(["bench", "--quick", "--workload", "shapes", "--map", "noise"]) == 0
    output = capsys.readouterr().out
    assert "1x8x12x12 k4 s2 g2" in output
    assert "1x1x9x9 k3" in output


def test_bench_of_rates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Each row has a map and a type of its own, whatever is asked for."""
    rows = [
        Workload((1, 8, 12, 12), 3, dtype=torch.float32, map="0.5-9", channels_last=True),
        Workload((1, 4, 20, 9), 3, padding=6, dilation=6, dtype=torch.float64, map="0.5-1.5"),
    ]
    monkeypatch.setitem(workloads.WORKLOADS, "rates", rows)
    path = tmp_path / "figures.json"
    assert cli.main(["bench", "--quick", "--workload", "rates", "--dtype", "bfloat16", "--json", str(path)]) == 0
    output = capsys.readouterr().out
    for text in ("1x8x12x12 k3 channels_last", "1x4x20x9 k3 d6", "ours/fill", "ours/read", "F.fold", "grid_sample"):
        assert text in output
    records = json.loads(path.read_text())["results"]
    assert [(r["dtype"], r["map"], r["dilation"], r["channels_last"]) for r in records] == [
        ("float32", "0.5-9", 1, True),
        ("float64", "0.5-1.5", 6, False),
    ]
    assert all(r["forward"]["grid_sample"] > 0 and r["backward"]["F.fold"] > 0 for r in records)


def test_the_deterministic_column_is_there_where_it_was_measured() -> None:
    times = {"read": 1.0, "F.fold": 4.0, "ours": 2.0}
    record = {"label": "x", "dtype": "float32", "map": "ones", "output_bytes": 1, "forward": {"ours": 1.0}}
    without = bench_report.compact("rates", [record | {"backward": times}])
    assert "deterministic" not in without
    both = [record | {"backward": times | {"ours, deterministic": 3.0}}, record | {"backward": times}]
    *_, heads, first, second = (line.split() for line in bench_report.compact("rates", both).splitlines())
    assert heads[-1] == "deterministic/ours"
    assert (first[-1], second[-1]) == ("1.50", "-")


def test_bench_of_consumers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The forms agree, in every operator, type and format."""
    rows = [
        consumers.Consumer(operator, Workload((2, 8, 9, 7), 3, dtype=dtype, map="0.5-3", channels_last=last), heads=2)
        for operator in ("aggregate", "correlate", "attention")
        for dtype, last in ((torch.float32, True), (torch.float16, False))
    ]
    monkeypatch.setattr(consumers, "CONSUMERS", rows)
    path = tmp_path / "figures.json"
    assert cli.main(["bench", "--quick", "--workload", "consumers", "--json", str(path)]) == 0
    assert "attention" in capsys.readouterr().out
    results = json.loads(path.read_text())["results"]
    assert len(results) == len(rows)
    for record in results:
        assert not record["unavailable"]
        assert len(record["differences"]) == {"aggregate": 4, "correlate": 4, "attention": 5}[record["operator"]]
        for direction in ("forward", "step"):
            assert set(record[direction]) == {"ours", "columns"}


def test_consumers_that_differ_are_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, columns = consumers._FORMS["aggregate"]
    monkeypatch.setitem(consumers._FORMS, "aggregate", (lambda *tensors, of: 2 * ours(*tensors, of=of), columns))
    workload = Workload((1, 4, 6, 6), 3, dtype=torch.float32, map="0.5-3")
    record = consumers.measure_consumer(consumers.Consumer("aggregate", workload, 1), torch.device("cpu"), 0.01, False)
    assert record["wrong"]
    assert "forward" not in record


def test_bench_of_convolution(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [
        convolution.Convolution(Workload((1, 4, 8, 9), 3, dtype=dtype, map="0.5-3", channels_last=last), 6)
        for dtype, last in ((torch.float32, False), (torch.bfloat16, True))
    ]
    rows.append(replace(rows[0], outputs=8, groups=4))  # depthwise
    monkeypatch.setattr(convolution, "ON_CPU", rows)
    path = tmp_path / "figures.json"
    assert cli.main(["bench", "--quick", "--workload", "convolution", "--json", str(path)]) == 0
    output = capsys.readouterr().out
    assert "F.conv2d" in output
    assert "8 in 4 groups" in output
    for record in json.loads(path.read_text())["results"]:
        for figure in ("forward", "step", "step bytes"):
            assert all(record[figure][name] > 0 for name in ("ours", "with a mask", "F.conv2d"))


def test_a_convolution_that_differs_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    ours = convolution._ours
    monkeypatch.setattr(convolution, "_ours", lambda *tensors, of: 2 * ours(*tensors, of=of))
    of = convolution.Convolution(Workload((1, 4, 6, 6), 3, dtype=torch.float32, map="0.5-3"), 4)
    record = convolution.measure_convolution(of, torch.device("cpu"), 0.01)
    assert record["wrong"]
    assert "forward" not in record


def test_consumers_are_what_they_are_for() -> None:
    assert {
        (c.operator, c.workload.channels_last) for c in consumers.CONSUMERS if c.workload.shape == workloads.R.shape
    } == {(operator, last) for operator in ("aggregate", "correlate", "attention") for last in (False, True)}
    for consumer in consumers.CONSUMERS:
        assert consumer.workload.shape[1] % consumer.heads == 0
        assert consumer.workload.dtype
        assert consumer.workload.map


def test_the_workload_rates_has_what_it_is_for() -> None:
    rows = workloads.WORKLOADS["rates"]
    assert all(row.dtype and row.map for row in rows)
    assert {row.map for row in rows if row.shape == workloads.R.shape} >= {"0.5-3", "0.5-9", "0.5-16", "0.5-40"}
    assert {row.dtype for row in rows if row.map == "0.5-16"} >= set(bench_jobs.TOLERANCE)
    assert any(row.channels_last for row in rows)
    assert {row.dilation for row in rows} >= {2, 12, 18}
    assert {row.kernel for row in rows} >= {7, 11}
    assert {row.shape[1] for row in rows} >= {1, 3, 20}


def test_bench_of_a_shape_of_ones_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "figures.json"
    options = ["--shape", "2x6x13x9", "--kernel", "3", "--dilation", "6", "--stride", "2", "--groups", "2"]
    assert cli.main(["bench", "--quick", *options, "--map", "0.5-2", "ones", "--json", str(path)]) == 0
    assert "own: 1x6x13x9 k3 s2 d6 g2, float32, padding 6" in capsys.readouterr().out
    for record in json.loads(path.read_text())["results"]:
        assert record["output_bytes"] == 6 * 9 * 7 * 5 * 4
        assert record["backward"]["ours, input only"] > 0


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--shape", "1x3x9x9", "--groups", "2"], "Cannot measure 1x3x9x9, kernel 3, padding 1, groups 2: "),
        (["--shape", "1x3x4x4", "--kernel", "9", "--padding", "0"], "Cannot measure 1x3x4x4, kernel 9, padding 0: "),
        (["--kernel", "5"], "--kernel goes with --shape; the other workloads have their own"),
        (["--channels-last"], "--channels-last goes with --shape; the other workloads have their own"),
    ],
)
def test_shapes_that_cannot_be(options: list[str], sentence: str, capsys: pytest.CaptureFixture[str]) -> None:
    message = str(exit_status("bench", *options))
    assert message.startswith(sentence)
    assert "\n" not in message
    assert capsys.readouterr().out == ""  # at once


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--shape", "1x3x9"], "argument --shape: '1x3x9' is no shape BxCxHxW such as 2x256x33x33"),
        (["--shape", "1x0x9x9"], "argument --shape: '0' is no whole number from 1 to 2147483647"),
        (["--seconds", "-1"], "argument --seconds: '-1' is no positive number of seconds"),
        (["--seconds", "nan"], "argument --seconds: 'nan' is no positive number of seconds"),
        (["--seconds", "inf"], "argument --seconds: 'inf' is no positive number of seconds"),
        (["--map", "wild"], "argument --map: 'wild' is none of ones, smooth, noise, wide, and no range of rates"),
        (["--map", "3-1"], "argument --map: '3-1' is none of ones, smooth, noise, wide, and no range of rates"),
        (["--shape", "1x1x9x9", "--workload", "R"], "argument --workload: not allowed with argument --shape"),
    ],
)
def test_arguments_that_cannot_be(options: list[str], sentence: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_status("bench", *options) == 2
    usage, _, error = capsys.readouterr().err.partition("error: ")
    assert usage.startswith("usage: python -m dynamic_dilation_unfold bench")
    assert error.startswith(sentence)


def test_a_shape_without_the_memory_for_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["bench", "--shape", "100000x1000x1000x100"]) == 1
    assert (
        "left out: 100000x1000x1000x100, kernel 3, padding 1, torch.float32 needs 2165760.0 GB, and "
        in capsys.readouterr().err
    )


def test_figures_that_cannot_be_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    for path in (tmp_path / "file" / "figures.json", tmp_path):
        assert str(exit_status("bench", "--json", str(path))).startswith(f"Cannot write {path}: ")
        assert capsys.readouterr().out == ""  # before the work


def test_bench_plot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib")
    monkeypatch.setitem(workloads.WORKLOADS, "R", [Workload((1, 4, 12, 10), 3)])
    drawn = []
    monkeypatch.setattr(bench_plot, "draw", lambda *args: drawn.append((args, right(*args))))
    right = bench_plot_draw
    path = tmp_path / "new" / "plot.svg"
    assert cli.main(["bench", "--quick", "--map", "ones", "noise", "--plot", str(path)]) == 0
    ((records, _, _), figure) = drawn[0]
    assert path.read_text().lstrip().startswith("<?xml")
    grid = figure.axes
    assert len(grid) == 2 * len(records) == 4
    assert "R: 1x4x12x10 k3, float32, ones; forward" in grid[0].get_title(loc="left")
    for axes, times in zip(grid[:2], (records[0]["forward"], records[0]["backward"]), strict=True):
        assert len(axes.patches) == len(times)
        widths = sorted(bar.get_width() for bar in axes.patches)
        assert widths == pytest.approx(sorted(1e3 * value for value in times.values()))
        assert "dynamic_dilation_unfold" in [label.get_text() for label in axes.get_yticklabels()]
        assert len(axes.texts) == len(times)  # each bar bears its time


def test_bench_plot_without_columns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib")
    monkeypatch.setattr(consumers, "CONSUMERS", consumers.CONSUMERS[:1])
    monkeypatch.setattr(convolution, "ON_CPU", convolution.ON_CPU[:1])
    drawn = []
    monkeypatch.setattr(bench_plot, "draw", lambda *args: drawn.append(bench_plot_draw(*args)))
    path = tmp_path / "plot.svg"
    assert cli.main(["bench", "--quick", "--workload", "consumers", "convolution", "--plot", str(path)]) == 0
    named = [[label.get_text() for label in axes.get_yticklabels()] for axes in drawn[0].axes]
    ours = "dynamic_dilation_conv2d"
    assert named[0] == named[1] == ["dynamic_dilation_aggregate", "the same on columns"]
    assert named[2] == named[3] == [ours, f"{ours}, with a mask", "F.conv2d"]


def test_the_commit_of_an_installed_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_DIR", "none")
    monkeypatch.delenv("DDU_COMMIT", raising=False)
    assert machine.commit() == {"commit": None}
    monkeypatch.setenv("DDU_COMMIT", "1cdd2b7")
    assert machine.commit() == {"commit": "1cdd2b7", "modified": False}


bench_plot_draw = bench_plot.draw


def test_a_plot_that_cannot_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if importlib.util.find_spec("matplotlib"):
        path = tmp_path / "plot.doc"
        assert str(exit_status("bench", "--plot", str(path))).startswith(f"Cannot plot to {path}: the formats are ")
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)  # makes its import fail
    assert 'pip install ".[viz]"' in str(exit_status("bench", "--plot", str(tmp_path / "plot.png")))
    assert capsys.readouterr().out == ""  # before the work


def test_figures_are_kept_until_there_are_new_ones(tmp_path: Path) -> None:
    path = tmp_path / "figures.json"
    path.write_text("old")
    bench.claim(path)
    assert path.read_text() == "old"
    bench.claim(tmp_path / "new" / "figures.json")
    assert list((tmp_path / "new").iterdir()) == []


def test_bench_refuses_to_time_wrong_results(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(workloads.WORKLOADS, "R", [Workload((1, 2, 8, 8), 3)])
    right = bench_jobs.ours
    monkeypatch.setattr(bench_jobs, "ours", lambda *args, **options: right(*args, **options) * 1.01)
    assert cli.main(["bench", "--quick"]) == 1
    assert "wrong" in capsys.readouterr().out


@pytest.mark.parametrize("kind", workloads.MAPS)
@pytest.mark.parametrize(
    "options",
    [
        {"kernel": 3},
        {"kernel": 4, "stride": 2, "padding": 2},
        {"kernel": 5, "groups": 3},
        {"kernel": 3, "dilation": 3, "padding": 3, "channels_last": True},
    ],
)
def test_emulation_computes_the_same(kind: str, options: dict[str, int]) -> None:
    workload = Workload((2, 6, 15, 11), **options)
    problem = bench_jobs.Problem.make(workload, kind, torch.float64, torch.device("cpu"))
    emulated = bench_jobs.emulation(problem.input, problem.rates, workload)
    torch.testing.assert_close(emulated, bench_jobs.ours(problem.input, problem.rates, workload))


@pytest.mark.parametrize("name", workloads.WORKLOADS)
def test_workloads_are_possible(name: str) -> None:
    for workload in workloads.WORKLOADS[name]:
        assert min(workload.map_shape()) > 0
        assert workload.shape[1] % workload.groups == 0
        kind = workload.map or "smooth"
        least, most = workloads.rates_between(kind) or (0.5, 3)
        one = bench_jobs.Problem.make(workloads.small(workload), kind, torch.float32, torch.device("cpu"))
        assert least <= one.rates.min()
        assert most - 0.1 * (most - least) < one.rates.max() <= most
        assert one.input.is_contiguous(memory_format=torch.channels_last) == (
            workload.channels_last or workload.shape[1] == 1
        )


def test_jobs_take_turns_within_their_limits() -> None:
    calls: list[str] = []
    jobs = {name: lambda name=name: calls.append(name) for name in "ab"}
    times = timing.measure(jobs, torch.device("cpu"), budget=0.0, at_least=3)
    assert set(times) == {"a", "b"}
    assert calls[-6:] == ["a", "b"] * 3


def test_a_busy_machine_is_told_of() -> None:
    quiet = Times.of([1.0, 1.1, 1.2])
    assert (quiet.least, quiet.median) == (1.0, 1.1)
    assert timing.busy({"ours": quiet}) is None
    assert timing.busy({}) is None
    assert timing.busy({"tiny": Times.of([2e-6, 6e-6, 7e-6])}) is None  # the clock's jitter
    assert timing.busy({"tiny": Times.of([2e-6, 9e-6, 9e-6])})
    warning = timing.busy({"ours": quiet, "F.unfold": Times.of([10.9e-6, 6.3e-3, 7e-3])})
    assert str(warning).startswith("warning: this machine is busy: F.unfold took 10.9 us at best and 6.30 ms usually")


def test_the_benchmark_warns_of_a_busy_machine(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for limit, count in ((0.0, 1), (1e9, 0)):
        monkeypatch.setattr(timing, "_QUIET", limit)
        assert cli.main(["bench", "--quick", "--shape", "1x1x9x9", "--map", "ones"]) == 0
        assert capsys.readouterr().out.count("warning: this machine is busy") == count


@pytest.mark.parametrize(
    ("value", "text"),
    [(61.23e-3, "61.2 ms"), (2.5, "2.50 s"), (0.9999e-3, "1.00 ms"), (4e-7, "0.400 us"), (0.151, "151 ms")],
)
def test_seconds(value: float, text: str) -> None:
    assert timing.seconds(value) == text
