"""``python -m dynamic_dilation_unfold``: what it prints, writes and returns."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from dynamic_dilation_unfold import __version__
from dynamic_dilation_unfold._tools import bench, bench_jobs, cli, demo, smoothing, timing

MODULE = [sys.executable, "-m", "dynamic_dilation_unfold"]
missing = [name for name in ("matplotlib", "skimage") if importlib.util.find_spec(name) is None]
needs_demo_extra = pytest.mark.skipif(bool(missing), reason=f"not installed: {', '.join(missing)}")


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*MODULE, *arguments], capture_output=True, text=True, timeout=300)


def exit_status(*arguments: str) -> int | str | None:
    with pytest.raises(SystemExit) as caught:
        cli.main(arguments)
    return caught.value.code


def test_module_runs() -> None:
    result = run("--help")
    assert result.returncode == 0, result.stderr
    assert "demo" in result.stdout
    assert "bench" in result.stdout


@pytest.mark.parametrize("command", ["demo", "bench"])
def test_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_status(command, "--help") == 0
    assert "--device" in capsys.readouterr().out


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


@pytest.mark.parametrize("arguments", [(), ("nothing",), ("demo", "--nothing"), ("bench", "--workload", "nothing")])
def test_wrong_arguments(arguments: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_status(*arguments) == 2
    assert capsys.readouterr().err.startswith("usage:")


@pytest.mark.parametrize("command", ["demo", "bench"])
def test_device_that_is_not_there(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "require_extra", lambda: None)
    assert str(exit_status(command, "--device", "nonsense")).startswith("Cannot use device nonsense: ")


# --- demo -------------------------------------------------------------------------------------------------------------


@needs_demo_extra
def test_demo(tmp_path: Path) -> None:
    result = run("demo", "--output", str(tmp_path / "new"))
    assert result.returncode == 0, result.stderr
    picture = tmp_path / "new" / "dynamic_dilation_unfold_demo.png"
    assert f"picture: {picture}" in result.stdout
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert "difference from the reference" in result.stdout


@needs_demo_extra
@pytest.mark.parametrize("shape", [(80, 120), (80, 120, 3), (80, 120, 4), (900, 100, 3)])
def test_demo_with_an_image(shape: tuple[int, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from PIL import Image

    path = tmp_path / "image.png"
    pixels = torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    Image.fromarray(pixels.numpy()).save(path)
    image = smoothing.load(path)
    assert image.shape[:2] == (1, 3)
    assert max(image.shape) <= smoothing.LONGEST_SIDE
    assert 0 <= image.min() < image.max() <= 1
    if len(shape) == 2:
        assert cli.main(["demo", "--image", str(path), "--output", str(tmp_path)]) == 0
        assert "photograph 120 x 80" in capsys.readouterr().out


@needs_demo_extra
def test_demo_with_a_tiny_image(tmp_path: Path) -> None:
    from PIL import Image

    path = tmp_path / "tiny.png"
    Image.new("RGB", (9, 60)).save(path)
    assert "too small: (9, 60)" in str(exit_status("demo", "--image", str(path)))


@needs_demo_extra
def test_demo_smooths_flat_areas_and_keeps_edges() -> None:
    clean = smoothing.load(None)
    noisy = clean + smoothing.NOISE * torch.randn(clean.shape, generator=torch.Generator().manual_seed(0))
    rates = smoothing.map_from_content(noisy)
    assert smoothing.RATES[0] <= rates.min() < 0.5
    assert 1.5 < rates.max() <= smoothing.RATES[1]
    fixed = smoothing.pool(noisy, torch.full_like(rates, rates.mean().item()))
    adaptive = smoothing.pool(noisy, rates)
    assert smoothing.psnr(adaptive, clean) > smoothing.psnr(fixed, clean) + 1
    assert smoothing.psnr(adaptive, clean) > smoothing.psnr(noisy, clean) + 1


def test_pool_averages_what_is_inside() -> None:
    rates = torch.full((1, 1, 9, 9), 1.5)
    torch.testing.assert_close(smoothing.pool(torch.full((1, 2, 9, 9), 0.3), rates), torch.full((1, 2, 9, 9), 0.3))


@needs_demo_extra
@pytest.mark.parametrize(("name", "content"), [("missing.png", None), ("text.png", b"no image")])
def test_demo_without_an_image(name: str, content: bytes | None, tmp_path: Path) -> None:
    if content:
        (tmp_path / name).write_bytes(content)
    message = str(exit_status("demo", "--image", str(tmp_path / name), "--output", str(tmp_path)))
    assert message.startswith(f"Cannot read {tmp_path / name} as an image: ")


def test_demo_without_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)  # makes its import fail
    assert 'pip install ".[demo]"' in str(exit_status("demo"))


# --- bench ------------------------------------------------------------------------------------------------------------


def test_bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(bench.WORKLOADS, "R", [bench_jobs.Workload((2, 4, 24, 20), 3)])
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
    assert {(r["dtype"], r["map"]) for r in figures["results"]} == {(d, m) for d in dtypes for m in bench.MAPS}
    for record in figures["results"]:
        assert record["shape"] == [1, 4, 24, 20]
        assert record["bytes"]["backward"] > record["bytes"]["forward"] > record["output_bytes"]
        for direction, at_least in (("forward", ("fill", "ours")), ("backward", ("read", "ours", "ours, map only"))):
            assert set(at_least) <= set(record[direction])
            assert all(time > 0 for time in record[direction].values())
    assert figures["about"]["torch"] == torch.__version__
    assert figures["call_overhead"]["forward and backward"]["ours"] > 0


def test_bench_lists(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    workloads = [bench_jobs.Workload((1, 8, 12, 12), 4, stride=2, groups=2), bench_jobs.Workload((1, 1, 9, 9), 3)]
    monkeypatch.setitem(bench.WORKLOADS, "shapes", workloads)
    assert cli.main(["bench", "--quick", "--workload", "shapes", "--map", "noise"]) == 0
    output = capsys.readouterr().out
    assert "1x8x12x12 k4 s2 g2" in output
    assert "1x1x9x9 k3" in output


def test_bench_refuses_to_time_wrong_results(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(bench.WORKLOADS, "R", [bench_jobs.Workload((1, 2, 8, 8), 3)])
    right = bench_jobs.ours
    monkeypatch.setattr(bench_jobs, "ours", lambda *args, **options: right(*args, **options) * 1.01)
    assert cli.main(["bench", "--quick"]) == 1
    assert "wrong" in capsys.readouterr().out


@pytest.mark.parametrize("kind", bench.MAPS)
@pytest.mark.parametrize(
    "options", [{"kernel": 3}, {"kernel": 4, "stride": 2, "padding": 2}, {"kernel": 5, "groups": 3}]
)
def test_emulation_computes_the_same(kind: str, options: dict[str, int]) -> None:
    workload = bench_jobs.Workload((2, 6, 15, 11), **options)
    problem = bench_jobs.Problem.make(workload, kind, torch.float64, torch.device("cpu"))
    emulated = bench_jobs.emulation(problem.input, problem.rates, workload)
    torch.testing.assert_close(emulated, bench_jobs.ours(problem.input, problem.rates, workload))


@pytest.mark.parametrize("name", bench.WORKLOADS)
def test_workloads_are_possible(name: str) -> None:
    for workload in bench.WORKLOADS[name]:
        assert min(workload.map_shape()) > 0
        assert workload.shape[1] % workload.groups == 0
        one = bench_jobs.Problem.make(bench_jobs.small(workload), "smooth", torch.float32, torch.device("cpu"))
        assert one.rates.min() >= 0.5
        assert one.rates.max() <= 3


def test_jobs_take_turns_within_their_limits() -> None:
    calls: list[str] = []
    jobs = {name: lambda name=name: calls.append(name) for name in "ab"}
    times = timing.measure(jobs, torch.device("cpu"), budget=0.0, at_least=3)
    assert set(times) == {"a", "b"}
    assert calls[-6:] == ["a", "b"] * 3


@pytest.mark.parametrize(
    ("value", "text"),
    [(61.23e-3, "61.2 ms"), (2.5, "2.50 s"), (0.9999e-3, "1.00 ms"), (4e-7, "0.400 us"), (0.151, "151 ms")],
)
def test_seconds(value: float, text: str) -> None:
    assert timing.seconds(value) == text
