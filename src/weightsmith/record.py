"""What a merge leaves beside its weights: files carried over, the model card, and edit.json, the record."""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from weightsmith.checkpoint.auxiliary import carry, model_card
from weightsmith.checkpoint.entry import Checkpoint
from weightsmith.checkpoint.tokenizer import adapt_configs, settle
from weightsmith.checkpoint.write import Output, sha256_file
from weightsmith.plan import Plan
from weightsmith.recipe.text import write_recipe


def finish(
    plan: Plan, output: Output, before: Sequence[dict[str, Any]], *, code: bool, digest_inputs: bool
) -> dict[str, Any]:
    """Write everything beside the weights; return the record."""
    output.write_index()
    stored = {w.dtype for w in plan.merged}
    origins = [(plan.inputs[i], layer) for i, layer in plan.origins]
    first = plan.inputs[0]
    dtype = stored.pop() if len(stored) == 1 else None
    files = carry(first, output.partial, dtype=dtype, code=code, origins=origins)
    files = settle(output.partial, plan.tokenizer, files)
    if plan.vocabulary is not None:
        files = adapt_configs(output.partial, plan.vocabulary.rows, plan.vocabulary.moved, files)
    recipe = write_recipe(plan.recipe)
    card = model_card(
        title=output.out.name,
        bases=plan.recipe.references,
        method=plan.method.name,
        recipe_yaml=recipe,
        sources=plan.inputs,
        version=version("weightsmith"),
        notes=plan.notes,
        transformers="architectures" in first.config,
    )
    output.write_text("README.md", card)
    return write_record(
        output,
        plan.opened,
        before,
        {"recipe": recipe, "method": plan.method.name, "parameters": _plain_parameters(plan)},
        {
            "carried": files,
            "tensors": {
                "merged": len(plan.merged),
                "copied": [{"name": w.name, "reason": w.reason} for w in plan.copied],
                "dropped": [{"model": d.model, "name": d.name, "reason": d.reason} for d in plan.dropped],
            },
            **({"vocabulary": plan.vocabulary.summary()} if plan.vocabulary else {}),
            "notes": list(plan.notes),
        },
        digest_inputs=digest_inputs,
    )


def write_record(
    output: Output,
    inputs: Sequence[Checkpoint],
    before: Sequence[dict[str, Any]],
    asked: Mapping[str, Any],
    done: Mapping[str, Any],
    *,
    digest_inputs: bool,
) -> dict[str, Any]:
    """Write edit.json, once all else lies in the folder: what was asked, inputs and outputs, what was done; return it."""
    weights = output.records()
    beside = [
        p for p in sorted(output.partial.rglob("*")) if p.is_file() and p.name not in {w["file"] for w in weights}
    ]
    record = {
        "format": 1,
        "weightsmith": version("weightsmith"),
        "versions": {"python": platform.python_version(), "numpy": np.__version__},
        **asked,
        "inputs": [describe(c, p, digest_inputs) for c, p in zip(inputs, before, strict=True)],
        "outputs": weights
        + [
            {"file": str(p.relative_to(output.partial)), "bytes": p.stat().st_size, "sha256": sha256_file(p)}
            for p in beside
        ],
        **done,
    }
    record["record_sha256"] = record_digest(record)
    output.write_text("edit.json", json.dumps(record, indent=2, ensure_ascii=False) + "\n")
    return record


def record_digest(record: Mapping[str, Any]) -> str:
    """Return the SHA-256 that a record states of itself, formed without that entry."""
    rest = {key: value for key, value in record.items() if key != "record_sha256"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def _plain_parameters(plan: Plan) -> dict[str, Any]:
    """Return the parameters in force; those that differ between tensors by their range of tensors."""
    shared, varying = plan.parameters
    plain = {n: list(v) if isinstance(v, tuple) else v for n, v in shared.items()}
    return {**plain, **dict.fromkeys(sorted(varying), "by tensor, see the recipe")}


def describe(checkpoint: Checkpoint, prints: Mapping[str, Any], digest: bool = False) -> dict[str, Any]:
    """Return an input as a record states it: its reference, and each file's size and header digest, with `digest` all of it."""
    files = []
    for path, found in prints.items():
        described = {"file": Path(path).name, "bytes": found["size"], "header_sha256": found["header_sha256"]}
        files.append({**described, "sha256": sha256_file(Path(path))} if digest else described)
    return {"reference": checkpoint.reference, "revision": checkpoint.revision, "files": files}
