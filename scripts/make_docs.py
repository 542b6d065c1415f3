"""Write docs/: a page per method from its docstring, and the command reference from --help. Run: python scripts/make_docs.py."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from weightsmith.cli import VERBS, group
from weightsmith.merge import METHODS
from weightsmith.method import Method
from weightsmith.recipe import text as recipe_text
from weightsmith.recipe.origin import option_of

DOCS = Path(__file__).resolve().parent.parent / "docs"


def pages() -> dict[str, str]:
    """Return every page, by its path below docs/."""
    made = {f"methods/{m.name}.md": method_page(m) for m in METHODS}
    rows = "\n".join(f"| [{m.name}](methods/{m.name}.md) | {m.summary} | {m.source.rstrip('.')} |" for m in METHODS)
    made["methods.md"] = f"# Merge methods\n\n| method | what it does | source |\n|---|---|---|\n{rows}\n"
    made["command-line.md"] = command_page()
    made["recipes.md"] = f"# Recipes\n\n```text\n{str(recipe_text.__doc__).rstrip()}\n```\n"
    return made


def method_page(method: Method) -> str:
    """Return one method's page."""
    rows = [
        f"| `{option_of(p.name)}` | {p.kind.describe()} | {'' if p.default is None else f'`{p.default}`'} | {p.help} |".replace(
            "|1", "\\|1"
        )
        for p in method.parameters.values()
    ]
    table = "\n".join(["| option | kind | default | meaning |", "|---|---|---|---|", *rows])
    return (
        f"# {method.name}\n\n{method.summary}\n\nSource: {method.source}\n\n{table}\n\n"
        f"```\n{method.example}\n```\n\n```text\n{method.__doc__.rstrip()}\n```\n"
    )


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
