"""The operators as torch sees them: schemas, fakes and derivatives.

Eager calls go through :class:`Unfold`, an ``autograd.Function`` that knows every transform of ``torch.func``; a compiler
sees the registered operators ``dynamic_dilation_unfold::unfold`` and ``::unfold_backward``. Both run the same kernels.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from . import _C, _kernels
from ._options import Options, Pair
from .reference import dynamic_dilation_unfold_reference

_OPTIONS = "SymInt[2] kernel_size, SymInt[2] stride, SymInt[2] padding, SymInt[2] dilation, SymInt groups"
_library = torch.library.Library("dynamic_dilation_unfold", "DEF")
_library.define(f"unfold(Tensor input, Tensor dilation_map, {_OPTIONS}) -> Tensor", tags=(torch.Tag.pt2_compliant_tag,))
_library.define(
    f"unfold_backward(Tensor grad, Tensor input, Tensor dilation_map, {_OPTIONS}, bool[2] output_mask) -> (Tensor, Tensor)",
    tags=(torch.Tag.pt2_compliant_tag,),
)
_unfold_op = torch.ops.dynamic_dilation_unfold.unfold.default
_backward_op = torch.ops.dynamic_dilation_unfold.unfold_backward.default


def _options(kernel_size: Any, stride: Any, padding: Any, dilation: Any, groups: int) -> Options:
    return Options(*(_pair(v) for v in (kernel_size, stride, padding, dilation)), groups)


def _pair(values: Any) -> Pair:
    first, second = values if len(values) == 2 else (values[0], values[0])
    return (first, second)


# --- kernels and fakes of the registered operators -------------------------------------------------------------------


def _unfold_kernel(input: Tensor, dilation_map: Tensor, *options: Any) -> Tensor:
    _kernels.check_tensors(input, dilation_map)
    return _kernels.unfold(input, dilation_map, _options(*options))


def _backward_kernel(
    grad: Tensor, input: Tensor, dilation_map: Tensor, *rest: Any
) -> tuple[Tensor, Tensor]:
    *options, mask = rest
    _kernels.check_tensors(input, dilation_map)
    grads = _kernels.unfold_backward(grad, input, dilation_map, _options(*options), *mask)
    return _filled(grads, input)


def _filled(grads: tuple[Tensor | None, Tensor | None], like: Tensor) -> tuple[Tensor, Tensor]:
    """An operator cannot return None: a gradient that is not wanted is an empty tensor."""
    first, second = (like.new_empty(0) if g is None else g for g in grads)
    return first, second


for _key in ("CPU", "CUDA", "CompositeExplicitAutograd"):
    _library.impl("unfold", _unfold_kernel, _key)
    _library.impl("unfold_backward", _backward_kernel, _key)


def _validate(input: Tensor, dilation_map: Tensor, options: Options) -> None:
    """The rule for shapes is the C++ library's; symbolic sizes are checked when the compiled program runs."""
    _kernels.check_tensors(input, dilation_map)
    if all(isinstance(n, int) for n in (*input.shape, *dilation_map.shape)):
        _C.make_geometry(input.shape, dilation_map.shape, *options)


@torch.library.register_fake("dynamic_dilation_unfold::unfold", lib=_library)
def _unfold_fake(input: Tensor, dilation_map: Tensor, *raw: Any) -> Tensor:
    options = _options(*raw)
    _validate(input, dilation_map, options)
    columns = input.shape[-3] * options.kernel_size[0] * options.kernel_size[1]
    positions = dilation_map.shape[-2] * dilation_map.shape[-1]
    return input.new_empty(_kernels.output_shape(input, columns, positions))


@torch.library.register_fake("dynamic_dilation_unfold::unfold_backward", lib=_library)
def _backward_fake(grad: Tensor, input: Tensor, dilation_map: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    mask = rest[-1]

    def like(t: Tensor, wanted: bool) -> Tensor:
        return t.new_empty(t.shape) if wanted else input.new_empty(0)

    return like(input, mask[0]), like(dilation_map, mask[1])


# --- derivatives -----------------------------------------------------------------------------------------------------


def _direct(*tensors: Tensor) -> bool:
    """Whether the kernels may be called without torch's dispatcher: plain tensors, and nobody watching."""
    if torch._C._len_torch_dispatch_stack() or torch._C._are_functorch_transforms_active():
        return False
    if torch.autograd._profiler_enabled():
        return False
    return all(type(t) is Tensor or type(t) is torch.nn.Parameter for t in tensors)


def _run_unfold(input: Tensor, dilation_map: Tensor, options: Options) -> Tensor:
    if _direct(input, dilation_map):
        return _kernels.unfold(input, dilation_map, options)
    output: Tensor = _unfold_op(input, dilation_map, *options)
    return output


def _run_backward(
    grad: Tensor, input: Tensor, dilation_map: Tensor, options: Options, mask: tuple[bool, bool]
) -> tuple[Tensor, Tensor]:
    if _direct(grad, input, dilation_map):
        return _filled(_kernels.unfold_backward(grad, input, dilation_map, options, *mask), input)
    grads: tuple[Tensor, Tensor] = _backward_op(grad, input, dilation_map, *options, list(mask))
    return grads


def _reference(options: Options) -> Any:
    kernel_size, *others = options

    def forward(input: Tensor, dilation_map: Tensor) -> Tensor:
        return dynamic_dilation_unfold_reference(input, kernel_size, dilation_map, *others)

    return forward


def _pushforward(function: Any, primals: tuple[Tensor, ...], tangents: tuple[Tensor, ...]) -> Any:
    """``jvp`` as the transpose of a transpose: torch's forward mode cannot nest, and this runs inside it."""
    outputs, pullback = torch.func.vjp(function, *primals)
    zeros = torch.utils._pytree.tree_map(torch.zeros_like, outputs)
    return torch.func.vjp(pullback, zeros)[1](tangents)[0]


def _tangents(tangents: tuple[Tensor | None, ...], primals: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(torch.zeros_like(p) if t is None else t for t, p in zip(tangents, primals, strict=True))


def _folded(size: int, dims: tuple[int | None, ...], tensors: tuple[Tensor, ...]) -> list[Tensor]:
    """Tensors with a vmapped dimension each, or none, as one batch: ``[size * B, ...]``, or ``[size, ...]`` if unbatched."""
    full = [t.expand(size, *t.shape) if d is None else t.movedim(d, 0) for t, d in zip(tensors, dims, strict=True)]
    batch = max((t.shape[1] for t in full if t.dim() == 5), default=None)
    if batch is None:
        return full
    return [t.expand(size, batch, *t.shape[2:]).flatten(0, 1) if t.dim() == 5 else t.flatten(0, 1) for t in full]


class Unfold(torch.autograd.Function):
    """``unfold`` with every derivative."""

    @staticmethod
    def forward(input: Tensor, dilation_map: Tensor, options: Options) -> Tensor:
        return _run_unfold(input, dilation_map, options)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Options], output: Tensor) -> None:
        input, dilation_map, ctx.options = inputs
        ctx.save_for_backward(input, dilation_map)
        ctx.save_for_forward(input, dilation_map)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        input, dilation_map = ctx.saved_tensors
        mask = (ctx.needs_input_grad[0], ctx.needs_input_grad[1])
        run = UnfoldBackward.apply if torch.is_grad_enabled() else _run_backward
        grads = run(grad, input, dilation_map, ctx.options, mask)
        return grads[0] if mask[0] else None, grads[1] if mask[1] else None, None

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Tensor:
        primals = ctx.saved_tensors
        result: Tensor = _pushforward(_reference(ctx.options), primals, _tangents(tangents[:2], primals))
        return result

    @staticmethod
    def vmap(
        info: Any, dims: tuple[Any, ...], input: Tensor, dilation_map: Tensor, options: Options
    ) -> tuple[Tensor, int]:
        size = info.batch_size
        map_dims = dilation_map.dim() - (dims[1] is not None)
        if dims[1] is None and map_dims == 4 and dilation_map.shape[0] == 1:
            folded = input.movedim(dims[0], 0).flatten(0, 1)  # the map broadcasts over the larger batch too
            output = Unfold.apply(folded, dilation_map, options)
        else:
            output = Unfold.apply(*_folded(size, dims[:2], (input, dilation_map)), options)
        return output.unflatten(0, (size, -1)) if map_dims == 4 else output, 0


class UnfoldBackward(torch.autograd.Function):
    """``unfold_backward``; its own derivatives come from the reference."""

    @staticmethod
    def forward(
        grad: Tensor, input: Tensor, dilation_map: Tensor, options: Options, mask: tuple[bool, bool]
    ) -> tuple[Tensor, Tensor]:
        return _run_backward(grad, input, dilation_map, options, mask)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        grad, input, dilation_map, ctx.options, ctx.mask = inputs
        ctx.save_for_backward(grad, input, dilation_map)
        ctx.save_for_forward(grad, input, dilation_map)
        ctx.set_materialize_grads(False)

    @staticmethod
    def _reference(options: Options, mask: tuple[bool, bool]) -> Any:
        def backward(grad: Tensor, input: Tensor, dilation_map: Tensor) -> tuple[Tensor, ...]:
            grads = _kernels.reference_backward(grad, input, dilation_map, options)
            return tuple(g if wanted else g.new_zeros(0) for g, wanted in zip(grads, mask, strict=True))

        return backward

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        saved = ctx.saved_tensors
        outputs, pullback = torch.func.vjp(UnfoldBackward._reference(ctx.options, ctx.mask), *saved)
        result = pullback(_tangents(grads, outputs))
        return (*(r if needed else None for r, needed in zip(result, ctx.needs_input_grad, strict=False)), None, None)

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        primals = ctx.saved_tensors
        function = UnfoldBackward._reference(ctx.options, ctx.mask)
        return _pushforward(function, primals, _tangents(tangents[:3], primals))

    @staticmethod
    def vmap(info: Any, dims: tuple[Any, ...], *arguments: Any) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
        grad, input, dilation_map, options, mask = arguments
        size = info.batch_size
        batched = input.dim() - (dims[1] is not None) == 4
        own_map = dilation_map.shape[1 if dims[2] == 0 else 0] if batched else 1
        grad_dim, input_dim, map_dim = dims[:3]
        grad = grad.expand(size, *grad.shape) if grad_dim is None else grad.movedim(grad_dim, 0)
        if batched:
            grad = grad.flatten(0, 1)
        folded = _folded(size, (input_dim, map_dim), (input, dilation_map))
        grads = UnfoldBackward.apply(grad, *folded, options, mask)
        if batched:
            own_map = dilation_map.movedim(map_dim, 0).shape[1] if map_dim is not None else dilation_map.shape[0]
            grads = tuple(g.unflatten(0, (size, -1)) if m else g.expand(size, 0) for g, m in zip(grads, mask, strict=True))
            if mask[1] and own_map == 1:
                grads = (grads[0], grads[1].sum(1, keepdim=True))
        else:
            grads = tuple(g if m else g.expand(size, 0) for g, m in zip(grads, mask, strict=True))
        return grads, (0, 0)


def _op_setup(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    input, dilation_map, *ctx.options = inputs
    ctx.save_for_backward(input, dilation_map)


def _op_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    mask = list(ctx.needs_input_grad[:2])
    grads = _backward_op(grad, *ctx.saved_tensors, *ctx.options, mask)
    return (*(g if m else None for g, m in zip(grads, mask, strict=True)), *[None] * 5)


torch.library.register_autograd("dynamic_dilation_unfold::unfold", _op_backward, setup_context=_op_setup, lib=_library)


def unfold(input: Tensor, dilation_map: Tensor, options: Options) -> Tensor:
    """Runs the operator the way the caller's surroundings want it."""
    if torch.compiler.is_compiling():
        compiled: Tensor = _unfold_op(input, dilation_map, *options)
        return compiled
    output: Tensor = Unfold.apply(input, dilation_map, options)
    return output
