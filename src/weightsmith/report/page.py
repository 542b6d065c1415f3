"""One self-contained HTML page: nothing is loaded, and no script or style runs but the page's own."""

from __future__ import annotations

import base64
import functools
import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from weightsmith.errors import shown
from weightsmith.report.colors import style_rules
from weightsmith.report.text import count, percent, size

if TYPE_CHECKING:
    import jinja2

GENERATOR = '<meta name="generator" content="weightsmith">'  # in the head of every page, by which it is known again


@dataclass(frozen=True, slots=True)
class Tile:
    """An overview number: what it is, the number with its unit, and what it means."""

    title: str
    value: str
    note: str = ""


@dataclass(frozen=True, slots=True)
class Section:
    """A part of a page.

    Attributes:
        title: Its heading.
        about: A few sentences on what is seen.
        body: Pictures, tables and other markup, in order.
        side_by_side: Whether they stand beside each other where the window is wide enough.
    """

    title: str
    about: str
    body: tuple[Markup, ...]
    side_by_side: bool = False


@dataclass(frozen=True, slots=True)
class Page:
    """A report: its title, a sentence or two, overview numbers and sections."""

    title: str
    lead: str
    tiles: tuple[Tile, ...] = ()
    sections: tuple[Section, ...] = ()


def render(page: Page) -> str:
    """Return the page as HTML."""
    return render_template("weightsmith.report", "page.html", {"page": page, "version": version("weightsmith")})


def render_template(package: str, name: str, values: Mapping[str, Any]) -> str:
    """Fill a template of a package that extends "frame.html", the frame of every page.

    The frame states the policy: all is forbidden but the page's own style and script, which are named by their digests.
    """
    style, script = _asset("style.css").replace("/* colors */", style_rules()), _asset("script.js")
    environment = _environment()
    template = environment.from_string(files(package).joinpath(name).read_text(encoding="utf-8"))
    found = template.render(
        **values,
        style=Markup(style),  # ours: a page's own data never enters them
        script=Markup(script),
        generator=Markup(GENERATOR),
        digests={"style": digest(style), "script": digest(script)},
    )
    return found.encode("utf-8", "backslashreplace").decode()  # names may hold halves of characters


def digest(text: str) -> str:
    """Return what a content policy calls a script or style by.

    >>> digest("")
    'sha256-47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU='
    """
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def words(items: Sequence[tuple[str, object]]) -> Markup:
    """Return a list of terms, each with what it is."""
    pairs = [Markup("<dt>{}</dt><dd>{}</dd>").format(shown(term), str(what)) for term, what in items]
    return Markup("<dl>{}</dl>").format(Markup("").join(pairs))


def folded(title: str, body: Markup) -> Markup:
    """Return what opens at a click."""
    return Markup("<details><summary>{}</summary>{}</details>").format(title, body)


def titled(title: str, body: Markup) -> Markup:
    """Return a picture beneath its own heading."""
    return Markup("<div><h3>{}</h3>{}</div>").format(title, body)


@functools.cache
def _asset(name: str) -> str:
    return files("weightsmith.report").joinpath(name).read_text(encoding="utf-8")


@functools.cache
def _environment() -> jinja2.Environment:
    import jinja2

    found = jinja2.Environment(
        loader=jinja2.DictLoader({"frame.html": _asset("frame.html")}),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    filters: dict[str, Callable[..., Any]] = {"percent": percent, "number": count, "size": size, "plain": shown}
    found.filters.update(filters)
    return found
