"""What is shown while something runs: bars of progress and colours, on a terminal alone."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterable, Iterator, Sized
from contextlib import contextmanager
from typing import Any, TextIO, TypeVar

Item = TypeVar("Item")

_COLOURS = {"green": 32, "red": 31, "yellow": 33}


def progress(items: Iterable[Item], label: str, total: int | None = None, unit: str = "it") -> Iterator[Item]:
    """The items, and below the output a bar of how many were taken, which goes when they are.

    It is tqdm's, on stderr. Where that is no terminal, and where the package was installed without what it depends on,
    there is no bar.
    """
    if total is None and isinstance(items, Sized):
        total = len(items)
    bar = _bar(label, total=total, unit=unit)
    if bar is None:
        yield from items
        return
    with bar:
        for item in items:
            yield item
            bar.update()


class Bar:
    """The same for what is no loop: ``with Bar(count) as bar``, and each part in :meth:`step`, or begun and ended."""

    def __init__(self, count: int) -> None:
        form = "{desc} {bar:20} {n_fmt} of {total_fmt}, {elapsed}"
        self._bar = _bar("", total=count, bar_format=form)

    def begin(self, text: str) -> None:
        if self._bar is not None:
            self._bar.set_description_str(text)

    def end(self) -> None:
        if self._bar is not None:
            self._bar.update()

    @contextmanager
    def step(self, text: str) -> Iterator[None]:
        """One of the parts; a line tells its seconds when it has ended."""
        self.begin(text)
        start = time.perf_counter()
        yield
        self.end()
        write(f"{text}: {time.perf_counter() - start:.1f} s")

    def __enter__(self) -> Bar:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()


def write(text: str, file: TextIO | None = None) -> None:
    """A line above the bars there are; to stdout if no file is given."""
    file = file or sys.stdout
    tqdm = _tqdm()
    if tqdm is None:
        print(text, file=file)
    else:
        tqdm.write(text, file=file)
    file.flush()


def coloured(text: str, colour: str, stream: TextIO) -> str:
    """In that colour if the stream is a terminal that shows colours and its user has not asked for none."""
    plain = "NO_COLOR" in os.environ or os.environ.get("TERM") == "dumb" or not stream.isatty()
    if plain or (os.name == "nt" and not {"WT_SESSION", "TERM"} & os.environ.keys()):
        return text
    return f"\x1b[{_COLOURS[colour]}m{text}\x1b[0m"


def _bar(label: str, **options: Any) -> Any:
    tqdm = _tqdm()
    if tqdm is None or not sys.stderr.isatty():
        return None
    return tqdm(desc=label, file=sys.stderr, leave=False, dynamic_ncols=True, **options)


def _tqdm() -> Any:
    try:
        from tqdm import tqdm
    except ImportError:  # pip install --no-deps: a bar is no reason to fail
        return None
    return tqdm
