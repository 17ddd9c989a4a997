"""What DynamicDilationConv2d takes over: a plain convolution."""

import re

import pytest
import torch
from dynamic_dilation_unfold import DynamicDilationConv2d, convert
from torch import nn


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
