"""aggregate: what lies under each window, summed with weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from torch import Tensor

from .. import _C
from .._operator import Argument, Mask, Operator, Tensors
from .._options import Int, PaddingMode, Pair
from .._sampling import aggregate, batched


class Options(NamedTuple):
    kernel_size: Pair
    stride: Pair
    padding: Pair
    dilation: Pair
    padding_mode: PaddingMode


class Aggregate(Operator):
    name = "aggregate"
    arguments = (
        Argument("input", 4, channels_last=True),
        Argument("weights", 5, "shared"),
        Argument("dilation_map", 4, "shared", is_map=True),
    )
    options = Options
    is_linear = True
    output_dims = 4

    def output_shape(self, tensors: Tensors, options: Options) -> tuple[Int, ...]:
        input, _, dilation_map = tensors
        return (*input.shape[:-2], *dilation_map.shape[-2:])

    def check_shapes(self, shapes: Sequence[Any], options: Options) -> None:
        input, weights, dilation_map = shapes
        _C.check_aggregate_geometry(input, weights, dilation_map, *options)

    def reference(self, tensors: Tensors, options: Options) -> Tensor:
        return batched(aggregate, tensors, options)

    def shards(self, specs: Sequence[Any], options: Options) -> list[tuple[Any, tuple[Any, ...], tuple[Any, ...]]]:
        from .heads import ways_to_shard

        input, weights, dilation_map = specs
        factors_batch = weights.shape[0] if weights.ndim == 5 else 0
        ways = ways_to_shard(input, factors_batch, weights.shape[-4], dilation_map)
        return [(w.images, (w.images, w.factors, w.map), (w.images, w.grad_factors, w.grad_map)) for w in ways]

    def flops(self, shapes: Sequence[Any], options: Options) -> int:
        input, weights, dilation_map = shapes
        return self.cost()(input, weights, dilation_map, options.kernel_size).flops

    def backward_flops(self, shapes: Sequence[Any], options: Options, mask: Mask) -> int:
        input, weights, dilation_map = shapes
        sizes = input, weights, dilation_map, options.kernel_size
        return self.cost(backward=True)(*sizes, output_mask=mask).flops


AGGREGATE = Aggregate()
