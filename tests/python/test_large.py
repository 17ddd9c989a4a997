"""Tensors of more than 2^31 elements, where there is memory for them."""

from pathlib import Path

import pytest
import torch
from dynamic_dilation_unfold import dynamic_dilation_unfold, reference
from helpers import Case, random_map, relative_error

HALF = torch.float16
GIB = 2**30


def free_bytes(device):
    """Memory that can be taken; 0 if that cannot be told."""
    if device == "cuda":
        return torch.cuda.mem_get_info()[0]
    try:
        lines = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
        free = int(lines["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError):
        return 0
    group = Path("/sys/fs/cgroup")  # a container's limit
    try:
        limit, used = ((group / name).read_text().strip() for name in ("memory.max", "memory.current"))
    except OSError:
        return free
    return free if limit == "max" else min(free, int(limit) - int(used))


def need(device, gib):
    free = free_bytes(device) / GIB
    if free < gib:
        pytest.skip(f"needs {gib} GiB of memory on {device}, {free:.1f} are free")


def test_output_beyond_32_bits(device):
    need(device, 8)
    case = Case(1, 169, 512, 512, kernel_size=7, padding=3)
    x = torch.rand(case.shape, device=device).to(HALF).requires_grad_()
    rates = random_map("fractional", case.map_shape).to(device).requires_grad_()
    output = dynamic_dilation_unfold(x, dilation_map=rates, **case.options)
    assert output.numel() > 2**31
    (grad_input,) = torch.autograd.grad(output, x, output.detach())
    for channel in (0, 167, 168):  # the first, the one that crosses 2^31, the last
        own = x[:, channel : channel + 1].detach().requires_grad_()
        alone = dynamic_dilation_unfold(own, dilation_map=rates, **case.options)
        assert relative_error(output[:, channel * 49 : (channel + 1) * 49], alone) <= 1e-6
        (own_grad,) = torch.autograd.grad(alone, own, alone.detach())
        assert relative_error(grad_input[:, channel : channel + 1], own_grad) <= 1e-4


def test_input_beyond_32_bits(device):
    """Also the largest extent that the library takes. Only the pixels that the taps need are filled in."""
    need(device, 6)
    step, used = 2**20, 8
    case = Case(1, 1, 9, 2**28, stride=(1, step))
    x = torch.empty(case.shape, device=device, dtype=HALF)
    assert x.numel() > 2**31
    small = torch.rand(1, 1, 9, used * 2**28 // step, device=device).to(HALF)
    x.view(9, -1, step)[..., :used] = small.view(9, -1, used)
    rates = (random_map("eighths", case.map_shape).abs() / 4).to(device)  # 0 to 1: within the pixels filled in
    grad = torch.rand(case.output_shape, device=device).to(HALF)

    def with_map_gradient(function, x, rates, grad, stride):
        rates = rates.detach().requires_grad_()
        output = function(x, 3, rates, stride)
        return output, *torch.autograd.grad(output, rates, grad)

    actual = with_map_gradient(dynamic_dilation_unfold, x, rates, grad, case.stride)
    expected = with_map_gradient(reference, small.double(), rates.double(), grad.double(), (1, used))
    assert relative_error(actual[0], expected[0]) <= torch.finfo(HALF).eps / 2
    assert relative_error(actual[1], expected[1]) <= 1e-6
