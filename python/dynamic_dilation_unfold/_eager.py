"""Calls in eager mode, and the one place that knows which surroundings get which route.

=================================================  ===================================================================
surroundings                                       route
=================================================  ===================================================================
plain tensors, options that are ints or pairs      ``_C.NAME_plain``: checks, runs the kernel, then records for backward
plain tensors, anything to normalise or broadcast  the same in Python: :func:`call`, ``_kernels.py``, the same record
operators made in torch (``in_torch``: conv2d)     ``_C.NAME_plain`` too; what it declines: ``compute``, in Python
autocast, a CUDA device that is not the current    the same in Python, of tensors as cast, with the device made current
another ``__torch_function__`` than a tensor's     that function, given the public one (``torch.fx`` proxies)
compilers, exporters, ``torch.jit.trace``          the registered operator (``_dispatch.py``): one node of the graph
``torch.func.functionalize``                       the registered operator
other transforms, forward mode                     ``_transforms.py``; forward mode in forward mode: the reference
modes, profilers, fakes, tensor subclasses         ``_transforms.py``, and from there the registered operator
DTensor                                            the same; ``_sharding.py`` says how the registered operator shards
devices without kernels                            any of these, with the reference in place of the kernel
=================================================  ===================================================================

Backward has the same table, asked again with the gradient among the tensors. The gate is ``is_plain`` of ``_C`` in C++,
and ``_kernels.may_read`` in Python.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.overrides import handle_torch_function

from . import _C, _dispatch, _kernels, _transforms
from . import _torch_private as private
from ._operator import Operator, Tensors

is_compiling = torch.compiler.is_compiling


def overridden(values: Sequence[Any]) -> tuple[Any, ...]:
    """The arguments, and members of pairs, that are no tensors but have a ``__torch_function__``: of torch.fx, say."""
    flat = [v for value in values for v in (value if isinstance(value, (tuple, list)) else (value,))]
    return tuple(v for v in flat if not isinstance(v, Tensor) and hasattr(type(v), "__torch_function__"))


def call(public: Callable[..., Any], operator: Operator, tensors: Tensors, given: Sequence[Any]) -> Any:
    """The operator as its caller's surroundings want it; ``given`` are the options as the caller gave them."""
    if is_compiling():
        return _registered(operator, tensors, operator.read(given))
    others = overridden((*tensors, *given))
    if others:
        return _handed_over(public, operator, others, tensors, given)
    options = operator.read(given)
    operator.require_tensors(tensors)
    operator.require_dense(tensors)
    if private.is_tracing() or _is_functionalized(tensors):
        return _registered(operator, tensors, options)
    tensors = checked(operator, operator.autocast(tensors), options)
    if _kernels.may_read(*tensors):
        return _plain(operator, tensors, options)
    if _dispatch.is_sharded(*tensors):
        options = operator.for_shards(tensors, options)
    return _transforms.forward(operator, tensors, options)


def handed_over(public: Callable[..., Any], **named: Any) -> Any:
    """For functions composed of others: what the ``__torch_function__`` of an argument makes of the call, or None."""
    if is_compiling() or not (others := overridden(tuple(named.values()))):
        return None
    return handle_torch_function(public, others, **named)


def reference(public: Callable[..., Any], operator: Operator, tensors: Tensors, given: Sequence[Any]) -> Any:
    """The operator's definition in torch, after the same checks."""
    if not is_compiling() and (others := overridden((*tensors, *given))):
        return _handed_over(public, operator, others, tensors, given)
    options = operator.read(given)
    operator.require_tensors(tensors)
    if is_compiling():
        tensors = operator.full_maps(tensors, options)
    else:
        operator.require_dense(tensors)
        tensors = checked(operator, tensors, options)
    return operator.reference(tensors, options)


def checked(operator: Operator, tensors: Tensors, options: Any) -> Tensors:
    """The tensors with full maps, once they and the options fit."""
    full = operator.full_maps(tensors, options)
    _kernels.check_tensors(operator, full)
    try:
        _kernels.check_shapes(operator, full, options)
    except ValueError as error:
        raise _of_given_shapes(operator, tensors, options, error) from None
    return full


def _of_given_shapes(operator: Operator, tensors: Tensors, options: Any, error: ValueError) -> ValueError:
    """The error about a full map, with its shape as it was given and the advice about the full one."""
    if not str(error).startswith("dilation_map"):
        return error
    try:
        _kernels.check_shapes(operator, tensors, options)
    except ValueError as given:
        advice = str(error).partition("; ")[2]
        return ValueError(f"{given}; {advice}") if advice and "; " not in str(given) else given
    return error


def _handed_over(
    public: Callable[..., Any], operator: Operator, others: Sequence[Any], tensors: Tensors, given: Sequence[Any]
) -> Any:
    """What the arguments' own ``__torch_function__`` makes of the call."""
    named = zip((*(a.name for a in operator.arguments), *operator.kinds), (*tensors, *given), strict=True)
    return handle_torch_function(public, others, **dict(named))


def _registered(operator: Operator, tensors: Tensors, options: Any) -> Tensor:
    operator.require_tensors(tensors)
    tensors = operator.autocast(tensors)
    if is_compiling() or not private.is_tracing():
        tensors = operator.full_maps(tensors, options)
    else:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that a map is broadcast, or not, becomes a part of the program
            tensors = operator.full_maps(tensors, options)
    output: Tensor = operator.op(*tensors, *options)
    return output


def _is_functionalized(tensors: Tensors) -> bool:
    transforms = private.transforms()
    return any(map(private.is_functional, tensors)) or (transforms is not None and "Functionalize" in transforms)


def _plain(operator: Operator, tensors: Tensors, options: Any) -> Tensor:
    if not torch.is_grad_enabled() or not any(t is not None and t.requires_grad for t in tensors):
        return _kernels.forward(operator, tensors, options)
    with torch.no_grad():
        output = _kernels.forward(operator, tensors, options)
    assert operator.record is not None
    return operator.record(*tensors, (output, options))


def install(operator: Operator) -> None:
    """Makes every route of an operator."""
    _dispatch.register(operator)
    direct = getattr(_C, f"{operator.name}_plain_backward", lambda ctx, saved, grad: None)

    def by_python(ctx: Any, saved: Tensors, grad: Tensor) -> tuple[Tensor | None, ...]:
        options = operator.read(ctx.options)
        return *_transforms.gradients(operator, grad, saved, options, ctx.needs_input_grad[: operator.count]), None

    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        saved = ctx.saved_tensors  # once: a checkpoint lets nobody read them again
        grads: tuple[Tensor | None, ...] | None = direct(ctx, saved, grad)
        return by_python(ctx, saved, grad) if grads is None else grads

    def as_recorded(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return by_python(ctx, ctx.saved_tensors, grad) if is_compiling() else backward(ctx, grad)  # compiled autograd

    # What it is called is what autograd says of a graph, in anomaly mode for example.
    methods = {"forward": staticmethod(_C.record), "backward": staticmethod(as_recorded)}
    function = type(f"DynamicDilation{operator.name.title()}", (Function,), methods)
    operator.record = private.recorder(function, backward)
    getattr(_C, f"attach_{operator.name}", lambda record: None)(operator.record)


def _explain(message: str) -> str:
    from ._tools.diagnosis import explain  # what is run rather than imported; see _tools

    return explain(message)


_C.attach(
    tensor_types=(Tensor, torch.nn.Parameter),
    dtypes=tuple(_kernels.DTYPES),
    uint8=torch.uint8,
    channels_last=torch.channels_last,
    empty_on_cpu=private.allocator("cpu"),
    empty_on_cuda=private.allocator("cuda"),
    get_num_threads=torch.get_num_threads,
    current_device=private.current_device,
    current_stream=private.current_stream,
    is_deterministic=torch.are_deterministic_algorithms_enabled,
    is_grad_enabled=torch.is_grad_enabled,
    is_autocast_enabled=private.any_autocast,
    forward_ad=private.forward_mode,
    watchers=private.watchers,
    explain=_explain,
    exchange=private.dlpack_exchange,
)
