"""Check a merged checkpoint: digests and counts, NaN and infinity, and sampled tiles computed anew another way."""

from __future__ import annotations

import os
import random
import re
from collections.abc import Iterator
from dataclasses import asdict, astuple, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from weightsmith.budget import Demand, choose_limits, usable_threads
from weightsmith.bundle.checking import check_bundle
from weightsmith.checkpoint.adapter_write import WEIGHTS_NAME
from weightsmith.checkpoint.bundle import is_bundle
from weightsmith.checkpoint.entry import ARITHMETIC_DTYPES, MEAN, PADDING, Checkpoint, Entry, LowRank, Rows
from weightsmith.checkpoint.folder import read_json
from weightsmith.checkpoint.read import Files, fingerprint, open_checkpoint
from weightsmith.checkpoint.rows import row_blocks
from weightsmith.checkpoint.write import sha256_file
from weightsmith.device import Device
from weightsmith.engine.stream import Job, Stream, Work
from weightsmith.errors import ArgumentError, CheckpointError, WeightsmithError, shown
from weightsmith.matrices import Matrices, as_matrix
from weightsmith.method import Tile
from weightsmith.plan import Options, Plan, make_plan
from weightsmith.plan.headers import find_method
from weightsmith.produce import keep_outside, reduce_all
from weightsmith.recipe import Origin
from weightsmith.recipe.text import parse_recipe
from weightsmith.record import record_digest
from weightsmith.run import STEPS, Progress
from weightsmith.tensor.arrays import Array, Plain
from weightsmith.tensor.coding import stored_bytes
from weightsmith.tensor.rounding import rounded

SAMPLES, SAMPLED_MATRICES = 32, 4
MAX_RECORD_BYTES = 1_000_000_000
_STEP = re.compile(rf"/\.[^/]*{STEPS}[0-9a-f]+/")  # a folder that a merge of several documents removes
_RECORD = {
    "format": int,
    "recipe": str,
    "inputs": [{"files": [{"bytes": int, "header_sha256": str}]}],
    "outputs": [{"file": str, "bytes": int, "sha256": str}],
    "tensors": {"merged": int, "copied": list},
}


@dataclass(frozen=True)
class Verification:
    """What `verify` found.

    Attributes:
        out: The folder.
        findings: What is wrong; empty where all is well.
        skipped: Why tensors were not recomputed; empty where some were.
        files: Output files whose size and SHA-256 were checked.
        tensors: Tensors of the output.
        nonfinite: Elements that are NaN or infinite.
        recomputed: Elements computed anew and compared.
    """

    out: Path
    findings: tuple[str, ...]
    skipped: tuple[str, ...]
    files: int
    tensors: int
    nonfinite: int
    recomputed: int

    @property
    def is_sound(self) -> bool:
        """Whether nothing is wrong."""
        return not self.findings

    def summary(self) -> dict[str, Any]:
        """Return the verification as plain data, for --json."""
        return {**asdict(self), "out": str(self.out), "is_sound": self.is_sound}


def verify(out: str | Path, *, options: Options | None = None, progress: Progress | None = None) -> Verification:
    """Check a folder that `merge` wrote against its edit.json and its inputs, or a bundle by rebuilding all its tasks.

    Sizes and SHA-256 of all files; headers and counts; NaN and infinity; then, where the inputs are still there, sampled
    tiles computed anew through memory maps and the eager formulas instead of positioned reads and compiled loops.

    Args:
        out: The folder.
        options: Memory and threads, and `allow_nonfinite` as the merge had it.
        progress: Called with (stage, bytes done, bytes in all).

    Raises:
        ArgumentError: The folder does not exist or has no edit.json.
        CheckpointError: edit.json is not readable as one.
    """
    folder, options = Path(out), options or Options()
    if is_bundle(folder):
        return Verification(folder, *astuple(check_bundle(folder, options, progress)))
    record = _read_record(folder)
    findings: list[str] = []
    skipped: list[str] = []
    if record.get("record_sha256") != record_digest(record):
        findings.append("edit.json is not as it was written: it states another SHA-256 of itself")
    files = _check_files(folder, record, findings)
    nonfinite, tensors, recomputed = 0, 0, 0
    try:
        weights = folder / WEIGHTS_NAME  # of an adapter, which no folder of a model holds
        checkpoint = open_checkpoint(weights if weights.is_file() else folder)
    except WeightsmithError as error:
        findings.append(str(error))
    else:
        tensors = len(checkpoint.tensors)
        expected = record["tensors"]["merged"] + len(record["tensors"]["copied"])
        if tensors != expected:
            findings.append(f"the output has {tensors} tensors; edit.json says {expected}")
        nonfinite = _count_nonfinite(checkpoint, options, progress)
        if nonfinite and not options.allow_nonfinite:
            findings.append(f"{nonfinite} elements are NaN or infinite")
        recomputed = _recompute(checkpoint, record, options, findings, skipped)
    return Verification(folder, tuple(findings), tuple(skipped), files, tensors, nonfinite, recomputed)


def _read_record(folder: Path) -> dict[str, Any]:
    path = folder / "edit.json"
    if not folder.is_dir() or not path.is_file():
        raise ArgumentError(
            f"verify '{shown(folder)}'",
            expected="a folder with edit.json",
            got="none",
            do="Name the output of a merge",
        )
    record = read_json(path, MAX_RECORD_BYTES)
    wrong = _misfit(record, _RECORD)
    if wrong:
        raise CheckpointError(
            f"{path}: not a record of weightsmith", got=f"no valid {wrong}", do="Restore the file, or merge again"
        )
    if record["format"] != 1:
        raise CheckpointError(f"{path}: format", expected="1", got=str(record["format"]), do="Use a newer weightsmith")
    return dict(record)


def _misfit(value: Any, shape: Any, where: str = "record") -> str:
    """Return what in a value departs from a shape: a type, a list of one shape, or keys with theirs; "" for nothing."""
    if isinstance(shape, type):
        return "" if type(value) is shape else where
    if type(value) is not type(shape):
        return where
    if isinstance(shape, list):
        parts = [(f"{where}[{i}]", item, shape[0]) for i, item in enumerate(value)]
    else:
        parts = [(key, value.get(key), inner) for key, inner in shape.items()]
    return next(filter(None, (_misfit(item, inner, key) for key, item, inner in parts)), "")


def _check_files(folder: Path, record: dict[str, Any], findings: list[str]) -> int:
    """Compare sizes and digests; name files that are missing or were added."""
    listed = set()
    for file in record["outputs"]:
        name = file["file"]
        listed.add(name)
        path = folder / name
        if Path(name).is_absolute() or ".." in Path(name).parts:
            findings.append(f"edit.json lists '{shown(name)}', which leads out of the folder")
        elif not os.path.isfile(path):
            findings.append(f"file '{shown(name)}' is missing")
        elif path.stat().st_size != file["bytes"]:
            findings.append(f"file '{shown(name)}' has {path.stat().st_size} bytes; edit.json says {file['bytes']}")
        elif sha256_file(path) != file["sha256"]:
            findings.append(f"file '{shown(name)}' has another SHA-256 than edit.json says")
    there = {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()} - {"edit.json"}
    findings.extend(f"file '{shown(name)}' was added later" for name in sorted(there - listed))
    return len(listed)


def _count_nonfinite(checkpoint: Checkpoint, options: Options, progress: Progress | None) -> int:
    """Read every arithmetic tensor once; return how many elements are NaN or infinite."""
    works = [Work(e.name, e.shape, e.dtype, (e,), None, {}) for e in checkpoint.tensors.values()]
    works = [w for w in works if w.dtype in ARITHMETIC_DTYPES and w.size]
    wide = any(w.dtype == "F64" for w in works)
    demand = Demand(1, len(checkpoint.tensors), 8 if wide else 4)
    limits = choose_limits(demand, options.memory_bytes, options.threads or usable_threads())
    job = Job(None, 0, "float64" if wide else "float32", limits, Device(), allow_nonfinite=True)
    total = sum(e.inputs[0].nbytes for e in works)
    found = done = 0
    with Stream(job, 1) as stream:
        for piece, counts in stream.each(works, lambda base, others, tile: int((~np.isfinite(others)).sum())):
            found += sum(counts)
            done += (piece.stop - piece.start) * stored_bytes(piece.work.dtype)
            if progress is not None:
                progress("verify", done, total)
    return found


def _recompute(
    checkpoint: Checkpoint, record: dict[str, Any], options: Options, findings: list[str], skipped: list[str]
) -> int:
    """Compute sampled tiles from the inputs and compare their bytes; return the number of elements compared."""
    if record.get("edit", "merge") != "merge":
        skipped.append(f"only merges are computed anew, and this is the output of {shown(record['edit'])}")
        return 0
    try:
        recipe = replace(parse_recipe(record["recipe"], "edit.json"), origin=Origin())
        find_method(recipe.method)
    except WeightsmithError as error:
        findings.append(f"edit.json: {error}")
        return 0
    try:
        plan = make_plan(recipe, options)
    except WeightsmithError as error:
        kept = not any(_STEP.search(reference) for reference in recipe.references)
        told = f"the inputs cannot be used: {error}"
        skipped.append(
            told if kept else "some inputs were results of other documents of its recipe, which are not kept"
        )
        return 0
    if len(plan.opened) != len(record["inputs"]):
        findings.append(f"edit.json lists {len(record['inputs'])} inputs; its recipe names {len(plan.opened)}")
        return 0
    changed = [
        c.reference
        for c, old in zip(plan.opened, record["inputs"], strict=True)
        if [(f["size"], f["header_sha256"]) for f in fingerprint(c).values()]
        != [(f["bytes"], f["header_sha256"]) for f in old["files"]]
    ]
    if changed:
        skipped.append(f"inputs changed: {', '.join(map(shown, changed))}")
        return 0
    planned = {w.name: (w.shape, w.dtype) for w in plan.works}
    stored = {e.name: (e.shape, e.dtype) for e in checkpoint.tensors.values()}
    if planned != stored:
        names = sorted(n for n in planned.keys() | stored.keys() if planned.get(n) != stored.get(n))
        findings.append(f"{len(names)} tensors differ from the plan in name, shape or dtype: {shown(names[0])}, ...")
        return 0
    return _compare_samples(plan, checkpoint, findings)


def _compare_samples(plan: Plan, checkpoint: Checkpoint, findings: list[str]) -> int:
    compared = 0
    with Stream(plan.job, len(plan.inputs)) as stream, Files() as files:
        found = reduce_all(plan, stream, lambda more: None)
        for work, start, stop in _samples(plan, stream):
            entry = checkpoint.tensors[work.name]
            width = 1 if work.parameters is None else stored_bytes(work.dtype)
            if work.parameters is None:
                expected = _bytes(work.inputs[0], start, stop)
            else:
                statistics, position = found.get(work.name, (None, 0))
                merged = _computed(plan, work, start, stop, statistics, position)
                expected = keep_outside(files, work, start, stop, merged)
            actual = _bytes(entry, start * width, stop * width)
            compared += stop - start
            if not np.array_equal(expected.view(np.uint8), actual):
                first = int(np.argmax(expected.view(np.uint8) != actual)) // width + start
                findings.append(
                    f"tensor '{shown(work.name)}' differs from its recomputation, first at flat index {first}"
                )
    return compared


def _samples(plan: Plan, stream: Stream) -> Iterator[tuple[Work, int, int]]:
    """Yield tiles of the largest tensors and of others drawn by a fixed seed."""
    works = sorted((w for w in plan.works if w.inputs[0].nbytes), key=lambda w: (-w.inputs[0].nbytes, w.name))
    matrices = [w for w in works if w.parameters is not None and plan.method.takes_matrix(w.shape)]
    works = [w for w in works if w not in matrices[:-SAMPLED_MATRICES]]  # each is computed whole: a few small ones
    chosen = works[: SAMPLES // 2]
    rest = works[SAMPLES // 2 :]
    chosen += random.Random(0).sample(rest, min(len(rest), SAMPLES - len(chosen)))
    for i, work in enumerate(chosen):
        size, step = (work.inputs[0].nbytes, stream.tile) if work.parameters is None else (work.size, stream.step(work))
        tiles = -(-size // step)
        start = (i * 7919 % tiles) * step
        yield work, start, min(start + step, size)


def _computed(plan: Plan, work: Work, start: int, stop: int, statistics: Any, position: int) -> Array:
    """Return the stored bytes of one tile, by memory map, eager formulas and numpy's rounding."""
    read = [_numbers(e, start, stop, plan.job.compute_dtype) for e in work.inputs]
    inputs = np.stack([np.asarray(rounded(x.view(Plain), plan.job.precision)) for x in read])
    base, others = (inputs[0], inputs[1:]) if plan.method.has_base else (None, inputs)
    if base is not None and "task_vectors" in plan.method.inputs:
        others = others - base
    where = Tile(
        work.name, work.shape, start, position + start, work.layer, plan.job.layers, statistics, plan.job.precision
    )
    run: Any = plan.method.whole if statistics is None else plan.method.apply
    plain = None if base is None else base.view(Plain)
    given: Any = np.ascontiguousarray(others).view(Plain)
    if plan.method.takes_matrix(work.shape):
        run, shape, stacked = plan.method.apply_matrix, as_matrix(work.shape), given
        given = Matrices(len(others), shape, lambda t: stacked[t].reshape(shape), lambda t: _product(plan, work, t))
        plain = None if plain is None else plain.reshape(shape)
    with np.errstate(all="ignore"):  # NaN and infinity pass here, and are counted elsewhere
        values = np.asarray(run(plain, given, work.parameters or {}, where))
    return _narrowed(values, work.dtype)


def _product(plan: Plan, work: Work, index: int) -> tuple[Array, Array] | None:
    """Return the factors of a task vector that is an adapter's product on just this base tensor; None for any other."""
    entry = work.inputs[plan.method.has_base + index]
    if "task_vectors" not in plan.method.inputs or replace(entry, low_rank=None) != work.inputs[0]:
        return None
    if entry.low_rank is None:
        rows, columns = as_matrix(work.shape)
        return np.zeros((rows, 0), np.float32), np.zeros((0, columns), np.float32)
    left, right = _factors(entry.low_rank)
    return np.ascontiguousarray(left) * np.float32(entry.low_rank.scale), np.ascontiguousarray(right)


def _narrowed(values: Array, dtype: str) -> Array:
    """Round numbers to a stored dtype."""
    if dtype != "BF16":
        return values.astype({"F16": "<f2", "F32": "<f4", "F64": "<f8"}[dtype])
    # bfloat16 has 8 significant bits: scale each number so that rint leaves just those, then scale back.
    mantissa, exponent = np.frexp(values.astype(np.float64))
    lowest = np.maximum(exponent, -125)
    narrow = np.ldexp(np.rint(np.ldexp(mantissa, 8 + exponent - lowest)), lowest - 8).astype(np.float32)
    return (narrow.view(np.uint32) >> 16).astype("<u2")


def _bytes(entry: Entry, start: int, stop: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    if entry.packed is not None:
        raw = np.empty(stop - start, np.uint8)
        with Files() as files:
            files.entry_into(entry, start, raw.data)
        return raw
    if entry.rows is None:
        return _mapped(entry)[start:stop]
    width = entry.nbytes // entry.shape[0]
    first = start // width
    return _rows(entry, entry.rows, first, -(-stop // width))[start - first * width : stop - first * width]


def _mapped(entry: Entry) -> np.ndarray[Any, np.dtype[np.uint8]]:
    return np.asarray(np.memmap(entry.file, np.uint8, "r", entry.offset, (entry.nbytes,)))


def _rows(entry: Entry, rows: Rows, first: int, last: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Return the bytes of whole rows of a tensor that was re-ordered by token."""
    length = entry.size // entry.shape[0]
    found = []
    maps: dict[int, np.ndarray[Any, np.dtype[np.uint8]]] = {}

    def read(part: int, row: int, count: int) -> Array:
        source = rows.sources[part]
        if part not in maps:
            maps[part] = _mapped(source)
        width = stored_bytes(source.dtype) * length
        return _decoded(maps[part][row * width : (row + count) * width], source.dtype, "float64")

    while first < last:
        run = int(np.searchsorted(rows.begins, first, "right")) - 1
        end = min([last, *rows.begins[run + 1 : run + 2].tolist()])
        part, at = int(rows.parts[run]), int(rows.firsts[run]) + first - int(rows.begins[run])
        values = np.zeros((end - first, length))
        if part >= 0:
            values = read(part, at, end - first)
        elif part == MEAN:
            for value, mean in zip(values, rows.means[at:], strict=False):
                value[:] = sum(read(m, r, 1) for m, r in mean) / len(mean)
        elif part == PADDING:
            for begin, stop in row_blocks(entry, rows.real):
                raw = _rows(entry, rows, begin, stop)
                values += _decoded(raw, entry.dtype, "float64").reshape(-1, length).sum(0)
            values /= max(1, rows.real)
        found.append(_narrowed(values, entry.dtype).reshape(-1).view(np.uint8))
        first = end
    return np.concatenate(found)


def _decoded(raw: np.ndarray[Any, np.dtype[np.uint8]], stored: str, dtype: str) -> Array:
    if stored == "BF16":
        return (raw.view("<u2").astype(np.uint32) << 16).view(np.float32).astype(dtype)
    return raw.view({"F16": "<f2", "F32": "<f4", "F64": "<f8"}[stored]).astype(dtype)


def _numbers(entry: Entry, start: int, stop: int, dtype: str) -> Array:
    width = stored_bytes(entry.dtype)
    values = _decoded(_bytes(entry, start * width, stop * width), entry.dtype, dtype)
    if entry.low_rank is None:
        return values
    low = entry.low_rank
    left, right = _factors(low)
    columns = right.shape[1]
    rows = slice(start // columns, -(-stop // columns))
    product = np.zeros((rows.stop - rows.start, columns), np.float32)
    for k in range(right.shape[0]):  # rank by rank, as the engine adds them
        product += left[rows, k : k + 1] * right[k]
    added = product.reshape(-1)[start - rows.start * columns :][: stop - start]
    return values + added * values.dtype.type(low.scale)


def _factors(low: LowRank) -> tuple[Array, Array]:
    """Return left (rows, rank) and right (rank, columns)."""
    down, up = (_numbers(e, 0, e.size, "float32").reshape(e.shape[0], -1) for e in (low.down, low.up))
    return (down.T, up.T) if low.transposed else (up, down)
