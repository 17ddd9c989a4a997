"""The experiments under examples/: that their networks differ in their rates alone, and what they run and record."""

from __future__ import annotations

import importlib
import json
import math
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

EXAMPLES = Path(__file__).parents[2] / "examples"
RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"
NEEDS = {"perspective": None, "local_attention": None, "denoise": "skimage", "digits": "sklearn"}
IMAGES = {
    "perspective": (2, 2, 48, 48),
    "local_attention": (2, 2, 48, 48),
    "denoise": (2, 1, 32, 32),
    "digits": (2, 1, 32, 32),
}


def example(name: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A module of that folder, as if it was started there."""
    if needed := NEEDS.get(name):
        pytest.importorskip(needed)  # ci/demo has both
    monkeypatch.syspath_prepend(str(EXAMPLES))
    monkeypatch.setattr(sys, "argv", [f"{name}.py"])
    return importlib.import_module(name)


@pytest.mark.parametrize("name", NEEDS)
def test_networks_differ_in_their_rates_alone(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module = example(name, monkeypatch)
    images = torch.randn(IMAGES[name], generator=torch.Generator().manual_seed(0))
    outputs, counts = {}, {}
    for variant in ("fixed 1", "fixed 2", "learnt", "learnt 2", "predicted", "predicted 2"):
        torch.manual_seed(0)
        network = module.Network(variant)
        outputs[variant] = network(images)
        counts[variant] = sum(p.numel() for p in network.parameters())
        outputs[variant].square().sum().backward()
        for kind in (p for n, p in network.named_parameters() if "predictor" in n or n.endswith("rate")):
            assert kind.grad.isfinite().all()
            assert kind.grad.any(), variant  # gradients reach what makes the rates from the first step
    for variant, output in outputs.items():
        other = "fixed 2" if variant.endswith("2") else "fixed 1"
        torch.testing.assert_close(output, outputs[other])  # all begin as the same function
    assert not torch.allclose(outputs["fixed 1"], outputs["fixed 2"])
    assert counts["predicted"] == counts["fixed 1"] == counts["fixed 2"]
    layers = 3 if name == "digits" else 1
    assert counts["learnt"] == counts["fixed 1"] + layers


@pytest.mark.parametrize("name", NEEDS)
def test_an_experiment_and_its_record(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], threads: None
) -> None:
    path = tmp_path / "record.json"
    jobs = ["--jobs", "2"] if name == "perspective" else []  # in processes of their own
    means = example(name, monkeypatch).main(["--quick", "--steps", "20", "--json", str(path), *jobs])
    assert "predicted" in means
    assert "fixed 1" in means
    record = json.loads(path.read_text())
    assert record["command"] == f"python examples/{name}.py --steps 2 --seeds 1"
    assert record["about"]["torch"] == torch.__version__
    assert [run["variant"] for run in record["runs"]] == list(means)
    for run in record["runs"]:
        assert run["figures"] == means[run["variant"]]
        assert all(math.isfinite(value) for value in run["figures"].values())
    written = capsys.readouterr()
    assert "parameters" in written.out
    assert written.err == ""  # no bars where there is no terminal


def test_training_lowers_the_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    module, evidence = example("perspective", monkeypatch), example("evidence", monkeypatch)
    torch.manual_seed(0)
    network = module.Network("predicted")

    def loss() -> float:
        with torch.no_grad():
            return float(module.loss(network, torch.Generator().manual_seed(7)))

    before = loss()
    evidence.train(network, module.loss, 12, 0, "training")
    assert loss() < before


@pytest.mark.parametrize("document", ["training.md", "training.zh-CN.md"])
def test_the_table_is_that_of_the_records(document: str) -> None:
    """Means over the seeds, of the variants that the table's columns are; "-" for one that was not tried."""
    lines = (EXAMPLES.parent / "docs" / document).read_text("utf-8").splitlines()
    names = [path.stem.removeprefix("experiment-") for path in RESULTS.glob("experiment-*.json")]
    assert len(names) >= 3
    for name in names:
        record = json.loads((RESULTS / f"experiment-{name}.json").read_text())
        assert record["command"].startswith(f"python examples/{name}.py ")
        assert record["seeds"] == 3
        (row,) = [line for line in lines if line.startswith("|") and f"examples/{name}.py" in line]
        expected = []
        for variant in ("fixed 1", "fixed 2", "learnt", "predicted"):
            found = [next(iter(run["figures"].items())) for run in record["runs"] if run["variant"] == variant]
            digits = 2 if found and found[0][0] == "PSNR" else 3
            expected.append(f"{sum(value for _, value in found) / 3:.{digits}f}" if found else "-")
        assert row.strip("| ").split(" | ")[1:] == expected


@pytest.mark.parametrize("mode", ["zeros", "border"])
def test_fadc_is_the_same_by_the_rate_and_by_offsets(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    fadc = example("fadc", monkeypatch)
    x, weight, module = fadc.problem(2, 3, 11, "cpu", torch.float64)
    rates, mask = module(x)
    assert rates.std() > 0.2
    ours = fadc.by_the_rate(x, 2 * rates, mask, weight, mode)  # rates that reach outside
    torch.testing.assert_close(ours, fadc.by_grid_sample(x, 2 * rates, mask, weight, mode))


def test_fadc_runs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    found = example("fadc", monkeypatch).main(["--quick", "--json", str(tmp_path / "record.json")])
    assert max(found["differences"].values()) < 1e-12
    assert len(found["differences"]) == 10
    assert all(figures["peak MB"] > 0 for figures in found["figures"].values())
    assert json.loads((tmp_path / "record.json").read_text())["figures"] == found["figures"]
