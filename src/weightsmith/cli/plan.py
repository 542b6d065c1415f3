"""`weightsmith plan METHOD ...` and `weightsmith plan RECIPE [OUT]`."""

from __future__ import annotations

from weightsmith.cli.making import MethodsGroup

command = MethodsGroup(
    name="plan",
    short_help="Say what a merge would do, from headers alone.",
    help="Say what `weightsmith merge` with the same arguments would do, from headers alone: what is merged, copied and"
    " dropped, every mismatch, memory, bytes read and written.",
    dry_run=True,
)
