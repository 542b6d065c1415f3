"""Merging of like units: copies are found and cost nothing, the rest is measured."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from weightsmith import permutation_groups, shrink, verify, write_groups
from weightsmith.align.groups import Groups, Member, parse_groups
from weightsmith.errors import ArgumentError, MismatchError

GROUPS = Groups({"hidden": (Member("a.weight", 0), Member("a.bias", 0), Member("b.weight", 1))})


def network(units=6, seed=0):
    rng = torch.Generator().manual_seed(seed)
    shapes = {"a.weight": (units, 3), "a.bias": (units,), "b.weight": (2, units), "b.bias": (2,)}
    return {n: torch.randn(s, generator=rng) for n, s in shapes.items()}


def outputs(w, x):
    return torch.tanh(x @ w["a.weight"].T + w["a.bias"]) @ w["b.weight"].T + w["b.bias"]


def duplicated(w, times):
    """Every unit several times, mixed up, with its outgoing weights divided."""
    units = torch.randperm(len(w["a.bias"]) * times, generator=torch.Generator().manual_seed(1)) % len(w["a.bias"])
    wide = {"a.weight": w["a.weight"][units], "a.bias": w["a.bias"][units], "b.weight": w["b.weight"][:, units] / times}
    return {**{n: t.contiguous() for n, t in wide.items()}, "b.bias": w["b.bias"]}, units


@pytest.mark.parametrize("times", [2, 4])
def test_duplicated_units_are_restored_without_any_change(tmp_path, save_model, times):
    wide, units = duplicated(network(), times)
    folder = save_model(tmp_path / "wide", wide)
    found = shrink(folder, groups=GROUPS, out=tmp_path / "out", beta=0.0)
    assert [(g.name, g.units, g.surviving) for g in found.groups] == [("hidden", 6 * times, 6)]
    small = load_file(tmp_path / "out" / "model.safetensors")
    order = list(dict.fromkeys(units.tolist()))  # the first of each copy stays where it was
    for name, tensor in network().items():
        expected = tensor if name == "b.bias" else tensor[:, order] if name == "b.weight" else tensor[order]
        assert torch.equal(small[name], expected), name
    x = torch.randn(20, 3)
    assert torch.allclose(outputs(small, x), outputs(wide, x), atol=1e-6)
    assert (found.parameters_before, found.parameters_after) == (6 * times * 6 + 2, 38)
    assert found.record["shapes"]["b.weight"] == [[2, 6 * times], [2, 6]]
    assert verify(tmp_path / "out").is_sound


def test_beta_zero_merges_nothing_else(tmp_path, save_model):
    w = network()
    w["a.weight"][3], w["a.bias"][3], w["b.weight"][:, 3] = w["a.weight"][1], w["a.bias"][1], w["b.weight"][:, 1]
    w["a.weight"][3, 0] = torch.nextafter(w["a.weight"][1, 0], torch.tensor(9.0))  # nearly a copy of unit 1
    w["a.weight"][0] = w["a.bias"][0] = 0.0
    w["a.weight"][5] = w["a.bias"][5] = -0.0
    w["b.weight"][:, 0] = w["b.weight"][:, 5]
    folder = save_model(tmp_path / "w", w)
    found = shrink(folder, groups=GROUPS, beta=0.0)
    assert [g.surviving for g in found.groups] == [5]  # 0 and 5 alone, since -0 is 0
    assert found.out is None
    assert found.record == {}
    assert [g.surviving for g in shrink(folder, groups=GROUPS, beta=1e-9).groups] == [4]


def test_merging_by_hand(tmp_path, save_model):
    w = {
        "a.weight": torch.tensor([[0.0], [2.0], [90.0]]),
        "a.bias": torch.tensor([1.0, 3.0, 5.0]),
        "b.weight": torch.tensor([[1.0, 2.0, 4.0]]),
    }
    out = tmp_path / "out"
    shrink(save_model(tmp_path / "w", w), groups=GROUPS, out=out, beta=0.1)
    small = load_file(out / "model.safetensors")
    assert small["a.weight"].tolist() == [[1.0], [90.0]]
    assert small["a.bias"].tolist() == [2.0, 5.0]
    assert small["b.weight"].tolist() == [[3.0, 4.0]]


def test_max_ratio_and_the_last_unit(tmp_path, save_model):
    folder = save_model(tmp_path / "w", network(10))
    for ratio, left in ((0.0, 10), (0.25, 8), (1.0, 1)):
        (group,) = shrink(folder, groups=GROUPS, beta=1e6, max_ratio=ratio).groups
        assert group.surviving == left


def test_a_second_layer_sees_the_first_one_merged(tmp_path, save_model):
    """Units of the second layer that become copies only once their inputs are merged."""
    w = {
        "a.weight": torch.tensor([[1.0], [1.0], [5.0]]),
        "b.weight": torch.tensor([[0.25, 0.75, 1.0], [0.75, 0.25, 1.0], [0.5, 0.5, 9.0]]),
        "c.weight": torch.tensor([[2.0, 2.0, 1.0]]),
    }
    text = """
groups:
  first: [{tensor: a.weight, axis: 0}, {tensor: b.weight, axis: 1}]
  second: [{tensor: b.weight, axis: 0}, {tensor: c.weight, axis: 1}]
"""
    found = shrink(save_model(tmp_path / "w", w), groups=parse_groups(text), out=tmp_path / "out", beta=0.02)
    assert [g.surviving for g in found.groups] == [2, 2]
    small = load_file(tmp_path / "out" / "model.safetensors")
    assert small["b.weight"].tolist() == [[1.0, 1.0], [1.0, 9.0]]
    assert small["c.weight"].tolist() == [[4.0, 1.0]]


def test_counted_groups_stay_and_derived_ones_keep_the_function(tmp_path, save_model):
    """A layer norm depends on how many units there are; batch statistics are averaged, with a note."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.batch, self.flat = nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Linear(4 * 16, 6)
            self.norm, self.head = nn.LayerNorm(6), nn.Linear(6, 3)

        def forward(self, x):
            return self.head(self.norm(self.flat(torch.relu(self.batch(self.conv(x))).flatten(1))))

    torch.manual_seed(0)
    net, x = Net().eval(), torch.randn(2, 1, 4, 4)
    groups = permutation_groups(net, (x,))
    assert groups.counted == ("flat",)
    with torch.no_grad():
        for name, tensor in net.state_dict().items():
            if name.startswith(("conv", "batch")) and tensor.shape:
                tensor.uniform_(0.1, 1)
                tensor[2] = tensor[0]
        net.flat.weight[:, 32:48] = net.flat.weight[:, :16]
    folder = save_model(tmp_path / "w", {n: t.clone() for n, t in net.state_dict().items()})
    (folder / "config.json").write_text('{"channels": 4}')
    found = shrink(folder, groups=groups, out=tmp_path / "out", beta=0.0)
    assert [(g.surviving, bool(g.why)) for g in found.groups] == [(3, False), (6, True)]
    assert any("running statistics" in note for note in found.notes)
    assert any("config.json" in note for note in found.notes)
    small = Net().eval()
    small.conv, small.batch, small.flat = nn.Conv2d(1, 3, 3, padding=1), nn.BatchNorm2d(3).eval(), nn.Linear(48, 6)
    small.load_state_dict(load_file(tmp_path / "out" / "model.safetensors"))
    assert torch.allclose(small(x), net(x), atol=1e-5)
    with pytest.raises(MismatchError, match="no group may be merged"):
        shrink(folder, groups=Groups({"flat": groups.members["flat"]}, ("flat",)))


def test_vectors_alone_say_nothing(tmp_path, save_model):
    folder = save_model(tmp_path / "w", {"norm": torch.zeros(4)})
    (group,) = shrink(folder, groups=parse_groups("groups: {g: [{tensor: norm, axis: 0}]}"), beta=1.0).groups
    assert (group.surviving, group.why) == (4, "no weights of two axes to compare")


@pytest.mark.parametrize("wrong", [{"beta": -0.1}, {"beta": float("nan")}, {"max_ratio": 1.1}, {"max_ratio": -1.0}])
def test_parameters_out_of_bounds(tmp_path, save_model, wrong):
    with pytest.raises(ArgumentError, match="beta of at least 0"):
        shrink(save_model(tmp_path / "w", network()), groups=GROUPS, **wrong)


def test_the_command(tmp_path, save_model, command):
    folder = save_model(tmp_path / "w", duplicated(network(), 2)[0])
    write_groups(GROUPS, tmp_path / "g.yaml")
    words = ["shrink", folder, "--groups", tmp_path / "g.yaml", "--quiet"]
    assert command(*words).code == 2
    assert command(*words, "--measure", "--out", tmp_path / "out").code == 2
    ran = command(*words, "--measure", "--json")
    assert json.loads(ran.out)["groups"]["hidden"] == {"units": 12, "surviving": 6, "share": 0.5}
    ran = command(*words, "--out", tmp_path / "out", "--beta", "0")
    assert (ran.code, ran.err) == (0, "")
    assert "38 of 74 parameters remain" in ran.out
    assert np.isclose(len(load_file(tmp_path / "out" / "model.safetensors")["a.bias"]), 6)
