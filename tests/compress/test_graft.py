"""Module-aware packs."""

import numpy as np
import pytest

from weightsmith.compress.graft import graft
from weightsmith.compress.low_rank import low_rank
from weightsmith.method import Tile
from weightsmith.tensor.mixed import from_codes

ATTENTION, MLP, EMBEDDING = "layers.0.self_attn.q_proj.weight", "layers.0.mlp.up_proj.weight", "embed_tokens.weight"


def draw(shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def encode(tau, name, **given):
    return graft.encode(tau, None, graft.check(given, 1), Tile(name=name, shape=tau.shape))


def rebuilt(part, shape):
    s, arrays = part.settings, part.arrays
    left, right = (
        from_codes(arrays[side], arrays[f"{side}_scales"], n, s["bits"], s["widths"], s["group"])
        for side, n in zip(("left", "right"), shape, strict=True)
    )
    return s["scale"] * left.T.astype(np.float64) @ right


def test_embeddings_keep_the_largest_entries():
    tau = np.array([[0.5, -3.0, 1.0, 0.0], [2.0, 0.1, -0.2, 1.0]], np.float32)
    part = encode(tau, EMBEDDING, density=0.375)
    assert part.form == "sparse"
    assert part.arrays["mask"].tolist() == [False, True, True, False, True, False, False, False]  # the earlier 1.0
    np.testing.assert_array_equal(part.arrays["values"], [0, -3, 1, 0, 2, 0, 0, 0])
    assert encode(tau, "lm_head.weight").form == "sparse"


def test_attention_is_cut_by_energy():
    tau = draw((12, 20))
    part, wanted = encode(tau, ATTENTION, energy=0.7), low_rank(tau, energy=0.7)
    assert part.form is None
    for key in ("left", "right"):
        np.testing.assert_array_equal(part.arrays[key], wanted.arrays[key])


def test_feed_forward_in_eight_bits_is_close_to_the_cut_matrix():
    tau = draw((40, 60), 1)
    cut = low_rank(tau, energy=0.6)
    part = encode(tau, MLP, energy=0.6, int8_columns=1000)
    assert part.settings["widths"] == [part.settings["rank"], 0, 0]
    wanted = cut.settings["scale"] * cut.arrays["left"] @ cut.arrays["right"]
    assert np.linalg.norm(rebuilt(part, (40, 60)) - wanted) < 0.02 * np.linalg.norm(wanted)


def test_fewer_bits_cost_more_error_and_less_room():
    tau, errors, sizes = draw((64, 96), 2), [], []
    for given in (
        {"int8_columns": 99},
        {"int8_columns": 0, "int4_columns": 99},
        {"int8_columns": 0, "int4_columns": 0},
    ):
        part = encode(tau, MLP, energy=1.0, **given)
        errors.append(np.linalg.norm(rebuilt(part, (64, 96)) - tau))
        sizes.append(8 * sum(a.nbytes for a in part.arrays.values()) / tau.size)
        assert part.settings["bits_per_weight"] == pytest.approx(sizes[-1])
    assert errors == sorted(errors)
    assert sizes == sorted(sizes, reverse=True)
    assert errors[0] < 0.02 * np.linalg.norm(tau)


def test_an_empty_pack_leaves_the_base():
    for name in (ATTENTION, MLP, EMBEDDING):
        part = encode(np.zeros((6, 9), np.float32), name)
        if name == MLP:
            assert not rebuilt(part, (6, 9)).any()
        else:
            assert not part.arrays["right" if name == ATTENTION else "values"].any()


def test_the_first_vectors_have_more_bits():
    part = encode(draw((30, 30), 3), MLP, energy=1.0, int8_columns=4, int4_columns=6)
    assert part.settings["widths"] == [4, 6, 20]
    assert part.settings["bits"] == [8, 4, 2]
