"""Counts of packed masks, against counts of plain ones."""

import itertools

import numpy as np
import pytest

from weightsmith.tensor.agreement import counted, histogram, pack, shared, signs


def test_by_hand():
    masks = np.array([[1, 1, 0, 0], [1, 0, 1, 0], [1, 0, 0, 0]], bool)
    words = pack(masks)
    assert counted(words).tolist() == [2, 2, 1]
    assert shared(words).tolist() == [1, 1, 1]  # (0, 1), (0, 2), (1, 2): entry 0 alone
    assert histogram(masks).tolist() == [1, 2, 0, 1]


def test_signs_by_hand():
    # Entry 0: + - 0, entry 1: + + +, entry 2: 0 0 -, entry 3: 0 - +.
    vectors = np.array([[1, 1, 0, 0], [-1, 1, 0, -1], [0, 1, -1, 1]])
    found = signs(pack(vectors > 0), pack(vectors < 0))
    assert (found.moved, found.conflicts) == (3, 2)
    assert found.both.tolist() == [2, 1, 2]
    assert found.opposed.tolist() == [1, 0, 1]


@pytest.mark.parametrize("size", [1, 63, 64, 65, 1000])
@pytest.mark.parametrize("tasks", [1, 2, 5])
def test_against_plain_counts(size, tasks):
    vectors = np.random.default_rng(size).integers(-1, 2, (tasks, size))
    masks = vectors != 0
    pairs = list(itertools.combinations(range(tasks), 2))
    words = pack(masks)
    assert counted(words).tolist() == masks.sum(1).tolist()
    assert shared(words).tolist() == [int((masks[s] & masks[t]).sum()) for s, t in pairs]
    assert histogram(masks).tolist() == [int((masks.sum(0) == n).sum()) for n in range(tasks + 1)]
    found = signs(pack(vectors > 0), pack(vectors < 0))
    assert found.moved == int((masks.sum(0) > 1).sum())
    assert found.conflicts == int(((vectors > 0).any(0) & (vectors < 0).any(0)).sum())
    assert found.opposed.tolist() == [int((vectors[s] * vectors[t] < 0).sum()) for s, t in pairs]
