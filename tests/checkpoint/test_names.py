from __future__ import annotations

import pytest

from weightsmith.checkpoint.names import kind_of, layer_count, layer_of, matches, tied_pair


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("model.layers.3.mlp.up_proj.weight", 3),
        ("transformer.h.11.attn.c_attn.weight", 11),
        ("encoder.block.0.layer.1.DenseReluDense.wi.weight", 0),
        ("model.layers.2.block_sparse_moe.experts.5.w1.weight", 2),
        ("model.layers.00007.x", 7),
        ("model.layers.123456.x", None),
        ("model.layers.\u0663.x", None),
        ("layer3.weight", None),
        ("lm_head.weight", None),
        ("", None),
    ],
)
def test_layer_of(name, layer):
    assert layer_of(name) == layer


def test_layer_count_is_one_more_than_the_largest():
    assert layer_count(["a.0.w", "a.31.w", "b.w"]) == 32
    assert layer_count(["b.w"]) == 0
    assert layer_count([]) == 0
    assert layer_count(["a.999999999999999.w"]) == 0


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("model.layers.0.self_attn.q_proj.weight", "attention"),
        ("transformer.h.0.attn.c_attn.bias", "attention"),
        ("model.layers.0.self_attn.q_norm.weight", "norm"),
        ("model.layers.0.input_layernorm.weight", "norm"),
        ("transformer.h.0.ln_1.weight", "norm"),
        ("model.layers.0.mlp.gate_proj.weight", "mlp"),
        ("model.layers.0.block_sparse_moe.experts.1.w2.weight", "mlp"),
        ("bert.encoder.layer.0.output.dense.weight", "mlp"),
        ("bert.encoder.layer.0.attention.output.dense.weight", "attention"),
        ("model.embed_tokens.weight", "embedding"),
        ("transformer.wte.weight", "embedding"),
        ("lm_head.weight", "head"),
        ("embed_out.weight", "head"),
        ("output.weight", "head"),
        ("features.0.conv.weight", "convolution"),
        ("model.rotary.inv_freq", "other"),
    ],
)
def test_kind_of(name, kind):
    assert kind_of(name) == kind


def test_matches_is_a_glob_over_the_whole_name_with_case():
    assert matches("model.layers.[01].*", "model.layers.1.mlp.w")
    assert not matches("layers.*", "model.layers.1.mlp.w")
    assert not matches("*.MLP.*", "model.layers.1.mlp.w")
    assert not matches("*.w?", "a.w")
    assert matches("a.w", "a.w")
    assert not matches("*a" * 40 + "b", "a" * 500)  # ends at once


@pytest.mark.parametrize(
    ("names", "pair"),
    [
        (["model.embed_tokens.weight", "model.norm.weight"], ("model.embed_tokens.weight", "lm_head.weight")),
        (["model.embed_tokens.weight", "lm_head.weight"], ("model.embed_tokens.weight", "lm_head.weight")),
        (["transformer.wte.weight"], ("transformer.wte.weight", "lm_head.weight")),
        (["wte.weight"], ("wte.weight", "lm_head.weight")),
        (
            ["language_model.model.embed_tokens.weight"],
            ("language_model.model.embed_tokens.weight", "language_model.lm_head.weight"),
        ),
        (
            ["gpt_neox.embed_in.weight", "embed_out.weight"],
            ("gpt_neox.embed_in.weight", "embed_out.weight"),
        ),
        (["tok_embeddings.weight"], ("tok_embeddings.weight", "output.weight")),
        (["shared.weight", "encoder.embed_tokens.weight"], ("shared.weight", "lm_head.weight")),
        (
            ["bert.embeddings.word_embeddings.weight", "cls.predictions.decoder.weight"],
            ("bert.embeddings.word_embeddings.weight", "cls.predictions.decoder.weight"),
        ),
        (["encoder.embed_tokens.weight", "decoder.embed_tokens.weight"], None),
        (["not_wte.weight"], None),
        ([], None),
    ],
)
def test_tied_pair(names, pair):
    assert tied_pair(iter(names)) == pair
