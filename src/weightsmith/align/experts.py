"""Merging of experts inside a mixture-of-experts model: M-SMoE's alignment and frequency merge (2023, arXiv:2310.01334)."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from weightsmith.align.experts_layout import ExpertLayer, find_layers
from weightsmith.align.experts_tables import read_frequencies, read_similarities
from weightsmith.align.experts_weights import LayerGroups, Weights, changes_of, match_experts, written_tensors
from weightsmith.align.publish import Edit, check_memory, publish, whole_job
from weightsmith.align.weights import single_threaded
from weightsmith.budget import usable_threads
from weightsmith.checkpoint.config_text import config_with_experts
from weightsmith.checkpoint.entry import Checkpoint
from weightsmith.checkpoint.read import fingerprint, open_checkpoint
from weightsmith.distance import reporter
from weightsmith.engine.stream import Stream
from weightsmith.errors import ArgumentError, MismatchError, raise_all, shown
from weightsmith.plan import Options
from weightsmith.run import Progress, check_place
from weightsmith.tensor.arrays import Array
from weightsmith.tensor.grouping import cosines, counts_kept, dominant, joined

LAYOUTS = ("same", "compact", "dominant")
GATE_UP = ("halves", "pairs")
MAP_FILE = "experts.json"
_PER_TOKEN = ("num_experts_per_tok", "num_experts_per_token", "top_k", "moe_topk", "moe_top_k", "moe_k")
ABOUT = "Experts of each mixture were merged in groups"
_LAYOUT_NOTES = {
    "same": "each expert's tensors hold its group's and the router is unchanged: it loads as before and takes as many bytes",
    "compact": f"the router keeps a row per former expert, and {MAP_FILE} says which merged expert each stands for: no"
    " library loads this as it is; transformers refuses it by shape",
    "dominant": "only the router rows of the dominant experts are kept: it loads with fewer experts, but what the other rows"
    " chose is lost, so that routing is approximate",
}


@dataclass(frozen=True)
class ExpertPlan:
    """What `merge_experts` will do, from headers alone.

    Attributes:
        model: The opened model.
        layers: Its layers with routed experts.
        kept: Per layer, how many experts will be left.
        frequencies: Per layer, how often each expert was used.
        similarities: Per layer, how alike every two experts are; None where router rows will tell.
        layout: "same", "compact" or "dominant".
        is_aligned: Whether hidden units are matched before merging.
        gate_up: How gate and up lie where one tensor holds both; None where none does or nothing is matched.
        bytes_written: Of the output's tensors.
        peak_bytes: Anonymous memory expected at the most.
        notes: What the user should know.
    """

    model: Checkpoint
    layers: tuple[ExpertLayer, ...]
    kept: tuple[int, ...]
    frequencies: tuple[Array, ...]
    similarities: tuple[Array, ...] | None
    layout: str
    is_aligned: bool
    gate_up: str | None
    bytes_written: int
    peak_bytes: int
    notes: tuple[str, ...]

    def summary(self) -> dict[str, Any]:
        """Return the plan as plain data."""
        return {
            "model": self.model.reference,
            "layout": self.layout,
            "layers": {
                layer.name: {
                    "experts": layer.experts,
                    "kept": kept,
                    "units": layer.units,
                    "stored": "stacked" if layer.kinds[0].is_stacked else "one by one",
                    "tensors": {kind.label: list(kind.shape) for kind in layer.kinds},
                    "router": layer.router.name,
                    "bytes": layer.nbytes,
                }
                for layer, kept in zip(self.layers, self.kept, strict=True)
            },
            "bytes_written": self.bytes_written,
            "peak_memory_bytes": self.peak_bytes,
            "notes": list(self.notes),
        }


@dataclass(frozen=True)
class ExpertMerge:
    """What `merge_experts` did.

    Attributes:
        out: The published folder.
        record: The content of its edit.json.
        seconds: Wall time.
        groups: Per layer, which expert stands for which.
        notes: What the user should know.
    """

    out: Path
    record: dict[str, Any]
    seconds: float
    groups: tuple[LayerGroups, ...]
    notes: tuple[str, ...]

    def summary(self) -> dict[str, Any]:
        """Return the result as plain data, for --json."""
        return {
            "out": str(self.out),
            "seconds": round(self.seconds, 3),
            "layers": {g.layer.name: g.summary() for g in self.groups},
            "notes": list(self.notes),
        }


def merge_experts(
    model: str | Path,
    *,
    out: str | Path,
    experts: int,
    frequencies: str | Path | None = None,
    similarity: str | Path | None = None,
    per_layer: bool = False,
    align: bool = True,
    gate_up: str | None = None,
    layout: str = "same",
    options: Options | None = None,
    force: bool = False,
    progress: Progress | None = None,
) -> ExpertMerge:
    """Merge the experts of every mixture in groups around those that are used most.

    With f_i how often expert i of a layer was used, its dominant experts are the most used; every other joins the dominant
    one d that is most similar to it, its hidden units permuted by P_i, and

        W_d := sum f_i P_i(W_i) / sum f_i  over the group;  P_i maximizes  <W_in_d, P_i(W_in_i)> + <W_out_d, P_i(W_out_i)>

    Where none of a group was used, its members weigh the same. A group of one stays bit for bit.

    Args:
        model: A file, folder, `model+adapter` or hub id, with `...experts.N...` tensors or tensors that stack all experts.
        out: The new folder; it appears complete or not at all.
        experts: Experts left per layer, on the average over layers: the most used of all layers stay, at least one in each.
        frequencies: A JSON or safetensors file that maps each layer, by name or number, to E numbers. Default: all equal.
        similarity: A file that maps each layer to a table (E, E), such as cosines of router logits over tokens. Default: cosines
            of router rows.
        per_layer: Leave exactly `experts` in each layer, for configs that know one number.
        align: Match hidden units first; False is for comparison.
        gate_up: Needed to match where one tensor holds gate and up of each unit: "halves" (all gates, then all ups, as in Llama 4
            or Mixtral) or "pairs" (in turn, as in gpt-oss).
        layout: "same": each expert's tensors become its group's, router unchanged; exact, loads as before, saves no bytes.
            "compact": merged experts only, router unchanged, and a map in experts.json; exact for a reader of the map.
            "dominant": merged experts only, with their dominant experts' router rows; loads as before, approximate.
        options: Threads and symbolic links.
        force: Replace an older output, once the new one is complete.
        progress: Called with (stage, bytes done, bytes in all).

    Raises:
        ArgumentError, CheckpointError, MismatchError, NonFiniteError, ResourceError: See `errors`; nothing is published.

    Differs from the paper: experts are aligned to their group's dominant one, not to the first of their layer; frequencies
    count as shares of their layer; among equals the expert least like those already chosen is dominant; similarity is
    data-free unless a file is given. No distillation, no low-rank part.
    Cost: per expert that joins, u^2 times its elements per unit, and one assignment of u hidden units, O(u^3) at worst.
    Memory for 5 copies of one expert's largest tensor, 3 matrices (u, u) and, where experts are stacked, one stored tensor.

    The same on the command line: weightsmith merge-experts MODEL --out OUT --experts 4
    """
    options = options or Options()
    plan = plan_experts(
        model,
        experts=experts,
        frequencies=frequencies,
        similarity=similarity,
        per_layer=per_layer,
        align=align,
        gate_up=gate_up,
        layout=layout,
        options=options,
    )
    return execute_experts(plan, Path(out), options=options, force=force, progress=progress)


def plan_experts(
    model: str | Path,
    *,
    experts: int,
    frequencies: str | Path | None = None,
    similarity: str | Path | None = None,
    per_layer: bool = False,
    align: bool = True,
    gate_up: str | None = None,
    layout: str = "same",
    options: Options | None = None,
) -> ExpertPlan:
    """Open the model, find its experts, and say what will be done; see `merge_experts`."""
    options = options or Options()
    for name, value, choices in (("layout", layout, LAYOUTS), ("gate_up", gate_up, (None, *GATE_UP))):
        if value not in choices:
            raise ArgumentError(f"merge-experts: {name}", expected=f"one of {choices}", got=shown(value))
    opened = open_checkpoint(model, follow_symlinks=options.follow_symlinks)
    layers = find_layers(opened)
    least = min(layer.experts for layer in layers)
    if not 1 <= experts <= least:
        raise ArgumentError("merge-experts: experts", expected=f"from 1 to {least} per layer", got=str(experts))
    given = (
        [np.ones(layer.experts) for layer in layers] if frequencies is None else read_frequencies(frequencies, layers)
    )
    tables = None if similarity is None else tuple(read_similarities(similarity, layers))
    kept = [experts] * len(layers) if per_layer else counts_kept(given, experts)
    faults = _faults(opened, layers, kept, align, gate_up, layout)
    if faults:
        raise_all(faults, MismatchError, f"merge-experts: '{shown(opened.reference)}'")
    itemsize = 8 if any(e.dtype == "F64" for e in opened.tensors.values()) else 4
    kinds = [kind for layer in layers for kind in layer.kinds]
    one = itemsize * max(kind.size for kind in kinds)
    stacked = max((kind.entries[0].nbytes for kind in kinds if kind.is_stacked), default=0)
    peak = check_memory("merge-experts", one, max(x.units for x in layers) if align else 0, 3, extra=one + stacked)
    total = sum(entry.nbytes for entry in opened.tensors.values())
    if layout != "same":
        total -= sum(x.nbytes // x.experts * (x.experts - k) for x, k in zip(layers, kept, strict=True))
    return ExpertPlan(
        opened, layers, tuple(kept), tuple(given), tables, layout, align,
        gate_up if align and any(kind.pairs for kind in kinds) else None,
        total, peak, _notes(opened, frequencies, similarity, layout),
    )  # fmt: skip


def _faults(
    opened: Checkpoint,
    layers: Sequence[ExpertLayer],
    kept: Sequence[int],
    align: bool,
    gate_up: str | None,
    layout: str,
) -> list[str]:
    """Return what speaks against it."""
    faults = []
    if align:
        faults += [f"'{shown(x.name)}': {x.why}; pass --no-align to merge units as they stand" for x in layers if x.why]
        both = [f"{shown(x.name)}: {shown(k.label)} {k.shape}" for x in layers for k in x.kinds if k.pairs]
        if both and gate_up is None:
            faults.append(
                f"{both[0]} ({len(both)} such) holds gate and up of each unit; say how they lie, --gate-up halves"
                " (all gates, then all ups: Llama 4, Mixtral) or --gate-up pairs (in turn: gpt-oss)"
            )
    if layout == "same":
        return faults
    if len(set(kept)) > 1 or len({x.experts for x in layers}) > 1:
        faults.append(
            f"--layout {layout} needs as many experts in each layer, here {sorted({x.experts for x in layers})} become"
            f" {sorted(set(kept))}; pass --per-layer, or --layout same"
        )
    text = json.dumps(opened.config).encode()
    if opened.config and config_with_experts(text, layers[0].experts, 0) == text:
        faults.append(f"--layout {layout}: no key of config.json counts {layers[0].experts} experts; correct it")
    if layout == "dominant":
        configs = [opened.config, *(v for v in opened.config.values() if isinstance(v, dict))]
        per_token = [c[k] for c in configs for k in _PER_TOKEN if type(c.get(k)) is int]
        if per_token and max(per_token) > min(kept):
            faults.append(
                f"--layout dominant: the config takes {max(per_token)} experts per token, of {min(kept)} left"
            )
        if any(type(c.get("n_group")) is int and c["n_group"] > 1 for c in configs):
            faults.append(
                "--layout dominant: the config routes by groups of experts (n_group), which merging breaks up"
            )
        faults += [
            f"--layout dominant: '{shown(e.name)}' {e.shape} may belong to the router, or not"
            for x in layers
            for e in x.others
        ]
    return faults


def _notes(
    opened: Checkpoint, frequencies: str | Path | None, similarity: str | Path | None, layout: str
) -> tuple[str, ...]:
    notes = [f"layout {layout}: {_LAYOUT_NOTES[layout]}"]
    if frequencies is None:
        notes.append("no frequencies were given: all experts weigh the same, and those least alike stay")
    if similarity is None:
        notes.append("no similarities were given: experts are grouped by the cosine of their router rows, without data")
    return (*notes, *opened.notes)


def execute_experts(
    plan: ExpertPlan, out: Path, *, options: Options, force: bool = False, progress: Progress | None = None
) -> ExpertMerge:
    """Run a plan into `out`; see `merge_experts`."""
    began = time.perf_counter()
    check_place(out, [plan.model], plan.bytes_written, force=force)
    before = fingerprint(plan.model)
    threads = options.threads or usable_threads()
    with (
        Stream(whole_job([plan.model], options), 1) as stream,
        stream.worker() as worker,
        single_threaded(threads) as pool,
    ):
        weights = Weights(worker, stream.tile, plan.gate_up or GATE_UP[0])
        groups = tuple(_groups(plan, i, weights) for i in range(len(plan.layers)))
        if plan.is_aligned:
            steps = reporter("match", sum(g.layer.experts - len(g.dominant) for g in groups), progress)
            groups = tuple(match_experts(g, weights, pool, steps) for g in groups)
        notes = (*plan.notes, *_unused_note(groups))
        edit = Edit(
            "merge-experts", ABOUT, [plan.model], [before], _asked(plan),
            {"layout": plan.layout, "experts": {g.layer.name: g.summary() for g in groups}},
            notes,
            written_tensors(plan.model, groups, plan.layout),
            partial(_beside, plan, groups),
            "not of an expert that was merged",
        )  # fmt: skip
        changes = changes_of(groups, weights, plan.layout)
        record = publish(edit, changes, out, stream, reporter("write", plan.bytes_written, progress))
    return ExpertMerge(out, record, time.perf_counter() - began, groups, notes)


def _groups(plan: ExpertPlan, index: int, weights: Weights) -> LayerGroups:
    layer, frequencies = plan.layers[index], plan.frequencies[index]
    similarity = cosines(weights.whole(layer.router)) if plan.similarities is None else plan.similarities[index]
    chosen = dominant(frequencies, similarity, plan.kept[index])
    return LayerGroups(layer, tuple(sorted(chosen)), tuple(joined(chosen, similarity)), frequencies, {})


def _asked(plan: ExpertPlan) -> dict[str, Any]:
    return {
        "model": plan.model.reference,
        "experts": sum(plan.kept) // len(plan.kept),
        "per_layer": len(set(plan.kept)) == 1,
        "frequencies": "equal" if all((f == f[0]).all() for f in plan.frequencies) else "given",
        "similarity": "router rows" if plan.similarities is None else "given",
        "align": plan.is_aligned,
        "gate_up": plan.gate_up,
        "layout": plan.layout,
    }


def _unused_note(groups: Sequence[LayerGroups]) -> list[str]:
    unused = sum(not g.frequencies[list(g.members(d))].any() for g in groups for d in g.dominant)
    return [f"{unused} groups have only experts that were never used: their members weigh the same"] if unused else []


def _beside(
    plan: ExpertPlan, groups: Sequence[LayerGroups], into: Path, files: list[dict[str, Any]]
) -> list[dict[str, Any]]:
    """Write the map of a compact output, and set the number of experts in its config; return the records of files."""
    if plan.layout == "same":
        return files
    config, known = into / "config.json", {record["file"]: record for record in files}
    if config.is_file():
        old = config.read_bytes()
        new = config_with_experts(old, plan.layers[0].experts, plan.kept[0])
        if new != old:
            config.write_bytes(new)
            known[config.name] |= {"action": "rewritten", "reason": "for fewer experts", "bytes": len(new)}
    if plan.layout == "compact":
        table: Mapping[str, Any] = {
            "about": "merged[i] is the expert of this folder that row i of the layer's router stands for",
            "layers": {g.layer.name: {"experts": len(g.dominant), "merged": g.numbers} for g in groups},
        }
        text = json.dumps(table, indent=1)
        (into / MAP_FILE).write_text(text + "\n", encoding="utf-8")
        known[MAP_FILE] = {"file": MAP_FILE, "action": "written", "reason": "the map", "bytes": len(text) + 1}
    return [known[name] for name in sorted(known)]
