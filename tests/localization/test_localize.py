"""`localize` as a whole, against counts and sums written out."""

import itertools
import json
import math

import numpy as np
import pytest

from weightsmith import Options, agreement, localize, merge
from weightsmith.errors import ArgumentError, MismatchError, NonFiniteError
from weightsmith.localize.sensitivity import allocate

PAIRS = list(itertools.combinations(range(3), 2))


def plain(result):
    return json.loads(json.dumps(result.to_json(), allow_nan=False))


def without(document, *keys):
    return {k: v for k, v in document.items() if k not in keys}


def slow(base, vectors, merged, masks, trimmed):
    """One tensor, or all as one vector, one formula at a time."""
    n, length = base.size, [math.sqrt((v * v).sum()) for v in vectors]
    count = masks.sum(0)

    def both(v):
        return [(v[s] != 0) & (v[t] != 0) for s, t in PAIRS]

    def opposed(v):
        return [v[s] * v[t] < 0 for s, t in PAIRS]

    def conflict(v):
        mixed = ((v > 0).any(0) & (v < 0).any(0)).sum()
        moved, pairs = ((v != 0).sum(0) > 1).sum(), sum(x.sum() for x in both(v))
        return {
            "any": mixed / n,
            "conditional": mixed / moved if moved else None,
            "pairwise": sum(x.sum() for x in opposed(v)) / pairs if pairs else None,
        }

    def share(x, t):
        return math.sqrt((x * x).sum()) / length[t]

    distance = [share(merged - v, t) for t, v in enumerate(vectors)]
    erased = [share(m * merged - v, t) for t, (v, m) in enumerate(zip(vectors, masks, strict=True))]
    density = masks.mean(1)
    jaccard = [(masks[s] & masks[t]).sum() / max((masks[s] | masks[t]).sum(), 1) for s, t in PAIRS]
    chance = [density[s] * density[t] / (density[s] + density[t] - density[s] * density[t]) for s, t in PAIRS]
    return {
        "elements": n,
        "agreement": [int((count == k).sum()) for k in range(4)],
        "catastrophic": (count == 0).mean(),
        "selfish": (count == 1).mean(),
        "general": (count > 1).mean(),
        "density": list(density),
        "jaccard_mean": sum(jaccard) / 3,
        "chance_mean": sum(chance) / 3,
        "norm": length,
        "norm_base": math.sqrt((base * base).sum()),
        "norm_merged": math.sqrt((merged * merged).sum()),
        "drift": [x / math.sqrt((base * base).sum()) for x in length],
        "unchanged": [(v == 0).mean() for v in vectors],
        "cosine_mean": sum((vectors[s] * vectors[t]).sum() / length[s] / length[t] for s, t in PAIRS) / 3,
        "conflict": conflict(vectors),
        "conflict_trimmed": conflict(trimmed),
        "distance": distance,
        "erased": erased,
        "recovered": [d - e for d, e in zip(distance, erased, strict=True)],
    }


def trim(vectors, density):
    kept = np.zeros(vectors.shape)
    count = max(1, round(density * vectors.shape[1]))
    for row, v in zip(kept, vectors, strict=True):
        chosen = np.argsort(-np.abs(v), kind="stable")[:count]
        row[chosen] = v[chosen]
    return kept


def expected(arrays, lambdas):
    base, *models = arrays
    flat = np.concatenate([base[n].reshape(-1) for n in base])
    vectors = np.stack([np.concatenate([m[n].reshape(-1) for n in base]) for m in models]) - flat
    merged = vectors.sum(0)
    masks = np.stack([np.abs(v) > x * np.abs(merged - v) for v, x in zip(vectors, lambdas, strict=True)])
    trimmed = trim(vectors, 0.2)
    found, start = {"model": slow(flat, vectors, merged, masks, trimmed)}, 0
    for name, array in base.items():
        part = slice(start, start + array.size)
        found[name] = flat[part], vectors[:, part], merged[part], masks[:, part], trimmed[:, part]
        start += array.size
    return found


def close(found, wanted, where):
    for key, value in wanted.items():
        told = f"{where}: {key}"
        if key == "agreement" or value is None:
            assert found[key] == value, told
        elif isinstance(value, dict):
            close(found[key], value, told)
        else:
            assert found[key] == pytest.approx(value, rel=1e-12, abs=1e-14), told


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
@pytest.mark.parametrize("lambdas", [(0.5, 0.5, 0.5), (0.25, 0.5, 2.0)])
def test_every_figure_of_every_tensor(experts, arrays, lambdas):
    found = plain(localize(experts[0], experts[1:], lambdas=list(lambdas)))
    wanted = expected(arrays, lambdas)
    close(found["model"], wanted["model"], "model")
    assert [p["name"] for p in found["tensors"]] == list(arrays[0])
    for part in found["tensors"]:
        if part["elements"] > 1:
            close(part, slow(*wanted[part["name"]]), part["name"])
    assert found["not_compared"] == {"steps": "I64 is not averaged"}
    assert (found["tasks"], found["by"], found["method"]) == (["a", "b", "c"], "tall_masks", "task_arithmetic")


def test_matrices_of_tasks(experts, arrays):
    found = plain(localize(experts[0], experts[1:], lambdas=0.5))["matrices"]
    base, vectors, merged = (np.concatenate([np.reshape(x, (k, -1)) for x in given], 1) for k, given in _flat(arrays))
    masks = np.abs(vectors) > 0.5 * np.abs(merged - vectors)
    trimmed = trim(vectors, 0.2)
    for s, t in PAIRS:
        a, b = masks[s], masks[t]
        assert found["jaccard"][s][t] == found["jaccard"][t][s] == (a & b).sum() / (a | b).sum()
        assert found["overlap"][s][t] == (a & b).sum() / min(a.sum(), b.sum())
        density = a.mean(), b.mean()
        assert found["chance"][s][t] == pytest.approx(math.prod(density) / (sum(density) - math.prod(density)))
        for key, v in (("conflict", vectors), ("conflict_trimmed", trimmed)):
            moved = (v[s] != 0) & (v[t] != 0)
            assert found[key][s][t] == (v[s] * v[t] < 0).sum() / moved.sum()
        cosine = vectors[s] @ vectors[t] / np.linalg.norm(vectors[s]) / np.linalg.norm(vectors[t])
        assert found["cosine"][s][t] == pytest.approx(cosine, rel=1e-12)
    assert [found["jaccard"][t][t] for t in range(3)] == [1, 1, 1]
    assert base.shape[0] == 1


def _flat(arrays):
    base, *models = arrays
    vectors = [[np.reshape(m[n] - base[n], -1) for m in models] for n in base]
    return [(1, [base[n] for n in base]), (3, [np.stack(v) for v in vectors]), (1, [np.sum(v, 0) for v in vectors])]


def test_layers_kinds_and_cells_add_up(experts):
    found = localize(experts[0], experts[1:])
    assert [p.name for p in found.layers] == ["embedding", "other", "layer 0", "layer 1", "norm"]
    assert [p.name for p in found.kinds] == ["attention", "convolution", "embedding", "mlp", "norm", "other"]
    assert [(p.name, p.kind) for p in found.cells][2:4] == [("layer 0", "convolution"), ("layer 0", "mlp")]
    for parts in (found.layers, found.kinds, found.cells, found.tensors):
        assert sum(p.elements for p in parts) == found.model.elements
        assert np.array_equal(sum(p.agreement for p in parts), found.model.agreement)
        assert np.allclose(sum(p.gram for p in parts), found.model.gram, rtol=1e-14)


@pytest.mark.parametrize("given", [{}, {"method": "ties"}, {"by": "magnitude"}, {"spectra": True}], ids=str)
def test_nothing_depends_on_the_cut(experts, cut, given):
    assert plain(localize(experts[0], experts[1:], options=cut, **given)) == plain(
        localize(experts[0], experts[1:], **given)
    )


@pytest.mark.parametrize("given", [{}, {"method": "ties", "parameters": {"scope": "tensor"}, "spectra": True}], ids=str)
def test_large_tensors_do_not_depend_on_the_cut(tmp_path, save_arrays, given):
    rng = np.random.default_rng(1)
    shapes = {"v": (400_003,), "w": (50, 1000), "x": (100, 900)}
    arrays = [{n: rng.standard_normal(s).astype("float32") for n, s in shapes.items()} for _ in range(4)]
    folders = [save_arrays(tmp_path / f"m{i}", a) for i, a in enumerate(arrays)]
    first, second = (
        plain(localize(folders[0], folders[1:], options=o, masks=tmp_path / f"masks{o.threads}", **given))
        for o in (Options(threads=1, memory_bytes=190_000_000), Options(threads=3))
    )
    assert without(first, "masks") == without(second, "masks")
    for name in ("m1", "m2", "m3"):
        one, other = ((tmp_path / f"masks{n}" / name / "model.safetensors").read_bytes() for n in (1, 3))
        assert one == other


def test_agreement_counts_as_the_verb_of_that_name(experts):
    found = localize(experts[0], experts[1:], lambdas=0.4, trim=None)
    assert {p.name: p.agreement.tolist() for p in found.tensors} == agreement(experts[0], experts[1:])
    assert found.to_json()["model"]["conflict_trimmed"] is None
    assert found.to_json()["matrices"]["conflict_trimmed"] is None
    assert found.passes == 1


def test_one_task_is_all_selected_where_it_moved(experts, arrays):
    found = localize(experts[0], [experts[1]])
    moved = sum(int((arrays[1][n] != a).sum()) for n, a in arrays[0].items())
    assert found.model.agreement.tolist() == [found.model.elements - moved, moved]
    assert found.to_json()["model"]["distance"] == found.to_json()["model"]["erased"] == [0]
    assert found.to_json()["model"]["jaccard_mean"] is None


def test_identical_experts_need_nothing_at_large_lambda(tmp_path, experts, save_arrays, arrays):
    same = {n: np.asarray(a, "float32") for n, a in arrays[1].items()} | {"steps": np.arange(3)}
    twin = save_arrays(tmp_path / "twin", same)
    low, high = (localize(experts[0], [experts[1], twin], lambdas=v).model for v in (0.5, 1.0))
    assert low.agreement[1] == 0
    assert high.agreement[0] == high.elements
    assert np.allclose(low.jaccard, 1)
    assert np.allclose(low.cosine, 1)


def test_masks_shrink_as_lambda_grows(tmp_path, experts, load_arrays):
    masks = []
    for value in (0.2, 0.6):
        localize(experts[0], experts[1:], lambdas=value, masks=tmp_path / f"at{value}")
        masks.append(load_arrays(tmp_path / f"at{value}" / "b"))
    assert all(not (masks[1][n] & ~m).any() for n, m in masks[0].items())


@pytest.mark.parametrize("method", ["ties", "magmax", "breadcrumbs", "wise_ft"])
def test_any_merge_gives_the_same_as_its_result(tmp_path, experts, method):
    models = experts[1:2] if method == "wise_ft" else experts[1:]
    merge(method, base=experts[0], models=models, out=tmp_path / "merged", dtype="float64", lambda_=1.0)
    found = localize(experts[0], models, method=method, trim=None)
    given = localize(experts[0], models, merged=tmp_path / "merged", trim=None)
    assert given.to_json()["merged"] == str(tmp_path / "merged")
    assert given.method is None
    for one, other in zip(found.tensors, given.tensors, strict=True):
        assert np.array_equal(one.agreement, other.agreement), one.name
        assert np.allclose(one.gram, other.gram, rtol=1e-6)


def test_scale_one_unless_given(experts):
    usual, half = (localize(experts[0], experts[1:], trim=None, parameters=p).model for p in ({}, {"lambda_": 0.5}))
    assert half.gram[1, 1] == pytest.approx(usual.gram[1, 1] / 4)


def test_masks_are_ordinary_checkpoints_and_come_back(tmp_path, experts, arrays, load_arrays):
    out = tmp_path / "masks"
    found = localize(experts[0], {"x": experts[1], "y": experts[2]}, lambdas=[0.25, 0.5], masks=out)
    base, a, b, _ = arrays
    assert sorted(p.name for p in out.iterdir()) == ["edit.json", "x", "y"]
    for name in base:
        first, second = a[name] - base[name], b[name] - base[name]
        assert np.array_equal(load_arrays(out / "x")[name], np.abs(first) > 0.25 * np.abs(second))
        assert np.array_equal(load_arrays(out / "y")[name], np.abs(second) > 0.5 * np.abs(first))
    again = localize(experts[0], experts[1:3], given=[out / "x", out / "y"])
    assert again.by == "given"
    assert again.lambdas is None
    for one, other in zip(found.tensors, again.tensors, strict=True):
        assert np.array_equal(one.agreement, other.agreement)
        assert np.array_equal(one.residuals, other.residuals)


def test_statistics_select_by_themselves(tmp_path, experts, save_arrays, load_arrays):
    rng = np.random.default_rng(5)
    shapes = {n: a.shape for n, a in load_arrays(experts[0]).items() if n != "steps"}
    scores = [{n: rng.random(s).astype("float32") for n, s in shapes.items()} for _ in range(2)]
    folders = [save_arrays(tmp_path / f"s{i}", {k: np.asarray(v) for k, v in s.items()}) for i, s in enumerate(scores)]
    out = tmp_path / "masks"
    given = {"statistics": folders, "selection": {"density": 0.1}, "masks": out}
    found = localize(experts[0], experts[1:3], by="fisher", **given)
    flat = np.concatenate([scores[0][n].reshape(-1) for n in load_arrays(out / "a")])
    masks = np.concatenate([m.reshape(-1) for m in load_arrays(out / "a").values()])
    count = round(0.1 * flat.size)
    assert found.model.selected.tolist() == [count, count]
    assert flat[masks].min() > flat[~masks].max()
    again = localize(experts[0], experts[1:3], by="sensitivity", **{**given, "masks": None})
    assert again.model.shared == found.model.shared
    for task in (0, 1):
        counts = {p.name: int(p.selected[task]) for p in again.tensors}
        assert again.to_json()["allocation"][task] == allocate(counts, shapes)
    assert found.allocation() is None


def test_principal_weights_come_of_whole_matrices(tmp_path, experts, load_arrays):
    given = {"by": "principal", "selection": {"filter_rank": 2, "budget_rank": 1}, "trim": None}
    found = localize(experts[0], experts[1:], masks=tmp_path / "masks", **given)
    by_name = {p.name: p.selected.tolist() for p in found.tensors}
    assert by_name["model.layers.0.mlp.up_proj.weight"] == [15] * 3
    assert by_name["model.norm.weight"] == [0] * 3
    weights = load_arrays(experts[2])["model.layers.1.self_attn.q_proj.weight"].astype(float)
    u, s, v = np.linalg.svd(weights, full_matrices=False)
    best = np.argsort(-np.abs((u[:, :2] * s[:2]) @ v[:2]).reshape(-1))[:200]
    mask = load_arrays(tmp_path / "masks" / "b")["model.layers.1.self_attn.q_proj.weight"]
    assert sorted(best) == np.flatnonzero(mask).tolist()
    with pytest.raises(ArgumentError, match="principal; expected a folder for the masks"):
        localize(experts[0], experts[1:], **given)


def test_lineage_of_every_model(experts):
    rows = localize(experts[0], experts[1:]).to_json()["lineage"]
    assert [r["verdict"] for r in rows] == ["finetuned"] * 3
    assert all(0.9 < r["cosine"] < 1 and 0 < r["equal"] < 0.2 for r in rows)


def test_spectra_and_filters(experts, arrays):
    document = plain(localize(experts[0], experts[1:], spectra=True))
    names = [s["name"] for s in document["spectra"]]
    assert names == [n for n, a in arrays[0].items() if a.ndim == 2]
    for found in document["spectra"]:
        name, base = found["name"], arrays[0][found["name"]]
        vectors = [m[name] - base for m in arrays[1:]]
        values = [np.linalg.svd(v, compute_uv=False) for v in vectors]
        shares = [v / v.sum() for v in values]
        assert found["effective_rank"] == pytest.approx([math.exp(-(p * np.log(p)).sum()) for p in shares], rel=1e-6)
        assert found["stable_rank"] == pytest.approx([(v**2).sum() / v[0] ** 2 for v in values], rel=1e-6)
        places = [round(p * min(base.shape)) for p in found["positions"]]
        assert found["values"] == pytest.approx(np.mean([v[places] / v[0] for v in values], 0), rel=1e-6)
        left, spectrum, _ = np.linalg.svd(sum(vectors), full_matrices=False)
        space = left[:, : found["alignment_rank"]]
        rests = [math.sqrt((spectrum[k:] ** 2).sum() / (spectrum**2).sum()) for k in range(len(spectrum) + 1)]
        assert rests[found["alignment_rank"]] <= 0.05 < rests[found["alignment_rank"] - 1]
        wanted = [np.linalg.norm(space.T @ v) / np.linalg.norm(v) for v in vectors]
        assert found["alignment"] == pytest.approx(wanted, rel=1e-6)
    (convolution,) = document["filters"]
    assert [m["model"] for m in convolution["models"]] == ["base", "a", "b", "c"]
    assert localize(experts[0], experts[1:]).to_json()["spectra"] is None


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"method": "tsv_m"}, "needs whole rows or matrices"),
        ({"method": "linear"}, "takes no base"),
        ({"method": "tise"}, "Did you mean 'ties'"),
        ({"by": "magnetude"}, "Did you mean 'magnitude'"),
        ({"by": "fisher"}, "statistics; expected 3, one per model; got 0"),
        ({"by": "magnitude", "lambdas": 0.4}, "they belong to tall_masks"),
        ({"by": "magnitude", "selection": {"density": 2.0}}, "density"),
        ({"selection": {"density": 0.1}}, "none with tall_masks"),
        ({"lambdas": [0.1, 0.2]}, "lambdas; expected 1 or 3, one per task; got 2"),
        ({"lambdas": -1.0}, "lambda; expected"),
        ({"trim": 1.5}, "trim; expected"),
        ({"grid": [0.1]}, "expected a score"),
        ({"statistics": ["x"]}, "none with tall_masks; got 1"),
        ({"validation": {"a": {"0.1": 1.0}}}, "task 'b'; expected lambdas"),
        ({"validation": {"z": {"0.1": 1.0}}}, "unknown task 'z'"),
    ],
)
def test_wrong_arguments(experts, given, message):
    with pytest.raises(ArgumentError, match=message):
        localize(experts[0], experts[1:], **given)


def test_names_of_tasks(experts):
    found = localize(experts[0], [f"first={experts[1]}", experts[2]], trim=None)
    assert found.tasks == ("first", "b")
    assert found.models == (str(experts[1]), str(experts[2]))
    for bad in ("../up", ".hidden", "<b>", "a" * 65, ""):
        with pytest.raises(ArgumentError, match="name of a task"):
            localize(experts[0], {bad: experts[1]})
    with pytest.raises(ArgumentError, match="given twice"):
        localize(experts[0], [f"x={experts[1]}", f"X={experts[2]}"])


def test_inputs_that_do_not_fit(tmp_path, experts, save_arrays):
    odd = save_arrays(tmp_path / "odd", {"model.norm.weight": np.ones(7, "float32")})
    with pytest.raises(MismatchError, match=r"norm\.weight' has shape"):
        localize(experts[0], [odd])
    with pytest.raises(MismatchError, match=r"merged model .* does not fit the base: 7 faults"):
        localize(experts[0], experts[1:], merged=odd)
    with pytest.raises(MismatchError, match="is F32, a mask is BOOL"):
        localize(experts[0], experts[1:], given=[odd] * 3)


def test_masks_are_not_written_over_anything(tmp_path, experts):
    (tmp_path / "masks").mkdir()
    (tmp_path / "masks" / "mine.txt").write_text("x")
    for force in (False, True):
        with pytest.raises(ArgumentError, match="--out"):
            localize(experts[0], experts[1:], masks=tmp_path / "masks", force=force)
    assert (tmp_path / "masks" / "mine.txt").read_text() == "x"


def test_nothing_is_left_where_a_model_is_damaged(tmp_path, experts, save_arrays, arrays):
    bad = {n: np.asarray(a, "float32") for n, a in arrays[1].items()} | {"steps": np.arange(3)}
    bad["model.norm.weight"] = np.full(6, np.nan, "float32")
    folder = save_arrays(tmp_path / "bad", bad)
    before = sorted(p.name for p in tmp_path.iterdir())
    with pytest.raises(Exception, match="finite"):
        localize(experts[0], [folder], trim=None, masks=tmp_path / "masks")
    assert sorted(p.name for p in tmp_path.iterdir()) == before


@pytest.mark.parametrize("dtype", ["BF16", "F16", "F64"])
def test_the_same_numbers_in_another_dtype(tmp_path, experts, arrays, save_raw, dtype):
    def stored(array):
        if dtype == "BF16":
            return (np.asarray(array, "<f4").view("<u4") >> 16).astype("<u2").tobytes()
        return np.asarray(array, {"F16": "<f2", "F64": "<f8"}[dtype]).tobytes()

    folders = []
    for name, given in zip(("base", "a", "b", "c"), arrays, strict=True):
        raw = {n: (dtype, np.shape(a), stored(a)) for n, a in given.items()}
        folders.append(save_raw(tmp_path / dtype / name / "model.safetensors", raw).parent)
    for one, other in zip(
        localize(experts[0], experts[1:]).tensors, localize(folders[0], folders[1:]).tensors, strict=True
    ):
        assert one.summary() == other.summary()


def test_a_matrix_with_nan_is_told_by_name(experts, arrays, save_arrays, tmp_path):
    name = "model.layers.1.self_attn.q_proj.weight"
    changed = {n: np.asarray(a, "float32") for n, a in arrays[1].items()}
    changed[name][3, 4] = np.nan
    odd = save_arrays(tmp_path / "odd", {**changed, "steps": np.arange(3)})
    given = {"spectra": True, "options": Options(allow_nonfinite=True)}
    with pytest.raises(NonFiniteError, match=rf"{name}.*finite numbers.*1 that are NaN.*--copy NAME"):
        localize(experts[0], [odd, experts[2]], **given)
    found = localize(experts[0], [odd, experts[2]], copy=[name], **given)
    assert name not in {s.name for s in found.spectra}
