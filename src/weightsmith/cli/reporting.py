"""`--report FILE`: the option that several verbs share, and the page it asks for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from weightsmith.compare import compare
from weightsmith.errors import shown
from weightsmith.plan import Options
from weightsmith.report import check_report, write_report
from weightsmith.report.merging import merge_page
from weightsmith.report.page import Page
from weightsmith.run import Progress, Result

REPORT = click.Option(
    ["--report"],
    metavar="FILE",
    help="Write the result with pictures to this HTML file, which needs no network; an older report is replaced.",
)


def report_path(given: dict[str, Any]) -> Path | None:
    """Take where the report goes out of `given`, and refuse it now where nothing can be written there."""
    path = given.pop("report", None)
    if path is None:
        return None
    check_report(path)
    return Path(path)


def report(result: Any, path: Path | None) -> None:
    """Write the report of a result, or a page, where one was asked for, and say so."""
    if path is not None:
        click.echo(f"report: {shown(write_report(result, path))}", err=True)


def page_of_merge(result: Result, first: str | None, options: Options, progress: Progress | None) -> Page:
    """Return the page of a merge, with how far the result lies from its first input, which both are read for.

    Args:
        result: What was merged.
        first: The first input, which is the base where there is one; None where it is no longer there.
        options: Memory and threads.
        progress: Called with (stage, bytes done, bytes in all).
    """
    moved = None if first is None else compare(first, result.out, options=options, progress=progress)
    return merge_page(result, moved)
