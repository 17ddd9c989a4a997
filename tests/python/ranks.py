"""Processes that compute together, and how their tensors are split: what the tests of torch.distributed share."""

import os
import socket
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist

TORCH = tuple(int(n) for n in torch.__version__.split(".")[:2])
needs_processes = pytest.mark.skipif(not dist.is_available(), reason="this torch has no torch.distributed")
needs_rules = pytest.mark.skipif(TORCH < (2, 5), reason=f"torch {torch.__version__} has no sharding rules to register")


def launch(function: Callable[..., None], ranks: int, kind: str, *arguments: Any) -> None:
    """``function(rank, kind, *arguments)`` in each of ``ranks`` processes, which compares in place."""
    if kind == "cuda" and torch.cuda.device_count() < ranks:
        pytest.skip(f"fewer than {ranks} CUDA devices")
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    torch.multiprocessing.spawn(_rank, (ranks, port, kind, function, arguments), ranks)


def _rank(
    rank: int, ranks: int, port: int, kind: str, function: Callable[..., None], arguments: tuple[Any, ...]
) -> None:
    warnings.simplefilter("ignore")
    os.environ.update(MASTER_ADDR="localhost", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    if kind == "cuda":
        torch.cuda.set_device(rank)
    dist.init_process_group("nccl" if kind == "cuda" else "gloo", rank=rank, world_size=ranks)
    try:
        function(rank, kind, *arguments)
        dist.barrier()  # a rank that leaves early takes the connections of the others' last steps with it
    finally:
        dist.destroy_process_group()
    if kind == "cpu":
        os._exit(0)  # what had to be equal is; gloo's threads now and then abort while Python takes itself down


def placement(text: str) -> Any:
    """Of "S0", split along dimension 0; "R", whole; "P", a sum that is still due."""
    from torch.distributed.tensor import Partial, Replicate, Shard

    return {"R": Replicate(), "P": Partial()}.get(text) or Shard(int(text[1:]))
