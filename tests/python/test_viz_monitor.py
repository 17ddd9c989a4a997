"""``dynamic_dilation_unfold.viz.RateMonitor``: what it logs, of which modules."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from dynamic_dilation_unfold import DynamicDilationUnfold, viz
from dynamic_dilation_unfold.modules import DilationPredictor, DynamicDilationAttention2d, DynamicDilationConv2d
from helpers import Model
from torch import Tensor, nn


class Given(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.unfold = DynamicDilationUnfold(3, padding=1)

    def forward(self, image: Tensor, rates: Tensor) -> Tensor:
        return self.unfold(image, dilation_map=rates)


def test_a_monitor_of_a_module_that_is_given_maps() -> None:
    found: list[viz.RateRecord] = []
    model, rates = Given(), torch.full((2, 1, 6, 6), 7.0, requires_grad=True)
    with viz.RateMonitor(model, found.append, every=2):
        for _ in range(3):
            model(torch.rand(2, 3, 6, 6), rates)
    model(torch.rand(2, 3, 6, 6), rates)  # the hook is gone
    assert [(record.name, record.step, record.mean) for record in found] == [("unfold", 0, 7.0), ("unfold", 2, 7.0)]
    assert found[0].outside == pytest.approx(8 / 9)
    assert torch.equal(found[0].rates, rates)
    assert not found[0].rates.requires_grad
    counts, edges = found[0].histogram(4)
    assert counts.sum() == rates.numel()
    assert len(edges) == 5


def test_a_monitor_of_a_module_that_predicts_its_map() -> None:
    found: list[viz.RateRecord] = []
    model = Model()  # its module `rate` has logits for output: named here as if they were the map
    options = {"kernel_size": 3, "padding": 1}
    with viz.RateMonitor(model, found.append, predictors={"rate": options}):
        model(torch.rand(2, 4, 6, 6))
    records = {record.name: record for record in found}
    assert set(records) == {"rate", "unfold"}
    torch.testing.assert_close(records["unfold"].rates, 1 + records["rate"].rates.tanh())
    assert 0 < records["rate"].outside < 1
    found.clear()
    with viz.RateMonitor(model, found.append, predictors={"rate": {}}):
        model(torch.rand(2, 4, 6, 6))
    assert found[0].outside is None


def test_a_monitor_of_layers_that_predict_their_map() -> None:
    found: list[viz.RateRecord] = []
    layer = DynamicDilationAttention2d(4, 2, 3)
    with viz.RateMonitor(nn.Sequential(layer), found.append):
        nn.Sequential(layer)(torch.rand(2, 4, 6, 6))
    (record,) = found
    assert (record.name, record.mean) == ("0", 1.0)
    assert record.outside == pytest.approx(1 - (16 * 9 + 16 * 6 + 4 * 4) / (36 * 9))
    with viz.RateMonitor(layer, found.append):
        layer(torch.rand(2, 4, 6, 6))
    assert found[1].name == "DynamicDilationAttention2d"
    given = DynamicDilationAttention2d(4, 2, 3, rates="given")
    with viz.RateMonitor(given, found.append):
        given(torch.rand(2, 4, 6, 6), torch.full((1, 1, 1, 1), 2.0))
    assert found[2].mean == 2
    alone = nn.Sequential(DilationPredictor(4))
    with viz.RateMonitor(alone, found.append):
        alone(torch.rand(2, 4, 6, 6))
    assert (found[3].name, found[3].outside) == ("0", None)


@pytest.mark.parametrize("padding", [0, 1, "same"])
@pytest.mark.parametrize("rates", ["predicted", "learned", "given"])
def test_a_monitor_of_convolutions(rates: str, padding: Any) -> None:
    found: list[viz.RateRecord] = []
    layer = DynamicDilationConv2d(4, 6, 3, padding=padding, rates=rates)
    with viz.RateMonitor(layer, found.append):
        layer(torch.rand(2, 4, 8, 8), *([torch.ones(1, 1, 1, 1)] if rates == "given" else []))
    (record,) = found
    assert record.mean == 1
    assert record.outside == pytest.approx(0 if padding == 0 else 1 - (36 * 9 + 24 * 6 + 4 * 4) / (64 * 9))


def test_a_monitor_of_a_layer_with_a_map_of_its_own() -> None:
    class Layer(nn.Module):
        def dilation_map(self, image: Tensor) -> Tensor:
            return torch.full((1, 1, 1, 1), 1.5)

        def forward(self, image: Tensor, dilation_map: Tensor | None = None) -> Tensor:
            return image

    found: list[viz.RateRecord] = []
    with viz.RateMonitor(Layer(), found.append):
        Layer()(torch.rand(1, 1, 6, 6))  # another one
    assert not found
    layer = Layer()
    with viz.RateMonitor(layer, found.append):
        layer(torch.rand(1, 1, 6, 6))
    assert (found[0].mean, found[0].outside) == (1.5, None)


@pytest.mark.parametrize("padding", ["same", "valid"])
def test_a_monitor_of_a_layer_whose_padding_is_a_word(padding: str) -> None:
    class Layer(nn.Module):
        kernel_size, stride, dilation = 5, 1, (1, 1)

        def forward(self, image: Tensor, dilation_map: Tensor) -> Tensor:
            return image

    layer, found = Layer(), []
    layer.padding = padding
    rates = torch.ones(1, 1, *((6, 6) if padding == "same" else (2, 2)))
    with viz.RateMonitor(layer, found.append):
        layer(torch.rand(1, 1, 6, 6), rates)
    share = viz.coverage_share(rates, (6, 6), 5, padding=2 if padding == "same" else 0)
    assert found[0].outside == pytest.approx(1 - float(share.mean()))
    assert (found[0].outside == 0) == (padding == "valid")


def test_a_monitor_of_rates_of_ones_own() -> None:
    found: list[viz.RateRecord] = []
    monitor = viz.RateMonitor(DynamicDilationUnfold(3), found.append)
    monitor.record("mine", torch.tensor([1.0, torch.nan]).view(1, 1, 1, 2))
    assert found[0].name == "mine"
    assert found[0].histogram(2)[0].sum() == 1


class Writer:
    def __init__(self) -> None:
        self.logged: dict[str, tuple[Any, int]] = {}

    def _log(self, tag: str, value: Any, step: int) -> None:
        self.logged[tag] = (value, step)

    add_scalar = add_histogram = add_images = _log


def test_a_monitor_writes_for_tensorboard() -> None:
    writer, model, rates = Writer(), DynamicDilationUnfold(3, padding=1, groups=2), torch.rand(3, 2, 5, 5)
    with viz.RateMonitor(model, writer):
        model(torch.rand(3, 4, 5, 5), rates)
        model(torch.rand(3, 4, 5, 5), rates)
    start = "DynamicDilationUnfold/"
    assert set(writer.logged) == {start + name for name in ("mean", "outside", "rates", "map")}
    assert all(step == 1 for _, step in writer.logged.values())
    image = writer.logged[start + "map"][0]
    assert image.shape == (2, 1, 5, 5)
    assert image.min() >= 0
    assert image.max() <= 1


def test_a_monitor_of_a_tensorboard_that_is_there(tmp_path: Path) -> None:
    tensorboard = pytest.importorskip("torch.utils.tensorboard", exc_type=ImportError)
    with (
        tensorboard.SummaryWriter(str(tmp_path)) as writer,
        viz.RateMonitor(DynamicDilationUnfold(3), writer) as monitor,
    ):
        monitor.record("given", torch.rand(1, 2, 4, 4), (6, 6), kernel_size=3)
    assert next(tmp_path.iterdir()).stat().st_size > 100


def test_monitors_that_cannot_be() -> None:
    model = nn.Sequential(nn.Conv2d(1, 1, 1))
    with pytest.raises(ValueError, match="Sequential has no module whose forward has an argument dilation_map"):
        viz.RateMonitor(model, print)
    with pytest.raises(ValueError, match="the model has no module 'rates'; it has , 0"):
        viz.RateMonitor(model, print, predictors={"rates": {}})
    with pytest.raises(ValueError, match="every must be at least 1, got 0"):
        viz.RateMonitor(model, print, every=0)
