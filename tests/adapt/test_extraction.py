"""LoRA from a full fine-tune: against numpy's singular values, and loaded by PEFT."""

from __future__ import annotations

import copy
import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from weightsmith import extract_lora, verify
from weightsmith.device import Device
from weightsmith.errors import ArgumentError, CheckpointError, MismatchError, NonFiniteError
from weightsmith.plan import Options

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")  # those of transformers and PEFT about themselves


def is_matrix(name):
    return name.endswith("weight") and ("attn" in name or "mlp" in name)


def task_vectors(base, model):
    new = dict(model.named_parameters())
    return {
        n: (new[n] - p).detach().double().numpy() for n, p in base.named_parameters() if is_matrix(n) and p.dim() == 2
    }


def cut(base, vectors, ranks):
    """A copy of the base with each task vector cut by numpy's decomposition added."""
    edited = copy.deepcopy(base)
    with torch.no_grad():
        for name, parameter in edited.named_parameters():
            if name in vectors:
                u, s, v = np.linalg.svd(vectors[name], full_matrices=False)
                k = ranks[name]
                parameter.add_(torch.from_numpy((u[:, :k] * s[:k]) @ v[:k]).float())
    return edited


def extract(tmp_path, **given):
    return extract_lora(tmp_path / "model", base=tmp_path / "base", out=tmp_path / "out", **given)


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
@pytest.mark.parametrize("rule", [{"rank": 3}, {"energy": 0.8}, {"budget": 6000}], ids=["rank", "energy", "budget"])
def test_peft_computes_base_plus_the_cut_task_vectors(request, tmp_path, finetuned, loaded, logits, architecture, rule):
    base, model = finetuned(request.getfixturevalue(architecture))
    done = extract(tmp_path, **rule)
    vectors = task_vectors(base, model)
    ranks = {r.name: r.rank for r in done.rows}
    assert set(ranks) == set(vectors)
    wanted = logits(cut(base, vectors, ranks))
    assert (logits(base) - wanted).abs().max() > 0.01
    torch.testing.assert_close(logits(loaded(base, done.out)), wanted, rtol=0, atol=2e-6)
    for row in done.rows:
        values = np.linalg.svd(vectors[row.name], compute_uv=False)
        assert row.norm == pytest.approx(np.linalg.norm(values), rel=1e-5)
        assert row.residual == pytest.approx(np.linalg.norm(values[row.rank :]), rel=1e-4, abs=1e-6)
    config = json.loads((done.out / "adapter_config.json").read_text())
    assert config["fan_in_fan_out"] == (architecture == "gpt2")
    assert bool(config["rank_pattern"]) == ("rank" not in rule)
    assert verify(done.out).is_sound


def test_ranks_by_energy_are_the_smallest(tmp_path, finetuned, llama):
    base, model = finetuned(llama)
    vectors = task_vectors(base, model)
    for row in extract(tmp_path, energy=0.9).rows:
        squares = np.linalg.svd(vectors[row.name], compute_uv=False) ** 2
        assert squares[: row.rank].sum() >= 0.9 * squares.sum() > squares[: row.rank - 1].sum()


def test_ranks_by_budget_are_greedy_and_within_it(tmp_path, finetuned, llama):
    base, model = finetuned(llama)
    done = extract(tmp_path, budget="4KB", dtype="bfloat16")
    triplets = []
    for place, (name, vector) in enumerate(sorted(task_vectors(base, model).items())):
        values, cost = np.linalg.svd(vector, compute_uv=False), sum(vector.shape)
        triplets += [(-(v**2) / cost, place, i, name, cost) for i, v in enumerate(values)]
    left, wanted = 4000 // 2, {}
    for _, _, _, name, cost in sorted(triplets):
        if cost <= left:
            wanted[name] = wanted.get(name, 0) + 1
            left -= cost
    assert {r.name: r.rank for r in done.rows if r.rank} == wanted
    stored = load_file(done.out / "adapter_model.safetensors")
    assert sum(t.numel() * t.element_size() for t in stored.values()) == done.bytes_written <= 4000
    assert {t.dtype for t in stored.values()} == {torch.bfloat16}
    assert any("holds nothing of" in n for n in done.notes) == any(not r.rank for r in done.rows)


def test_a_weight_the_budget_leaves_out_counts_as_missing(tmp_path, finetuned, llama):
    finetuned(llama)
    done = extract(tmp_path, budget=200)
    empty = [r for r in done.rows if not r.rank]
    assert len(empty) > 10
    assert all(r.relative == 1 for r in empty)
    stored = load_file(done.out / "adapter_model.safetensors")
    assert not [k for k in stored for r in empty if r.name.removesuffix(".weight") in k]


def test_all_ranks_and_the_rest_give_the_finetuned_model(tmp_path, finetuned, llama, loaded, logits):
    base, model = finetuned(llama)
    done = extract(tmp_path, rank=1000, save_rest=True)
    assert done.left_out == ()
    assert done.relative_residual < 1e-6
    assert "model.norm.weight" in done.saved
    torch.testing.assert_close(logits(loaded(base, done.out)), logits(model), rtol=0, atol=2e-6)
    assert verify(done.out).is_sound


def test_what_is_not_represented_is_told_with_its_norm(tmp_path, finetuned, gpt2, loaded, logits):
    base, model = finetuned(gpt2)
    done = extract(tmp_path, rank=1000, save_rest=True)
    new = dict(model.named_parameters())
    told = {x.name: x for x in done.left_out}
    assert set(told) == {"transformer.wte.weight"} | {n for n in new if n.endswith("bias") and "ln_" not in n}
    assert "shares its storage" in told["transformer.wte.weight"].reason
    for name, parameter in base.named_parameters():
        if name in told:
            assert told[name].norm == pytest.approx(float((new[name] - parameter).detach().norm()), rel=1e-5)
    missing = np.sqrt(sum(x.norm**2 for x in done.left_out))
    moved = np.sqrt(sum(float((new[n] - p).detach().double().norm()) ** 2 for n, p in base.named_parameters()))
    assert done.relative_residual == pytest.approx(missing / moved, rel=1e-4)
    expected = copy.deepcopy(model)
    with torch.no_grad():
        for name, parameter in expected.named_parameters():
            if name in told:
                parameter.copy_(dict(base.named_parameters())[name])
    torch.testing.assert_close(logits(loaded(base, done.out)), logits(expected), rtol=0, atol=2e-6)


def test_without_save_rest_all_else_that_changed_is_listed(tmp_path, finetuned, llama):
    finetuned(llama, lambda n: is_matrix(n) or n == "lm_head.weight")
    done = extract(tmp_path, rank=2)
    assert [x.name for x in done.left_out] == ["lm_head.weight"]
    assert done.saved == ()
    assert done.record["not_represented"][0]["norm"] == done.left_out[0].norm


def test_only_names_the_weights_even_a_head_or_an_embedding(tmp_path, finetuned, llama, loaded, logits):
    base, model = finetuned(llama, lambda n: n in ("lm_head.weight", "model.embed_tokens.weight"))
    done = extract(tmp_path, rank=16, only=["lm_head.*", "*embed_tokens.weight"])
    assert [r.name for r in done.rows] == ["lm_head.weight", "model.embed_tokens.weight"]
    assert "base_model.model.model.embed_tokens.lora_embedding_A" in load_file(done.out / "adapter_model.safetensors")
    torch.testing.assert_close(logits(loaded(base, done.out)), logits(model), rtol=0, atol=2e-6)


def test_tables_of_positions_are_no_weights(tmp_path, save_arrays):
    shapes = {"block.0.SelfAttention.q.weight": (4, 6), "block.0.SelfAttention.relative_attention_bias.weight": (8, 2)}
    for value, name in enumerate(("base", "model")):
        save_arrays(tmp_path / name, {n: np.full(s, float(value)) for n, s in shapes.items()})
    done = extract(tmp_path, rank=1)
    assert [r.name for r in done.rows] == ["block.0.SelfAttention.q.weight"]
    assert [x.name for x in done.left_out] == ["block.0.SelfAttention.relative_attention_bias.weight"]


def test_a_base_stored_without_its_head_is_told(tmp_path, save_arrays):
    shapes = {"wte.weight": (8, 4), "h.0.attn.c_attn.weight": (4, 12), "h.0.attn.c_attn.bias": (12,)}
    config = {"architectures": ["GPT2LMHeadModel"]}
    for value, name in enumerate(("base", "model")):
        save_arrays(tmp_path / name, {n: np.full(s, float(value)) for n, s in shapes.items()}, config=config)
    assert any("AutoModel" in note for note in extract(tmp_path, rank=1).notes)


def test_what_cannot_be_compared_is_listed(tmp_path, save_arrays):
    base = {"a.weight": np.zeros((4, 6)), "steps": np.zeros(3, "int64"), "same": np.ones(2, "int64"), "b": np.ones(2)}
    model = {"a.weight": np.ones((4, 6)), "steps": np.ones(3, "int64"), "same": np.ones(2, "int64"), "c": np.ones(2)}
    save_arrays(tmp_path / "base", base)
    save_arrays(tmp_path / "model", model)
    told = {x.name: x.reason for x in extract(tmp_path, rank=1, save_rest=True).left_out}
    assert told == {
        "steps": "I64 has no arithmetic here",
        "b": "the finetuned model lacks it",
        "c": "the base lacks it",
    }


def test_weights_that_did_not_change_get_no_factors(tmp_path, finetuned, llama):
    finetuned(llama, lambda n: "q_proj" in n)
    done = extract(tmp_path, rank=2)
    assert [r.name for r in done.rows] == [f"model.layers.{i}.self_attn.q_proj.weight" for i in (0, 1)]


def test_an_adapter_laid_over_its_base_is_found_again(tmp_path, llama, make_adapter):
    torch.manual_seed(0)
    base = llama()
    base.save_pretrained(tmp_path / "base")
    folder, _ = make_adapter(base, "given", r=3, lora_alpha=5, target_modules=["q_proj", "up_proj"])
    model = f"{tmp_path / 'base'}+{folder}"
    done = extract_lora(model, base=tmp_path / "base", out=tmp_path / "out", energy=1 - 1e-9)
    assert {r.rank for r in done.rows} == {3}
    assert len(done.rows) == 4
    assert done.relative_residual < 1e-5


def test_convolutions_as_peft_has_them(tmp_path, save_model, loaded):
    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.line = torch.nn.Conv2d(3, 4, 3), torch.nn.Conv1d(4, 5, 2)

        def forward(self, x):
            return self.line(self.conv(x).flatten(2))

    torch.manual_seed(0)
    base, model = Net(), Net()
    for name, net in (("base", base), ("model", model)):
        save_model(tmp_path / name, {k: v.clone() for k, v in net.state_dict().items()})
    with pytest.raises(MismatchError, match="no weight of two axes"):
        extract(tmp_path, rank=1)
    done = extract(tmp_path, rank=99, only=["*.weight"])
    with torch.no_grad():
        model.conv.bias.copy_(base.conv.bias)
        model.line.bias.copy_(base.line.bias)
        x = torch.randn(2, 3, 6, 6)
        torch.testing.assert_close(loaded(base, done.out)(x), model(x), rtol=0, atol=1e-5)


@pytest.mark.filterwarnings("ignore:.*gate_up_proj:RuntimeWarning")  # a pattern of PEFT's own making
def test_experts_that_a_model_holds_together(tmp_path, finetuned, loaded, logits):
    from transformers import MixtralConfig, MixtralForCausalLM

    size = {"vocab_size": 40, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "num_local_experts": 4}
    base, model = finetuned(
        lambda: MixtralForCausalLM(MixtralConfig(**size, **heads)).eval(), lambda n: "experts" in n or "q_proj" in n
    )
    done = extract(tmp_path, rank=16)
    assert done.left_out == ()
    assert not [n for n in done.notes if "expert" in n]
    torch.testing.assert_close(logits(loaded(base, done.out)), logits(model), rtol=0, atol=2e-6)
    done = extract(tmp_path, energy=0.7, only=["*experts.0.*"], save_rest=True, force=True)
    assert [n for n in done.notes if "experts of one rank" in n]
    assert {x.reason for x in done.left_out if "experts" in x.name} == {
        "it belongs to an expert, which a loaded model may hold together with others"
    }


def test_randomized_form_is_near_the_exact_one(tmp_path, save_arrays):
    rng = np.random.default_rng(0)
    base = {"layers.0.up.weight": rng.standard_normal((120, 80)).astype("float32")}
    left, right = np.linalg.qr(rng.standard_normal((120, 80)))[0], np.linalg.qr(rng.standard_normal((80, 80)))[0]
    step = (left * 0.7 ** np.arange(80)) @ right
    save_arrays(tmp_path / "base", base)
    save_arrays(tmp_path / "model", {n: (a + step).astype("float32") for n, a in base.items()})
    exact = extract(tmp_path, rank=5)
    fast = extract_lora(
        tmp_path / "model", base=tmp_path / "base", out=tmp_path / "fast", rank=5, algorithm="randomized", seed=3
    )
    assert exact.relative_residual <= fast.relative_residual * (1 + 1e-9) < 1.01 * exact.relative_residual


def test_same_bytes_for_any_threads_and_memory(tmp_path, finetuned, llama, content):
    finetuned(llama)
    made = []
    for threads, memory in ((1, 200_000_000), (4, 2_000_000_000)):
        options = Options(threads=threads, memory_bytes=memory)
        made.append(content(extract(tmp_path, energy=0.7, save_rest=True, options=options, force=bool(made)).out))
    assert made[0] == made[1]


@pytest.mark.parametrize("rule", [{"rank": 3}, {"energy": 0.8}, {"rank": 3, "algorithm": "randomized"}])
def test_on_a_device_as_on_the_host(tmp_path, finetuned, llama, monkeypatch, rule):
    finetuned(llama)
    host = extract(tmp_path, **rule)
    monkeypatch.setattr("weightsmith.adapt.extraction.find_device", lambda name: Device(torch.device("cpu")))
    done = extract(tmp_path, force=True, **rule)
    assert [r.rank for r in done.rows] == [r.rank for r in host.rows]
    for one, other in zip(done.rows, host.rows, strict=True):
        assert one.residual == pytest.approx(other.residual, rel=1e-6)


def test_faults_are_reported_together(tmp_path, save_arrays):
    rng = np.random.default_rng(0)
    shapes = {"a.weight": (4, 6), "b.weight": (4, 6), "c.weight": (4, 6)}
    save_arrays(tmp_path / "base", {n: rng.standard_normal(s) for n, s in shapes.items()})
    save_arrays(tmp_path / "model", {"a.weight": rng.standard_normal((4, 5)), "c.weight": np.zeros((4, 6))})
    with pytest.raises(MismatchError) as caught:
        extract(tmp_path, rank=1, only=["*", "z*"])
    for part in ("'a.weight' is", "lacks 'b.weight'", "--only 'z*'"):
        assert part in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_weights_stored_both_ways_are_refused(tmp_path, save_arrays):
    rng = np.random.default_rng(0)
    shapes = {"a.weight": (4, 6), "a.bias": (6,), "b.weight": (4, 6), "b.bias": (4,)}
    for name in ("base", "model"):
        save_arrays(tmp_path / name, {n: rng.standard_normal(s) for n, s in shapes.items()})
    with pytest.raises(MismatchError, match="one adapter holds one kind"):
        extract(tmp_path, rank=1)
    assert extract(tmp_path, rank=1, only=["a.*"]).rows[0].name == "a.weight"


def test_tied_embeddings_are_refused(tmp_path, finetuned, llama):
    finetuned(lambda: llama(tied=True))
    with pytest.raises(MismatchError, match=r"shares its storage with 'lm_head\.weight'"):
        extract(tmp_path, rank=1, only=["*embed_tokens.weight"])


def test_equal_models_are_refused(tmp_path, finetuned, llama):
    finetuned(llama, lambda n: "norm" in n)
    with pytest.raises(MismatchError, match="would change no tensor"):
        extract(tmp_path, rank=1)


def test_nonfinite_numbers_are_refused(tmp_path, save_arrays):
    base = {"a.weight": np.ones((4, 6)), "b.weight": np.ones((4, 6))}
    save_arrays(tmp_path / "base", base)
    save_arrays(tmp_path / "model", {n: a * np.nan for n, a in base.items()})
    with pytest.raises(NonFiniteError, match=r"(?s)a\.weight.*b\.weight"):
        extract(tmp_path, rank=1)


def test_factors_that_do_not_fit_the_dtype_are_refused(tmp_path, save_arrays):
    save_arrays(tmp_path / "base", {"a.weight": np.zeros((4, 6))})
    save_arrays(tmp_path / "model", {"a.weight": np.full((4, 6), 1e12)})
    with pytest.raises(NonFiniteError, match="fit F16"):
        extract(tmp_path, rank=1, dtype="float16")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"rank": 1, "energy": 0.5},
        {"rank": 0},
        {"rank": 1.5},
        {"energy": 0.0},
        {"energy": 1.5},
        {"energy": float("nan")},
        {"budget": "much"},
        {"budget": 10},
        {"rank": 1, "dtype": "int8"},
        {"rank": 1, "algorithm": "quick"},
        {"energy": 0.5, "algorithm": "randomized"},
        {"rank": 1, "seed": -1},
        {"rank": 1, "only": "a.weight"},
    ],
)
def test_bad_parameters_are_refused(tmp_path, save_arrays, given):
    for name in ("base", "model"):
        save_arrays(tmp_path / name, {"a.weight": np.ones((4, 6))})
    with pytest.raises(ArgumentError):
        extract(tmp_path, **given)


def test_an_adapter_is_no_base(tmp_path, finetuned, llama):
    finetuned(llama)
    out = extract(tmp_path, rank=1).out
    with pytest.raises(CheckpointError, match="holds an adapter"):
        extract_lora(tmp_path / "model", base=out, out=tmp_path / "x", rank=1)


def test_command(tmp_path, finetuned, llama, command):
    finetuned(llama)
    words = ["extract-lora", "--base", tmp_path / "base", "--model", tmp_path / "model", "--out", tmp_path / "out"]
    ran = command(*words, "--energy", "0.9", "--dry-run", "--json")
    assert ran.code == 0, ran
    told = json.loads(ran.out)
    assert len(told["targets"]) == 14
    assert told["targets"][0]["largest_rank"] == 16
    assert not (tmp_path / "out").exists()
    (line,) = [x for x in command(*words, "--rank", "2", "--dry-run").out.splitlines() if "q_proj" in x]
    assert line.split()[:3] == ["model.layers.*.self_attn.q_proj.weight", "2", "linear"]
    assert line.endswith(" 2")
    ran = command(*words, "--rank", "2", "--json", "--quiet")
    assert ran.code == 0, ran
    told = json.loads(ran.out)
    assert {t["rank"] for t in told["tensors"]} == {2}
    assert len(told["not_represented"]) == 7
    ran = command(*words, "--rank", "2", "--force")
    assert (ran.code, ran.err) == (0, "")
    assert "not represented: 7 tensors that changed" in ran.out
    assert command("verify", tmp_path / "out").code == 0
    assert command(*words, "--rank", "2").code == 2
    assert command(*words, "--force").code == 2
    assert command(*words, "--rank", "2", "--only", "nothing", "--force").code == 3
