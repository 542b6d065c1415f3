"""What spectra tell."""

import math

import numpy as np
import pytest

from weightsmith.tensor.spectra import alignment, dominant, effective_rank, singular_interference, stable_rank
from weightsmith.tensor.spectral import Factors


def factors(matrix, rank):
    u, s, v = np.linalg.svd(matrix, full_matrices=False)
    return Factors(u[:, :rank], s[:rank], v[:rank])


def test_ranks_by_hand():
    # Shares 1/2, 1/4, 1/4: entropy 1.5 ln 2, and 2 ** 1.5. Squares 4, 1, 1 over 4.
    values = np.array([2.0, 1.0, 1.0, 0.0])
    assert effective_rank(values) == pytest.approx(2**1.5, rel=1e-12)
    assert stable_rank(values) == 1.5
    assert effective_rank(np.zeros(3)) == stable_rank(np.zeros(3)) == 0


def test_how_many_directions_dominate():
    # Of (10, 1, .1) the last is 1 % of the length, the last two 10 %.
    assert dominant(np.array([10.0, 1.0, 0.1])) == 2
    assert dominant(np.array([10.0, 1.0, 0.1]), residual=0.2) == 1
    assert dominant(np.array([3.0])) == 1


def test_alignment():
    space = np.array([[1.0], [0.0]])
    assert alignment(space, np.array([[3.0], [4.0]])) == pytest.approx(0.6)
    assert alignment(space, np.zeros((2, 1))) is None
    assert alignment(np.eye(2), np.array([[3.0], [4.0]])) == pytest.approx(1.0)


def test_interference_vanishes_for_orthogonal_tasks_and_not_for_equal_ones():
    first, second = np.zeros((4, 4)), np.zeros((4, 4))
    first[0, 0], second[1, 1] = 3.0, 2.0
    assert singular_interference([factors(first, 1), factors(second, 1)]) == pytest.approx(0, abs=1e-12)
    # Twice the same triplet: U^T U - 1 and V V^T - 1 are [[0, 1], [1, 0]], so S remains, exchanged: 3 + 3.
    assert singular_interference([factors(first, 1)] * 2) == pytest.approx(6)


def test_interference_against_its_formula():
    rng = np.random.default_rng(0)
    parts = [factors(rng.standard_normal((6, 5)), 2) for _ in range(2)]
    u = np.concatenate([p.left for p in parts], 1)
    v = np.concatenate([p.right for p in parts]).T
    s = np.diag(np.concatenate([p.values for p in parts]))
    expected = np.abs((u.T @ u - np.eye(4)) @ s @ (v.T @ v - np.eye(4))).sum()
    assert math.isclose(singular_interference(parts), expected, rel_tol=1e-12)
