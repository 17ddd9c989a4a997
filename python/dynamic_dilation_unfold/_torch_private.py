"""Every private name of torch that the package uses, with what serves in a torch without it.

Nothing else in the package names anything of torch that begins with an underscore. Without a name, calls take the next
longer route that public names allow: they cost microseconds more, and give the same results. Where there is no public
way at all, it is said below, and an error says so to the caller. ``tests/python/test_torch_private.py`` takes away each
name, and all of them.
"""

from __future__ import annotations

import contextlib
import pkgutil
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function, forward_ad


def _find(name: str, otherwise: Any = None) -> Any:
    """What torch has under ``module:attribute``, or ``otherwise``."""
    try:
        return pkgutil.resolve_name(name)
    except (AttributeError, ImportError):
        return otherwise


def _always() -> bool:
    return True


# --- Who is looking: transforms, modes, profilers ---------------------------------------------------------------------

_transforms_active = _find("torch._C:_are_functorch_transforms_active")
_interpreters = _find("torch._C:_functorch.get_interpreter_stack")
_is_fwd_grad_enabled = _find("torch._C:_is_fwd_grad_enabled", _always)
_forward_ad_level = _find("torch.autograd.forward_ad:_current_level")

# torch.jit.is_tracing, which torch's own types leave out
is_tracing: Callable[[], Any] = _find("torch._C:_get_tracing_state", getattr(torch.jit, "is_tracing", _always))

# Those who make something else of a call, or may. One that cannot be asked is taken to.
_transformers: tuple[Callable[[], Any], ...] = (
    _transforms_active or _always,
    _find("torch._C:_len_torch_dispatch_stack", _always),
    _find("torch._C:_len_torch_function_stack", _always),
    is_tracing,
)

# A call is plain while all of these return something false: a profiler too wants to see single operators.
watchers = (*_transformers, _find("torch._C:_autograd._profiler_enabled", _always))


def any_transformer() -> bool:
    """Whether anyone looks, or may look, who makes something else of a call, as a profiler does not."""
    return any(watches() for watches in _transformers)


class _ForwardModeUnknown:
    _current_level = 0  # as inside forward_ad.dual_level()


# What has ``_current_level``, which is -1 where no forward-mode differentiation is going on.
forward_mode: Any = _ForwardModeUnknown if _forward_ad_level is None else forward_ad


def in_forward_mode() -> bool:
    """Whether forward mode differentiates anything, as far as torch tells."""
    return bool(forward_mode._current_level >= 0)


def transforms_active() -> bool:
    """Whether a transform of torch.func is known to surround the call."""
    return _transforms_active is not None and bool(_transforms_active())


def has_tangent(tensors: Sequence[Tensor | None]) -> bool:
    """Whether forward mode differentiates one of the tensors, at the innermost level."""
    if not _is_fwd_grad_enabled():
        return False
    return any(t is not None and forward_ad.unpack_dual(t).tangent is not None for t in tensors)


def transforms() -> list[str] | None:
    """The transforms of torch.func around the call, "Jvp" or "Functionalize" say; None where torch does not tell."""
    if _interpreters is None:
        return None
    return [level.key().name for level in _interpreters() or ()]


def _any_autocast() -> bool:
    return any(torch.is_autocast_enabled(kind) for kind in AUTOCAST_DEVICES)


# torch.is_autocast_enabled raises for the others. Asked here, because compilers cannot.
AUTOCAST_DEVICES = {kind for kind in ("cpu", "cuda", "mps", "xpu", "hpu") if torch.amp.is_autocast_available(kind)}
# Whether autocast is on for any device.
any_autocast: Callable[[], bool] = _find("torch._C:_is_any_autocast_enabled", _any_autocast)

# --- What a tensor stands for -----------------------------------------------------------------------------------------


def _wraps_unknown(tensor: Tensor) -> bool:
    return True


_is_wrapped = _find("torch._C:_functorch.is_functorch_wrapped_tensor", _wraps_unknown)
_is_batched = _find("torch._C:_functorch.is_legacy_batchedtensor", _wraps_unknown)
_is_functional = _find("torch:_is_functional_tensor", _wraps_unknown)
_get_unwrapped = _find("torch._C:_functorch.get_unwrapped")
_unwrap_if_dead = _find("torch._C:_functorch.unwrap_if_dead")
is_zero_tensor: Callable[[Tensor], bool] = _find("torch:Tensor._is_zerotensor", lambda tensor: False)


def is_wrapper(tensor: Tensor | None) -> bool:
    """Whether a tensor of torch's own type stands, or may stand, for another: its memory is then not to be read."""
    if tensor is None:
        return False
    return bool(_is_wrapped(tensor) or _is_batched(tensor) or _is_functional(tensor))


def is_functional(tensor: Tensor | None) -> bool:
    """Whether a tensor is known to be functionalize's."""
    return tensor is not None and _is_functional is not _wraps_unknown and bool(_is_functional(tensor))


def unwrapped(tensor: Tensor) -> Tensor:
    """The tensor below the wrappers of torch.func's transforms, as far as torch tells."""
    while _get_unwrapped is not None and _is_wrapped is not _wraps_unknown and _is_wrapped(tensor):
        tensor = _get_unwrapped(tensor)
    return tensor


def alive(tensor: Tensor | None) -> Tensor | None:
    """The tensor without wrappers of transforms that have ended."""
    return tensor if tensor is None or _unwrap_if_dead is None else _unwrap_if_dead(tensor)


# --- Recording --------------------------------------------------------------------------------------------------------


def recorder(function: type[Function], backward: Callable[..., Any]) -> Callable[..., Any]:
    """``function.apply`` for tensors that no transform knows of, with ``backward(context, grad)`` as its backward.

    Function.apply of Python first looks for transforms. Its node, which the engine calls, first looks for a vjp beside
    the backward.
    """
    if _find("torch.autograd:Function._backward_cls") is not None:
        function._backward_cls.apply = backward  # type: ignore[attr-defined]
    if _find("torch._C:_FunctionBase.apply") is None:
        return function.apply
    apply: Callable[..., Any] = super(Function, function).apply  # type: ignore[misc]
    return apply


# --- The dispatcher ---------------------------------------------------------------------------------------------------

_below_autograd = _find("torch._C:_AutoDispatchBelowAutograd")
_after_autograd = _find("torch._C:_after_autograd_keyset")
# Without these an operator's autograd rule cannot call the operator's kernel: it calls a second operator instead.
can_redispatch: bool = _below_autograd is not None and _after_autograd is not None


def redispatch_below_autograd(op: Any, keyset: Any, *arguments: Any) -> Any:
    """The operator as it is without its autograd rule."""
    with _below_autograd():
        return op.redispatch(keyset & _after_autograd, *arguments)


# --- Memory and devices -----------------------------------------------------------------------------------------------


def allocator(device: str) -> Callable[..., Tensor]:
    """What Inductor's programs allocate with: half the time of torch.empty_strided, which counts on a small tensor."""
    public = lambda size, stride, dtype: torch.empty_strided(size, stride, dtype=dtype, device=device)  # noqa: E731
    found: Callable[..., Tensor] = _find(f"torch._C:_dynamo.guards._empty_strided_{device}", public)
    return found


current_device: Callable[[], int] = _find("torch._C:_cuda_getDevice", torch.cuda.current_device)
current_stream: Callable[[int], int] = _find(
    "torch._C:_cuda_getCurrentRawStream", lambda index: torch.cuda.current_stream(index).cuda_stream
)
dlpack_exchange: Any = _find("torch:Tensor.__dlpack_c_exchange_api__")  # torch >= 2.10

# --- DTensor ----------------------------------------------------------------------------------------------------------


def cache_by_all_options(op: Any, tensors: int) -> None:
    """Has DTensor tell apart calls of ``op`` that differ in any argument after its tensors.

    Placements are cached by the arguments from a position on, which ``register_sharding`` takes to be the first int:
    that would leave out kernel_size and the other pairs, so that the next call with another one met stale shapes. There
    is no public way to say it, so a torch without these names gets no sharding rules.
    """
    propagator = _find("torch.distributed.tensor:DTensor._op_dispatcher.sharding_propagator")
    schema_info = _find("torch.distributed.tensor._op_schema:RuntimeSchemaInfo")
    with contextlib.suppress(AttributeError, TypeError):
        strategy = propagator.op_strategy_funcs[op]
        propagator.register_op_strategy(op, strategy, schema_info(tensors, needs_pytree=True))
        return
    raise RuntimeError(
        f"torch {torch.__version__} does not let this release say how its operators shard: gather DTensors with "
        "full_tensor() before the call"
    )
