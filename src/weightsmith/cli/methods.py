"""`weightsmith methods [NAME]`."""

from __future__ import annotations

import json
from typing import Any

import click

from weightsmith.merge import METHODS
from weightsmith.method import Method
from weightsmith.plan.headers import find_method
from weightsmith.recipe.origin import option_of


@click.command(
    "methods",
    short_help="List the merge methods, or explain one.",
    epilog="\b\nExample:\n  weightsmith methods ties\n\nPython twin: weightsmith.merge_methods, a tuple; help(method.function)",
)
@click.argument("name", required=False)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def command(name: str | None, as_json: bool) -> None:
    """List the merge methods with one line each; with NAME show equation, parameters, source and an example."""
    chosen = [find_method(name)] if name else list(METHODS)
    if as_json:
        described = [_describe(m) for m in chosen]
        click.echo(json.dumps(described[0] if name else described, indent=2, ensure_ascii=False))
    elif name:
        click.echo(_explain(chosen[0]))
    else:
        width = max(len(m.name) for m in METHODS)
        for m in METHODS:
            click.echo(f"{m.name:<{width}}  {m.summary}")


def _describe(method: Method) -> dict[str, Any]:
    return {
        "name": method.name,
        "summary": method.summary,
        "source": method.source,
        "inputs": list(method.inputs),
        "models": {"least": method.least, "most": method.most},
        "parameters": [
            {
                "name": p.name,
                "option": option_of(p.name),
                "kind": p.kind.describe(),
                "default": p.default,
                "help": p.help,
            }
            for p in method.parameters.values()
        ],
        "example": method.example,
        "text": method.__doc__,
    }


def _explain(method: Method) -> str:
    """Return the docstring's prose and equation, the parameters as options, the source and an example."""
    head, _, rest = method.__doc__.partition("\nArgs:")
    differs = rest[rest.index("Differs from the paper:") : rest.index("Command:")].rstrip() if rest else ""
    options = [
        f"  {option_of(p.name)}{'' if p.default is None else f' [{p.default}]'}: {p.help} {p.kind.describe().capitalize()}."
        for p in method.parameters.values()
    ]
    return "\n".join(
        [
            f"{method.name} - {head.rstrip()}",
            "",
            "Parameters:",
            *(options or ["  none"]),
            "",
            differs,
            "",
            f"Source: {method.source}",
            f"Example: {method.example}",
        ]
    )
