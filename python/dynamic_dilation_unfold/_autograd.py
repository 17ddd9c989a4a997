"""The operator in eager mode, with every derivative and transform.

A plain call goes to the kernels, through :class:`PlainUnfold` if it is differentiated, which costs least. Under
transforms of ``torch.func``, forward-mode differentiation, modes, profilers or with tensor subclasses it goes through
:class:`Unfold` and :class:`UnfoldBackward`, which know them all but forward mode inside forward mode: that is left to
the reference. Compilers get the registered operator.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._functorch.utils import unwrap_dead_wrappers
from torch.autograd import Function, forward_ad

from . import _C, _kernels
from ._batching import backward_over_batch, unfold_over_batch
from ._derivatives import backward_of, filled, pullback, pushforward, reference_of
from ._ops import apply, backward_op, is_sharded, unfold_op
from ._options import Options, make_options

is_compiling = torch.compiler.is_compiling


def unfold(input: Tensor, dilation_map: Tensor, options: Options) -> Tensor:
    """The operator as its caller's surroundings want it."""
    if is_compiling() or torch._C._get_tracing_state() is not None:
        registered: Tensor = unfold_op(input, dilation_map, *options)
        return registered
    _kernels.check_tensors(input, dilation_map)
    if is_sharded(input, dilation_map):
        _C.check_geometry(input.shape, dilation_map.shape, *options)
        options = options._replace(groups=0)  # a shard's map says how many groups it has
    if _C.is_plain(input, dilation_map):
        if torch.is_grad_enabled() and (input.requires_grad or dilation_map.requires_grad):
            return _record(input, dilation_map, options)
        return _run(input, dilation_map, options)
    if _forward_mode_is_nested():
        return reference_of(options)(input, dilation_map)
    output: Tensor = apply(Unfold, input, dilation_map, options)
    return output


def _forward_mode_is_nested() -> bool:
    """Whether one ``torch.func.jvp`` runs inside another: torch calls ``Function.jvp`` without the outer tangents."""
    functorch = torch._C._functorch
    levels = functorch.get_interpreter_stack() or ()
    return sum(level.key() == functorch.TransformType.Jvp for level in levels) > 1


def _for_kernels(*tensors: Tensor) -> bool:
    """Whether the kernels may be called without torch's dispatcher."""
    return _C.is_plain(*tensors) and not any(map(_kernels.is_wrapper, tensors))


def _run(input: Tensor, dilation_map: Tensor, options: Options) -> Tensor:
    if _for_kernels(input, dilation_map):
        return _kernels.unfold(input, dilation_map, options)
    output: Tensor = unfold_op(input, dilation_map, *options)
    return output


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
    input, dilation_map = ctx.saved_tensors
    wanted = ctx.needs_input_grad[:2]
    options = make_options(*ctx.options)
    if is_compiling():
        first, second = backward_op(grad, input, dilation_map, *options, list(wanted))
    elif not torch.is_grad_enabled() and _for_kernels(grad, input, dilation_map):
        return *_kernels.unfold_backward(grad, input, dilation_map, options, wanted), None
    elif _forward_mode_is_nested():
        tensors = unwrap_dead_wrappers((grad, input, dilation_map))  # as Function.apply does
        first, second = backward_of(options, wanted)(*tensors)
    else:
        first, second = apply(UnfoldBackward, grad, input, dilation_map, options, wanted)
    return first if wanted[0] else None, second if wanted[1] else None, None


def _forward(input: Tensor, dilation_map: Tensor, options: tuple[Any, ...]) -> Tensor:
    _kernels.check_tensors(input, dilation_map)
    return _run(input, dilation_map, make_options(*options))


class PlainUnfold(Function):
    """``unfold`` of plain tensors. Its options may be as the user gave them."""

    forward = staticmethod(_C.plain_forward)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        return _backward(ctx, grad) if is_compiling() else _C.plain_backward(ctx, grad)  # compiled autograd


def _allocator(device: str) -> Callable[..., Tensor]:
    """What Inductor's programs allocate with: half the time of torch.empty, which counts on a small tensor."""
    slow = lambda size, stride, dtype: torch.empty_strided(size, stride, dtype=dtype, device=device)  # noqa: E731
    fast: Callable[..., Tensor] = getattr(torch._C._dynamo.guards, f"_empty_strided_{device}", slow)
    return fast


def _explain(message: str) -> str:
    """What to say in place of libddu's message that it cannot serve a device; imported when such a call fails."""
    from ._tools.diagnosis import explain

    return explain(message)


# Function.apply of Python first looks for transforms, of which there are none here. Its node, which the engine calls,
# first looks for a vjp beside the backward.
_record: Callable[[Tensor, Tensor, tuple[Any, ...]], Tensor] = super(Function, PlainUnfold).apply
PlainUnfold._backward_cls.apply = _C.apply_backward  # type: ignore[attr-defined]
_C.attach(
    tensor_types=(Tensor, torch.nn.Parameter),
    dtypes=tuple(_kernels.DTYPES),
    uint8=torch.uint8,
    empty_on_cpu=_allocator("cpu"),
    empty_on_cuda=_allocator("cuda"),
    get_num_threads=torch.get_num_threads,
    current_device=getattr(torch._C, "_cuda_getDevice", None),
    current_stream=getattr(torch._C, "_cuda_getCurrentRawStream", None),
    is_deterministic=torch.are_deterministic_algorithms_enabled,
    is_grad_enabled=torch.is_grad_enabled,
    is_autocast_enabled=torch._C._is_any_autocast_enabled,
    forward_ad=forward_ad,
    watchers=(
        torch._C._are_functorch_transforms_active,
        torch._C._len_torch_dispatch_stack,
        torch._C._len_torch_function_stack,
        torch._C._autograd._profiler_enabled,
        torch._C._get_tracing_state,
    ),
    record=_record,
    explain=_explain,
    forward=_forward,
    backward=_backward,
    exchange=getattr(Tensor, "__dlpack_c_exchange_api__", None),  # torch >= 2.10
)


class Unfold(Function):
    """``unfold`` under any transform."""

    @staticmethod
    def forward(input: Tensor, dilation_map: Tensor, options: Options) -> Tensor:
        return _run(input, dilation_map, options)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Options], output: Tensor) -> None:
        input, dilation_map, ctx.options = inputs
        ctx.save_for_backward(input, dilation_map)
        ctx.save_for_forward(input, dilation_map)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        return _backward(ctx, grad)

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        return pushforward(reference_of(ctx.options), ctx.saved_tensors, tangents[:2])

    @staticmethod
    def vmap(info: Any, dims: tuple[Any, ...], input: Tensor, dilation_map: Tensor, options: Options) -> Any:
        run = lambda *tensors: apply(Unfold, *tensors, options)  # noqa: E731
        return unfold_over_batch(run, info.batch_size, dims, input, dilation_map)


class UnfoldBackward(Function):
    """``unfold_backward`` under any transform; its own derivatives come from the reference."""

    @staticmethod
    def forward(
        grad: Tensor, input: Tensor, dilation_map: Tensor, options: Options, wanted: tuple[bool, bool]
    ) -> tuple[Tensor, Tensor]:
        if _for_kernels(grad, input, dilation_map):
            return filled(_kernels.unfold_backward(grad, input, dilation_map, options, wanted), input)
        grads: tuple[Tensor, Tensor] = backward_op(grad, input, dilation_map, *options, list(wanted))
        return grads

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        *tensors, ctx.options, ctx.wanted = inputs
        ctx.save_for_backward(*tensors)
        ctx.save_for_forward(*tensors)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Tensor | None, ...]:
        derivative = backward_of(ctx.options, ctx.wanted)
        return *pullback(derivative, ctx.saved_tensors, ctx.needs_input_grad[:3], cotangents), None, None

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        return pushforward(backward_of(ctx.options, ctx.wanted), ctx.saved_tensors, tangents[:3])

    @staticmethod
    def vmap(info: Any, dims: tuple[Any, ...], *arguments: Any) -> Any:
        grad, input, dilation_map, options, wanted = arguments
        run = lambda *tensors: apply(UnfoldBackward, *tensors, options, wanted)  # noqa: E731
        return backward_over_batch(run, info.batch_size, dims, grad, input, dilation_map, wanted)
