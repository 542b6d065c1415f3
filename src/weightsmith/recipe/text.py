"""Recipe files: what to merge, how, and what to do with the result, in strict YAML.

    method: ties
    base: path/to/base              # where the method takes one
    models:
      - path/to/a
      - {model: path/to/b, coefficient: 0.5}    # this model's part of the method's `coefficients`
    parameters:
      density: 0.2
      lambda:                       # the first matching entry wins
        - {match: "*.mlp.*", value: 0.5}
        - {match: "*.self_attn.*", layers: [0.2, 1.0]}
        - 0.3                       # a plain value, last: every other tensor
    copy: ["*.embed_tokens.*"]      # taken from the base unmerged
    drop: ["classifier.*"]          # tensors that only some models have, left out
    mask: path/to/mask              # merge inside it alone; elsewhere the first input's bytes stay
    dtype: bfloat16                 # default: each tensor's dtype in the base
    compute_dtype: bfloat16         # round inputs and every step to it; default: no rounding before the end
    vocabulary:                     # default: it must be the same in all models
      source: union                 # or base, or a model
      tokens: {"<|im_start|>": {source: path/to/a}, "<|x|>": {source: zero, force: true}}
      pad_to_multiple_of: 64
    chat_template: auto
    seed: 0
    shard_size: 5GB

In place of `models`, layers stacked from ranges of several models, the last number not included:

    slices:
      - sources: [{model: path/to/a, layers: [0, 16]}]
      - sources:
          - {model: path/to/a, layers: [16, 24]}
          - {model: path/to/b, layers: [8, 16], coefficient: 0.5}
        base: path/to/a             # default: the recipe's
        parameters: {lambda: 0.7}   # where they differ from the recipe's

A curve's numbers lie evenly over the layers, from the first layer to the last, with straight lines in between;
over a slice's layers where it stands with a slice. A curve with more numbers than there are layers is noted by `plan`; a
pattern that matches no tensor is an error. Tensors outside the layers, such as an embedding, take a curve's first number.

Relative paths are relative to the current directory, not to the recipe. Words that YAML readers disagree
about (`yes`, `010`, `12:30`, `.inf`) are refused, so that no value silently means something else.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path

from weightsmith.errors import ArgumentError, Gathered, RecipeError, nearest, shown
from weightsmith.recipe import (
    COMPUTE_DTYPES,
    DTYPES,
    Origin,
    Recipe,
    Settings,
    Slice,
    Source,
    TokenRule,
    Vocabulary,
    parse_size,
    singular,
)
from weightsmith.recipe.origin import doubtful_keys, key_of
from weightsmith.recipe.schedule import Schedule
from weightsmith.recipe.setting_text import flow, globs_of, schedule_entries, settings_of
from weightsmith.strict_yaml import (
    Faults,
    Node,
    any_text_of,
    flag_of,
    items_of,
    mapping,
    number_of,
    parse_tree,
    read_text,
    scalar,
    seen,
    text_of,
    whole_of,
)

KEYS = (
    "method", "base", "models", "slices", "parameters", "copy", "drop", "mask", "dtype", "compute_dtype",
    "vocabulary", "chat_template", "seed", "shard_size",
)  # fmt: skip
MAX_RECIPE_BYTES = 1_000_000
MAX_SEED = 2**64 - 1

# A method's parameters by Python name, and which of them are given per model.
Known = Mapping[str, Mapping[str, bool]]


def read_recipe(path: str | Path, *, known: Known | None = None, found: Gathered | None = None) -> Recipe:
    """Read a recipe file; see `parse_recipe`.

    Raises:
        RecipeError: The file is missing, too large, not UTF-8, or has faults.
        ResourceError: The file cannot be read.
    """
    return parse_recipe(recipe_text(Path(path)), f"recipe {shown(path)}", known=known, found=found)


def recipe_text(path: Path) -> str:
    """Return a recipe file's text; raises what `read_recipe` does."""
    return read_text(path, f"recipe {shown(path)}", MAX_RECIPE_BYTES, RecipeError)


def parse_recipe(
    text: str, where: str = "recipe", *, known: Known | None = None, found: Gathered | None = None
) -> Recipe:
    """Check a recipe's text and return what it says; every fault is reported at once.

    Args:
        text: The YAML text.
        where: What the text is, for messages.
        known: Method name to the names of its parameters, each with whether it is given per model; with it, misspelled
            method and parameter names are faults as well.
        found: Receives the faults instead of their being raised; what is sound is then returned, to be looked at further.

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
    marks = {} if base is None else {("model", base): fields["base"].line}
    if method is not None and known is not None and method not in known:
        faults.append((fields["method"].line, f"unknown method '{shown(method)}'; {nearest(method, known)}"))
    reader = _Reader(known.get(method) if known is not None and method is not None else None, faults, marks)
    models = reader.models(fields["models"], base) if "models" in fields else []
    settings = tuple(given for _, given in models)
    recipe = Recipe(
        method=method or "",
        models=tuple(model for model, _ in models),
        base=base,
        settings=settings if any(settings) else (),
        slices=reader.slices(fields["slices"], base) if "slices" in fields else (),
        parameters=reader.parameters(fields.get("parameters"), "parameters"),
        copy=globs_of(fields.get("copy"), "copy", faults, marks),
        drop=globs_of(fields.get("drop"), "drop", faults, marks),
        mask=text_of(fields.get("mask"), "mask", faults),
        dtype=DTYPES.get(_word(fields.get("dtype"), "dtype", DTYPES, faults) or ""),
        compute_dtype=_word(fields.get("compute_dtype"), "compute_dtype", COMPUTE_DTYPES, faults),
        vocabulary=_vocabulary(fields["vocabulary"], faults) if "vocabulary" in fields else None,
        chat_template=any_text_of(fields.get("chat_template"), "chat_template", faults),
        seed=_seed(fields.get("seed"), faults),
        shard_bytes=_shard_bytes(fields.get("shard_size"), faults),
        origin=Origin("recipe", marks),
    )
    doubtful = doubtful_keys(root, KEYS, faults)
    if root and root.kind == "mapping":
        faults += [] if "method" in fields else [(root.line, "key 'method' is missing")]
        if not {"models", "slices"} & fields.keys():
            faults.append((root.line, "key 'models' is missing"))
        elif {"models", "slices"} <= fields.keys():
            faults.append((root.line, "'models' and 'slices' are both given; slices name the models themselves"))
            doubtful |= {"models", "slices"}
    gathered = found or Gathered()
    gathered.add((f"line {n}: {fault}" for n, fault in sorted(faults, key=lambda f: f[0])), RecipeError, shown(where))
    gathered.doubtful |= doubtful
    if found is None:
        gathered.raise_any()
    return recipe


class _Reader:
    """Reads the parts of a recipe that hold parameters; `names` are the method's, None where they are not known."""

    def __init__(self, names: Mapping[str, bool] | None, faults: Faults, marks: dict[tuple[str, str], int]) -> None:
        self.faults, self.marks = faults, marks
        self.shared = None if names is None else [n for n, per_model in names.items() if not per_model]
        self.beside = None if names is None else [singular(n) for n, per_model in names.items() if per_model]

    def parameters(self, node: Node | None, what: str) -> Settings:
        """Return a mapping of shared parameters."""
        beside = ["coefficient", *(self.beside or ())]
        if node is None:
            return {}
        return settings_of(node, what, self.faults, names=self.shared, beside=beside, marks=self.marks)

    def models(self, node: Node, base: str | None) -> list[tuple[str, Settings]]:
        """Return (reference, settings) per model."""
        found: list[tuple[str, Settings]] = []
        lines: dict[str, int] = {}
        for place, item in enumerate(items_of(node, "models", "a list of at least one model", self.faults), 1):
            what = f"model {place}"
            settings: Settings = {}
            if item.kind == "mapping":
                model, settings, _ = self._model(item, what)
            else:
                model = text_of(item, what, self.faults)
            if model is None:
                continue
            if model in lines:
                fault = f"{what}: '{shown(model)}' is given twice, first on line {lines[model]}"
                self.faults.append((item.line, fault))
            lines.setdefault(model, item.line)
            self.marks.setdefault(("model", model), item.line)
            if model == base:
                self.faults.append((item.line, f"{what}: '{shown(model)}' is the base; leave it out of models"))
            found.append((model, settings))
        return found

    def slices(self, node: Node, base: str | None) -> tuple[Slice, ...]:
        """Return the slices of a recipe whose base is `base`."""
        found = []
        for place, item in enumerate(items_of(node, "slices", "a list of at least one slice", self.faults), 1):
            what = f"slice {place}"
            self.marks["slice", str(place)] = item.line
            fields = mapping(item, what, ("sources", "base", "parameters"), self.faults)
            if "sources" not in fields:
                self.faults += [(item.line, f"{what}: key 'sources' is missing")] if item.kind == "mapping" else []
                continue
            before = len(self.faults)
            sources = self._sources(fields["sources"], what)
            own = text_of(fields.get("base"), f"{what}: base", self.faults)
            part = Slice(sources, own, self.parameters(fields.get("parameters"), f"{what}: parameters"))
            found.append(part)
            if len(self.faults) == before:
                self.faults += [(item.line, f"{what}: {fault}") for fault in part.faults(base)]
        return tuple(found)

    def _sources(self, node: Node, what: str) -> tuple[Source, ...]:
        found: list[Source] = []
        for place, item in enumerate(items_of(node, what, "a list of at least one source", self.faults), 1):
            entry = f"{what}, source {place}"
            if item.kind != "mapping":
                fault = f"{entry}: expected {{model: ..., layers: [first, end]}}, got {seen(item)}"
                self.faults.append((item.line, fault))
                continue
            model, settings, fields = self._model(item, entry, "layers")
            if "layers" not in fields:
                self.faults.append((item.line, f"{entry}: key 'layers' is missing"))
                continue
            layers = _layers(fields["layers"], f"{entry}: layers", self.faults)
            if model is not None:
                self.marks.setdefault(("model", model), fields["model"].line)
            if model is not None and layers is not None:
                found.append(Source(model, layers, settings))
        return tuple(found)

    def _model(self, item: Node, what: str, *keys: str) -> tuple[str | None, Settings, dict[str, Node]]:
        """Return a mapping's model, its settings, and the values of `keys` and of model itself."""
        own = ("model", *keys)
        fields = {k.text: v for k, v in zip(item.items[::2], item.items[1::2], strict=True) if k.text in own}
        settings = settings_of(item, what, self.faults, names=self.beside, skip=own, numbers=True, marks=self.marks)
        if "model" not in fields:
            self.faults.append((item.line, f"{what}: key 'model' is missing"))
        return text_of(fields.get("model"), what, self.faults), settings, fields


def _layers(node: Node, what: str, faults: Faults) -> tuple[int, int] | None:
    """Return a half-open range of layers."""
    items = node.items if node.kind == "list" else []
    numbers = [n for item in items if (n := whole_of(item, what, faults)) is not None]
    if len(items) != 2:
        faults.append((node.line, f"{what}: expected [first, end], the end not included, got {seen(node)}"))
    return (numbers[0], numbers[1]) if len(numbers) == len(items) == 2 else None


def _vocabulary(node: Node, faults: Faults) -> Vocabulary:
    fields = mapping(node, "vocabulary", ("source", "tokens", "pad_to_multiple_of"), faults)
    if node.kind == "mapping" and "source" not in fields:
        faults.append((node.line, "vocabulary: key 'source' is missing; give base, union or a model"))
    tokens = {}
    for token, item in (mapping(fields["tokens"], "tokens", None, faults) if "tokens" in fields else {}).items():
        what = f"token '{shown(token)}'"
        rule = mapping(item, what, ("source", "token", "token_id", "force"), faults)
        if item.kind == "mapping" and "source" not in rule:
            faults.append((item.line, f"{what}: key 'source' is missing; give a model or zero"))
        if {"token", "token_id"} <= rule.keys():
            faults.append((item.line, f"{what}: 'token' and 'token_id' are both given"))
        tokens[token] = TokenRule(
            text_of(rule.get("source"), f"{what}: source", faults) or "",
            any_text_of(rule.get("token"), f"{what}: token", faults),
            whole_of(rule.get("token_id"), f"{what}: token_id", faults),
            flag_of(rule.get("force"), f"{what}: force", faults),
        )
    multiple = whole_of(fields.get("pad_to_multiple_of"), "pad_to_multiple_of", faults, least=1)
    return Vocabulary(text_of(fields.get("source"), "vocabulary: source", faults) or "", tokens, multiple)


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
    lines = [f"method: {flow(recipe.method)}"]
    lines += [] if recipe.base is None else [f"base: {flow(recipe.base)}"]
    if recipe.models or not recipe.slices:
        settings = recipe.settings or ({},) * len(recipe.models)
        pairs = zip(recipe.models, settings, strict=False)  # what is lost is found by the comparison below
        lines += ["models:", *(f"  - {_model_line(model, given)}" for model, given in pairs)]
    lines += ["slices:"] if recipe.slices else []
    for part in recipe.slices:
        lines.append("  - sources:")
        lines += [f"      - {_model_line(s.model, {'layers': s.layers, **s.settings})}" for s in part.sources]
        lines += [] if part.base is None else [f"    base: {flow(part.base)}"]
        lines += ["    parameters:", *_settings_lines(part.parameters, "      ")] if part.parameters else []
    lines += ["parameters:", *_settings_lines(recipe.parameters, "  ")] if recipe.parameters else []
    lines += [f"copy: {flow(recipe.copy)}"] if recipe.copy else []
    lines += [f"drop: {flow(recipe.drop)}"] if recipe.drop else []
    lines += [] if recipe.mask is None else [f"mask: {flow(recipe.mask)}"]
    if recipe.dtype is not None:
        words = {name: word for word, name in DTYPES.items()}
        lines.append(f"dtype: {flow(words.get(recipe.dtype, recipe.dtype))}")
    lines += [] if recipe.compute_dtype is None else [f"compute_dtype: {flow(recipe.compute_dtype)}"]
    lines += [] if recipe.vocabulary is None else _vocabulary_lines(recipe.vocabulary)
    lines += [] if recipe.chat_template is None else [f"chat_template: {flow(recipe.chat_template)}"]
    gigabytes, rest = divmod(recipe.shard_bytes, 10**9)
    size = recipe.shard_bytes if rest else f"{gigabytes}GB"
    lines += [f"seed: {flow(recipe.seed)}", f"shard_size: {size}"]
    text = "\n".join(lines) + "\n"
    if parse_recipe(text, "recipe to be written") != recipe:
        raise ArgumentError("this recipe cannot be written: its text would be read as another recipe")
    return text


def _model_line(model: str, settings: Mapping[str, object]) -> str:
    return flow({"model": model, **{key_of(n): v for n, v in settings.items()}} if settings else model)


def _settings_lines(settings: Settings, indent: str) -> list[str]:
    lines = []
    for name, setting in settings.items():
        if isinstance(setting, Schedule):
            lines += [f"{indent}{key_of(name)}:", *(f"{indent}  - {entry}" for entry in schedule_entries(setting))]
        else:
            lines.append(f"{indent}{key_of(name)}: {flow(setting)}")
    return lines


def _vocabulary_lines(vocabulary: Vocabulary) -> list[str]:
    lines = ["vocabulary:", f"  source: {flow(vocabulary.source)}"]
    lines += ["  tokens:"] if vocabulary.tokens else []
    for token, rule in vocabulary.tokens.items():
        given = {"token": rule.token, "token_id": rule.token_id, "force": rule.force or None}
        entry = {"source": rule.source, **{key: value for key, value in given.items() if value is not None}}
        lines.append(f"    {flow(token)}: {flow(entry)}")
    if vocabulary.pad_to_multiple_of is not None:
        lines.append(f"  pad_to_multiple_of: {vocabulary.pad_to_multiple_of}")
    return lines


def _word(node: Node | None, what: str, words: Collection[str], faults: Faults) -> str | None:
    """Return one of a few words."""
    word = text_of(node, what, faults)
    if node and word is not None and word not in words:
        faults.append((node.line, f"{what}: unknown dtype '{shown(word)}'; {nearest(word, words)}"))
    return word


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


def _too_large(what: str) -> RecipeError:
    return RecipeError(what, expected=f"at most {MAX_RECIPE_BYTES} bytes", got="more")
