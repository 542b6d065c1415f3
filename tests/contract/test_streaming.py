"""The engine against itself and against whole tensors in memory: the same bytes, however the work is cut.

Most values are small multiples of 1/64, so that every task vector has many entries of exactly equal magnitude;
some tensors are normal, so that the order of summation would show.
"""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

import weightsmith
from weightsmith.merge import METHODS
from weightsmith.merge.ties import ties
from weightsmith.method import Tile
from weightsmith.plan import Options
from weightsmith.plan import forecast as planning
from weightsmith.tensor.arrays import BLOCK

BY_NAME = {m.name: m for m in METHODS}
LAYERS = 3
SETTINGS = [
    ("linear", {}),
    ("linear", {"coefficients": (0.5, -0.2, 0.9), "normalize": False}),
    ("task_arithmetic", {"lambda_": 0.3, "coefficients": (1.0, -1.0, 0.7)}),
    ("slerp", {"t": 0.3}),
    ("wise_ft", {"lambda_": 0.4}),
    ("wise_ft", {"lambda_": 1.0}),
    ("ties", {}),
    ("ties", {"scope": "tensor", "merge": "sum", "lambda_": 0.4, "density": 0.37}),
    ("ties", {"scope": "model", "merge": "max", "density": 0.0001}),
    ("dare", {"density": 0.3, "seed": 5}),
    ("dare_ties", {"density": 0.6, "merge": "sum"}),
    ("breadcrumbs", {"lambda_": 0.7, "density": 0.3, "drop_top": 0.05}),
    ("breadcrumbs_ties", {"density": 0.5, "drop_top": 0.0}),
    ("breadcrumbs_ties", {"scope": "row", "density": 0.25, "drop_top": 0.1}),
    ("breadcrumbs", {"scope": "row", "lambda_": 1.0}),
    ("lines", {"beta": 0.9}),
    ("lines", {"merged": "ties", "beta": 0.6}),
    ("lines", {"merged": "ties", "alpha": 0.2, "density": 0.5}),
    ("tall_masks", {"task": 3}),
    ("tall_masks", {"merged": "ties", "task": 2, "mask_lambda": 0.6}),
    ("consensus", {"lambda_": 1.0}),
    ("consensus", {"merged": "ties", "density": 0.4, "min_tasks": 1}),
    ("magmax", {"lambda_": 0.7}),
    ("emr", {}),
    ("emr", {"task": 2}),
    ("emr", {"task": 3, "scope": "tensor"}),
    ("model_stock", {"scope": "tensor"}),
    ("model_stock", {"scope": "row", "clamp": False}),
    ("karcher", {"coefficients": (1.0, 0.5, 2.0)}),
    ("lt_sft", {"density": 0.01}),
    ("lt_sft", {"density": 0.3, "scope": "tensor", "coefficients": (1.0, -0.5, 2.0)}),
    ("flag", {"rank": 2, "lambda_": 0.5}),
    ("flag", {"scope": "tensor"}),
    ("rebase", {"lambda_": 0.8}),
    ("robust_signatures", {"lambda_": -0.5}),
    ("pcb", {"density": 0.2}),
    ("pcb", {"variant": "vision", "lambda_": 1.2}),
    ("pcb", {"scope": "tensor", "clip": 0.1, "coefficients": (1.2, 0.8, 1.0)}),
    ("sparse_task_arithmetic", {"coefficients": (1.0, -0.5, 0.7), "normalize": True}),
    (
        "sparse_task_arithmetic",
        {"sparsify": "magnitude", "densities": (0.3, 1.0, 0.01), "rescale": True, "consensus": True},
    ),
    ("sparse_task_arithmetic", {"sparsify": "outliers", "densities": (0.3, 0.3, 0.9), "gammas": (0.1, 0.1, 0.2)}),
    ("sparse_task_arithmetic", {"sparsify": "random", "densities": (0.3, 0.5, 0.9), "rescale": True}),
    ("passthrough", {"scale": 0.7}),
    ("nearswap", {"t": 0.02}),
    ("ram", {"epsilon": 0.02}),
    ("ramplus", {"epsilon": 0.02}),
    ("nuslerp", {"coefficients": (0.7, 0.4)}),
    ("nuslerp", {"coefficients": (0.7, 0.4), "scope": "row"}),
    ("nuslerp_base", {"coefficients": (0.7, 0.4)}),
    ("nuslerp_columns", {}),
    ("nuslerp_columns_base", {}),
    ("multislerp", {"coefficients": (0.7, 0.4, 0.2)}),
    ("multislerp_base", {}),
    ("della", {"seed": 3}),
    ("della", {"rescale": "l1", "normalize": True}),
    ("della_linear", {"densities": (0.5, 0.5, 1.0)}),
    ("sce", {}),
    ("arcee_fusion", {}),
    ("sce", {"select_topk": 0.4}),
    ("tsv_m", {}),
    ("tsv_m", {"algorithm": "randomized", "seed": 3}),
    ("iso_c", {"lambda_": 1.5}),
    ("iso_cts", {}),
    ("knots", {"density": 0.4}),
    ("wudi", {"solver": "closed"}),
    ("wudi", {"steps": 5}),
    ("doge", {"steps": 5}),
    ("delta_svd", {"rank": 4}),
]
CUTS = [  # tile, threads, bytes of a chunk, regions
    (BLOCK, 1, 1 << 16, 1),
    (2 * BLOCK, 2, 1 << 20, 16),
    (131_072, 5, 4_000_000, 4),
]


def label(setting):
    method, parameters = setting
    return "-".join([method, *(str(v) for v in parameters.values() if isinstance(v, str))])


def by_row(method, parameters):
    return parameters.get("scope") == "row" or BY_NAME[method].reach == "row"


def levels(rng, shape, most):
    return torch.from_numpy(np.array(rng.integers(-most, most + 1, shape) / 64, np.float32))


def normal(rng, shape, scale):
    return torch.from_numpy(np.array(rng.standard_normal(shape) * scale, np.float32))


SHAPES = {  # three shards: name, dtype, shape, kind of values
    "a.embed": ("bfloat16", (500, 600), levels),
    "layers.0.w": ("float32", (100_003,), normal),
    "layers.0.count": ("int64", (4,), None),
    "layers.0.one": ("float16", (1,), levels),
    "layers.1.w": ("bfloat16", (17, 241), levels),
    "layers.1.scalar": ("float32", (), normal),
    "layers.1.bias": ("bfloat16", (3,), levels),
    "layers.1.none": ("float32", (4, 0, 2), normal),
    "layers.1.flags": ("bool", (5,), None),
    "layers.2.w": ("float16", (4, 1024), levels),
    "layers.2.v": ("float16", (200, 31), normal),
    "z.head": ("float32", (4097, 2), levels),
}
SHARDS = (slice(0, 3), slice(3, 9), slice(9, 12))


def make(seed, base=None):
    rng = np.random.default_rng(seed)
    made = {}
    for name, (dtype, shape, values) in SHAPES.items():
        if values is None:
            made[name] = torch.ones(shape, dtype=getattr(torch, dtype))
        elif base is None:
            made[name] = values(rng, shape, 60 if values is levels else 1.0).to(getattr(torch, dtype))
        else:
            change = values(rng, shape, 4 if values is levels else 0.05)
            made[name] = (base[name].float() + change).to(getattr(torch, dtype))
    return made


@pytest.fixture(scope="module")
def tensors():
    base = make(0)
    return [base, *(make(seed, base) for seed in (1, 2, 3))]


@pytest.fixture(scope="module")
def folders(tmp_path_factory, tensors, write_model):
    root = tmp_path_factory.mktemp("models")
    names = list(SHAPES)
    return [
        write_model(root / f"m{i}", *({n: model[n] for n in names[part]} for part in SHARDS))
        for i, model in enumerate(tensors)
    ]


def references(method, folders):
    """Return base and models as `merge` takes them."""
    base = {"base": folders[0]} if BY_NAME[method].has_base else {}
    most = BY_NAME[method].most or 3
    return {**base, "models": folders[1 : 1 + most] if base else folders[:most]}


def cut_into(monkeypatch, tile, threads, chunk_bytes, regions):
    """Make the engine cut its work so; a tile holds at least a row where rows are ranked."""
    choose = planning.choose_limits

    def chosen(demand, memory_bytes, _):
        held = max(tile, -(-demand.row // BLOCK) * BLOCK)
        limits = choose(demand, 10**10, threads)
        return replace(limits, tile=held, chunk_bytes=chunk_bytes, regions=regions, window=threads + 1)

    monkeypatch.setattr(planning, "choose_limits", chosen)


def weights(result):
    return [(o["file"], o["bytes"], o["sha256"]) for o in result.record["outputs"] if "safetensors" in o["file"]]


def bits(tensor):
    return tensor.dtype, tensor.shape, tensor.double().numpy().tobytes()


@pytest.mark.parametrize("setting", SETTINGS, ids=label)
def test_bytes_do_not_depend_on_tiles_and_threads(setting, folders, tmp_path, monkeypatch):
    method, parameters = setting
    # A row of 100,003 entries would rule out small tiles where rows are ranked.
    extra = {"copy": ["layers.0.w"]} if by_row(method, parameters) else {}
    given = {**references(method, folders), **parameters, **extra}
    found = []
    for cut in CUTS:
        with monkeypatch.context() as patch:
            cut_into(patch, *cut)
            found.append(weights(weightsmith.merge(method, out=tmp_path / str(cut[0]), **given)))
    assert found[0] == found[1]
    assert found[0] == found[2]


@pytest.mark.parametrize("method", ["ties", "slerp", "dare"])
def test_bytes_do_not_depend_on_options(method, folders, tmp_path):
    given = references(method, folders)
    found = [
        weights(weightsmith.merge(method, out=tmp_path / str(i), options=options, **given))
        for i, options in enumerate(
            [
                Options(),
                Options(threads=1, memory_bytes=230_000_000),
                Options(threads=3, memory_bytes=400_000_000),
                Options(threads=7, memory_bytes=8_000_000_000),
            ]
        )
    ]
    assert all(f == found[0] for f in found)


@pytest.mark.parametrize("method", ["ties", "breadcrumbs", "dare_ties"])
def test_tensors_do_not_depend_on_the_size_of_shards(method, folders, tmp_path, load_model):
    given = references(method, folders)
    outs = [tmp_path / str(size) for size in (1_000, 450_000, 10**9)]
    for out in outs:
        result = weightsmith.merge(method, out=out, shard_size=int(out.name), **given)
    assert len(result.record["outputs"]) > 1
    assert len(list(outs[0].glob("*.safetensors"))) > len(list(outs[1].glob("*.safetensors"))) > 1
    first, *others = [load_model(out) for out in outs]
    assert sorted(first) == sorted(SHAPES)
    for other in others:
        assert sorted(other) == sorted(first)
        for name in first:
            assert bits(other[name]) == bits(first[name]), name


def floating(tensors):
    return [n for n in tensors if tensors[n].is_floating_point() and tensors[n].numel()]


def working(tensors, dtype=torch.float32):
    return {n: tensors[n].to(dtype).numpy() for n in floating(tensors)}


def rounded(values, dtype):
    return torch.from_numpy(np.array(values)).to(dtype)


def layer_of(name):
    return int(name.split(".")[1]) if name.startswith("layers.") else None


def expect_by_tensor(method, parameters, models):
    """Run the method on each whole tensor."""
    chosen = BY_NAME[method]
    made = {}
    for name in floating(models[0]):
        base, *others = [working(m)[name] for m in models]
        given = [t - base for t in others] if "task_vectors" in chosen.inputs else others
        tile = Tile(name=name, layer=layer_of(name), layers=LAYERS)
        inputs = (base, given[: chosen.most]) if chosen.has_base else ([base, *others][: chosen.most or 3],)
        made[name] = rounded(chosen(*inputs, tile=tile, **parameters), models[0][name].dtype)
    return made


def in_file_order(folder, load_model):
    return [n for n in load_model(folder) if SHAPES[n][2] is not None and math.prod(SHAPES[n][1])]


@pytest.mark.parametrize(
    "setting",
    [
        s
        for s in SETTINGS
        if s[0] in ("linear", "task_arithmetic", "slerp", "wise_ft", "dare", "dare_ties")
        or s[0].startswith("breadcrumbs")
        or s[1].get("scope") == "tensor"
        or s[0] in ("sparse_task_arithmetic", "passthrough", "nearswap", "ram", "ramplus", "sce", "arcee_fusion")
        or s[0].startswith(("nuslerp", "multislerp", "della"))
        or s[0] in ("magmax", "karcher", "rebase", "robust_signatures", "model_stock")
        or (s[0] in ("lines", "tall_masks", "consensus") and "merged" not in s[1])
    ],
    ids=label,
)
def test_equals_whole_tensors_in_memory(setting, folders, tensors, tmp_path, load_model, monkeypatch):
    method, parameters = setting
    cut_into(monkeypatch, 131_072 if by_row(method, parameters) else 2 * BLOCK, 2, 1 << 18, 4)
    weightsmith.merge(method, out=tmp_path / "out", **references(method, folders), **parameters)
    found = load_model(tmp_path / "out")
    expected = expect_by_tensor(method, parameters, tensors)
    assert len(expected) == 9
    for name, tensor in expected.items():
        assert bits(found[name]) == bits(tensor), name
    for name in ("layers.0.count", "layers.1.flags", "layers.1.none"):
        assert bits(found[name]) == bits(tensors[0][name]), name


@pytest.mark.parametrize(
    "setting",
    [
        s
        for s in SETTINGS
        if s[1].get("merged") == "ties"
        or (s[0] in ("ties", "emr", "lt_sft", "flag", "pcb") and s[1].get("scope") != "tensor")
    ],
    ids=label,
)
def test_equals_the_concatenated_model_in_memory(setting, folders, tensors, tmp_path, load_model, monkeypatch):
    method, parameters = setting
    cut_into(monkeypatch, BLOCK, 2, 1 << 18, 4)
    weightsmith.merge(method, out=tmp_path / "out", **references(method, folders), **parameters)
    found = load_model(tmp_path / "out")
    order = in_file_order(folders[0], load_model)
    base, *others = [np.concatenate([working(m)[n].ravel() for n in order]) for m in tensors]
    taus = [t - base for t in others]
    if method == "lines":
        whole = expect_lines(base, taus, order, parameters)
    else:
        whole = BY_NAME[method](base, taus, tile=Tile(name="any"), **parameters)
    start = 0
    for name in order:
        size = math.prod(SHAPES[name][1])
        expected = rounded(whole[start : start + size].reshape(SHAPES[name][1]), tensors[0][name].dtype)
        assert bits(found[name]) == bits(expected), name
        start += size
    assert start == len(base)


def expect_lines(base, taus, order, parameters):
    """LiNeS over TIES on the flat model: its own scale for the entries of each layer."""
    density = parameters.get("density", 0.2)
    vector = ties(np.zeros_like(base), taus, density=density)
    alpha = parameters.get("alpha")
    if alpha is None:
        total = (taus[0] + taus[1]) + taus[2]
        alpha = math.fsum(np.abs(total).tolist()) / math.fsum(np.abs(vector).tolist()) / 3
    scales = []
    for name in order:
        depth = (layer_of(name) or 0) / (LAYERS - 1)
        scale = np.float32(alpha + parameters.get("beta", 0.5) * depth)
        scales.append(np.full(math.prod(SHAPES[name][1]), scale))
    return base + vector * np.concatenate(scales)


@pytest.mark.parametrize("method", ["ties", "slerp", "lines", "dare", "breadcrumbs"])
def test_float64_is_computed_in_float64(method, tmp_path, save_model, load_model):
    rng = np.random.default_rng(9)
    shapes = {"wide": ((30, 300), "float64"), "narrow": ((7,), "float32"), "half": ((5000,), "float16")}
    base = {n: torch.from_numpy(rng.standard_normal(s)).to(getattr(torch, d)) for n, (s, d) in shapes.items()}
    models = [base]
    for _ in range(2):
        step = {n: torch.from_numpy(rng.standard_normal(s)) / 8 for n, (s, _) in shapes.items()}
        models.append({n: (base[n].double() + step[n]).to(base[n].dtype) for n in base})
    folders = [save_model(tmp_path / f"m{i}", m) for i, m in enumerate(models)]
    most = BY_NAME[method].most or 3
    given = {"base": folders[0], "models": folders[1:]} if BY_NAME[method].has_base else {"models": folders[:most]}
    parameters = {"scope": "tensor"} if method == "ties" else {}
    weightsmith.merge(method, out=tmp_path / "out", **given, **parameters)
    found = load_model(tmp_path / "out")
    for name in shapes:
        flat = [m[name].double().numpy() for m in models]
        if BY_NAME[method].has_base:
            whole = BY_NAME[method](flat[0], [t - flat[0] for t in flat[1:]], tile=Tile(name=name), **parameters)
        else:
            whole = BY_NAME[method](flat[:most], tile=Tile(name=name))
        expected = whole.astype(found[name].numpy().dtype)
        assert found[name].numpy().tobytes() == expected.tobytes(), name
    assert not torch.equal(found["wide"], found["wide"].float().double())


def save_adapter(folder, save_model, factors, rank=4, alpha=6.0):
    made = {}
    for name, (down, up) in factors.items():
        module = f"base_model.model.{name.removesuffix('.weight')}"
        made |= {f"{module}.lora_A.weight": down, f"{module}.lora_B.weight": up}
    save_model(folder, made)
    (folder / "model.safetensors").rename(folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": rank, "lora_alpha": alpha, "target_modules": ["w"]}
    (folder / "adapter_config.json").write_text(json.dumps(config))


@pytest.mark.parametrize("method", ["task_arithmetic", "linear", "ties", "wise_ft"])
def test_an_adapter_merges_as_the_model_it_makes(method, tmp_path, save_model, load_model):
    rng = np.random.default_rng(2)
    base = {"layers.0.w.weight": normal(rng, (130, 70), 1.0), "layers.1.w.weight": normal(rng, (33, 257), 1.0)}
    base["norm.weight"] = normal(rng, (9,), 1.0)
    save_model(tmp_path / "base", base)
    models = []
    for i in range(1 if method == "wise_ft" else 2):
        factors = {
            n: (normal(rng, (4, t.shape[1]), 0.1), normal(rng, (t.shape[0], 4), 0.5))
            for n, t in base.items()
            if t.dim() == 2
        }
        save_adapter(tmp_path / f"adapter{i}", save_model, factors)
        whole = {n: (t + 6 / 4 * factors[n][1] @ factors[n][0]) if n in factors else t for n, t in base.items()}
        save_model(tmp_path / f"whole{i}", {n: t.contiguous() for n, t in whole.items()})
        models.append((f"{tmp_path / 'base'}+{tmp_path / f'adapter{i}'}", tmp_path / f"whole{i}"))
    given = {"base": tmp_path / "base"} if BY_NAME[method].has_base else {}
    # Half an entry's rounding decides which entries TIES keeps; density 1 keeps all.
    given |= {"density": 1.0} if method == "ties" else {}
    for i, kind in enumerate(("adapters", "wholes")):
        weightsmith.merge(method, models=[m[i] for m in models], out=tmp_path / kind, **given)
    ours, theirs = load_model(tmp_path / "adapters"), load_model(tmp_path / "wholes")
    for name in base:
        if method == "ties":
            close = torch.isclose(ours[name], theirs[name], rtol=0, atol=1e-5)
            assert close.float().mean() > 0.999, name  # a vote that rounding decides may fall either way
        else:
            torch.testing.assert_close(ours[name], theirs[name], rtol=0, atol=2e-6)
    assert not torch.equal(ours["layers.0.w.weight"], base["layers.0.w.weight"])
    assert torch.equal(ours["norm.weight"], base["norm.weight"])


def test_adapter_tiles_have_the_bytes_of_the_whole(tmp_path, save_model, monkeypatch):
    rng = np.random.default_rng(3)
    base = {"layers.0.w.weight": normal(rng, (190, 211), 1.0).to(torch.bfloat16)}
    save_model(tmp_path / "base", base)
    save_adapter(
        tmp_path / "adapter",
        save_model,
        {"layers.0.w.weight": (normal(rng, (4, 211), 0.3), normal(rng, (190, 4), 0.3))},
    )
    found = []
    for cut in CUTS:
        with monkeypatch.context() as patch:
            cut_into(patch, *cut)
            out = tmp_path / f"out{cut[0]}"
            models = [f"{tmp_path / 'base'}+{tmp_path / 'adapter'}"]
            found.append(weights(weightsmith.merge("ties", base=tmp_path / "base", models=models, out=out)))
    assert found[0] == found[1] == found[2]
