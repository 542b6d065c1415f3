"""`weightsmith merge METHOD ...` and `weightsmith merge RECIPE OUT`."""

from __future__ import annotations

from weightsmith.cli.making import MethodsGroup

command = MethodsGroup(
    name="merge",
    short_help="Merge models into one.",
    help="Merge models into one, by a METHOD and options, or as a RECIPE file says.\n\n"
    "A RECIPE is a YAML file of ours, or of mergekit's (with the key merge_method), which then has mergekit's numbers; one"
    " of several documents is run to its last. `weightsmith convert-recipe` turns mergekit's into ours.\n\n"
    "The result appears complete at OUT, or not at all: weights, config, tokenizer, model card and edit.json, the record"
    " from which `weightsmith verify` checks it.",
    dry_run=False,
)
