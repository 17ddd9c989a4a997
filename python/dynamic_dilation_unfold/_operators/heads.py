"""What aggregate and correlate have in common: an image, and values, factors and rates for each position.

``values[B, C, Ho, Wo] = sum over taps of factors[B, heads, kH*kW, Ho, Wo] * S`` is the one, ``factors = sum over
channels of values * S`` the other. Channels have two divisions that know nothing of each other: groups, as many as the
map has planes, share rates; heads share factors.
"""

from __future__ import annotations

from typing import Any, NamedTuple


class Way(NamedTuple):
    """Placements of the tensors of one split of a call, and of their gradients."""

    images: Any  # image and values, and their gradients: all split alike
    factors: Any
    grad_factors: Any
    map: Any
    grad_map: Any


def ways_to_shard(image: Any, factors_batch: int | None, heads: int, dilation_map: Any) -> list[Way]:
    """How a call splits on DTensors; ``factors_batch`` is None for factors that are the output."""
    from .._sharding import Partial, Replicate, Shard, splits_evenly

    channel = image.ndim - 3
    groups = dilation_map.shape[channel]
    whole, split, summed = (Replicate(), Replicate()), (Shard(channel), Shard(channel)), (Replicate(), Partial())
    ways = [Way(Replicate(), *whole, *whole)]
    if channel == 1:
        images = (Shard(0), Shard(0))
        ways.append(
            Way(
                Shard(0),
                *(summed if factors_batch == 1 else images),
                *(summed if dilation_map.shape[0] == 1 else images),
            )
        )
    # The channels split where whole heads and whole groups go to each rank. One group is for all; and so is one head,
    # whose factors all ranks know if they are given.
    factors: tuple[Any, Any] | None
    rates: tuple[Any, Any] | None
    if heads > 1:
        factors = split if splits_evenly(image, channel, heads) else None
    else:
        is_given = factors_batch is not None
        factors = summed if is_given and splits_evenly(image, channel, image.shape[channel]) else None
    rates = summed if groups == 1 else split if splits_evenly(image, channel, groups) else None
    if factors and rates:
        ways.append(Way(Shard(channel), *factors, *rates))
    return ways
