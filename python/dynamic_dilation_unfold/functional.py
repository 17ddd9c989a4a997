"""The operators as functions: under the names that they have at the top level, and under short ones."""

from ._functions.unfold import dynamic_dilation_unfold

unfold = dynamic_dilation_unfold

__all__ = ["dynamic_dilation_unfold", "unfold"]
