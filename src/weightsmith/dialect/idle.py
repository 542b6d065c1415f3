"""Conditions that fit no tensor: harmless in mergekit, where recipes carry filters for other architectures; told and left out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from weightsmith.checkpoint.entry import Checkpoint
from weightsmith.checkpoint.names import layer_of, matches, renumbered
from weightsmith.dialect.tree import Notes
from weightsmith.errors import shown
from weightsmith.recipe import Recipe, Setting, Settings
from weightsmith.recipe.schedule import Schedule


def without_idle(recipe: Recipe, inputs: Sequence[Checkpoint], notes: Notes) -> Recipe:
    """Return the recipe without rules that fit no tensor of its inputs or its output; each is told once."""
    names = {name for checkpoint in inputs for name in checkpoint.tensors}
    total = sum(part.sources[0].layers[1] - part.sources[0].layers[0] for part in recipe.slices if part.sources)
    in_layers = [name for name in names if layer_of(name) == 0]
    names |= {renumbered(name, layer) for layer in range(total) for name in in_layers}

    def pruned(settings: Settings) -> dict[str, Setting]:
        return {name: _pruned(name, setting, names, notes) for name, setting in settings.items()}

    slices = tuple(
        replace(
            part,
            sources=tuple(replace(source, settings=pruned(source.settings)) for source in part.sources),
            parameters=pruned(part.parameters),
        )
        for part in recipe.slices
    )
    return replace(
        recipe,
        settings=tuple(map(pruned, recipe.settings)),
        slices=slices,
        parameters=pruned(recipe.parameters),
    )


def _pruned(name: str, setting: Setting, names: set[str], notes: Notes) -> Setting:
    if not isinstance(setting, Schedule):
        return setting
    used = [rule for rule in setting.rules if rule.match == "*" or any(matches(rule.match, n) for n in names)]
    if not used:
        return setting  # a fault, which the plan tells
    for rule in setting.rules:
        told = f"{name.rstrip('_')}: filter '{shown(rule.match.strip('*'))}' fits no tensor, nor in mergekit"
        if rule not in used and told not in notes:
            notes.append(told)
    plain = len({rule.values for rule in used}) == 1 and len(used[-1].values) == 1 and used[-1].match == "*"
    return used[-1].values[0] if plain else Schedule(tuple(used))
