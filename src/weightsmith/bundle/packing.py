"""Writing one task of a bundle: each tensor encoded, or stored without loss, in frames that threads code by themselves."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from weightsmith.bundle.planning import Packing, frames_of
from weightsmith.bundle.sharing import EXACTLY, Report, scales_key, shared_vector, vector_key
from weightsmith.checkpoint.bundle_write import PieceWriter
from weightsmith.checkpoint.entry import Checkpoint, Entry
from weightsmith.checkpoint.names import layer_of
from weightsmith.checkpoint.packed import element_bytes, read_words
from weightsmith.compress.lossless import lossless
from weightsmith.encoding import Encoding, Part
from weightsmith.engine.reductions import reduce, reduce_each
from weightsmith.engine.stream import Stream, Work, Worker
from weightsmith.engine.whole import check_finite, numbers
from weightsmith.errors import NonFiniteError, shown
from weightsmith.matrices import as_matrix
from weightsmith.method import Tile
from weightsmith.tensor.arrays import Array
from weightsmith.tensor.coding import encode, stored_bytes
from weightsmith.tensor.frames import FORMS as FRAMED
from weightsmith.tensor.frames import FRAME, encode_frame

RUN_FRAMES = 8  # coded at a time by one thread
PIECES = ("frames", "lengths")
MATRIX_PIECES = ("left", "left_scales", "right", "right_scales")


@dataclass(frozen=True)
class _Item:
    """A tensor of the task.

    Attributes:
        entry: The task's.
        origin: The base's; None where it is stored by itself.
        encoding: How it is encoded; None where it is stored without loss.
        work: Base, task, and the shared vector where there is one; with its parameters. Only of an encoded tensor.
        shared: The shared pieces, by what they are.
        is_left: Whether nothing is stored of it.
    """

    entry: Entry
    origin: Entry | None
    encoding: Encoding | None = None
    work: Work | None = None
    shared: Mapping[str, Entry] | None = None
    is_left: bool = False


@dataclass(frozen=True)
class _Run:
    """Elements begin .. end of one item, whole frames; a whole tensor where it is taken as a matrix."""

    item: _Item
    begin: int
    end: int
    is_last: bool
    is_matrix: bool


@dataclass(frozen=True)
class _Coded:
    """What a run became.

    Attributes:
        frames: Coded frames; or none, and
        arrays: Whole arrays by name.
        part: The last part, for its form and settings.
        is_zero: Whether it adds nothing to the base and the shared vector.
        is_equal: Whether the task has the base's numbers there.
        exact: The task's stored bytes, where they are stored without loss.
    """

    frames: Sequence[bytes]
    arrays: Mapping[str, Array]
    part: Part
    is_zero: bool
    is_equal: bool
    exact: Array | None = None


def write_task(
    packing: Packing,
    parameters: Mapping[str, Any],
    task: str,
    model: Checkpoint,
    shared: Mapping[str, Entry],
    path: Path,
    root: Path,
    report: Report,
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Write the pieces of one task; return the file's record, and the tensors as part.json lists them.

    Args:
        packing: How tasks are packed.
        parameters: Those of this task.
        task: Its name.
        model: Its model.
        shared: The pieces that all tasks share, by name.
        path: The new file.
        root: From where the record names it.
        report: Called with the bytes that were read.
    """
    items = [_item(packing, task, e, shared, parameters) for e in model.tensors.values()]
    longest = [(f"{item.entry.name}/{p}", 2) for item in items for p in _pieces(item)]
    found = _statistics(packing, items, report)
    job = packing.job(packing.encoding.packing, 3)
    listed: list[dict[str, Any]] = []
    with PieceWriter(path, longest) as writer, Stream(job, 3, FRAME) as stream, threadpool_limits(1, "blas"):

        def code(worker: Worker, run: _Run) -> _Coded:
            if run.item.is_left:
                return _Coded([], {}, Part({}), is_zero=True, is_equal=True)
            if run.item.encoding is None:
                return _code_exactly(worker, run)
            return (_code_matrix if run.is_matrix else _code)(run.item.encoding, worker, run, found)

        runs = [r for item in items for r in _runs(item)]
        tensor = _Tensor(writer)
        for run, coded in zip(runs, stream.in_order(runs, code), strict=True):
            tensor.append(coded)
            report("pack", run.item.entry.nbytes * (run.end - run.begin) // max(1, _words(run.item.entry)))
            if run.is_last:
                listed.append(tensor.close(run.item))
                tensor = _Tensor(writer)
        _fit_scales(packing, task, listed)
        return writer.finish(root), listed


def _item(
    packing: Packing, task: str, entry: Entry, shared: Mapping[str, Entry], parameters: Mapping[str, Any]
) -> _Item:
    origin, encoding = packing.origin(entry), packing.encoding
    if packing.choice is not None:
        setting = packing.choice.settings[task][entry.name]
        if origin is None or setting.encoding is None or setting.encoding.form == "difference":
            return _Item(entry, origin, is_left=origin is not None and setting.encoding is None)
        encoding, parameters = setting.encoding, setting.parameters
    elif origin is None or not packing.is_encoded(entry):
        return _Item(entry, origin)
    vector = shared_vector(entry.name, shared)
    gathered = {k.rpartition("/")[2]: e for k, e in shared.items() if k.rpartition("/")[0] == entry.name}
    if (encoding.has_vector and vector is None) or (encoding.has_shared and not gathered):
        return _Item(entry, origin)  # no task that the shared part was made from has it
    inputs = (origin, entry, *([vector] if encoding.has_vector and vector is not None else []))
    work = Work(entry.name, entry.shape, entry.dtype, inputs, layer_of(entry.name), dict(parameters))
    return _Item(entry, origin, encoding, work, gathered if encoding.has_shared else None)


def _statistics(packing: Packing, items: Sequence[_Item], report: Report) -> dict[str, tuple[Any, int]]:
    """Return by tensor the statistics that its encoding asks for, and the tensor's place in what they are over."""
    groups: dict[str, list[Work]] = {}
    encodings = {item.encoding.name: item.encoding for item in items if item.encoding is not None}
    for item in items:
        if item.encoding is not None and item.work is not None:
            groups.setdefault(item.encoding.name, []).append(item.work)
    found: dict[str, tuple[Any, int]] = {}
    for name, works in groups.items():
        method = encodings[name].packing
        scope = method.reduction_scope(works[0].parameters or {})
        if scope is None:
            continue
        with Stream(packing.job(method, 3), 3, FRAME) as stream:
            if scope == "tensor":
                each = reduce_each(stream, works, lambda n: report("measure", n))
                found |= {n: (statistics, 0) for n, statistics in each.items()}
            else:
                statistics = reduce(stream, works, lambda n: report("measure", n))
                places = accumulate((w.size for w in works), initial=0)
                found |= {w.name: (statistics, place) for w, place in zip(works, places, strict=False)}
    return found


def _words(entry: Entry) -> int:
    return entry.nbytes // element_bytes(entry.dtype)


def _pieces(item: _Item) -> tuple[str, ...]:
    return MATRIX_PIECES if item.encoding is not None and item.encoding.reach == "matrix" else PIECES


def _runs(item: _Item) -> Iterator[_Run]:
    count = _words(item.entry)
    is_matrix = item.encoding is not None and item.encoding.reach == "matrix"
    step = max(1, count) if is_matrix or item.is_left else RUN_FRAMES * FRAME
    for begin in range(0, max(1, count), step):
        end = min(begin + step, count)
        yield _Run(item, begin, end, end == count, is_matrix)


def _code(encoding: Encoding, worker: Worker, run: _Run, found: Mapping[str, tuple[Any, int]]) -> _Coded:
    """Encode a run frame by frame."""
    work = run.item.work
    assert work is not None
    statistics, place = found.get(work.name, (None, 0))
    frames, is_zero, is_equal, part = [], True, True, Part({})
    for start in range(run.begin, run.end, FRAME):
        stop = min(start + FRAME, run.end)
        base, others = worker.load(work, start, stop)
        vector, shared = (others[0] - base, others[1]) if encoding.has_vector else (others[0], None)
        tile = Tile(work.name, work.shape, start, place + start, work.layer, worker.job.layers, statistics)
        part = encoding.encode(vector, shared, work.parameters or {}, tile, base)
        frames.append(_frame(work.name, encoding.form, part.arrays, part.settings))
        is_zero = is_zero and _is_zero(encoding.form, part)
        is_equal = is_equal and not bool(vector.any())
    return _Coded(frames, {}, part, is_zero, is_equal)


def _frame(name: str, form: str, arrays: Mapping[str, Array], settings: Mapping[str, Any]) -> bytes:
    try:
        return encode_frame(form, arrays, settings)
    except NonFiniteError as error:
        raise NonFiniteError(f"tensor '{shown(name)}': {error}", do="Store values in a wider dtype") from error


def _is_zero(form: str, part: Part) -> bool:
    """Tell whether a part adds nothing."""
    marks = next(iter(part.arrays.values()))
    return part.settings.get("scale") == 0 or (form != "sign" and not bool(marks.any()))


def _code_matrix(encoding: Encoding, worker: Worker, run: _Run, found: Mapping[str, tuple[Any, int]]) -> _Coded:
    """Encode a whole tensor as a matrix; its arrays are stored as they are, or in frames."""
    item = run.item
    assert item.work is not None
    base, task = (numbers(worker, FRAME, e) for e in item.work.inputs[:2])
    shape = as_matrix(item.entry.shape)
    shared: Any = None
    if encoding.has_vector:
        shared = numbers(worker, FRAME, item.work.inputs[2]).reshape(shape)
    elif item.shared is not None:
        shared = {key: numbers(worker, FRAME, e) for key, e in item.shared.items()}
    tile = Tile(
        item.entry.name,
        item.entry.shape,
        0,
        0,
        item.work.layer,
        worker.job.layers,
        found.get(item.entry.name, (None, 0))[0],
    )
    check_finite(task - base, item.entry.name, EXACTLY)
    is_equal = bool(np.array_equal(task, base))
    part = encoding.encode((task - base).reshape(shape), shared, item.work.parameters or {}, tile, base.reshape(shape))
    form = part.form or encoding.form
    if form not in FRAMED:
        return _Coded([], part.arrays, part, is_zero=False, is_equal=is_equal)
    flat = {name: np.ascontiguousarray(a).reshape(-1) for name, a in part.arrays.items()}
    cut = [{n: a[start : start + FRAME] for n, a in flat.items()} for start in frames_of(item.entry)]
    return _Coded(
        [_frame(item.entry.name, form, a, part.settings) for a in cut], {}, part, _is_zero(form, part), is_equal
    )


def _code_exactly(worker: Worker, run: _Run) -> _Coded:
    """Store a run without loss: stored words against the base's."""
    entry, origin = run.item.entry, run.item.origin
    width = element_bytes(entry.dtype)
    raw = np.empty((run.end - run.begin) * width, np.uint8)
    frames, is_zero = [], True
    for start in range(run.begin, run.end, FRAME):
        stop = min(start + FRAME, run.end)
        words = raw[(start - run.begin) * width : (stop - run.begin) * width].view(f"<u{width}")
        if entry.low_rank is None:
            worker.files.entry_into(entry, start * width, words.view(np.uint8).data)
        else:
            values = np.empty(stop - start, worker.job.compute_dtype)
            worker.read(entry, start, stop, values)
            worker.store(Work(entry.name, entry.shape, entry.dtype, (entry,)), start, values, words.view(np.uint8))
        base = np.empty_like(words)
        read_words(origin, entry.dtype, start, stop, base, worker.files.entry_into)
        part = lossless.encode(words, None, {}, Tile(), base)
        frames.append(encode_frame("difference", part.arrays, {}))
        is_zero = is_zero and bool(np.array_equal(words, base))
    return _Coded(frames, {}, Part({}, {}, "difference"), is_zero, is_zero, raw)


class _Tensor:
    """One tensor as it is written, run by run."""

    def __init__(self, writer: PieceWriter) -> None:
        self._writer = writer
        self._begin = writer.nbytes
        self._lengths: list[int] = []
        self._is_zero = self._is_equal = True
        self._last: _Coded | None = None
        self._digest = hashlib.sha256()

    def append(self, coded: _Coded) -> None:
        """Add a run."""
        for frame in coded.frames:
            self._writer.append(frame)
            self._lengths.append(len(frame))
        self._is_zero = self._is_zero and coded.is_zero
        self._is_equal = self._is_equal and coded.is_equal
        self._last = coded
        if coded.exact is not None:
            self._digest.update(coded.exact.data)

    def close(self, item: _Item) -> dict[str, Any]:
        """Name the pieces, or take them back where they add nothing; return the tensor's place in part.json."""
        name, coded, terms = item.entry.name, self._last, []
        assert coded is not None
        encoding = item.encoding or lossless
        form = coded.part.form or encoding.form
        shared = _shared_keys(item)
        if encoding.adds_shared and not self._is_equal:
            terms.append({"form": "dense", "parts": {}, "shared": shared, "settings": {}})
            shared = {}
        settings = dict(coded.part.settings)
        if (self._is_zero or self._is_equal) and item.origin is not None:
            self._writer.rewind(self._begin)
        elif coded.frames:
            parts = {"frames": self._writer.close_piece(f"{name}/frames", "U8", (sum(self._lengths),), self._begin)}
            parts["lengths"] = self._writer.add(f"{name}/lengths", np.array(self._lengths, "<u4"))
            terms.append({"form": form, "parts": parts, "shared": shared, "settings": settings})
        elif coded.arrays:
            dtype = settings.pop("dtype", "F32")
            parts = {k: _add_array(self._writer, f"{name}/{k}", a, dtype) for k, a in coded.arrays.items()}
            terms.append({"form": form, "parts": parts, "shared": shared, "settings": settings})
        stated = {"name": name, "dtype": item.entry.dtype, "shape": list(item.entry.shape)}
        is_exact = item.encoding is None and not item.is_left
        exact = {"sha256": self._digest.hexdigest()} if is_exact else {}
        return {**stated, "base": item.origin and item.origin.name, "terms": terms, **exact}


def _shared_keys(item: _Item) -> dict[str, str]:
    """Return the shared pieces of a tensor: what they are in a term, and what they are called."""
    if item.encoding is None or item.shared is None:
        return {}
    name = item.entry.name
    if not item.encoding.has_vector:
        return {key: f"{name}/{key}" for key in item.shared}
    return {k: key for k, key in (("vector", vector_key(name)), ("scales", scales_key(name))) if k in item.shared}


def _add_array(writer: PieceWriter, name: str, array: Array, dtype: str) -> str:
    if array.dtype != np.float32:
        return writer.add(name, array)
    raw = np.empty(array.size * stored_bytes(dtype), np.uint8)
    encode(np.ascontiguousarray(array).reshape(-1), dtype, raw)
    begin = writer.nbytes
    writer.append(raw)
    return writer.close_piece(name, dtype, array.shape, begin)


def _fit_scales(packing: Packing, task: str, listed: Sequence[dict[str, Any]]) -> None:
    """Replace the scales of a task's terms by those that the caller fits."""
    if packing.scales is None:
        return
    terms = {item["name"]: t for item in listed for t in item["terms"] if "scale" in t["settings"]}
    fitted = packing.scales(task, {name: float(t["settings"]["scale"]) for name, t in terms.items()})
    for name, scale in fitted.items():
        terms[name]["settings"]["scale"] = float(scale)
