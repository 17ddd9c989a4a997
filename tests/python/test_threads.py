"""Threads: results do not depend on how many there are, on the run, or on who else is calling."""

import concurrent.futures
import os
import sys
import threading
import time

import pytest
import torch
from dynamic_dilation_unfold import dynamic_dilation_unfold
from helpers import DTYPES, Case, assert_same_bits, random_input, random_map, run

# More and fewer planes than threads, one tile and many, windows that fit and that do not.
CASES = [
    Case(1, 1, 70, 90, padding=1),
    Case(2, 3, 40, 50, padding=1),
    Case(1, 37, 24, 20, kernel_size=2),
    Case(3, 8, 31, 33, kernel_size=5, padding=4, dilation=2, groups=4),
    Case(1, 3, 50, 60, kernel_size=(7, 3), stride=(2, 3), padding=(3, 1), groups=3),
    Case(70, 1, 4, 5, padding=1),
]
KINDS = ["ones", "fractional", "mixed"]


def tensors(case, kind, dtype=torch.float32, device="cpu", broadcast=False):
    made = (
        random_input(case.shape),
        random_map(kind, (1, *case.map_shape[1:]) if broadcast else case.map_shape).clamp(-6e4, 6e4),
        random_input(case.output_shape, seed=2),
    )
    return [t.to(device, dtype) for t in made]


@pytest.mark.parametrize("broadcast", [False, True], ids=["own-map", "broadcast-map"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_same_bits_at_every_thread_count(case, kind, dtype, broadcast, threads):
    made = tensors(case, kind, dtype, broadcast=broadcast)
    results = []
    for count in (1, 2, 5):
        torch.set_num_threads(count)
        results.append(run(dynamic_dilation_unfold, *made, case.options))
    for result in results[1:]:
        assert_same_bits(result, results[0])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_same_bits_again(case, kind, dtype, device, deterministic):
    made = tensors(case, kind, dtype, device)
    first = run(dynamic_dilation_unfold, *made, case.options)
    for _ in range(3):
        assert_same_bits(run(dynamic_dilation_unfold, *made, case.options), first)


@pytest.mark.parametrize("case", CASES[:4], ids=str)
def test_cpu_needs_no_flag_to_be_deterministic(case, threads):
    assert not torch.are_deterministic_algorithms_enabled()
    torch.set_num_threads(5)
    made = tensors(case, "fractional")
    first = run(dynamic_dilation_unfold, *made, case.options)
    for _ in range(5):
        assert_same_bits(run(dynamic_dilation_unfold, *made, case.options), first)


def test_calls_from_many_threads(device, deterministic):
    jobs = [tensors(CASES[1], kind, device=device) for kind in ("ones", "fractional", "far", "eighths")]
    expected = [run(dynamic_dilation_unfold, *job, CASES[1].options) for job in jobs]
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        futures = [pool.submit(run, dynamic_dilation_unfold, *job, CASES[1].options) for job in jobs * 8]
        for future, result in zip(futures, expected * 8, strict=True):
            assert_same_bits(future.result(), result)


def test_other_python_threads_run_during_a_call(threads):
    """The interpreter's lock is released: while one long call runs, another thread keeps ticking."""
    torch.set_num_threads(1)
    case = Case(1, 16, 200, 300, kernel_size=7, padding=3)
    x, rates, _ = tensors(case, "ones")
    dynamic_dilation_unfold(x, dilation_map=rates, **case.options)
    ticks, stop = [], threading.Event()

    def tick():
        while not stop.is_set():
            ticks.append(time.perf_counter())
            time.sleep(1e-3)

    ticker = threading.Thread(target=tick)
    ticker.start()
    try:
        start = time.perf_counter()
        dynamic_dilation_unfold(x, dilation_map=rates, **case.options)
        end = time.perf_counter()
    finally:
        stop.set()
        ticker.join()
    during = [t for t in ticks if start + 0.2 * (end - start) < t < start + 0.8 * (end - start)]
    assert during, f"no tick in the middle of a call of {end - start:.3f} s"


class Columns(torch.utils.data.Dataset):
    """Unfolds in the workers of a DataLoader, which are forked off a process whose OpenMP threads have run."""

    def __len__(self):
        return 4

    def __getitem__(self, index):
        x = torch.full((1, 5, 6), float(index))
        return dynamic_dilation_unfold(x, 3, torch.ones(1, 5, 6), padding=1)


@pytest.mark.skipif(sys.platform != "linux" or not hasattr(os, "fork"), reason="forks")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_workers_of_a_data_loader(threads):
    torch.set_num_threads(2)
    case = CASES[1]
    run(dynamic_dilation_unfold, *tensors(case, "ones"), case.options)
    loader = torch.utils.data.DataLoader(
        Columns(), batch_size=2, num_workers=2, multiprocessing_context="fork", timeout=60
    )
    batches = torch.cat(list(loader))
    assert_same_bits(batches, torch.stack([Columns()[i] for i in range(4)]))


def test_workers_flush_denormals_as_the_caller_does(threads):
    x = torch.full((4, 20, 24, 33), 3e-39, requires_grad=True)
    rates = (torch.rand(4, 1, 24, 33) + 0.5).requires_grad_()
    if not torch.set_flush_denormal(True):
        pytest.skip("this processor cannot flush denormals")
    results = []
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            columns = dynamic_dilation_unfold(x, 3, rates, padding=1)
            results.append([columns, *torch.autograd.grad(columns, (x, rates), torch.full_like(columns, 3e-39))])
    finally:
        torch.set_flush_denormal(False)
    for one, two in zip(*results, strict=True):
        assert_same_bits(one, two)


@pytest.mark.skipif(sys.platform == "win32", reason="stacks are a matter of the program there")
def test_small_stack():
    x = torch.randn(1, 32, 40, 40, requires_grad=True)
    rates = (torch.rand(1, 1, 40, 40) + 0.5).requires_grad_()
    expected = dynamic_dilation_unfold(x, 3, rates, padding=1)
    results = []
    before = threading.stack_size(64 * 1024)
    try:
        thread = threading.Thread(target=lambda: results.append(dynamic_dilation_unfold(x, 3, rates, padding=1)))
        thread.start()
        thread.join()
    finally:
        threading.stack_size(before)
    assert_same_bits(results[0], expected)
