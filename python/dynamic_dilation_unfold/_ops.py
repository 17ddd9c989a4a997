"""The operators as torch's dispatcher sees them: schemas, kernels, fakes, derivatives, batching and cost.

Compilers, exporters, modes and tensor subclasses meet ``dynamic_dilation_unfold::unfold`` and ``::unfold_backward``;
plain eager calls take the shorter way of :mod:`._autograd` to the same kernels.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function, forward_ad
from torch.utils.flop_counter import register_flop_formula

from . import _C, _kernels, cost
from ._batching import backward_over_batch, unfold_over_batch
from ._derivatives import backward_of, filled, has_dtensor, pullback, reference_of
from ._options import Options, Pair

NAME = "dynamic_dilation_unfold"
_OPTIONS = "SymInt[2] kernel_size, SymInt[2] stride, SymInt[2] padding, SymInt[2] dilation, SymInt groups"
_TAGS = (torch.Tag.pt2_compliant_tag,)
library = torch.library.Library(NAME, "DEF")
library.define(f"unfold(Tensor input, Tensor dilation_map, {_OPTIONS}) -> Tensor", tags=_TAGS)
library.define(
    f"unfold_backward(Tensor grad, Tensor input, Tensor dilation_map, {_OPTIONS}, bool[2] output_mask)"
    " -> (Tensor, Tensor)",
    tags=_TAGS,
)
unfold_op = torch.ops.dynamic_dilation_unfold.unfold.default
backward_op = torch.ops.dynamic_dilation_unfold.unfold_backward.default


def options_of(
    dilation_map: Tensor, kernel_size: Any, stride: Any, padding: Any, dilation: Any, groups: int
) -> Options:
    """Options of a call of an operator, where groups = 0 means the map's: a shard has some of the groups."""
    if groups == 0 and dilation_map.dim() >= 3:
        groups = dilation_map.shape[-3]
    return Options(
        _pair("kernel_size", kernel_size),
        _pair("stride", stride),
        _pair("padding", padding),
        _pair("dilation", dilation),
        groups,
    )


def _pair(name: str, values: Any) -> Pair:
    if len(values) not in (1, 2):
        raise ValueError(f"{name} must be a pair of ints, got {list(values)}")
    return (values[0], values[-1])


# --- Kernels ---------------------------------------------------------------------------------------------------------


def _unfold_kernel(input: Tensor, dilation_map: Tensor, *options: Any) -> Tensor:
    _kernels.check_tensors(input, dilation_map)
    return _kernels.unfold(input, dilation_map, options_of(dilation_map, *options))


def _backward_kernel(grad: Tensor, input: Tensor, dilation_map: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    *options, wanted = rest
    _kernels.check_tensors(input, dilation_map)
    grads = _kernels.unfold_backward(grad, input, dilation_map, options_of(dilation_map, *options), wanted)
    return filled(grads, input)


library.impl("unfold", _unfold_kernel, "CompositeExplicitAutograd")
library.impl("unfold_backward", _backward_kernel, "CompositeExplicitAutograd")


# --- Fakes -----------------------------------------------------------------------------------------------------------


def _validate(input: Tensor, dilation_map: Tensor, options: Options, grad: Tensor | None = None) -> None:
    """The rule for shapes is the C++ library's; symbolic sizes are checked when the compiled program runs."""
    _kernels.check_tensors(input, dilation_map)
    sizes = (*input.shape, *dilation_map.shape, *(() if grad is None else grad.shape))
    if not all(isinstance(n, int) for n in sizes):
        return
    _C.check_geometry(input.shape, dilation_map.shape, *options)
    if grad is not None:
        _kernels.check_grad(grad, input, _kernels.output_shape(input, dilation_map, options.kernel_size))


def _unfold_fake(input: Tensor, dilation_map: Tensor, *raw: Any) -> Tensor:
    options = options_of(dilation_map, *raw)
    _validate(input, dilation_map, options)
    return input.new_empty(_kernels.output_shape(input, dilation_map, options.kernel_size))


def _backward_fake(grad: Tensor, input: Tensor, dilation_map: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    *raw, wanted = rest
    _validate(input, dilation_map, options_of(dilation_map, *raw), grad)
    grads = (t.new_empty(t.shape) if want else None for t, want in zip((input, dilation_map), wanted, strict=True))
    first, second = grads
    return filled((first, second), input)


torch.library.register_fake(f"{NAME}::unfold", _unfold_fake, lib=library)
torch.library.register_fake(f"{NAME}::unfold_backward", _backward_fake, lib=library)


# --- Derivatives -----------------------------------------------------------------------------------------------------


def apply(function: type[Function], *arguments: Any) -> Any:
    return function.apply(*arguments)


class _Unfold(Function):
    @staticmethod
    def forward(ctx: Any, keyset: Any, input: Tensor, dilation_map: Tensor, *options: Any) -> Tensor:
        ctx.save_for_backward(input, dilation_map)
        ctx.options = options
        output: Tensor = _below_autograd(unfold_op, keyset, input, dilation_map, *options)
        return output

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        wanted = list(ctx.needs_input_grad[1:3])
        grads = backward_op(grad, *ctx.saved_tensors, *ctx.options, wanted)
        return None, *(g if want else None for g, want in zip(grads, wanted, strict=True)), *[None] * 5


class _UnfoldBackward(Function):
    @staticmethod
    def forward(ctx: Any, keyset: Any, *arguments: Any) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(*arguments[:3])
        ctx.options = arguments[3:]
        grads: tuple[Tensor, Tensor] = _below_autograd(backward_op, keyset, *arguments)
        return grads

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Tensor | None, ...]:
        saved = ctx.saved_tensors
        return (
            None,
            *pullback(_backward_of(saved[2], *ctx.options), saved, ctx.needs_input_grad[1:4], cotangents),
            *[None] * 6,
        )


def _backward_of(dilation_map: Tensor, *rest: Any) -> Any:
    *options, wanted = rest
    return backward_of(options_of(dilation_map, *options), wanted)


def is_sharded(*tensors: Tensor) -> bool:
    """Whether a DTensor is among them. The first one registers the sharding rules."""
    if not has_dtensor(*tensors):
        return False
    _register_sharding()
    return True


@functools.cache
def _register_sharding() -> None:
    from . import _sharding  # not at the top: torch.distributed.tensor takes a second to import

    _sharding.register(unfold_op, backward_op)


def _below_autograd(op: Any, keyset: Any, *arguments: Any) -> Any:
    with torch._C._AutoDispatchBelowAutograd():
        return op.redispatch(keyset & torch._C._after_autograd_keyset, *arguments)


def _in_torch(*tensors: Tensor) -> bool:
    """Whether to compute in differentiable torch, because torch.func or forward mode asks for derivatives.

    What torch.library.register_autograd makes refuses the one and silently drops the tangents of the other.
    """
    if torch._C._are_functorch_transforms_active():
        return True
    if forward_ad._current_level < 0 or not torch._C._is_fwd_grad_enabled():
        return False
    return any(forward_ad.unpack_dual(t).tangent is not None for t in tensors)


def _for_shards(dilation_map: Tensor, options: tuple[Any, ...]) -> tuple[Any, ...]:
    """The options of a call on DTensors: where the groups are those of the whole map, a shard's map says its own."""
    *pairs, groups = options
    is_whole = dilation_map.dim() >= 3 and dilation_map.shape[-3] == groups
    return (*pairs, 0) if is_whole else options


def _unfold_autograd(keyset: Any, input: Tensor, dilation_map: Tensor, *options: Any) -> Any:
    if is_sharded(input, dilation_map):
        options = _for_shards(dilation_map, options)
    if _in_torch(input, dilation_map):
        return reference_of(options_of(dilation_map, *options))(input, dilation_map)
    return apply(_Unfold, keyset, input, dilation_map, *options)


def _backward_autograd(keyset: Any, *arguments: Any) -> Any:
    tensors = arguments[:3]
    if is_sharded(*tensors):
        arguments = (*tensors, *_for_shards(tensors[2], arguments[3:-1]), arguments[-1])
    if _in_torch(*tensors):
        return _backward_of(tensors[2], *arguments[3:])(*tensors)
    return apply(_UnfoldBackward, keyset, *arguments)


library.impl("unfold", _unfold_autograd, "Autograd", with_keyset=True)
library.impl("unfold_backward", _backward_autograd, "Autograd", with_keyset=True)


# --- Batching --------------------------------------------------------------------------------------------------------


def _unfold_vmap(info: Any, dims: tuple[Any, ...], input: Tensor, dilation_map: Tensor, *rest: Any) -> Any:
    run = lambda *tensors: unfold_op(*tensors, *rest)  # noqa: E731
    return unfold_over_batch(run, info.batch_size, dims, input, dilation_map)


def _backward_vmap(
    info: Any, dims: tuple[Any, ...], grad: Tensor, input: Tensor, dilation_map: Tensor, *rest: Any
) -> Any:
    run = lambda *tensors: backward_op(*tensors, *rest)  # noqa: E731
    return backward_over_batch(run, info.batch_size, dims, grad, input, dilation_map, rest[-1])


if hasattr(torch.library, "register_vmap"):  # torch >= 2.5
    torch.library.register_vmap(f"{NAME}::unfold", _unfold_vmap, lib=library)
    torch.library.register_vmap(f"{NAME}::unfold_backward", _backward_vmap, lib=library)


# --- Cost ------------------------------------------------------------------------------------------------------------


@register_flop_formula(torch.ops.dynamic_dilation_unfold.unfold)
def _unfold_flops(input: Any, dilation_map: Any, kernel_size: Any, *_: Any, **__: Any) -> int:
    return cost.unfold(input, dilation_map, _pair("kernel_size", kernel_size)).flops


@register_flop_formula(torch.ops.dynamic_dilation_unfold.unfold_backward)
def _backward_flops(grad: Any, input: Any, dilation_map: Any, kernel_size: Any, *rest: Any, **_: Any) -> int:
    return cost.unfold_backward(input, dilation_map, _pair("kernel_size", kernel_size), output_mask=rest[4]).flops
