"""Everything weightsmith raises on purpose.

    WeightsmithError
    ├── ArgumentError      exit 2   a parameter or option is wrong (also a ValueError)
    │   └── RecipeError    exit 2   a recipe file is wrong
    ├── CheckpointError    exit 3   an input file is damaged, hostile or not what it says
    │   ├── MismatchError  exit 3   inputs that do not fit each other
    │   └── NonFiniteError exit 3   NaN or infinity where numbers are needed
    └── ResourceError      exit 4   disk, memory, permission, network, a missing extra

A message has four parts in this order: what (method, file, tensor), expected, got, and what to do.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from typing import NoReturn

SHOWN_FAULTS = 10


class WeightsmithError(Exception):
    """Root of every error raised on purpose; `exit_code` is what the command line returns."""

    exit_code = 5

    def __init__(self, what: str, *, expected: str = "", got: str = "", do: str = "") -> None:
        parts = [what.rstrip(".")]
        if expected:
            parts.append(f"expected {expected}")
        if got:
            parts.append(f"got {got}")
        text = "; ".join(parts)
        text += "" if text.endswith("?") else "."
        end = "" if do.endswith("?") else "."
        super().__init__(f"{text} {do[:1].upper()}{do[1:].rstrip('.')}{end}" if do else text)


class ArgumentError(WeightsmithError, ValueError):
    """A parameter lies outside its bounds, or options contradict each other."""

    exit_code = 2


class RecipeError(ArgumentError):
    """A recipe file has faults; the message lists them with line, key and nearest name."""


class CheckpointError(WeightsmithError):
    """A checkpoint file is damaged, hostile, ambiguous or of an unknown kind."""

    exit_code = 3


class MismatchError(CheckpointError):
    """Inputs differ in names, shapes or dtypes where they must agree."""


class NonFiniteError(CheckpointError):
    """A tensor holds NaN or infinity, or a result does not fit its dtype."""


class ResourceError(WeightsmithError):
    """The machine cannot do it: disk, memory, permission, network, or a missing extra."""

    exit_code = 4


def shown(text: object) -> str:
    """Return text safe for a terminal: control and direction characters escaped, at most 200 long.

    >>> shown("a\\x1b[31mb")
    'a\\\\x1b[31mb'
    """
    raw = str(text)
    safe = "".join(c if c.isprintable() else c.encode("unicode_escape", "backslashreplace").decode() for c in raw)
    return safe if len(safe) <= 200 else f"{safe[:160]}... ({len(raw)} characters)"


def nearest(name: str, valid: Iterable[str]) -> str:
    """Return a hint that names the closest valid names, or lists them all when none is close.

    >>> nearest("tise", ["ties", "dare"])
    "did you mean 'ties'?"
    """
    valid = list(valid)
    close = difflib.get_close_matches(name, valid, n=3, cutoff=0.6)
    if close:
        return "did you mean " + " or ".join(f"'{shown(c)}'" for c in close) + "?"
    listed = ", ".join(shown(v) for v in valid[:20])
    return f"valid names: {listed}" + (f" and {len(valid) - 20} more" if len(valid) > 20 else "")


class Gathered:
    """Faults of several stages, raised as one error: of the kind and under the heading of the first that has any.

    Attributes:
        faults: What is wrong, in order, each once.
        doubtful: Keys of a recipe whose text has faults or that may be misspelled; later stages conclude nothing from them.
    """

    def __init__(self) -> None:
        self.faults: dict[str, None] = {}
        self.doubtful: set[str] = set()
        self._kind: type[WeightsmithError] = WeightsmithError
        self._what = self._do = ""
        self._alone: WeightsmithError | None = None

    def add(self, faults: Iterable[str], kind: type[WeightsmithError], what: str, do: str = "") -> None:
        """Add a stage's faults; `kind`, `what` and `do` as for `raise_all`."""
        faults = dict.fromkeys(faults)
        if faults and not self.faults:
            self._kind, self._what = kind, what
        if faults:
            self._do = self._do or do
        self.faults |= faults

    def add_errors(self, errors: Sequence[WeightsmithError], what: str) -> None:
        """Add a stage's errors; one that stays alone is raised as it is."""
        if errors and not self.faults:
            self._alone = errors[0]
        self.add(map(str, errors), type(errors[0]) if errors else WeightsmithError, what)

    def absorb(self, other: Gathered) -> None:
        """Add what another gathered."""
        if other.faults and not self.faults:
            self._kind, self._what, self._alone = other._kind, other._what, other._alone
        self._do = self._do or other._do
        self.faults |= other.faults

    def error(self) -> WeightsmithError:
        """Return the error that tells what was added."""
        if self._alone is not None and len(self.faults) == 1:
            return self._alone
        return _error_of([*self.faults], self._kind, self._what, self._do)

    def raise_any(self) -> None:
        """Raise what was added, if anything was."""
        if self.faults:
            raise self.error()


def raise_all(faults: Sequence[str], kind: type[WeightsmithError], what: str, do: str = "") -> NoReturn:
    """Raise one error that lists the first ten faults and says how many there are."""
    raise _error_of(faults, kind, what, do)


def _error_of(faults: Sequence[str], kind: type[WeightsmithError], what: str, do: str) -> WeightsmithError:
    lines = [f"  {i}. {fault}".replace("\n", "\n     ") for i, fault in enumerate(faults[:SHOWN_FAULTS], 1)]
    if len(faults) > SHOWN_FAULTS:
        lines.append(f"  ... and {len(faults) - SHOWN_FAULTS} more")
    count = f"{len(faults)} fault" + ("s" if len(faults) != 1 else "")
    error = kind("")
    error.args = (f"{what}: {count}:\n" + "\n".join(lines) + (f"\n{do}." if do else ""),)
    return error
