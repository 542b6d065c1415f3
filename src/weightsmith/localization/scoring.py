"""What a score says: which lambda suits a task, and how much its mask gives back.

Candidates are written to a scratch folder, scored and removed.
"""

from __future__ import annotations

import contextlib
import math
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from weightsmith.checkpoint.auxiliary import carry
from weightsmith.checkpoint.folder import read_config
from weightsmith.checkpoint.write import Output
from weightsmith.engine.stream import Piece, Worker
from weightsmith.errors import ArgumentError, nearest, shown
from weightsmith.localization.reading import Reading
from weightsmith.localization.writing import write_model
from weightsmith.run import merge
from weightsmith.tensor.arrays import Array
from weightsmith.tensor.coding import stored_bytes
from weightsmith.tensor.vector import add_scaled

Score = Callable[[Path, str], float]  # a checkpoint folder and a task's name; larger is better


@dataclass(frozen=True)
class Choice:
    """How one task's lambda was chosen: the best score, the first of equal ones.

    Attributes:
        task: The task's name.
        lambda_: What was chosen.
        scores: (lambda, score) in the order tried.
    """

    task: str
    lambda_: float
    scores: tuple[tuple[float, float], ...]

    @property
    def score(self) -> float:
        """The best score."""
        return dict(self.scores)[self.lambda_]

    def summary(self) -> dict[str, Any]:
        """Return the choice as plain data."""
        return {"task": self.task, "lambda": self.lambda_, "scores": [list(pair) for pair in self.scores]}


@dataclass(frozen=True)
class Behavior:
    """One task's score with the base, its own model, the merged one, and the one rebuilt through its mask.

    What the mask gives back is interference between tasks; what it does not is erased.
    """

    task: str
    base: float
    finetuned: float
    merged: float
    masked: float

    def summary(self) -> dict[str, Any]:
        """Return the scores as plain data."""
        return {
            "task": self.task,
            "base": self.base,
            "finetuned": self.finetuned,
            "merged": self.merged,
            "masked": self.masked,
            "interference": self.masked - self.merged,
            "erased": self.finetuned - self.masked,
        }


def measured_score(score: Score, folder: Path, task: str, what: str) -> float:
    """Return the score of a folder; ArgumentError where it is not a finite number."""
    found = float(score(folder, task))
    if not math.isfinite(found):
        raise ArgumentError("localize: score", expected="a finite number", got=f"{found} for {what} on '{shown(task)}'")
    return found


def best(task: str, scores: Sequence[tuple[float, float]]) -> Choice:
    """Return the choice that these (lambda, score) pairs make."""
    chosen = max(scores, key=lambda pair: pair[1])[0]  # the first of equal ones
    return Choice(task, chosen, tuple(scores))


def search(reading: Reading, tasks: Sequence[str], grid: Sequence[float], score: Score, scratch: Path) -> list[Choice]:
    """Try each lambda for each task: rebuild the task through its mask, and score it."""
    found = []
    for index, task in enumerate(tasks):
        scores = []
        for value in grid:
            trial = replace(reading, lambdas=(value,) * reading.tasks)
            with candidate(trial, index, scratch) as folder:
                scores.append((value, measured_score(score, folder, task, f"lambda {value}")))
        found.append(best(task, scores))
    return found


def behave(
    reading: Reading, tasks: Sequence[str], score: Score, scratch: Path, masked: Sequence[float] | None
) -> list[Behavior]:
    """Score each task on base, its own model, the merged one and the masked one, whose scores may be known."""
    base, *models = [c.reference for c in reading.plan.inputs]
    with candidate(reading, None, scratch) as folder:
        merged = [measured_score(score, folder, task, "the merged model") for task in tasks]
    found = []
    for index, task in enumerate(tasks):
        own = measured_score(score, _folder(models[index], scratch), task, "its own model")
        before = measured_score(score, _folder(base, scratch), task, "the base")
        if masked is None:
            with candidate(reading, index, scratch) as folder:
                behind = measured_score(score, folder, task, "the masked model")
        else:
            behind = masked[index]
        found.append(Behavior(task, before, own, merged[index], behind))
    return found


def _folder(reference: str, scratch: Path) -> Path:
    """Return a folder with the model: the one named, or a copy of what is no folder."""
    if os.path.isdir(reference):
        return Path(reference)
    copy = scratch / "given"
    shutil.rmtree(copy, ignore_errors=True)
    merge("linear", models=[reference], out=copy)
    return copy


@contextlib.contextmanager
def candidate(reading: Reading, task: int | None, scratch: Path) -> Iterator[Path]:
    """Yield a checkpoint folder with base + merged vector, behind one task's mask or whole; it is removed after use."""
    source, folder = reading.plan.inputs[0], scratch / "candidate"
    with reading.stream() as stream:

        def make(worker: Worker, piece: Piece) -> Array:
            (loaded,) = reading.tiles(stream, worker, [piece])
            vector = loaded.merged if task is None else loaded.merged * loaded.masks[task]
            out = np.empty((piece.stop - piece.start) * stored_bytes(piece.work.dtype), np.uint8)
            worker.store(piece.work, piece.start, add_scaled(loaded.base, vector, 1.0), out)
            return out

        def finish(output: Output) -> None:
            output.write_index()
            carry(source, output.partial, dtype=None, code=False)

        write_model(source, folder, {w.name: w for w in reading.works}, stream, make, finish, lambda _: None)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def read_validation(given: str | Path | Mapping[str, Mapping[Any, float]], tasks: Sequence[str]) -> list[Choice]:
    """Return the choices that known scores make: a mapping, or a JSON file, of task to lambda to score.

    Raises:
        ArgumentError: A task is missing or unknown, or a lambda or a score is not a number.
        CheckpointError: The file is not a JSON object.
    """
    where = "localize: validation" if isinstance(given, Mapping) else f"validation file '{shown(given)}'"
    table = given if isinstance(given, Mapping) else read_config(Path(given))
    for name in table:
        if name not in tasks:
            raise ArgumentError(f"{where}: unknown task '{shown(name)}'", do=nearest(str(name), tasks))
    found = []
    for task in tasks:
        scores = table.get(task)
        if not isinstance(scores, Mapping) or not scores:
            raise ArgumentError(
                f"{where}: task '{shown(task)}'", expected="lambdas with their scores", got=_kind(scores)
            )
        found.append(best(task, [_pair(where, task, *pair) for pair in scores.items()]))
    return found


def _pair(where: str, task: str, key: Any, score: Any) -> tuple[float, float]:
    try:
        value = float(key)
    except (TypeError, ValueError):
        value = math.nan
    if not (math.isfinite(value) and value >= 0):
        got = f"'{shown(key)}'"
        raise ArgumentError(f"{where}: task '{shown(task)}'", expected="a lambda of at least 0", got=got)
    if isinstance(score, bool) or not isinstance(score, int | float) or not math.isfinite(score):
        what = f"{where}: task '{shown(task)}', lambda {shown(key)}"
        raise ArgumentError(what, expected="a finite score", got=f"'{shown(score)}'")
    return value, float(score)


def _kind(value: Any) -> str:
    return "nothing" if value is None else type(value).__name__
