"""What the tests share: cases, maps, running with gradients, and comparing."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from dynamic_dilation_unfold import DynamicDilationUnfold
from torch import Tensor, nn

Ints = int | tuple[int, int]

HALVES = [torch.float16, torch.bfloat16]
FLOATS = [torch.float32, torch.float64]
DTYPES = [*HALVES, *FLOATS]

# Relative norm of the error. Half types are compared element by element, see test_half.py.
TOLERANCE = {torch.float32: 1e-6, torch.float64: 1e-14}


def both(value: Ints) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else value


@dataclasses.dataclass(frozen=True)
class Case:
    """Sizes and options of one call."""

    batch: int
    channels: int
    height: int
    width: int
    kernel_size: Ints = 3
    stride: Ints = 1
    padding: Ints = 0
    dilation: Ints = 1
    groups: int = 1
    padding_mode: str = "zeros"

    @property
    def options(self) -> dict[str, Any]:
        """All but the padding mode that is F.unfold's, so that F.unfold takes them too, without groups."""
        options = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)[4:]}
        if self.padding_mode == "zeros":
            del options["padding_mode"]
        return options

    @property
    def border(self) -> Case:
        return dataclasses.replace(self, padding_mode="border")

    @property
    def pairs(self) -> tuple[tuple[int, int], ...]:
        return tuple(both(v) for v in (self.kernel_size, self.stride, self.padding, self.dilation))

    @property
    def shape(self) -> tuple[int, int, int, int]:
        return (self.batch, self.channels, self.height, self.width)

    @property
    def out_size(self) -> tuple[int, int]:
        first, second = (
            (size + 2 * p - d * (k - 1) - 1) // s + 1
            for size, k, s, p, d in zip((self.height, self.width), *self.pairs, strict=True)
        )
        return first, second

    @property
    def map_shape(self) -> tuple[int, int, int, int]:
        return (self.batch, self.groups, *self.out_size)

    @property
    def output_shape(self) -> tuple[int, int, int]:
        return (self.batch, self.channels * math.prod(both(self.kernel_size)), math.prod(self.out_size))

    def __str__(self) -> str:
        text = "x".join(map(str, self.shape))
        defaults = {f.name: f.default for f in dataclasses.fields(self)[4:]}
        for name, value in self.options.items():
            if value != defaults[name]:
                text += f"-{name[0]}{'{}x{}'.format(*value) if isinstance(value, tuple) else value}"
        return text


# Kernels even and odd, rectangular windows, strides, base dilations, groups, sizes that fill no tile.
CASES = [
    Case(2, 4, 9, 11, padding=1),
    Case(1, 3, 8, 7, kernel_size=2),
    Case(2, 6, 10, 9, kernel_size=(3, 5), stride=(2, 1), padding=(1, 2), dilation=(1, 2), groups=3),
    Case(1, 4, 12, 6, kernel_size=(4, 1), stride=(1, 3), padding=(3, 0), dilation=(2, 1), groups=2),
    Case(1, 2, 7, 13, kernel_size=(1, 7), padding=(0, 3), groups=2),
    Case(3, 5, 1, 1, padding=1),
    Case(1, 2, 2, 1, kernel_size=(2, 3), padding=2),
    Case(1, 1, 1, 17, kernel_size=5, padding=4, dilation=2),
]


def random_input(shape: tuple[int, ...], seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).float()


def random_map(kind: str, shape: tuple[int, ...], seed: int = 1) -> Tensor:
    """A map of float32 values. Of the kinds, ``eighths`` puts taps on whole pixels too, and is exact in half types."""
    generator = torch.Generator().manual_seed(seed)
    uniform = torch.rand(shape, generator=generator, dtype=torch.float64).float()
    eighths = torch.randint(-32, 33, shape, generator=generator) / 8
    match kind:
        case "ones":
            return torch.ones(shape)
        case "zero":
            return torch.zeros(shape)
        case "fractional":
            return 0.5 + 2.5 * uniform
        case "negative":
            return -0.5 - 2.5 * uniform
        case "eighths":
            return eighths
        case "far":  # some taps in the image and some not, too wide a spread for any window
            return eighths * 16
        case "huge":
            return eighths.sign() * 10 ** (2 + 36 * uniform)
        case "mixed":
            kinds = torch.stack([eighths, eighths * 16, random_map("huge", shape, seed), torch.zeros(shape)])
            choice = torch.randint(0, 4, shape, generator=generator)
            return kinds.gather(0, choice[None])[0]
    raise ValueError(kind)


class Model(nn.Module):
    """A small model that learns its rates: input ``[B, 4, H, W]``, output ``[B, H*W, 3]``."""

    def __init__(self) -> None:
        super().__init__()
        self.rate = nn.Conv2d(4, 2, 3, padding=1)
        self.unfold = DynamicDilationUnfold(3, padding=1, groups=2)
        self.head = nn.Linear(36, 3)

    def forward(self, input: Tensor) -> Tensor:
        return self.head(self.unfold(input, 1 + self.rate(input).tanh()).transpose(1, 2))


class Result(NamedTuple):
    output: Tensor
    grad_input: Tensor
    grad_map: Tensor


def run(function: Callable[..., Tensor], input: Tensor, rates: Tensor, grad: Tensor, options: dict[str, Any]) -> Result:
    """The operator and both its gradients."""
    input, rates = input.detach().requires_grad_(), rates.detach().requires_grad_()
    output = function(input, dilation_map=rates, **options)
    return Result(output.detach(), *torch.autograd.grad(output, (input, rates), grad))


def off_whole_positions(case: Case, seed: int = 1, margin: float = 0.02) -> Tensor:
    """A float64 map whose moving taps all keep ``margin`` pixels away from whole positions, where derivatives jump."""
    generator = torch.Generator().manual_seed(seed)
    rates = torch.zeros(case.map_shape, dtype=torch.float64)
    todo = torch.ones(case.map_shape, dtype=torch.bool)
    while todo.any():
        rates[todo] = torch.rand(int(todo.sum()), generator=generator, dtype=torch.float64) * 5 - 2
        todo = torch.zeros_like(todo)
        for k, _, _, d in zip(*case.pairs, strict=True):
            for tap in range(k):
                offset = (tap - (k - 1) / 2) * d
                position = (k - 1) / 2 * d + offset * rates
                if offset:
                    todo |= (position - position.round()).abs() < margin
    return rates


def relative_error(actual: Tensor, expected: Tensor) -> float:
    """Norm of the difference over the norm of what is expected."""
    actual, expected = actual.detach().cpu().double(), expected.detach().cpu().double()
    assert actual.shape == expected.shape
    difference, scale = float((actual - expected).norm()), float(expected.norm())
    return difference / scale if scale else 0.0 if difference == 0 else math.inf


def assert_close(actual: Result, expected: Result, tolerance: float) -> None:
    for name, one, other in zip(Result._fields, actual, expected, strict=True):
        error = relative_error(one, other)
        assert error <= tolerance, f"{name}: relative error {error:.3g}"


def assert_same_bits(actual: Tensor | Result, expected: Tensor | Result) -> None:
    """Equal element by element, and NaN where the other is NaN."""
    for one, other in zip(_tensors(actual), _tensors(expected), strict=True):
        assert one.dtype == other.dtype
        assert one.shape == other.shape
        one, other = one.cpu(), other.cpu()
        assert torch.equal(one.isnan(), other.isnan())
        assert torch.equal(one.nan_to_num(nan=0.0), other.nan_to_num(nan=0.0))


def _tensors(value: Tensor | Result) -> Iterator[Tensor]:
    yield from [value] if isinstance(value, Tensor) else value
