"""The engine's parts: exact k-th magnitudes and sums by streaming, and what happens when something is wrong."""

import math
import os
import threading
from dataclasses import replace

import numpy as np
import pytest
import torch

import weightsmith
from weightsmith.budget import Demand, choose_limits
from weightsmith.checkpoint.read import open_checkpoint
from weightsmith.device import Device
from weightsmith.errors import MismatchError, NonFiniteError, ResourceError
from weightsmith.method import KthMagnitude, Sums, method
from weightsmith.plan import Options
from weightsmith.reductions import reduce
from weightsmith.stream import Job, Piece, Stream, Work, Worker
from weightsmith.tensor.arrays import BLOCK
from weightsmith.tensor.select import is_among_largest
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


def reducing(asked):
    """Return a method that asks for one reduction and does nothing else."""

    def prepare():
        return (yield asked)

    def ask(base, task_vectors, *, tile):
        return base

    return method(prepare=prepare, scope="model")(ask)


def reduce_streamed(folders, asked, *, wide=False, tile=BLOCK, threads=2, regions=4, chunk_bytes=1 << 16):
    """Answer one reduction over all tensors of base and models, as one scope."""
    checkpoints = [open_checkpoint(str(f)) for f in folders]
    works = [
        Work(name, entry.shape, entry.dtype, tuple(c.tensors[name] for c in checkpoints), None, {})
        for name, entry in checkpoints[0].tensors.items()
    ]
    limits = choose_limits(Demand(len(folders), len(works), 8, ranks=4), 10**10, threads)
    limits = replace(limits, tile=tile, regions=regions, chunk_bytes=chunk_bytes)
    job = Job(reducing(asked), 0, "float64" if wide else "float32", limits, Device())
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


NAMES = ("layers.0.w", "layers.1.w")


def two_models(save_model, root, *, dtype=torch.float32, spoil=None):
    base = {n: torch.linspace(1, 2, 20_000).to(dtype) for n in NAMES}
    model = {n: t * 1.125 for n, t in base.items()}
    if spoil:
        spoil(base, model)
    return save_model(root / "base", base), save_model(root / "model", model)


def left_behind(root):
    return sorted(p.name for p in root.iterdir() if p.name not in ("base", "model"))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("which", ["base", "model"])
@pytest.mark.parametrize("method", ["task_arithmetic", "ties", "lines"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_nonfinite_input_is_refused_by_name_and_place(bad, which, method, dtype, tmp_path, save_model):
    def spoil(base, model):
        (base if which == "base" else model)[NAMES[1]][[12_345, 15_000]] = bad

    base, model = two_models(save_model, tmp_path, dtype=dtype, spoil=spoil)
    with pytest.raises(NonFiniteError) as caught:
        weightsmith.merge(method, base=base, models=[model], out=tmp_path / "out")
    text = str(caught.value)
    assert f"{which}/model.safetensors" in text
    assert f"'{NAMES[1]}'" in text
    assert f"{bad} at flat index 12345" in text
    assert "--allow-nonfinite" in text
    assert left_behind(tmp_path) == []


def test_nonfinite_input_may_be_allowed(tmp_path, save_model, load_model):
    def spoil(base, model):
        model[NAMES[1]][12_345] = math.inf

    base, model = two_models(save_model, tmp_path, spoil=spoil)
    options = Options(allow_nonfinite=True, force_base=True)
    weightsmith.merge("task_arithmetic", base=base, models=[model], out=tmp_path / "out", options=options)
    merged = load_model(tmp_path / "out")[NAMES[1]]
    assert merged[12_345] == math.inf
    assert torch.isfinite(merged).sum() == 19_999


@pytest.mark.parametrize("stage", ["compute", "store", "load"])
@pytest.mark.parametrize("threads", [1, 4])
def test_an_error_in_a_thread_stops_the_run_and_leaves_nothing(stage, threads, tmp_path, save_model, monkeypatch):
    base, model = two_models(save_model, tmp_path)
    original = getattr(Worker, stage)

    def failing(self, work, *rest):
        name = work.work.name if isinstance(work, Piece) else work.name
        if name == NAMES[1]:
            raise ResourceError("the disk is on fire")
        return original(self, work, *rest)

    monkeypatch.setattr(Worker, stage, failing)
    running = threading.active_count()
    with pytest.raises(ResourceError, match="on fire"):
        weightsmith.merge(
            "task_arithmetic", base=base, models=[model], out=tmp_path / "out", options=Options(threads=threads)
        )
    assert left_behind(tmp_path) == []
    assert threading.active_count() == running


def test_a_run_that_succeeds_closes_its_files(tmp_path, save_model):
    base, model = two_models(save_model, tmp_path)
    weightsmith.merge("ties", base=base, models=[model], out=tmp_path / "first")
    before = len(os.listdir("/proc/self/fd"))
    weightsmith.merge("ties", base=base, models=[model], out=tmp_path / "out")
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize("method", ["task_arithmetic", "wise_ft"])
def test_a_base_that_is_not_the_base_is_refused(method, tmp_path, save_model):
    def spoil(base, model):
        for name in NAMES:
            model[name] = base[name] * -1.0

    base, model = two_models(save_model, tmp_path, spoil=spoil)
    with pytest.raises(MismatchError) as caught:
        weightsmith.merge(method, base=base, models=[model], out=tmp_path / "out")
    assert str(model) in str(caught.value)
    assert "2.00 times" in str(caught.value)  # |-b - b| = 2 |b|
    assert "--force-base" in str(caught.value)
    assert left_behind(tmp_path) == []
    options = Options(force_base=True)
    weightsmith.merge(method, base=base, models=[model], out=tmp_path / "out", options=options)
    assert "out" in left_behind(tmp_path)


def test_the_wrong_model_is_named(tmp_path, save_model):
    base, model = two_models(save_model, tmp_path)
    wrong = save_model(tmp_path / "wrong", {n: torch.full((20_000,), 50.0) for n in NAMES})
    with pytest.raises(MismatchError, match="wrong"):
        weightsmith.merge("ties", base=base, models=[model, wrong], out=tmp_path / "out")


@pytest.mark.parametrize(("dtype", "factor"), [("float16", 1e5), ("bfloat16", 1.699e38)])
def test_a_result_beyond_its_dtype_is_refused(dtype, factor, tmp_path, save_model, load_model):
    base, model = two_models(save_model, tmp_path)
    given = {"models": [base, model], "coefficients": (factor, 0.0), "normalize": False}
    with pytest.raises(NonFiniteError) as caught:
        weightsmith.merge("linear", out=tmp_path / "out", dtype=dtype, **given)
    assert f"'{NAMES[0]}'" in str(caught.value)
    assert {"float16": "F16", "bfloat16": "BF16"}[dtype] in str(caught.value)
    assert "flat index" in str(caught.value)
    assert left_behind(tmp_path) == []
    weightsmith.merge("linear", out=tmp_path / "out", dtype="float64" if dtype == "bfloat16" else "float32", **given)
    assert torch.isfinite(load_model(tmp_path / "out")[NAMES[0]]).all()


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "bfloat16"])
def test_output_dtype(dtype, tmp_path, save_model, load_model):
    base, model = two_models(save_model, tmp_path)
    weightsmith.merge("wise_ft", base=base, models=[model], lambda_=0.5, dtype=dtype, out=tmp_path / "out")
    merged = load_model(tmp_path / "out")
    exact = load_model(base)[NAMES[0]] + 0.5 * (load_model(model)[NAMES[0]] - load_model(base)[NAMES[0]])
    assert merged[NAMES[0]].dtype == getattr(torch, dtype)
    assert torch.equal(merged[NAMES[0]], exact.to(getattr(torch, dtype)))


def test_integers_are_copied_from_the_first_input(tmp_path, save_model, load_model):
    def spoil(base, model):
        base["position_ids"], model["position_ids"] = torch.arange(5), torch.arange(5) + 7
        base["mask"], model["mask"] = torch.ones(3, dtype=torch.bool), torch.zeros(3, dtype=torch.bool)
        base["count"], model["count"] = torch.tensor(3), torch.tensor(9)

    base, model = two_models(save_model, tmp_path, spoil=spoil)
    result = weightsmith.merge("task_arithmetic", base=base, models=[model], out=tmp_path / "out")
    merged = load_model(tmp_path / "out")
    for name in ("position_ids", "mask", "count"):
        assert torch.equal(merged[name], load_model(base)[name])
    assert {c["name"] for c in result.record["tensors"]["copied"]} == {"position_ids", "mask", "count"}
