"""torch.nn.functional.unfold whose dilation is a map: fractional, learnable, differentiable, on CPU and CUDA."""

from pathlib import Path as _Path
from typing import TYPE_CHECKING as _TYPE_CHECKING
from typing import Any as _Any

import torch as _torch  # first: libddu then shares torch's OpenMP library  # noqa: F401

from . import _C
from ._C import version as __version__
from .functional import (
    dynamic_dilation_aggregate,
    dynamic_dilation_attention,
    dynamic_dilation_conv2d,
    dynamic_dilation_correlate,
    dynamic_dilation_coverage,
    dynamic_dilation_unfold,
)
from .reference import dynamic_dilation_unfold_reference as reference

if _TYPE_CHECKING:  # read when first asked for, by __getattr__
    from . import cost as cost
    from . import modules as modules
    from .modules import (
        Conversion,
        DilationPredictor,
        DynamicDilationAttention2d,
        DynamicDilationConv2d,
        DynamicDilationPool2d,
        DynamicDilationUnfold,
        convert,
    )

# For CMAKE_PREFIX_PATH: libddu lies beside _C, also where an editable install has the Python files elsewhere.
cmake_prefix_path: str = str(_Path(_C.__file__).parent)

__all__ = [
    "Conversion",
    "DilationPredictor",
    "DynamicDilationAttention2d",
    "DynamicDilationConv2d",
    "DynamicDilationPool2d",
    "DynamicDilationUnfold",
    "__version__",
    "cmake_prefix_path",
    "convert",
    "dynamic_dilation_aggregate",
    "dynamic_dilation_attention",
    "dynamic_dilation_conv2d",
    "dynamic_dilation_correlate",
    "dynamic_dilation_coverage",
    "dynamic_dilation_unfold",
    "reference",
]

_FILES = ("cost", "modules")


def __getattr__(name: str) -> _Any:
    """What an import of the package leaves for the first use: it would take as long as the functions themselves."""
    from importlib import import_module

    if name in _FILES:
        return import_module(f".{name}", __name__)
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(".modules", __name__), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_FILES})
