"""Which token each row of a model's embeddings stands for, and in what the models of a merge differ there."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from weightsmith.checkpoint.entry import ARITHMETIC_DTYPES, Checkpoint, Entry
from weightsmith.checkpoint.names import kind_of, matches, tied_pair
from weightsmith.checkpoint.tokenizer import Tokenizer, digest, read_tokenizer
from weightsmith.errors import CheckpointError, shown

NAMED = 3  # tokens that a message names
_POSITIONS = ("wpe", "position", "pos_emb", "token_type", "segment")
_WAY_OUT = (
    "bring them together with 'vocabulary: {source: union}' in a recipe or --tokenizer union (or base, or a model)"
)


@dataclass(frozen=True)
class Side:
    """One model.

    Attributes:
        checkpoint: The model.
        tensors: Those whose rows are tokens.
        rows: How many rows they have.
        tokenizer: Its tokens; None where they are not known.
    """

    checkpoint: Checkpoint
    tensors: dict[str, Entry]
    rows: int
    tokenizer: Tokenizer | None

    @property
    def label(self) -> str:
        """The model's reference, for messages."""
        return f"'{shown(self.checkpoint.reference)}'"

    @property
    def ids(self) -> dict[str, int]:
        """Token to id."""
        return {} if self.tokenizer is None else self.tokenizer.ids

    def find(self, name: str) -> Entry | None:
        """Return a tensor, the embedding for a head that is tied to it."""
        tensors = self.checkpoint.tensors
        pair = tied_pair(tensors) if name not in tensors and self.checkpoint.config.get("tie_word_embeddings") else None
        return tensors.get(pair[0] if pair and pair[1] == name else name)


def token_tensors(checkpoint: Checkpoint) -> dict[str, Entry]:
    """Return the tensors whose rows are tokens: embeddings, heads and their biases; {} where there is no embedding.

    They have as many rows as the input embedding and the name of an embedding, a head or a vocabulary.
    """
    pair = tied_pair(checkpoint.tensors)
    config = checkpoint.config
    inner = config.get("text_config")
    rows = config.get("vocab_size", inner.get("vocab_size") if isinstance(inner, dict) else None)
    if pair is not None and checkpoint.tensors[pair[0]].shape:
        rows = checkpoint.tensors[pair[0]].shape[0]
    return {
        name: entry
        for name, entry in checkpoint.tensors.items()
        if entry.shape[:1] == (rows,) and entry.size and entry.dtype in ARITHMETIC_DTYPES and _is_by_token(name)
    }


def _is_by_token(name: str) -> bool:
    lower = name.lower()
    is_named = kind_of(name) in ("embedding", "head") or "head." in lower or "vocab" in lower
    return is_named and not any(part in lower for part in _POSITIONS)


def read_sides(inputs: Sequence[Checkpoint], notes: list[str], faults: list[str]) -> list[Side]:
    """Read every model's tokens; a model without a tokenizer has the first input's, where its rows are as many."""
    sides: list[Side] = []
    known: dict[str, Tokenizer | None] = {}
    for checkpoint in inputs:
        tensors = token_tensors(checkpoint)
        rows = next((entry.shape[0] for entry in tensors.values()), 0)
        side = Side(checkpoint, tensors, rows, None)
        if not tensors:
            faults.append(f"{side.label} has no embedding, so its tokens cannot be re-ordered")
        tokenizer = None
        try:
            tokenizer = _read_once(checkpoint.folder, known)
        except CheckpointError as error:
            faults.append(str(error))
        if tokenizer is None and sides and rows == sides[0].rows:
            tokenizer = sides[0].tokenizer
            notes.append(f"{side.label} has no tokenizer files; it is taken to have the tokens of {sides[0].label}")
        elif tokenizer is None:
            faults.append(f"{side.label} has no tokenizer files (tokenizer.json) that would say what its rows are")
        sides.append(replace(side, tokenizer=tokenizer))
    return sides


def _read_once(folder: Path | None, known: dict[str, Tokenizer | None]) -> Tokenizer | None:
    """Read a folder's tokenizer, once for all folders that have the same."""
    if folder is None:
        return None
    sums = digest(folder)
    if sums is None:
        return read_tokenizer(folder)
    if sums not in known:
        known[sums] = read_tokenizer(folder)
    tokenizer = known[sums]
    return None if tokenizer is None else replace(tokenizer, file=folder / tokenizer.file.name)


def compare_vocabularies(inputs: Sequence[Checkpoint], copy: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return (faults, notes) where models whose tensors are to be merged row by row have other tokens in those rows.

    Only tokenizers that can be read are compared. `copy` are globs of tensors that are not merged.
    """
    faults: list[str] = []
    notes: list[str] = []
    sides: list[Side] = []
    states: set[tuple[int, str | None]] = set()
    for checkpoint in inputs:
        tensors = {n: e for n, e in token_tensors(checkpoint).items() if not any(matches(p, n) for p in copy)}
        if not tensors or checkpoint.folder is None:
            continue
        side = Side(checkpoint, tensors, next(iter(tensors.values())).shape[0], None)
        with contextlib.suppress(CheckpointError):
            states.add((side.rows, digest(checkpoint.folder)))
            sides.append(side)
    if len(states) < 2:
        return faults, notes  # the usual case: no tokenizer is taken apart
    known: dict[str, Tokenizer | None] = {}
    first: Side | None = None
    for side in sides:
        try:
            tokenizer = _read_once(side.checkpoint.folder, known)
        except CheckpointError:
            continue
        if tokenizer is not None and first is None:
            first = replace(side, tokenizer=tokenizer)
        elif tokenizer is not None and first is not None:
            _compare(first, replace(side, tokenizer=tokenizer), faults, notes)
    return faults, notes


def _compare(first: Side, other: Side, faults: list[str], notes: list[str]) -> None:
    moved = [
        f"'{shown(t)}' {i} and {first.ids[t]}"
        for t, i in other.ids.items()
        if t in first.ids and i != first.ids[t] and i < other.rows and first.ids[t] < first.rows
    ]
    extra = [f"'{shown(t)}'" for t in other.ids.keys() - first.ids.keys() if other.ids[t] < other.rows]
    lacking = [f"'{shown(t)}'" for t in first.ids.keys() - other.ids.keys() if first.ids[t] < first.rows]
    told = [
        *([f"{len(moved)} at another id ({_some(moved)})"] if moved else []),
        *([f"{len(extra)} only in {other.label} ({_some(sorted(extra))})"] if extra else []),
        *([f"{len(lacking)} only in {first.label} ({_some(sorted(lacking))})"] if lacking else []),
    ]
    if moved or other.rows != first.rows:
        name = next(iter(other.tensors))
        faults.append(
            f"the rows of '{shown(name)}' are not the same tokens in {other.label} and {first.label}: "
            + ("; ".join(told) if told else f"the same tokens, but {other.rows} rows and {first.rows}")
            + f"; {_WAY_OUT}, or leave the tensor unmerged with --copy"
        )
    elif told:
        notes.append(
            f"tokens differ between {other.label} and {first.label}, though none has moved: {'; '.join(told)};"
            " their rows are merged by position; a vocabulary rule would merge them by token"
        )


def _some(items: Sequence[str]) -> str:
    return ", ".join(items[:NAMED]) + (", ..." if len(items) > NAMED else "")
