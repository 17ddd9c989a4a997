"""Memory for the columns of one chunk after the other, which a call on a CPU leaves to the next.

malloc would give it back to the system, which then clears every page of what the next call gets: a third of the time
of a small convolution.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

KEPT_BYTES = 8 << 20  # at most, of the one memory that a process keeps
_kept: list[Tensor] = []


class Memory:
    """Pieces, each for the columns of a chunk or for their gradient."""

    def __init__(self, piece_bytes: int, device: torch.device, pieces: int = 1) -> None:
        self.piece_bytes = -(-piece_bytes // 64) * 64
        bytes = pieces * self.piece_bytes
        kept = _take() if device.type == "cpu" else None
        if kept is not None and len(kept) >= bytes:
            self.memory = kept
            return
        with torch.inference_mode(False):  # so that any call may write to it
            self.memory = torch.empty(bytes, dtype=torch.uint8, device=device)

    def tensor(self, dtype: torch.dtype, *shape: int, piece: int = 0) -> Tensor:
        """From the piece's start on: what was there is gone."""
        start = piece * self.piece_bytes
        return self.memory[start : start + math.prod(shape) * dtype.itemsize].view(dtype).view(shape)

    def leave(self) -> None:
        """Leaves it to the next call."""
        if self.memory.device.type == "cpu" and len(self.memory) <= KEPT_BYTES:
            _kept[:] = [self.memory]


def _take() -> Tensor | None:
    try:
        return _kept.pop()  # at once, so that no other thread has it too
    except IndexError:
        return None
