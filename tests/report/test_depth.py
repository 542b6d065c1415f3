from weightsmith.report.depth import Depth, depth_of


def test_parts_are_added_up_by_layer_and_kind():
    depth = depth_of(
        [
            ("model.embed_tokens.weight", 1),
            ("model.layers.10.mlp.up.weight", 2),
            ("model.layers.2.mlp.up.weight", 4),
            ("model.layers.2.mlp.down.weight", 8),
            ("model.layers.2.self_attn.q_proj.weight", 16),
            ("lm_head.weight", 32),
        ],
        sum,
    )
    assert depth.labels == ["embedding", "2", "10", "head"]
    assert [part["value"] for part in depth.layers] == [1, 28, 2, 32]
    assert depth.kinds == ["embedding", "attention", "mlp", "head"]
    assert depth.by_kind(lambda cell: cell["value"]) == [
        [1, None, None, None],
        [None, 16, None, None],
        [None, 12, 2, None],
        [None, None, None, 32],
    ]


def test_layers_of_two_stacks_are_kept_apart():
    names = ["encoder.block.0.mlp.w", "encoder.block.1.mlp.w", "decoder.block.0.mlp.w", "decoder.block.0.attn.w"]
    depth = depth_of([(name, i + 1) for i, name in enumerate(names)], sum)
    assert depth.labels == ["encoder.block 0", "encoder.block 1", "decoder.block 0"]
    assert depth.by_kind(lambda cell: cell["value"]) == [[None, None, 4], [1, 2, 3]]
    assert depth.place({"name": "decoder.block.0.mlp.w", "layer": 0, "kind": "mlp"}) == 2
    assert depth.place({"name": "encoder.block.1.mlp.w", "layer": 1, "kind": "mlp"}) == 1


def test_stacks_whose_names_begin_alike_are_kept_apart():
    depth = depth_of([("enc.0.mlp.w", 1), ("encoder.0.mlp.w", 2)], sum)
    assert depth.by_kind(lambda cell: cell["value"]) == [[1, 2]]
    assert depth.place({"name": "encoder.0.mlp.w", "layer": 0, "kind": "mlp"}) == 1


def test_a_part_of_no_known_layer_has_no_place():
    depth = Depth({"layers": [{"name": "layer 0", "layer": 0}], "kinds": [], "cells": []})
    assert depth.place({"name": "x", "layer": 5, "kind": "mlp"}) is None
    assert depth.place({"name": "x", "layer": None, "kind": "head"}) is None
