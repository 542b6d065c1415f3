"""Recipe files in mergekit's dialect, of one or more documents: to plans, by headers alone."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from weightsmith.checkpoint.write import lay_out
from weightsmith.dialect import Step
from weightsmith.errors import Gathered, WeightsmithError
from weightsmith.plan import Options, Plan, make_plan
from weightsmith.tensor.coding import stored_bytes


def plan_step(
    step: Step,
    options: Options | None = None,
    places: Mapping[str, str] | None = None,
    found: Gathered | None = None,
    *,
    peer_exact: bool = False,
) -> Plan:
    """Return the plan of one document.

    Args:
        step: The document.
        options: How to run.
        places: Folders of the results of other documents, by name.
        found: What was wrong before, raised together with all that is wrong here.
        peer_exact: Reproduce the peer's harmless defects.

    Raises:
        See `make_plan`.
    """
    options, found = options or Options(), found or Gathered()
    made = step.translate(places, peer_exact=peer_exact, follow_symlinks=options.follow_symlinks, found=found)
    plan = make_plan(made.recipe, options, found)
    return replace(plan, notes=tuple(dict.fromkeys([*made.notes, *plan.notes])))


def plan_steps(
    steps: Sequence[Step], options: Options | None = None, found: Gathered | None = None, *, peer_exact: bool = False
) -> list[Plan]:
    """Return the plans of all documents, to be shown; results of documents before are stood in for by headers alone.

    `found` is what was wrong with their text, raised together with the faults of every document but those that use the
    result of one that has faults.
    """
    plans: list[Plan] = []
    text = found or Gathered()
    found = Gathered()
    found.absorb(text)
    failed = {step.document.name or "" for step in steps} if found.faults else set()
    with tempfile.TemporaryDirectory(prefix="weightsmith-") as scratch:
        places: dict[str, str] = {}
        for step in steps:
            own = Gathered()
            own.absorb(text)
            if failed & step.uses:
                failed |= {step.document.name or ""}
                step.translate(places, peer_exact=peer_exact, found=own)
                found.absorb(own)
                continue
            try:
                plan = plan_step(step, options, places, own, peer_exact=peer_exact)
            except WeightsmithError as error:
                own.add_errors([] if own.faults else [error], step.where)
                found.absorb(own)
                failed |= {step.document.name or ""}
                continue
            called = [replace(c, reference=c.reference.replace(f"{scratch}/", "")) for c in plan.inputs]
            plans.append(replace(plan, inputs=tuple(called)))
            if step.document.name is not None:
                place = Path(scratch) / step.document.name
                _write_headers(plan, place)
                places[step.document.name] = str(place)
    found.raise_any()
    return plans


def _write_headers(plan: Plan, folder: Path) -> None:
    """Write what a plan's result would be, with holes in place of the weights."""
    folder.mkdir()
    tensors = [
        (w.name, w.dtype, w.shape, w.inputs[0].nbytes if w.parameters is None else w.size * stored_bytes(w.dtype))
        for w in plan.works
    ]
    (shard,) = lay_out(tensors, 2**63, {"format": "pt"})
    with (folder / shard.name).open("wb") as file:
        file.write(shard.header)
        file.truncate(shard.size)
    (folder / "config.json").write_text(json.dumps(plan.inputs[0].config))
