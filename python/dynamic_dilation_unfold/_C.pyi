from collections.abc import Callable
from types import ModuleType

from torch import Tensor

version: str
cpu_capability: str
has_openmp: bool
cuda_toolkit_version: int
cuda_architectures: str

Pair = tuple[int, int]
BackwardAddresses = tuple[int, int, int, int, int, int]

class Geometry:
    @property
    def columns(self) -> int: ...
    @property
    def positions(self) -> int: ...

def make_geometry(
    input: tuple[int, ...],
    dilation_map: tuple[int, ...],
    kernel_size: Pair,
    stride: Pair,
    padding: Pair,
    dilation: Pair,
    groups: int,
    /,
) -> Geometry: ...
def check_types(input: int, map: int, /) -> None: ...
def attach(
    tensor_types: tuple[type, type],
    dtypes: tuple[object, ...],
    empty_strided: Callable[..., Tensor],
    get_num_threads: Callable[[], int],
    is_grad_enabled: Callable[[], bool],
    is_autocast_enabled: Callable[[], bool],
    forward_ad: ModuleType,
    watchers: tuple[Callable[[], object], ...],
    record: Callable[[Tensor, Tensor, tuple[object, ...]], Tensor],
    /,
) -> None: ...
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
    """The output of a plain call on the CPU without autocast, with its backward; None for any other."""

def cpu_unfold(
    input: Tensor,
    dilation_map: Tensor,
    kernel_size: object,
    stride: object,
    padding: object,
    dilation: object,
    groups: object,
    /,
) -> Tensor | None:
    """None where it needs help: tensors that do not lie in CPU memory as the kernels read it, options to normalise."""

def cpu_unfold_backward(
    geometry: Geometry, input_type: int, map_type: int, addresses: BackwardAddresses, threads: int, /
) -> None: ...
def cpu_workspace_bytes(
    geometry: Geometry, input_type: int, map_type: int, addresses: BackwardAddresses, threads: int, /
) -> int: ...
def cuda_unfold(
    geometry: Geometry, input_type: int, map_type: int, input: int, map: int, output: int, stream: int, /
) -> None: ...
def cuda_unfold_backward(
    geometry: Geometry,
    input_type: int,
    map_type: int,
    addresses: BackwardAddresses,
    deterministic: bool,
    stream: int,
    /,
) -> None: ...
def cuda_workspace_bytes(
    geometry: Geometry, input_type: int, map_type: int, addresses: BackwardAddresses, deterministic: bool, /
) -> int: ...
