"""Which row of which model each row of an output's embeddings is, where the models have other tokens.

A token's row is the model's own; where the model lacks the token, the row of the source that the recipe names for it;
else of the only model that has it; else the base's; else the mean of those of the models that have it; zeros where none
has it. Rows that stand for no token (padding) are kept.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from weightsmith.checkpoint.entry import MEAN, PADDING, ZERO, Checkpoint, Entry, Rows
from weightsmith.errors import ArgumentError, nearest, shown
from weightsmith.recipe import TokenRule
from weightsmith.vocabulary.tokens import Side


@dataclass(frozen=True)
class Difference:
    """A token that does not have the same id in every model and in the output.

    Attributes:
        token: The token.
        id: Its id in the output; None where it is left out.
        ids: Its id in each input, None where it is unknown.
        source: Whose row stands in for it where a model lacks it; "" where every model has its own.
        rule: Why.
    """

    token: str
    id: int | None
    ids: tuple[int | None, ...]
    source: str
    rule: str


def find_model(reference: str, sides: Sequence[Side], has_base: bool, what: str) -> int:
    """Return which model a reference means; "base" is the base."""
    names = {side.checkpoint.reference: i for i, side in enumerate(sides)} | ({"base": 0} if has_base else {})
    if reference not in names:
        raise ArgumentError(
            f"{what} '{shown(reference)}' is none of the models of this merge",
            do=nearest(reference, names),
        )
    return names[reference]


class TokenRows:
    """The source of every row of the output, for every model.

    Attributes:
        own: (models, rows), the row that each model itself has for each output row; -1 for none.
        part, row: (rows,), what stands in where a model lacks the row, as `Rows` has them.
        means: The rows that are averaged, as `Rows` has them.
        forced: (rows,), whether the stand-in replaces that of every model.
        is_padding: (rows,), whether a row stands for no token.
        faults: What does not fit.
    """

    def __init__(
        self,
        sides: Sequence[Side],
        ids: Mapping[str, int],
        rows: int,
        rules: Mapping[str, TokenRule],
        *,
        source: int,
        has_base: bool,
    ) -> None:
        self.sides, self.ids, self.rules, self.has_base = sides, ids, rules, has_base
        self.faults: list[str] = []
        self.tokens: list[str | None] = [None] * rows
        for token, place in ids.items():
            if place < rows:
                self.tokens[place] = token
        self.is_padding = np.array([token is None for token in self.tokens], bool)
        self.own = np.stack([self._find_own(side) for side in sides])
        self._choose(source)
        self.forced = np.zeros(rows, bool)
        for token, rule in rules.items():
            self.forced[ids[token]] = rule.force
            self.part[ids[token]], self.row[ids[token]] = self._configured(token, rule)

    def _find_own(self, side: Side) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
        """Return a model's own rows; without token, those that are padding in the model and the output."""
        rows = len(self.tokens)
        own = np.full(rows, -1, np.int64)
        free = np.ones(side.rows, bool)
        for token, place in side.ids.items():
            if place < side.rows:
                free[place] = False
                at = self.ids.get(token, rows)
                if at < rows:
                    own[at] = place
        fits = np.flatnonzero(self.is_padding[: side.rows] & free[:rows])
        own[fits] = fits
        return own

    def _choose(self, source: int) -> None:
        """Choose what stands in for each row, before the rules of the recipe."""
        has = self.own >= 0
        count, first, places = has.sum(0), has.argmax(0), np.arange(has.shape[1])
        self.part = np.full(len(places), ZERO)
        if self.has_base:
            self.part[has[0]] = 0
        self.part[count == 1] = first[count == 1]
        taken = self.is_padding & has[source]
        self.part[taken] = source
        self.row = np.where(self.part >= 0, self.own[self.part, places], places)
        self.means: list[tuple[tuple[int, int], ...]] = []
        for at in np.flatnonzero((self.part == ZERO) & (count > 1) & (count < len(self.sides))):
            self.part[at], self.row[at] = MEAN, len(self.means)
            self.means.append(tuple((int(m), int(self.own[m, at])) for m in np.flatnonzero(has[:, at])))

    def _configured(self, token: str, rule: TokenRule) -> tuple[int, int]:
        """Return part and row of a token for which the recipe names a source."""
        at = self.ids[token]
        if rule.source == "zero":
            return ZERO, at
        what = f"vocabulary: tokens: '{shown(token)}'"
        model = find_model(rule.source, self.sides, self.has_base, f"{what}: source")
        side = self.sides[model]
        wanted = token if rule.token is None else rule.token
        row = side.ids.get(wanted) if rule.token_id is None else rule.token_id
        if row is None:
            self.faults.append(f"{what}: {side.label} has no token '{shown(wanted)}'")
        elif not 0 <= row < side.rows:
            self.faults.append(f"{what}: row {row} is not among the {side.rows} of {side.label}")
        else:
            return model, row
        return ZERO, at

    def reordered(self, model: int, total: int) -> Checkpoint:
        """Return a model with `total` rows in the output's order; the model as it is where it has these already."""
        side, rows = self.sides[model], len(self.tokens)
        keeps = (self.own[model] >= 0) & ~self.forced
        part, row = np.where(keeps, model, self.part), np.where(keeps, self.own[model], self.row)
        if total == rows == side.rows and (part == model).all() and (row == np.arange(rows)).all():
            return side.checkpoint
        used = {int(p) for p in np.unique(part[part >= 0])}
        used |= {m for place in row[part == MEAN] for m, _ in self.means[place]}
        real = 1 + int(np.flatnonzero(~self.is_padding).max(initial=-1))
        part, row = np.r_[part, np.full(total - rows, PADDING)], np.r_[row, np.arange(rows, total)]
        begins = np.flatnonzero(np.r_[True, (np.diff(part) != 0) | (np.diff(row) != 1)])
        tensors = dict(side.checkpoint.tensors)
        for name, entry in side.tensors.items():
            order = Rows(self._sources(name, model, used), begins, part[begins], row[begins], tuple(self.means), real)
            nbytes = total * (entry.nbytes // entry.shape[0])
            tensors[name] = replace(entry, shape=(total, *entry.shape[1:]), nbytes=nbytes, rows=order)
        return replace(side.checkpoint, tensors=tensors)

    def _sources(self, name: str, model: int, used: set[int]) -> tuple[Entry, ...]:
        """Return one tensor of every model; those from which rows are taken must have rows of the same form."""
        entry = self.sides[model].tensors[name]
        sources = []
        for i, side in enumerate(self.sides):
            found = entry if i == model else side.find(name)
            what, fault = f"tensor '{shown(name)}' of {side.label}, from which rows are to be taken,", ""
            if found is None:
                fault = f"{what} is missing"
            elif found.shape != (side.rows, *entry.shape[1:]):
                fault = f"{what} has shape {found.shape}, not {(side.rows, *entry.shape[1:])}"
            elif found.low_rank is not None:
                fault = f"{what} carries an adapter, which cannot be re-ordered; merge the adapter into its base first"
            if fault and i in used and fault not in self.faults:
                self.faults.append(fault)
            sources.append(entry if found is None else found)
        return tuple(sources)

    def differences(self) -> list[Difference]:
        """Return every token that is not at one id in all models and the output, by its id there; the rest after them."""
        listed = []
        count = (self.own >= 0).sum(0)
        for at in np.flatnonzero((self.own != np.arange(self.own.shape[1])).any(0) | self.forced):
            token = self.tokens[at]
            if token is not None:
                is_own = count[at] == len(self.sides) and not self.forced[at]
                source, rule = ("", "each its own") if is_own else self._source_of(int(at), token, int(count[at]))
                listed.append(Difference(token, int(at), self._ids_of(token), source, rule))
        left = dict.fromkeys(t for side in self.sides for t in side.ids if t not in self.ids)
        return listed + [Difference(token, None, self._ids_of(token), "", "left out") for token in left]

    def _ids_of(self, token: str) -> tuple[int | None, ...]:
        return tuple(side.ids.get(token) for side in self.sides)

    def _source_of(self, at: int, token: str, count: int) -> tuple[str, str]:
        """Return whose row stands in for a token, and by which rule."""
        part, row = int(self.part[at]), int(self.row[at])
        source = "zero" if part == ZERO else ""
        if part == MEAN:
            source = " and ".join(self.sides[m].checkpoint.reference for m, _ in self.means[row])
        elif part >= 0:
            source = self.sides[part].checkpoint.reference
        if token in self.rules:
            rule = self.rules[token]
            source += f", row {row}" if rule.token is not None or rule.token_id is not None else ""
            return source, "configured, for every model" if rule.force else "configured"
        if part == MEAN:
            return source, "mean"
        return source, {0: "no model has it", 1: "the only model that has it"}.get(count, "the base's")
