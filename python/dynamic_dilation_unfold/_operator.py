"""What an operator says about itself. Everything else is made from it, once, for all operators.

An operator is one instance of a subclass of :class:`Operator`, in a file of its own in ``_operators/``, beside kernels
in the C++ library and their direct call in ``python/direct/``. From it come

==================  ==================================================================================================
``_kernels.py``     checks of the tensors, the call of a kernel, the reference where there is none
``_eager.py``       plain calls and their record for backward; which surroundings get which route (the table is there)
``_second.py``      second derivatives and forward mode, by the same kernels as far as they go
``_transforms.py``  the Functions under torch.func, forward mode, modes and subclasses
``_dispatch.py``    schemas, kernels, fakes, autograd, vmap and FLOPs of the registered operators
``_batching.py``    vmap by folding the mapped dimension into the batch
``_sharding.py``    how DTensors shard
==================  ==================================================================================================
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from . import _torch_private as private
from ._derivatives import pullback
from ._geometry import full_map
from ._options import Int, kinds_of

if TYPE_CHECKING:
    from .cost import Cost

Tensors = tuple[Tensor, ...]  # of a call, in the order of Operator.arguments; None for an optional one not given
Gradients = tuple[Tensor | None, ...]  # of those; None for one that is not wanted
Mask = Sequence[bool]  # which of them are wanted


class Argument(NamedTuple):
    """A tensor argument."""

    name: str
    dims: int  # of a batched call
    batch: str = "own"  # its first dimension: "own" images, "shared" by all images if it is 1, "none" has no batch
    is_map: bool = False  # rates: float32 beside half values, also under autocast; rows and columns are broadcast
    optional: bool = False
    channels_last: bool = False  # kernels read this memory format too, on devices of _C.reads_channels_last


class Operator(ABC):
    """One operator. Subclasses fill in the first part, and what they know better of the second."""

    name: ClassVar[str]  # of the registered operator, and of the functions of _C
    arguments: tuple[Argument, ...]
    # A NamedTuple, whose types are keys of _options._KINDS. With a map among the arguments, it has kernel_size, stride,
    # padding and dilation, from which _geometry.py tells how many rates the map has.
    options: ClassVar[type]
    output_dims: ClassVar[int]  # of a batched call
    # Whether compute() and compute_backward() stand for kernels in _C: they are made of other operators, on any device.
    in_torch: ClassVar[bool] = False
    is_linear: ClassVar[bool] = False  # in each tensor but the map: _second.py then has its derivatives by kernels
    image: ClassVar[int] = 0  # which tensor is the image that the window slides over; its memory format is the call's

    # --- What every operator says -------------------------------------------------------------------------------------

    @abstractmethod
    def output_shape(self, tensors: Tensors, options: Any) -> tuple[Int, ...]:
        """Of a call whose shapes fit; sizes may be symbols.

        The output has the dtype of the first tensor, and the image's memory format if its shape is like an image's.
        """

    @abstractmethod
    def check_shapes(self, shapes: Sequence[Any], options: Any) -> None:
        """Raises ValueError for shapes and options that do not fit."""

    @abstractmethod
    def reference(self, tensors: Tensors, options: Any) -> Tensor:
        """The definition in differentiable torch, without any check."""

    @abstractmethod
    def flops(self, shapes: Sequence[Any], options: Any) -> int:
        """Of the forward call."""

    @abstractmethod
    def backward_flops(self, shapes: Sequence[Any], options: Any, mask: Mask) -> int: ...

    @abstractmethod
    def shards(self, specs: Sequence[Any], options: Any) -> list[tuple[Any, tuple[Any, ...], tuple[Any, ...]]]:
        """Each way to split a call on DTensors: placements of the output, of the tensors, and of their gradients."""

    # --- What follows from the reference, unless an operator says better ----------------------------------------------

    def vjp(self, grad: Tensor, tensors: Tensors, options: Any, mask: Mask) -> Gradients:
        """Gradients that can be differentiated again: of functions of the reference, and of devices without kernels."""
        return pullback(lambda *t: self.reference(t, options), tensors, mask, grad)

    def of_channels(self, options: Any, part: int, channels: int) -> Any:
        """Options of a call on a part of the channels: whole groups and heads, or a part of one."""
        return options

    def compute(self, tensors: Tensors, options: Any) -> Tensor:
        """The output of a call that was checked, in torch; nothing is recorded."""
        raise NotImplementedError

    def compute_backward(self, grad: Tensor, tensors: Tensors, options: Any, mask: Mask) -> Gradients:
        raise NotImplementedError

    def for_shards(self, tensors: Tensors, options: Any) -> Any:
        """Options as the shards of a call on DTensors are to be called."""
        return options

    def resolved(self, tensors: Tensors, options: Any) -> Any:
        """The inverse for the tensors of one shard: options of a call of its own."""
        return options

    # --- What is made of it -------------------------------------------------------------------------------------------

    def __init__(self) -> None:
        self.arguments = self.arguments  # an attribute of its own: the compiler of torch 2.4 reads no others
        self.kinds = kinds_of(self.options)
        self.count = len(self.arguments)
        self.map = next(i for i, a in enumerate(self.arguments) if a.is_map)
        self.record: Callable[..., Tensor] | None = None  # (*tensors, (output, options)) -> output, of _eager.py

    @property
    def op(self) -> Any:
        """The registered operator, of ``_dispatch.py``. Asked of torch: a later import of the package replaces it."""
        return getattr(torch.ops.dynamic_dilation_unfold, self.name).default

    @property
    def backward_op(self) -> Any:
        return getattr(torch.ops.dynamic_dilation_unfold, f"{self.name}_backward").default

    def call_backward_op(self, grad: Tensor, tensors: Tensors, options: Any, mask: Mask) -> Tensors:
        """The gradients from the registered backward; an empty tensor for one that is not wanted."""
        returned = self.backward_op(grad, *tensors, *options, list(mask))
        return tuple(returned) if self.count > 1 else (returned,)

    def as_returned(self, grads: Tensors) -> Any:
        """Gradients as the registered backward returns them: a schema has no tuple of one."""
        return grads if self.count > 1 else grads[0]

    def cost(self, backward: bool = False) -> Callable[..., Cost]:
        """The operator's function in ``cost.py``, which nobody needs before FLOPs are counted."""
        from . import cost

        function: Callable[..., Cost] = getattr(cost, f"{self.name}_backward" if backward else self.name)
        return function

    @property
    def schemas(self) -> tuple[str, str]:
        """Of forward and backward."""
        n = self.count
        tensors = ", ".join(f"Tensor{'?' * a.optional} {a.name}" for a in self.arguments)
        options = ", ".join(f"{kind.schema} {name}" for name, kind in self.kinds.items())
        defaults = self.options._field_defaults  # type: ignore[attr-defined]  # of a NamedTuple
        with_defaults = ", ".join(
            f"{kind.schema} {name}" + (f'="{defaults[name]}"' if name in defaults else "")
            for name, kind in self.kinds.items()
        )
        grads = ", ".join(["Tensor"] * n)
        forward = f"{self.name}({tensors}, {with_defaults}) -> Tensor"
        returned = grads if n == 1 else f"({grads})"
        return forward, f"{self.name}_backward(Tensor grad, {tensors}, {options}, bool[{n}] output_mask) -> {returned}"

    def read(self, given: Sequence[Any]) -> Any:
        """A caller's options, as values of our own."""
        return type(self).options(  # the compiler of torch 2.4 takes self.options for a method
            *[kind.read(name, value) for (name, kind), value in zip(self.kinds.items(), given, strict=False)]
        )

    def unpack(self, raw: Sequence[Any]) -> Any:
        """The options of a registered operator, where a pair may be one number, as TorchScript writes it.

        torch leaves out those at the end that are their defaults.
        """
        return self.options(
            *[
                _pair(name, value) if kind.schema.endswith("[2]") else value
                for (name, kind), value in zip(self.kinds.items(), raw, strict=False)
            ]
        )

    def require_tensors(self, tensors: Sequence[Any]) -> None:
        for argument, value in zip(self.arguments, tensors, strict=True):
            if not isinstance(value, Tensor) and not (argument.optional and value is None):
                what = "None or a torch.Tensor" if argument.optional else "a torch.Tensor"
                raise TypeError(
                    f"{argument.name} must be {what}, got {type(value).__name__}{self._how(argument, value)}"
                )

    def _how(self, argument: Argument, value: Any) -> str:
        """How a value that is no tensor becomes one."""
        first = self.arguments[0].name
        like = f"dtype={first}.dtype, device={first}.device"
        if isinstance(value, (int, float)) and not isinstance(value, bool) and argument.is_map:
            return f"; torch.full((1, groups, 1, 1), {value}, {like}) is a map of this rate"
        if isinstance(value, (list, tuple)) or hasattr(value, "__array__"):
            return f"; torch.as_tensor({argument.name}{f', {like}' * argument.is_map}) is one"
        return ""

    def require_dense(self, tensors: Tensors) -> None:
        for argument, tensor in zip(self.arguments, tensors, strict=True):
            if tensor is not None and (tensor.layout != torch.strided or tensor.is_nested):
                layout = "a nested tensor" if tensor.is_nested else tensor.layout
                raise TypeError(f"{argument.name} must be a dense tensor of layout torch.strided, got {layout}")

    def full_maps(self, tensors: Tensors, options: Any) -> Tensors:
        """Maps with all their rows and columns; see full_map."""
        return tuple(
            full_map(t, tensors[self.image].shape[-2:], options) if a.is_map else t
            for a, t in zip(self.arguments, tensors, strict=True)
        )

    def autocast(self, tensors: Tensors) -> Tensors:
        """Values take autocast's dtype, as the result feeds a matrix product; rates lose too much in a half type.

        Beside a tensor of any other dtype all stay as they are: float64 is meant, and the rest is refused as ever.
        """
        kind = tensors[0].device.type
        if kind not in private.AUTOCAST_DEVICES or not torch.is_autocast_enabled(kind):
            return tensors
        if any(t is not None and t.dtype not in _AUTOCAST_DTYPES for t in tensors):
            return tensors
        dtype = torch.get_autocast_dtype(kind)
        return tuple(
            t if t is None else t.to(torch.float32 if a.is_map else dtype)
            for a, t in zip(self.arguments, tensors, strict=True)
        )


_AUTOCAST_DTYPES = (torch.float16, torch.bfloat16, torch.float32)


def _pair(name: str, values: Any) -> tuple[Any, Any]:
    if len(values) not in (1, 2):
        raise ValueError(f"{name} must be a pair of ints, got {list(values)}")
    return (values[0], values[-1])
