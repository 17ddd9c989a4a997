"""The pages of the API, from what the package exports: whatever is added there is on the page."""

from __future__ import annotations

import importlib
import inspect
from pathlib import Path
from types import ModuleType

import dynamic_dilation_unfold as package
import torch

LEFT_OUT = {"reference"}  # the function of that name at the top is what is meant


def public_modules() -> list[ModuleType]:
    folder = Path(package.__file__).parent
    names = sorted(
        path.stem for path in folder.glob("[!_]*") if path.suffix == ".py" or (path / "__init__.py").exists()
    )
    return [importlib.import_module(f"{package.__name__}.{name}") for name in names if name not in LEFT_OUT]


def names_of(module: ModuleType) -> list[str]:
    """What a module says it exports, else what it defines."""
    if hasattr(module, "__all__"):
        return list(module.__all__)
    return [
        n for n, v in vars(module).items() if not n.startswith("_") and getattr(v, "__module__", "") == module.__name__
    ]


def methods_of(value: type) -> list[str]:
    """The methods that a class itself defines and documents: those of torch stand in torch's documentation."""
    names = [name for name in vars(value) if not name.startswith("_")]
    return [name for name in names if inspect.isroutine(getattr(value, name)) and getattr(value, name).__doc__]


def directive(name: str, value: object) -> str:
    if inspect.isclass(value):
        members = "" if issubclass(value, tuple) else "\n   :members:"
        if issubclass(value, torch.nn.Module):
            members = f"\n   :members: {', '.join(methods_of(value))}"
        return f".. autoclass:: {name}{members}\n"
    return f".. autofunction:: {name}\n" if callable(value) else ""


def directives(language: str) -> str:
    """Markdown with a heading for each module and a directive for each name."""
    shown: set[int] = set()
    sections = []
    for module in [package, *public_modules()]:
        entries = []
        for name in names_of(module):
            value = getattr(module, name)
            if id(value) not in shown and (text := directive(f"{module.__name__}.{name}", value)):
                shown.add(id(value))
                entries.append(text)
        if entries:
            body = "\n".join(entries)
            sections.append(f"## {module.__name__}\n\n```{{eval-rst}}\n{body}```\n")
    return "\n".join(sections)
