"""k-th magnitudes of several tensors in one pass: what bins find is what a stable sort finds, or nothing."""

import numpy as np
import pytest
from tests.engine.test_reductions import adversarial, reduce_streamed, same, save_vectors, stable

from weightsmith.engine import bins, reductions, windows
from weightsmith.method import KthMagnitude, KthMajority
from weightsmith.tensor import compiled
from weightsmith.tensor.select import is_among_largest

PARTS = (20_000, 100, 9_911)


@pytest.fixture
def held(monkeypatch):
    """Samples small enough for small tensors; a list that says of each guess whether it held."""
    monkeypatch.setattr(windows, "RUN", 256)
    monkeypatch.setattr(windows, "RUNS", (8, 16))
    found, find = [], bins.find_in_bins

    def noting(scope, ranks):
        answer = find(scope, ranks)
        found.append(answer is not None)
        return answer

    monkeypatch.setattr(reductions, "find_in_bins", noting)
    return found


@pytest.mark.parametrize("kind", adversarial())
@pytest.mark.parametrize("threads", [1, 3])
def test_bins_find_what_a_stable_sort_finds(kind, threads, tmp_path, save_model, held):
    vector = adversarial()[kind].astype(np.float32)
    vectors = [vector, vector[::-1].copy(), np.roll(vector, 77)]
    folders = save_vectors(save_model, tmp_path, vectors, PARTS)
    for ranks in ([6_001], [1, 15_005], [30_010, 30_011]):
        found = reduce_streamed(folders, KthMagnitude(lambda size, ranks=ranks: ranks), threads=threads)
        for t in range(3):
            for rank, kth, expected in zip(ranks, found, stable(vectors[t], ranks), strict=True):
                assert np.array_equal(is_among_largest(np.stack(vectors), kth)[t], expected), (rank, t)
    if kind in ("few levels", "all equal", "two values"):
        assert held == [True, True, True]


@pytest.mark.parametrize("case", ["float64", "memory", "neither"])
def test_no_guess_is_made(case, tmp_path, save_model, held, monkeypatch):
    folders = save_vectors(save_model, tmp_path, [adversarial()["few levels"].astype(np.float32)], PARTS)
    reduce_streamed(
        folders, KthMagnitude(lambda size: [99]), wide=case == "float64", regions=2 if case == "memory" else 4
    )
    assert held == [case == "neither"]


def test_bins_of_several_patterns_give_no_answer(tmp_path, save_model, held, monkeypatch):
    """Two bins for a window of thousands of numbers: a bin holds many, and the search is made good."""
    monkeypatch.setattr(bins, "BINS", 2)
    vector = adversarial()["normal"].astype(np.float32)
    folders = save_vectors(save_model, tmp_path, [vector], PARTS)
    (kth,) = reduce_streamed(folders, KthMagnitude(lambda size: [6_001]))
    assert held == [False]
    assert np.array_equal(is_among_largest(vector[None], kth)[0], stable(vector, [6_001])[0])


@pytest.mark.parametrize("beyond", [0.0, 3.0])
def test_a_wrong_sample_is_made_good(beyond, tmp_path, save_model, held, monkeypatch):
    vector = adversarial()["normal"].astype(np.float32)
    folders = save_vectors(save_model, tmp_path, [vector], PARTS)
    wrong = np.tile(np.linspace(beyond, beyond + 0.01, 256, dtype=np.float32), (1, 8, 1))
    asked = KthMagnitude(lambda size: [6_001])
    right = reduce_streamed(folders, asked)[0]
    monkeypatch.setattr(bins, "sample_magnitudes", lambda scope, runs: wrong)
    assert same(reduce_streamed(folders, asked)[0], right)
    assert held[1] is False


def test_the_last_of_equals_is_found_where_it_lies(tmp_path, save_model, held):
    """The k-th is the likeliest: only the batch in which the last of the k lies is read again."""
    vector = np.tile(np.array([1, 2, 2, 3], np.float32), 75_000)
    folders = save_vectors(save_model, tmp_path, [vector, vector[::-1].copy()], (150_000, 150_000))
    (kth,) = reduce_streamed(folders, KthMagnitude(lambda size: [75_000 + 60_001]))
    assert held == [True]
    assert kth.value.ravel().tolist() == [2, 2]
    assert kth.cut.ravel().tolist() == [np.flatnonzero(v == 2)[60_000] + 1 for v in (vector, vector[::-1])]
    (_, balance) = reduce_streamed(folders, KthMajority(lambda size: 75_000 + 60_001))
    kept = [np.where(stable(v, [135_001])[0], v, 0) for v in (vector, vector[::-1])]
    assert balance == (kept[0] + kept[1] > 0).sum()


@pytest.mark.parametrize("size", [0, 1, 7, 8, 1023, 1024, 1025, 5000])
@pytest.mark.parametrize(("first", "likeliest", "last"), [(3, 5, 900), (3, 3, 3), (3, 3, 4), (0, 900, 900), (4, 5, 6)])
def test_each_pattern_is_counted_once(size, first, likeliest, last):
    patterns = np.random.default_rng(size).integers(0, 1000, size, dtype=np.uint32)
    patterns[::3] = 5
    signs = np.arange(size, dtype=np.uint32) % 2 << 31
    seen, shift = np.zeros(4, np.int64), np.uint32(2)
    counts, least, most = np.zeros(300, np.uint32), np.full(300, 2**32 - 1, np.uint32), np.zeros(300, np.uint32)
    bounds = (np.uint32(first), np.uint32(likeliest), np.uint32(last), shift)
    compiled.count_bins(patterns | signs, *bounds, seen, counts, least, most)
    given = patterns.tolist()
    assert seen.tolist() == [
        given.count(first),
        given.count(likeliest),
        given.count(last),
        sum(p > last for p in given),
    ]
    inner = [p for p in given if first < p < last and p != likeliest]
    for place in range(300):
        here = [p for p in inner if (p - first) >> 2 == place]
        assert counts[place] == len(here)
        assert not here or (least[place], most[place]) == (min(here), max(here))
