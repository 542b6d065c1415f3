"""Tables of the files that went in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from weightsmith.report.table import Column, table
from weightsmith.report.text import count


def input_files(inputs: Sequence[Mapping[str, Any]]) -> Markup:
    """Return the table of what was read."""
    heads = (
        Column("input"),
        Column("file"),
        Column("bytes", count),
        Column("SHA-256 of the header"),
        Column("SHA-256"),
    )
    rows = [
        [source["reference"], f["file"], f["bytes"], f["header_sha256"], f.get("sha256")]
        for source in inputs
        for f in source["files"]
    ]
    return table(heads, rows)
