"""FLOPs of the registered operators, which torch's counter is told once somebody imports it.

The counter's module takes two milliseconds to import, a sixth of what the rest of this package takes, and few programs
count. A formula must be there before a ``FlopCounterMode`` is made, as the mode copies the registry, and nobody makes
one without that import: so a finder of ours waits for it at the head of ``sys.meta_path``.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

_COUNTER = "torch.utils.flop_counter"
_formulas: list[Callable[[Any], None]] = []  # each tells the counter, given its module


def add(tell: Callable[[Any], None]) -> None:
    """Calls tell(module of the counter): now, if somebody has imported it, or then."""
    _formulas.append(tell)
    if _is_told:
        tell(sys.modules[_COUNTER])


class _Finder:
    """Finds the counter as any other module is found, and sees to it that it is told."""

    def find_spec(self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None) -> Any:
        if name != _COUNTER:
            return None
        for finder in sys.meta_path:
            spec = None if isinstance(finder, _Finder) else finder.find_spec(name, path, target)
            if spec is not None:
                if spec.loader is not None:
                    spec.loader = _Loader(spec.loader)  # type: ignore[assignment]
                return spec
        return None


class _Loader:
    """Another loader that tells the counter when it has run. The module keeps that other one as its loader."""

    def __init__(self, loader: Any) -> None:
        self._loader = loader

    def create_module(self, spec: Any) -> Any:
        return self._loader.create_module(spec)

    def exec_module(self, module: Any) -> None:
        module.__loader__ = module.__spec__.loader = self._loader
        self._loader.exec_module(module)
        _tell(module)


def _tell(counter: Any) -> None:
    global _is_told
    _is_told = True
    sys.meta_path[:] = [finder for finder in sys.meta_path if not isinstance(finder, _Finder)]
    for tell in _formulas:
        tell(counter)


def _is_ours(finder: Any) -> bool:
    """Whether this import of the package or an earlier one in this process has put it there."""
    return (type(finder).__module__, type(finder).__name__) == (__name__, _Finder.__name__)


_is_told = False
sys.meta_path[:] = [finder for finder in sys.meta_path if not _is_ours(finder)]
if _COUNTER in sys.modules:
    _tell(sys.modules[_COUNTER])
else:
    sys.meta_path.insert(0, _Finder())
