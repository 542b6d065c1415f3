"""What a recipe says: which models are merged, how, layer by layer, and what to do with the result.

`text.py` reads one from a file and writes it back.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction

from weightsmith.errors import ArgumentError, shown
from weightsmith.recipe.origin import Origin
from weightsmith.recipe.schedule import Rule, Schedule
from weightsmith.strict_yaml import Value

__all__ = [
    "COMPUTE_DTYPES",
    "DTYPES",
    "Origin",
    "Recipe",
    "Rule",
    "Schedule",
    "Setting",
    "Settings",
    "Slice",
    "Source",
    "TokenRule",
    "Vocabulary",
    "parse_size",
    "plural",
    "singular",
]

DTYPES = {"float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16"}
COMPUTE_DTYPES = ("float16", "bfloat16")  # what Recipe.compute_dtype may name

Setting = Value | Schedule
Settings = Mapping[str, Setting]

_UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_UNITS |= {"KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}
_SIZE = re.compile(r"([0-9]{1,20}(?:\.[0-9]{1,20})?) ?([A-Za-z]*)")


@dataclass(frozen=True)
class Source:
    """Some layers of one model, as one of the inputs of a slice.

    Attributes:
        model: Reference of the model.
        layers: First layer and the one after the last, in the model's own numbering.
        settings: Per-model parameters by singular name (`coefficient`, `density`), each a plain value or a Schedule,
            which goes by the model's own tensor names.
    """

    model: str
    layers: tuple[int, int]
    settings: Settings = field(default_factory=dict)


@dataclass(frozen=True)
class Slice:
    """Consecutive layers of the output: the same number of layers of each source, merged.

    Attributes:
        sources: What is merged, in order; where the method has a base, one of them is the base.
        base: Reference of this slice's base; None for the recipe's.
        parameters: Parameters by Python name that differ from the recipe's. A curve over the layers spans this slice.
    """

    sources: tuple[Source, ...]
    base: str | None = None
    parameters: Settings = field(default_factory=dict)

    def faults(self, base: str | None) -> list[str]:
        """Return what is wrong within the slice of a recipe whose base is `base`."""
        models = [source.model for source in self.sources]
        base = self.base or base
        found = [f"'{shown(m)}' is given twice" for m in dict.fromkeys(models) if models.count(m) > 1]
        found += [] if models else ["it has no sources"]
        if base is not None and models and base not in models:
            found.append(f"the base '{shown(base)}' is not among its sources")
        counts = [end - first for first, end in (source.layers for source in self.sources)]
        if any(first < 0 or first >= end for first, end in (source.layers for source in self.sources)):
            found.append("layers: expected [first, end] with 0 <= first < end, the end not included")
        elif len(set(counts)) > 1:
            spans = ", ".join(f"{n} of '{shown(m)}'" for n, m in zip(counts, models, strict=True))
            found.append(f"its sources span {spans} layers; expected equally many of each")
        return found


@dataclass(frozen=True)
class TokenRule:
    """Where one token's rows of the embeddings come from.

    Attributes:
        source: Reference of the model whose row is taken, or "zero".
        token: That model's token whose row is taken; None for the same token.
        token_id: The row's number in that model, in place of `token`.
        force: Whether the row replaces that of models that have the token, too.
    """

    source: str
    token: str | None = None
    token_id: int | None = None
    force: bool = False


@dataclass(frozen=True)
class Vocabulary:
    """The output's vocabulary.

    Attributes:
        source: "base", "union", or the reference of the model whose vocabulary it is.
        tokens: Rules by token; a token that the vocabulary lacks is appended.
        pad_to_multiple_of: The number of rows is filled up to a multiple of this.
    """

    source: str
    tokens: Mapping[str, TokenRule] = field(default_factory=dict)
    pad_to_multiple_of: int | None = None


@dataclass(frozen=True)
class Recipe:
    """What one recipe file says: whole `models`, or `slices` of them.

    Attributes:
        method: The method's name.
        models: References of the finetuned models, in order; empty where there are slices.
        base: Reference of the base model, where the method takes one.
        settings: Per-model parameters, one mapping per model, by singular name (`coefficient` for the method's
            `coefficients`), each a plain value or a Schedule, which goes by the model's own tensor names; () for none.
        slices: Layer ranges stacked in order, in place of `models`.
        parameters: The method's parameters by Python name (`lambda_`), each a plain value or a Schedule.
        copy: Globs of tensors taken from the base unmerged.
        drop: Globs of tensors that only some models have, left out.
        mask: Reference of a mask: the merge is inside it, the first input's bytes are outside. None for no mask.
        dtype: Output dtype as safetensors names it; None keeps each tensor's dtype in the base.
        compute_dtype: One of COMPUTE_DTYPES: inputs and every step are rounded to it. None for no rounding.
        vocabulary: How vocabularies that differ are brought together; None where they must be the same.
        chat_template: "auto", a template's name, or its text; None to keep that of the first input.
        seed: Seed of every random choice.
        shard_bytes: Largest size of an output file, unless one tensor is larger.
        origin: Where it comes from, for messages; recipes that differ in nothing else are equal.
    """

    method: str
    models: tuple[str, ...] = ()
    base: str | None = None
    settings: tuple[Settings, ...] = ()
    slices: tuple[Slice, ...] = ()
    parameters: Settings = field(default_factory=dict)
    copy: tuple[str, ...] = ()
    drop: tuple[str, ...] = ()
    mask: str | None = None
    dtype: str | None = None
    compute_dtype: str | None = None
    vocabulary: Vocabulary | None = None
    chat_template: str | None = None
    seed: int = 0
    shard_bytes: int = 5_000_000_000
    origin: Origin = field(default_factory=Origin, compare=False, repr=False)

    @property
    def references(self) -> tuple[str, ...]:
        """Every reference to a checkpoint, once: the base, then models or sources in order."""
        bases = [self.base, *(part.base for part in self.slices)]
        sources = [source.model for part in self.slices for source in part.sources]
        named = [b for b in bases if b is not None]
        return tuple(dict.fromkeys([*named, *self.models, *sources]))


def singular(name: str) -> str:
    """Return the name under which one model gives its part of a per-model parameter.

    >>> singular("coefficients"), singular("densities")
    ('coefficient', 'density')
    """
    return name.removesuffix("ies") + "y" if name.endswith("ies") else name.removesuffix("s")


def plural(name: str) -> str:
    """Return the method's name of a per-model parameter.

    >>> plural("coefficient"), plural("density")
    ('coefficients', 'densities')
    """
    return name.removesuffix("y") + "ies" if name.endswith("y") else name + "s"


def parse_size(size: object, what: str = "size") -> int:
    """Return a size in bytes: a whole number, or a number with KB, MB, GB, TB or KiB, MiB, GiB, TiB; `what` is for messages.

    >>> parse_size("5GB"), parse_size("1.5GiB"), parse_size(12345)
    (5000000000, 1610612736, 12345)
    """
    found = _SIZE.fullmatch(str(size)) if isinstance(size, str | int) and not isinstance(size, bool) else None
    if found and found[2] in _UNITS:
        count = Fraction(found[1]) * _UNITS[found[2]]
        if count > 0 and count.denominator == 1:
            return int(count)
    raise ArgumentError(
        what,
        expected="a whole number of bytes above 0, or a number with " + ", ".join(filter(None, _UNITS)),
        got=f"'{shown(size)}'",
    )
