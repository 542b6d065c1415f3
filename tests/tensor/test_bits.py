"""Packed masks: against loops over single bits."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from weightsmith.tensor.bits import (
    agreement,
    count,
    is_padded_with_zeros,
    jaccard,
    overlaps,
    pack,
    packed_bytes,
    unpack,
)

SIZES = (0, 1, 7, 8, 63, 64, 65, 65_536)


def draw(size, density, tasks=1, seed=0):
    return np.random.default_rng([seed, size, tasks]).random((tasks, size)) < density


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("density", [0, 0.01, 0.5, 1])
def test_round_trip(size, density):
    (mask,) = draw(size, density)
    packed = pack(mask)
    assert packed.dtype == np.uint8
    assert packed.size == packed_bytes(size)
    back = unpack(packed, size)
    assert back.dtype == np.bool_
    assert back.tolist() == mask.tolist()
    assert count(packed) == sum(mask.tolist())
    assert is_padded_with_zeros(packed, size)


def test_the_lowest_bit_comes_first():
    assert pack(np.array([True, False, False, False, False, False, False, True, True])).tolist() == [129, 1]


@pytest.mark.parametrize(
    ("byte", "size", "good"), [(0b100, 3, True), (0b1000, 3, False), (0xFF, 8, True), (0x80, 7, False)]
)
def test_padding(byte, size, good):
    assert is_padded_with_zeros(np.array([byte], np.uint8), size) is good


@settings(deadline=None)
@given(st.integers(1, 9), st.integers(0, 70), st.floats(0, 1), st.integers(0, 99))
def test_what_masks_share(tasks, size, density, seed):
    masks = draw(size, density, tasks, seed)
    packed = np.stack([pack(m) for m in masks])
    sets = [set(np.flatnonzero(m).tolist()) for m in masks]
    shared = overlaps(packed)
    assert shared.tolist() == [[len(a & b) for b in sets] for a in sets]
    assert jaccard(shared).tolist() == [[len(a & b) / len(a | b) if a | b else 1.0 for b in sets] for a in sets]
    selected_by = masks.sum(axis=0).tolist()
    assert agreement(packed, size).tolist() == [selected_by.count(k) for k in range(tasks + 1)]


def test_agreement_of_thirty_masks():
    masks = draw(1000, 0.4, 30)
    found = agreement(np.stack([pack(m) for m in masks]), 1000)
    assert found.tolist() == np.bincount(masks.sum(axis=0), minlength=31).tolist()
