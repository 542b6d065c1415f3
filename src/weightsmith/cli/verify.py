"""`weightsmith verify OUT`."""

from __future__ import annotations

import json
from typing import Any

import click

from weightsmith.cli.options import SHOWING, machine_options, offered
from weightsmith.cli.progress import shown_progress
from weightsmith.errors import shown
from weightsmith.verify import verify

_OFFERED = offered("memory", "threads", "follow_symlinks", "allow_nonfinite")


@click.command(
    "verify",
    params=[*_OFFERED, *SHOWING],
    short_help="Check a merged model, or a bundle, against its record and its inputs.",
    epilog="\b\nExample:\n  weightsmith verify MERGED\n\nPython twin: weightsmith.verify(MERGED)",
)
@click.argument("out")
def command(out: str, as_json: bool, quiet: bool, **given: Any) -> int:
    """Check a folder that merge wrote, or a bundle: digests, counts, NaN and infinity, and sampled tiles computed anew.

    Where they cannot be computed anew, and for outputs of other verbs, it says so: then digests and counts are checked alone.

    Exit code 0 where all is well, 1 where something is wrong.
    """
    with shown_progress(quiet=quiet) as progress:
        result = verify(out, options=machine_options(given), progress=progress)
    if as_json:
        click.echo(json.dumps(result.summary(), indent=2, ensure_ascii=False))
    else:
        count = len(result.findings)
        verdict = "sound" if result.is_sound else f"{count} finding" + ("s" if count > 1 else "")
        click.echo(
            f"{shown(out)}: {verdict}; {result.files} files by SHA-256, {result.tensors} tensors,"
            f" {result.nonfinite} NaN or infinite, {result.recomputed:,} weights computed anew"
        )
        for text in result.findings:
            click.echo(f"  wrong: {text}")
        for text in result.skipped:
            click.echo(f"  digests and counts checked; not recomputed, because {text}")
    return 0 if result.is_sound else 1
