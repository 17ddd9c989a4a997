from collections.abc import Callable

from torch import Tensor

version: str
cpu_capability: str
has_openmp: bool
cuda_toolkit_version: int
cuda_architectures: str
wheel_index: str
reads_channels_last: list[str]  # devices

Pair = tuple[int, int]

def check_geometry(
    input: tuple[int, ...],
    dilation_map: tuple[int, ...],
    kernel_size: Pair,
    stride: Pair,
    padding: Pair,
    dilation: Pair,
    groups: int,
    padding_mode: str,
    /,
) -> None: ...
def check_aggregate_geometry(
    input: tuple[int, ...],
    weights: tuple[int, ...],
    dilation_map: tuple[int, ...],
    kernel_size: Pair,
    stride: Pair,
    padding: Pair,
    dilation: Pair,
    padding_mode: str,
    /,
) -> None: ...
def check_correlate_geometry(
    query: tuple[int, ...],
    key: tuple[int, ...],
    dilation_map: tuple[int, ...],
    kernel_size: Pair,
    stride: Pair,
    padding: Pair,
    dilation: Pair,
    heads: int,
    padding_mode: str,
    /,
) -> None: ...
def check_conv2d_geometry(
    input: tuple[int, ...],
    weight: tuple[int, ...],
    dilation_map: tuple[int, ...],
    mask: tuple[int, ...],  # () for none
    stride: Pair,
    padding: Pair,
    dilation: Pair,
    padding_mode: str,
    /,
) -> None: ...
def check_types(input: int, map: int, /) -> None: ...

# --- Direct calls (python/direct/) ---

def attach(**objects_of_torch: object) -> None: ...
def is_plain(*tensors: Tensor | None) -> bool: ...
def record(ctx: object, /, *tensors_and_result: object) -> Tensor:
    """``forward`` of an ``autograd.Function`` of tensors and of ``(output, options)``, computed before."""

# Of each operator, here unfold. Each returns None where Python has to help: options to normalise, maps to broadcast,
# other devices than the current one, subclasses, no memory.

def attach_unfold(record: object, /) -> None: ...
def unfold(
    input: Tensor,
    dilation_map: Tensor,
    kernel_size: object,
    stride: object,
    padding: object,
    dilation: object,
    groups: object,
    padding_mode: object,
    /,
) -> Tensor | None: ...
def unfold_backward(
    grad: Tensor,
    input: Tensor,
    dilation_map: Tensor,
    kernel_size: object,
    stride: object,
    padding: object,
    dilation: object,
    groups: object,
    padding_mode: object,
    output_mask: tuple[bool, ...],
    /,
) -> tuple[Tensor | None, Tensor | None] | None:
    """Also None where grad is not like the output."""

def unfold_part(
    input: Tensor,
    dilation_map: Tensor,
    kernel_size: Pair,
    stride: Pair,
    padding: Pair,
    dilation: Pair,
    groups: int,
    padding_mode: str,
    origin: Pair,
    output: Tensor,
    /,
) -> Tensor | None:
    """Fills ``output`` with the columns of as many rows and columns of positions as the map has, from ``origin`` on."""

def unfold_part_backward(
    grad: Tensor,
    input: Tensor,
    dilation_map: Tensor,
    kernel_size: Pair,
    stride: Pair,
    padding: Pair,
    dilation: Pair,
    groups: int,
    padding_mode: str,
    origin: Pair,
    output_mask: tuple[bool, ...],
    /,
) -> tuple[Tensor | None, Tensor | None] | None: ...
def unfold_plain(
    input: Tensor,
    dilation_map: Tensor,
    kernel_size: object,
    stride: object,
    padding: object,
    dilation: object,
    groups: object,
    padding_mode: object,
    /,
) -> Tensor | None:
    """The output of a plain call without autocast, with its backward; None for any other."""

def unfold_plain_backward(
    ctx: object, saved: tuple[Tensor | None, ...], grad: Tensor, /
) -> tuple[Tensor | None, Tensor | None, None] | None: ...
def attach_aggregate(record: object, /) -> None: ...
def aggregate(
    input: Tensor,
    weights: Tensor,
    dilation_map: Tensor,
    kernel_size: object,
    stride: object,
    padding: object,
    dilation: object,
    padding_mode: object,
    /,
) -> Tensor | None: ...
def aggregate_backward(
    grad: Tensor,
    input: Tensor,
    weights: Tensor,
    dilation_map: Tensor,
    kernel_size: object,
    stride: object,
    padding: object,
    dilation: object,
    padding_mode: object,
    output_mask: tuple[bool, ...],
    /,
) -> tuple[Tensor | None, Tensor | None, Tensor | None] | None: ...
def aggregate_plain(
    input: Tensor,
    weights: Tensor,
    dilation_map: Tensor,
    kernel_size: object,
    stride: object,
    padding: object,
    dilation: object,
    padding_mode: object,
    /,
) -> Tensor | None: ...
def aggregate_plain_backward(
    ctx: object, saved: tuple[Tensor | None, ...], grad: Tensor, /
) -> tuple[Tensor | None, Tensor | None, Tensor | None, None] | None: ...
def attach_correlate(record: object, /) -> None: ...
def correlate(
    query: Tensor,
    key: Tensor,
    dilation_map: Tensor,
    kernel_size: object,
    stride: object,
    padding: object,
    dilation: object,
    heads: object,
    padding_mode: object,
    /,
) -> Tensor | None: ...
def correlate_backward(
    grad: Tensor,
    query: Tensor,
    key: Tensor,
    dilation_map: Tensor,
    kernel_size: object,
    stride: object,
    padding: object,
    dilation: object,
    heads: object,
    padding_mode: object,
    output_mask: tuple[bool, ...],
    /,
) -> tuple[Tensor | None, Tensor | None, Tensor | None] | None: ...
def correlate_plain(
    query: Tensor,
    key: Tensor,
    dilation_map: Tensor,
    kernel_size: object,
    stride: object,
    padding: object,
    dilation: object,
    heads: object,
    padding_mode: object,
    /,
) -> Tensor | None: ...
def correlate_plain_backward(
    ctx: object, saved: tuple[Tensor | None, ...], grad: Tensor, /
) -> tuple[Tensor | None, Tensor | None, Tensor | None, None] | None: ...

# Attention by one kernel. None for a call that has none, which is then composed.

def attention_forward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    dilation_map: Tensor,
    bias: Tensor | None,
    kernel_size: Pair,
    stride: Pair,
    padding: Pair,
    dilation: Pair,
    heads: int,
    scale: float,
    padding_mode: str,
    keeps_normalizers: bool,
    /,
) -> tuple[Tensor, Tensor | None] | None: ...
def attention_backward(
    grad: Tensor,
    output: Tensor,
    normalizers: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    dilation_map: Tensor,
    bias: Tensor | None,
    kernel_size: Pair,
    stride: Pair,
    padding: Pair,
    dilation: Pair,
    heads: int,
    scale: float,
    padding_mode: str,
    output_mask: tuple[bool, ...],
    /,
) -> tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None, Tensor | None] | None: ...

# The convolution, on devices with kernels of its own. None, or False, where columns in chunks are the way.

def conv2d_supported(
    input: Tensor,
    weight: Tensor,
    dilation_map: Tensor,
    bias: Tensor | None,
    mask: Tensor | None,
    stride: Pair,
    padding: Pair,
    dilation: Pair,
    padding_mode: str,
    allow_tf32: bool,
    /,
) -> bool: ...
def conv2d_backward_supported(
    input: Tensor,
    weight: Tensor,
    dilation_map: Tensor,
    bias: Tensor | None,
    mask: Tensor | None,
    stride: Pair,
    padding: Pair,
    dilation: Pair,
    padding_mode: str,
    allow_tf32: bool,
    /,
) -> bool: ...
def conv2d_forward(
    input: Tensor,
    weight: Tensor,
    dilation_map: Tensor,
    bias: Tensor | None,
    mask: Tensor | None,
    stride: Pair,
    padding: Pair,
    dilation: Pair,
    padding_mode: str,
    allow_tf32: bool,
    /,
) -> Tensor | None: ...
def conv2d_backward(
    grad: Tensor,
    input: Tensor,
    weight: Tensor,
    dilation_map: Tensor,
    bias: Tensor | None,
    mask: Tensor | None,
    stride: Pair,
    padding: Pair,
    dilation: Pair,
    padding_mode: str,
    allow_tf32: bool,
    output_mask: tuple[bool, ...],
    /,
) -> tuple[Tensor | None, ...] | None: ...
def conv2d_plain(
    input: Tensor,
    weight: Tensor,
    dilation_map: Tensor,
    bias: Tensor | None,
    mask: Tensor | None,
    stride: object,
    padding: object,
    dilation: object,
    padding_mode: object,
    /,
) -> Tensor | None: ...
def conv2d_plain_backward(
    ctx: object, saved: tuple[Tensor | None, ...], grad: Tensor, /
) -> tuple[Tensor | None, ...] | None: ...
def attach_conv2d(record: object, /) -> None: ...
def attach_conv2d_functions(
    allows_tf32: Callable[[], bool], bias_gradient: Callable[[Tensor, Tensor], Tensor | None], /
) -> None: ...
