"""Fixtures and settings of the whole suite."""

import functools
import os
import warnings
from collections.abc import Iterator

# Idle threads sleep instead of spinning: on a machine with other work, spinning makes small tensors ten times slower.
# OpenMP reads this when torch is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
# On CUDA, torch refuses deterministic matrix products without it.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

import hypothesis
import pytest
import torch
from dynamic_dilation_unfold import _C

# The same examples on every run and no clock: a shared CI machine must not decide whether a property holds.
hypothesis.settings.register_profile("fixed", derandomize=True, deadline=None, database=None, max_examples=50)
hypothesis.settings.register_profile("explore", deadline=None, max_examples=1000)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "fixed"))


# Tolerances of float32 are those of its own arithmetic: what rounds to TF32 is tested where it is asked for.
torch.backends.cudnn.allow_tf32 = False


@functools.cache
def missing_cuda() -> str | None:
    """Why the CUDA kernels cannot be tested here."""
    if _C.cuda_toolkit_version == 0:
        return "this build has no CUDA kernels"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns about drivers it cannot use
        return None if torch.cuda.is_available() else "torch finds no CUDA device"


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skips what is marked ``cuda``. Here and not in the fixture, so that the summary has one line for all."""
    if item.get_closest_marker("cuda") and (reason := missing_cuda()):
        pytest.skip(reason)


@pytest.fixture(scope="session", params=["cpu", pytest.param("cuda", marks=pytest.mark.cuda)])
def device(request: pytest.FixtureRequest) -> str:
    """Every device with kernels: a test that takes it holds on each, to the same tolerances."""
    return request.param


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.cuda)])
def kind(request: pytest.FixtureRequest) -> str:
    """What several ranks compute on."""
    if request.param == "cuda" and torch.cuda.device_count() < 2:
        pytest.skip("fewer than two CUDA devices")
    return request.param


@pytest.fixture
def deterministic() -> Iterator[None]:
    """torch.use_deterministic_algorithms(True) for one test."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(before)


@pytest.fixture
def threads() -> Iterator[None]:
    """Lets a test call torch.set_num_threads."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)
