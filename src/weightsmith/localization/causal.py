"""Whether the located weights are what a task needs: put them in or take them out, and measure."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from weightsmith.errors import ArgumentError
from weightsmith.localization.restoring import restore
from weightsmith.localization.writing import scratch_beside
from weightsmith.plan import Options
from weightsmith.run import merge


@dataclass(frozen=True)
class CausalCheck:
    """Scores of the target with the source's weights inside a mask, and outside it.

    Attributes:
        target: Score of the target as it is.
        source: Score of the source.
        inside: Score with the source's weights inside the mask alone.
        outside: Score with the source's weights outside the mask alone.
        share: Entries that the mask selects, of the target's.
    """

    target: float
    source: float
    inside: float
    outside: float
    share: float

    @property
    def explained(self) -> float | None:
        """What the weights inside alone change, over what all change; None where target and source score alike.

        Near 1 with a small share: the mask holds what makes the difference. It may be above 1 or below 0.
        """
        return self._part(self.inside)

    @property
    def remaining(self) -> float | None:
        """What the weights outside alone change, over what all change. Near 0: those inside are needed."""
        return self._part(self.outside)

    def _part(self, score: float) -> float | None:
        gap = self.source - self.target
        return (score - self.target) / gap if gap else None

    def to_json(self) -> dict[str, Any]:
        """Return scores and shares as plain data."""
        keys = ("target", "source", "inside", "outside", "share", "explained", "remaining")
        return {key: getattr(self, key) for key in keys}


def causal_check(
    target: str | Path,
    *,
    source: str | Path,
    mask: str | Path,
    score: Callable[[Path], float],
    options: Options | None = None,
) -> CausalCheck:
    """Restore the located weights, then all others, and score both.

    To ask whether weights are enough for a skill, let the base or a merged model be the target and the finetuned one the source;
    to ask whether they are needed, let the finetuned model be the target and the base the source, which ablates them.

    The models are written to the system's folder for temporary files (TMPDIR) and removed.

    Args:
        target: The model to change.
        source: The model to take weights from.
        mask: A checkpoint of BOOL tensors, see `restore`.
        score: Loads a checkpoint folder and tells how good it is, larger is better; on held-out data.
        options: As for `restore`.

    Raises:
        ArgumentError: A score is not a finite number.
        Others as for `restore`.

    Cost: four scores, two passes of `restore`.
    """
    with scratch_beside(None) as scratch:

        def measure(folder: Path, what: str) -> float:
            found = float(score(folder))
            if not math.isfinite(found):
                raise ArgumentError("causal_check: score", expected="a finite number", got=f"{found} for {what}")
            return found

        def folder_of(model: str | Path, name: str) -> Path:
            if os.path.isdir(model):
                return Path(model)
            return merge("linear", models=[model], out=scratch / name, options=options).out

        ends = [measure(folder_of(m, n), f"the {n}") for n, m in (("target", target), ("source", source))]
        found = []
        for outside in (False, True):
            out = scratch / ("outside" if outside else "inside")
            done = restore(target, source=source, mask=mask, out=out, outside=outside, options=options)
            found.append(measure(out, f"weights {out.name} the mask"))
        share = done.selected / max(done.elements, 1)
    return CausalCheck(ends[0], ends[1], found[0], found[1], share)
