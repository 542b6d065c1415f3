"""Greedy soup: average the models that make the average better (Wortsman et al., 2022, arXiv:2203.05482)."""

from __future__ import annotations

import math
import secrets
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from weightsmith.errors import ArgumentError
from weightsmith.plan import Options, make_plan
from weightsmith.run import Result, check_target, make_recipe, merge


@dataclass(frozen=True)
class Soup:
    """What a greedy soup is made of.

    Attributes:
        members: The models averaged, in the order they were added.
        scores: Each model's own score, in the order given.
        score: The soup's score.
        result: The run that published it.
    """

    members: tuple[str, ...]
    scores: tuple[float, ...]
    score: float
    result: Result


def greedy_soup(
    models: Sequence[str | Path],
    score: Callable[[Path], float],
    out: str | Path,
    *,
    options: Options | None = None,
    force: bool = False,
) -> Soup:
    """Start from the model that scores best; take the others, best first, each if the average's score does not fall.

    The uniform soup, of all models, is `merge("linear", models=models, out=out)`. Candidates are written one at a time to a
    folder beside `out`, which is removed in any case; `out` appears at the end, complete, with the bytes that were scored.

    Args:
        models: Models of one architecture: files, folders, `model+adapter`, hub ids.
        score: Loads a checkpoint folder and tells how good it is, larger is better; on held-out data.
        out: The new folder.
        options: As for `merge`.
        force: Replace an older output.

    Raises:
        ArgumentError: A score is not a finite number.
        Others as for `merge`, before anything is scored where the models do not fit each other.
    """
    out = Path(out)
    check_target(make_plan(make_recipe("linear", models=models), options or Options()), out, force=force)
    references = [str(m) for m in models]
    scratch = out.absolute().parent / f".{out.name}.soup-{secrets.token_hex(4)}"

    def measure(members: Sequence[str]) -> float:
        candidate = scratch / "candidate"
        merge("linear", models=members, out=candidate, options=options)
        found = float(score(candidate))
        if not math.isfinite(found):
            got = f"{found} for {', '.join(members)}"
            raise ArgumentError("greedy_soup: score", expected="a finite number", got=got)
        shutil.rmtree(candidate)
        return found

    try:
        scores = [measure([m]) for m in references]
        first, *rest = sorted(range(len(references)), key=lambda i: -scores[i])
        members, best = [references[first]], scores[first]
        for i in rest:
            found = measure([*members, references[i]])
            if found >= best:
                members, best = [*members, references[i]], found
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    result = merge("linear", models=members, out=out, options=options, force=force)
    return Soup(tuple(members), tuple(scores), best, result)
