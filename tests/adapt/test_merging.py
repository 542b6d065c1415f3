"""Adapters merged on their products: forwards add up, as PEFT computes them."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file as save_arrays_file
from safetensors.torch import load_file, save_file

from weightsmith import merge_adapters, verify
from weightsmith.checkpoint.adapter import apply_adapter
from weightsmith.checkpoint.read import open_checkpoint
from weightsmith.errors import ArgumentError, CheckpointError, MismatchError

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")  # those of transformers and PEFT about themselves


@pytest.fixture
def base(tmp_path, llama):
    torch.manual_seed(0)
    model = llama()
    model.save_pretrained(tmp_path / "base")
    return model


OPTIONS = [
    {"r": 2, "lora_alpha": 5, "target_modules": ["q_proj", "up_proj", "embed_tokens"]},
    {"r": 3, "lora_alpha": 4, "target_modules": ["q_proj", "down_proj"], "use_rslora": True},
    {
        "r": 4,
        "lora_alpha": 3,
        "target_modules": ["q_proj", "up_proj", "lm_head", "embed_tokens"],
        "rank_pattern": {"0.self_attn.q_proj": 1},
        "alpha_pattern": {"up_proj": 9},
    },
]


@pytest.fixture
def three(base, make_adapter):
    made = [make_adapter(base, f"a{i}", i, **options) for i, options in enumerate(OPTIONS)]
    return [folder for folder, _ in made], [wrapped for _, wrapped in made]


def updates(model):
    """Module path to what PEFT adds to its weight, float64."""
    return {
        n: m.get_delta_weight("default").detach().double()
        for n, m in model.base_model.model.named_modules()
        if hasattr(m, "get_delta_weight")
    }


def summed(models, coefficients):
    total = {}
    for model, coefficient in zip(models, coefficients, strict=True):
        for name, update in updates(model).items():
            total[name] = total.get(name, 0) + coefficient * update
    return total


@pytest.mark.parametrize("by", ["concat", "svd"])
def test_merged_updates_and_forwards_are_weighted_sums(tmp_path, base, three, loaded, by):
    folders, models = three
    coefficients = [0.7, -1.3, 0.25]
    rule = {} if by == "concat" else {"energy": 1.0}
    done = merge_adapters(
        folders, base=tmp_path / "base", out=tmp_path / "out", coefficients=coefficients, by=by, **rule
    )
    merged, wanted = updates(loaded(base, done.out)), summed(models, coefficients)
    assert set(merged) == set(wanted)
    torch.manual_seed(5)
    for name, update in wanted.items():
        scale = update.abs().max()
        torch.testing.assert_close(merged[name], update, rtol=0, atol=float(4e-7 * scale))
        x = torch.randn(7, update.shape[1], dtype=torch.float64)
        torch.testing.assert_close(x @ merged[name].T, x @ update.T, rtol=0, atol=float(2e-5 * scale))
    ranks = {r.name: r.rank for r in done.rows}
    assert ranks["model.layers.0.self_attn.q_proj.weight"] == 2 + 3 + 1
    assert ranks["model.layers.1.self_attn.q_proj.weight"] == 2 + 3 + 4
    assert ranks["lm_head.weight"] == 4
    assert ranks["model.embed_tokens.weight"] == 2 + 4
    assert done.relative_residual < 1e-7
    assert verify(done.out).is_sound


def test_concatenation_with_coefficients_that_are_powers_of_two_keeps_every_bit(tmp_path, base, make_adapter):
    folders = [make_adapter(base, f"b{i}", i, r=2, lora_alpha=2 << i, target_modules=["q_proj"])[0] for i in range(2)]
    done = merge_adapters(folders, base=tmp_path / "base", out=tmp_path / "out", coefficients=[1, 0.5])
    parts = [load_file(f / "adapter_model.safetensors") for f in folders]
    for name, tensor in load_file(done.out / "adapter_model.safetensors").items():
        a, b = (p[name] for p in parts)
        assert torch.equal(tensor, torch.cat([a, b], 0 if "lora_A" in name else 1))
    assert done.relative_residual == 0 or done.relative_residual < 1e-15


@pytest.mark.parametrize("rank", [1, 3])
def test_truncation_is_numpys_and_the_residual_is_told(tmp_path, base, three, loaded, rank):
    folders, models = three
    done = merge_adapters(folders, base=tmp_path / "base", out=tmp_path / "out", by="svd", rank=rank)
    merged, wanted = updates(loaded(base, done.out)), summed(models, [1, 1, 1])
    missing = total = 0.0
    for row in done.rows:
        update = wanted[row.name.removesuffix(".weight")].numpy()
        u, s, v = np.linalg.svd(update, full_matrices=False)
        np.testing.assert_allclose(
            merged[row.name.removesuffix(".weight")].numpy(), (u[:, :rank] * s[:rank]) @ v[:rank], atol=1e-6 * s[0]
        )
        assert row.rank == rank
        assert row.relative == pytest.approx(np.linalg.norm(s[rank:]) / np.linalg.norm(s), rel=1e-4, abs=1e-6)
        missing, total = missing + (s[rank:] ** 2).sum(), total + (s**2).sum()
    assert done.relative_residual == pytest.approx(np.sqrt(missing / total), rel=1e-4)


def test_conv1d_of_gpt2(tmp_path, gpt2, make_adapter, loaded):
    torch.manual_seed(0)
    model = gpt2()
    model.save_pretrained(tmp_path / "base")
    made = [
        make_adapter(model, f"g{i}", i, r=2 + i, target_modules=["c_attn", "c_proj"], fan_in_fan_out=True)
        for i in range(2)
    ]
    done = merge_adapters([f for f, _ in made], base=tmp_path / "base", out=tmp_path / "out", by="svd", rank=5)
    wanted = summed([m for _, m in made], [1, 1])
    merged = updates(loaded(model, done.out))
    assert {r.rank for r in done.rows} == {5}
    for name, update in wanted.items():
        torch.testing.assert_close(merged[name], update, rtol=0, atol=1e-6)


def test_convolutions(tmp_path, save_model, make_adapter, loaded):
    torch.manual_seed(0)
    net = torch.nn.Sequential()
    net.add_module("conv", torch.nn.Conv2d(3, 4, 3))
    save_model(tmp_path / "base", {k: v.clone() for k, v in net.state_dict().items()})
    made = [make_adapter(net, f"c{i}", i, r=2, target_modules=["conv"]) for i in range(2)]
    done = merge_adapters([f for f, _ in made], base=tmp_path / "base", out=tmp_path / "out")
    wanted = summed([m for _, m in made], [1, 1])["conv"]
    torch.testing.assert_close(updates(loaded(net, done.out))["conv"], wanted, rtol=0, atol=1e-6)


def test_the_merged_adapter_is_one_for_weightsmith_too(tmp_path, three):
    done = merge_adapters(three[0], base=tmp_path / "base", out=tmp_path / "out", by="svd", energy=0.8)
    opened = apply_adapter(open_checkpoint(tmp_path / "base"), done.out)
    found = {n: e.low_rank for n, e in opened.tensors.items() if e.low_rank}
    assert {n: low.down.shape[0] for n, low in found.items()} == {r.name: r.rank for r in done.rows}
    assert {low.scale for low in found.values()} == {1.0}


def write_adapter(folder, factors, **config):
    """Write an adapter by hand: path -> (A, B)."""
    folder.mkdir()
    named = {
        f"base_model.model.{p}.lora_{x}.weight": f
        for p, pair in factors.items()
        for x, f in zip("AB", pair, strict=True)
    }
    save_arrays_file(named, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", **config}))
    return folder


@given(data=st.data())
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_the_adapters_forwards_add_up(tmp_path_factory, save_arrays, data):
    place = tmp_path_factory.mktemp("law")
    rng = np.random.default_rng(data.draw(st.integers(0, 999)))
    shapes = {"a": (6, 4), "b": (5, 5), "c": (1, 7)}
    save_arrays(place / "base", {f"{n}.weight": rng.standard_normal(s) for n, s in shapes.items()})
    wanted = {n: np.zeros(s) for n, s in shapes.items()}
    folders, coefficients = [], []
    for i in range(data.draw(st.integers(1, 4))):
        rank, alpha = data.draw(st.integers(1, 6)), data.draw(st.integers(1, 40))
        stabilized, targets = data.draw(st.booleans()), data.draw(st.sets(st.sampled_from("abc"), min_size=1))
        coefficients.append(data.draw(st.floats(-3, 3).filter(lambda c: abs(c) > 0.01)))
        factors = {}
        for n in sorted(targets):
            down, up = rng.standard_normal((rank, shapes[n][1])), rng.standard_normal((shapes[n][0], rank))
            factors[n] = down.astype("float32"), up.astype("float32")
            scale = alpha / np.sqrt(rank) if stabilized else alpha / rank
            wanted[n] += coefficients[-1] * scale * factors[n][1].astype(float) @ factors[n][0].astype(float)
        folders.append(write_adapter(place / f"{i}", factors, r=rank, lora_alpha=alpha, use_rslora=stabilized))
    by = data.draw(st.sampled_from([{"by": "concat"}, {"by": "svd", "energy": 1.0}, {"by": "svd", "rank": 99}]))
    done = merge_adapters(folders, base=place / "base", out=place / "out", coefficients=coefficients, **by)
    stored = load_file(done.out / "adapter_model.safetensors")
    for n, update in wanted.items():
        if not update.any():
            assert not [k for k in stored if f".{n}." in k]
            continue
        down, up = (stored[f"base_model.model.{n}.lora_{x}.weight"].double().numpy() for x in "AB")
        x = rng.standard_normal((3, shapes[n][1]))
        sizes = sum(abs(c) for c in coefficients) * 40 * 30
        np.testing.assert_allclose(x @ (up @ down).T, x @ update.T, atol=1e-6 * sizes)


def test_weights_of_different_orientation_are_refused(tmp_path, save_arrays):
    rng = np.random.default_rng(0)
    save_arrays(tmp_path / "base", {"a.weight": rng.standard_normal((4, 4)), "b.weight": rng.standard_normal((4, 6))})
    square = {"a": (np.ones((2, 4), "float32"), np.ones((4, 2), "float32"))}
    wide = {"b": (np.ones((2, 6), "float32"), np.ones((4, 2), "float32"))}
    plain, other = write_adapter(tmp_path / "p", square, r=2), write_adapter(tmp_path / "w", wide, r=2)
    turned = write_adapter(tmp_path / "t", square, r=2, fan_in_fan_out=True)
    with pytest.raises(MismatchError, match=r"'a\.weight' is linear and transposed to different adapters"):
        merge_adapters([plain, turned], base=tmp_path / "base", out=tmp_path / "out")
    with pytest.raises(MismatchError, match="one adapter holds one kind"):
        merge_adapters([other, turned], base=tmp_path / "base", out=tmp_path / "out")


def test_an_adapter_of_coefficient_zero_takes_no_rank(tmp_path, three):
    done = merge_adapters(three[0], base=tmp_path / "base", out=tmp_path / "out", coefficients=[1, 0, 0])
    assert {r.rank for r in done.rows} == {2}
    with pytest.raises(MismatchError, match="changes 0 tensors"):
        merge_adapters(three[0], base=tmp_path / "base", out=tmp_path / "no", coefficients=[0, 0, 0])


def changed(folder, part):
    """Change one number of a stored tensor."""
    file = folder / "adapter_model.safetensors"
    tensors = load_file(file)
    (name,) = [n for n in tensors if part in n]
    tensors[name].view(-1)[0] += 1
    save_file(tensors, file)


def test_modules_to_save_must_be_the_same(tmp_path, base, make_adapter, loaded, logits):
    options = {"r": 2, "target_modules": ["q_proj"], "modules_to_save": ["lm_head"]}
    a, b = (make_adapter(base, name, i, **options)[0] for i, name in enumerate("ab"))
    c, _ = make_adapter(base, "c", 2, r=2, target_modules=["q_proj"])
    places = {"base": tmp_path / "base", "out": tmp_path / "out"}
    assert merge_adapters([a, c], **places).saved == ()  # a copy of the base's
    changed(a, "lm_head")
    for others in ([a, b], [b, a], [a, c]):
        with pytest.raises(MismatchError, match=r"(?s)replaces 'lm_head.weight' .*by other numbers.*task_arithmetic"):
            merge_adapters(others, force=True, **places)
    changed(b, "lm_head")
    done = merge_adapters([a, b], force=True, **places)
    assert done.saved == ("lm_head.weight",)
    assert any("no coefficient applies" in n for n in done.notes)
    wrapped = loaded(base, done.out)
    head = wrapped.base_model.model.lm_head.modules_to_save["default"].weight
    torch.testing.assert_close(head[0, 0], base.lm_head.weight[0, 0] + 1)
    assert torch.isfinite(logits(wrapped)).all()


def test_copies_of_the_base_beside_factors_of_embeddings_must_be_the_bases(tmp_path, base, three):
    changed(three[0][0], "embed_tokens.base_layer")
    with pytest.raises(MismatchError, match=r"a0' replaces 'model\.embed_tokens\.weight' as a whole"):
        merge_adapters(three[0], base=tmp_path / "base", out=tmp_path / "out")


def test_faults_of_all_adapters_are_reported_together(tmp_path, base, make_adapter):
    a, _ = make_adapter(base, "a", r=2, target_modules=["q_proj"])
    b, _ = make_adapter(base, "b", r=2, target_modules=["q_proj"])
    tensors = load_file(a / "adapter_model.safetensors")
    save_file({k.replace("layers.0", "layers.9"): v for k, v in tensors.items()}, a / "adapter_model.safetensors")
    (b / "adapter_config.json").write_text((b / "adapter_config.json").read_text().replace('"r": 2', '"r": 3'))
    with pytest.raises(CheckpointError) as caught:
        merge_adapters([a, b, tmp_path / "nowhere"], base=tmp_path / "base", out=tmp_path / "out")
    for part in ("model.layers.9.self_attn.q_proj", "the rank is 2, and the config says 3", "does not exist"):
        assert part in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_adapters_that_change_nothing_are_refused(tmp_path, base, make_adapter):
    a, _ = make_adapter(base, "a", r=2, target_modules=["q_proj"])
    file = a / "adapter_model.safetensors"
    save_file({k: v * 0 for k, v in load_file(file).items()}, file)
    for rule in ({}, {"by": "svd", "rank": 1}, {"by": "svd", "energy": 0.5}):
        with pytest.raises(MismatchError, match="zero"):
            merge_adapters([a], base=tmp_path / "base", out=tmp_path / "out", **rule)
    assert not (tmp_path / "out").exists()


def test_another_name_of_the_base_is_a_note(tmp_path, base, three):
    folder = three[0][0]
    path = folder / "adapter_config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, "base_model_name_or_path": "org/other"}))
    done = merge_adapters([folder], base=tmp_path / "base", out=tmp_path / "out")
    assert any("says that its base is 'org/other'" in n for n in done.notes)


@pytest.mark.parametrize(
    "wrong",
    [
        {"by": "linear"},
        {"by": "concat", "rank": 2},
        {"by": "svd"},
        {"by": "svd", "rank": 2, "energy": 0.5},
        {"by": "svd", "rank": 0},
        {"coefficients": [1, 2]},
        {"coefficients": [float("nan")]},
        {"dtype": "int8"},
    ],
)
def test_bad_parameters_are_refused(tmp_path, base, make_adapter, wrong):
    a, _ = make_adapter(base, "a", r=2, target_modules=["q_proj"])
    with pytest.raises(ArgumentError):
        merge_adapters([a], base=tmp_path / "base", out=tmp_path / "out", **wrong)
    with pytest.raises(ArgumentError, match="more than once"):
        merge_adapters([a, a], base=tmp_path / "base", out=tmp_path / "out")
    with pytest.raises(ArgumentError, match="list of folders"):
        merge_adapters(str(a), base=tmp_path / "base", out=tmp_path / "out")


def test_command(tmp_path, three, command):
    words = ["merge-adapters", "--base", tmp_path / "base", "--out", tmp_path / "out"]
    for folder in three[0]:
        words += ["--adapter", folder]
    ran = command(*words, "--dry-run", "--json", "--coefficients", "1,0.5,2")
    assert ran.code == 0, ran
    told = json.loads(ran.out)
    by_name = {t["name"]: t for t in told["targets"]}
    assert by_name["model.layers.0.self_attn.q_proj.weight"]["ranks"] == [2, 3, 1]
    assert [a["coefficient"] for a in told["adapters"]] == [1, 0.5, 2]
    assert not (tmp_path / "out").exists()
    assert "2 + 3 + 1" in command(*words, "--dry-run").out
    ran = command(*words, "--json", "--quiet")
    assert ran.code == 0, ran
    assert json.loads(ran.out)["relative_residual"] < 1e-7
    assert told["largest_bytes"] == json.loads(ran.out)["bytes_written"]
    ran = command(*words, "--by", "svd", "--rank", "2", "--force")
    assert ran.code == 0, ran
    assert "relative residual in all" in ran.out
    assert command("verify", tmp_path / "out").code == 0
    assert command(*words).code == 2
    assert command(*words, "--coefficients", "much", "--force").code == 2
