"""The operators as functions: under the names that they have at the top level, and under short ones."""

from ._functions.aggregate import dynamic_dilation_aggregate
from ._functions.attention import dynamic_dilation_attention
from ._functions.conv2d import dynamic_dilation_conv2d
from ._functions.correlate import dynamic_dilation_correlate
from ._functions.coverage import dynamic_dilation_coverage
from ._functions.unfold import dynamic_dilation_unfold

unfold = dynamic_dilation_unfold
aggregate = dynamic_dilation_aggregate
correlate = dynamic_dilation_correlate
coverage = dynamic_dilation_coverage
attention = dynamic_dilation_attention
conv2d = dynamic_dilation_conv2d

__all__ = [
    "aggregate",
    "attention",
    "conv2d",
    "correlate",
    "coverage",
    "dynamic_dilation_aggregate",
    "dynamic_dilation_attention",
    "dynamic_dilation_conv2d",
    "dynamic_dilation_correlate",
    "dynamic_dilation_coverage",
    "dynamic_dilation_unfold",
    "unfold",
]
