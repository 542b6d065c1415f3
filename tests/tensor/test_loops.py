"""Every compiled loop gives the bits of its eager form, in numpy and in torch."""

import numpy as np
import pytest
import torch

from weightsmith.tensor.arrays import BLOCK, Plain, blocked_sum, is_compiled
from weightsmith.tensor.select import Kth, count_tasks, drop_random, kth_magnitude, trim
from weightsmith.tensor.sign import MERGES, elected_sum, majority, merge_agreeing
from weightsmith.tensor.vector import absolute_sum, add_scaled, combine, extent, gram, pair_sums, weighted_sum

SIZES = (0, 1, 3, 64, 4095, 4096, 4097, 10_000)
TASKS = 3

pytestmark = [
    pytest.mark.parametrize("size", SIZES),
    pytest.mark.parametrize("dtype", ["float32", "float64"]),
]


def draw(size, dtype, rows=TASKS, seed=0):
    """Return rows of ties, signed zeros, subnormals, huge and ordinary values, without an overflowing sum."""
    rng = np.random.default_rng([seed, size, rows])
    kind = np.finfo(dtype)
    huge = 1e37 if dtype == "float32" else 1e150
    pool = np.array([0.0, -0.0, 0.5, -0.5, 0.25, 1.0, -1.0, 3 * kind.smallest_subnormal, huge, -huge], dtype)
    picked = pool[rng.integers(0, len(pool), (rows, size))]
    return np.where(rng.random((rows, size)) < 0.5, picked, rng.standard_normal((rows, size)).astype(dtype))


def bits(result):
    array = np.ascontiguousarray(np.asarray(result))
    return array.dtype.str, array.shape, array.tobytes()


def agree(function, *arrays):
    """Run the compiled form, and both eager forms; compare their bits; return the compiled result."""
    assert is_compiled(*arrays)
    plain = [a.view(Plain) for a in arrays]
    assert not is_compiled(*plain)
    with np.errstate(all="ignore"):
        compiled = function(*arrays)
        assert bits(compiled) == bits(function(*plain))
    assert bits(compiled) == bits(function(*[torch.from_numpy(a) for a in arrays]))
    return compiled


@pytest.mark.parametrize("factors", [None, (1.0, -1.0, 0.5), (0.1, 1e-3, -0.7)])
def test_weighted_sum(size, dtype, factors):
    agree(lambda v: weighted_sum(v, factors), draw(size, dtype))


def test_elected_sum_and_majority(size, dtype):
    vectors = draw(size, dtype)
    agree(elected_sum, vectors)
    balance = agree(majority, vectors)
    assert balance == int(np.sign(vectors[0] + vectors[1] + vectors[2]).sum())


@pytest.mark.parametrize("factor", [0.0, 1.0, -0.3, 1e-20])
def test_add_scaled(size, dtype, factor):
    base, vector = draw(size, dtype, 2)
    agree(lambda b, v: add_scaled(b, v, factor), base, vector)


def test_combine(size, dtype):
    first, second = draw(size, dtype, 2)
    agree(lambda a, b: combine(a, b, 0.3, -0.6), first, second)


def test_blocked_sums(size, dtype):
    vectors = draw(size, dtype)
    found = agree(gram, vectors)
    assert found.shape == (-(-size // BLOCK), TASKS * (TASKS + 1) // 2)
    assert found.dtype == np.float64
    agree(absolute_sum, vectors[1])
    agree(blocked_sum, vectors[1].astype(np.float64))


def test_gram_is_the_matrix_of_inner_products(size, dtype):
    vectors = np.random.default_rng(size).integers(-3, 4, (TASKS, size)).astype(dtype)
    exact = (vectors.astype(np.int64) @ vectors.astype(np.int64).T)[np.triu_indices(TASKS)]
    assert gram(vectors).sum(0).tolist() == exact.tolist()
    assert absolute_sum(vectors[0]).sum() == np.abs(vectors[0]).sum(dtype=np.float64)


@pytest.mark.parametrize("spoiled", [False, True])
def test_pair_sums_and_extent(size, dtype, spoiled):
    first, second = draw(size, dtype, 2)
    second = np.where(np.arange(size) % 3 == 0, first, second)
    if spoiled and size:
        first[size // 2], second[size // 3], second[-1] = np.nan, -np.inf, np.inf
    for part in range(3):
        agree(lambda a, b, part=part: pair_sums(a, b)[part], first, second)
        agree(lambda a, part=part: extent(a)[part], first)


def test_a_blocked_sum_of_tiles_is_that_of_the_whole(size, dtype):
    values = draw(size, dtype, 1)[0].astype(np.float64)
    cut = size // 2 // BLOCK * BLOCK
    parts = np.concatenate([blocked_sum(values[:cut]), blocked_sum(values[cut:])])
    assert parts.tobytes() == blocked_sum(values).tobytes()


@pytest.mark.parametrize("merge", MERGES)
@pytest.mark.parametrize("undecided", [-1, 0, 1])
def test_merge_agreeing(size, dtype, merge, undecided):
    agree(lambda v: merge_agreeing(v, merge, undecided), draw(size, dtype) + 0.0)  # no minus zeros


@pytest.mark.parametrize("has_top", [False, True])
@pytest.mark.parametrize("share", [0.0, 0.2, 0.5, 1.0])
def test_trim(size, dtype, has_top, share):
    vectors = draw(size, dtype)
    rank = round(share * size)
    top, inside = kth_magnitude(vectors, [rank // 3, rank])
    agree(lambda v: trim(v, inside, top if has_top else None), vectors)


def test_trim_of_a_part_is_the_part_of_the_trim(size, dtype):
    vectors = draw(size, dtype)
    top, inside = kth_magnitude(vectors, [size // 10, size // 2])
    whole, cut = trim(vectors, inside, top), size // 3
    left = trim(np.ascontiguousarray(vectors[:, :cut]), inside, top)
    right = agree(lambda v: trim(v, inside, top, start=cut), np.ascontiguousarray(vectors[:, cut:]))
    assert np.hstack([left, right]).tobytes() == whole.tobytes()


def test_trim_by_rows(size, dtype):
    vectors = draw(4 * size, dtype)
    (inside,) = kth_magnitude(vectors, [size // 2], units=4)
    assert isinstance(inside, Kth)
    whole = agree(lambda v: trim(v, inside), vectors)
    for row in range(4):
        part = np.ascontiguousarray(vectors[:, row * size : (row + 1) * size])
        (alone,) = kth_magnitude(part, [size // 2])
        assert trim(part, alone).tobytes() == whole[:, row * size : (row + 1) * size].tobytes()


@pytest.mark.parametrize("density", [1.0, 0.3, 2.0**-20])
def test_drop_random(size, dtype, density):
    keys = (0, 2**64 - 1, 0x123456789ABCDEF0)
    agree(lambda v: drop_random(v, density, keys, start=12_288), draw(size, dtype))


@pytest.mark.parametrize("mask_lambda", [0.0, 0.4, 1.0, 3.0])
def test_count_tasks(size, dtype, mask_lambda):
    vectors = draw(size, dtype)
    found = agree(lambda v, m: count_tasks(v, m, mask_lambda), vectors, weighted_sum(vectors))
    assert found.dtype == np.int32
