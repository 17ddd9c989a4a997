"""The operators as torch's dispatcher sees them: compilers, exporters, functionalize, modes, subclasses and DTensor.

Each operator is registered as ``dynamic_dilation_unfold::NAME`` and ``::NAME_backward`` with schemas, kernels, fakes,
derivatives, batching and FLOPs, all made from its description.
"""

from __future__ import annotations

import functools
import threading
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from . import _batching, _flops, _kernels
from . import _torch_private as private
from ._derivatives import apply, backward_of, filled, has_dtensor, reference_of
from ._operator import Mask, Operator, Tensors

NAME = "dynamic_dilation_unfold"
_TAGS = (torch.Tag.pt2_compliant_tag,)
operators: list[Operator] = []
_unused: dict[str, _Rules] = {}  # of registered operators that nobody has asked torch.ops for
_resolving = threading.RLock()


def _library() -> torch.library.Library:
    """The library of torch's that the operators are in: where torch keeps them, and nowhere in this package.

    So an import replaces what an earlier import in this process left, after the package was removed from sys.modules.
    """
    library: torch.library.Library = vars(getattr(torch.ops, NAME))["_library"]
    return library


def _renew_library() -> None:
    namespace = vars(getattr(torch.ops, NAME))
    namespace.pop("_library", None)  # the last reference: its operators go with it
    namespace["_library"] = torch.library.Library(NAME, "DEF")
    namespace["__getattr__"] = _first_use
    _flops.add(_forget_formulas)


def _forget_formulas(counter: Any) -> None:
    """Those of an earlier import."""
    for known in [op for op in counter.flop_registry if str(op).startswith(f"{NAME}.")]:
        del counter.flop_registry[known]


def register(operator: Operator) -> None:
    """Defines the two operators and everything about them."""
    operators.append(operator)
    for schema, rules in zip(operator.schemas, (_ForwardRules(operator), _BackwardRules(operator)), strict=True):
        _define(schema, rules)


def _define(schema: str, rules: _Rules) -> None:
    name = rules.name = schema.partition("(")[0]
    _define_kernel(schema, name, rules)
    # In a torch that cannot skip autograd, a second operator does the work below it.
    rules.below = name if private.can_redispatch else f"_{name}"
    if rules.below != name:
        _define_kernel(f"_{schema}", rules.below, rules)
    _library().impl(name, rules.autograd, "Autograd", with_keyset=True)
    _flops.add(lambda counter: counter.register_flop_formula(rules.packet(name))(rules.flops))


def _define_kernel(schema: str, name: str, rules: _Rules) -> None:
    library, namespace = _library(), getattr(torch.ops, NAME)
    vars(namespace).pop(name, None)  # of an earlier import: torch < 2.5 does not forget it by itself
    library.define(schema, tags=_TAGS)
    library.impl(name, rules.kernel, "CompositeExplicitAutograd")
    _unused[name] = rules


def _first_use(name: str) -> Any:
    """What ``torch.ops.dynamic_dilation_unfold`` does for an attribute that it has not: an operator at its first use.

    An operator's fakes and batching are registered then. Torch takes a millisecond for them, and whoever needs them,
    a compiler, a mode or a transform, comes to the operator by its name in ``torch.ops``; autograd and the kernels,
    which the dispatcher may call from C++, are there from the import on.
    """
    namespace = getattr(torch.ops, NAME)
    with _resolving:
        rules = _unused.get(name)
        if rules is None:
            return type(namespace).__getattr__(namespace, name)
        packet = rules.packet(name)
        if not rules.is_registering:  # torch asks for the operator again meanwhile
            rules.is_registering = True
            library = _library()
            torch.library.register_fake(f"{NAME}::{name}", rules.fake, lib=library)
            if hasattr(torch.library, "register_vmap"):  # torch >= 2.5
                torch.library.register_vmap(f"{NAME}::{name}", rules.vmap, lib=library)
            rules.is_registering = False
            del _unused[name]
            setattr(namespace, name, packet)
    return packet


class _Rules:
    """What the dispatcher calls for one registered operator. Arguments are those of the schema."""

    name: str
    below: str  # name of the operator without its autograd rule

    def __init__(self, operator: Operator) -> None:
        self.operator = operator
        self.packets: dict[str, Any] = {}  # what torch.ops has under a name
        self.is_registering = False

    def packet(self, name: str) -> Any:
        """What ``torch.ops`` has under a name. Torch takes a tenth of a millisecond to make it."""
        with _resolving:
            if name not in self.packets:
                namespace = getattr(torch.ops, NAME)
                packet = vars(namespace).get(name)
                if packet is None:
                    packet = type(namespace).__getattr__(namespace, name)
                    del vars(namespace)[name]  # which that has set: the next who asks comes to _first_use
                self.packets[name] = packet
        return self.packets[name]

    @functools.cached_property
    def op(self) -> Any:
        return self.packet(self.name).default

    def below_autograd(self, keyset: Any, *arguments: Any) -> Any:
        if private.can_redispatch:
            return private.redispatch_below_autograd(self.op, keyset, *arguments)
        return getattr(getattr(torch.ops, NAME), self.below).default(*arguments)

    def kernel(self, *arguments: Any) -> Any:
        raise NotImplementedError

    def fake(self, *arguments: Any) -> Any:
        raise NotImplementedError

    def autograd(self, keyset: Any, *arguments: Any) -> Any:
        raise NotImplementedError

    def vmap(self, info: Any, dims: tuple[Any, ...], *arguments: Any) -> Any:
        raise NotImplementedError

    def flops(self, *arguments: Any, **named: Any) -> int:
        raise NotImplementedError


class _ForwardRules(_Rules):
    """Arguments: the tensors, then the options."""

    def split(self, arguments: tuple[Any, ...]) -> tuple[Tensors, Any]:
        n = self.operator.count
        return arguments[:n], self.operator.unpack(arguments[n:])

    def kernel(self, *arguments: Any) -> Tensor:
        tensors, options = self.split(arguments)
        _kernels.check_tensors(self.operator, tensors)
        return _kernels.forward(self.operator, tensors, options)

    def fake(self, *arguments: Any) -> Tensor:
        tensors, options = self.split(arguments)
        options = self.operator.resolved(tensors, options)
        _kernels.check_tensors(self.operator, tensors)
        _kernels.check_shapes(self.operator, tensors, options)
        return _kernels.new_output(self.operator, tensors, options)

    def autograd(self, keyset: Any, *arguments: Any) -> Any:
        tensors, options = self.split(arguments)
        if is_sharded(*tensors):
            options = self.operator.for_shards(tensors, options)
        if _in_torch(tensors):
            return reference_of(self.operator, options)(*tensors)
        return apply(_RecordedForward, self, keyset, options, *tensors)

    def vmap(self, info: Any, dims: tuple[Any, ...], *arguments: Any) -> Any:
        n = self.operator.count
        run = lambda *tensors: self.op(*tensors, *arguments[n:])  # noqa: E731
        return _batching.forward(self.operator, run, info.batch_size, dims[:n], arguments[:n])

    def flops(self, *arguments: Any, **named: Any) -> int:
        return self.operator.flops(*self.split(arguments))


class _BackwardRules(_Rules):
    """Arguments: the gradient, the tensors, the options, then which gradients are wanted."""

    def split(self, arguments: tuple[Any, ...]) -> tuple[Tensor, Tensors, Any, Mask]:
        n = 1 + self.operator.count
        return arguments[0], arguments[1:n], self.operator.unpack(arguments[n:-1]), arguments[-1]

    def kernel(self, *arguments: Any) -> Any:
        grad, tensors, options, mask = self.split(arguments)
        _kernels.check_tensors(self.operator, tensors)
        grads = _kernels.backward(self.operator, grad, tensors, options, mask)
        return self.operator.as_returned(filled(grads, tensors[0]))

    def fake(self, *arguments: Any) -> Any:
        grad, tensors, options, mask = self.split(arguments)
        options = self.operator.resolved(tensors, options)
        _kernels.check_tensors(self.operator, tensors)
        _kernels.check_shapes(self.operator, tensors, options)
        shape = self.operator.output_shape(tensors, options)
        if all(isinstance(n, int) for n in (*shape, *grad.shape)):
            _kernels.check_grad(grad, tensors[0], shape)
        grads = tuple(_kernels.new_gradient(self.operator, tensors, i) if want else None for i, want in enumerate(mask))
        return self.operator.as_returned(filled(grads, tensors[0]))

    def autograd(self, keyset: Any, *arguments: Any) -> Any:
        grad, tensors, options, mask = self.split(arguments)
        if is_sharded(grad, *tensors):
            options = self.operator.for_shards(tensors, options)
        if _in_torch((grad, *tensors)):
            return self.operator.as_returned(backward_of(self.operator, options, mask)(grad, *tensors))
        return apply(_RecordedBackward, self, keyset, options, mask, grad, *tensors)

    def vmap(self, info: Any, dims: tuple[Any, ...], *arguments: Any) -> Any:
        n = 1 + self.operator.count
        run = lambda *tensors: self.op(*tensors, *arguments[n:])  # noqa: E731
        return _batching.backward(self.operator, run, info.batch_size, dims[:n], arguments[:n], arguments[-1])

    def flops(self, *arguments: Any, **named: Any) -> int:
        _grad, tensors, options, mask = self.split(arguments)
        return self.operator.backward_flops(tensors, options, mask)


_renew_library()


# --- Derivatives ------------------------------------------------------------------------------------------------------


class _RecordedForward(Function):
    """A registered operator, recorded for plain autograd; torch.library.register_autograd refuses torch.func."""

    @staticmethod
    def forward(ctx: Any, rules: _ForwardRules, keyset: Any, options: Any, *tensors: Tensor) -> Any:
        ctx.save_for_backward(*tensors)
        ctx.operator, ctx.options = rules.operator, options
        return rules.below_autograd(keyset, *tensors, *options)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        mask = list(ctx.needs_input_grad[3:])
        grads = ctx.operator.call_backward_op(_kernels.dense(grad), ctx.saved_tensors, ctx.options, mask)
        return None, None, None, *(g if want else None for g, want in zip(grads, mask, strict=True))


class _RecordedBackward(Function):
    @staticmethod
    def forward(ctx: Any, rules: _BackwardRules, keyset: Any, options: Any, mask: Mask, *tensors: Tensor) -> Any:
        ctx.save_for_backward(*tensors)
        ctx.operator, ctx.options, ctx.mask = rules.operator, options, mask
        ctx.set_materialize_grads(False)
        return rules.below_autograd(keyset, *tensors, *options, mask)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor | None) -> tuple[Tensor | None, ...]:
        from . import _second  # not needed before the first call

        grads = _second.vjp_of_backward(
            ctx.operator, ctx.saved_tensors, cotangents, ctx.options, ctx.mask, ctx.needs_input_grad[4:], _Registered()
        )
        return None, None, None, None, *grads


class _Registered:
    """Calls of the registered operators, for second derivatives."""

    def forward(self, operator: Operator, tensors: Tensors, options: Any) -> Tensor:
        output: Tensor = operator.op(*tensors, *options)
        return output

    def backward(self, operator: Operator, grad: Tensor, tensors: Tensors, options: Any, mask: Mask) -> Tensors:
        return operator.call_backward_op(grad, tensors, options, mask)


def _in_torch(tensors: Tensors) -> bool:
    """Whether to compute in differentiable torch, because torch.func or forward mode asks for derivatives.

    What torch.library.register_autograd makes refuses the one and silently drops the tangents of the other.
    """
    return private.transforms_active() or private.has_tangent(tensors)


# --- DTensor ----------------------------------------------------------------------------------------------------------


def is_sharded(*tensors: Any) -> bool:
    """Whether a DTensor is among them. The first one registers the sharding rules."""
    if not has_dtensor(*tensors):
        return False
    _register_sharding()
    return True


@functools.cache
def _register_sharding() -> None:
    from . import _sharding  # not at the top: torch.distributed.tensor takes a second to import

    for operator in operators:
        _sharding.register(operator)
