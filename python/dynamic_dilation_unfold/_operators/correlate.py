"""correlate: a query compared with what lies under its window."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from torch import Tensor

from .. import _C
from .._operator import Argument, Mask, Operator, Tensors
from .._options import Int, PaddingMode, Pair
from .._sampling import batched, correlate


class Options(NamedTuple):
    kernel_size: Pair
    stride: Pair
    padding: Pair
    dilation: Pair
    heads: int  # or minus the channels of a head: a shard of a DTensor has some of the heads
    padding_mode: PaddingMode


class Correlate(Operator):
    name = "correlate"
    arguments = (
        Argument("query", 4, channels_last=True),
        Argument("key", 4, channels_last=True),
        Argument("dilation_map", 4, "shared", is_map=True),
    )
    options = Options
    is_linear = True
    output_dims = 5
    image = 1

    def output_shape(self, tensors: Tensors, options: Options) -> tuple[Int, ...]:
        *batch, _, height, width = tensors[0].shape
        return (*batch, options.heads, options.kernel_size[0] * options.kernel_size[1], height, width)

    def check_shapes(self, shapes: Sequence[Any], options: Options) -> None:
        query, key, dilation_map = shapes
        _C.check_correlate_geometry(query, key, dilation_map, *options)

    def reference(self, tensors: Tensors, options: Options) -> Tensor:
        return batched(correlate, tensors, options)

    def for_shards(self, tensors: Tensors, options: Options) -> Options:
        fits = tensors[0].dim() >= 3 and options.heads > 0
        return options._replace(heads=-(tensors[0].shape[-3] // options.heads)) if fits else options

    def resolved(self, tensors: Tensors, options: Options) -> Options:
        if isinstance(options.heads, int) and options.heads < 0 and tensors[0].dim() >= 3:
            return options._replace(heads=tensors[0].shape[-3] // -options.heads)
        return options

    def of_channels(self, options: Options, part: int, channels: int) -> Options:
        return options._replace(heads=max(1, options.heads * part // channels))

    def shards(self, specs: Sequence[Any], options: Options) -> list[tuple[Any, tuple[Any, ...], tuple[Any, ...]]]:
        from .heads import ways_to_shard

        query, key, dilation_map = specs
        # Without that, a shard would not know how many of the heads are its own.
        heads = query.shape[-3] // -options.heads if options.heads < 0 else 1
        ways = ways_to_shard(key, None, heads, dilation_map)
        return [(w.factors, (w.images, w.images, w.map), (w.images, w.images, w.grad_map)) for w in ways]

    def flops(self, shapes: Sequence[Any], options: Options) -> int:
        query, key, dilation_map = shapes
        return self.cost()(query, key, dilation_map, options.kernel_size).flops

    def backward_flops(self, shapes: Sequence[Any], options: Options, mask: Mask) -> int:
        query, key, dilation_map = shapes
        sizes = query, key, dilation_map, options.kernel_size
        return self.cost(backward=True)(*sizes, output_mask=mask).flops


CORRELATE = Correlate()
