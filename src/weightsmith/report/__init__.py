"""Results as one self-contained HTML page, and as what a notebook shows."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from markupsafe import Markup

from weightsmith.bundle.pack import Packed
from weightsmith.checkpoint.bundle import read_bundle
from weightsmith.compare import Comparison
from weightsmith.errors import ArgumentError, ResourceError, shown
from weightsmith.localization.result import Localization
from weightsmith.report.comparison import comparison_page
from weightsmith.report.localization import localization_page
from weightsmith.report.merging import merge_page
from weightsmith.report.packing import packing_page, stored_tensors
from weightsmith.report.page import GENERATOR, Page, render
from weightsmith.run import Result

_HEAD_BYTES = 2048


def write_report(result: Any, path: str | Path) -> Path:
    """Write the report of a result as one HTML file that needs nothing else: no network, no other file.

    Args:
        result: What `compare`, `localize`, `merge` or `pack` returned, or a Page.
        path: The file; an older report there is replaced, and nothing else ever is.

    Returns:
        The path.

    Raises:
        ArgumentError: There is no report of such a result, or the path names something that is no report.
        ResourceError: The folder does not exist, or cannot be written to.

    The same on the command line: weightsmith compare A B --report FILE.html
    """
    target = Path(path)
    check_report(target)
    text = render(result if isinstance(result, Page) else page_of(result))
    partial = target.with_name(f".report.partial-{os.getpid()}")
    try:
        try:
            partial.write_text(text, encoding="utf-8", newline="\n")
            partial.replace(target)
        finally:
            partial.unlink(missing_ok=True)
    except OSError as error:
        raise ResourceError(f"report '{shown(target)}'", got=error.strerror or str(error)) from error
    return target


def check_report(path: str | Path) -> None:
    """Refuse a path that no report can be written to, before any work is done for it; nothing is touched."""
    target = Path(path)
    what = f"report '{shown(target)}'"
    if not target.parent.is_dir():
        got = f"no folder '{shown(target.parent)}'"
        raise ResourceError(what, expected="a file in a folder that exists", got=got, do="Make the folder first")
    if not os.access(target.parent, os.W_OK):
        raise ResourceError(what, expected="a folder to write in", got=f"'{shown(target.parent)}' is read-only")
    if not target.exists():
        return
    if not target.is_file():
        raise ArgumentError(what, expected="a file", got="something else of that name", do="Choose another name")
    with target.open("rb") as file:
        if GENERATOR.encode() not in file.read(_HEAD_BYTES):
            raise ArgumentError(
                what, expected="a new file, or an older report", got="another file", do="Choose another name"
            )


def page_of(result: Any) -> Page:
    """Return the page of a result.

    Raises:
        ArgumentError: There is none of such a result.
    """
    if isinstance(result, Comparison):
        return comparison_page(result)
    if isinstance(result, Localization):
        return localization_page(result.to_json())
    if isinstance(result, Packed):
        return packing_page(result.summary(), read_bundle(result.out).content, stored_tensors(result.out))
    if isinstance(result, Result):
        return merge_page(result)
    raise ArgumentError(
        "report", expected="the result of compare, localize, merge or pack", got=f"a {type(result).__name__}"
    )


def notebook(result: Any) -> str:
    """Return what a notebook shows of a result: its report in a frame of its own, cut off from the notebook's page."""
    frame = Markup(
        '<iframe sandbox="allow-scripts" title="{}" srcdoc="{}" style="width: 100%; height: 720px; border: 0"></iframe>'
    )
    page = page_of(result)
    return str(frame.format(page.title, render(page)))
