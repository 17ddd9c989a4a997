"""torch.nn.functional.unfold whose dilation is a map: fractional, learnable, differentiable, on CPU and CUDA."""

import torch as _torch  # first: libddu then shares torch's OpenMP library  # noqa: F401

from ._C import version as __version__
from .functional import dynamic_dilation_unfold
from .modules import DynamicDilationUnfold
from .reference import dynamic_dilation_unfold_reference as reference

__all__ = ["DynamicDilationUnfold", "__version__", "dynamic_dilation_unfold", "reference"]
