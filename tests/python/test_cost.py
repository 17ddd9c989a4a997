"""The formulas of FLOPs and bytes, against tensors that are there and against sums written out."""

import pytest
import torch
from dynamic_dilation_unfold import (
    cost,
    dynamic_dilation_aggregate,
    dynamic_dilation_correlate,
    dynamic_dilation_unfold,
)
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


def test_bytes_of_operators_without_columns():
    """All tensors of a call, each once; in backward those that the wanted gradients take."""
    case = Case(2, 4, 6, 7, padding=1, groups=2)
    x, query = (random_input((2, 4, 6, 7), seed).half() for seed in (0, 1))
    rates, weights = random_map("fractional", (1, 2, 6, 7)), random_input((2, 2, 9, 6, 7)).half()
    sizes = (case.kernel_size, torch.half, torch.float32)
    sums = dynamic_dilation_aggregate(x, weights, rates, 3, padding=1)
    assert cost.aggregate(x.shape, weights.shape, rates.shape, *sizes).bytes == size(x, weights, rates, sums)
    scores = dynamic_dilation_correlate(query, x, rates, 3, padding=1, heads=2)
    assert cost.correlate(query.shape, x.shape, rates.shape, *sizes, heads=2).bytes == size(query, x, rates, scores)

    def backward(mask):
        shapes = x.shape, weights.shape, rates.shape
        return cost.aggregate_backward(*shapes, *sizes, output_mask=mask).bytes

    assert backward((True, True, True)) == size(sums, x, weights, rates, x, weights, rates)
    assert backward((True, False, False)) == size(sums, weights, rates, x)
    assert backward((False, True, False)) == size(sums, x, rates, weights)
    assert backward((False, False, True)) == size(sums, x, weights, rates, rates)
    assert backward((False, False, False)) == 0

    def correlate_backward(mask):
        return cost.correlate_backward(x.shape, x.shape, rates.shape, *sizes, heads=2, output_mask=mask).bytes

    assert correlate_backward((True, True, True)) == size(scores, query, x, rates, query, x, rates)
    assert correlate_backward((True, False, False)) == size(scores, x, rates, query)
    assert correlate_backward((False, True, False)) == size(scores, query, rates, x)
