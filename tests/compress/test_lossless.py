"""Lossless: what it stores is all there is."""

import numpy as np

from weightsmith.compress import lossless
from weightsmith.method import Tile
from weightsmith.tensor.frames import decode_frame, encode_frame


def test_words_come_back():
    rng = np.random.default_rng(0)
    for kind in ("<u1", "<u2", "<u4", "<u8"):
        high = np.iinfo(kind).max
        base, task = rng.integers(0, high, (2, 1000), dtype=kind, endpoint=True)
        task[:500] = base[:500] + 1  # wraps where the base is largest
        part = lossless.encode(task, None, {}, Tile(), base)
        out = base.copy()
        decode_frame("difference", encode_frame("difference", part.arrays, {}), {}, out, base=out)
        assert (out == task).all()


def test_it_takes_every_tensor_by_itself():
    assert lossless.form == "difference"
    assert not lossless.has_shared
    assert lossless.parameters == {}
