from __future__ import annotations

import json
import math
import time
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file
from transformers.pytorch_utils import Conv1D

from weightsmith.checkpoint.adapter import apply_adapter
from weightsmith.checkpoint.entry import Checkpoint, Entry
from weightsmith.checkpoint.folder import open_file, open_folder
from weightsmith.checkpoint.read import open_checkpoint, read_array
from weightsmith.errors import CheckpointError

NUMPY = {"F32": np.float32, "F64": np.float64, "F16": np.float16}


def values(entry: Entry) -> np.ndarray:
    """Return a tensor with its update, in float64: the sum that readers are to make."""
    array = np.frombuffer(read_array(entry), NUMPY[entry.dtype]).reshape(entry.shape).astype(np.float64)
    if entry.low_rank is None:
        return array
    low = entry.low_rank
    update = low.scale * (values(low.up) @ values(low.down))
    return array + (update.T if low.transposed else update).reshape(entry.shape)


class Tiny(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = torch.nn.Embedding(11, 6)
        self.layers = torch.nn.ModuleList(
            torch.nn.ModuleDict({"up": torch.nn.Linear(6, 8), "down": torch.nn.Linear(8, 6)}) for _ in range(3)
        )
        self.mixer = Conv1D(6, 6)
        self.wide = Conv1D(9, 6)
        self.conv = torch.nn.Conv2d(3, 4, 3)
        self.point = torch.nn.Conv2d(3, 4, 1)
        self.line = torch.nn.Conv1d(3, 4, 3)
        self.score = torch.nn.Linear(6, 2)

    def forward(self, x):
        return self.embed(x)


def trained(tmp_path, **options):
    """Save a tiny model and a random adapter of it; return base, folder and the weights that PEFT merges."""
    torch.manual_seed(0)
    model = Tiny()
    save_file({k: v.clone() for k, v in model.state_dict().items()}, tmp_path / "model.safetensors")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wrapped = get_peft_model(model, LoraConfig(**options))
        for parameter in wrapped.parameters():
            if parameter.requires_grad:
                torch.nn.init.normal_(parameter)
        wrapped.save_pretrained(tmp_path / "adapter")
        merged = wrapped.merge_and_unload().state_dict()
    return open_file(tmp_path / "model.safetensors", "base"), tmp_path / "adapter", merged


@pytest.mark.parametrize(
    ("options", "changed"),
    [
        ({"r": 2, "lora_alpha": 5, "target_modules": ["up", "down"]}, 6),
        ({"r": 3, "lora_alpha": 5, "target_modules": ["up"], "use_rslora": True}, 3),
        (
            {
                "r": 2,
                "target_modules": ["up", "down"],
                "rank_pattern": {
                    "down": 1,
                    "layers.1.up": 4,
                    "layers\\.[01]\\..*": 3,
                },  # sorted, as PEFT saves
                "alpha_pattern": {"^layers.2.down": 7, "up": 3},
            },
            6,
        ),
        ({"r": 2, "target_modules": ["up"], "rank_pattern": {"p": 4, "0.up": 3}, "use_rslora": True}, 3),
        ({"r": 2, "lora_alpha": 3, "target_modules": ["mixer", "wide"], "fan_in_fan_out": True}, 2),
        ({"r": 2, "lora_alpha": 3, "target_modules": ["embed"]}, 1),
        ({"r": 2, "lora_alpha": 3, "target_modules": ["conv", "point", "line"]}, 3),
        ({"r": 2, "target_modules": ["up"], "modules_to_save": ["score"]}, 5),
        ({"r": 2, "target_modules": ["up"], "init_lora_weights": "gaussian", "lora_dropout": 0.1}, 3),
    ],
)
def test_equals_peft(tmp_path, options, changed):
    base, folder, merged = trained(tmp_path, **options)
    result = apply_adapter(base, folder)
    assert list(result.tensors) == list(base.tensors)
    differ = 0
    for name, entry in result.tensors.items():
        np.testing.assert_allclose(values(entry), merged[name].numpy(), rtol=1e-5, atol=1e-5)
        differ += not np.array_equal(values(entry), values(base.tensors[name]))
        low = entry.low_rank
        if low:
            assert type(low.scale) is float
            assert len(low.up.shape) == len(low.down.shape) == 2
            assert low.up.shape[1] == low.down.shape[0]
    assert differ == changed
    assert result.files == (*base.files, folder / "adapter_model.safetensors")
    assert base.tensors["layers.0.up.weight"].low_rank is None


def test_adapter_saved_as_bin(tmp_path):
    base, folder, merged = trained(tmp_path, r=2, target_modules=["up"])
    from safetensors.torch import load_file

    file = folder / "adapter_model.safetensors"
    state = load_file(file)
    torch.save({k.replace("lora_A.weight", "lora_A.default.weight"): v for k, v in state.items()}, folder / "a")
    (folder / "a").rename(folder / "adapter_model.bin")
    with pytest.raises(CheckpointError, match="ambiguous"):
        apply_adapter(base, folder)
    file.unlink()
    entry = apply_adapter(base, folder).tensors["layers.1.up.weight"]
    np.testing.assert_allclose(values(entry), merged["layers.1.up.weight"].numpy(), rtol=1e-5, atol=1e-5)


def test_embedding_saved_beside_its_update_replaces_the_base(tmp_path):
    base, folder, _ = trained(tmp_path, r=2, target_modules=["embed"])
    from safetensors.torch import load_file

    file = folder / "adapter_model.safetensors"
    state = load_file(file)
    state["base_model.model.embed.base_layer.weight"] = torch.full((11, 6), 3.0)
    save_file(state, file)
    entry = apply_adapter(base, folder).tensors["embed.weight"]
    a, b = (state[f"base_model.model.embed.lora_embedding_{x}"].numpy().astype(np.float64) for x in "AB")
    np.testing.assert_allclose(values(entry), 3 + 4 * (b @ a).T, rtol=1e-6)


def test_reference_with_plus(tmp_path):
    _, folder, merged = trained(tmp_path, r=2, target_modules=["up"])
    reference = f"{tmp_path / 'model.safetensors'}+{folder}"
    result = open_checkpoint(reference)
    assert result.reference == reference
    np.testing.assert_allclose(
        values(result.tensors["layers.0.up.weight"]),
        merged["layers.0.up.weight"].numpy(),
        rtol=1e-5,
        atol=1e-5,
    )
    with pytest.raises(CheckpointError, match="already carries an adapter"):
        open_checkpoint(f"{reference}+{folder}")


# ---- faults: a base of one [6, 4] weight, one square, one convolution, and an adapter written by hand


@pytest.fixture
def made(tmp_path, write_safetensors):
    base = write_safetensors(
        tmp_path / "base.safetensors",
        {"m.up.weight": np.zeros((6, 4), np.float32), "m.up.bias": np.zeros(6, np.float32),
         "count": np.zeros((6, 4), np.int64), "embed_tokens.weight": np.zeros((5, 3), np.float32)},
    )  # fmt: skip
    checkpoint = open_file(base, "base")

    def make(tensors=None, text=None, **config) -> tuple[Checkpoint, object]:
        folder = tmp_path / "adapter"
        folder.mkdir(exist_ok=True)
        pair = {
            "base_model.model.m.up.lora_A.weight": np.ones((2, 4), np.float32),
            "base_model.model.m.up.lora_B.weight": np.ones((6, 2), np.float32),
        }
        write_safetensors(folder / "adapter_model.safetensors", pair if tensors is None else tensors)
        config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4} | config
        (folder / "adapter_config.json").write_text(text or json.dumps(config))
        return checkpoint, folder

    return make


def faults(case, *parts) -> str:
    base, folder = case
    started = time.perf_counter()
    with pytest.raises(CheckpointError) as caught:
        apply_adapter(base, folder)
    assert time.perf_counter() - started < 2
    text = str(caught.value)
    for part in (str(folder), *parts):
        assert part in text, text
    return text


def key(name, shape, dtype=np.float32):
    return {f"base_model.model.{name}": np.ones(shape, dtype)}


A, B = key("m.up.lora_A.weight", (2, 4)), key("m.up.lora_B.weight", (6, 2))


def test_the_adapter_written_by_hand_is_sound(made):
    base, folder = made()
    low = apply_adapter(base, folder).tensors["m.up.weight"].low_rank
    assert (low.scale, low.transposed) == (2.0, False)
    assert (low.up.shape, low.down.shape) == ((6, 2), (2, 4))


@pytest.mark.parametrize(
    ("config", "problem"),
    [
        ({"peft_type": "LOHA"}, "peft_type is 'LOHA'"),
        ({"peft_type": None}, "peft_type is None"),
        ({"use_dora": True}, "it sets use_dora"),
        ({"lora_bias": True}, "it sets lora_bias"),
        ({"bias": "all"}, "trains biases"),
        ({"layer_replication": [[0, 2]]}, "it sets layer_replication"),
        ({"alora_invocation_tokens": [1]}, "it sets alora_invocation_tokens"),
        ({"from_the_future": 1}, "it sets from_the_future"),
        ({"init_lora_weights": "pissa_niter_4"}, "changes the base's weights"),
        ({"init_lora_weights": "olora"}, "changes the base's weights"),
        ({"r": 0}, "r is 0, not a rank"),
        ({"r": -1}, "r is -1"),
        ({"r": 2.0}, "r is 2.0"),
        ({"r": True}, "r is True"),
        ({"r": "2"}, "r is 2"),
        ({"r": 2**40}, "not a rank"),
        ({"lora_alpha": math.nan}, "lora_alpha is nan"),
        ({"lora_alpha": math.inf}, "lora_alpha is inf"),
        ({"lora_alpha": 10**400}, "not a finite number"),
        ({"lora_alpha": "4"}, "not a finite number"),
        ({"lora_alpha": None}, "not a finite number"),
        ({"lora_alpha": 0}, "changes 0 tensors"),
        ({"rank_pattern": {"up": 0}}, "rank_pattern['up'] is 0"),
        ({"alpha_pattern": {"up": math.nan}}, "alpha_pattern['up'] is nan"),
        ({"rank_pattern": ["up"]}, "rank_pattern is not a mapping"),
        ({"rank_pattern": {f"m{i}": 2 for i in range(3000)}}, "at most 2000"),
        ({"rank_pattern": {"up": 3}}, "the rank is 2, and the config says 3"),
        ({"r": 4}, "the rank is 2, and the config says 4"),
        ({"fan_in_fan_out": True}, "does not have the shape"),
        ({"fan_in_fan_out": "yes"}, "fan_in_fan_out is 'yes'"),
        ({"use_rslora": 2}, "use_rslora is 2"),
        ({"modules_to_save": "score"}, "modules_to_save is not a list"),
    ],
)
def test_faults_of_the_config(made, config, problem):
    faults(made(**config), problem)


@pytest.mark.parametrize(
    "pattern",
    [
        "(a+)+$", "(a*)*", "((a))", "(a|a)*", "(a|aa)+", "a{1,99999}", "(a|a)" * 40, "a?" * 60, ".*" * 8,
        "x" * 513, "(?=a)", "(?P<n>a)", "\\1", "(a", "a)", "[a", "a**", "*a", "(.*a){20}", "a\nb", "(a)?",
        "[z-a]", "", "()",
    ],
)  # fmt: skip
def test_patterns_are_simple_or_refused(made, pattern):
    base, folder = made(rank_pattern={pattern: 2})
    started = time.perf_counter()
    if pattern in ("", "()"):
        apply_adapter(base, folder)
    else:
        faults((base, folder), "rank_pattern", "pattern")
    assert time.perf_counter() - started < 2


@pytest.mark.parametrize(
    "pattern",
    [
        "up",
        "m.up",
        "m\\.up",
        "(m|n).up",
        ".*up",
        "m.(?:up|down)",
        "m\\.[a-z]+",
        "^m.up",
        "[um]p",
        "\\w+",
        "^m\\..*p$",
    ],
)
def test_patterns_that_pass_match_as_peft_matches(made, pattern):
    base, folder = made(r=8, rank_pattern={"nothing": 5, pattern: 2, ".*": 7})
    assert apply_adapter(base, folder).tensors["m.up.weight"].low_rank.scale == 2.0


def test_patterns_are_not_matched_with_endless_paths(made):
    base, folder = made(rank_pattern={".*.*x": 3})
    path = "a" * 1_000_000
    file = folder / "adapter_model.safetensors"
    raw = file.read_bytes()
    head = raw[8 : 8 + int.from_bytes(raw[:8], "little")].replace(b"m.up", path.encode())
    file.write_bytes(len(head).to_bytes(8, "little") + head + raw[8 + int.from_bytes(raw[:8], "little") :])
    tensors = {f"{path}.weight": replace(base.tensors["m.up.weight"], name=f"{path}.weight")}
    faults((replace(base, tensors=tensors), folder), "over 256 characters")


@pytest.mark.parametrize(
    ("tensors", "problem"),
    [
        ({}, "changes 0 tensors"),
        (A, "a factor A without B"),
        (B, "a factor B without A"),
        (A | key("m.up.lora_B.weight", (6, 3)), "A and B do not fit"),
        (A | key("m.up.lora_B.weight", (7, 2)), "does not have the shape"),
        (key("m.up.lora_A.weight", (2, 5)) | B, "does not have the shape"),
        (key("m.up.lora_A.weight", (0, 4)) | key("m.up.lora_B.weight", (6, 0)), "the rank is 0"),
        (key("m.up.lora_A.weight", (4,)) | B, "number of dimensions"),
        (key("m.up.lora_A.weight", (2, 4, 1)) | key("m.up.lora_B.weight", (6, 2, 1)), "number of dimensions"),
        (key("m.up.lora_A.weight", (2, 4), np.uint8) | B, "is U8"),
        (A | B | key("m.up.lora_magnitude_vector.default.weight", (6,)), "lora_magnitude_vector"),
        (A | B | key("m.up.lora_B.bias", (6,)), "no part of plain LoRA"),
        (A | B | key("m.up.bias", (6,)), "neither a LoRA factor nor"),
        (A | B | {"stranger": np.ones(1, np.float32)}, "'stranger' is no part"),
        (A | B | key("m.up.lora_A.other.weight", (2, 4)), "second factor"),
        (A | B | key("m.up.lora_embedding_A", (2, 4)), "second factor"),
        (key("m.pu.lora_A.weight", (2, 4)) | key("m.pu.lora_B.weight", (6, 2)), "did you mean 'm.up.weight'"),
        (
            key("embed_tokens.lora_embedding_A", (2, 3)) | key("embed_tokens.lora_embedding_B", (5, 2)),
            "the shape",
        ),
    ],
)
def test_faults_of_the_tensors(made, tensors, problem):
    faults(made(tensors), problem)


def test_modules_to_save_must_fit(made):
    case = made(A | B | key("m.up.bias", (7,)) | key("head.weight", (2, 2)), modules_to_save=["up", "head"])
    faults(case, "2 faults", "has shape (7,), and 'm.up.bias' (6,)", "'head.weight', which the base lacks")


def test_all_faults_are_listed_together(made):
    faults(made(r=0, lora_alpha=math.nan, use_dora=True), "3 faults")
    faults(made(A | {f"s{i}": np.ones(1, np.float32) for i in range(12)}), "13 faults", "and 3 more")


def test_integer_base_is_refused(made, write_safetensors, tmp_path):
    base, folder = made()
    tensors = {"m.up.weight": replace(base.tensors["count"], name="m.up.weight")}
    faults((replace(base, tensors=tensors), folder), "'m.up.weight' is I64")


def test_aliases_and_tied_heads(made):
    pair = key("embed_tokens.lora_embedding_A", (2, 5)) | key("embed_tokens.lora_embedding_B", (3, 2))
    base, folder = made(pair)
    tied = apply_adapter(replace(base, config={"tie_word_embeddings": True}), folder)
    assert "tied head lm_head.weight" in tied.notes[0]
    aliased = replace(base, aliases={"lm_head.weight": "embed_tokens.weight"})
    assert "lm_head.weight, which shares its storage" in apply_adapter(aliased, folder).notes[0]
    case = made(key("lm_head.lora_A.weight", (2, 3)) | key("lm_head.lora_B.weight", (5, 2)))
    faults((aliased, case[1]), "shares its storage with 'embed_tokens.weight'")


@pytest.mark.parametrize("text", ["[]", "{", '{"r": 1, "r": 2}', '{"a":' * 100_000])
def test_config_that_is_no_mapping(made, text):
    faults(made(text=text), "adapter_config.json")


def test_folder_that_is_no_adapter(made, tmp_path):
    base, folder = made()
    (folder / "adapter_model.safetensors").unlink()
    faults((base, folder), "incomplete", "'adapter_model.safetensors' or 'adapter_model.bin'")
    (folder / "adapter_config.json").unlink()
    faults((base, folder), "incomplete", "'adapter_config.json'")
    (folder / "adapter_config.json").symlink_to(tmp_path / "outside.json")
    (tmp_path / "outside.json").write_text("{}")
    faults((base, folder), "outside its folder")


def test_an_adapter_folder_is_no_model(made):
    _, folder = made()
    with pytest.raises(CheckpointError, match="an adapter, not a model"):
        open_folder(folder, "x")
