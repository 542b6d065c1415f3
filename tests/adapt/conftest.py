"""Small models of transformers, finetuned at random, and adapters of PEFT."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch

TOKENS = torch.arange(12).reshape(2, 6)


@pytest.fixture
def llama():
    """`llama(tied=False)` makes a small Llama with a head."""
    from transformers import LlamaConfig, LlamaForCausalLM

    def make(tied=False):
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

    return make


@pytest.fixture
def gpt2():
    """`gpt2()` makes a small GPT-2 with a head, whose weights are stored [in, out]."""
    from transformers import GPT2Config, GPT2LMHeadModel

    size = {"vocab_size": 40, "n_embd": 16, "n_layer": 2, "n_head": 4, "n_positions": 32}
    return lambda: GPT2LMHeadModel(GPT2Config(**size, bos_token_id=1, eos_token_id=2)).eval()


@pytest.fixture
def finetuned(tmp_path):
    """`finetuned(make, touches, size)`: a model, and one trained from it where touches(name); saved as base and model."""

    def make_both(make, touches=lambda name: True, size=0.02):
        torch.manual_seed(0)
        base, other = make(), make()
        other.load_state_dict(base.state_dict())
        with torch.no_grad():
            for name, parameter in other.named_parameters():
                if touches(name):
                    parameter.add_(size * torch.randn_like(parameter))
        base.save_pretrained(tmp_path / "base")
        other.save_pretrained(tmp_path / "model")
        return base, other

    return make_both


@pytest.fixture
def logits():
    """`logits(model)` of some tokens."""

    def run(model):
        with torch.inference_mode():
            return model.eval()(TOKENS).logits

    return run


@pytest.fixture
def loaded():
    """`loaded(model, folder)`: the adapter on a copy of the model, by PEFT, with nothing missing and nothing left over."""
    from peft import PeftModel, load_peft_weights, set_peft_model_state_dict

    def load(model, folder):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            warnings.simplefilter("ignore", DeprecationWarning)
            wrapped = PeftModel.from_pretrained(copy.deepcopy(model), folder).eval()
            told = set_peft_model_state_dict(wrapped, load_peft_weights(str(folder), device="cpu"))
        assert not told.unexpected_keys
        assert not [key for key in told.missing_keys if "lora_" in key or "modules_to_save" in key]
        return wrapped

    return load


@pytest.fixture
def make_adapter(tmp_path):
    """`make_adapter(model, name, seed, **options)`: a random adapter of PEFT on a copy; its folder and the wrapped model."""
    from peft import LoraConfig, get_peft_model

    def make(model, name, seed=0, **options):
        torch.manual_seed(seed)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            wrapped = get_peft_model(copy.deepcopy(model), LoraConfig(**options)).eval()
            with torch.no_grad():
                for key, parameter in wrapped.named_parameters():
                    if "lora_" in key:
                        torch.nn.init.normal_(parameter, std=0.1)
            wrapped.save_pretrained(tmp_path / name)
        return tmp_path / name, wrapped

    return make
