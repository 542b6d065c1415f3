"""LoRA adapters in the layout of PEFT, laid over the entries of their base."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from weightsmith.checkpoint.entry import ARITHMETIC_DTYPES, Checkpoint, Entry, LowRank
from weightsmith.checkpoint.folder import check_member, read_config, read_weights
from weightsmith.checkpoint.names import tied_pair
from weightsmith.errors import CheckpointError, nearest, raise_all, shown

PATTERN_CHARACTERS = 512
PATTERN_COUNT = 2000
PATH_CHARACTERS = 256  # of a module that patterns are matched with
PATTERN_CHOICES = 10_000
RANK = 2**31
PREFIX = "base_model.model."

_ELSEWHERE = "Merge it with PEFT, or train one that is plain LoRA"
_MATRIX = re.compile(r"(.+)\.(lora_[AB])(?:\.([^.]+))?\.weight", re.DOTALL)
_EMBEDDING = re.compile(r"(.+)\.lora_embedding_([AB])(?:\.([^.]+))?", re.DOTALL)
_SAVED = re.compile(r"\.modules_to_save(?:\.default)?(?=\.)|\.base_layer(?=\.weight$)")
# Settings that say how the adapter was trained, not what it adds to the weights.
_HARMLESS = frozenset((
    "auto_mapping", "base_model_name_or_path", "eva_config", "exclude_modules", "inference_mode",
    "layers_pattern", "layers_to_transform", "loftq_config", "lora_dropout", "megatron_core", "peft_version",
    "qalora_group_size", "revision", "runtime_config", "target_modules", "task_type",
))  # fmt: skip
_READ = frozenset((
    "alpha_pattern", "bias", "fan_in_fan_out", "init_lora_weights", "lora_alpha", "modules_to_save",
    "peft_type", "r", "rank_pattern", "use_rslora",
))  # fmt: skip
_INITIAL = (None, True, False, "gaussian", "eva", "orthogonal")  # those that leave the base's weights alone
# The parts of a pattern: escape, class, quantifier, group, bar, and characters that mean themselves.
_TOKEN = re.compile(r"\\[.dw\-]|\[[\w\-]+\]|[*+]\??|\?|\((?:\?:)?|\)|\||[\w.\-/^$]")

Number = TypeVar("Number", int, float)


@dataclass
class _Settings:
    """What adapter_config.json says, in PEFT's words."""

    rank: int = 8
    alpha: float = 8.0
    rank_pattern: list[tuple[re.Pattern[str], int]] = field(default_factory=list)
    alpha_pattern: list[tuple[re.Pattern[str], float]] = field(default_factory=list)
    is_rank_stabilized: bool = False
    is_transposed: bool = False
    modules_to_save: tuple[str, ...] = ()


@dataclass
class _Pair:
    """The two factors found for one module."""

    down: Entry | None = None
    up: Entry | None = None
    is_embedding: bool = False


def apply_adapter(base: Checkpoint, adapter_folder: Path, follow_symlinks: bool = False) -> Checkpoint:
    """Return the base with a LoRA adapter laid over it; nothing is computed, only headers are read.

    For a module with factors A (rank, in) and B (out, rank):

        weight = base + scale * B @ A         scale = alpha / rank, with rsLoRA alpha / sqrt(rank)

    the product transposed where the weight is stored [in, out] (fan_in_fan_out, embeddings). A convolution's
    weight (out, in, ...) is seen as (out, in * ...). `modules_to_save` replace the base's tensors.

    Args:
        base: What the adapter was trained from.
        adapter_folder: Holds adapter_config.json and adapter_model.safetensors or adapter_model.bin.
        follow_symlinks: Let links of the folder lead outside it.

    Raises:
        CheckpointError: The adapter is not plain LoRA, does not fit the base, or changes no tensor; all
            faults are listed together.
    """
    folder = Path(os.path.abspath(adapter_folder))
    what = f"adapter '{shown(folder)}'"
    faults: list[str] = []
    settings = _read_settings(_member(folder, ("adapter_config.json",), follow_symlinks), faults)
    if faults:
        raise_all(faults, CheckpointError, what, _ELSEWHERE)
    file = _member(folder, ("adapter_model.safetensors", "adapter_model.bin"), follow_symlinks)
    entries, _, aliases = read_weights(file)
    entries.update({alias: replace(entries[kept], name=alias) for alias, kept in aliases.items()})
    pairs, saved = _sort(entries, settings, faults)
    tensors = dict(base.tensors)
    changed = 0
    for name, entry in saved.items():
        if _is_target(name, base, faults):
            changed += 1
            shape = base.tensors[name].shape
            if entry.shape != shape:
                faults.append(f"'{shown(entry.name)}' has shape {entry.shape}, and '{shown(name)}' {shape}")
            tensors[name] = replace(entry, name=name)
    for path, pair in pairs.items():
        name = f"{path}.weight"
        if _is_target(name, base, faults):
            update = _low_rank(path, pair, tensors[name], settings, faults)
            if update:
                changed += update.scale != 0
                tensors[name] = replace(tensors[name], low_rank=update)
    if not changed and not faults:
        faults.append("it changes 0 tensors of the base")
    if faults:
        raise_all(faults, CheckpointError, f"{what} on model '{shown(base.reference)}'", _ELSEWHERE)
    notes = _notes(base, [*saved, *(f"{path}.weight" for path in pairs)], folder)
    reference = f"{base.reference}+{adapter_folder}"
    return replace(base, reference=reference, tensors=tensors, files=(*base.files, file), notes=(*base.notes, *notes))


def _member(folder: Path, names: tuple[str, ...], follow_symlinks: bool) -> Path:
    """Return the one of the named files that the folder holds."""
    found = [name for name in names if os.path.lexists(folder / name)]
    if len(found) != 1:
        raise CheckpointError(
            f"adapter '{shown(folder)}' " + ("is ambiguous" if found else "is incomplete"),
            expected=" or ".join(f"'{name}'" for name in names),
            got="both" if found else "none",
            do="Keep one of them" if found else "Name a folder that PEFT saved",
        )
    fault = check_member(folder / found[0], folder, follow_symlinks=follow_symlinks)
    if fault:
        raise CheckpointError(fault, expected="a regular file", do="Copy the file into the folder")
    return folder / found[0]


def _read_settings(path: Path, faults: list[str]) -> _Settings:
    config = read_config(path)
    settings = _Settings()
    kind = config.get("peft_type")
    if kind != "LORA":
        faults.append(f"its peft_type is {shown(repr(kind))}, not 'LORA'")
        return settings
    faults.extend(
        f"it sets {shown(key)}, which is not plain LoRA"
        for key, value in config.items()
        if value and key not in _HARMLESS and key not in _READ
    )
    if config.get("bias", "none") != "none":
        faults.append(f"it trains biases (bias = {shown(repr(config['bias']))})")
    initial = config.get("init_lora_weights")
    if not any(initial is ok or (isinstance(ok, str) and initial == ok) for ok in _INITIAL):
        faults.append(f"its init_lora_weights {shown(repr(initial))} changes the base's weights")
    settings.rank = _rank(config.get("r", 8), "r", faults)
    settings.alpha = _alpha(config.get("lora_alpha", 8), "lora_alpha", faults)
    settings.rank_pattern = _read_patterns(config, "rank_pattern", _rank, faults)
    settings.alpha_pattern = _read_patterns(config, "alpha_pattern", _alpha, faults)
    for key in ("use_rslora", "fan_in_fan_out"):
        if config.get(key) not in (None, True, False):
            faults.append(f"its {key} is {shown(repr(config[key]))}, not true or false")
    settings.is_rank_stabilized = bool(config.get("use_rslora"))
    settings.is_transposed = bool(config.get("fan_in_fan_out"))
    listed = config.get("modules_to_save") or ()
    if not isinstance(listed, list | tuple) or not all(isinstance(m, str) and m for m in listed):
        faults.append("its modules_to_save is not a list of names")
        listed = ()
    settings.modules_to_save = tuple(listed)
    return settings


def _read_patterns(
    config: dict[str, Any], key: str, read: Callable[[Any, str, list[str]], Number], faults: list[str]
) -> list[tuple[re.Pattern[str], Number]]:
    """Return the patterns of a setting and their numbers, in the file's order: the first that fits wins."""
    table = config.get(key) or {}
    if not isinstance(table, dict) or len(table) > PATTERN_COUNT:
        faults.append(f"its {key} is not a mapping of at most {PATTERN_COUNT} patterns")
        return []
    patterns = []
    for pattern, value in table.items():
        number = read(value, f"{key}['{shown(pattern)}']", faults)
        compiled = _compile(pattern, key, faults)
        if compiled:
            patterns.append((compiled, number))
    return patterns


def _rank(value: Any, key: str, faults: list[str]) -> int:
    if type(value) is int and 1 <= value <= RANK:
        return value
    faults.append(f"its {key} is {shown(value)}, not a rank from 1")
    return 1


def _alpha(value: Any, key: str, faults: list[str]) -> float:
    if type(value) in (int, float):
        try:
            number = float(value)
        except OverflowError:
            number = math.inf
        if math.isfinite(number):
            return number
    faults.append(f"its {key} is {shown(value)}, not a finite number")
    return 1.0


def _compile(pattern: str, key: str, faults: list[str]) -> re.Pattern[str] | None:
    """Compile a pattern as PEFT matches it, at the end of a module's path, if it cannot take long to match.

    Allowed are literals, `.`, classes, one group level and `*`, `+`, `?` on single characters; the ways to
    split a name among its choices must stay few.
    """
    tokens = _TOKEN.findall(pattern) if len(pattern) <= PATTERN_CHARACTERS else []
    choices, bars, depth = 1, 0, 0
    is_sound = len(pattern) <= PATTERN_CHARACTERS and "".join(tokens) == pattern
    for before, token in zip(["(", *tokens], tokens, strict=False):
        depth += (token[0] == "(") - (token == ")")
        is_quantifier = token[0] in "*+?"
        is_sound &= depth in (0, 1) and not (is_quantifier and (before[0] in "(|)^$*+?"))
        choices *= 64 if token[0] in "*+" else 2 if token == "?" else 1
        bars = 0 if token[0] == "(" else bars + (token == "|")
        choices *= bars + 1 if token == ")" else 1
    if not is_sound or depth or choices > PATTERN_CHOICES:
        faults.append(
            f"its {key} holds the pattern '{shown(pattern)}', which is not simple enough to be matched safely"
        )
        return None
    try:
        return re.compile(rf"(.*\.)?({pattern})$")
    except re.error as error:
        faults.append(f"its {key} holds the pattern '{shown(pattern)}', which is no pattern: {error}")
        return None


def _sort(
    entries: dict[str, Entry], settings: _Settings, faults: list[str]
) -> tuple[dict[str, _Pair], dict[str, Entry]]:
    """Return the pairs of factors by module path, and the entries that replace a tensor by its name."""
    pairs: dict[str, _Pair] = {}
    saved: dict[str, Entry] = {}
    for key, entry in entries.items():
        short = key.removeprefix(PREFIX)
        found = _MATRIX.fullmatch(short) or _EMBEDDING.fullmatch(short)
        if short == key or ".lora_magnitude_vector" in key or (".lora_" in key and key.endswith(".bias")):
            faults.append(f"its tensor '{shown(key)}' is no part of plain LoRA")
        elif found:
            path, role, _ = found.groups()
            pair = pairs.setdefault(path, _Pair(is_embedding=found.re is _EMBEDDING))
            slot = "down" if role[-1] == "A" else "up"
            if getattr(pair, slot) is not None or pair.is_embedding != (found.re is _EMBEDDING):
                faults.append(f"its tensor '{shown(key)}' is a second factor of '{shown(path)}'")
            setattr(pair, slot, entry)
        elif short.endswith(".base_layer.weight") or _is_saved(short, settings.modules_to_save):
            saved[_SAVED.sub("", short)] = entry
        else:
            faults.append(f"its tensor '{shown(key)}' is neither a LoRA factor nor part of modules_to_save")
    return pairs, saved


def _is_saved(name: str, modules: tuple[str, ...]) -> bool:
    """Tell whether a tensor lies in one of the modules, named by the end of their path."""
    dotted = f".{name}"
    return any(f".{module}." in dotted for module in modules)


def _is_target(name: str, base: Checkpoint, faults: list[str]) -> bool:
    if name in base.tensors:
        return True
    if name in base.aliases:
        faults.append(f"it changes '{shown(name)}', which shares its storage with '{base.aliases[name]}'")
    else:
        faults.append(f"it changes '{shown(name)}', which the base lacks; {_hint(name, base)}")
    return False


def _hint(name: str, base: Checkpoint) -> str:
    """Return the nearest names, sought among those that end alike so that a large model stays quick."""
    tail = name.rsplit(".", 2)[-2:]
    return nearest(name, [n for n in base.tensors if n.rsplit(".", 2)[-2:] == tail][:500] or [*base.tensors][:500])


def _low_rank(path: str, pair: _Pair, target: Entry, settings: _Settings, faults: list[str]) -> LowRank | None:
    down, up = pair.down, pair.up
    if down is None or up is None:
        have, lack = ("B", "A") if down is None else ("A", "B")
        faults.append(f"module '{shown(path)}' has a factor {have} without {lack}")
        return None
    if len(path) > PATH_CHARACTERS and (settings.rank_pattern or settings.alpha_pattern):
        faults.append(f"module '{shown(path)}' has a path of over {PATH_CHARACTERS} characters to match")
        return None
    rank = next((v for p, v in settings.rank_pattern if p.match(path)), settings.rank)
    alpha = next((v for p, v in settings.alpha_pattern if p.match(path)), settings.alpha)
    scale = alpha / math.sqrt(rank) if settings.is_rank_stabilized else alpha / rank
    transposed = pair.is_embedding or (settings.is_transposed and len(target.shape) == 2)
    problem = _shape_problem(down.shape, up.shape, target.shape, rank, transposed)
    if target.low_rank:
        problem = "its base already carries an adapter: merge that one first"
    for entry in (down, up, target):
        if entry.dtype not in ARITHMETIC_DTYPES:
            problem = f"'{shown(entry.name)}' is {entry.dtype}, which has no arithmetic here"
    if problem:
        faults.append(f"module '{shown(path)}': {problem}")
        return None
    flat_down = replace(down, shape=(rank, math.prod(down.shape[1:])))
    flat_up = replace(up, shape=(up.shape[0], rank))
    return LowRank(flat_down, flat_up, scale, transposed)


def _shape_problem(
    down: tuple[int, ...], up: tuple[int, ...], target: tuple[int, ...], rank: int, transposed: bool
) -> str:
    """Return what is wrong with factors down (rank, in, ...) and up (out, rank, 1...), '' if nothing."""
    sizes = f"A has shape {down}, B {up}, the base's weight {target}"
    if len(down) != len(target) or len(up) != len(target) or len(target) < 2:
        return f"{sizes}: they differ in their number of dimensions"
    if down[0] != up[1] or any(n != 1 for n in up[2:]):
        return f"{sizes}: A and B do not fit each other"
    if down[0] != rank:
        return f"{sizes}: the rank is {down[0]}, and the config says {rank}"
    made = (up[0], *down[1:])
    if (made[::-1] if transposed else made) != target:
        return f"{sizes}: their product does not have the shape of the weight"
    return ""


def _notes(base: Checkpoint, changed: list[str], folder: Path) -> list[str]:
    """Return what to tell about tensors that the adapter changes along with those it names."""
    notes = [
        f"adapter {shown(folder)} changes {shown(kept)}, and so also {shown(alias)}, which shares its storage"
        for alias, kept in base.aliases.items()
        if kept in set(changed)
    ]
    tied = tied_pair(base.tensors)
    if tied and tied[0] in changed and tied[1] not in base.tensors and base.config.get("tie_word_embeddings"):
        notes.append(f"adapter {shown(folder)} changes {shown(tied[0])}, and so also the tied head {tied[1]}")
    return notes
