"""What reads the outputs: transformers, PEFT's adapters as inputs, and the safetensors package."""

from __future__ import annotations

import json

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors import safe_open
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from weightsmith import merge, verify

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")  # those of transformers and PEFT about themselves
TOKENS = torch.arange(12).reshape(2, 6)


def tiny(tied: bool) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=40,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=32,
        tie_word_embeddings=tied,
    )
    return LlamaForCausalLM(config).eval()


def trained(model: LlamaForCausalLM, seed: int) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    other = tiny(model.config.tie_word_embeddings)
    other.load_state_dict(model.state_dict())
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(0.002 * torch.randn_like(parameter))
    return other


def logits(model) -> torch.Tensor:
    with torch.inference_mode():
        return model.eval()(TOKENS).logits


@pytest.fixture(params=[True, False], ids=["tied", "untied"])
def models(request, tmp_path):
    base = tiny(request.param)
    made = {"base": base, "a": trained(base, 1), "b": trained(base, 2)}
    for name, model in made.items():
        model.save_pretrained(tmp_path / name)
    return made


def load(folder):
    model, told = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not told["missing_keys"], told
    assert not told["unexpected_keys"], told
    assert not told["mismatched_keys"], told
    return model


@pytest.mark.parametrize(
    ("method", "given"),
    [
        ("ties", {"density": 0.5}),
        ("dare_ties", {"density": 0.5}),
        ("breadcrumbs", {"scope": "row"}),
        ("lines", {"beta": 0.5}),
        ("linear", {"shard_size": "8KB"}),
        ("slerp", {}),
    ],
)
def test_transformers_loads_what_was_merged(models, tmp_path, method, given):
    folders = [tmp_path / n for n in ("base", "a", "b")]
    base, merged = (None, folders[1:]) if method in ("linear", "slerp") else (folders[0], folders[1:])
    out = merge(method, base=base, models=merged, out=tmp_path / "out", **given).out
    loaded = load(out)
    found = logits(loaded)
    assert torch.isfinite(found).all()
    assert loaded.config.tie_word_embeddings == models["base"].config.tie_word_embeddings
    original = logits(models["base"])
    assert not torch.equal(found, original)
    assert (found - original).abs().max() < 1.0
    assert verify(out).is_sound


def test_the_mean_of_copies_has_the_same_logits(models, tmp_path):
    models["base"].save_pretrained(tmp_path / "copy")
    out = merge("linear", models=[tmp_path / "base", tmp_path / "copy"], out=tmp_path / "out").out
    assert torch.equal(logits(load(out)), logits(models["base"]))


def test_a_known_sum_has_the_logits_of_that_sum(models, tmp_path):
    out = merge(
        "task_arithmetic",
        base=tmp_path / "base",
        models=[tmp_path / "a", tmp_path / "b"],
        out=tmp_path / "out",
        lambda_=0.5,
    ).out
    expected = tiny(models["base"].config.tie_word_embeddings)
    states = [models[n].state_dict() for n in ("base", "a", "b")]
    expected.load_state_dict({n: w + 0.5 * ((states[1][n] - w) + (states[2][n] - w)) for n, w in states[0].items()})
    torch.testing.assert_close(logits(load(out)), logits(expected), rtol=1e-5, atol=1e-6)


def test_another_dtype_is_in_config_and_weights(models, tmp_path):
    folders = [tmp_path / "a", tmp_path / "b"]
    out = merge("linear", models=folders, out=tmp_path / "out", dtype="bfloat16", shard_size="8KB").out
    config = json.loads((out / "config.json").read_text())
    assert {config[k] for k in ("dtype", "torch_dtype") if k in config} == {"bfloat16"}
    assert torch.isfinite(logits(load(out))).all()
    assert (out / "generation_config.json").read_bytes() == (tmp_path / "a" / "generation_config.json").read_bytes()
    for path in out.glob("*.safetensors"):
        with safe_open(path, "pt") as file:
            assert file.metadata()["format"] == "pt"
            assert {file.get_tensor(n).dtype for n in file.keys()} == {torch.bfloat16}  # noqa: SIM118


def test_an_adapter_of_peft_is_a_model(models, tmp_path):
    torch.manual_seed(3)
    options = LoraConfig(r=3, lora_alpha=5, target_modules=["q_proj", "up_proj"], task_type="CAUSAL_LM")
    wrapped = get_peft_model(tiny(models["base"].config.tie_word_embeddings), options)
    for name, parameter in wrapped.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    wrapped.save_pretrained(tmp_path / "adapter")
    out = merge(
        "task_arithmetic",
        base=tmp_path / "base",
        models=[f"{tmp_path / 'base'}+{tmp_path / 'adapter'}"],
        out=tmp_path / "out",
        lambda_=1.0,
    ).out
    with torch.inference_mode():
        expected = wrapped.eval()(TOKENS).logits
    found = logits(load(out))
    assert not torch.equal(found, logits(models["base"]))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert verify(out).is_sound


def test_old_bin_files_of_transformers_are_models(models, tmp_path):
    for name in ("a", "b"):
        (tmp_path / name / "model.safetensors").unlink()
        torch.save(models[name].state_dict(), tmp_path / name / "pytorch_model.bin")
    out = merge("linear", models=[tmp_path / "a", tmp_path / "b"], out=tmp_path / "out").out
    expected = tiny(models["base"].config.tie_word_embeddings)
    states = [models[n].state_dict() for n in ("a", "b")]
    expected.load_state_dict({n: (w + states[1][n]) / 2 for n, w in states[0].items()})
    torch.testing.assert_close(logits(load(out)), logits(expected), rtol=1e-5, atol=1e-6)
