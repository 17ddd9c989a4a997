"""Export to ONNX: the operator becomes standard ONNX operators, so that any runtime executes it."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from os import PathLike
from typing import Any

import torch
from torch import Tensor

from ._derivatives import reference_of
from ._dispatch import operators
from ._operator import Operator


def decompositions() -> dict[Any, Callable[..., Any]]:
    """The table for ``torch.export.ExportedProgram.run_decompositions`` that spells the operator in torch's own."""

    def spelled_out(operator: Operator) -> Callable[..., Tensor]:
        def forward(*arguments: Any) -> Tensor:
            tensors, options = arguments[: operator.count], operator.unpack(arguments[operator.count :])
            return reference_of(operator, options)(*tensors)

        return forward

    ours = {operator.op: spelled_out(operator) for operator in operators}
    return {**torch.export.default_decompositions(), **ours}


def export(
    model: torch.nn.Module | torch.export.ExportedProgram,
    args: tuple[Any, ...] = (),
    path: str | PathLike[str] | None = None,
    *,
    kwargs: Mapping[str, Any] | None = None,
    dynamic_shapes: Any = None,
    **options: Any,
) -> Any:
    """``torch.onnx.export(model, args, path, dynamo=True)`` for a model that uses ``dynamic_dilation_unfold``.

    The positions of the taps, the four gathers and their weights become standard operators (GatherElements, Where,
    Floor and the like), which take a few copies of the columns as memory.

    Args:
        model: A module, or what ``torch.export.export`` made of it.
        args, kwargs: Example arguments of a module.
        path: Where the model is written; None to only return it.
        dynamic_shapes: As for ``torch.export.export``.
        options: Further arguments of ``torch.onnx.export``.

    Returns:
        The ``torch.onnx.ONNXProgram``.

    Raises:
        RuntimeError: torch is older than 2.6.
        ModuleNotFoundError: onnx or onnxscript is missing; the message has the command that installs them.
    """
    if not hasattr(torch.export, "default_decompositions"):
        raise RuntimeError(f"ONNX export needs torch >= 2.6, this is {torch.__version__}")
    for name in ("onnx", "onnxscript"):
        if not _is_installed(name):
            raise ModuleNotFoundError(
                f'ONNX export needs {name}, which is not installed: pip install "dynamic-dilation-unfold[onnx]"',
                name=name,
            )
    if isinstance(model, torch.nn.Module):
        model = torch.export.export(model, args, dict(kwargs or {}), dynamic_shapes=dynamic_shapes)
    spelled_out = model.run_decompositions(decompositions())
    return torch.onnx.export(spelled_out, (), None if path is None else str(path), dynamo=True, **options)


def _is_installed(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ValueError:  # None stands in sys.modules: its import is to fail
        return False
