"""One vocabulary for models whose tokens differ, as the recipe's `vocabulary` says, decided from headers and tokenizers.

Tensors indexed by token are re-ordered to the output's vocabulary: every model is treated as if it had been saved with
it, in its own dtype. `token_rows.py` says which row each token gets.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from weightsmith.checkpoint import tokenizer as files
from weightsmith.checkpoint.entry import Checkpoint
from weightsmith.checkpoint.folder import read_config
from weightsmith.errors import ArgumentError, CheckpointError, shown
from weightsmith.recipe import Recipe, Vocabulary
from weightsmith.vocabulary.token_rows import Difference, TokenRows, find_model
from weightsmith.vocabulary.tokens import Side, read_sides

LISTED = 10_000  # differences that a plan lists


@dataclass(frozen=True)
class Alignment:
    """How the vocabularies of the inputs were brought together.

    Attributes:
        source: What the recipe names.
        tokens: Tokens of the output.
        rows: Rows of the output's embedding, and of the first input's.
        differences: The first LISTED tokens that differ, by their id in the output.
        count: How many differ.
        rules: How many of them each rule decided.
        moved: Ids of the first input's tokens that changed, the former to the new one.
    """

    source: str
    tokens: int
    rows: tuple[int, int]
    differences: tuple[Difference, ...]
    count: int
    rules: dict[str, int]
    moved: dict[int, int]

    def summary(self) -> dict[str, Any]:
        """Return all but the differences themselves as plain data, for the record."""
        return {
            "source": self.source,
            "tokens": self.tokens,
            "rows": self.rows[0],
            "rows_of_first_input": self.rows[1],
            "differences": self.count,
            "rules": self.rules,
        }

    def table(self) -> dict[str, Any]:
        """Return the whole as plain data, for --json."""
        return {**self.summary(), "table": [asdict(difference) for difference in self.differences]}


@dataclass
class Aligned:
    """The inputs of a merge after their vocabularies were brought together.

    Attributes:
        inputs: The inputs, their token-indexed tensors re-ordered.
        alignment: What was done; None where the recipe has no rule.
        output: What becomes of the tokenizer's files.
        notes: What the user should know.
        faults: What does not fit.
    """

    inputs: tuple[Checkpoint, ...]
    alignment: Alignment | None = None
    output: files.TokenizerFiles = field(default_factory=files.TokenizerFiles)
    notes: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)


def align(recipe: Recipe, inputs: Sequence[Checkpoint]) -> Aligned:
    """Re-order the token-indexed tensors of every input as the recipe's vocabulary says.

    Raises:
        ArgumentError: The recipe names a model or template that is not there.
        CheckpointError: The source's tokenizer cannot be read or extended.
        ResourceError: A library is missing.
    """
    found = Aligned(tuple(inputs))
    template = _template(recipe.chat_template, inputs, found.notes)
    rule = recipe.vocabulary
    if rule is None:
        found.output = files.TokenizerFiles(template=template)
        return found
    sides = read_sides(inputs, found.notes, found.faults)
    if found.faults:
        return found
    has_base = recipe.base is not None
    is_first = rule.source in ("base", "union")
    source = 0 if is_first else find_model(rule.source, sides, has_base, "vocabulary: source")
    donor = sides[source]
    if donor.tokenizer is None:
        raise CheckpointError(f"{donor.label} has no tokenizer")
    ids, text = _output_ids(rule, sides, donor.tokenizer, found.notes)
    needed = ids.values() if rule.source == "union" else [ids[t] for t in rule.tokens]
    rows = max([donor.rows, *(place + 1 for place in needed)])
    multiple = 1 if rule.pad_to_multiple_of is None else rule.pad_to_multiple_of
    if multiple < 1:
        raise ArgumentError("vocabulary: pad_to_multiple_of", expected="a whole number from 1", got=str(multiple))
    total = -(-rows // multiple) * multiple
    order = TokenRows(sides, ids, rows, rule.tokens, source=source, has_base=has_base)
    found.inputs = tuple(order.reordered(i, total) for i in range(len(sides)))
    found.faults += order.faults
    _note_rows(order, total, donor, found.notes)
    moved = {old: ids[token] for token, old in sides[0].ids.items() if ids.get(token, old) != old}
    moved |= _special_ids(sides[0], donor, ids, found.notes)
    differences = order.differences()
    rules: dict[str, int] = {}
    for difference in differences:
        rules[difference.rule] = rules.get(difference.rule, 0) + 1
    found.alignment = Alignment(
        rule.source, len(ids), (total, sides[0].rows), tuple(differences[:LISTED]), len(differences), rules, moved
    )
    folder = donor.tokenizer.file.parent
    is_carried = folder == inputs[0].folder
    found.output = files.TokenizerFiles(None if is_carried else folder, donor.label, text, template)
    return found


def _output_ids(
    rule: Vocabulary, sides: Sequence[Side], tokenizer: files.Tokenizer, notes: list[str]
) -> tuple[dict[str, int], str | None]:
    """Return the output's tokens with their ids, and the text of tokenizer.json where it is written anew."""
    ordinary: dict[str, None] = {}
    added: dict[str, Any] = {}
    own = {settings["content"] for settings in tokenizer.added}
    for side in sides[1:] if rule.source == "union" else ():
        theirs = side.tokenizer.added if side.tokenizer else ()
        by_id = sorted(side.ids.items(), key=lambda item: item[1])
        ordinary |= dict.fromkeys(t for t, i in by_id if i < side.rows and t not in tokenizer.ids)
        for settings in theirs:
            if settings["content"] not in own and settings["id"] < side.rows:
                added.setdefault(settings["content"], settings)
    plain = [t for t in ordinary if t not in added]
    more = [t for t in rule.tokens if t not in tokenizer.ids and t not in ordinary and t not in added]
    if not plain and not added and not more:
        return tokenizer.ids, None
    if plain:
        notes.append(
            f"ordinary tokens of other models, {len(plain)} in all, become added tokens of the output's tokenizer, which"
            " finds them in a text before its own rules apply"
        )
    text, ids = files.extended_text(tokenizer, plain, [*added.values(), *({"content": t} for t in more)])
    return ids, text


def _note_rows(order: TokenRows, total: int, donor: Side, notes: list[str]) -> None:
    """Say which rows have no token, which tokens no row, and which rows no place."""
    rows = len(order.tokens)
    empty = int(order.is_padding.sum())
    if empty:
        notes.append(f"{empty} of the {rows} rows of the output stand for no token (padding); they are kept")
    if total > rows:
        notes.append(f"{total - rows} rows, each the mean of all tokens' rows, are appended to make {total}")
    beyond = sum(place >= rows for place in order.ids.values())
    if beyond:
        notes.append(
            f"{beyond} tokens of {donor.label} have ids from {rows} on, where it has no rows; so has the output"
        )
    for own, side in zip(order.own, order.sides, strict=True):
        left = side.rows - np.unique(own[own >= 0]).size
        if left:
            notes.append(f"{left} of the {side.rows} rows of {side.label} have no place in the output")


def _special_ids(first: Side, donor: Side, ids: dict[str, int], notes: list[str]) -> dict[int, int]:
    """Return what becomes of ids in the first input's configs whose tokens the output lacks: those of the donor's configs."""
    names = {place: token for token, place in first.ids.items()}
    moved: dict[int, int] = {}
    mine, theirs = (_id_settings(side) for side in (first, donor))
    for key, places in mine.items():
        for place in places:
            token = names.get(place)
            if token is None or token in ids:
                continue
            instead = theirs.get(key, [])[:1]
            moved |= {place: instead[0]} if instead else {}
            told = f"becomes {instead[0]}, as {donor.label} has it" if instead else f"stays, for {donor.label} has none"
            notes.append(f"{key} {place} stands for '{shown(token)}', which the output lacks: it {told}")
    return moved


def _id_settings(side: Side) -> dict[str, list[int]]:
    """Return the token ids that config.json and generation_config.json name, by key."""
    found: dict[str, list[int]] = {}
    folder = side.checkpoint.folder
    generation = folder / "generation_config.json" if folder is not None else None
    for config in (side.checkpoint.config, read_config(generation) if generation and generation.is_file() else {}):
        for key, value in config.items():
            if key.endswith("_token_id"):
                places = value if isinstance(value, list) else [value]
                found.setdefault(key, []).extend(p for p in places if type(p) is int and p >= 0)
    return found


def _template(wanted: str | None, inputs: Sequence[Checkpoint], notes: list[str]) -> str | None:
    """Return the chat template that the recipe asks for; None to leave that of the tokenizer's files."""
    if wanted is None:
        return None
    by_reference = {c.reference: c for c in inputs}
    if wanted == "auto" or wanted in by_reference:
        chosen = list(inputs) if wanted == "auto" else [by_reference[wanted]]
        templates = [t for c in chosen if c.folder is not None and (t := files.read_template(c.folder)) is not None]
        if not templates:
            notes.append(f"chat_template '{shown(wanted)}': there is none to take")
            return None
        return max(templates, key=templates.count)  # the first of the most frequent
    if len(wanted) >= 20 and "{" in wanted:
        return wanted
    raise ArgumentError(
        f"chat_template '{shown(wanted)}'",
        expected="auto, one of the models, or the text of a template (at least 20 characters, with a '{')",
        got="none of these; templates are not known by name here",
        do="Name a model that has the template, or write its text",
    )
