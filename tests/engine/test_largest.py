"""k-th largest of derived values in one pass: what a guess finds is what counting finds."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from weightsmith.budget import Demand, choose_limits
from weightsmith.checkpoint.read import open_checkpoint
from weightsmith.device import Device
from weightsmith.engine import largest, reductions
from weightsmith.engine.reductions import reduce
from weightsmith.engine.stream import Job, Stream, Work
from weightsmith.method import KthLargest, method
from weightsmith.tensor.arrays import BLOCK

SIZE = 30_011


def kinds():
    rng = np.random.default_rng(4)
    return {
        "all equal": np.full(SIZE, 0.75),
        "signed zeros": rng.choice([0.0, -0.0], SIZE),
        "one that is not zero": (np.arange(SIZE) == SIZE // 2) * 1.0,
        "few levels": rng.integers(-4, 5, SIZE) / 8.0,
        "subnormals": rng.integers(-3, 4, SIZE) * 2.0**-149,
        "rising": np.arange(SIZE) * 2.0**-14,
        "normal": rng.standard_normal(SIZE),
    }


def reduce_streamed(folders, asked, *, wide=False, threads=2, aside=0, reach="elementwise"):
    """Answer one reduction over all tensors of base and models, as one scope; `aside` bytes allow guesses."""

    def prepare():
        return (yield asked)

    @method(prepare=prepare, scope="model", reach=reach)
    def ask(base, task_vectors, *, tile):
        return base

    checkpoints = [open_checkpoint(str(f)) for f in folders]
    works = [
        Work(name, entry.shape, entry.dtype, tuple(c.tensors[name] for c in checkpoints), None, {})
        for name, entry in checkpoints[0].tensors.items()
    ]
    limits = choose_limits(Demand(len(folders), len(works), 8, ranks=4), 10**10, threads)
    limits = replace(limits, tile=BLOCK, chunk_bytes=1 << 16, aside_bytes=aside)
    with Stream(Job(ask, 0, "float64" if wide else "float32", limits, Device()), len(folders)) as stream:
        return reduce(stream, works, lambda done: None)


def save_vectors(save_model, root, vectors, parts):
    """Save a base of zeros and models of the vectors, each cut into tensors."""
    folders = []
    for i, vector in enumerate([np.zeros_like(vectors[0]), *vectors]):
        pieces = np.split(vector, np.cumsum(parts)[:-1])
        folders.append(save_model(root / f"m{i}", {f"w{j}": torch.from_numpy(p.copy()) for j, p in enumerate(pieces)}))
    return folders


def same(kth, other):
    return np.array_equal(kth.value, other.value) and np.array_equal(kth.cut, other.cut)


@pytest.fixture
def held(monkeypatch):
    """Make samples small enough for small tensors; note of each guess whether it held."""
    monkeypatch.setattr(largest, "RUN", 256)
    monkeypatch.setattr(largest, "RUNS", (8, 16))
    noted, find = [], largest.find_largest

    def noting(scope, asked):
        found = find(scope, asked)
        noted.append(found is not None)
        return found

    monkeypatch.setattr(reductions, "find_largest", noting)
    return noted


def derive(base, others, tile):
    return np.stack([others[0] * others[1], others[1] - others[0], np.abs(others[0])])


@pytest.mark.parametrize("kind", kinds())
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("parts", [(SIZE,), (9_000, 11, 21_000)])
def test_a_guess_finds_what_counting_finds(kind, dtype, parts, tmp_path, save_model, held):
    vector = kinds()[kind].astype(dtype)
    folders = save_vectors(save_model, tmp_path, [vector, np.roll(vector, 77)], parts)
    for ranks in ([1, SIZE // 2], [SIZE // 10, SIZE - 3, SIZE], [0, 7]):
        for located in (True, False):
            asked = KthLargest(lambda size, ranks=ranks: ranks, derive, located)
            counted = reduce_streamed(folders, asked, wide=dtype == "float64")
            found = reduce_streamed(folders, asked, wide=dtype == "float64", aside=10**7, threads=3)
            for one, other in zip(found, counted, strict=True):
                assert same(one, other) if located else np.array_equal(one.value, other.value)
    assert held.count(True) >= 3


def test_a_finer_sample_is_taken_where_the_first_windows_hold_too_much(tmp_path, save_model, held, monkeypatch):
    vector = np.random.default_rng(2).standard_normal(SIZE).astype(np.float32) * np.linspace(
        1, 9, SIZE, dtype=np.float32
    )
    folders = save_vectors(save_model, tmp_path, [vector], (SIZE,))
    asked = KthLargest(lambda size: [SIZE // 10], lambda base, others, tile: others, located=False)
    widths, guess = [], largest._guess

    def noting(scope, asked, sample, likely):
        found = guess(scope, asked, sample, likely)
        widths.append((sample.shape[1], found is not None))
        return found

    monkeypatch.setattr(largest, "_guess", noting)
    found, counted = (reduce_streamed(folders, asked, aside=a, threads=1)[0] for a in (16_000, 0))
    assert [fits for _, fits in widths] == [False, True]
    assert widths[1][0] > 2 * widths[0][0]
    assert held == [True, False]
    assert np.array_equal(found.value, counted.value)


def test_where_room_runs_out_on_the_way_the_values_are_counted(tmp_path, save_model, held, monkeypatch):
    vectors = list(np.random.default_rng(1).standard_normal((2, SIZE)).astype(np.float32))
    folders = save_vectors(save_model, tmp_path, vectors, (SIZE,))
    asked = KthLargest(lambda size: [SIZE // 3], derive)

    def all_of_them(scope, asked, sample, likely):
        return tuple(np.full((3, 1), bound, np.float32) for bound in (-np.inf, np.inf))

    monkeypatch.setattr(largest, "_guess", all_of_them)
    counted, found = (reduce_streamed(folders, asked, aside=a, threads=2)[0] for a in (0, 20_000))
    assert held == [False, False]
    assert same(found, counted)


def test_without_room_the_values_are_counted(tmp_path, save_model, held):
    vectors = list(np.random.default_rng(1).standard_normal((2, SIZE)).astype(np.float32))
    folders = save_vectors(save_model, tmp_path, vectors, (SIZE,))
    asked = KthLargest(lambda size: [SIZE // 3], derive)
    counted, found = (reduce_streamed(folders, asked, aside=a, threads=2)[0] for a in (0, 1_000))
    assert held == [False, False]
    assert same(found, counted)


def test_a_wrong_guess_is_given_up(tmp_path, save_model, held, monkeypatch):
    vectors = list(np.random.default_rng(2).standard_normal((2, SIZE)).astype(np.float32))
    folders = save_vectors(save_model, tmp_path, vectors, (SIZE,))
    asked = KthLargest(lambda size: [SIZE // 3], derive)
    monkeypatch.setattr(largest, "window", lambda *_: (np.full(3, 9, np.float32), np.full(3, 10, np.float32)))
    counted, found = (reduce_streamed(folders, asked, aside=a)[0] for a in (0, 10**7))
    assert held == [False, False]
    assert same(found, counted)


def test_one_value_is_counted_and_not_kept(tmp_path, save_model, held):
    """Half of the entries are 0, the value asked for: with little room it is found, since none is kept."""
    vector = np.random.default_rng(3).standard_normal(SIZE).astype(np.float32)
    vector[::2] = 0
    folders = save_vectors(save_model, tmp_path, [vector], (SIZE,))
    for located in (True, False):
        asked = KthLargest(lambda size: [SIZE * 3 // 4], lambda b, o, t: np.abs(o), located)
        (kth,) = reduce_streamed(folders, asked, aside=2_000)
        assert kth.value.item() == 0
        assert held.pop() is not located


@pytest.mark.parametrize("zeros", [0.0, 0.4, 0.99, 1.0])
@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_ranks_of_the_values_that_are_not_zero(zeros, share, tmp_path, save_model, held):
    rng = np.random.default_rng(6)
    vector = (rng.standard_normal(SIZE) * (rng.random(SIZE) >= zeros)).astype(np.float32)
    folders = save_vectors(save_model, tmp_path, [vector], (9_000, 21_011))
    asked = KthLargest(lambda size: [int(size * share)], lambda b, o, t: np.abs(o), nonzero=True)
    rank = int(np.count_nonzero(vector) * share)
    for aside in (0, 10**7):
        (kth,) = reduce_streamed(folders, asked, aside=aside)
        assert kth.value.item() == (np.sort(np.abs(vector))[::-1][rank - 1] if rank else np.inf)
        assert kth.cut.item() == (SIZE if rank else 0)
    assert held == [False, rank > 0]


@pytest.mark.parametrize("kind", kinds())
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_nth_of_many_values_is_picked(kind, dtype, monkeypatch):
    monkeypatch.setattr(largest, "PICKED", 64)
    values = kinds()[kind].astype(dtype)
    ranked = np.sort(values)[::-1]
    for nth in (1, 2, 100, SIZE // 2, SIZE - 100, SIZE):
        assert largest._pick(values, nth) == ranked[nth - 1]


def test_whole_rows_are_sampled(tmp_path, save_model, held):
    matrix = np.random.default_rng(5).random((400, 301)).astype(np.float32)
    pairs = (("base", 0 * matrix), ("model", matrix))
    folders = [save_model(tmp_path / name, {"w": torch.from_numpy(m)}) for name, m in pairs]

    def of(base, others, tile):
        assert others.shape[1] % 301 == 0
        rows = others.reshape(-1, 301)
        return (rows / rows.max(1, keepdims=True)).reshape(1, -1)

    expected = np.sort((matrix / matrix.max(1, keepdims=True)).ravel())[::-1]
    found = reduce_streamed(folders, KthLargest(lambda size: [400, 5_000], of), aside=10**7, reach="row")
    assert [kth.value.item() for kth in found] == [1.0, expected[4_999]]
    assert held == [True]
