"""Packing and reading back: each encoding against a formula written for clarity, and the same bytes however work is cut."""

import json

import numpy as np
import pytest
from safetensors.numpy import save_file

from weightsmith import Options, WeightsmithError, pack
from weightsmith.checkpoint.read import Files, open_checkpoint
from weightsmith.compress import ENCODINGS

ENCODED = ("model.embed_tokens.weight", "model.layers.0.mlp.up_proj.weight", "model.norm.weight", "frozen")


def vectors(tasks, name):
    return np.stack([tasks[t][name] - tasks["base"][name] for t in "abc"])


def whole(tasks, task=None):
    """All encoded numbers as one vector: of one task, or (T, n)."""
    stacked = np.concatenate([vectors(tasks, n).reshape(3, -1) for n in ENCODED], 1)
    return stacked if task is None else stacked["abc".index(task)]


def bound_of(values, density):
    """The smallest kept magnitude; the numbers drawn have no ties there."""
    return np.sort(np.abs(values))[::-1][max(1, round(density * values.size)) - 1]


def test_lossless_gives_back_every_byte(pack_all, tasks, read_task):
    bundle = pack_all("lossless")
    for task in "abc":
        found = read_task(bundle, task)
        assert list(found) == list(tasks[task])
        assert all(np.array_equal(found[n], a) and found[n].dtype == a.dtype for n, a in tasks[task].items())


def test_tall_masks(pack_all, tasks, read_task):
    bundle = pack_all("tall_masks", mask_lambda=(0.3, 0.4, 0.5))
    for task, bound in zip("abc", (0.3, 0.4, 0.5), strict=True):
        found = read_task(bundle, task)
        for name in ENCODED:
            v = vectors(tasks, name)
            total = (v[0] + v[1]) + v[2]
            own = v["abc".index(task)]
            mask = np.abs(own) > np.float32(bound) * np.abs(total - own)
            assert name == "frozen" or 0 < mask.sum() < mask.size
            base = tasks["base"][name]
            assert np.array_equal(found[name], np.where(mask, base + total, base))


@pytest.mark.parametrize("dtype", ["bfloat16", "int8"])
def test_tall_masks_with_a_short_shared_vector(pack_all, tasks, read_task, dtype):
    found = read_task(pack_all("tall_masks", shared_dtype=dtype), "a")
    fine = read_task(pack_all("tall_masks", out="fine"), "a")
    for name in ENCODED:
        total = vectors(tasks, name).sum(0)
        changed = (found[name] != tasks["base"][name]) & (fine[name] != tasks["base"][name])
        step = np.abs(total).max() / 254 if dtype == "int8" else np.abs(total) / 256
        assert (np.abs(found[name] - fine[name])[changed] <= np.broadcast_to(step, total.shape)[changed] * 1.001).all()
        assert name == "frozen" or changed.mean() > 0.2
    assert not all(np.array_equal(found[n], fine[n]) for n in ENCODED)


def test_tall_masks_with_ties(pack_all, read_task, tasks):
    kept = read_task(pack_all("tall_masks", merged="ties", density=0.5), "b")
    summed = read_task(pack_all("tall_masks", out="sum"), "b")
    assert not np.array_equal(kept[ENCODED[0]], summed[ENCODED[0]])
    v = whole(tasks)
    bounds = [bound_of(x, 0.5) for x in v]
    trimmed = np.stack([np.where(np.abs(x) >= b, x, 0) for x, b in zip(v, bounds, strict=True)])
    elected = np.sign((trimmed[0] + trimmed[1]) + trimmed[2])
    total = np.where(trimmed * elected > 0, trimmed, 0).sum(0, dtype=np.float32)
    mask = np.abs(v[1]) > np.float32(0.4) * np.abs(total - v[1])
    base = np.concatenate([tasks["base"][n].reshape(-1) for n in ENCODED])
    rebuilt = np.concatenate([kept[n].reshape(-1) for n in ENCODED])
    np.testing.assert_allclose(rebuilt, base + mask * total, rtol=0, atol=1e-6)


def test_tall_masks_over_any_merged_model(pack_all, family, tmp_path, tasks, read_task):
    merged = {n: np.full_like(a, 0.5) + a for n, a in tasks["base"].items() if a.dtype == np.float32}
    folder = tmp_path / "merged"
    folder.mkdir()
    save_file(merged, folder / "model.safetensors")
    found = read_task(pack_all("tall_masks", vector=folder), "a")
    for name in ENCODED[:3]:
        base, own = tasks["base"][name], vectors(tasks, name)[0]
        vector = merged[name] - base
        mask = np.abs(own) > np.float32(0.4) * np.abs(vector - own)
        assert np.array_equal(found[name], np.where(mask, base + vector, base))
    with pytest.raises(WeightsmithError, match="shares no vector"):
        pack_all("compeft", out="x", vector=folder)


def test_emr(pack_all, tasks, read_task):
    bundle = pack_all("emr")
    v = whole(tasks).astype(np.float64)
    sign = np.where(v.sum(0) > 0, 1, -1)
    agreeing = np.where(v * sign > 0, np.abs(v), 0).max(0) * sign
    base = np.concatenate([tasks["base"][n].reshape(-1) for n in ENCODED])
    for i, task in enumerate("abc"):
        mask = v[i] * agreeing > 0
        scale = np.abs(v[i]).sum() / np.abs(mask * agreeing).sum()
        found = read_task(bundle, task)
        rebuilt = np.concatenate([found[n].reshape(-1) for n in ENCODED])
        np.testing.assert_allclose(rebuilt, base + scale * mask * agreeing, rtol=0, atol=1e-6)


@pytest.mark.parametrize("alpha", [None, 2.0])
def test_compeft(pack_all, tasks, read_task, alpha):
    bundle = pack_all("compeft", density=0.1, alpha=alpha)
    v = whole(tasks, "b").astype(np.float64)
    kept = np.abs(v) >= bound_of(v, 0.1)
    size = np.abs(v[kept]).mean() if alpha is None else alpha * v.std()
    base = np.concatenate([tasks["base"][n].reshape(-1) for n in ENCODED])
    found = read_task(bundle, "b")
    rebuilt = np.concatenate([found[n].reshape(-1) for n in ENCODED])
    np.testing.assert_allclose(rebuilt, base + size * np.sign(v) * kept, rtol=0, atol=1e-6)
    assert (rebuilt != base).sum() == round(0.1 * v.size)


def test_bitdelta_leaves_embeddings_and_norms_without_loss(pack_all, tasks, read_task):
    found = read_task(pack_all("bitdelta"), "c")
    name = "model.layers.0.mlp.up_proj.weight"
    v = vectors(tasks, name)[2]
    expected = tasks["base"][name] + np.where(v < 0, -1, 1) * np.abs(v.astype(np.float64)).mean()
    np.testing.assert_allclose(found[name], expected, rtol=0, atol=1e-6)
    assert all(np.array_equal(found[n], a) for n, a in tasks["c"].items() if n != name)


def test_sparse_keeps_the_largest_as_they_are(pack_all, tasks, read_task):
    found = read_task(pack_all("sparse", density=0.05, values="float32"), "a")
    v = whole(tasks, "a")
    kept = np.abs(v) >= bound_of(v, 0.05)
    base = np.concatenate([tasks["base"][n].reshape(-1) for n in ENCODED])
    rebuilt = np.concatenate([found[n].reshape(-1) for n in ENCODED])
    assert np.array_equal(rebuilt, np.where(kept, base + v, base))


def test_twin(pack_all, tasks, read_task):
    found = read_task(pack_all("twin", density=0.2, values="float32", lambda_=0.3), "a")
    v = whole(tasks)
    factor = np.float32(0.3)
    shared = (v[0] * factor + v[1] * factor) + v[2] * factor
    own = v[0] - shared
    changed = own[: -tasks["base"]["frozen"].size]  # what no task changes has no shared vector, and does not count
    kept = np.where(np.abs(own) >= bound_of(changed, 0.2), own, 0)
    base = np.concatenate([tasks["base"][n].reshape(-1) for n in ENCODED])
    rebuilt = np.concatenate([found[n].reshape(-1) for n in ENCODED])
    assert np.array_equal(rebuilt, (base + shared) + kept)


@pytest.mark.parametrize("encoding", ENCODINGS, ids=lambda e: e.name)
def test_what_no_task_changes_stays_and_integers_too(pack_all, tasks, read_task, encoding):
    bundle = pack_all(encoding.name)
    for task in "abc":
        found = read_task(bundle, task)
        assert np.array_equal(found["frozen"], tasks["base"]["frozen"])
        assert np.array_equal(found["ids"], tasks["base"]["ids"])
        part = json.loads(next((bundle / "tasks").glob(f"*-{task}/part.json")).read_text())
        terms = {item["name"]: item["terms"] for item in part["tensors"]}
        assert terms["ids"] == []
        assert terms["frozen"] == []
        assert terms["model.layers.0.mlp.up_proj.weight"] != []


@pytest.mark.parametrize("encoding", ENCODINGS, ids=lambda e: e.name)
def test_one_task_of_one_tensor_is_near_itself(save_arrays, tmp_path, read_task, encoding):
    """With one task most encodings lose little: with all that they may keep, the rebuilt one is nearer than the base."""
    rng = np.random.default_rng(5)
    base = {"layers.0.mlp.weight": rng.standard_normal((40, 30)).astype(np.float32)}
    tuned = {n: a + (0.1 * rng.standard_normal(a.shape)).astype(np.float32) for n, a in base.items()}
    given = {"density": 1.0} if "density" in encoding.parameters else {}
    bundle = pack(
        encoding.name,
        base=save_arrays(tmp_path / "base", base),
        models={"t": str(save_arrays(tmp_path / "t", tuned))},
        out=tmp_path / "out",
        **given,
    ).out
    (found,) = read_task(bundle, "t").values()
    (wanted,), (origin,) = tuned.values(), base.values()
    assert np.linalg.norm(found - wanted) < 0.75 * np.linalg.norm(origin - wanted)


def test_tall_masks_rebuilds_a_single_task(pack_all, tasks, read_task):
    found = read_task(pack_all("tall_masks", models=("a",)), "a")
    assert all(np.allclose(found[n], a, rtol=0, atol=3e-7) for n, a in tasks["a"].items())


def test_same_bytes_for_any_threads_and_memory(pack_all, content):
    wanted = content(pack_all("twin", options=Options(threads=1)))
    found = content(pack_all("twin", out="other", options=Options(threads=3, memory_bytes=170_000_000)))
    same = {n for n in wanted if not n.endswith("bundle.json")}
    assert {n: found[n] for n in same} == {n: wanted[n] for n in same}
    assert json.loads(found["bundle.json"])["tasks"] == json.loads(wanted["bundle.json"])["tasks"]


@pytest.mark.parametrize("encoding", ["lossless", "tall_masks", "compeft", "low_rank"])
def test_any_cut_reads_the_same(pack_all, encoding):
    entry = open_checkpoint(f"{pack_all(encoding)}#a").tensors["model.embed_tokens.weight"]
    with Files() as files:
        whole = np.empty(entry.nbytes, np.uint8)
        files.entry_into(entry, 0, whole.data)
        for step in (4, 4 * 4096, 4 * 65_536, 4 * 65_537, 100_000):
            starts = range(0, entry.nbytes, step) if step > 4 else (0, 4 * 65_535, 4 * 65_536, entry.nbytes - 4)
            for start in starts:
                piece = np.empty(min(step, entry.nbytes - start), np.uint8)
                files.entry_into(entry, start, piece.data)
                assert np.array_equal(piece, whole[start : start + len(piece)])


def test_a_frame_that_is_read_in_parts_is_formed_once(pack_all, monkeypatch):
    from weightsmith.checkpoint import packed

    entry = open_checkpoint(f"{pack_all('compeft')}#a").tensors["model.embed_tokens.weight"]
    formed, fill = [], packed._fill
    monkeypatch.setattr(packed, "_fill", lambda *given: (formed.append(given[2]), fill(*given)))
    piece = np.empty(4 * 4096, np.uint8)
    with Files() as files:
        for start in range(0, entry.nbytes - len(piece), len(piece)):
            files.entry_into(entry, start, piece.data)
    assert formed == [0, 65_536]


def test_other_dtypes_shapes_and_names(save_raw, tmp_path, read_task):
    """A task in another dtype, with a longer vocabulary, a new head and bytes that are only copied."""
    rng = np.random.default_rng(1)
    base = {"w": rng.standard_normal(50).astype(np.float32), "e": np.ones((3, 2), np.float32)}
    save_raw(tmp_path / "base" / "model.safetensors", {n: ("F32", a.shape, a.tobytes()) for n, a in base.items()})
    half, longer, head = (base["w"] + 0.1).astype(np.float16), np.ones((4, 2), np.float32), np.full(3, 7.0)
    packed = bytes(range(5))
    save_raw(
        tmp_path / "t" / "model.safetensors",
        {
            "w": ("F16", half.shape, half.tobytes()),
            "e": ("F32", longer.shape, longer.tobytes()),
            "head": ("F64", head.shape, head.tobytes()),
            "bytes": ("F8_E4M3", (5,), packed),
            "nothing": ("F32", (0, 3), b""),
            "one": ("BF16", (), b"\x80\x3f"),
        },
    )
    for encoding in ("lossless", "compeft"):
        bundle = pack(encoding, base=tmp_path / "base", models={"t": tmp_path / "t"}, out=tmp_path / encoding).out
        tensors = open_checkpoint(f"{bundle}#t").tensors
        assert {n: (e.dtype, e.shape) for n, e in tensors.items()} == {
            n: (e.dtype, e.shape) for n, e in open_checkpoint(tmp_path / "t").tensors.items()
        }
        raw = {}
        with Files() as files:
            for name, entry in tensors.items():
                raw[name] = bytearray(entry.nbytes)
                files.entry_into(entry, 0, memoryview(raw[name]))
        assert (raw["e"], raw["head"], raw["bytes"], raw["one"]) == (
            longer.tobytes(), head.tobytes(), packed, b"\x80\x3f"
        )  # fmt: skip
        if encoding == "lossless":
            assert raw["w"] == half.tobytes()
        else:
            assert np.abs(np.frombuffer(raw["w"], np.float16) - half).max() < 0.2


def test_an_adapter_is_packed_as_what_it_makes(tmp_path, save_arrays, save_raw, read_task):
    rng = np.random.default_rng(2)
    base = {"layers.0.q_proj.weight": rng.standard_normal((8, 6)).astype(np.float32)}
    folder = save_arrays(tmp_path / "base", base)
    a, b = rng.standard_normal((2, 6)).astype(np.float32), rng.standard_normal((8, 2)).astype(np.float32)
    prefix = "base_model.model.layers.0.q_proj"
    save_raw(
        tmp_path / "ad" / "adapter_model.safetensors",
        {
            f"{prefix}.lora_A.weight": ("F32", a.shape, a.tobytes()),
            f"{prefix}.lora_B.weight": ("F32", b.shape, b.tobytes()),
        },
    )
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 2, "target_modules": ["q_proj"]}
    (tmp_path / "ad" / "adapter_config.json").write_text(json.dumps(config))
    bundle = pack("lossless", base=folder, models={"t": f"{folder}+{tmp_path / 'ad'}"}, out=tmp_path / "out").out
    (found,) = read_task(bundle, "t").values()
    (origin,) = base.values()
    np.testing.assert_allclose(found, origin + b @ a, rtol=1e-5, atol=1e-5)


def test_exact_globs_and_fitted_scales(pack_all, tasks, read_task):
    asked = {}

    def scales(task, by_name):
        asked[task] = set(by_name)
        return dict.fromkeys(by_name, 0.25)

    found = read_task(pack_all("compeft", exact=["*norm*"], scales=scales, scope="tensor"), "a")
    assert np.array_equal(found["model.norm.weight"], tasks["a"]["model.norm.weight"])
    steps = found["model.embed_tokens.weight"] - tasks["base"]["model.embed_tokens.weight"]
    assert set(np.abs(steps[steps != 0]).round(5).tolist()) == {0.25}
    assert asked == {t: {"model.embed_tokens.weight", "model.layers.0.mlp.up_proj.weight"} for t in "abc"}


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"models": ["a", "in/a"]}, "task 'a' is given twice"),
        ({"models": {"../x": "a"}}, "task '../x'"),
        ({"models": {"<b>": "a"}}, "task '<b>'"),
        ({"models": []}, "no models to pack"),
        ({"encoding": "compefd"}, "Did you mean 'compeft'"),
        ({"density": 2.0}, "pack compeft: density"),
        ({"shared_dtype": "F64"}, "expected one of float32, bfloat16, float16, int8"),
        ({"exact": ["nothing*"]}, "'nothing*' matches no tensor"),
    ],
)
def test_wrong_arguments_are_refused(family, tmp_path, given, told):
    models = given.pop("models", ["a"])
    models = models if isinstance(models, dict) else [str(family / m) if "/" not in m else m for m in models]
    words = {"encoding": "compeft", "base": family / "base", "models": models, "out": tmp_path / "out", **given}
    with pytest.raises(WeightsmithError, match=None) as error:
        pack(**words)
    assert told in str(error.value)
    assert error.value.exit_code == 2
    assert not (tmp_path / "out").exists()


def test_another_family_is_refused(family, tmp_path, save_arrays):
    stranger = save_arrays(tmp_path / "x", {"other": np.zeros(3, np.float32)})
    with pytest.raises(WeightsmithError, match="no tensor has a name and shape of the base's"):
        pack("lossless", base=family / "base", models={"x": stranger}, out=tmp_path / "out")


def test_a_model_of_another_base_is_refused(family, tmp_path, tasks, save_arrays, read_task):
    """Its names and shapes fit, but it lies as far away as the base is long."""
    rng = np.random.default_rng(9)
    other = {n: rng.standard_normal(a.shape).astype(a.dtype) for n, a in tasks["a"].items()}
    given = {"base": family / "base", "models": {"x": save_arrays(tmp_path / "x", other)}, "out": tmp_path / "out"}
    with pytest.raises(WeightsmithError, match=r"task 'x': .*does not seem to be trained from the base.*times as long"):
        pack("compeft", **given)
    assert not (tmp_path / "out").exists()
    bundle = pack("lossless", **given).out
    assert all(found.tobytes() == other[n].tobytes() for n, found in read_task(bundle, "x").items())
    pack("compeft", **{**given, "out": tmp_path / "forced"}, options=Options(force_base=True))


def test_nan_is_refused_by_name_unless_stored_without_loss(family, tmp_path, tasks, save_arrays, read_task):
    bad = {n: a.copy() for n, a in tasks["a"].items()}
    bad["model.norm.weight"][3] = np.nan
    folder = save_arrays(tmp_path / "bad", bad)
    with pytest.raises(WeightsmithError, match=r"model\.norm\.weight"):
        pack("compeft", base=family / "base", models={"x": folder}, out=tmp_path / "out")
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith("out")] == []
    bundle = pack("lossless", base=family / "base", models={"x": folder}, out=tmp_path / "out").out
    assert np.array_equal(read_task(bundle, "x")["model.norm.weight"], bad["model.norm.weight"], equal_nan=True)


@pytest.fixture
def with_nan(family, tasks, save_arrays):
    """The folder of a task whose matrix holds a NaN and an infinity."""
    changed = {n: a.copy() for n, a in tasks["a"].items()}
    changed["model.layers.0.mlp.up_proj.weight"][0, :2] = np.nan, np.inf
    return save_arrays(family / "odd", changed)


@pytest.mark.parametrize("encoding", ["low_rank", "tsv_c", "rmm", "twin_svd"])
def test_matrices_with_nan_are_told_and_can_be_stored_without_loss(pack_all, with_nan, tasks, read_task, encoding):
    name, options = "model.layers.0.mlp.up_proj.weight", Options(allow_nonfinite=True)
    with pytest.raises(WeightsmithError, match=rf"{name}.*--exact NAME|{name}.*finite numbers"):
        pack_all(encoding, models=("odd", "b"), options=options)
    found = read_task(pack_all(encoding, models=("odd", "b"), options=options, exact=[name]), "odd")[name]
    assert np.isnan(found[0, 0])
    assert found[1:].tobytes() == tasks["a"][name][1:].tobytes()


def test_names_with_control_characters_are_told_as_what_they_are(pack_all, family, tasks, save_arrays):
    save_arrays(family / "odd", {**tasks["a"], "a\u202eb": np.ones(3, np.float32)})
    with pytest.raises(WeightsmithError, match="has control characters in its name\nRename them in the model"):
        pack_all("compeft", models=("odd",))
