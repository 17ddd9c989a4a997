"""unfold: what lies under each window, as columns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from torch import Tensor

from .. import _C
from .._operator import Argument, Mask, Operator, Tensors
from .._options import Int, PaddingMode, Pair
from .._sampling import batched, columns


class Options(NamedTuple):
    kernel_size: Pair
    stride: Pair
    padding: Pair
    dilation: Pair
    groups: int  # 0 means the map's: a shard of a DTensor has some of the groups
    padding_mode: PaddingMode = "zeros"


class Unfold(Operator):
    name = "unfold"
    arguments = (
        Argument("input", 4, channels_last=True),
        Argument("dilation_map", 4, "shared", is_map=True),
    )
    options = Options
    is_linear = True
    output_dims = 3

    def output_shape(self, tensors: Tensors, options: Options) -> tuple[Int, ...]:
        input, dilation_map = tensors
        rows = input.shape[-3] * options.kernel_size[0] * options.kernel_size[1]
        return (*input.shape[:-3], rows, dilation_map.shape[-2] * dilation_map.shape[-1])

    def check_shapes(self, shapes: Sequence[Any], options: Options) -> None:
        input, dilation_map = shapes
        _C.check_geometry(input, dilation_map, *options)

    def reference(self, tensors: Tensors, options: Options) -> Tensor:
        return batched(columns, tensors, options)

    def for_shards(self, tensors: Tensors, options: Options) -> Options:
        dilation_map = tensors[1]
        is_whole = dilation_map.dim() >= 3 and dilation_map.shape[-3] == options.groups
        return options._replace(groups=0) if is_whole else options

    def resolved(self, tensors: Tensors, options: Options) -> Options:
        if isinstance(options.groups, int) and options.groups == 0 and tensors[1].dim() >= 3:
            return options._replace(groups=tensors[1].shape[-3])
        return options

    def of_channels(self, options: Options, part: int, channels: int) -> Options:
        return options._replace(groups=max(1, options.groups * part // channels))

    def shards(self, specs: Sequence[Any], options: Options) -> list[tuple[Any, tuple[Any, ...], tuple[Any, ...]]]:
        from .._sharding import Partial, Replicate, Shard, splits_evenly

        # The columns and their gradient split as the input does: their dimensions are its batch and its channels.
        input, dilation_map = specs
        channel = input.ndim - 3
        groups = dilation_map.shape[channel]
        ways: list[Any] = [(Replicate(), Replicate(), Replicate())]  # of the input, of the map, of the map's gradient
        if channel == 1:
            shared = dilation_map.shape[0] == 1
            ways.append((Shard(0), Replicate(), Partial()) if shared else (Shard(0), Shard(0), Shard(0)))
        # Columns are chunked by their own count, so channels must split evenly for both to be cut at the same place.
        if groups == 1 and splits_evenly(input, channel, input.shape[channel]):
            ways.append((Shard(channel), Replicate(), Partial()))
        # A shard has fewer groups than the call was given, unless that leaves them to the map.
        if options.groups == 0 and groups > 1 and splits_evenly(input, channel, groups):
            ways.append((Shard(channel), Shard(channel), Shard(channel)))
        return [(x, (x, rate), (x, grad_rate)) for x, rate, grad_rate in ways]

    def flops(self, shapes: Sequence[Any], options: Options) -> int:
        input, dilation_map = shapes
        return self.cost()(input, dilation_map, options.kernel_size).flops

    def backward_flops(self, shapes: Sequence[Any], options: Options, mask: Mask) -> int:
        input, dilation_map = shapes
        return self.cost(backward=True)(input, dilation_map, options.kernel_size, output_mask=mask).flops


UNFOLD = Unfold()
