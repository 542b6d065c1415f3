"""`weightsmith convert-recipe RECIPE [--out FILE]`."""

from __future__ import annotations

from pathlib import Path

import click

from weightsmith.cli.options import PEER_EXACT, followed_by
from weightsmith.dialect import convert_recipe
from weightsmith.errors import ArgumentError, ResourceError, shown


@click.command(
    "convert-recipe",
    short_help="Turn a recipe of mergekit's into one of ours.",
    epilog="\b\nExample:\n  weightsmith convert-recipe mergekit.yml --out recipe.yaml\n\n"
    'Python twin: weightsmith.convert_recipe("mergekit.yml")',
)
@click.argument("recipe")
@click.option("--out", metavar="FILE", help="Write it here. Default: print it.")
@click.option("--force", is_flag=True, help="Replace FILE.")
@followed_by(PEER_EXACT)
def command(recipe: str, out: str | None, force: bool, peer_exact: bool) -> int:
    """Turn a recipe of mergekit's into one of ours, which merges to the same bytes.

    `weightsmith merge RECIPE OUT` takes mergekit's as it is, too; a file of several documents can only be merged so.

    Notes on what has no effect or is done better stand above it as comments. With --peer-exact these defects of
    mergekit are reproduced, and come out in the recipe: arcee_fusion and ramplus_tl write float32 where no out_dtype
    is given; sce weighs models equally where their changes are tiny.
    """
    text = convert_recipe(recipe, peer_exact=peer_exact)
    if out is None:
        click.echo(text, nl=False)
        return 0
    try:
        with Path(out).open("w" if force else "x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError as error:
        raise ArgumentError(f"--out '{shown(out)}' exists", do="Pass --force to replace it") from error
    except OSError as error:
        raise ResourceError(f"--out '{shown(out)}' cannot be written: {error.strerror}") from error
    click.echo(f"{shown(out)}: written", err=True)
    return 0
