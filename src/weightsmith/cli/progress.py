"""Progress on standard error: a bar with speed and time left on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

SECONDS_BETWEEN_LINES = 10.0


@contextmanager
def shown_progress(*, quiet: bool) -> Iterator[Callable[[str, int, int], None] | None]:
    """Yield a function of (stage, bytes done, bytes in all) that shows progress; None where quiet."""
    if quiet:
        yield None
    elif sys.stderr.isatty():
        with _bar() as show:
            yield show
    else:
        yield _lines()


@contextmanager
def _bar() -> Iterator[Callable[[str, int, int], None]]:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    columns = (
        TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn()
    )  # fmt: skip
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("plan", total=None)

        def show(stage: str, done: int, total: int) -> None:
            progress.update(task, description=stage, completed=done, total=total)

        yield show


def _lines() -> Callable[[str, int, int], None]:
    began = called = last = time.monotonic()
    before = ""

    def show(stage: str, done: int, total: int) -> None:
        nonlocal began, called, last, before
        now = time.monotonic()
        if stage != before:  # bytes are counted anew in each
            before, began = stage, called
        called = now
        if now - last < SECONDS_BETWEEN_LINES:
            return
        last = now
        speed = done / max(now - began, 1e-9)
        left = (total - done) / speed if speed else 0.0
        print(
            f"{stage}: {100 * done / max(total, 1):.0f} %, {speed / 1e9:.2f} GB/s, {left:.0f} s left",
            file=sys.stderr,
            flush=True,
        )

    return show
