"""Groups from a traced graph: every one of them, permuted at random, leaves the outputs as they were."""

import numpy as np
import pytest
import torch
from torch import nn

from weightsmith.align import permutation_groups
from weightsmith.align.axes import fresh, join, leaves, regroup
from weightsmith.demo.model import Shape, features, initial_weights
from weightsmith.errors import ArgumentError
from weightsmith.tensor.permute import UnitAxis, permuted


class Convolutions(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.norm = nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.second, self.third = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 6, 3, padding=1)
        self.depthwise = nn.Conv2d(6, 6, 3, padding=1, groups=6)
        self.pool, self.head = nn.MaxPool2d(2), nn.Linear(6 * 16, 4)
        nn.init.uniform_(self.norm.running_mean)
        nn.init.uniform_(self.norm.running_var)

    def forward(self, x):
        x = torch.relu(self.norm(self.first(x)))
        x = torch.relu(self.third(x + self.second(x)))
        return self.head(self.pool(self.depthwise(x)).flatten(1))


class Encoder(nn.Module):
    """Tied embedding and head, fused q, k and v, layer norms on a residual stream."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(11, 16)
        self.block = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True)
        self.head = nn.Linear(16, 11, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, tokens):
        return self.head(self.block(self.embed(tokens)))


class Grouped(nn.Module):
    """Attention with two query heads per key head, rotated, with a causal mask; a gated MLP."""

    def __init__(self):
        super().__init__()
        self.q, self.kv, self.o = nn.Linear(12, 24), nn.Linear(12, 24), nn.Linear(24, 12)
        self.gate_up, self.down = nn.Linear(12, 40), nn.Linear(20, 12)

    def forward(self, x):
        n, t, _ = x.shape
        q = self.q(x).view(n, t, 4, 6).transpose(1, 2)
        k, v = (y.reshape(n, t, 2, 6).transpose(1, 2) for y in self.kv(x).chunk(2, -1))
        turned = torch.cat([-q[..., 3:], q[..., :3]], -1)
        k, v = (y[:, :, None].expand(n, 2, 2, t, 6).reshape(n, 4, t, 6) for y in (k, v))
        y = nn.functional.scaled_dot_product_attention(q + turned, k, v, is_causal=True)
        x = x + self.o(y.transpose(1, 2).reshape(n, t, 24))
        gate, up = self.gate_up(x).split(20, -1)
        return self.down(nn.functional.silu(gate) * up)


class Demo(nn.Module):
    """The demo's transformer, whose forward is a function of named weights."""

    def __init__(self):
        super().__init__()
        self.shape = Shape(width=16, layers=2, attention_heads=4, inner=24)
        for name, tensor in initial_weights(self.shape, torch.Generator().manual_seed(0)).items():
            *path, last = name.split(".")
            at = self
            for part in path:
                if part not in dict(at.named_children()):
                    at.add_module(part, nn.Module())
                at = at.get_submodule(part)
            at.register_parameter(last, nn.Parameter(tensor))

    def forward(self, images):
        return features(dict(self.named_parameters()), images, self.shape)


def perceptron():
    return nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.LayerNorm(16), nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 3))


CASES = {
    "perceptron": (perceptron, lambda: torch.randn(3, 8)),
    "convolutions": (Convolutions, lambda: torch.randn(2, 1, 8, 8)),
    "encoder": (Encoder, lambda: torch.randint(0, 11, (3, 7))),
    "grouped": (Grouped, lambda: torch.randn(3, 5, 12)),
    "demo": (Demo, lambda: torch.randn(3, 8, 8)),
}


def groups_of(case):
    make, draw = CASES[case]
    torch.manual_seed(0)
    module, x = make().eval(), draw()
    return module, x, permutation_groups(module, (x,))


def axes_of(groups):
    """{(tensor, axis): (group, units' repeat and block)}; a shared tensor by its first name."""
    return {
        (m.tensor if isinstance(m.tensor, str) else m.tensor[0], m.axis): (name, m.repeat, m.block)
        for name, members in groups.members.items()
        for m in members
    }


@pytest.mark.parametrize("case", CASES)
def test_permuting_any_group_keeps_the_outputs(case):
    module, x, groups = groups_of(case)
    before = module(x).detach()
    state = module.state_dict()
    for name, members in groups.members.items():
        changed = {n: t.numpy().copy() for n, t in state.items()}
        for m in members:
            for tensor in [m.tensor] if isinstance(m.tensor, str) else m.tensor:
                where = UnitAxis(m.axis, m.repeat, m.block)
                order = np.roll(np.arange(where.units(changed[tensor].shape)), 1)
                assert len(order) > 1
                changed[tensor] = permuted(changed[tensor], where, order)
        moved = CASES[case][0]().eval()
        moved.load_state_dict({n: torch.from_numpy(a) for n, a in changed.items()})
        assert torch.allclose(moved(x), before, atol=1e-5), name
        first = members[0].tensor
        alone = [first] if isinstance(first, str) else first
        moved.load_state_dict({**state, **{n: torch.from_numpy(changed[n]) for n in alone}})
        assert not torch.allclose(moved(x), before, atol=1e-3), f"{name}: one tensor moved alone must tell"


def test_convolutions_by_hand():
    found = axes_of(groups_of("convolutions")[2])
    stream = {("first.weight", 0), ("first.bias", 0), *((f"norm.{n}", 0) for n in ("weight", "bias"))}
    stream |= {("norm.running_mean", 0), ("norm.running_var", 0), ("second.bias", 0), ("third.weight", 1)}
    stream |= {("second.weight", 0), ("second.weight", 1)}
    last = {("third.weight", 0), ("third.bias", 0), ("depthwise.weight", 0), ("depthwise.bias", 0), ("head.weight", 1)}
    assert {key for key, (name, _, _) in found.items() if name == "first"} == stream
    assert {key for key, (name, _, _) in found.items() if name == "third"} == last
    assert set(found) == stream | last
    assert found["head.weight", 1] == ("third", 1, 16)  # a channel is 16 neighbors once it is flattened


def test_heads_move_as_blocks_with_q_k_and_v():
    _, _, groups = groups_of("encoder")
    found = axes_of(groups)
    assert found["block.self_attn.in_proj_weight", 0] == ("block.self_attn", 3, 4)
    assert found["block.self_attn.in_proj_bias", 0] == ("block.self_attn", 3, 4)
    assert found["block.self_attn.out_proj.weight", 1] == ("block.self_attn", 1, 4)
    assert groups.members["embed"][0].tensor == ("embed.weight", "head.weight")
    assert groups.counted == ("embed",)
    assert groups.fixed == {"embed.weight axis 0": "rows of an embedding are looked up by number"}


def test_grouped_queries_move_with_their_key_head():
    found = axes_of(groups_of("grouped")[2])
    assert found["q.weight", 0] == ("q", 1, 12)
    assert found["kv.weight", 0] == ("q", 2, 6)
    assert found["o.weight", 1] == ("q", 1, 12)
    assert found["gate_up.weight", 0] == ("gate_up", 2, 1)
    assert found["down.weight", 1] == ("gate_up", 1, 1)


def test_demo_has_a_stream_heads_and_mlps():
    _, _, groups = groups_of("demo")
    found = axes_of(groups)
    assert found["model.layers.1.attention.q_proj.weight", 0][1:] == (1, 4)
    assert found["model.layers.1.mlp.up_proj.weight", 0][0] == found["model.layers.1.mlp.down_proj.weight", 1][0]
    assert len(groups.members) == 2 * 2  # the stream is the output, so it stays
    assert groups.fixed["model.norm.weight axis 0"] == "an output of the module"


def test_what_has_no_rule_stays_and_is_listed():
    class Sorted(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = nn.Linear(4, 6), nn.Linear(6, 6), nn.Linear(6, 2)

        def forward(self, x):
            return self.c(torch.relu(self.b(self.a(x).sort(-1).values)))

    groups = permutation_groups(Sorted(), (torch.randn(3, 4),))
    assert list(groups.members) == ["b"]
    assert groups.fixed["a.weight axis 0"] == groups.fixed["b.weight axis 1"] == "the operator sort has no rule"


def test_the_module_is_left_as_it_was():
    module = Convolutions().train()
    module.pool.eval()
    before = {n: t.clone() for n, t in module.state_dict().items()}
    permutation_groups(module, (torch.randn(2, 1, 8, 8),))
    assert module.training
    assert not module.pool.training
    assert all(torch.equal(t, before[n]) for n, t in module.state_dict().items())


def test_a_module_that_cannot_be_traced():
    with pytest.raises(ArgumentError, match="cannot trace Linear"):
        permutation_groups(nn.Linear(4, 2), (torch.randn(3, 5),))


def test_cutting_one_axis_cuts_all_that_it_is_joined_to():
    (whole,), (other,), (heads,) = fresh((12,)), fresh((12,)), fresh((3,))
    join(whole, other)
    made = regroup([other], (3, 4))
    join(made[0], heads)
    assert [f.size for f in leaves(whole)] == [3, 4]
    assert leaves(whole)[0] is leaves(heads)[0]
    assert regroup([whole], (6, 2)) == [[*leaves(whole)[:1], leaves(whole)[1]], [leaves(whole)[2]]]
    assert regroup([fresh((7,))[0]], (2, 3)) is None
