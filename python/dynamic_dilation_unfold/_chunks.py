"""The convolution in chunks: columns of a few rows or channels, which stay in cache, and torch's products of them.

.. code-block:: none

    forward    a chunk is some rows of the output, of one image or of several small ones, or a part of a long row
                   columns [C*kH*kW, positions]  ->  weight @ columns is the output there
    backward   a chunk is some channels of the input, so that each gradient is complete when its chunk is
                   weight^T @ grad  ->  gradient of the columns  ->  gradients of input, map and mask
                   columns, made anew  ->  grad @ columns^T is the weight's gradient

The kernels of unfold make the columns and take their gradient; where there are none, the reference does. Nothing as
large as all columns is ever allocated, and what has a chunk's columns has those of the next as well.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import _C
from ._chunk_memory import Memory
from ._chunk_products import add_product, multiply
from ._derivatives import pullback
from ._operators.unfold import Options
from ._sampling import columns as reference_columns

# Bytes of columns in a chunk. On a CPU they stay in the cache from their making to the product; elsewhere they bound
# memory, and are enough work for a whole device.
CHUNK_BYTES = {"cpu": 4 << 20}
OTHER_CHUNK_BYTES = 64 << 20
# A chunk in backward is larger where its channels are too few for a good product, up to so many times as much, and up
# to such a part of all columns.
GROWTH = 64
SHARE = 8


class Positions(NamedTuple):
    """Whole rows of the output's positions, or a part of one: either way they follow one another in memory."""

    rows: slice
    of_row: slice

    @property
    def origin(self) -> tuple[int, int]:
        return self.rows.start, self.of_row.start

    def flat(self, row: int) -> slice:
        """Among all positions, of which a row has so many."""
        return slice(self.rows.start * row + self.of_row.start, (self.rows.stop - 1) * row + self.of_row.stop)


class Part(NamedTuple):
    """Some channels, as they lie in groups that divide all channels evenly: whole groups, or a part of one."""

    groups: slice
    groups_count: int
    within: slice  # the channels of such a group
    width: int  # their number


def slices(size: int, step: int) -> Iterator[slice]:
    return (slice(i, min(i + step, size)) for i in range(0, size, step))


def _even(size: int, step: int) -> int:
    """A step of at most ``step`` that cuts ``size`` into nearly equal pieces."""
    step = max(1, min(step, size))
    pieces = -(-size // step)
    return -(-size // pieces) if pieces else 1


def channel_step(channels: int, counts: Sequence[int], most: int) -> int:
    """At most so many channels that, from 0 on, are whole groups or parts of one, for each number of groups.

    They divide all channels; but where all is one group, and twice as many would fit, the last are fewer.
    """
    fitting = (
        n
        for n in range(min(most, channels), 1, -1)
        if channels % n == 0 and all(n % (channels // count) == 0 or channels // count % n == 0 for count in counts)
    )
    step = next(fitting, 1)
    return _even(channels, most) if 2 * step <= most and all(count == 1 for count in counts) else step


class _Call:
    """Sizes of one batched call, and what its chunks have in common."""

    def __init__(
        self, input: Tensor, weight: Tensor, dilation_map: Tensor, mask: Tensor | None, window: Options, kernels: bool
    ) -> None:
        self.input, self.map, self.mask = input, dilation_map, mask
        self.window, self.kernels = window, kernels
        self.batch, self.channels = input.shape[:2]
        self.outputs, group_channels = weight.shape[:2]
        self.conv_groups = self.channels // group_channels if group_channels else 1
        self.taps = weight.shape[2] * weight.shape[3]
        self.rows, self.row = dilation_map.shape[2:]  # positions down, and of a row
        # Sums are float32, or float64 for float64. A CPU has no good product of half types.
        self.sum_dtype = torch.promote_types(input.dtype, torch.float32)
        self.dtype = self.sum_dtype if input.device.type == "cpu" else input.dtype
        self.weight = weight.to(self.dtype).reshape(
            self.conv_groups, self.outputs // self.conv_groups, group_channels * self.taps
        )
        self.budget = CHUNK_BYTES.get(input.device.type, OTHER_CHUNK_BYTES)
        self.position_bytes = self.taps * self.dtype.itemsize  # of the columns of a channel
        self.bytes = self.position_bytes * self.row  # and of its row

    # --- How it is cut ------------------------------------------------------------------------------------------------

    def whole_images(self) -> int:
        return _even(self.batch, self.budget // max(1, self.channels * self.rows * self.bytes))

    def steps(self, channels: int, most: int) -> tuple[int, int]:
        """Rows in a chunk of so many channels and bytes, and positions of each: all, but of a row that is too long."""
        rows = _even(self.rows, most // max(1, channels * self.bytes))
        if rows > 1:
            return rows, self.row
        # A product of fewer positions than outputs would read more of the weight than of columns.
        positions = max(most // max(1, channels * self.position_bytes), self.outputs // self.conv_groups)
        return rows, _even(self.row, positions)

    def chunks(self, steps: tuple[int, int]) -> Iterator[Positions]:
        return (Positions(r, x) for r in slices(self.rows, steps[0]) for x in slices(self.row, steps[1]))

    def most_in_backward(self) -> int:
        """Bytes of a chunk, which has no more channels than its product needs."""
        columns = self.batch * self.channels * self.rows * self.bytes
        return max(self.budget, min(GROWTH * self.budget, columns // SHARE))

    def channel_step(self) -> int:
        """Channels in a chunk: whole groups or parts of one, of each kind of groups."""
        heads = 1 if self.mask is None else self.mask.shape[1]
        counts = [self.map.shape[1], self.conv_groups, heads]
        # The output's gradient is read once for each chunk: not for less than half as many rows of columns.
        least = -(-self.outputs // (2 * self.taps * self.conv_groups))
        most = max(self.budget // (self.rows * self.bytes), least)
        return channel_step(self.channels, counts, most)

    # --- The parts of a chunk -----------------------------------------------------------------------------------------

    def pixels(self, images: slice, channels: slice) -> Tensor:
        """As the kernels read them, so that they need no copy for each chunk: contiguous, or all of channels_last."""
        pixels = self.input[images, channels].to(self.dtype)
        whole = pixels.shape[1] == self.channels
        return pixels if whole and pixels.is_contiguous(memory_format=torch.channels_last) else pixels.contiguous()

    def of_map(self, tensor: Tensor, images: slice, groups: slice, positions: Positions) -> Tensor:
        """A view of a tensor like the map."""
        return tensor[images if tensor.shape[0] > 1 else slice(None), groups, positions.rows, positions.of_row]

    def rates(self, images: slice, groups: slice, positions: Positions) -> Tensor:
        """In the dtype of positions: a gradient that is summed over chunks is not rounded for each."""
        return self.of_map(self.map, images, groups, positions).to(self.sum_dtype)

    def part(self, channels: slice, groups: int) -> Part:
        size, given = self.channels // groups, channels.stop - channels.start
        width = min(size, given)
        first, offset = divmod(channels.start, size)
        return Part(slice(first, first + given // width), given // width, slice(offset, offset + width), width)

    def of_mask(self, mask: Tensor, images: slice, heads: slice, positions: Positions) -> Tensor:
        """A view ``[n or 1, heads, 1, taps, positions]``, like the columns of the heads' channels."""
        of_images = mask[images if mask.shape[0] > 1 else slice(None), heads]
        return of_images[..., positions.rows, positions.of_row].flatten(3).unsqueeze(2)

    def of_heads(self, columns: Tensor, heads: Part) -> Tensor:
        return columns.view(columns.shape[0], heads.groups_count, heads.width, self.taps, -1)

    def columns(self, input: Tensor, rates: Tensor, origin: tuple[int, int], memory: Memory, piece: int = 0) -> Tensor:
        """``[n, C*kH*kW, positions]`` of images for the positions from the origin on that the rates are of."""
        window = self.window._replace(groups=rates.shape[1])
        if self.kernels:
            batch, channels = input.shape[:2]
            positions = rates.shape[2] * rates.shape[3]
            output = memory.tensor(input.dtype, batch, channels * self.taps, positions, piece=piece)
            columns: Tensor = _present(_C.unfold_part(input, rates, *window, origin, output))
            return columns
        return reference_columns(input, rates, _from(window, origin))

    def columns_backward(
        self, grad: Tensor, input: Tensor, rates: Tensor, origin: tuple[int, int], wanted: tuple[bool, bool]
    ) -> tuple[Tensor | None, Tensor | None]:
        window = self.window._replace(groups=rates.shape[1])
        if self.kernels:
            grads: Any = _present(_C.unfold_part_backward(grad, input, rates, *window, origin, wanted))
        else:
            moved = _from(window, origin)
            grads = pullback(lambda x, r: reference_columns(x, r, moved), (input, rates), wanted, grad)
        return grads[0], grads[1]


def _present(result: Any) -> Any:
    if result is None:
        raise RuntimeError("a tensor has no memory that the kernels could read: was its storage freed?")
    return result


def _from(window: Options, origin: tuple[int, int]) -> Options:
    """The window whose first position is another: it lies as with less padding."""
    down, right = (p - at * s for p, at, s in zip(window.padding, origin, window.stride, strict=True))
    return window._replace(padding=(down, right))


def forward(
    input: Tensor,
    weight: Tensor,
    dilation_map: Tensor,
    bias: Tensor | None,
    mask: Tensor | None,
    window: Options,
    output: Tensor,
    kernels: bool,
) -> None:
    """Fills ``output [B, O, Ho, Wo]``."""
    call = _Call(input, weight, dilation_map, mask, window, kernels)
    if call.channels == 0:
        output.zero_() if bias is None else output.copy_(bias.view(-1, 1, 1))
        return
    everything = slice(0, call.channels)
    rows, of_row = call.steps(call.channels, call.budget)
    images_step = call.whole_images() if rows == call.rows else 1
    memory = Memory(images_step * rows * of_row * call.channels * call.position_bytes, input.device)
    for images in slices(call.batch, images_step):
        pixels = call.pixels(images, everything)
        for positions in call.chunks((rows, of_row)):
            rates = call.rates(images, slice(None), positions)
            columns = call.columns(pixels, rates, positions.origin, memory)
            if mask is not None:
                heads = call.part(everything, mask.shape[1])
                call.of_heads(columns, heads).mul_(call.of_mask(mask, images, heads.groups, positions))
            # A view: in both memory formats a row follows the one before.
            target = output[images, :, positions.rows, positions.of_row].flatten(2)
            product = target if call.dtype == output.dtype else torch.empty_like(target, dtype=call.dtype)
            if bias is not None:
                product.copy_(bias.view(-1, 1))
            columns = columns.unflatten(1, (call.conv_groups, -1))
            multiply(product.unflatten(1, call.weight.shape[:2]), call.weight, columns, beta=int(bias is not None))
            if product is not target:
                target.copy_(product)
    memory.leave()


class Wanted(NamedTuple):
    """Which gradients."""

    input: bool
    weight: bool
    map: bool
    bias: bool
    mask: bool


class Sums(NamedTuple):
    """Gradients that chunks add to; None for one that is not wanted."""

    weight: Tensor | None  # [conv_groups, O/conv_groups, C/conv_groups*taps]
    map: Tensor | None
    mask: Tensor | None


def backward(
    grad: Tensor,
    input: Tensor,
    weight: Tensor,
    dilation_map: Tensor,
    mask: Tensor | None,
    window: Options,
    grad_input: Tensor | None,
    wanted: Wanted,
    kernels: bool,
) -> tuple[Tensor | None, ...]:
    """Fills ``grad_input``, and returns the other gradients: of weight, map, bias and mask."""
    call = _Call(input, weight, dilation_map, mask, window, kernels)

    def zeros(shape: torch.Size, want: bool) -> Tensor | None:
        return torch.zeros(shape, dtype=call.sum_dtype, device=input.device) if want else None

    sums = Sums(
        zeros(call.weight.shape, wanted.weight),
        zeros(dilation_map.shape, wanted.map),
        None if mask is None else zeros(mask.shape, wanted.mask),
    )
    if call.channels > 0 and (grad_input is not None or any(total is not None for total in sums)):
        _add_chunks(call, grad, grad_input, sums)
    bias = grad.sum((0, 2, 3), dtype=call.sum_dtype) if wanted.bias else None
    totals = (sums.weight, weight), (sums.map, dilation_map), (bias, weight), (sums.mask, mask)
    grads = [None if total is None or like is None else total.to(like.dtype) for total, like in totals]
    return (None if grads[0] is None else grads[0].view(weight.shape), *grads[1:])


def _add_chunks(call: _Call, grad: Tensor, grad_input: Tensor | None, sums: Sums) -> None:
    step = call.channel_step()
    rows, of_row = call.steps(step, call.most_in_backward())
    in_parts = (rows < call.rows or of_row < call.row) and grad_input is not None
    images_step = call.whole_images() if step == call.channels else 1
    # The columns and their gradient take turns, unless the mask's gradient needs both.
    pieces = 1 if sums.mask is None else 2
    memory = Memory(images_step * rows * of_row * step * call.position_bytes, grad.device, pieces)
    for images in slices(call.batch, images_step):
        matrices = grad[images].flatten(2).to(call.dtype)
        for channels in slices(call.channels, step):
            pixels = call.pixels(images, channels)
            # The gradient of a part of the positions is not rounded, so its kernels read what is like it.
            read = pixels.to(call.sum_dtype) if in_parts else pixels
            total = torch.zeros_like(read) if in_parts else None
            for positions in call.chunks((rows, of_row)):
                chunk = _Chunk(call, images, channels, positions, pixels, matrices)
                grad_pixels = chunk.backward(grad_input is not None, read, sums, memory)
                if total is not None and grad_pixels is not None:
                    total.add_(grad_pixels)
            complete = grad_pixels if total is None else total
            if grad_input is not None and complete is not None:
                grad_input[images, channels] = complete
    memory.leave()


class _Chunk:
    """Some positions of some channels of some images, in backward."""

    def __init__(
        self, call: _Call, images: slice, channels: slice, positions: Positions, pixels: Tensor, matrices: Tensor
    ) -> None:
        self.call, self.images, self.positions, self.pixels = call, images, positions, pixels
        self.conv = call.part(channels, call.conv_groups)
        self.groups = call.part(channels, call.map.shape[1]).groups
        self.heads = None if call.mask is None else call.part(channels, call.mask.shape[1])
        self.rates = call.rates(images, self.groups, positions)
        # [n, g, O/g, positions]: of the outputs that the chunk's channels have a part in.
        of_groups = matrices.unflatten(1, call.weight.shape[:2])[:, self.conv.groups]
        self.grad = of_groups[..., positions.flat(call.row)]

    def of_weight(self, weight: Tensor) -> Tensor:
        """A view of what belongs to the chunk's channels."""
        within, taps = self.conv.within, self.call.taps
        return weight[self.conv.groups, :, within.start * taps : within.stop * taps]

    def scaled_(self, columns: Tensor) -> Tensor:
        if self.heads is not None and self.call.mask is not None:
            mask = self.call.of_mask(self.call.mask, self.images, self.heads.groups, self.positions)
            self.call.of_heads(columns, self.heads).mul_(mask)
        return columns

    def backward(self, wants_input: bool, read: Tensor, sums: Sums, memory: Memory) -> Tensor | None:
        """Adds to the sums and returns the input's gradient, in the dtype of the pixels to read for it."""
        call, columns, grad_pixels = self.call, None, None
        if sums.weight is not None or sums.mask is not None:
            piece = 0 if sums.mask is None else 1
            columns = call.columns(self.pixels, self.rates, self.positions.origin, memory, piece)
        if sums.mask is None:
            self._add_to_weight(columns, sums.weight)
            columns = None  # what follows takes their place, in memory and in the cache
        if wants_input or sums.map is not None or sums.mask is not None:
            weight = self.of_weight(call.weight)
            shape = len(self.pixels), self.conv.groups_count, weight.shape[2], self.grad.shape[3]
            grad = memory.tensor(self.grad.dtype, *shape)
            multiply(grad, weight.mT, self.grad)
            grad = grad.flatten(1, 2)
            if self.heads is not None and sums.mask is not None and columns is not None:
                products = call.of_heads(grad.to(call.sum_dtype) * columns, self.heads).sum(2, keepdim=True)
                total = call.of_mask(sums.mask, self.images, self.heads.groups, self.positions)
                total += products.sum_to_size(total.shape)
            if wants_input or sums.map is not None:
                grad_pixels = self._backward_to_pixels(self.scaled_(grad), wants_input, read, sums.map)
        self._add_to_weight(columns, sums.weight)
        return grad_pixels

    def _add_to_weight(self, columns: Tensor | None, total: Tensor | None) -> None:
        """Uses up the columns, if there are any."""
        if total is not None and columns is not None:
            columns = self.scaled_(columns).unflatten(1, (self.conv.groups_count, -1))
            add_product(self.of_weight(total), self.grad, columns, self.call.budget)

    def _backward_to_pixels(
        self, grad: Tensor, wants_input: bool, read: Tensor, sum_map: Tensor | None
    ) -> Tensor | None:
        wanted, origin = (wants_input, sum_map is not None), self.positions.origin
        grad_pixels, grad_map = self.call.columns_backward(grad.to(read.dtype), read, self.rates, origin, wanted)
        if sum_map is not None and grad_map is not None:
            self.call.of_map(sum_map, self.images, self.groups, self.positions).add_(grad_map)
        return grad_pixels
