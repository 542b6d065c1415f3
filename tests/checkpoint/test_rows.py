"""Rows gathered from several files: any range of bytes is that range of the whole."""

import numpy as np
import pytest

from weightsmith.checkpoint.entry import MEAN, PADDING, ZERO, Entry, Rows
from weightsmith.checkpoint.read import Files

SHAPE = (4, 3)


@pytest.fixture
def entry(tmp_path):
    """float32 rows: two of its own, zeros, two of a float16 source, a mean, two of padding."""
    rng = np.random.default_rng(0)
    sources = []
    for name, dtype, kind in (("own", "F32", np.float32), ("other", "F16", np.float16)):
        values = rng.standard_normal(SHAPE).astype(kind)
        (tmp_path / name).write_bytes(b"12345678" + values.tobytes())
        sources.append((Entry(name, dtype, SHAPE, tmp_path / name, 8, values.nbytes), values.astype(np.float64)))
    (own, a), (other, b) = sources
    begins, parts, firsts = np.array([[0, 2, 3, 5, 6], [0, ZERO, 1, MEAN, PADDING], [1, 0, 2, 1, 0]])
    rows = Rows((own, other), begins, parts, firsts, (((0, 0),), ((0, 3), (1, 0))), 6)
    whole = np.stack([a[1], a[2], 0 * a[0], b[2], b[3], (a[3] + b[0]) / 2]).astype(np.float32)
    padding = whole.astype(np.float64).mean(0).astype(np.float32)
    expected = np.concatenate([whole, [padding, padding]])
    return Entry("t", "F32", (8, 3), own.file, 8, 8 * 12, rows=rows), expected


def test_any_range_is_that_of_the_whole(entry):
    entry, expected = entry
    raw = expected.tobytes()
    with Files() as files:
        for start in range(0, len(raw), 4):
            for stop in range(start + 4, len(raw) + 1, 4):
                out = bytearray(stop - start)
                files.entry_into(entry, start, memoryview(out))
                np.testing.assert_array_equal(np.frombuffer(out, "<f4"), np.frombuffer(raw[start:stop], "<f4"))


def test_padding_is_formed_once(entry):
    entry, _ = entry
    with Files() as files:
        for _ in range(3):
            files.entry_into(entry, 6 * 12, memoryview(bytearray(24)))
    assert len(entry.rows.padding) == 1
