"""What DynamicDilationConv2d takes over: a plain network's state dict, and a plain convolution."""

import copy
import pickle
import re

import pytest
import torch
from dynamic_dilation_unfold import DilationPredictor, DynamicDilationAttention2d, DynamicDilationConv2d, convert
from torch import nn


class OwnPredictor(nn.Module):
    """A user's module that calls its parts what the layer calls its own."""

    def __init__(self) -> None:
        super().__init__()
        self.predictor = DilationPredictor(2)
        self.rate_weight = nn.Parameter(torch.ones(1))


def without(state: dict[str, torch.Tensor], *parts: str) -> dict[str, torch.Tensor]:
    return {name: value for name, value in state.items() if not name.startswith(parts)}


@pytest.mark.parametrize("other", [lambda: DynamicDilationAttention2d(2, 1, 3), OwnPredictor], ids=["attention", "own"])
@pytest.mark.parametrize("layer_first", [False, True])
@pytest.mark.parametrize("options", [{}, {"rates": "learned"}], ids=str)
def test_what_is_missing_of_other_modules_is_reported(other, layer_first, options):
    layer = DynamicDilationConv2d(2, 2, 3, padding=1, **options)
    modules = [layer, other()] if layer_first else [other(), layer]
    network, (mine, others) = nn.Sequential(*modules), "01" if layer_first else "10"
    own = (f"{mine}.predictor", f"{mine}.rate_weight")
    of_other = (f"{others}.predictor", f"{others}.rate_weight")
    plain = without(network.state_dict(), *own)
    damaged = without(plain, *of_other)
    expected = [name for name in plain if name not in damaged]
    assert expected
    assert network.load_state_dict(damaged, strict=False).missing_keys == expected
    with pytest.raises(RuntimeError, match="Missing key"):
        network.load_state_dict(damaged)
    network.load_state_dict(plain)
    network.load_state_dict(network.state_dict())


def nested() -> nn.Module:
    block = nn.Sequential(nn.Conv2d(2, 2, 3, dilation=2), nn.ModuleDict({"branch": nn.Conv2d(2, 2, 3, dilation=3)}))
    return nn.ModuleDict({"body": nn.Sequential(nn.ReLU(), block), "head": nn.Conv2d(2, 1, 1)})


@pytest.mark.parametrize("options", [{}, {"rates": "learned"}, {"rates": "learned", "modulated": True}], ids=str)
@pytest.mark.parametrize("copied", [lambda m: m, copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_a_plain_network_is_loaded_at_any_depth_and_again(options, copied):
    network = nested()
    plain = {name: value.clone() for name, value in network.state_dict().items()}
    convert(network, **options)
    network = copied(network)
    for _ in range(2):
        for parameter in network.parameters():
            nn.init.constant_(parameter, 2.0)
        network.load_state_dict(plain)
        for name, value in network.state_dict().items():
            assert torch.equal(value, plain.get(name, torch.full_like(value, 2.0))), name
    full = network.state_dict()
    network.load_state_dict(full)
    own = [name for name in full if name not in plain]
    assert len(own) > 1
    for name in full if len(own) > 2 else plain:  # of two layers: one that lacks its only rate is a plain convolution
        with pytest.raises(RuntimeError, match="Missing key"):
            network.load_state_dict(without(full, name))
    network.load_state_dict(plain)


def test_a_layer_under_two_names_and_by_itself():
    plain = nn.ModuleDict(dict.fromkeys("ab", nn.Conv2d(2, 2, 3))).state_dict()
    layer = DynamicDilationConv2d(2, 2, 3)
    nn.ModuleDict(dict.fromkeys("ab", layer)).load_state_dict(plain)
    assert torch.equal(layer.weight, plain["a.weight"])
    layer.load_state_dict(nn.Conv2d(2, 2, 3).state_dict())


def test_a_report_of_nothing_loaded_has_every_name():
    network = nn.Sequential(DynamicDilationConv2d(2, 2, 3, modulated=True))
    assert network.load_state_dict({}, strict=False).missing_keys == list(network.state_dict())


class Doubled(nn.Conv2d):
    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return 2 * super().forward(input)


def hooked(register: str) -> nn.Conv2d:
    conv = nn.Conv2d(2, 2, 3)
    getattr(conv, register)(lambda *_: None)
    return conv


def patched() -> nn.Conv2d:
    conv = nn.Conv2d(2, 2, 3)
    conv.forward = lambda x: 2 * nn.Conv2d.forward(conv, x)  # as some wrappers do it
    return conv


HOOKS = "conv has hooks, which the layer would not have: remove them before"
OTHERS = {
    "subclass": (
        lambda: Doubled(2, 2, 3),
        f"conv is a {__name__}.Doubled, which may compute something else than torch.nn.Conv2d",
    ),
    "forward hook": (lambda: hooked("register_forward_hook"), HOOKS),
    "forward pre-hook": (lambda: hooked("register_forward_pre_hook"), HOOKS),
    "backward hook": (lambda: hooked("register_full_backward_hook"), HOOKS),
    "patched": (patched, "conv has a forward of its own, which the layer would not have: remove it before"),
    "lazy": (lambda: nn.LazyConv2d(2, 3), "conv is a torch.nn.modules.conv.LazyConv2d that has no weight yet"),
}


@pytest.mark.parametrize(("make", "message"), OTHERS.values(), ids=OTHERS)
def test_what_computes_something_else_is_refused(make, message):
    conv = make()
    with pytest.raises(TypeError, match=f"^{re.escape(message)}"):
        DynamicDilationConv2d.from_conv(conv)
    network = nn.Sequential(conv)
    report = convert(network, ["0"])
    assert network[0] is conv
    assert report.skipped["0"].startswith(message)


def test_a_layer_is_not_taken_for_a_plain_convolution():
    """Its rates and its mask would be lost."""
    layer = DynamicDilationConv2d(2, 2, 3, modulated=True)
    with pytest.raises(TypeError, match=r"^conv is a dynamic_dilation_unfold\S+\.DynamicDilationConv2d, which"):
        DynamicDilationConv2d.from_conv(layer)


def test_converted_names():
    network = nn.Sequential(nn.Conv2d(2, 2, 3, dilation=2), nn.ReLU())
    convert(network)
    with pytest.raises(ValueError, match=r"^where has '0', which is converted already: a DynamicDilationConv2d$"):
        convert(network, "0")
    message = r"^where has '0\.predictor\.conv', which is a part of '0', converted already: a DynamicDilationConv2d$"
    with pytest.raises(ValueError, match=message):
        convert(network, ["0.predictor.conv"])
    for name in ("1", "0.predictor", "2"):
        with pytest.raises(ValueError, match=r"which is no torch\.nn\.Conv2d of the model"):
            convert(network, name)
