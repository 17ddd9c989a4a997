from collections.abc import Callable

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
    dtypes: tuple[object, ...], empty_strided: Callable[..., Tensor], get_num_threads: Callable[[], int], /
) -> None: ...
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
    """None where it needs the caller's help: tensors that are not contiguous on the CPU, options that are not ints."""

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
