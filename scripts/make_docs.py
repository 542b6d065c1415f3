"""Write docs/: a page per method, encoding and localizer from its docstring, and the command reference from --help.

Pages in WRITTEN are written by hand and stay as they are. Run: python scripts/make_docs.py
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from inspect import getdoc, getmodule
from pathlib import Path
from typing import Any

import click

from weightsmith.arguments import Parameter
from weightsmith.cli import VERBS, group
from weightsmith.compress import ENCODINGS
from weightsmith.encoding import Encoding
from weightsmith.localize import LOCALIZERS, tall_masks
from weightsmith.localize.localizer import Localizer
from weightsmith.merge import METHODS
from weightsmith.method import Method
from weightsmith.recipe import text as recipe_text
from weightsmith.recipe.origin import option_of

DOCS = Path(__file__).resolve().parent.parent / "docs"
WRITTEN = ("bundles.md", "localize.md")


def pages() -> dict[str, str]:
    """Return every page, by its path below docs/."""
    made = {name: (DOCS / name).read_text(encoding="utf-8") for name in WRITTEN}
    made |= {f"methods/{m.name}.md": method_page(m) for m in METHODS}
    made["methods.md"] = list_page(
        "Merge methods", "method", "methods", [(m.name, m.summary, m.source) for m in METHODS]
    )
    made |= {f"encodings/{e.name}.md": method_page(e) for e in ENCODINGS}
    made["encodings.md"] = list_page(
        "Encodings", "encoding", "encodings", [(e.name, e.summary, e.source) for e in ENCODINGS]
    )
    localizers = {"tall_masks": tall_masks_page(), **{x.name: localizer_page(x) for x in LOCALIZERS}}
    made |= {f"localizers/{name}.md": text for name, text in localizers.items()}
    rows = [("tall_masks", *tall_masks_lines()), *((x.name, x.summary, x.source) for x in LOCALIZERS)]
    made["localizers.md"] = list_page("Localizers", "--by", "localizers", rows)
    made["command-line.md"] = command_page()
    made["recipes.md"] = f"# Recipes\n\n```text\n{str(recipe_text.__doc__).rstrip()}\n```\n"
    return made


def list_page(title: str, heading: str, folder: str, rows: list[tuple[str, str, str]]) -> str:
    """Return the page that lists methods of one sort: name, what it does, source."""
    lines = [f"| [{name}]({folder}/{name}.md) | {summary} | {source.rstrip('.')} |" for name, summary, source in rows]
    return "\n".join([f"# {title}\n", f"| {heading} | what it does | source |", "|---|---|---|", *lines, ""])


def method_page(method: Method | Encoding) -> str:
    """Return the page of one merge method or encoding."""
    return (
        f"# {method.name}\n\n{method.summary}\n\nSource: {method.source}\n\n{parameter_table(method.parameters)}"
        f"```\n{method.example}\n```\n\n```text\n{method.__doc__.rstrip()}\n```\n"
    )


def parameter_table(parameters: Mapping[str, Parameter]) -> str:
    """Return the table of a method's parameters, with an empty line after it; nothing where there are none."""
    if not parameters:
        return ""
    rows = [
        f"| `{option_of(p.name)}` | {p.kind.describe()} | {'' if p.default is None else f'`{p.default}`'} | {p.help} |".replace(
            "|1", "\\|1"
        )
        for p in parameters.values()
    ]
    return "\n".join(["| option | kind | default | meaning |", "|---|---|---|---|", *rows, "\n"])


def localizer_page(found: Localizer) -> str:
    """Return the page of one localizer, whose parameters are words after --selection."""
    table = parameter_table(found.parameters).replace("| `--", "| `--selection ")
    return f"# {found.name}\n\n{found.summary}\n\nSource: {found.source}\n\n{table}```text\n{found.__doc__.rstrip()}\n```\n"


def tall_masks_lines() -> tuple[str, str]:
    """Return what TALL-masks do, and their source: they compare with one merged vector, so they are a plain function."""
    summary = str(getdoc(tall_masks)).partition("\n")[0]
    source = str(getattr(getmodule(tall_masks), "__doc__", "")).partition("\n")[0]
    return summary, source


def tall_masks_page() -> str:
    """Return the page of TALL-masks."""
    summary, source = tall_masks_lines()
    return f"# tall_masks\n\n{summary}\n\nSource: {source}\n\n```text\n{str(getdoc(tall_masks)).rstrip()}\n```\n"


def command_page() -> str:
    """Return the help of every verb, as the command line prints it."""
    parts = ["# Command line\n"]
    settings: dict[str, Any] = {**group.context_settings, "terminal_width": 110}
    with click.Context(group, info_name="weightsmith", **settings) as top:
        parts.append(f"```text\n{group.get_help(top)}\n```\n")
        for verb in VERBS:
            command = group.get_command(top, verb)
            if command is None:
                raise SystemExit(f"no verb {verb}")
            with click.Context(command, parent=top, info_name=verb) as below:
                parts.append(f"## {verb}\n\n```text\n{command.get_help(below)}\n```\n")
    return "\n".join(parts)


def main() -> int:
    """Write the pages; remove those of methods that are gone."""
    made = pages()
    for path in DOCS.rglob("*.md"):
        if str(path.relative_to(DOCS)) not in made:
            path.unlink()
    for name, text in made.items():
        path = DOCS / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
