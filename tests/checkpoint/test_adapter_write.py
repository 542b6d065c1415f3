"""Names, shapes and config of adapters, against what PEFT saves."""

import json
import re
import warnings

import pytest
import torch
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict
from transformers.pytorch_utils import Conv1D

from weightsmith.checkpoint.adapter import PATTERN_COUNT
from weightsmith.checkpoint.adapter_write import WEIGHTS_NAME, Target, adapter_config, lay_out_adapter
from weightsmith.errors import MismatchError


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.linear, self.mixer = torch.nn.Linear(5, 7), Conv1D(8, 5)
        self.embed, self.conv = torch.nn.Embedding(11, 6), torch.nn.Conv2d(3, 4, (2, 5))
        self.line = torch.nn.Conv1d(3, 4, 2)

    def forward(self, x):
        return self.linear(x)


@pytest.mark.parametrize(
    ("module", "kind"),
    [
        ("linear", "linear"),
        ("mixer", "transposed"),
        ("embed", "embedding"),
        ("conv", "convolution"),
        ("line", "convolution"),
    ],
)
def test_tensors_are_named_and_shaped_as_peft_has_them(module, kind):
    net = Net()
    target = Target(f"{module}.weight", tuple(getattr(net, module).weight.shape), kind)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        config = LoraConfig(r=2, target_modules=[module], fan_in_fan_out=kind == "transposed")
        state = get_peft_model_state_dict(get_peft_model(net, config), save_embedding_layers=False)
    assert {n: tuple(t.shape) for n, t in state.items()} == dict(target.tensors(2))
    assert target.cost == sum(target.matrix) == sum(t.numel() for t in state.values()) / 2


def test_config_says_alpha_equals_rank_by_whole_paths():
    targets = {Target(f"{p}.weight", (4, 4), "linear"): r for p, r in (("a.up", 2), ("x.a.up", 3), ("b-1.up", 2))}
    config = json.loads(adapter_config(targets, ["c.norm"], "org/base", "abc"))
    assert (config["r"], config["lora_alpha"]) == (2, 2)
    assert config["rank_pattern"] == config["alpha_pattern"] == {"^x\\.a\\.up": 3}
    assert config["target_modules"] == ["a.up", "x.a.up", "b-1.up"]
    assert (config["base_model_name_or_path"], config["revision"]) == ("org/base", "abc")
    assert (config["modules_to_save"], config["fan_in_fan_out"]) == (["c.norm"], False)
    (pattern,) = config["rank_pattern"]
    matched = [t.path for t in targets if re.match(rf"(.*\.)?({pattern})$", t.path)]  # as PEFT does
    assert matched == ["x.a.up"]
    LoraConfig(**{k: v for k, v in config.items() if k != "peft_type"})


def test_too_many_patterns_are_refused():
    targets = {Target(f"m{i}.weight", (4, 4), "linear"): i + 1 for i in range(PATTERN_COUNT + 2)}
    with pytest.raises(MismatchError, match=f"at most {PATTERN_COUNT}"):
        adapter_config(targets, [], "base", None)


def test_all_tensors_lie_in_one_file():
    shard = lay_out_adapter([("a", "F32", (2, 3), 24), ("b", "BF16", (4,), 8)])
    assert shard.name == WEIGHTS_NAME
    assert [s.name for s in shard.slots] == ["a", "b"]
