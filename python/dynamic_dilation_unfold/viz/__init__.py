"""Looking at taps and maps: where they lie, what they reach, how they change in training.

The functions that draw need matplotlib, ``pip install "dynamic-dilation-unfold[viz]"``, and import it when they are
called. They draw into the axes that they are given, or into a new figure of pyplot, and return the axes. Labels are in
English or Chinese.
"""

from .drawing import draw_map, draw_taps
from .labels import Language
from .monitor import RateMonitor, RateRecord
from .taps import coverage_share, receptive_field, tap_positions

__all__ = [
    "Language",
    "RateMonitor",
    "RateRecord",
    "coverage_share",
    "draw_map",
    "draw_taps",
    "receptive_field",
    "tap_positions",
]
