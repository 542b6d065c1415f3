"""Reductions: exact answers from streaming passes, however the work is cut, whether guesses hold or fail."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from weightsmith.budget import Demand, choose_limits
from weightsmith.checkpoint.read import open_checkpoint
from weightsmith.device import Device
from weightsmith.engine import windows
from weightsmith.engine.reductions import reduce
from weightsmith.engine.stream import Job, Stream, Work
from weightsmith.method import KthLargest, KthMagnitude, KthMajority, Sums, method
from weightsmith.tensor.arrays import BLOCK
from weightsmith.tensor.select import is_above, is_among_largest
from weightsmith.tensor.vector import absolute_sum, columns, gram


def stable(vector, ranks):
    """Return, for each rank, which entries a stable sort by falling magnitude puts first."""
    order = np.argsort(-np.abs(vector.astype(np.float64)), kind="stable")
    place = np.empty(len(vector), np.int64)
    place[order] = np.arange(len(vector))
    return [place < rank for rank in ranks]


def adversarial(size=30_011):
    rng = np.random.default_rng(4)
    middle = np.arange(size) == size // 2
    return {
        "all equal": np.full(size, 0.75),
        "all zero": np.zeros(size),
        "two values": rng.choice([2.0, -3.0], size),
        "signed zeros": rng.choice([0.0, -0.0], size),
        "one that is not zero": middle * 1.0,
        "huge outlier": np.where(middle, -1e30, rng.standard_normal(size)),
        "few levels": rng.integers(-4, 5, size) / 8.0,
        "neighbours": 1 + rng.integers(0, 5, size) * 2.0**-23,
        "subnormals": rng.integers(-3, 4, size) * 2.0**-149,
        "rising": np.arange(size) * 2.0**-14,
        "normal": rng.standard_normal(size),
        "last digits": 1 + rng.integers(0, 2, size) * 2.0**-16 + rng.integers(0, 2, size) * 2.0**-22,
    }  # fmt: skip


def reducing(asked, reach="elementwise"):
    """Return a method that asks for one reduction and does nothing else."""

    def prepare():
        return (yield asked)

    def ask(base, task_vectors, *, tile):
        return base

    return method(prepare=prepare, scope="model", reach=reach)(ask)


def reduce_streamed(
    folders, asked, *, wide=False, tile=BLOCK, threads=2, regions=4, chunk_bytes=1 << 16, aside=0, reach="elementwise"
):
    """Answer one reduction over all tensors of base and models, as one scope; `aside` bytes allow guesses."""
    checkpoints = [open_checkpoint(str(f)) for f in folders]
    works = [
        Work(name, entry.shape, entry.dtype, tuple(c.tensors[name] for c in checkpoints), None, {})
        for name, entry in checkpoints[0].tensors.items()
    ]
    limits = choose_limits(Demand(len(folders), len(works), 8, ranks=4), 10**10, threads)
    limits = replace(limits, tile=tile, regions=regions, chunk_bytes=chunk_bytes, aside_bytes=aside)
    job = Job(reducing(asked, reach), 0, "float64" if wide else "float32", limits, Device())
    with Stream(job, len(folders)) as stream:
        return reduce(stream, works, lambda done: None)


def save_vectors(save_model, root, vectors, parts):
    """Save a base of zeros and models of the vectors, each cut into tensors."""
    names = [f"layers.{i}.w" for i in range(len(parts))]
    folders = []
    for i, vector in enumerate([np.zeros_like(vectors[0]), *vectors]):
        pieces = np.split(vector, np.cumsum(parts)[:-1])
        tensors = {n: torch.from_numpy(p.copy()) for n, p in zip(names, pieces, strict=True)}
        folders.append(save_model(root / f"m{i}", tensors))
    return folders


@pytest.mark.parametrize("kind", adversarial())
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_kth_magnitude_equals_a_stable_sort(kind, dtype, tmp_path, save_model):
    vector = adversarial()[kind].astype(dtype)
    vectors = [vector, vector[::-1].copy()]
    folders = save_vectors(save_model, tmp_path, vectors, (1, 4095, 20_000, 5_914, 1))
    ranks = [0, 1, 5, 6_001, 15_005, 30_010, 30_011]
    for some in (ranks[:2], ranks[2:4], ranks[4:]):
        found = reduce_streamed(folders, KthMagnitude(lambda size, some=some: some), wide=dtype == "float64")
        for t in range(2):
            for rank, kth, expected in zip(some, found, stable(vectors[t], some), strict=True):
                chosen = is_among_largest(np.stack(vectors), kth)[t]
                assert np.array_equal(chosen, expected), (rank, t)


@pytest.mark.parametrize("tile", [BLOCK, 2 * BLOCK, 131_072])
@pytest.mark.parametrize("regions", [1, 2, 16])
@pytest.mark.parametrize("threads", [1, 5])
def test_kth_magnitude_does_not_depend_on_cuts(tile, regions, threads, tmp_path, save_model):
    vector = adversarial(300_000)["few levels"].astype(np.float32)
    folders = save_vectors(save_model, tmp_path, [vector, -vector[::-1].copy()], (300_000,))
    ranks = [3, 150_000, 299_999]
    asked = KthMagnitude(lambda size: ranks)
    for chunk_bytes in (1 << 16, 4_000_000):
        found = reduce_streamed(folders, asked, tile=tile, regions=regions, threads=threads, chunk_bytes=chunk_bytes)
        for rank, kth in zip(ranks, found, strict=True):
            for t, v in enumerate((vector, vector[::-1])):
                assert np.array_equal(is_among_largest(np.stack([v, v]), kth)[t], stable(v, [rank])[0]), rank


def test_kth_magnitude_beyond_the_first_window_of_a_tensor(tmp_path, save_model):
    """The k-th entry alone in its digit, at the very end of the last tensor."""
    vector = np.full(20_000, 2.0, np.float32)
    vector[-1] = 1.0
    folders = save_vectors(save_model, tmp_path, [vector], (8_000, 12_000))
    for rank, value, cut in ((19_999, 2.0, 19_999), (20_000, 1.0, 20_000), (1, 2.0, 1), (12_345, 2.0, 12_345)):
        (kth,) = reduce_streamed(folders, KthMagnitude(lambda size, rank=rank: [rank]))
        assert kth.value.tolist() == [[value]]
        assert kth.cut.item() >= cut
        assert is_among_largest(vector[None], kth).sum() == rank


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("tile", [BLOCK, 131_072])
def test_sums_equal_math_fsum(dtype, tile, tmp_path, save_model):
    """Where every block's sum is exact, the whole is the exactly rounded sum, whatever cancels."""
    rng = np.random.default_rng(8)
    small = rng.integers(-(2**20), 2**20, 50_000) * 2.0**-20
    large = small.copy()
    large[:BLOCK], large[9 * BLOCK : 10 * BLOCK] = 0, 0
    large[3], large[40_000] = 2.0**90, -(2.0**90)
    vectors = [small.astype(dtype), large.astype(dtype)]
    folders = save_vectors(save_model, tmp_path, vectors, (BLOCK * 3, 50_000 - BLOCK * 3))

    def of(base, others, tile):
        starts = range(0, others.shape[1], BLOCK)
        return np.array([[math.fsum(v[i : i + BLOCK]) for v in others.tolist()] for i in starts])

    found = reduce_streamed(folders, Sums(of), wide=dtype == "float64", tile=tile)
    assert found.tolist() == [math.fsum(v.tolist()) for v in vectors]


def test_products_and_norms_do_not_depend_on_cuts(tmp_path, save_model):
    rng = np.random.default_rng(8)
    vectors = [rng.standard_normal(50_000).astype(np.float32) for _ in range(2)]
    folders = save_vectors(save_model, tmp_path, vectors, (1, 40_000, 9_999))

    def of(base, others, tile):
        return np.hstack([gram(others), columns(absolute_sum(others[0]))])

    found = [
        reduce_streamed(folders, Sums(of), tile=tile, threads=threads).tolist()
        for tile in (BLOCK, 3 * BLOCK, 131_072)
        for threads in (1, 3)
    ]
    assert all(f == found[0] for f in found)
    a, b = (v.astype(np.float64) for v in vectors)
    exact = [math.fsum(a * a), math.fsum(a * b), math.fsum(b * b), math.fsum(abs(a))]
    np.testing.assert_allclose(found[0], exact, rtol=1e-12)


def test_tile_says_where_it_lies(tmp_path, save_model):
    vector = np.arange(20_000, dtype=np.float32)
    folders = save_vectors(save_model, tmp_path, [vector], (5_000, 15_000))
    seen = []

    def of(base, others, tile):
        assert others[0, 0] == tile.position  # the value is the index in the scope
        seen.append((tile.name, tile.shape, tile.start, tile.position))
        return np.zeros((1, 1))

    reduce_streamed(folders, Sums(of), threads=1)
    first = [("layers.0.w", (5_000,), s, s) for s in (0, 4096)]
    second = [("layers.1.w", (15_000,), s, 5_000 + s) for s in (0, 4096, 8192, 12_288)]
    assert seen == first + second


def derive(base, others, tile):
    """Derive three signed values of each element of two task vectors, one of which is often -0."""
    return np.stack([others[0] - others[1], -others[0], others[1] * (others[0] > 0)])


@pytest.mark.parametrize("kind", [k for k in adversarial() if k != "huge outlier"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_kth_largest_equals_a_stable_sort(kind, dtype, tmp_path, save_model):
    vector = adversarial(20_011)[kind].astype(dtype)
    vectors = [vector, np.roll(vector, 5000)]
    folders = save_vectors(save_model, tmp_path, vectors, (1, 4095, 10_000, 5_914, 1))
    ranks = [1, 5, 6_001, 10_006, 20_011]
    rows = derive(None, np.stack(vectors), None)
    orders = [np.argsort(-row, kind="stable") for row in rows]
    found = reduce_streamed(folders, KthLargest(lambda size: ranks, derive), wide=dtype == "float64")
    for rank, kth in zip(ranks, found, strict=True):
        chosen = is_above(rows, kth)
        for t, order in enumerate(orders):
            assert kth.value[t, 0] == rows[t, order[rank - 1]]
            assert not np.signbit(kth.value[t, 0]) or kth.value[t, 0] < 0
            assert np.array_equal(np.sort(order[:rank]), np.flatnonzero(chosen[t])), (rank, t)


@pytest.mark.parametrize("narrow", [True, False])
def test_kth_largest_may_be_derived_in_another_dtype(narrow, tmp_path, save_model):
    vector = np.random.default_rng(3).standard_normal(9_000).astype(np.float32 if not narrow else np.float64)
    folders = save_vectors(save_model, tmp_path, [vector], (9_000,))
    asked = KthLargest(lambda size: [4], lambda b, o, t: o.astype(np.float32 if narrow else np.float64) / 3)
    (kth,) = reduce_streamed(folders, asked, wide=narrow)
    assert kth.value.item() == np.sort(vector.astype(np.float32 if narrow else np.float64) / 3)[-4]


def test_kth_largest_sees_whole_rows_and_its_place(tmp_path, save_model):
    """Of a method that takes rows: each value is its share of its row, so a row that is cut would show."""
    rng = np.random.default_rng(5)
    matrix = rng.random((70, 301)).astype(np.float32)
    folders = [
        save_model(tmp_path / n, {"a": torch.zeros(4, 301), "w": torch.from_numpy(m.copy())})
        for n, m in (("base", 0 * matrix), ("model", matrix))
    ]
    places = []

    def of(base, others, tile):
        rows = others.reshape(-1, tile.row_length)
        places.append((tile.name, tile.start, tile.position, others.shape[1]))
        return (rows / np.maximum(rows.max(1, keepdims=True), 1e-9)).reshape(1, -1)

    expected = np.sort((matrix / matrix.max(1, keepdims=True)).ravel())[::-1]
    for tile, threads in ((BLOCK, 1), (2 * BLOCK, 3), (131_072, 2)):
        places.clear()
        asked = KthLargest(lambda size: [70, 71, 5000], of)
        found = reduce_streamed(folders, asked, tile=tile, threads=threads, reach="row")
        assert [kth.value.item() for kth in found] == [1.0, expected[70], expected[4999]]
        assert all(n % 301 == 0 and start % 301 == 0 for _, start, _, n in places)
        assert {position - start for name, start, position, _ in places if name == "w"} == {4 * 301}


def guesses(monkeypatch, fewest=8):
    """Make samples small enough for small tensors; return a list that says of each guess whether it held."""
    monkeypatch.setattr(windows, "RUN", 256)
    monkeypatch.setattr(windows, "RUNS", (fewest, 16))
    held, find = [], windows.find

    def noting(scope, ranks, votes=False):
        found = find(scope, ranks, votes)
        held.append(found is not None)
        return found

    monkeypatch.setattr(windows, "find", noting)
    return held


def same(kth, other):
    return np.array_equal(kth.value, other.value) and np.array_equal(kth.cut, other.cut)


@pytest.mark.parametrize("kind", adversarial())
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_guess_finds_what_counting_finds(kind, dtype, tmp_path, save_model, monkeypatch):
    held = guesses(monkeypatch)
    vector = adversarial()[kind].astype(dtype)
    folders = save_vectors(save_model, tmp_path, [vector, vector[::-1].copy(), np.roll(vector, 77)], (len(vector),))
    given = {"wide": dtype == "float64"}
    for ranks in ([0], [0, 5], [1, 6_001], [30_010], [15_005, 30_011]):
        asked = KthMagnitude(lambda size, ranks=ranks: ranks)
        counted = reduce_streamed(folders, asked, **given)
        for kth, other in zip(counted, reduce_streamed(folders, asked, aside=10**9, **given), strict=True):
            assert same(kth, other), ranks
    assert held == [False, False] + [False, True] * 4


@pytest.mark.parametrize("kind", adversarial())
@pytest.mark.parametrize("aside", [0, 200_000, 10**9])
def test_the_majority_of_the_trimmed(kind, aside, tmp_path, save_model, monkeypatch):
    guesses(monkeypatch)
    vector = adversarial()[kind].astype(np.float32)
    vectors = [vector, -vector[::-1], np.roll(vector, 77)]
    folders = save_vectors(save_model, tmp_path, vectors, (len(vector),))
    for rank in (1, 3_000, 15_005, 30_011):
        asked = KthMajority(lambda size, rank=rank: rank)
        cuts = ((BLOCK, 1, 1 << 16), (2 * BLOCK, 2, 1 << 20), (131_072, 5, 4_000_000))
        answers = [
            reduce_streamed(folders, asked, tile=t, threads=n, chunk_bytes=c, aside=aside // n) for t, n, c in cuts
        ]
        kept = [np.where(stable(v, [rank])[0], v, 0) for v in vectors]
        total = (kept[0] + kept[1]) + kept[2]
        for kth, balance in answers:
            assert balance == (total > 0).sum() - (total < 0).sum()
            assert same(kth, answers[0][0])
            for t, v in enumerate(vectors):
                assert np.array_equal(is_among_largest(np.stack(vectors), kth)[t], stable(v, [rank])[0])


def test_a_guess_of_many_tensors_is_not_made(tmp_path, save_model, monkeypatch):
    held = guesses(monkeypatch)
    folders = save_vectors(save_model, tmp_path, [adversarial()["normal"]], (20_000, 10_011))
    reduce_streamed(folders, KthMajority(lambda size: 99), aside=10**9, wide=True)
    assert held == [False]


@pytest.mark.parametrize("beyond", [0.0, 3.0])
def test_a_guess_that_misses_is_made_good(beyond, tmp_path, save_model, monkeypatch):
    """The sample shows nothing like the tensor: the k-th lies below, or above, every window."""
    held = guesses(monkeypatch)
    vector = adversarial()["normal"].astype(np.float32)
    folders = save_vectors(save_model, tmp_path, [vector], (len(vector),))
    asked = KthMajority(lambda size: 6_001)
    kth, balance = reduce_streamed(folders, asked)
    wrong = np.tile(np.linspace(beyond, beyond + 0.01, 256, dtype=np.float32), (1, 8, 1))
    monkeypatch.setattr(windows, "sample_magnitudes", lambda scope, runs: wrong)
    found, again = reduce_streamed(folders, asked, aside=10**9)
    assert held == [False, False]
    assert same(found, kth)
    assert again == balance


@pytest.mark.parametrize("threads", [1, 4])
@pytest.mark.parametrize("is_told", [True, False])
def test_a_guess_that_needs_too_much_memory_is_given_up(threads, is_told, tmp_path, save_model, monkeypatch):
    """All entries are equal, so all are open: the sample tells, or the pass stops on its way."""
    held = guesses(monkeypatch)
    folders = save_vectors(save_model, tmp_path, [np.full(300_000, 0.5, np.float32)], (300_000,))
    asked = KthMajority(lambda size: 6_001)
    read, each_tile = [], Stream.each_tile
    monkeypatch.setattr(Stream, "each_tile", lambda *given: (read.append(p) or p for p in each_tile(*given)))
    kth, balance = reduce_streamed(folders, asked, threads=threads)
    counted = len(read)
    if not is_told:
        monkeypatch.setattr(windows, "sample_magnitudes", lambda scope, runs: np.full((1, 8, 256), 9, np.float32))
        monkeypatch.setattr(windows, "window", lambda *_: (np.float32([0.5]), np.float32([0.6])))
    found, again = reduce_streamed(folders, asked, aside=300_000 // threads, threads=threads)
    assert held == [False, False]
    assert (kth.value.item(), kth.cut.item(), balance) == (0.5, 6_001, 6_001)
    assert (same(found, kth), again) == (True, balance)
    more = len(read) - 2 * counted  # tiles of the pass that was given up, of 74
    assert more == 0 if is_told else 0 < more < 50


def test_a_window_is_as_wide_as_the_runs_are_unlike():
    rng = np.random.default_rng(6)
    alike = np.abs(rng.standard_normal((1, 32, 2048)))
    unlike = alike * np.linspace(0.2, 1.8, 32)[None, :, None]
    widths = []
    for sample in (alike, unlike):
        ordered = np.sort(sample.reshape(1, -1))
        low, top = windows.window(sample, ordered, 0.2)
        assert low < ordered[0, -round(0.2 * ordered.size)] < top
        widths.append(((sample >= low) & (sample <= top)).mean())
    assert 0.01 < widths[0] < 0.03
    assert widths[1] > 4 * widths[0]


@pytest.mark.parametrize("share", [1e-9, 1.0])
def test_a_window_at_either_end_is_open(share):
    sample = np.abs(np.random.default_rng(6).standard_normal((2, 32, 2048))) + 1
    low, top = windows.window(sample, np.sort(sample.reshape(2, -1)), share)
    assert (np.isinf(top).all(), (low == 0).all()) == (share < 0.5, share > 0.5)


def test_a_sample_is_spread_over_rows_and_columns(tmp_path, save_model, monkeypatch):
    """No column of a matrix is where every run begins."""
    seen = []
    size = 1 << 20
    vector = np.arange(size, dtype=np.float32) % 4096 + 1
    folders = save_vectors(save_model, tmp_path, [vector], (size,))
    monkeypatch.setattr(windows, "RUN", 64)
    original = windows.sample_magnitudes
    monkeypatch.setattr(windows, "sample_magnitudes", lambda *given: seen.append(original(*given)) or seen[-1])
    (kth,) = reduce_streamed(folders, KthMagnitude(lambda size: [size // 2]), tile=131_072, aside=10**9)
    assert kth.value.item() == 2049
    firsts = seen[0][0, :, 0]
    assert len(set((firsts // (4096 / 8)).tolist())) == 8  # every eighth of a row has a run that begins in it
