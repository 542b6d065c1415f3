"""Tables of a page: plain ones, and long ones that sort and filter."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from weightsmith.errors import shown
from weightsmith.report.svg import Text


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a table.

    Attributes:
        title: Its heading.
        text: How its numbers are written; None for words, which stand to the left.
        about: The heading in more words, for whoever hovers.
    """

    title: str
    text: Text | None = None
    about: str = ""


def table(columns: Sequence[Column], rows: Sequence[Sequence[object]], *, sortable: bool = False) -> Markup:
    """Return a table; its first column names the rows.

    Args:
        columns: The columns.
        rows: One value per column: numbers, or None, where the column has a text; anything else as it is.
        sortable: Sort by a click on a heading; long tables scroll in a frame of their own, and have a filter.
    """
    head = Markup("").join(_heading(c, sortable) for c in columns)
    body = Markup("").join(_row(columns, row, sortable) for row in rows)
    found = Markup("<table{}><thead><tr>{}</tr></thead><tbody>{}</tbody></table>").format(
        Markup(' class="sortable"') if sortable else "", head, body
    )
    long = sortable and len(rows) > 30
    box = Markup('<div class="wide{}">{}</div>').format(" tall" if long else "", found)
    if not long:
        return box
    search = Markup(
        '<p class="filter"><input type="search" placeholder="Filter by name" aria-label="Filter by name">'
        '<span class="soft">{:,} rows</span></p>'
    )
    note = Markup('<p class="paper soft">On paper: the first 40 rows, in the order chosen on the screen.</p>')
    return search.format(len(rows)) + box + note


def _heading(column: Column, sortable: bool) -> Markup:
    title = Markup('<button type="button">{}</button>').format(column.title) if sortable else column.title
    about = Markup(' title="{}"').format(column.about) if column.about else ""
    return Markup('<th scope="col"{}{}>{}</th>').format(Markup(' class="n"') if column.text else "", about, title)


def _row(columns: Sequence[Column], row: Sequence[object], sortable: bool) -> Markup:
    cells = [Markup('<th scope="row">{}</th>').format(shown(row[0]))]
    for column, value in zip(columns[1:], row[1:], strict=True):
        if column.text is None:
            cells.append(Markup("<td>{}</td>").format("–" if value is None else shown(value)))
            continue
        number = value if isinstance(value, int | float) else None
        key = (
            Markup(' data-v="{}"').format("" if number is None else f"{number:.6g}".replace("inf", "Infinity"))
            if sortable
            else ""
        )
        cells.append(Markup('<td class="n"{}>{}</td>').format(key, column.text(number)))
    return Markup("<tr>{}</tr>").format(Markup("").join(cells))
