from torch import Tensor

version: str
cpu_capability: str
has_openmp: bool
cuda_toolkit_version: int
cuda_architectures: str
wheel_index: str

Pair = tuple[int, int]

def check_geometry(
    input: tuple[int, ...],
    dilation_map: tuple[int, ...],
    kernel_size: Pair,
    stride: Pair,
    padding: Pair,
    dilation: Pair,
    groups: int,
    /,
) -> None: ...
def check_types(input: int, map: int, /) -> None: ...
def attach(**objects_of_torch: object) -> None: ...
def is_plain(*tensors: Tensor) -> bool: ...
def plain_unfold(
    input: Tensor,
    dilation_map: Tensor,
    kernel_size: object,
    stride: object,
    padding: object,
    dilation: object,
    groups: object,
    /,
) -> Tensor | None:
    """The output of a plain call without autocast, with its backward; None for any other."""

def unfold(
    input: Tensor,
    dilation_map: Tensor,
    kernel_size: object,
    stride: object,
    padding: object,
    dilation: object,
    groups: object,
    /,
) -> Tensor | None:
    """None where it needs help: no memory, another device than the current one, options to normalise."""

def unfold_backward(
    grad: Tensor,
    input: Tensor,
    dilation_map: Tensor,
    kernel_size: object,
    stride: object,
    padding: object,
    dilation: object,
    groups: object,
    want_input: object,
    want_map: object,
    /,
) -> tuple[Tensor | None, Tensor | None] | None:
    """None where it needs help, as with ``unfold``, or where grad is not like the output."""

def plain_forward(ctx: object, input: Tensor, dilation_map: Tensor, options: tuple[object, ...], /) -> Tensor:
    """``forward`` of an ``autograd.Function`` of plain tensors."""

def plain_backward(ctx: object, grad: Tensor, /) -> tuple[Tensor | None, Tensor | None, None]:
    """Its ``backward``."""

def apply_backward(node: object, grad: Tensor, /) -> tuple[Tensor | None, Tensor | None, None]:
    """The same as a method of the node, as which the engine calls it."""
