"""DynamicDilationConv2d and convert: what a layer starts as, where its rates come from, and whose weights it takes."""

import copy
import pickle
import re
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from dynamic_dilation_unfold import (
    DilationPredictor,
    DynamicDilationAttention2d,
    DynamicDilationConv2d,
    convert,
    dynamic_dilation_conv2d,
    onnx,
)
from torch import nn

CONVOLUTIONS = [
    {"kernel_size": 3, "padding": 6, "dilation": 6},
    {"kernel_size": 3, "stride": 2, "padding": 1},
    {"kernel_size": (3, 5), "stride": (1, 2), "padding": (0, 3), "dilation": (2, 1), "groups": 2, "bias": False},
    {"kernel_size": (4, 3), "padding": "same", "dilation": 3},
    {"kernel_size": 2, "padding": "valid"},
    {"kernel_size": 4, "stride": 3, "padding": 3},
    {"kernel_size": 3, "padding": 2, "dilation": 2, "padding_mode": "replicate"},
    {"kernel_size": (2, 3), "padding": "same", "padding_mode": "replicate"},
]
SOURCES: list[dict[str, Any]] = [
    {"rates": "predicted"},
    {"rates": "learned", "map_groups": 2},
    {"rates": "predicted", "modulated": True, "map_groups": 2},
]

pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")


def image(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.double).to(dtype)


@pytest.mark.parametrize("source", SOURCES, ids=str)
@pytest.mark.parametrize("options", CONVOLUTIONS, ids=str)
def test_starts_as_the_convolution(options, source, device):
    torch.manual_seed(0)
    conv = nn.Conv2d(4, 6, **options, dtype=torch.double, device=device)
    layer = DynamicDilationConv2d.from_conv(conv, **source)
    assert layer.weight is conv.weight
    assert layer.bias is conv.bias
    x = image(2, 4, 19, 20, dtype=torch.double).to(device)
    torch.testing.assert_close(layer(x), conv(x))
    torch.testing.assert_close(layer(x[0]), conv(x[0]))
    assert torch.equal(layer.dilation_map(x), torch.ones_like(layer.dilation_map(x)))


@pytest.mark.parametrize("source", SOURCES, ids=str)
def test_every_parameter_learns_from_the_first_step(source):
    torch.manual_seed(0)
    layer = DynamicDilationConv2d(4, 6, 3, padding=2, dilation=2, **source)
    layer(image(2, 4, 9, 9)).square().sum().backward()
    for name, parameter in layer.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name


def test_rates_are_bounded():
    layer = DynamicDilationConv2d(2, 2, 3, padding=1, rates="learned", max_rate=2.5)
    for extreme, rate in ((100.0, 2.5), (-100.0, 0.0)):
        nn.init.constant_(layer.rate_weight, extreme)
        assert layer.dilation_map(image(1, 2, 5, 5)).item() == rate


@pytest.mark.parametrize("default", [torch.float16, torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("rates", ["learned", "predicted"])
def test_bounds_have_the_parameters_dtype_and_not_the_default(rates, dtype, default):
    layer = DynamicDilationConv2d(2, 2, 3, padding=1, rates=rates, max_rate=2.1, dtype=dtype)
    nn.init.constant_(layer.rate_weight if rates == "learned" else layer.predictor.conv.bias, 100.0)
    usual = torch.get_default_dtype()
    torch.set_default_dtype(default)
    try:
        found = layer.dilation_map(torch.zeros(1, 2, 5, 5, dtype=dtype))
    finally:
        torch.set_default_dtype(usual)
    assert found.dtype == dtype
    assert torch.equal(found, torch.full_like(found, 2.1))


@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("padding", [0, 1, 4])
def test_a_predicted_rate_is_of_the_pixels_at_its_window(stride, padding):
    """What changes in the image changes the rates of windows whose centre is within a pixel of it."""
    layer = DynamicDilationConv2d(1, 1, 3, stride, padding, 2)
    nn.init.ones_(layer.predictor.conv.weight)
    x = torch.zeros(1, 1, 16, 16)
    x[..., 7, 7] = 1
    changed = layer.dilation_map(x)[0, 0] != 1
    centres = torch.arange(changed.shape[0]) * stride - padding + 2
    near = (centres - 7).abs() <= 1
    assert torch.equal(changed, near[:, None] & near[None])
    assert layer(x).shape[-2:] == changed.shape


def test_given_rates():
    layer = DynamicDilationConv2d(2, 3, 3, padding=1, rates="given", map_groups=2)
    x, rates = image(2, 2, 5, 6), torch.rand(2, 2, 5, 6) * 2
    expected = dynamic_dilation_conv2d(x, layer.weight, rates, layer.bias, padding=1)
    assert torch.equal(layer(x, rates), expected)
    with pytest.raises(TypeError, match="takes a dilation_map: give it after the input"):
        layer(x)
    with pytest.raises(TypeError, match='takes no dilation_map: to give one, make the layer with rates="given"'):
        DynamicDilationConv2d(2, 3, 3)(x, rates)


def test_inputs_that_a_layer_was_not_made_for():
    layers = (DynamicDilationConv2d(2, 3, 3), DynamicDilationConv2d(2, 3, 3, rates="learned"), DilationPredictor(2))
    for layer in (*layers, DynamicDilationAttention2d(2, 1, 3)):
        for shape in ((1, 5, 6, 6), (6, 6)):
            message = f"input must have shape [B, 2, H, W] or [2, H, W], as this layer was made, got {list(shape)}"
            with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
                layer(torch.ones(shape))
    with pytest.raises(TypeError, match=r"^input must be a torch\.Tensor, got list$"):
        DynamicDilationConv2d(2, 3, 3)([1.0])


@pytest.mark.parametrize("options", [{}, {"rates": "learned"}, {"rates": "learned", "modulated": True}])
def test_an_image_smaller_than_the_window(options):
    layer = DynamicDilationConv2d(2, 3, 3, padding=1, dilation=(1, 6), **options)
    message = (
        "input [1, 2, 9, 10] with padding (1, 1) is smaller than the window of kernel_size (3, 3) and dilation (1, 6): "
        "no output position fits"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        layer(torch.ones(1, 2, 9, 10))
    assert layer(torch.ones(1, 2, 9, 11)).shape == (1, 3, 9, 1)


@pytest.mark.parametrize("source", SOURCES, ids=str)
def test_resets_to_rates_and_masks_of_one(source):
    """As who makes a network on the meta device does it, module by module."""
    layer = DynamicDilationConv2d(4, 2, 3, padding=1, device="meta", **source).to_empty(device="cpu")
    for module in layer.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
    x = image(1, 4, 5, 6)
    assert (layer.dilation_map(x) == 1).all()
    mask = layer.mask(x)
    assert mask is None or (mask == 1).all()
    expected = F.conv2d(x, layer.weight, layer.bias, padding=1)
    torch.testing.assert_close(layer(x), expected)


@pytest.mark.parametrize("source", SOURCES, ids=str)
def test_copies_and_weight_norm(source):
    layer = DynamicDilationConv2d(4, 2, 3, padding="same", **source)
    for parameter in layer.parameters():
        nn.init.normal_(parameter, std=0.1)
    x = image(1, 4, 5, 6)
    expected = layer(x)
    for copied in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert torch.equal(copied(x), expected)
    normed = torch.nn.utils.parametrizations.weight_norm(layer)
    torch.testing.assert_close(normed(x), expected)
    normed(x).sum().backward()
    assert all(parameter.grad is not None for parameter in normed.parameters())


def test_attention_resets_to_where_it_starts():
    layer = DynamicDilationAttention2d(4, 2, 3)
    for parameter in layer.parameters():
        nn.init.ones_(parameter)
    for module in layer.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
    assert not layer.position_bias.any()
    assert (layer.predictor(image(1, 4, 5, 6)) == 1).all()


def test_half_rates_stay_float32():
    layer = DynamicDilationConv2d(2, 2, 3, padding=1, modulated=True).bfloat16()
    x = image(1, 2, 6, 6, dtype=torch.bfloat16)
    assert layer.dilation_map(x).dtype == torch.float32
    assert layer(x).dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rates": "none"}, 'rates must be "predicted", "given" or "learned"'),
        ({"padding_mode": "circular"}, r"torch\.nn\.functional\.pad before the layer"),
        ({"map_groups": 3}, "map_groups must divide the 4 input channels, got 3"),
        ({"map_groups": 0}, "map_groups must be at least 1, got 0"),
        ({"rates": "learned", "max_rate": 1.0}, "max_rate above 1, and both finite, got 0.0 and 1.0"),
        ({"max_rate": float("inf")}, "both finite, got 0.0 and inf"),
        ({"max_rate": "4"}, "both finite, got 0.0 and '4'"),
    ],
)
def test_errors(options, message):
    with pytest.raises(ValueError, match=message):
        DynamicDilationConv2d(4, 4, 3, **options)


@pytest.mark.parametrize("name", ["kernel_size", "stride", "padding", "dilation"])
def test_pairs(name):
    with pytest.raises(TypeError, match=f"{name} must be an int or a pair of ints"):
        DynamicDilationConv2d(4, 4, **{"kernel_size": 3, name: (1, 1, 1)})


@pytest.mark.parametrize(
    ("groups", "error", "message"),
    [
        (0, ValueError, "groups must be at least 1, got 0"),
        (-1, ValueError, "groups must be at least 1, got -1"),
        (1.5, TypeError, r"groups must be an int, got 1\.5"),
    ],
)
def test_a_predictor_has_groups(groups, error, message):
    with pytest.raises(error, match=f"^{message}$"):
        DilationPredictor(4, groups)


@pytest.mark.parametrize(
    ("options", "ending"),
    [
        ({"max_rate": 2.5}, "map_groups=1, rates='predicted', max_rate=2.5"),
        ({"rates": "learned", "modulated": True}, "map_groups=1, rates='learned', max_rate=4.0, modulated=True"),
        ({"rates": "given"}, "map_groups=1, rates='given'"),
    ],
)
def test_what_a_layer_says_of_itself(options, ending):
    assert DynamicDilationConv2d(4, 4, 3, **options).extra_repr().endswith(f", {ending}")


def test_a_predictor_has_finite_bounds():
    with pytest.raises(ValueError, match=r"both finite, got -inf and 4\.0"):
        DilationPredictor(4, min_rate=-float("inf"))


def test_convolutions_whose_weight_cannot_be_taken():
    normed = torch.nn.utils.parametrizations.weight_norm(nn.Conv2d(4, 4, 3))
    for conv, message in (
        (nn.LazyConv2d(4, 3), "has no weight yet: let it see an input before"),
        (normed, "remove its parametrization, or weight norm, before"),
        (torch.ao.nn.quantized.ReLU6(), r"must be a torch\.nn\.Conv2d, got a torch\.ao\.nn\.quantized\.modules"),
    ):
        with pytest.raises(TypeError, match=message):
            DynamicDilationConv2d.from_conv(conv)


class Pyramid(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 4, 1)
        self.branches = nn.ModuleList([nn.Conv2d(4, 4, 3, padding=d, dilation=d) for d in (1, 2, 3)])
        self.wrapped = nn.Conv2d(4, 4, 3, padding=2, dilation=2, padding_mode="circular")
        self.shared = self.branches[1]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        return self.wrapped(self.shared(torch.stack([branch(x) for branch in self.branches]).sum(0)))


def test_convert():
    torch.manual_seed(0)
    model = Pyramid()
    x, plain = image(2, 3, 12, 12), {name: value.clone() for name, value in model.state_dict().items()}
    expected = model(x)
    parameters = dict(model.named_parameters())
    report = convert(model, max_rate=3.0)
    assert list(report.swapped) == ["branches.1", "branches.2", "shared"]
    assert model.shared is model.branches[1]
    assert "circular" in report.skipped["wrapped"]
    assert "branches.2: DynamicDilationConv2d(4, 4" in str(report)
    assert "wrapped: left as it is" in str(report)
    torch.testing.assert_close(model(x), expected)
    for name, parameter in parameters.items():
        assert model.get_parameter(name) is parameter
    for parameter in model.parameters():
        nn.init.ones_(parameter)
    rates = {name: value.clone() for name, value in model.state_dict().items() if name not in plain}
    model.load_state_dict(plain)  # rates stay as they are
    for name, value in rates.items():
        assert torch.equal(model.state_dict()[name], value)
    assert not convert(model).swapped


def test_convert_by_choice():
    assert list(convert(Pyramid(), lambda name, conv: conv.kernel_size == (1, 1)).swapped) == ["first"]
    assert list(convert(Pyramid(), ["branches.0"], rates="learned").swapped) == ["branches.0"]
    with pytest.raises(ValueError, match=r"no torch\.nn\.Conv2d of the model"):
        convert(Pyramid(), "branches.7")
    with pytest.raises(ValueError, match="does not pass"):
        convert(Pyramid(), rates="given")
    with pytest.raises(TypeError, match="from_conv"):
        convert(nn.Conv2d(1, 1, 3))
    with pytest.raises(TypeError, match=r"model must be a torch\.nn\.Module that contains its convolutions, got list"):
        convert([nn.Conv2d(1, 1, 3)])
    for where in (5, nn.Conv2d):
        with pytest.raises(TypeError, match="where must be a function of a convolution's name and the convolution"):
            convert(Pyramid(), where)
    assert str(convert(Pyramid(), [])) == "no convolution was chosen"


def test_convert_leaves_hooks_alone():
    """What a hook changes, or a weight norm, the layer would not do: the network would compute something else."""
    doubled, normed = (nn.Conv2d(2, 2, 3, dilation=2) for _ in range(2))
    doubled.register_forward_hook(lambda module, inputs, output: 2 * output)
    model = nn.Sequential(doubled, torch.nn.utils.spectral_norm(normed))
    report = convert(model)
    assert not report.swapped
    assert list(model) == [doubled, normed]
    assert report.skipped["0"] == "conv has hooks, which the layer would not have: remove them before"
    assert report.skipped["1"].startswith("the weight of conv, a torch.nn.modules.conv.Conv2d, is made at each call")


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"rates": "learnt"}, ValueError, 'rates must be "predicted", "given" or "learned", got \'learnt\''),
        ({"max_rate": 1.0}, ValueError, "max_rate above 1"),
        ({"map_groups": 0}, ValueError, "map_groups must be at least 1, got 0"),
        ({"map_groups": 2.0}, TypeError, "map_groups must be an int, got 2.0"),
        ({"modulate": True}, TypeError, "unexpected keyword argument 'modulate'"),
    ],
)
def test_options_that_no_convolution_has_are_no_reason_to_skip(options, error, message):
    model = Pyramid()
    before = list(model.modules())
    with pytest.raises(error, match=message):
        convert(model, **options)
    assert list(model.modules()) == before


def test_a_damaged_state_dict_is_refused():
    model = nn.Sequential(DynamicDilationConv2d(2, 2, 3, modulated=True))
    state = model.state_dict()
    del state["0.predictor.conv.bias"]
    with pytest.raises(RuntimeError, match="Missing key"):
        model.load_state_dict(state)
    with pytest.raises(RuntimeError, match="Missing key"):
        model.load_state_dict({"0.weight": state["0.weight"]})
    normed = torch.nn.utils.parametrizations.weight_norm(DynamicDilationConv2d(2, 2, 3, bias=False))
    with pytest.raises(RuntimeError, match=r"Missing key.*parametrizations\.weight"):
        normed.load_state_dict({})


def test_in_a_compiled_model():
    torch._dynamo.reset()
    layer = DynamicDilationConv2d(2, 2, 3, padding="same", modulated=True)
    x = image(1, 2, 6, 6)
    torch.testing.assert_close(torch.compile(layer, backend="aot_eager", fullgraph=True)(x), layer(x))
    assert F.relu(layer(x)).requires_grad


class LeafTracer(torch.fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, DynamicDilationConv2d) or super().is_leaf_module(m, module_qualified_name)


@pytest.mark.parametrize("rates", ["predicted", "learned"])
def test_symbolically_traced_as_a_leaf(rates):
    network = nn.Sequential(nn.Conv2d(2, 2, 1), DynamicDilationConv2d(2, 2, 3, padding=1, rates=rates))
    with pytest.raises(torch.fx.proxy.TraceError, match="cannot be used as inputs to control flow"):
        torch.fx.symbolic_trace(network)
    traced = torch.fx.GraphModule(network, LeafTracer().trace(network))
    x = image(1, 2, 5, 6)
    assert torch.equal(traced(x), network(x))


@pytest.mark.skipif(not hasattr(torch.export, "default_decompositions"), reason="torch is older than 2.6")
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_exported_for_any_size_and_spelled_out():
    """As ONNX export does it: nothing but torch's own operators is left."""
    torch.manual_seed(0)
    layer = DynamicDilationConv2d(4, 6, 3, padding="same", dilation=2, groups=2, modulated=True, map_groups=2)
    for parameter in layer.parameters():
        nn.init.normal_(parameter, std=0.1)
    sizes = {0: torch.export.Dim("batch", min=2, max=16), 2: torch.export.Dim("height", min=4, max=64)}
    program = torch.export.export(layer, (image(2, 4, 8, 9),), dynamic_shapes=(sizes,))
    spelled_out = program.run_decompositions(onnx.decompositions())
    assert not [n for n in spelled_out.graph.nodes if getattr(n.target, "namespace", "") == "dynamic_dilation_unfold"]
    x = image(3, 4, 11, 9)
    torch.testing.assert_close(program.module()(x), layer(x))
    torch.testing.assert_close(spelled_out.module()(x), layer(x))
