"""Recipe files: what to merge, how, and what to do with the result, in strict YAML.

    method: ties
    base: path/to/base              # where the method takes one
    models:
      - path/to/a
      - {model: path/to/b, coefficient: 0.5}
    parameters:
      density: 0.2
      lambda:                       # the first matching entry wins
        - {match: "*.mlp.*", value: 0.5}
        - {match: "*.self_attn.*", layers: [0.2, 1.0]}
        - 0.3                       # a plain value, last: every other tensor
    copy: ["*.embed_tokens.*"]      # taken from the base unmerged
    drop: ["classifier.*"]          # tensors that only some models have, left out
    dtype: bfloat16                 # default: each tensor's dtype in the base
    seed: 0
    shard_size: 5GB

Relative paths are relative to the current directory, not to the recipe. Words that YAML readers disagree
about (`yes`, `010`, `12:30`, `.inf`) are refused, so that no value silently means something else.
"""

from __future__ import annotations

import keyword
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

import yaml

from weightsmith.errors import ArgumentError, RecipeError, ResourceError, nearest, raise_all, shown
from weightsmith.schedule import Rule, Schedule, glob_fault
from weightsmith.strict_yaml import (
    Faults,
    Node,
    Value,
    items_of,
    mapping,
    number_of,
    parse_tree,
    resolve,
    scalar,
    seen,
    text_of,
)

__all__ = ["Recipe", "Rule", "Schedule", "parse_recipe", "parse_size", "read_recipe", "write_recipe"]

DTYPES = {"float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16"}
KEYS = ("method", "base", "models", "parameters", "copy", "drop", "dtype", "seed", "shard_size")
MAX_RECIPE_BYTES = 1_000_000
MAX_SEED = 2**64 - 1

_UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_UNITS |= {"KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}
_SIZE = re.compile(r"([0-9]{1,20}(?:\.[0-9]{1,20})?) ?([A-Za-z]*)")
_BARE = re.compile(r"[A-Za-z_./][A-Za-z0-9_./+@-]*")


@dataclass(frozen=True)
class Recipe:
    """What one recipe file says.

    Attributes:
        method: The method's name.
        models: References of the finetuned models, in order.
        base: Reference of the base model, where the method takes one.
        coefficients: One factor per model; None where the file gives none.
        parameters: The method's parameters by Python name (`lambda_`), each a plain value or a Schedule.
        copy: Globs of tensors taken from the base unmerged.
        drop: Globs of tensors that only some models have, left out.
        dtype: Output dtype as safetensors names it; None keeps each tensor's dtype in the base.
        seed: Seed of every random choice.
        shard_bytes: Largest size of an output file, unless one tensor is larger.
    """

    method: str
    models: tuple[str, ...]
    base: str | None = None
    coefficients: tuple[float, ...] | None = None
    parameters: Mapping[str, Value | Schedule] = field(default_factory=dict)
    copy: tuple[str, ...] = ()
    drop: tuple[str, ...] = ()
    dtype: str | None = None
    seed: int = 0
    shard_bytes: int = 5_000_000_000


def read_recipe(path: str | Path, *, known: Mapping[str, Collection[str]] | None = None) -> Recipe:
    """Read a recipe file; see `parse_recipe`.

    Raises:
        RecipeError: The file is missing, too large, not UTF-8, or has faults.
        ResourceError: The file cannot be read.
    """
    path = Path(path)
    what = f"recipe {shown(path)}"
    if not path.is_file():
        raise RecipeError(what, expected="a file", got="a folder" if path.is_dir() else "no such file")
    try:
        with path.open("rb") as file:
            data = file.read(MAX_RECIPE_BYTES + 1)
    except OSError as error:
        raise ResourceError(f"{what} cannot be read: {error.strerror}") from error
    if len(data) > MAX_RECIPE_BYTES:
        raise _too_large(what)
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise RecipeError(f"{what}, line {line}", expected="UTF-8 text", got=f"byte {error.start}") from error
    return parse_recipe(text, what, known=known)


def parse_recipe(text: str, where: str = "recipe", *, known: Mapping[str, Collection[str]] | None = None) -> Recipe:
    """Check a recipe's text and return what it says; every fault is reported at once.

    Args:
        text: The YAML text.
        where: What the text is, for messages.
        known: Method name to the names of its parameters, `coefficients` excluded; with it, misspelled
            method and parameter names are faults as well.

    Raises:
        RecipeError: The text has faults; each is told with its line, its key and the nearest valid name.

    Example:
        >>> recipe = parse_recipe("{method: ties, base: a, models: [b, c], parameters: {lambda: 1e-5}}")
        >>> recipe.models, recipe.parameters
        (('b', 'c'), {'lambda_': 1e-05})
    """
    if len(text) > MAX_RECIPE_BYTES:
        raise _too_large(shown(where))
    faults: Faults = []
    root = parse_tree(text, faults)
    fields = mapping(root, "recipe", KEYS, faults) if root else {}
    method = text_of(fields.get("method"), "method", faults)
    base = text_of(fields.get("base"), "base", faults)
    if method is not None and known is not None and method not in known:
        faults.append((fields["method"].line, f"unknown method '{shown(method)}'; {nearest(method, known)}"))
    models = _models(fields["models"], base, faults) if "models" in fields else []
    names = known.get(method) if known is not None and method is not None else None
    parameters = _parameters(fields["parameters"], names, faults) if "parameters" in fields else {}
    copy, drop = (_globs(fields.get(key), key, faults) for key in ("copy", "drop"))
    dtype = _dtype(fields.get("dtype"), faults)
    seed = _seed(fields.get("seed"), faults)
    shard_bytes = _shard_bytes(fields.get("shard_size"), faults)
    if root and root.kind == "mapping":
        faults += [(root.line, f"key '{key}' is missing") for key in ("method", "models") if key not in fields]
    if faults or method is None:
        told = [f"line {line}: {fault}" for line, fault in sorted(faults, key=lambda fault: fault[0])]
        raise_all(told, RecipeError, shown(where))
    weighted = any(coefficient is not None for _, coefficient in models)
    return Recipe(
        method=method,
        models=tuple(model for model, _ in models),
        base=base,
        coefficients=tuple(1.0 if c is None else c for _, c in models) if weighted else None,
        parameters=parameters,
        copy=copy,
        drop=drop,
        dtype=dtype,
        seed=seed,
        shard_bytes=shard_bytes,
    )


def write_recipe(recipe: Recipe) -> str:
    """Return YAML text that parses back to an equal recipe.

    Raises:
        ArgumentError: The recipe holds something that no recipe file can say.

    Example:
        >>> print(write_recipe(Recipe("linear", ("a", "b"), parameters={"lambda_": 0.5})), end="")
        method: linear
        models:
          - a
          - b
        parameters:
          lambda: 0.5
        seed: 0
        shard_size: 5GB
    """
    lines = [f"method: {_flow(recipe.method)}"]
    if recipe.base is not None:
        lines.append(f"base: {_flow(recipe.base)}")
    models: list[object] = list(recipe.models)
    if recipe.coefficients is not None:
        pairs = zip(recipe.models, recipe.coefficients, strict=False)  # lengths are compared below
        models = [{"model": model, "coefficient": float(coefficient)} for model, coefficient in pairs]
    lines += ["models:", *(f"  - {_flow(model)}" for model in models)]
    lines += ["parameters:"] if recipe.parameters else []
    for name, setting in recipe.parameters.items():
        if isinstance(setting, Schedule):
            lines += [f"  {_key(name)}:", *(f"    - {entry}" for entry in _entries(setting))]
        else:
            lines.append(f"  {_key(name)}: {_flow(setting)}")
    lines += [f"copy: {_flow(recipe.copy)}"] if recipe.copy else []
    lines += [f"drop: {_flow(recipe.drop)}"] if recipe.drop else []
    if recipe.dtype is not None:
        words = {name: word for word, name in DTYPES.items()}
        lines.append(f"dtype: {_flow(words.get(recipe.dtype, recipe.dtype))}")
    gigabytes, rest = divmod(recipe.shard_bytes, 10**9)
    size = recipe.shard_bytes if rest else f"{gigabytes}GB"
    lines += [f"seed: {_flow(recipe.seed)}", f"shard_size: {size}"]
    text = "\n".join(lines) + "\n"
    if parse_recipe(text, "recipe to be written") != recipe:
        raise ArgumentError("this recipe cannot be written: its text would be read as another recipe")
    return text


def parse_size(size: object) -> int:
    """Return a size in bytes: a whole number, or a number with KB, MB, GB, TB or KiB, MiB, GiB, TiB.

    >>> parse_size("5GB"), parse_size("1.5GiB"), parse_size(12345)
    (5000000000, 1610612736, 12345)
    """
    found = _SIZE.fullmatch(str(size)) if isinstance(size, str | int) and not isinstance(size, bool) else None
    if found and found[2] in _UNITS:
        count = Fraction(found[1]) * _UNITS[found[2]]
        if count > 0 and count.denominator == 1:
            return int(count)
    raise ArgumentError(
        "size",
        expected="a whole number of bytes above 0, or a number with " + ", ".join(filter(None, _UNITS)),
        got=f"'{shown(size)}'",
    )


def _models(node: Node, base: str | None, faults: Faults) -> list[tuple[str, float | None]]:
    """Return (reference, coefficient or None) per model."""
    found: list[tuple[str, float | None]] = []
    lines: dict[str, int] = {}
    for place, item in enumerate(items_of(node, "models", "a list of at least one model", faults), 1):
        what, coefficient = f"model {place}", None
        if item.kind == "mapping":
            fields = mapping(item, what, ("model", "coefficient"), faults)
            if "model" not in fields:
                faults.append((item.line, f"{what}: key 'model' is missing"))
            if "coefficient" in fields:
                coefficient = number_of(fields["coefficient"], f"{what}: coefficient", faults)
            model = text_of(fields.get("model"), what, faults)
        else:
            model = text_of(item, what, faults)
        if model is None:
            continue
        if model in lines:
            fault = f"{what}: '{shown(model)}' is given twice, first on line {lines[model]}"
            faults.append((item.line, fault))
        if model == base:
            faults.append((item.line, f"{what}: '{shown(model)}' is the base; leave it out of models"))
        lines.setdefault(model, item.line)
        found.append((model, None if coefficient is None else float(coefficient)))
    return found


def _parameters(node: Node, names: Collection[str] | None, faults: Faults) -> dict[str, Value | Schedule]:
    """Return the parameters by Python name; `names` are the valid ones, None where they are not known."""
    found: dict[str, Value | Schedule] = {}
    keys = None if names is None else [_key(name) for name in names]
    lines = {item.text: item.line for item in node.items[::2]}
    for key, value in mapping(node, "parameters", None, faults).items():
        fault = ""
        if key in ("coefficient", "coefficients"):
            fault = f"'{key}' stands beside each model: {{model: ..., coefficient: 0.5}}"
        elif keys is not None and key not in keys:
            fault = f"unknown key '{shown(key)}'; {nearest(key, keys)}"
        elif not key.isidentifier() or key != _key(key):
            fault = f"'{shown(key)}' is not a parameter's name"
            fault += "" if key == _key(key) else f"; write '{_key(key)}'"
        if fault:
            faults.append((lines[key], f"parameters: {fault}"))
        else:
            setting = _setting(value, f"parameters: {key}", faults)
            if setting is not None:
                found[key + "_" if keyword.iskeyword(key) else key] = setting
    return found


def _setting(node: Node, what: str, faults: Faults) -> Value | Schedule | None:
    """Return a plain value, or the schedule that a list of entries means."""
    if node.kind == "scalar":
        return scalar(node, what, faults)
    expected = "a value, or a list of {match: ..., value: ...} and {match: ..., layers: [...]}"
    rules: list[Rule] = []
    for place, item in enumerate(items_of(node, what, expected, faults), 1):
        entry = f"{what}, entry {place}"
        if item.kind == "mapping":
            rule = _rule(item, entry, faults)
            rules += [rule] if rule else []
            continue
        value = scalar(item, entry, faults)
        if value is not None:
            rules.append(Rule("*", (value,)))
        if place < len(node.items):
            fault = "a plain value holds for every tensor left, so it comes last; a curve is {layers: [...]}"
            faults.append((item.line, f"{entry}: {fault}"))
    return Schedule(tuple(rules)) if rules else None


def _rule(node: Node, what: str, faults: Faults) -> Rule | None:
    """Return the rule that one {match, value} or {match, layers} entry means."""
    fields = mapping(node, what, ("match", "value", "layers"), faults)
    match = _glob(fields["match"], f"{what}: match", faults) if "match" in fields else "*"
    if ("value" in fields) == ("layers" in fields):
        faults.append((node.line, f"{what}: expected either 'value' or 'layers'"))
        return None
    if "value" in fields:
        values = [scalar(fields["value"], f"{what}: value", faults)]
    else:
        what = f"{what}: layers"
        items = items_of(fields["layers"], what, "a list of at least one number", faults)
        values = [number_of(item, what, faults) for item in items]
    given = tuple(value for value in values if value is not None)
    return Rule(match, given) if match is not None and given and len(given) == len(values) else None


def _globs(node: Node | None, what: str, faults: Faults) -> tuple[str, ...]:
    if node is None:
        return ()
    items = items_of(node, what, "a list of patterns", faults, empty=True)
    globs = [_glob(item, f"{what}, entry {place}", faults) for place, item in enumerate(items, 1)]
    return tuple(glob for glob in globs if glob is not None)


def _glob(node: Node, what: str, faults: Faults) -> str | None:
    glob = text_of(node, what, faults)
    fault = glob_fault(glob) if glob is not None else ""
    if fault:
        faults.append((node.line, f"{what}: '{shown(glob)}' {fault}"))
        return None
    return glob


def _dtype(node: Node | None, faults: Faults) -> str | None:
    word = text_of(node, "dtype", faults)
    if node and word is not None and word not in DTYPES:
        faults.append((node.line, f"dtype: unknown dtype '{shown(word)}'; {nearest(word, DTYPES)}"))
    return DTYPES.get(word or "")


def _seed(node: Node | None, faults: Faults) -> int:
    seed = number_of(node, "seed", faults) if node else 0
    if node and seed is not None and (not isinstance(seed, int) or not 0 <= seed <= MAX_SEED):
        faults.append((node.line, f"seed: expected a whole number from 0 to 2^64 - 1, got {seen(node)}"))
    return seed if isinstance(seed, int) else 0


def _shard_bytes(node: Node | None, faults: Faults) -> int:
    size = scalar(node, "shard_size", faults) if node else 5_000_000_000
    if size is not None:
        try:
            return parse_size(size)
        except ArgumentError as error:
            faults.append((node.line if node else 1, f"shard_size: {str(error).rstrip('.')}"))
    return 5_000_000_000


def _key(name: str) -> str:
    """Return a parameter's name as a recipe writes it: `lambda` for `lambda_`."""
    return name[:-1] if name.endswith("_") and keyword.iskeyword(name[:-1]) else name


def _entries(schedule: Schedule) -> Iterator[str]:
    for place, rule in enumerate(schedule.rules, 1):
        if place == len(schedule.rules) and rule.match == "*" and len(rule.values) == 1:
            yield _flow(rule.values[0])
        elif len(rule.values) == 1:
            yield _flow({"match": rule.match, "value": rule.values[0]})
        else:
            yield _flow({"match": rule.match, "layers": list(rule.values)})


def _flow(value: object) -> str:
    """Return a value as one line of YAML; text is quoted wherever it could be read as anything else."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {_flow(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_flow(item) for item in value) + "]"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return repr(float(value))
    text = str(value)
    if isinstance(value, int) or (_BARE.fullmatch(text) and resolve(text) == (text, "")):
        return text
    return yaml.safe_dump(text, default_style='"', allow_unicode=True, width=2**30).rstrip("\n")


def _too_large(what: str) -> RecipeError:
    return RecipeError(what, expected=f"at most {MAX_RECIPE_BYTES} bytes", got="more")
