"""Which tensors of a base become factors, which an adapter can replace as a whole, and which it cannot represent."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from weightsmith.checkpoint.adapter_write import Target
from weightsmith.checkpoint.entry import ARITHMETIC_DTYPES, Checkpoint, Entry
from weightsmith.checkpoint.names import is_expert, kind_of, layer_of, matches, tied_pair
from weightsmith.distance import are_numbers
from weightsmith.errors import shown

_WITH_HEAD = ("LMHeadModel", "ForCausalLM", "ForConditionalGeneration", "ForMaskedLM")


@dataclass(frozen=True)
class Selection:
    """What becomes of every tensor that base and finetuned model have.

    Attributes:
        targets: Those that become factors.
        others: All others whose numbers can be compared.
        blobs: Those without arithmetic, compared byte for byte.
        savable: Module path to its tensors, where the adapter can replace them.
        reasons: Why a tensor of `others` cannot be replaced.
        missing: Tensors that cannot be compared, with the reason.
    """

    targets: tuple[Target, ...]
    others: tuple[str, ...]
    blobs: tuple[str, ...]
    savable: Mapping[str, tuple[str, ...]]
    reasons: Mapping[str, str]
    missing: Mapping[str, str]


def select(
    base: Checkpoint, finetuned: Mapping[str, Entry], only: Sequence[str], save_rest: bool, faults: list[str]
) -> Selection:
    """Sort the tensors; what cannot be done is added to `faults`."""
    chosen = [n for n, e in base.tensors.items() if _is_wanted(n, e, only)]
    for pattern in only:
        if not any(matches(pattern, name) for name in chosen):
            faults.append(f"--only '{shown(pattern)}' matches no weight of two or more axes of the base")
    if not chosen and not only:
        faults.append("the base has no weight of two axes besides embeddings, heads and norms; name some with --only")
    tied = tied_names(base)
    for name in chosen:
        entry, other = base.tensors[name], finetuned.get(name)
        if other is None:
            faults.append(f"the finetuned model lacks '{shown(name)}'")
        elif not are_numbers(entry, other):
            told = f"{entry.dtype} {entry.shape} in the base and {other.dtype} {other.shape} in the finetuned model"
            faults.append(f"'{shown(name)}' is {told}")
        if name in tied:
            faults.append(f"'{shown(name)}' shares its storage with '{shown(tied[name])}', which PEFT leaves as it is")
    targets = _with_kinds(chosen, base, faults)
    return _sort_rest(base, finetuned, targets, tied, save_rest)


def _is_wanted(name: str, entry: Entry, only: Sequence[str]) -> bool:
    if not name.endswith(".weight") or len(entry.shape) < 2 or 0 in entry.shape or entry.dtype not in ARITHMETIC_DTYPES:
        return False
    if only:
        return any(matches(pattern, name) for pattern in only)
    is_table = name.removesuffix(".weight").endswith("bias")  # biases by relative position
    return len(entry.shape) == 2 and kind_of(name) not in ("embedding", "head", "norm") and not is_table


def tied_names(base: Checkpoint) -> dict[str, str]:
    """Return tensors whose storage another name shares, with that name; a head that a config ties may not be stored."""
    tied = {kept: alias for alias, kept in base.aliases.items()}
    pair = tied_pair(base.tensors)
    listed = base.config.get("architectures")
    has_head = isinstance(listed, list) and any(str(a).endswith(_WITH_HEAD) for a in listed)
    if pair and pair[1] not in base.tensors and base.config.get("tie_word_embeddings", has_head):
        tied.setdefault(*pair)
    return tied


def is_without_head(base: Checkpoint) -> bool:
    """Tell whether the config names a model with a head, and embedding and layers do not lie in one backbone."""
    listed = base.config.get("architectures")
    has_head = isinstance(listed, list) and any(str(a).endswith(("LMHeadModel", "ForCausalLM")) for a in listed)
    embedding = next((n for n in base.tensors if kind_of(n) == "embedding"), None)
    layer = next((n for n in base.tensors if layer_of(n) is not None), None)
    return bool(has_head and embedding and layer) and str(embedding).split(".")[0] != str(layer).split(".")[0]


def _with_kinds(chosen: Sequence[str], base: Checkpoint, faults: list[str]) -> tuple[Target, ...]:
    """Return the targets with how each is stored, as far as headers tell.

    A matrix (m, n) whose bias has n != m entries is stored [in, out]; one with m, [out, in]. Where a bias tells nothing, it
    is as all those matrices of the base of which it does, if they agree, and otherwise [out, in].
    """
    told = {n: _is_transposed(n, base) for n, e in base.tensors.items() if len(e.shape) == 2}
    known = {t for t in told.values() if t is not None}
    usual = known == {True}
    targets = []
    for name in chosen:
        shape = base.tensors[name].shape
        kind = "convolution"
        if len(shape) == 2 and kind_of(name) == "embedding" and _bias(name) not in base.tensors:
            kind = "embedding"
        elif len(shape) == 2:
            seen = told[name]
            kind = "transposed" if (usual if seen is None else seen) else "linear"
        targets.append(Target(name, shape, kind))
    by_kind = {t.kind: t.name for t in reversed(targets)}
    if "linear" in by_kind and "transposed" in by_kind:
        faults.append(
            f"'{shown(by_kind['linear'])}' is stored [out, in] and '{shown(by_kind['transposed'])}' [in, out]; one adapter"
            " holds one kind: choose with --only"
        )
    return tuple(targets)


def _bias(name: str) -> str:
    return name.removesuffix("weight") + "bias"


def _is_transposed(name: str, base: Checkpoint) -> bool | None:
    (rows, columns), bias = base.tensors[name].shape, base.tensors.get(_bias(name))
    if not name.endswith(".weight") or bias is None or rows == columns or bias.shape not in ((rows,), (columns,)):
        return None
    return bias.shape == (columns,)


def _sort_rest(
    base: Checkpoint,
    finetuned: Mapping[str, Entry],
    targets: tuple[Target, ...],
    tied: Mapping[str, str],
    save_rest: bool,
) -> Selection:
    taken = {t.name for t in targets}
    others, blobs, missing = [], [], {n: "the base lacks it" for n in finetuned if n not in base.tensors}
    for name, entry in base.tensors.items():
        other = finetuned.get(name)
        if name in taken:
            continue
        if other is None:
            missing[name] = "the finetuned model lacks it"
        elif are_numbers(entry, other):
            others.append(name)
        elif (entry.dtype, entry.shape) == (other.dtype, other.shape):
            blobs.append(name)
        else:
            missing[name] = f"it is {entry.dtype} {entry.shape} in the base and {other.dtype} {other.shape} here"
    missing = {n: why for n, why in missing.items() if n not in base.aliases}
    savable, reasons = _savable(base, {*others}, taken, tied)
    if not save_rest:
        savable, reasons = {}, dict.fromkeys(others, "not among the targets; see --save-rest")
    return Selection(targets, tuple(others), tuple(blobs), savable, reasons, missing)


def _savable(
    base: Checkpoint, others: set[str], taken: set[str], tied: Mapping[str, str]
) -> tuple[dict[str, tuple[str, ...]], dict[str, str]]:
    """Return the modules that PEFT replaces as a whole, found by the end of their path, and why the others are none."""
    inside: dict[str, list[str]] = {}
    paths = set()
    for name in base.tensors:
        parts = name.split(".")
        inside.setdefault(".".join(parts[:-1]), []).append(name)
        paths |= {".".join(parts[:i]) for i in range(1, len(parts))}
    ends: dict[str, int] = {}  # how many paths end so
    wanted = set(inside)
    for path in paths:
        for start in range(len(path)):
            if path[start:] in wanted:
                ends[path[start:]] = ends.get(path[start:], 0) + 1
    savable: dict[str, tuple[str, ...]] = {}
    reasons: dict[str, str] = {}
    parents = {p.rpartition(".")[0] for p in paths}
    for path, names in inside.items():
        why = ""
        if not path or path in parents:
            why = "it is no part of a module without further modules"
        elif not taken.isdisjoint(names):
            why = "its module has factors, beside which PEFT saves nothing"
        elif any(n in tied for n in names):
            why = "it shares its storage with another tensor, which PEFT leaves as it is"
        elif any(map(is_expert, names)):
            why = "it belongs to an expert, which a loaded model may hold together with others"
        elif not others.issuperset(names):
            why = "its module has other tensors that differ in shape or dtype"
        elif ends[path] > 1:
            why = "PEFT finds modules by the end of their path, and another ends like this one"
        if why:
            reasons |= dict.fromkeys(names, why)
        else:
            savable[path] = tuple(names)
    return savable, reasons
