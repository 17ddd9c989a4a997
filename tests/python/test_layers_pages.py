"""The page of the API has every method of a module that the package documents."""

import importlib.util
import inspect
from pathlib import Path

import pytest
from dynamic_dilation_unfold import modules
from torch import nn

API = Path(__file__).parents[2] / "docs" / "site" / "api.py"
PUBLIC = [getattr(modules, name) for name in modules.__all__]
MODULES = [value for value in PUBLIC if inspect.isclass(value) and issubclass(value, nn.Module)]


def members(module: type[nn.Module]) -> list[str]:
    spec = importlib.util.spec_from_file_location("api", API)
    assert spec is not None
    assert spec.loader is not None
    api = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(api)
    lines = api.directive(module.__name__, module).splitlines()
    return [name for line in lines if ":members:" in line for name in line.split(":")[-1].replace(",", " ").split()]


def test_what_a_convolution_has_is_on_the_page():
    expected = {"from_conv", "reset_parameters", "dilation_map", "mask", "forward"}
    assert set(members(modules.DynamicDilationConv2d)) == expected


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.__name__)
def test_every_forward_says_what_it_takes_gives_and_raises(module):
    assert "forward" in members(module)
    for section in ("Args:", "Returns:", "Raises:"):
        assert section in module.forward.__doc__
    assert "Raises:" in module.__doc__
