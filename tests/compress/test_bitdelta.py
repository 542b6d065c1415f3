"""BitDelta: by hand, the best size, and which tensors it takes."""

import numpy as np
import pytest

from weightsmith.compress import bitdelta


def test_by_hand():
    part = bitdelta(np.array([[3.0, -1.0], [0.0, 0.0]]))
    assert part.arrays["signs"].tolist() == [[1, -1], [1, 1]]
    assert part.settings == {"scale": 1.0}


def test_the_mean_magnitude_is_the_nearest_size():
    own = np.random.default_rng(0).standard_normal(9000)
    part = bitdelta(own)
    errors = [np.square(own - f * part.settings["scale"] * part.arrays["signs"]).sum() for f in (0.99, 1.0, 1.01)]
    assert errors[1] == min(errors)


def test_equal_magnitudes_come_back_whole():
    own = np.array([0.5, -0.5, -0.5])
    part = bitdelta(own)
    assert (part.settings["scale"] * part.arrays["signs"] == own).all()


@pytest.mark.parametrize(
    ("name", "shape", "taken"),
    [
        ("model.layers.0.mlp.up_proj.weight", (4, 4), True),
        ("model.layers.0.self_attn.q_proj.weight", (4, 4), True),
        ("model.embed_tokens.weight", (4, 4), False),
        ("lm_head.weight", (4, 4), False),
        ("model.layers.0.input_layernorm.weight", (4,), False),
        ("model.layers.0.mlp.up_proj.bias", (4,), False),
        ("conv.weight", (4, 4, 3, 3), False),
    ],
)
def test_matrices_of_attention_and_mlp_alone(name, shape, taken):
    assert bitdelta.is_taken(name, shape, "BF16") is taken
    assert not bitdelta.is_taken(name, shape, "I32")
