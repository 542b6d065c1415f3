"""One mergekit recipe as written: what its keys say, before a method or a model is looked at."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from weightsmith.dialect.setting import Level, read_level
from weightsmith.dialect.tree import Notes, fields_of, items_of, number, text_of, value_of
from weightsmith.errors import nearest, shown
from weightsmith.recipe import DTYPES, TokenRule, Vocabulary
from weightsmith.strict_yaml import Faults, Node, seen

KEYS = (
    "merge_method",
    "models",
    "slices",
    "modules",
    "base_model",
    "parameters",
    "dtype",
    "out_dtype",
    "tokenizer_source",
    "tokenizer",
    "chat_template",
    "name",
)


@dataclass(frozen=True)
class Input:
    """One model of a part: its layers, None for all of them, and the parameters beside it."""

    model: str
    line: int
    parameters: Level
    layers: tuple[int, int] | None = None


@dataclass(frozen=True)
class Part:
    """One output slice, or the whole model."""

    line: int
    inputs: tuple[Input, ...]
    base: str | None = None
    parameters: Level = field(default_factory=dict)


@dataclass(frozen=True)
class Document:
    """One recipe.

    Attributes:
        line: Where it begins.
        method: The peer's name of the method, and its line.
        parts: Output slices, or the one part that is the whole model.
        whole: Whether it was written with `models`.
        base: Reference of the base model.
        levels: `parameters` of the module and of the document, higher precedence first.
        dtype: What inputs are cast to, as safetensors names it.
        out_dtype: What the result is cast to.
        vocabulary: What the tokenizer keys say.
        chat_template: Its text.
        name: What other documents call the result.
        is_sound: Whether its text has no faults, so that what is not there was not meant to be.
    """

    line: int
    method: str
    method_line: int
    parts: tuple[Part, ...]
    whole: bool
    base: str | None
    levels: tuple[Level, ...]
    dtype: str | None
    out_dtype: str | None
    vocabulary: Vocabulary | None
    chat_template: str | None
    name: str | None
    is_sound: bool = True

    @property
    def references(self) -> tuple[str, ...]:
        """Every model named, once, in order."""
        named = [i.model for part in self.parts for i in part.inputs]
        rules = self.vocabulary.tokens.values() if self.vocabulary else []
        named += [r.source for r in rules if r.source != "zero"]
        if self.vocabulary and self.vocabulary.source not in ("base", "union"):
            named.append(self.vocabulary.source)
        bases = [self.base, *(part.base for part in self.parts)]
        return tuple(dict.fromkeys([*(b for b in bases if b is not None), *named]))


def read_document(root: Node, faults: Faults, notes: Notes) -> Document | None:
    """Return what one document says; None, with faults added, where it says nothing that could be used."""
    before = len(faults)
    fields = fields_of(root, "recipe", KEYS, faults, notes)
    faults += [(root.line, "key 'merge_method' is missing")] if "merge_method" not in fields else []
    method = text_of(fields.get("merge_method"), "merge_method", faults)
    levels = [read_level(fields.get("parameters"), "parameters", faults, notes)]
    holder = fields
    given = [key for key in ("models", "slices", "modules") if key in fields and fields[key].items]
    if len(given) != 1:
        told = f"expected one of models, slices and modules, got {' and '.join(given) if given else 'none'}"
        faults.append((root.line, told))
    elif given == ["modules"]:
        module = _module(fields["modules"], faults, notes)
        holder = (
            {} if module is None else fields_of(module, "module", ("models", "slices", "parameters"), faults, notes)
        )
        levels.insert(0, read_level(holder.get("parameters"), "module: parameters", faults, notes))
    parts = _parts(holder, faults, notes)
    document = Document(
        line=root.line,
        method=method or "",
        method_line=fields["merge_method"].line if "merge_method" in fields else root.line,
        parts=parts,
        whole="models" in holder,
        base=_reference(fields.get("base_model"), "base_model", faults, notes),
        levels=tuple(levels),
        dtype=_dtype(fields.get("dtype"), "dtype", faults),
        out_dtype=_dtype(fields.get("out_dtype"), "out_dtype", faults),
        vocabulary=_vocabulary(fields, faults, notes),
        chat_template=_template(fields.get("chat_template"), faults),
        name=text_of(fields.get("name"), "name", faults),
    )
    return replace(document, is_sound=len(faults) == before) if method and parts else None


def _module(node: Node, faults: Faults, notes: Notes) -> Node | None:
    modules = fields_of(node, "modules", (), faults, notes)
    if len(modules) > 1:
        told = "modules: several towers in one recipe are not supported; where all are merged alike write 'models'"
        told += ", and where they differ use parameters with 'filter', one for the names of each tower"
        faults.append((node.line, told))
        return None
    return next(iter(modules.values()), None)


def _parts(fields: Mapping[str, Node], faults: Faults, notes: Notes) -> tuple[Part, ...]:
    if "models" in fields and fields["models"].items:
        node = fields["models"]
        found = [
            _input(n, f"model {i}", False, faults, notes) for i, n in enumerate(items_of(node, "models", faults), 1)
        ]
        inputs = tuple(i for i in found if i is not None)
        return (Part(node.line, inputs),) if inputs else ()
    parts = []
    for place, node in enumerate(items_of(fields["slices"], "slices", faults) if "slices" in fields else [], 1):
        what = f"slice {place}"
        known = ("sources", "base_model", "parameters")
        inner = fields_of(node, what, known, faults, notes, others=("residual_weight",))
        if "sources" not in inner:
            faults.append((node.line, f"{what}: key 'sources' is missing"))
            continue
        sources = items_of(inner["sources"], f"{what}: sources", faults)
        found = [_input(n, f"{what}, source {i}", True, faults, notes) for i, n in enumerate(sources, 1)]
        lengths = {i.layers[1] - i.layers[0] for i in found if i is not None and i.layers is not None}
        if len(lengths) > 1:
            faults.append((node.line, f"{what}: all sources have as many layers; got {sorted(lengths)}"))
        base = _reference(inner.get("base_model"), f"{what}: base_model", faults, notes)
        level = read_level(inner.get("parameters"), f"{what}: parameters", faults, notes)
        parts.append(Part(node.line, tuple(i for i in found if i is not None), base, level))
    return tuple(parts)


def _input(node: Node, what: str, ranged: bool, faults: Faults, notes: Notes) -> Input | None:
    known = ("model", "layer_range", "parameters") if ranged else ("model", "parameters")
    fields = fields_of(node, what, known, faults, notes)
    faults += [(node.line, f"{what}: key '{key}' is missing") for key in known[:-1] if node.items and key not in fields]
    model = _reference(fields.get("model"), what, faults, notes)
    layers = _layers(fields["layer_range"], what, faults) if "layer_range" in fields else None
    level = read_level(fields.get("parameters"), f"{what}: parameters", faults, notes)
    return None if model is None else Input(model, node.line, level, layers)


def _layers(node: Node, what: str, faults: Faults) -> tuple[int, int] | None:
    values = [number(value_of(n, what, faults) or 0) for n in node.items] if node.kind == "list" else []
    whole = [int(v) for v in values if v is not None and float(v).is_integer()]
    if len(values) != 2 or len(whole) != 2 or not 0 <= whole[0] < whole[1]:
        told = f"{what}: layer_range: expected [first, one after the last], counted from 0, got {seen(node)}"
        faults.append((node.line, told))
        return None
    return whole[0], whole[1]


def _reference(node: Node | None, what: str, faults: Faults, notes: Notes) -> str | None:
    """Return a model's reference as one text: `path@revision+adapter`."""
    if node is None or node.kind == "scalar":
        return text_of(node, what, faults)
    fields = fields_of(node, what, ("model", "lora"), faults, notes, others=("override_architecture",))
    if "model" not in fields:
        faults.append((node.line, f"{what}: key 'model' is missing"))
    parts = [_path(fields[key], f"{what}: {key}", faults, notes) for key in ("model", "lora") if key in fields]
    return "+".join(part for part in parts if part) or None


def _path(node: Node, what: str, faults: Faults, notes: Notes) -> str | None:
    if node.kind == "scalar":
        return text_of(node, what, faults)
    fields = fields_of(node, what, ("path", "revision"), faults, notes)
    path, revision = (text_of(fields.get(key), what, faults) for key in ("path", "revision"))
    if path is None:
        faults.append((node.line, f"{what}: key 'path' is missing"))
    return path if revision is None else f"{path}@{revision}"


def _dtype(node: Node | None, what: str, faults: Faults) -> str | None:
    word = text_of(node, what, faults)
    if node is None or word is None:
        return None
    plain = word.removeprefix("torch.")
    if plain not in DTYPES:
        hint = "weights are not merged as whole numbers" if plain == "int64" else nearest(plain, DTYPES)
        faults.append((node.line, f"{what}: unknown dtype '{shown(word)}'; {hint}"))
    return DTYPES.get(plain)


def _template(node: Node | None, faults: Faults) -> str | None:
    if node is None or node.kind != "scalar":
        return text_of(node, "chat_template", faults)
    return node.text if value_of(node, "chat_template", faults) else None


def _vocabulary(fields: Mapping[str, Node], faults: Faults, notes: Notes) -> Vocabulary | None:
    old = _reference(fields.get("tokenizer_source"), "tokenizer_source", faults, notes)
    node = fields.get("tokenizer")
    if node is None or (node.kind == "scalar" and value_of(node, "tokenizer", []) is None):
        return Vocabulary(old) if old is not None else None
    if old is not None:
        faults.append((node.line, "tokenizer: expected this or tokenizer_source, got both"))
    inner = fields_of(node, "tokenizer", ("source", "tokens", "pad_to_multiple_of"), faults, notes)
    tokens: dict[str, TokenRule] = {}
    if "tokens" in inner and inner["tokens"].items:
        for token, rule in fields_of(inner["tokens"], "tokenizer: tokens", (), faults, notes).items():
            found = _token(rule, f"tokenizer: token '{shown(token)}'", faults, notes)
            tokens |= {token: found} if found is not None else {}
    source = _reference(inner.get("source"), "tokenizer: source", faults, notes) or "union"
    return Vocabulary(source, tokens, _multiple(inner.get("pad_to_multiple_of"), faults))


def _multiple(node: Node | None, faults: Faults) -> int | None:
    value = value_of(node, "tokenizer: pad_to_multiple_of", faults) if node is not None else None
    if node is None or value is None:
        return None
    found = number(value)
    if found is None or not float(found).is_integer() or found < 1:
        faults.append((node.line, f"tokenizer: pad_to_multiple_of: expected a whole number from 1, got {seen(node)}"))
        return None
    return int(found)


def _token(node: Node, what: str, faults: Faults, notes: Notes) -> TokenRule | None:
    fields = fields_of(node, what, ("source", "force"), faults, notes)
    force = "force" in fields and value_of(fields["force"], f"{what}: force", faults) is True
    source = fields.get("source")
    if source is None or (source.kind == "scalar" and value_of(source, what, []) is None):
        if force:
            faults.append((node.line, f"{what}: key 'source' is missing; name a model, or write {{kind: zero}}"))
        else:
            notes.append(
                f"line {node.line}: {what} has no source, and no effect; mergekit fails where a model lacks it"
            )
        return None
    if source.kind != "mapping" or not any(key.text == "kind" for key in source.items[::2]):
        model = _reference(source, f"{what}: source", faults, notes)
        return None if model is None else TokenRule(model, force=force)
    inner = fields_of(source, f"{what}: source", ("kind", "model", "token", "token_id"), faults, notes)
    if inner["kind"].text == "zero":
        return TokenRule("zero", force=force)
    model = _reference(inner.get("model"), f"{what}: source: model", faults, notes)
    token = inner["token"].text if "token" in inner else None
    number_ = number(value_of(inner["token_id"], what, faults) or 0) if "token_id" in inner else None
    if inner["kind"].text != "model_token" or model is None or (token is None) == (number_ is None):
        told = f"{what}: source: expected {{kind: zero}}, or {{kind: model_token, model: ..., token: ... or token_id: ...}}"
        faults.append((source.line, told))
        return None
    return TokenRule(model, token, None if number_ is None else int(number_), force)
