"""The formulas of FLOPs and bytes, against tensors that are there and against sums written out."""

import pytest
import torch
from dynamic_dilation_unfold import cost, dynamic_dilation_unfold
from helpers import CASES, Case, random_input, random_map, run


def size(*tensors: torch.Tensor) -> int:
    return sum(t.numel() * t.element_size() for t in tensors)


@pytest.mark.parametrize(
    ("dtype", "map_dtype"), [("float32", "float32"), ("float16", "float32"), ("float64", "float64")]
)
@pytest.mark.parametrize("shared", [False, True], ids=["", "one map"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_bytes(case, shared, dtype, map_dtype):
    """All tensors of a call, each once."""
    x = random_input(case.shape).to(getattr(torch, dtype))
    rates = random_map("ones", ((1 if shared else case.batch), *case.map_shape[1:])).to(getattr(torch, map_dtype))
    grad = random_input(case.output_shape).to(x.dtype)
    result = run(dynamic_dilation_unfold, x, rates, grad, case.options)
    sizes = (x.shape, rates.shape, case.kernel_size, x.dtype, rates.dtype)
    assert cost.unfold(*sizes).bytes == size(x, rates, result.output)
    assert cost.unfold_backward(*sizes).bytes == size(grad, x, rates, result.grad_input, result.grad_map)
    assert cost.unfold_backward(*sizes, output_mask=(True, False)).bytes == size(grad, rates, result.grad_input)
    assert cost.unfold_backward(*sizes, output_mask=(False, True)).bytes == size(grad, x, rates, result.grad_map)
    assert cost.unfold_backward(*sizes, output_mask=(False, False)) == (0, 0)


def test_flops():
    """Of 2*3*5 positions, 4 channels and 2*3 taps; test_torch_eager.py has torch's counter."""
    samples = 2 * 3 * 5 * 4 * 6
    shapes = (2, 4, 9, 9), (2, 1, 3, 5), (2, 3)
    assert cost.unfold(*shapes).flops == 8 * samples
    assert cost.unfold_backward(*shapes).flops == (8 + 22) * samples
    assert cost.unfold_backward(*shapes, output_mask=(False, True)).flops == 22 * samples


def test_unbatched():
    case = Case(1, 4, 6, 7, padding=1, groups=2)
    batched, unbatched = (case.shape, case.map_shape), (case.shape[1:], case.map_shape[1:])
    assert cost.unfold(*unbatched, 3) == cost.unfold(*batched, 3)
    assert cost.unfold_backward(*unbatched, 3) == cost.unfold_backward(*batched, 3)
