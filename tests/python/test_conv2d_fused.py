"""dynamic_dilation_conv2d by kernels of its own, where a build and a device have them, beside chunks of columns."""

import os

import pytest
import torch
from dynamic_dilation_unfold import _C, dynamic_dilation_conv2d
from dynamic_dilation_unfold._operators.conv2d import CONV2D, _allows_tf32
from helpers import relative_error
from torch import Tensor

TOLERANCE = {torch.float16: 1e-3, torch.bfloat16: 6e-3, torch.float32: 1e-3}  # of products in TF32

# Input, weight, groups of the map, heads of the mask (0: none), stride, padding, padding_mode.
CASES = [
    ((2, 64, 40, 33), (64, 64, 3, 3), 1, 0, 1, 1, "zeros"),
    ((2, 64, 99, 90), (48, 64, 3, 3), 1, 1, 1, 1, "zeros"),  # more positions than all blocks have at once
    ((1, 5, 31, 30), (21, 5, 5, 5), 1, 1, (2, 1), 2, "zeros"),
    ((2, 96, 18, 17), (130, 48, 3, 3), 4, 3, 1, 1, "border"),
    ((256, 20, 19), (256, 256, 3, 3), 1, 1, 1, 1, "zeros"),
    ((2, 64, 21, 19), (64, 4, 3, 3), 1, 1, 1, 1, "zeros"),  # small groups, several at once
    ((2, 60, 18, 17), (40, 3, 5, 5), 2, 0, (2, 1), 2, "zeros"),
    ((2, 64, 20, 19), (64, 1, 3, 3), 1, 0, 1, 1, "zeros"),  # depthwise
    ((3, 12, 18, 17), (24, 1, 7, 5), 3, 2, (2, 1), 2, "border"),
]


@pytest.fixture
def tf32():
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = True
    yield
    torch.backends.cudnn.allow_tf32 = before


@pytest.fixture
def fused(tf32):
    """Calls are those of kernels by tensor cores, which devices have from compute capability 8.0 on.

    No build tells that it was made with ``-DDDU_FUSED_CONV2D=OFF``: such a one is tested under
    ``DDU_CUDA_CONV2D=columns``.
    """
    if torch.cuda.get_device_capability() < (8, 0):
        pytest.skip("this device has no such kernels")
    if os.environ.get("DDU_CUDA_CONV2D") == "columns":
        pytest.skip("DDU_CUDA_CONV2D asks for columns")


def tensors_of(case: tuple, dtype: torch.dtype, device: str, memory_format: torch.memory_format) -> tuple:
    input_shape, weight_shape, groups, heads, stride, padding, _ = case
    generator = torch.Generator().manual_seed(0)
    strides = stride if isinstance(stride, tuple) else (stride, stride)
    positions = [
        (size + 2 * padding - k) // s + 1
        for size, k, s in zip(input_shape[-2:], weight_shape[2:], strides, strict=True)
    ]

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(device, dtype)

    x, batch = random(*input_shape), input_shape[:-3]
    if x.dim() == 4:
        x = x.contiguous(memory_format=memory_format)
    rates = 3 * random(*batch, groups, *positions).sigmoid()
    mask = random(*batch, heads, weight_shape[2] * weight_shape[3], *positions) if heads else None
    return x, random(*weight_shape), rates, random(weight_shape[0]), mask


@pytest.mark.cuda
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=["nchw", "nhwc"])
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("case", CASES, ids=lambda case: str(case[1]))
def test_equals_chunks(case, dtype, memory_format, fused, monkeypatch):
    tensors = tensors_of(case, dtype, "cuda", memory_format)
    options = CONV2D.read((*case[4:6], 1, case[6]))
    assert _C.conv2d_supported(*tensors, *options, True)
    x, weight, rates, bias, mask = tensors
    ours = dynamic_dilation_conv2d(x, weight, rates, bias, *options[:3], mask, options[3])
    assert torch.equal(_C.conv2d_plain(*tensors, *options), ours)  # without a step of Python
    monkeypatch.setenv("DDU_CUDA_CONV2D", "columns")
    assert _C.conv2d_plain(*tensors, *options) is None
    assert not _C.conv2d_supported(*tensors, *options, True)
    chunks = dynamic_dilation_conv2d(x, weight, rates, bias, *options[:3], mask, options[3])
    assert (ours.shape, ours.stride()) == (chunks.shape, chunks.stride())
    exact = CONV2D.reference(tuple(t if t is None else t.double() for t in tensors), options)
    assert relative_error(ours, exact) < TOLERANCE[dtype]
    assert relative_error(chunks, exact) < TOLERANCE[dtype]


def gradients_of(tensors: tuple, options: tuple, grad: Tensor) -> tuple[Tensor, ...]:
    leaves = [t if t is None else t.detach().requires_grad_() for t in tensors]
    x, weight, rates, bias, mask = leaves
    output = dynamic_dilation_conv2d(x, weight, rates, bias, *options[:3], mask, options[3])
    return torch.autograd.grad(output, [t for t in leaves if t is not None], grad)


@pytest.mark.cuda
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=["nchw", "nhwc"])
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("case", CASES, ids=lambda case: str(case[1]))
def test_gradients_equal_those_of_chunks(case, dtype, memory_format, fused, monkeypatch):
    tensors = tensors_of(case, dtype, "cuda", memory_format)
    options = CONV2D.read((*case[4:6], 1, case[6]))
    assert _C.conv2d_backward_supported(*tensors, *options, True)
    grad = torch.randn(CONV2D.output_shape(tensors, options), device="cuda").to(dtype)
    gradients = gradients_of(tensors, options, grad)
    monkeypatch.setenv("DDU_CUDA_CONV2D", "columns")
    assert not _C.conv2d_backward_supported(*tensors, *options, True)
    chunks = gradients_of(tensors, options, grad)
    for ours, theirs in zip(gradients, chunks, strict=True):
        assert (ours.shape, ours.stride(), ours.dtype) == (theirs.shape, theirs.stride(), theirs.dtype)
        assert relative_error(ours, theirs) < 2 * TOLERANCE[dtype]  # both round


@pytest.mark.cuda
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=["nchw", "nhwc"])
def test_what_is_not_finite_stays_in_its_group(memory_format, stride, tf32):
    case = ((2, 64, 21, 19), (64, 4, 3, 3), 1, 0, stride, 1, "zeros")
    x, weight, rates, bias, _ = tensors_of(case, torch.bfloat16, "cuda", memory_format)
    x[1, 9, 5, 6] = float("inf")
    grad = torch.randn(2, 64, *rates.shape[-2:], device="cuda").bfloat16()
    grad[0, 50, 4, 3] = float("nan")
    leaves = [t.detach().requires_grad_() for t in (x, weight, rates, bias)]
    output = dynamic_dilation_conv2d(*leaves, stride=stride, padding=1)
    of_input, of_weight, of_rates, _ = torch.autograd.grad(output, leaves, grad)
    groups = torch.arange(64, device="cuda") // 4
    assert not output.isfinite().all()
    assert output[:, groups != 9 // 4].isfinite().all()
    assert not of_input[0, groups == 50 // 4].isfinite().all()
    assert of_input[:, groups != 50 // 4].isfinite().all()
    strange = ~of_weight.isfinite().flatten(1).all(1)
    assert strange[50]
    assert ((groups == 9 // 4) | (torch.arange(64, device="cuda") == 50))[strange].all()
    assert not of_rates[0].isfinite().all()


@pytest.mark.cuda
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_deterministic_gradients_are_those_of_chunks(dtype, fused, deterministic, monkeypatch):
    tensors = tensors_of(CASES[0], dtype, "cuda", torch.channels_last)
    options = CONV2D.read((1, 1, 1, "zeros"))
    assert not _C.conv2d_backward_supported(*tensors, *options, True)
    assert _C.conv2d_supported(*tensors, *options, True)
    grad = torch.randn(CONV2D.output_shape(tensors, options), device="cuda").to(dtype)
    once, again = (gradients_of(tensors, options, grad) for _ in range(2))
    monkeypatch.setenv("DDU_CUDA_CONV2D", "columns")
    chunks = gradients_of(tensors, options, grad)
    for ours, same, theirs in zip(once, again, chunks, strict=True):
        assert torch.equal(ours, same)
        assert torch.equal(ours, theirs)


@pytest.mark.cuda
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_depthwise_repeats_and_rounds_nothing_to_tf32(dtype, tf32):
    tensors = tensors_of(CASES[-1], dtype, "cuda", torch.channels_last)
    options = CONV2D.read((*CASES[-1][4:6], 1, CASES[-1][6]))
    grad = torch.randn(CONV2D.output_shape(tensors, options), device="cuda", dtype=dtype)
    torch.use_deterministic_algorithms(True)
    try:
        assert _C.conv2d_backward_supported(*tensors, *options, False)
        once, again = (gradients_of(tensors, options, grad) for _ in range(2))
    finally:
        torch.use_deterministic_algorithms(False)
    leaves = [t.double().requires_grad_() for t in tensors]
    exact = torch.autograd.grad(CONV2D.reference(tuple(leaves), options), leaves, grad.double())
    for ours, same, right in zip(once, again, exact, strict=True):
        assert torch.equal(ours, same)
        assert relative_error(ours, right) < (1e-12 if dtype == torch.float64 else 1e-5)


def test_other_devices_have_none():
    tensors = tensors_of(CASES[0], torch.bfloat16, "cpu", torch.channels_last)
    options = CONV2D.read((1, 1, 1, "zeros"))
    assert not _C.conv2d_supported(*tensors, *options, True)
    assert not _C.conv2d_backward_supported(*tensors, *options, True)
    assert _C.conv2d_forward(*tensors, *options, True) is None
    assert _C.conv2d_plain(*tensors, *options) is None
    grad = torch.zeros(CONV2D.output_shape(tensors, options), dtype=torch.bfloat16)
    assert _C.conv2d_backward(grad, *tensors, *options, True, (True,) * 5) is None


def test_tf32_is_what_convolutions_of_torch_use(tf32, monkeypatch):
    assert _allows_tf32()
    torch.backends.cudnn.allow_tf32 = False
    assert not _allows_tf32()
    torch.backends.cudnn.allow_tf32 = True
    with torch.backends.cudnn.flags(enabled=False):
        assert not _allows_tf32()
