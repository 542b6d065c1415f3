"""Exact k-th magnitudes against a full sort; random masks by position alone."""

import hashlib

import numpy as np
import pytest
import torch

from weightsmith.tensor import compiled
from weightsmith.tensor.arrays import Plain
from weightsmith.tensor.select import (
    drop_random,
    is_above,
    is_among_largest,
    kth_largest,
    kth_magnitude,
    ordered,
    random_key,
    sift,
    sorted_magnitudes,
    task_mask,
    unordered,
)


def largest(vector, rank):
    """Return which entries a stable sort by falling magnitude puts first."""
    order = sorted(range(len(vector)), key=lambda i: (-abs(float(vector[i])), i))
    mask = np.zeros(len(vector), bool)
    mask[order[:rank]] = True
    return mask


def adversarial():
    rng = np.random.default_rng(4)
    size = 997
    return {
        "all equal": np.full(size, 0.75),
        "all zero": np.zeros(size),
        "two values": rng.choice([2.0, -3.0], size),
        "signed zeros": rng.choice([0.0, -0.0], size),
        "zeros and one": np.eye(1, size, 500)[0],
        "one outlier": np.where(np.arange(size) == 13, -1e30, 1e-30),
        "few levels": rng.integers(-4, 5, size) / 8.0,
        "neighbours": np.nextafter(np.float32(1), np.float32(2)) * rng.choice([1.0, -1.0], size),
        "subnormals": rng.integers(-3, 4, size) * 2.0**-149,
        "normal": rng.standard_normal(size).astype(np.float32),
    }


@pytest.mark.parametrize("kind", adversarial())
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_kth_magnitude_equals_a_stable_sort(kind, dtype):
    vector = adversarial()[kind].astype(dtype)
    vectors = np.stack([vector, np.roll(vector, 3)[::-1]])
    ranks = [0, 1, 2, 100, 498, 996, 997]
    for rank, found in zip(ranks, kth_magnitude(vectors, ranks), strict=True):
        chosen = is_among_largest(vectors, found)
        for t in range(2):
            assert np.array_equal(chosen[t], largest(vectors[t], rank)), rank
        torch_found = kth_magnitude(torch.from_numpy(vectors), [rank])[0]
        assert np.array_equal(torch_found.value, found.value)
        assert np.array_equal(torch_found.cut, found.cut)
        assert np.array_equal(is_among_largest(torch.from_numpy(vectors), found).numpy(), chosen)


def test_kth_magnitude_of_rows():
    vectors = np.random.default_rng(0).integers(-3, 4, (2, 60)).astype(np.float32)
    (found,) = kth_magnitude(vectors, [4], units=6)
    assert found.value.shape == (2, 6)
    chosen = is_among_largest(vectors, found)
    for t in range(2):
        for row in range(6):
            part = slice(10 * row, 10 * row + 10)
            assert np.array_equal(chosen[t, part], largest(vectors[t, part], 4))


@pytest.mark.parametrize("kind", adversarial())
def test_kth_largest_minds_the_sign(kind):
    values = np.stack([adversarial()[kind].astype(np.float32), -adversarial()[kind].astype(np.float32)])
    for rank in (1, 2, 400, 997):
        (found,) = kth_largest(values, [rank])
        for rows in (values, torch.from_numpy(values)):
            chosen = np.asarray(is_above(rows, found))
            for t in range(2):
                order = sorted(range(997), key=lambda i, t=t: (-values[t, i], i))
                assert found.value[t, 0] == values[t, order[rank - 1]]
                assert np.array_equal(np.flatnonzero(chosen[t]), sorted(order[:rank]))
        assert str(found.value) == str(found.value + 0.0)  # no -0


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_ordered_keys_are_in_the_order_of_the_values(dtype):
    kind = np.finfo(dtype)
    least, most = kind.smallest_subnormal, kind.max
    values = np.array([[-np.inf, -most, -1.0, -least, 0.0, least, 1.0, most, np.inf]], dtype)
    keys = ordered(values)
    assert keys.dtype.itemsize == values.dtype.itemsize
    assert all(a < b for a, b in zip(keys[0, :-1].tolist(), keys[0, 1:].tolist(), strict=True))
    assert unordered(keys).tobytes() == values.tobytes()
    assert ordered(-np.zeros((1, 1), dtype)).item() == ordered(np.zeros((1, 1), dtype)).item()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("size", [0, 1, 1023, 1024, 1025, 5000])
@pytest.mark.parametrize("ranks", [1, 2])
def test_sift_parts_the_open_from_the_others(dtype, size, ranks):
    rng = np.random.default_rng(size)
    vectors = (rng.integers(-6, 7, (3, size)) / 4).astype(dtype)
    low, top = np.full((3, ranks), 0.5, dtype), np.full((3, ranks), 0.75, dtype)
    low[1], top[1] = 0, 0
    top[2, -1] = np.inf
    index, above, balance = sift(vectors, low, top)
    for found, expected in zip((index, above, balance), sift(vectors.view(Plain), low, top), strict=True):
        assert np.array_equal(found, expected)
        assert np.asarray(found).dtype == np.asarray(expected).dtype
    expected_open, total = [], 0
    for i in range(size):
        entry = [abs(float(v)) for v in vectors[:, i]]
        if 0.5 <= entry[0] <= 0.75 or entry[1] == 0 or 0.5 <= entry[2] <= float(top[2, -1]):
            expected_open.append(i)
        else:
            vote = sum(float(v) for v, a, t in zip(vectors[:, i], entry, top[:, 0], strict=True) if a > t)
            total += (vote > 0) - (vote < 0)
    assert index.tolist() == expected_open
    assert above.tolist() == [[int((abs(v) > t).sum()) for t in row] for v, row in zip(vectors, top, strict=True)]
    assert balance == total
    without = sift(vectors, low, top, votes=False)
    assert (without[0].tolist(), without[1].tolist(), without[2]) == (index.tolist(), above.tolist(), 0)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("size", [0, 1, 2049])
def test_magnitudes_are_sorted(dtype, size):
    values = np.abs(np.random.default_rng(size).standard_normal(size)).astype(dtype) * 1e-30
    values[: size // 3] = 0
    values[size // 2 : size // 2 + 3] = np.inf
    kept = values.copy()
    found = sorted_magnitudes(values)
    assert found.dtype == values.dtype
    assert found.tolist() == sorted(values.tolist())
    assert np.array_equal(values, kept)


def test_magnitudes_inside_a_window_are_counted():
    vector = np.array([1, -2, 3, 2, -3, 4, 2], np.float32)
    assert compiled.count_inside(vector, np.float32(2), np.float32(3)) == (2, 3)
    assert [compiled.nth_equal(vector, np.float32(2), n) for n in (1, 2, 3)] == [1, 3, 6]


def test_nothing_is_among_the_largest_none():
    (found,) = kth_magnitude(np.ones((1, 5), np.float32), [0])
    assert found.value.tolist() == [[np.inf]]
    assert found.cut.tolist() == [[0]]
    assert not is_among_largest(np.ones((1, 5), np.float32), found).any()


def test_one_entry_and_none():
    (found,) = kth_magnitude(np.array([[-2.0]]), [1])
    assert (found.value.item(), found.cut.item()) == (2.0, 1)
    (none,) = kth_magnitude(np.zeros((3, 0)), [0])
    assert none.value.shape == (3, 1)


@pytest.mark.parametrize("cut", [0, 1, 7, 4096, 4999, 5000])
def test_random_mask_depends_on_the_position_alone(cut):
    vectors = np.ones((2, 5000), np.float32)
    keys = [random_key(7, t, "w") for t in range(2)]
    whole = drop_random(vectors, 0.3, keys)
    parts = [drop_random(vectors[:, :cut].copy(), 0.3, keys), drop_random(vectors[:, cut:].copy(), 0.3, keys, cut)]
    assert np.hstack(parts).tobytes() == whole.tobytes()


def test_mean_over_seeds_is_the_vector():
    # Variance of one draw is v^2 (1 - p) / p; the mean of 1000 has deviation v * sqrt(3 / 1000) = 0.055 v at p = 1/4.
    vector = np.arange(1, 33, dtype=np.float64)[None]
    mean = sum(drop_random(vector, 0.25, [random_key(seed, 0, "w")]) for seed in range(1000))[0] / 1000
    assert np.all(np.abs(mean - vector[0]) < 5 * 0.055 * vector[0])
    assert abs((mean / vector[0]).mean() - 1) < 5 * 0.055 / np.sqrt(32)


@pytest.mark.parametrize("density", [0.01, 0.3, 0.5, 0.97])
def test_share_kept_is_near_the_density(density):
    size = 200_000
    kept = drop_random(np.ones((1, size)), density, [random_key(0, 0, "w")])
    assert abs((kept != 0).mean() - density) < 5 * np.sqrt(density * (1 - density) / size)
    assert set(np.unique(kept)) == {0.0, 1.0 / density}


def test_masks_differ_by_seed_task_and_name():
    ones = np.ones((1, 256))
    masks = [
        drop_random(ones, 0.5, [random_key(seed, task, name)]).tobytes()
        for seed in (0, 1, 11)
        for task in (0, 1, 10)
        for name in ("w", "0w", "layers.1.w", "")
    ]
    assert len(set(masks)) == len(masks)


def test_masks_of_neighbouring_seeds_are_independent():
    ones = np.ones((1, 100_000))
    first, second = (drop_random(ones, 0.5, [random_key(seed, 0, "w")])[0] != 0 for seed in (0, 1))
    assert abs((first & second).mean() - 0.25) < 0.01
    assert abs((first[1:] & first[:-1]).mean() - 0.25) < 0.01


def test_random_key_is_written_down():
    # A change here changes the result of every recipe with a seed.
    text = b"3\x001\x00model.w"
    assert random_key(3, 1, "model.w") == int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little")
    assert 0 <= random_key(2**63 - 1, 999, "\udcff") < 2**64


def test_split_mix_by_hand():
    def uniform(key, index):
        z = (key + (index + 1) * 0x9E3779B97F4A7C15) % 2**64
        z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        z = (z ^ (z >> 27)) * 0x94D049BB133111EB % 2**64
        return ((z ^ (z >> 31)) >> 11) / 2**53

    key = 2**64 - 12345
    kept = drop_random(np.ones((1, 500)), 0.4, [key], start=10**9)[0] != 0
    assert kept.tolist() == [uniform(key, 10**9 + i) < 0.4 for i in range(500)]


def test_task_mask_by_hand():
    # tau_1 = 1, 0, .5 and tau_2 = 0, 2, -.4; their sum 1, 2, .1.
    # |tau_1| > .5 |sum - tau_1|: 1 > 0, 0 > 1 not, .5 > .2; strict, so a zero entry never.
    vectors = np.array([[1.0, 0.0, 0.5], [0.0, 2.0, -0.4]])
    mask = task_mask(vectors, vectors.sum(0), 0.5)
    assert mask.tolist() == [[True, False, True], [False, True, True]]
    assert not task_mask(np.zeros((1, 2)), np.zeros(2), 0.0).any()
