"""Writing checkpoints made element by element: masks, one folder per task, and models put together from stored bytes."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from weightsmith.checkpoint.entry import DTYPE_BITS, Checkpoint, Entry
from weightsmith.checkpoint.read import check_unchanged
from weightsmith.checkpoint.write import Output, Shard, lay_out
from weightsmith.engine.stream import Piece, Stream, Work, Worker
from weightsmith.errors import ResourceError, shown
from weightsmith.localization.reading import Reading, Report
from weightsmith.record import write_record
from weightsmith.run import DEFAULT_SHARD_BYTES
from weightsmith.tensor.arrays import Array
from weightsmith.tensor.coding import stored_bytes

Prints = Sequence[dict[str, Any]]


def write_masks(reading: Reading, names: Sequence[str], out: Path, before: Prints, asked: Any, report: Report) -> None:
    """Write each task's mask as out/NAME, a checkpoint of BOOL tensors with the model's names; all appear together."""
    works, inputs = {w.name: w for w in reading.works}, reading.plan.inputs
    shards = lay_out([(n, "BOOL", w.shape, w.size) for n, w in works.items()], DEFAULT_SHARD_BYTES, {"format": "pt"})

    def make(worker: Worker, piece: Piece) -> list[Array]:
        if reading.is_whole:
            return [*reading.whole_masks(worker, stream.tile, piece.work)]
        return [*next(reading.tiles(stream, worker, [piece])).masks]

    # Each whole matrix is worked on by one thread, so that the bytes do not depend on how many there are.
    with scratch_beside(out) as folder, reading.stream() as stream, threadpool_limits(1, "blas"):
        with ExitStack() as stack:
            outputs = [stack.enter_context(Output(folder / name, shards)) for name in names]
            for index, piece, found in _filled(shards, works, stream, make, is_whole=reading.is_whole):
                for output, mask in zip(outputs, found, strict=True):
                    output.append(index, np.ascontiguousarray(mask).view(np.uint8).data)
                report(sum((piece.stop - piece.start) * stored_bytes(e.dtype) for e in piece.work.inputs))
            for output, name in zip(outputs, names, strict=True):
                output.write_index()
                what = {**asked, "task": name}
                done = {"tensors": {"merged": len(works), "copied": [], "dropped": []}, "notes": []}
                write_record(output, inputs, before[: len(inputs)], what, done, digest_inputs=False)
                output.publish()
        (folder / "edit.json").write_text(json.dumps({"format": 1, **asked, "tasks": [*names]}, indent=2) + "\n")
        for prints in before:
            check_unchanged(prints)
        replace_folder(folder, out)


def write_model(
    source: Checkpoint,
    output_folder: Path,
    works: Mapping[str, Work],
    stream: Stream,
    make: Callable[[Worker, Piece], Array],
    finish: Callable[[Output], None],
    report: Report,
) -> None:
    """Write and publish a checkpoint with the tensors of `source`: works through `make`, all others byte for byte."""
    laid = [(n, e.dtype, e.shape, e.nbytes) for n, e in source.tensors.items()]
    aliases = {alias: kept for alias, kept in source.aliases.items() if kept in source.tensors}
    shards = lay_out(laid, DEFAULT_SHARD_BYTES, {**aliases, "format": "pt"})
    copied = {n: Work(n, e.shape, e.dtype, (e,)) for n, e in source.tensors.items() if n not in works}

    def either(worker: Worker, piece: Piece) -> list[Array]:
        if piece.work.name in works:
            return [make(worker, piece)]
        return [stored(worker, piece.work.inputs[0], piece.start, piece.stop)]

    with Output(output_folder, shards) as output:
        for index, _, (data,) in _filled(shards, {**copied, **works}, stream, either):
            output.append(index, data.data)
            report(data.nbytes)
        finish(output)
        output.publish()


def stored(worker: Worker, entry: Entry, start: int, stop: int) -> Array:
    """Return elements start .. stop as stored, bytes, an adapter's product added; bytes start .. stop of dtypes below a byte."""
    if entry.low_rank is None:
        width = max(1, DTYPE_BITS[entry.dtype] // 8)
        out = np.empty((stop - start) * width, np.uint8)
        worker.files.entry_into(entry, start * width, out.data)
        return out
    values = np.empty(stop - start, worker.job.compute_dtype)
    worker.read(entry, start, stop, values)
    out = np.empty(values.size * stored_bytes(entry.dtype), np.uint8)
    worker.store(Work(entry.name, entry.shape, entry.dtype, (entry,)), start, values, out)
    return out


def _filled(
    shards: Sequence[Shard],
    works: Mapping[str, Work],
    stream: Stream,
    make: Callable[[Worker, Piece], list[Array]],
    *,
    is_whole: bool = False,
) -> Iterator[tuple[int, Piece, list[Array]]]:
    """Yield what fills the shards, in order: the shard's number, the piece (a tile, or whole), what `make` gives for it."""

    def pieces() -> Iterator[tuple[int, Piece]]:
        for index, shard in enumerate(shards):
            for slot in shard.slots:
                work = works[slot.name]
                entry = work.inputs[0]
                size = entry.nbytes if DTYPE_BITS[entry.dtype] < 8 else work.size
                step = max(size, 1) if is_whole else stream.tile
                for start in range(0, size, step):
                    yield index, Piece(work, start, min(start + step, size))

    with closing(stream.in_order(pieces(), lambda worker, item: (*item, make(worker, item[1])))) as found:
        yield from found


@contextlib.contextmanager
def scratch_beside(out: Path | None) -> Iterator[Path]:
    """Yield a new folder beside `out`, or in the folder for temporary files, which is removed in any case."""
    parent = Path(tempfile.gettempdir()) if out is None else out.absolute().parent
    folder = parent / f".{'weightsmith' if out is None else out.name}.partial-{secrets.token_hex(4)}"
    try:
        folder.mkdir(parents=True)
    except OSError as error:
        raise ResourceError(f"cannot write '{shown(folder)}': {error.strerror}", do="Check the disk") from error
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def replace_folder(folder: Path, out: Path) -> None:
    """Rename a complete folder to its place; an older one goes aside first and is then removed."""
    aside = out.absolute().parent / f".{out.name}.replaced-{secrets.token_hex(4)}"
    try:
        if os.path.lexists(out):
            os.rename(out, aside)
        os.rename(folder, out)
    except OSError as error:
        if aside.exists() and not os.path.lexists(out):
            os.rename(aside, out)
        raise ResourceError(f"cannot publish '{shown(out)}': {error.strerror}", do="Check the disk") from error
    shutil.rmtree(aside, ignore_errors=True)
