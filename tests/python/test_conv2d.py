"""dynamic_dilation_conv2d: what it equals, its chunks, and its errors."""

import itertools
import re

import pytest
import torch
import torch.nn.functional as F
from dynamic_dilation_unfold import _C, _chunks, dynamic_dilation_conv2d
from dynamic_dilation_unfold._operators.conv2d import CONV2D
from helpers import relative_error
from torch import Tensor

try:
    from torchvision.ops import deform_conv2d

    NO_TORCHVISION = ""
except (ImportError, RuntimeError) as error:  # the second where it was built for another torch than this
    NO_TORCHVISION = f"torchvision is not to be had: {error}"

pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.double)


@pytest.mark.parametrize("padding", ["same", "valid", 0, (2, 1)])
@pytest.mark.parametrize("kernel", [(3, 3), (4, 2), (1, 5)])
@pytest.mark.parametrize("dilation", [1, (2, 3)])
def test_ones_are_conv2d(dilation, kernel, padding, device):
    x, weight, bias = random(2, 4, 13, 14).to(device), random(6, 2, *kernel, seed=1).to(device), random(6).to(device)
    expected = F.conv2d(x, weight, bias, 1, padding, dilation, groups=2)
    ones = torch.ones(1, 1, 1, 1, dtype=torch.double, device=device)
    actual = dynamic_dilation_conv2d(x, weight, ones, bias, 1, padding, dilation)
    torch.testing.assert_close(actual, expected)
    torch.testing.assert_close(dynamic_dilation_conv2d(x[0], weight, ones[0], bias, 1, padding, dilation), expected[0])


def test_a_map_is_a_deformable_convolution(device):
    """The definition of torchvision's deform_conv2d: taps moved by offsets, here (rate - 1) * (k - 1) * dilation."""
    x, weight, dilation = random(2, 3, 9, 8).to(device), random(5, 3, 3, 3, seed=1).to(device), 2
    rates, mask = 0.3 + 2 * random(2, 1, 9, 8, seed=2).sigmoid().to(device), random(2, 1, 9, 9, 8, seed=3).to(device)
    row, column = torch.meshgrid(torch.arange(9.0), torch.arange(8.0), indexing="ij")
    expected = torch.zeros(2, 5, 9, 8, dtype=torch.double, device=device)
    for t, (ky, kx) in enumerate(itertools.product((-1, 0, 1), (-1, 0, 1))):
        offset_y, offset_x = ((rates[:, 0] - 1) * k * dilation for k in (ky, kx))
        y, at = row.to(device) + ky * dilation + offset_y, column.to(device) + kx * dilation + offset_x
        grid = torch.stack([at * 2 / 7 - 1, y * 2 / 8 - 1], -1)
        taps = F.grid_sample(x, grid, align_corners=True) * mask[:, :, t]
        expected += torch.einsum("oc,bchw->bohw", weight[:, :, ky + 1, kx + 1], taps)
    actual = dynamic_dilation_conv2d(x, weight, rates, None, 1, dilation, dilation, mask)
    torch.testing.assert_close(actual, expected)


@pytest.mark.skipif(bool(NO_TORCHVISION), reason=NO_TORCHVISION)
@pytest.mark.parametrize("conv_groups", [1, 3])
@pytest.mark.parametrize("map_groups", [1, 2])
@pytest.mark.parametrize("modulated", [False, True])
@pytest.mark.parametrize(("kernel", "stride", "dilation"), [((3, 3), (1, 1), (2, 2)), ((2, 5), (2, 1), (1, 3))])
def test_torchvision(kernel, stride, dilation, modulated, map_groups, conv_groups, device):
    """Values and gradients of its deform_conv2d, to which a map is two offsets for each tap: down, and to the right."""
    padding, taps = (2, 3), kernel[0] * kernel[1]
    x, weight, bias = random(2, 6, 9, 11), random(3, 6 // conv_groups, *kernel, seed=1), random(3, seed=2)
    positions = F.conv2d(x[:, :1], weight[:1, :1], None, stride, padding, dilation).shape[-2:]
    rates = 0.3 + 2 * random(2, map_groups, *positions, seed=3).sigmoid()
    mask = random(2, map_groups, taps, *positions, seed=4).sigmoid() if modulated else None
    tensors = [t.to(device).requires_grad_() for t in (x, weight, rates, bias, mask) if t is not None]

    def theirs(x: Tensor, weight: Tensor, rates: Tensor, bias: Tensor, mask: Tensor | None = None) -> Tensor:
        steps = [(torch.arange(size) - (size - 1) / 2) * d for size, d in zip(kernel, dilation, strict=True)]
        of_taps = torch.cartesian_prod(*steps).to(rates)  # [kH*kW, (down, right)]
        offset = torch.einsum("bgyx,td->bgtdyx", rates - 1, of_taps).flatten(1, 3)
        mask = None if mask is None else mask.flatten(1, 2)
        return deform_conv2d(x, offset, weight, bias, stride, padding, dilation, mask)

    def ours(x: Tensor, weight: Tensor, rates: Tensor, bias: Tensor, mask: Tensor | None = None) -> Tensor:
        return dynamic_dilation_conv2d(x, weight, rates, bias, stride, padding, dilation, mask)

    grad = random(2, 3, *positions, seed=5).to(device)
    actual, expected = ((y := f(*tensors), *torch.autograd.grad(y, tensors, grad)) for f in (ours, theirs))
    torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize("conv_groups", [1, 2, 4])
@pytest.mark.parametrize(("map_groups", "heads", "shared"), [(1, None, False), (2, 4, True), (4, 1, False)])
@pytest.mark.parametrize("chunk", [1, 3000])
@pytest.mark.parametrize("growth", [1, 64])
@pytest.mark.parametrize("dtype", [torch.double, torch.bfloat16], ids=str)
def test_results_do_not_depend_on_chunks(
    dtype, growth, chunk, map_groups, heads, shared, conv_groups, device, monkeypatch
):
    """One row and one channel at a time, or a few, down to parts of a channel's rows in backward."""
    x, weight, bias = random(2, 4, 7, 9), random(8, 4 // conv_groups, 3, 2, seed=1), random(8)
    batch = 1 if shared else 2
    rates = 2 * random(batch, map_groups, 7, 4, seed=2).sigmoid()
    mask = None if heads is None else random(batch, heads, 6, 7, 4, seed=3)
    grad = random(2, 8, 7, 4, seed=4).to(device, dtype)
    options = CONV2D.read(((1, 2), (1, 0), (1, 2), "zeros"))
    given = [t if t is None else t.to(device, dtype) for t in (x, weight, rates, bias, mask)]

    def run(tensors: list[Tensor | None], exact: bool) -> list[Tensor]:
        leaves = [t if t is None else t.detach().requires_grad_() for t in tensors]
        if exact:
            output = CONV2D.reference(tuple(leaves), options)
        else:
            x, weight, rates, bias, mask = leaves
            output = dynamic_dilation_conv2d(x, weight, rates, bias, *options[:3], mask)
        present = [t for t in leaves if t is not None]
        return [output, *torch.autograd.grad(output, present, grad.to(output.dtype))]

    expected = run([t if t is None else t.double() for t in given], True)
    monkeypatch.setitem(_chunks.CHUNK_BYTES, device, chunk)
    monkeypatch.setattr(_chunks, "GROWTH", growth)
    for actual, exact in zip(run(given, False), expected, strict=True):
        assert relative_error(actual, exact) < (1e-12 if dtype == torch.double else 4e-3)


@pytest.mark.parametrize("dtype", [torch.double, torch.float, torch.bfloat16, torch.half], ids=str)
@pytest.mark.parametrize(
    ("channels", "outputs", "conv_groups", "map_groups", "heads", "shared", "padding_mode"),
    [(20, 20, 20, 1, None, True, "zeros"), (12, 36, 12, 3, 2, False, "border"), (24, 16, 8, 2, 4, True, "zeros")],
    ids=["depthwise", "multiplier", "groups"],
)
def test_small_groups(channels, outputs, conv_groups, map_groups, heads, shared, padding_mode, dtype, device):
    """Of which a CPU has kernels of its own, that read half types as float32."""
    batch = 1 if shared else 2
    x, weight = random(2, channels, 9, 11), random(outputs, channels // conv_groups, 3, 3, seed=1)
    rates = 2 * random(batch, map_groups, 9, 11, seed=2).sigmoid()
    mask = None if heads is None else random(batch, heads, 9, 9, 11, seed=3)
    given = [t if t is None else t.to(device, dtype) for t in (x, weight, rates, random(outputs), mask)]
    options = CONV2D.read((1, 1, 1, padding_mode))
    if device == "cpu" and dtype.itemsize > 2:
        assert _C.conv2d_supported(*given, *options, False)

    def run(tensors: list[Tensor | None], exact: bool, memory_format: torch.memory_format) -> list[Tensor]:
        leaves = [t if t is None else t.detach().clone().requires_grad_() for t in tensors]
        leaves[0] = leaves[0].detach().to(memory_format=memory_format).requires_grad_()
        if exact:
            output = CONV2D.reference(tuple(leaves), options)
        else:
            x, weight, rates, bias, mask = leaves
            output = dynamic_dilation_conv2d(x, weight, rates, bias, *options[:3], mask, padding_mode)
            assert output.is_contiguous(memory_format=memory_format)
        grad = random(*output.shape, seed=4).to(device, dtype).to(output.dtype)
        return [output, *torch.autograd.grad(output, [t for t in leaves if t is not None], grad)]

    expected = run([t if t is None else t.double() for t in given], True, torch.contiguous_format)
    tolerance = {torch.double: 1e-12, torch.float: 1e-5, torch.half: 1e-3, torch.bfloat16: 6e-3}[dtype]
    results = [run(given, False, memory_format) for memory_format in (torch.contiguous_format, torch.channels_last)]
    for actual in results:
        for one, exact in zip(actual, expected, strict=True):
            assert one.dtype == dtype
            assert relative_error(one, exact) < tolerance
    if device == "cpu":
        assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weight": torch.ones(6, 3, 3, 3)}, "weight [6, 3, 3, 3] has 3 input channels, which must be the input's 4"),
        ({"weight": torch.ones(5, 2, 3, 3)}, "one of 2 groups, which must divide its 5 output channels"),
        ({"weight": torch.ones(6, 4, 9)}, "weight must have shape [O, C/conv_groups, kH, kW], got [6, 4, 9]"),
        ({"dilation_map": torch.ones(1, 3, 1, 1)}, "divides the input's 4 channels, got 3"),
        ({"bias": torch.ones(4)}, "bias must have shape [6] beside weight [6, 4, 3, 3], got [4]"),
        ({"mask": torch.ones(2, 1, 9, 5, 4)}, "mask must have shape [2 or 1, heads, 9, 5, 5] for input"),
        ({"mask": torch.ones(2, 9, 5, 5)}, "got [2, 9, 5, 5]; it fits as mask.unflatten(-3, (1, 9))"),
        ({"mask": torch.ones(2, 18, 5, 5)}, "got [2, 18, 5, 5]; it fits as mask.unflatten(-3, (2, 9))"),
        (
            {"mask": torch.ones(2, 3, 9, 5, 5)},
            "mask must have a number of heads that divides the input's 4 channels, got 3",
        ),
        ({"padding": "full"}, 'padding must be an int, a pair of ints, "same" or "valid", got "full"'),
        ({"padding": "same", "stride": 2}, 'padding="same" needs stride 1, got 2'),
        ({"padding_mode": "circular"}, 'padding_mode must be "zeros" or "border"'),
    ],
    ids=lambda value: None if isinstance(value, dict) else value[:30],
)
def test_errors(change, message):
    given = {
        "input": torch.ones(2, 4, 5, 5),
        "weight": torch.ones(6, 4, 3, 3),
        "dilation_map": torch.ones(1, 1, 1, 1),
        "padding": 1,
    }
    with pytest.raises(ValueError, match=re.escape(message)):
        dynamic_dilation_conv2d(**{**given, **change})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"dilation_map": torch.ones(2, 1, 7, 8)},
            "dilation_map must have shape [2, 1, 6, 7] (or batch 1) for input [2, 4, 6, 7] with groups=1, "
            "got [2, 1, 7, 8]",
        ),
        # It would fit padding 0 of the padded input.
        (
            {"weight": torch.ones(6, 4, 4, 4), "dilation_map": torch.ones(2, 1, 4, 5)},
            "dilation_map must have shape [2, 1, 6, 7] (or batch 1) for input [2, 4, 6, 7] with groups=1, "
            "got [2, 1, 4, 5]",
        ),
        (
            {"dilation_map": torch.ones(2, 6, 7)},
            "dilation_map must have shape [2, 1, 6, 7] (or batch 1) for input [2, 4, 6, 7] with groups=1, "
            "got [2, 6, 7]; it fits as dilation_map.unsqueeze(1)",
        ),
        (
            {"mask": torch.ones(2, 1, 4, 7, 8)},
            "mask must have shape [2 or 1, heads, 4, 6, 7] for input [2, 4, 6, 7] and weight [6, 4, 2, 2], "
            "got [2, 1, 4, 7, 8]",
        ),
        (
            {"input": torch.ones(1, 2, 4, 6, 7)},
            "input must have shape [B, C, H, W] or [C, H, W], got [1, 2, 4, 6, 7]",
        ),
        ({"input": torch.ones(7)}, "input must have shape [B, C, H, W] or [C, H, W], got [7]"),
        (
            {"input": torch.ones(2, 4, 0, 7)},
            f"input height and width must be between 1 and {2**28}, got [2, 4, 0, 7]",
        ),
        ({"dilation": (1, -1)}, f"dilation must be between 1 and {2**28}, got (1, -1)"),
        ({"weight": torch.ones(6, 4, 0, 2)}, f"kernel_size must be between 1 and {2**28}, got (0, 2)"),
    ],
    ids=lambda value: None if isinstance(value, dict) else value[:30],
)
@pytest.mark.parametrize("padding_mode", ["zeros", "border"])
def test_errors_of_padding_that_keeps_the_size(change, message, padding_mode):
    """They speak of the input as it was given, not of the one with a row and a column more."""
    given = {
        "input": torch.ones(2, 4, 6, 7),
        "weight": torch.ones(6, 4, 2, 2),
        "dilation_map": torch.ones(1, 1, 1, 1),
        "padding": "same",
        "padding_mode": padding_mode,
    }
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        dynamic_dilation_conv2d(**{**given, **change})


@pytest.mark.parametrize("padding_mode", ["zeros", "border"])
def test_padding_that_keeps_the_size_of_a_sparse_input(padding_mode):
    sparse, weight, ones = torch.ones(1, 1, 6, 7).to_sparse(), torch.ones(1, 1, 2, 2), torch.ones(1, 1, 1, 1)
    with pytest.raises(TypeError, match="input must be a dense tensor"):
        dynamic_dilation_conv2d(sparse, weight, ones, padding="same", padding_mode=padding_mode)


def test_channels_last_stays(device):
    x = random(2, 4, 6, 7).to(device).contiguous(memory_format=torch.channels_last).requires_grad_()
    y = dynamic_dilation_conv2d(x, random(3, 4, 3, 3).to(device), torch.ones(1, 1, 1, 1).to(x), padding=1)
    y.square().sum().backward()
    assert y.is_contiguous(memory_format=torch.channels_last)
    assert x.grad.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(y, F.conv2d(x, random(3, 4, 3, 3).to(device), padding=1))
