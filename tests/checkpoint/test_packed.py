"""Forming tensors of many frames: whole, in runs of frames, and in parts that end anywhere."""

from pathlib import Path

import numpy as np
import pytest

from weightsmith.checkpoint.entry import Entry, Packed, Term
from weightsmith.checkpoint.packed import RUN_FRAMES, Memo, rebuild
from weightsmith.tensor.frames import FRAME, encode_frame

SIZE = (2 * RUN_FRAMES + 1) * FRAME + 777
SCALE = np.float32(0.01)


def bfloat16(values):
    """Round to nearest, ties to even, by doubling the precision of the choice."""
    bits = values.view(np.uint32).astype(np.uint64)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype("<u2")


def packed_as(form):
    """Return an entry, the bytes it should have, and a function that reads the stored pieces."""
    rng = np.random.default_rng(5)
    base, task = (bfloat16(rng.standard_normal(SIZE).astype(np.float32)) for _ in range(2))
    signs = rng.choice([-1, 0, 0, 0, 1], SIZE).astype(np.int8)
    vector = rng.standard_normal(SIZE).astype(np.float32)
    numbers = (base.astype(np.uint32) << 16).view(np.float32)
    given = {
        "ternary": ({"signs": signs}, bfloat16(numbers + SCALE * signs)),
        "mask": ({"mask": signs != 0}, bfloat16(numbers + SCALE * vector * (signs != 0))),
        "difference": ({"base": base, "finetuned": task}, task),
    }
    arrays, wanted = given[form]
    cut = [{k: a[s : s + FRAME] for k, a in arrays.items()} for s in range(0, SIZE, FRAME)]
    frames = [encode_frame(form, part, {}) for part in cut]
    stored = {
        "base": base.tobytes(),
        "frames": b"".join(frames),
        "lengths": np.array([len(f) for f in frames], "<u4").tobytes(),
        "vector": vector.tobytes(),
    }
    dtypes = {"base": "BF16", "frames": "U8", "lengths": "U32", "vector": "F32"}
    pieces = {n: Entry(n, dtypes[n], (SIZE,), Path("f"), 0, len(raw)) for n, raw in stored.items()}
    settings = {} if form == "difference" else {"scale": float(SCALE)}
    packed = Packed(pieces.pop("base"), (Term(form, pieces, settings),))

    def read(piece, start, target):
        target.cast("B")[:] = stored[piece.name][start : start + target.nbytes]

    return Entry("w", "BF16", (SIZE,), Path("f"), 0, 2 * SIZE, packed=packed), wanted.tobytes(), read


@pytest.mark.parametrize("form", ["ternary", "mask", "difference"])
@pytest.mark.parametrize("step", [SIZE, 3 * FRAME, FRAME + 1, 50_001])
def test_parts_are_the_whole(form, step):
    entry, wanted, read = packed_as(form)
    found, memo = bytearray(entry.nbytes), Memo()
    for start in range(0, SIZE, step):
        piece = memoryview(found)[2 * start : 2 * min(start + step, SIZE)]
        rebuild(entry, entry.packed, 2 * start, piece, read, memo)
    assert bytes(found) == wanted


def test_another_tensor_of_the_same_place_is_not_taken_for_the_last_one():
    memo = Memo()
    for form in ("ternary", "difference", "ternary"):
        entry, wanted, read = packed_as(form)
        piece = memoryview(bytearray(100))
        rebuild(entry, entry.packed, 20, piece, read, memo)
        assert bytes(piece) == wanted[20:120]
