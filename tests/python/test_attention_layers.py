"""Layers made of the operators without columns, against torch's pools and a neighbourhood attention by hand."""

import pytest
import torch
import torch.nn.functional as F
from dynamic_dilation_unfold import DilationPredictor, DynamicDilationAttention2d, DynamicDilationPool2d
from helpers import relative_error
from torch import Tensor, nn


def assert_close(actual: Tensor, expected: Tensor) -> None:
    assert relative_error(actual, expected) <= 1e-12
    assert expected.detach().any()


def neighbourhood_attention(layer: DynamicDilationAttention2d, x: Tensor) -> Tensor:
    """By hand: each pixel and those of its 3x3 neighbours that exist."""
    query, key, value = layer.query(x), layer.key(x), layer.value(x)
    heads, (batch, channels, height, width) = layer.heads, x.shape
    per_head = channels // heads
    output = torch.zeros_like(x)
    for b in range(batch):
        for h in range(heads):
            own = slice(h * per_head, (h + 1) * per_head)
            for y in range(height):
                for z in range(width):
                    scores, values = [], []
                    for t, (dy, dz) in enumerate((dy, dz) for dy in (-1, 0, 1) for dz in (-1, 0, 1)):
                        if 0 <= y + dy < height and 0 <= z + dz < width:
                            product = (query[b, own, y, z] * key[b, own, y + dy, z + dz]).sum()
                            scores.append(product / per_head**0.5 + layer.position_bias[h, t, 0, 0])
                            values.append(value[b, own, y + dy, z + dz])
                    output[b, own, y, z] = torch.stack(scores).softmax(0) @ torch.stack(values)
    return layer.out(output)


def test_attention_layer_starts_as_neighbourhood_attention(device):
    torch.manual_seed(0)
    layer = DynamicDilationAttention2d(8, 2, 3, device=device, dtype=torch.double)
    nn.init.normal_(layer.position_bias)
    x = torch.randn(2, 8, 4, 5, device=device, dtype=torch.double)
    assert (layer.predictor(x) == 1).all()
    assert_close(layer(x), neighbourhood_attention(layer, x))
    layer(x).square().sum().backward()
    assert all(p.grad is not None and p.grad.any() for name, p in layer.named_parameters() if name != "key.bias")
    other = DynamicDilationAttention2d(8, 2, 3, rates="given").to(device, torch.double)
    missing = other.load_state_dict(layer.state_dict(), strict=False)
    assert missing.missing_keys == []
    assert missing.unexpected_keys == ["predictor.conv.weight", "predictor.conv.bias"]
    ones = torch.ones(1, 1, 1, 1, device=device, dtype=torch.double)
    assert_close(other(x, ones), layer(x))


def test_attention_layer_options(device):
    layer = DynamicDilationAttention2d(12, 6, (3, 5), 2, 2, 3, max_rate=3, position_bias=False, padding_mode="border")
    layer = layer.to(device)
    nn.init.normal_(layer.predictor.conv.weight, std=5)
    x = torch.randn(1, 12, 7, 9, device=device)
    assert layer(x).shape == (1, 12, 4, 5)
    rates = layer.predictor(x)
    assert rates.shape == (1, 3, 4, 5)
    assert rates.min() >= 0
    assert 2 < rates.max() <= 3
    assert "kernel_size=(3, 5), stride=(2, 2), dilation=(2, 2), map_groups=3" in repr(layer)
    for wrong, message in [
        ({"heads": 5}, "heads must be positive and divide channels"),
        ({"kernel_size": 4}, "kernel_size must be odd"),
        ({"map_groups": 4}, "map_groups must be 1 or divide heads"),
        ({"rates": "fixed"}, "rates must be"),
        ({"padding_mode": "same"}, "padding_mode must be"),
    ]:
        with pytest.raises(ValueError, match=message):
            DynamicDilationAttention2d(**{"channels": 12, "heads": 6, "kernel_size": 3, **wrong})
    with pytest.raises(TypeError, match='takes no dilation_map: to give one, make the layer with rates="given"'):
        layer(x, rates)
    with pytest.raises(TypeError, match="takes a dilation_map: give it after the input"):
        DynamicDilationAttention2d(12, 6, 3, rates="given").to(device)(x)
    with pytest.raises(ValueError, match="max_rate above 1"):
        DilationPredictor(3, max_rate=0.5)


@pytest.mark.parametrize(("stride", "padding"), [(None, 0), (1, 1), (2, (1, 0))])
def test_mean_pool_of_ones_is_an_average_pool(stride, padding, device):
    x = torch.randn(2, 4, 9, 8, device=device)
    rates = torch.ones(1, 2, 1, 1, device=device)
    expected = F.avg_pool2d(x, 3, stride, padding, count_include_pad=False)
    torch.testing.assert_close(DynamicDilationPool2d(3, stride, padding)(x, rates), expected)
    softmax = DynamicDilationPool2d(3, stride, padding, mode="softmax", temperature=0, heads=2)
    torch.testing.assert_close(softmax(x, rates), expected)


def test_softmax_pool(device):
    x = torch.randperm(108, generator=torch.Generator().manual_seed(0)).view(1, 3, 6, 6).to(device) / 10  # no two alike
    pool = DynamicDilationPool2d(3, 1, 1, mode="softmax", temperature=1000.0, heads=3)
    ones = torch.ones(1, 1, 1, 1, device=device)
    torch.testing.assert_close(pool(x, ones), F.max_pool2d(x, 3, 1, 1))
    rates = 3 * torch.rand(1, 1, 6, 6, device=device)
    for mode in ("mean", "softmax"):
        constant = DynamicDilationPool2d(3, 1, 1, mode=mode)(torch.full_like(x, -1), rates)
        torch.testing.assert_close(constant, torch.full_like(x, -1))
    assert "mode='softmax', temperature=1000.0, heads=3" in repr(pool)
    with pytest.raises(ValueError, match="mode must be"):
        DynamicDilationPool2d(3, mode="max")


@pytest.mark.parametrize("mode", ["mean", "softmax"])
def test_a_pool_says_what_its_tensors_must_be(mode):
    pool, x, rates = DynamicDilationPool2d(3, 1, 1, mode=mode), torch.ones(1, 2, 5, 6), torch.ones(1, 1, 5, 6)
    with pytest.raises(TypeError, match=r"^dilation_map must be a torch\.Tensor, got float$"):
        pool(x, 1.5)
    with pytest.raises(TypeError, match=r"^input must be float16, bfloat16, float32 or float64, got torch\.int64$"):
        pool(x.long(), rates)
    with pytest.raises(ValueError, match=r"^input must have 4 dimensions, or 3 without a batch, got shape \[5, 6\]$"):
        pool(x[0, 0], rates)
