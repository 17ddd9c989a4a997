"""A call of the operator, and its registered operators, for the tests of what torch does around them."""

from typing import Any

import torch
from dynamic_dilation_unfold import dynamic_dilation_unfold
from helpers import Case, random_input, random_map
from torch import Tensor

UNFOLD = torch.ops.dynamic_dilation_unfold.unfold.default
BACKWARD = torch.ops.dynamic_dilation_unfold.unfold_backward.default
CASE = Case(2, 4, 6, 7, padding=1, groups=2)


def example(device: str, case: Case = CASE, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    return random_input(case.shape).to(device, dtype), random_map("fractional", case.map_shape).to(device, dtype)


def ours(input: Tensor, rates: Tensor, case: Case = CASE) -> Tensor:
    return dynamic_dilation_unfold(input, dilation_map=rates, **case.options)


def arguments(input: Tensor, rates: Tensor, case: Case = CASE) -> tuple[Any, ...]:
    return (input, rates, *case.pairs, case.groups)
