"""Second derivatives and forward mode by the kernels, of operators that are linear in every tensor but the map.

``form(grad, *tensors) = <grad, operator(*tensors)>`` is then linear in the gradient too, and each of its derivatives is
a call of kernels: with respect to the gradient the operator, with respect to a tensor its backward. Forward mode of the
operator, forward mode of its backward and double backward are all products of the form's matrix of second derivatives
with tangents (or cotangents, as the matrix is symmetric), and :func:`second` computes any of them:

.. code-block:: none

    the product's part j  =  sum over i of  d form(..., tangent_i in the place of value_i, ...) / d value_j    kernels
                          +  d bend / d value_j                        with bend = <map's tangent, d form / d map>

The form is not linear in the map alone. What a tangent of the map adds, slopes and their slopes, comes from the
reference, for some channels at a time, so that nothing of the columns' size is in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from math import prod
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.autograd import Function

from . import _batching, _kernels
from ._chunks import channel_step, slices
from ._derivatives import apply, backward_of, filled, pullback, pushforward, reference_of, refuse_dtensors
from ._operator import Gradients, Mask, Operator, Tensors

# Bytes of columns in a part of what the reference does, which keeps some fifteen copies of them. Smaller parts take
# less memory and more time, as each has hundreds of operators.
PART_BYTES = {"cpu": 2 << 20}
OTHER_PART_BYTES = 16 << 20

Tangents = Sequence[Tensor | None]


class Calls(Protocol):
    """An operator and its backward by the route that is asked for, differentiable again."""

    def forward(self, operator: Operator, tensors: Tensors, options: Any) -> Tensor: ...

    def backward(self, operator: Operator, grad: Tensor, tensors: Tensors, options: Any, mask: Mask) -> Tensors: ...


def jvp(operator: Operator, tensors: Tensors, tangents: Tangents, options: Any, calls: Calls) -> Tensor:
    """The output's tangent."""
    if not _by_kernels(operator, tensors):
        tangent: Tensor = pushforward(reference_of(operator, options), tensors, tangents)
        return tangent
    # Its values don't matter: no derivative with respect to the gradient depends on them.
    grad = tensors[0].new_zeros(()).expand(operator.output_shape(tensors, operator.resolved(tensors, options)))
    wanted = (True, *[False] * operator.count)
    found = second(operator, (grad, *tensors), (None, *tangents), options, wanted, calls)[0]
    return torch.zeros_like(grad) if found is None else found


def jvp_of_backward(
    operator: Operator, values: Tensors, tangents: Tangents, options: Any, mask: Mask, calls: Calls
) -> Tensors:
    """Tangents of the gradients; ``values`` are gradient and tensors."""
    if not _by_kernels(operator, values[1:]):
        found: Tensors = pushforward(backward_of(operator, options, mask), values, tangents)
        return found
    products = second(operator, values, tangents, options, (False, *mask), calls)[1:]
    zeros = (
        torch.zeros_like(value) if want and product is None else product
        for value, want, product in zip(values[1:], mask, products, strict=True)
    )
    return filled(tuple(zeros), values[1])


def vjp_of_backward(
    operator: Operator, values: Tensors, cotangents: Tangents, options: Any, mask: Mask, wanted: Mask, calls: Calls
) -> Gradients:
    """Gradients of double backward, of the wanted values; ``cotangents`` are those of the gradients."""
    kept = tuple(c if want else None for c, want in zip(cotangents, mask, strict=True))
    if _by_kernels(operator, values[1:]):
        return second(operator, values, (None, *kept), options, wanted, calls)
    zeros = (
        torch.zeros_like(value) if want and cotangent is None else cotangent
        for value, want, cotangent in zip(values[1:], mask, kept, strict=True)
    )
    return pullback(backward_of(operator, options, mask), values, wanted, filled(tuple(zeros), values[1]))


def _by_kernels(operator: Operator, tensors: Tensors) -> bool:
    return operator.is_linear and _kernels.has_kernels(operator, tensors[0].device)


def second(
    operator: Operator, values: Tensors, tangents: Tangents, options: Any, wanted: Mask, calls: Calls
) -> Gradients:
    """The wanted parts of the product of the form's second derivatives and the tangents; None for one that is 0.

    Values, tangents and parts are those of gradient and tensors.
    """
    refuse_dtensors((*values, *tangents))
    totals: list[Tensor | None] = [None] * len(values)

    def add(parts: Sequence[Tensor | None], chosen: Mask) -> None:
        for j, (part, is_chosen) in enumerate(zip(parts, chosen, strict=True)):
            if is_chosen and part is not None:
                total = totals[j]
                totals[j] = part if total is None else total + part

    for i, tangent in enumerate(tangents):
        if tangent is None:
            continue
        if i == 1 + operator.map:
            resolved = operator.resolved(values[1:], options)
            add(apply(_Bend, operator, resolved, tuple(wanted), tangent, *values), wanted)
            continue
        moved = (*values[:i], tangent, *values[i + 1 :])
        tensors = moved[1:]
        chosen = [want and j != i for j, want in enumerate(wanted)]
        if chosen[0]:
            add((calls.forward(operator, tensors, options),), chosen[:1])
        if any(chosen[1:]):
            add((None, *calls.backward(operator, moved[0], tensors, options, chosen[1:])), chosen)
    return tuple(totals)


# --- What the kernels don't know: a tangent of the map ----------------------------------------------------------------


def _bend_of(operator: Operator, options: Any, wanted: Mask) -> Callable[..., Tensors]:
    """Gradients of bend with respect to gradient and tensors, as a function of the map's tangent and of those."""
    of_map = [i == operator.map for i in range(operator.count)]

    def gradients(tangent: Tensor, *values: Tensor) -> Tensors:
        def slope(grad: Tensor, *tensors: Tensor) -> Tensor | None:
            return pullback(lambda *t: operator.reference(t, options), tensors, of_map, grad)[operator.map]

        return filled(pullback(slope, values, wanted, tangent), values[0])

    return gradients


class _Bend(Function):
    """Its own derivatives come from the reference, of all channels at once."""

    @staticmethod
    def forward(operator: Operator, options: Any, wanted: Mask, tangent: Tensor, *values: Tensor) -> Tensors:
        if values[1].dim() == operator.arguments[0].dims:
            return _bend_in_parts(operator, options, wanted, tangent, values)
        found = _bend_in_parts(operator, options, wanted, tangent[None], tuple(v[None] for v in values))
        return tuple(part[0] if want else part for part, want in zip(found, wanted, strict=True))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensors) -> None:
        ctx.operator, ctx.options, ctx.wanted, *tensors = inputs
        ctx.save_for_backward(*tensors)
        ctx.save_for_forward(*tensors)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Tensor | None, ...]:
        function = _bend_of(ctx.operator, ctx.options, ctx.wanted)
        return None, None, None, *pullback(function, ctx.saved_tensors, ctx.needs_input_grad[3:], cotangents)

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        return pushforward(_bend_of(ctx.operator, ctx.options, ctx.wanted), ctx.saved_tensors, tangents[3:])

    @staticmethod
    def vmap(info: Any, dims: tuple[Any, ...], operator: Operator, options: Any, wanted: Mask, *tensors: Tensor) -> Any:
        run = lambda *t: apply(_Bend, operator, options, wanted, *t)  # noqa: E731
        before = (operator.arguments[operator.map],)
        return _batching.backward(operator, run, info.batch_size, dims[3:], tensors, wanted, before)


def _bend_in_parts(operator: Operator, options: Any, wanted: Mask, tangent: Tensor, values: Tensors) -> Tensors:
    """Of some images and channels at a time: of those the sums over channels and the image's gradient are complete."""
    dtype = torch.promote_types(values[0].dtype, torch.float32)
    totals = [torch.zeros_like(v, dtype=dtype) if want else None for v, want in zip(values, wanted, strict=True)]
    channels = values[1 + operator.image].shape[1]
    for images, part in _parts(operator, options, values, dtype.itemsize):
        function = _bend_of(operator, operator.of_channels(options, part.stop - part.start, channels), wanted)

        def of_part(tensor: Tensor, images: slice = images, part: slice = part) -> Tensor:
            count = tensor.shape[1]  # channels, or what divides them or is divided by them
            own = slice(part.start * count // channels, -(-part.stop * count // channels))
            return tensor[images if tensor.shape[0] > 1 else slice(None), own]

        found = function(*(of_part(t).to(dtype) for t in (tangent, *values)))
        for total, gradient in zip(totals, found, strict=True):
            if total is not None:
                of_part(total).add_(gradient)
    return filled(tuple(t if t is None else t.to(v.dtype) for t, v in zip(totals, values, strict=True)), values[0])


def _parts(operator: Operator, options: Any, values: Tensors, itemsize: int) -> Iterator[tuple[slice, slice]]:
    """Images, and channels that are whole groups and heads or lie in one."""
    batch, channels = values[1 + operator.image].shape[:2]
    size = prod(options.kernel_size) * prod(values[1 + operator.map].shape[-2:]) * itemsize  # of a channel's columns
    most = PART_BYTES.get(values[0].device.type, OTHER_PART_BYTES) // size if size else channels
    step = channel_step(channels, [v.shape[1] for v in values if v.shape[1] <= channels], most)
    images = max(1, most // max(1, channels)) if step == channels else 1
    return ((i, c) for i in slices(batch, images) for c in slices(channels, step))
