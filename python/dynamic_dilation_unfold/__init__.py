"""torch.nn.functional.unfold whose dilation is a map: fractional, learnable, differentiable, on CPU and CUDA."""

from pathlib import Path as _Path

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
from .modules import (
    Conversion,
    DilationPredictor,
    DynamicDilationAttention2d,
    DynamicDilationConv2d,
    DynamicDilationPool2d,
    DynamicDilationUnfold,
    convert,
)
from .reference import dynamic_dilation_unfold_reference as reference

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
