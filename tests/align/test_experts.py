"""Merging of experts: groups by hand, alignment against all permutations, both layouts, and a model of transformers."""

import itertools
import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn.functional import silu

from weightsmith import merge, merge_experts, verify
from weightsmith.cli import main
from weightsmith.errors import ArgumentError, MismatchError

HIDDEN, UNITS = 6, 4
LAYER = "model.layers.0.mlp"


def drawn(experts, seed=0, hidden=HIDDEN, units=UNITS):
    """Gate, up (E, units, hidden) and down (E, hidden, units), router (E, hidden)."""
    rng = torch.Generator().manual_seed(seed)
    shapes = {"gate": (units, hidden), "up": (units, hidden), "down": (hidden, units)}
    made = {n: torch.randn((experts, *s), generator=rng) for n, s in shapes.items()}
    return {**made, "router": torch.randn((experts, hidden), generator=rng)}


def shuffled(w, sources, seed=0):
    """Expert i becomes a copy of sources[i] with its hidden units in another order."""
    rng = torch.Generator().manual_seed(seed)
    out = {n: t[list(sources)].clone() for n, t in w.items()}
    for i in range(len(sources)):
        order = torch.randperm(w["gate"].shape[1], generator=rng)
        for n in ("gate", "up"):
            out[n][i] = out[n][i][order]
        out["down"][i] = out["down"][i][:, order]
    return out


def separate(w, layer=LAYER):
    names = {"w1": "gate", "w3": "up", "w2": "down"}
    experts = {
        f"{layer}.experts.{e}.{n}.weight": w[k][e].clone() for e in range(len(w["gate"])) for n, k in names.items()
    }
    return {**experts, f"{layer}.gate.weight": w["router"], f"{layer}.shared_experts.up.weight": torch.ones(2, 3)}


def stacked(w, layer=LAYER, *, pairs=False):
    """As Mixtral in memory (out, in), or as gpt-oss: (in, out), gate and up in turn, biases."""
    if not pairs:
        both = torch.cat([w["gate"], w["up"]], 1)
        tensors = {"gate_up_proj": both, "down_proj": w["down"]}
    else:
        both = torch.stack([w["gate"], w["up"]], 2).flatten(1, 2)
        tensors = {
            "gate_up_proj": both.transpose(1, 2),
            "down_proj": w["down"].transpose(1, 2),
            "gate_up_proj_bias": both[:, :, 0] + 1,
            "down_proj_bias": w["down"][:, :, 0] - w["down"][:, :, 1],
        }
    named = {f"{layer}.experts.{n}": t.contiguous() for n, t in tensors.items()}
    return {**named, f"{layer}.gate.weight": w["router"]}


def save(folder, tensors, config=None):
    folder.mkdir()
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config))
    return folder


def loaded(folder):
    return load_file(folder / "model.safetensors")


def table(path, content):
    path.write_text(json.dumps(content))
    return path


def by_hand(w, members, weights):
    """The weighted mean of experts, each in the best of all orders of its units."""
    first, units = members[0], w["gate"].shape[1]
    total = {n: weights[0] * w[n][first].double() for n in ("gate", "up", "down")}
    for e, weight in zip(members[1:], weights[1:], strict=True):
        found = {}
        for order in itertools.permutations(range(units)):
            now = {
                "gate": w["gate"][e][list(order)],
                "up": w["up"][e][list(order)],
                "down": w["down"][e][:, list(order)],
            }
            found[sum(float((now[n].double() * w[n][first].double()).sum()) for n in now)] = now
        best = found[max(found)]
        for n in total:
            total[n] += weight * best[n].double()
    return {n: t / sum(weights) for n, t in total.items()}


@pytest.mark.parametrize("form", ["separate", "stacked", "pairs"])
def test_merge_against_all_permutations(tmp_path, form):
    w = drawn(5)
    used = table(tmp_path / "used.json", {"0": [1, 4, 0, 8, 3]})  # dominant: 3, 1
    alike = np.eye(5)
    alike[[0, 3], [3, 0]] = alike[[2, 1], [1, 2]] = alike[[4, 3], [3, 4]] = 0.5
    similar = table(tmp_path / "alike.json", {LAYER: alike.tolist()})
    make = {"separate": separate, "stacked": stacked, "pairs": lambda w: stacked(w, pairs=True)}[form]
    folder = save(tmp_path / "in", make(w))
    done = merge_experts(
        folder, out=tmp_path / "out", experts=2, frequencies=used, similarity=similar,
        gate_up={"separate": None, "stacked": "halves", "pairs": "pairs"}[form],
    )  # fmt: skip
    assert done.summary()["layers"][LAYER]["groups"] == [[1, 2], [3, 0, 4]]
    merged = {n: w[n].double().clone() for n in w}
    for members, weights in (((1, 2), (4, 0)), ((3, 0, 4), (8, 1, 3))):
        expected = by_hand(w, members, weights)
        for n, t in expected.items():
            for e in members:
                merged[n][e] = t
    got = loaded(tmp_path / "out")
    assert got.keys() == make(w).keys()
    for name, tensor in make(merged).items():
        if not name.endswith("bias"):  # biases by hand are not linear in the columns drawn here
            assert torch.allclose(got[name].double(), tensor.double(), atol=1e-6), name
    for name in (n for n in make(w) if "experts." not in n or ".shared" in n):
        assert torch.equal(got[name], make(w)[name])
    assert verify(tmp_path / "out").is_sound


def expert_outputs(tensors, e, x, gate_up):
    """What one expert of a stacked layer with biases computes, with plain formulas."""
    g = {n.rsplit(".", 1)[1]: t[e] for n, t in tensors.items() if ".experts." in n}
    both = x @ g["gate_up_proj"] + g["gate_up_proj_bias"]
    gate, up = (both[:, ::2], both[:, 1::2]) if gate_up == "pairs" else both.chunk(2, -1)
    return (silu(gate) * up) @ g["down_proj"] + g["down_proj_bias"]


def test_alignment_leaves_the_function_unchanged(tmp_path):
    """The dominant expert differs from the other in its outgoing bias alone, so merging shows the other's own function."""
    w = shuffled(drawn(1), (0, 0), seed=3)
    tensors = stacked(w, pairs=True)
    tensors[f"{LAYER}.experts.down_proj_bias"] = torch.arange(2.0 * HIDDEN).reshape(2, HIDDEN)
    folder, x = save(tmp_path / "in", tensors), torch.randn(9, HIDDEN)
    before = [expert_outputs(tensors, e, x, "pairs") for e in range(2)]
    assert (before[1] - before[0] - HIDDEN).abs().max() < 1e-4
    merge_experts(folder, out=tmp_path / "out", experts=1, gate_up="pairs")
    after = loaded(tmp_path / "out")
    for e in range(2):
        assert torch.allclose(expert_outputs(after, e, x, "pairs"), before[0] + HIDDEN / 2, atol=1e-4)
    with pytest.raises(MismatchError, match="--gate-up halves"):
        merge_experts(folder, out=tmp_path / "no", experts=1)


def moe(w, x, k=2, standing=None):
    """A mixture of k experts in plain PyTorch; `standing` maps router rows to experts."""
    logits = x @ w["router"].T
    weights, chosen = logits.softmax(-1).topk(k)
    out = torch.zeros_like(x)
    for slot in range(k):
        for i, row in enumerate(chosen[:, slot].tolist()):
            e = row if standing is None else standing[row]
            hidden = silu(w["gate"][e] @ x[i]) * (w["up"][e] @ x[i])
            out[i] += weights[i, slot] * (w["down"][e] @ hidden)
    return out


def test_trained_mixture_with_shuffled_copies(tmp_path):
    """Eight experts on handwritten digits, each twice: merging loses nothing when aligned, and much when not."""
    from sklearn.datasets import load_digits

    data = load_digits()
    x, y = torch.tensor(data.data / 16, dtype=torch.float32), torch.tensor(data.target)
    torch.manual_seed(0)
    w = {n: (t / 4).requires_grad_() for n, t in drawn(4, hidden=64, units=16).items()}
    head = torch.zeros(10, 64, requires_grad=True)

    def scores(w):
        hidden = silu(torch.einsum("euh,nh->neu", w["gate"], x)) * torch.einsum("euh,nh->neu", w["up"], x)
        each = torch.einsum("ehu,neu->neh", w["down"], hidden)
        return ((x @ w["router"].T).softmax(-1)[..., None] * each).sum(1) @ head.T

    optimizer = torch.optim.Adam([*w.values(), head], 0.01)
    for _ in range(60):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(scores(w), y).backward()
        optimizer.step()

    def loss(w):
        with torch.no_grad():
            return float(torch.nn.functional.cross_entropy(scores(w), y))

    wide = shuffled({n: t.detach() for n, t in w.items()}, (0, 1, 2, 3, 3, 2, 1, 0))
    folder = save(tmp_path / "in", separate(wide))
    losses = {}
    for name, align in (("aligned", True), ("unaligned", False)):
        merge_experts(folder, out=tmp_path / name, experts=4, align=align)
        got = loaded(tmp_path / name)
        read = {"gate": "w1", "up": "w3", "down": "w2"}
        merged = {n: torch.stack([got[f"{LAYER}.experts.{e}.{p}.weight"] for e in range(8)]) for n, p in read.items()}
        losses[name] = loss({**merged, "router": got[f"{LAYER}.gate.weight"]})
    assert loss(wide) < 0.3
    assert losses["aligned"] == pytest.approx(loss(wide), abs=1e-6)
    assert losses["unaligned"] > loss(wide) + 1


@pytest.mark.parametrize("layout", ["same", "compact", "dominant"])
@pytest.mark.parametrize("make", [separate, stacked])
def test_as_many_groups_as_experts_is_identity(tmp_path, make, layout):
    tensors = make(drawn(3))
    folder = save(tmp_path / "in", tensors, {"num_experts": 3, "top_k": 2})
    merge_experts(folder, out=tmp_path / "out", experts=3, gate_up="halves", layout=layout)
    got = loaded(tmp_path / "out")
    assert got.keys() == tensors.keys()
    assert all(torch.equal(got[n], t) for n, t in tensors.items())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("make", [separate, stacked])
def test_identical_experts_merge_bit_for_bit(tmp_path, make, dtype):
    w = {n: t[[0, 1, 0, 1, 1]].to(dtype) for n, t in drawn(2).items()}
    folder = save(tmp_path / "in", make(w))
    used = table(tmp_path / "used.json", {LAYER: [0.3, 0.4, 0.7, 1e-9, 0.1]})
    for name, frequencies in (("equal", None), ("used", used)):
        done = merge_experts(folder, out=tmp_path / name, experts=2, frequencies=frequencies, gate_up="halves")
        assert sorted(sorted(g) for g in done.summary()["layers"][LAYER]["groups"]) == [[0, 2], [1, 3, 4]]
        got = loaded(tmp_path / name)
        assert all(torch.equal(got[n], t) for n, t in make(w).items())


@pytest.mark.parametrize("make", [separate, stacked])
def test_compact_map_says_the_same_as_the_full_layout(tmp_path, make):
    w = shuffled(drawn(4), (0, 1, 2, 3, 1, 0), seed=5)
    folder = save(tmp_path / "in", make(w), {"num_local_experts": 6, "num_experts_per_tok": 2})
    given = {"experts": 3, "gate_up": "halves"}
    merge_experts(folder, out=tmp_path / "same", **given)
    done = merge_experts(folder, out=tmp_path / "compact", layout="compact", **given)
    assert not (tmp_path / "same" / "experts.json").exists()
    known = json.loads((tmp_path / "compact" / "experts.json").read_text())["layers"][LAYER]
    assert known["experts"] == 3
    full, small = loaded(tmp_path / "same"), loaded(tmp_path / "compact")
    for name, tensor in full.items():
        if ".experts." not in name:
            assert torch.equal(small[name], tensor)
        elif make is stacked:
            assert torch.equal(small[name][known["merged"]], tensor)
        else:
            e = int(name.split(".experts.")[1].split(".")[0])
            assert torch.equal(small[name.replace(f".{e}.w", f".{known['merged'][e]}.w")], tensor)
    kept = len([n for n in small if ".experts." in n])
    assert kept == (2 if make is stacked else 9)
    assert json.loads((tmp_path / "compact" / "config.json").read_text()) == {
        "num_local_experts": 3, "num_experts_per_tok": 2
    }  # fmt: skip
    merge_experts(folder, out=tmp_path / "dominant", layout="dominant", **given)
    rows = loaded(tmp_path / "dominant")[f"{LAYER}.gate.weight"]
    assert torch.equal(rows, w["router"][list(done.groups[0].dominant)])
    for name in ("same", "compact", "dominant"):
        assert verify(tmp_path / name).is_sound
    x = torch.randn(20, HIDDEN)
    read = {"gate": "w1", "up": "w3", "down": "w2"}
    if make is separate:  # top 2 of the whole router through the map, where two rows may mean one expert
        few = {n: torch.stack([small[f"{LAYER}.experts.{e}.{p}.weight"] for e in range(3)]) for n, p in read.items()}
        many = {n: torch.stack([full[f"{LAYER}.experts.{e}.{p}.weight"] for e in range(6)]) for n, p in read.items()}
        router = {"router": w["router"]}
        assert torch.allclose(
            moe({**few, **router}, x, standing=known["merged"]), moe({**many, **router}, x), atol=1e-6
        )


def test_global_ranking_by_hand(tmp_path, capsys):
    tensors = {**separate(drawn(4), "l.0.moe"), **separate(drawn(4, seed=1), "l.1.moe")}
    folder = save(tmp_path / "in", tensors)
    # shares: layer 0: .6 .2 .1 .1; layer 1: .3 .3 .2 .2; beside the first of each, the next two are .3 and .2 of layer 0
    used = table(tmp_path / "used.json", {"l.0.moe": [6, 2, 1, 1], "1": [2, 3, 3, 2]})
    out = str(tmp_path / "out")
    given = ["merge-experts", str(folder), "--out", out, "--experts", "2", "--frequencies", str(used)]
    assert main([*given, "--dry-run", "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert [layer["kept"] for layer in plan["layers"].values()] == [2, 2]
    assert plan["layers"]["l.0.moe"]["units"] == UNITS
    table(used, {"l.0.moe": [97, 1, 1, 1], "1": [2, 3, 3, 2]})
    assert main([*given, "--json", "--quiet"]) == 0
    done = json.loads(capsys.readouterr().out)
    assert [layer["kept"] for layer in done["layers"].values()] == [1, 3]
    assert main([*given, "--per-layer", "--force", "--layout", "compact"]) == 0
    text = capsys.readouterr()
    assert "l.1.moe        4     2" in text.out
    assert "experts.json says which" in text.err
    assert not [line for line in text.err.splitlines() if "no frequencies" in line]


def test_faults_are_told_together_from_headers(tmp_path):
    square = {n: torch.zeros(6, 6) for e in range(2) for n in (f"a.experts.{e}.x", f"a.experts.{e}.y")}
    tensors = {
        **square,
        "a.router.weight": torch.zeros(2, 6),
        **separate(drawn(3), "b"),
    }
    folder = save(tmp_path / "in", tensors)
    with pytest.raises(MismatchError, match=r"'a': which axis .* --no-align") as caught:
        merge_experts(folder, out=tmp_path / "out", experts=1, layout="compact")
    assert "needs as many experts in each layer, here [2, 3] become [1]" in str(caught.value)
    merge_experts(folder, out=tmp_path / "out", experts=1, align=False)
    with pytest.raises(ArgumentError, match="from 1 to 2"):
        merge_experts(folder, out=tmp_path / "no", experts=3)
    for broken, told in (
        ({"a.experts.1.x": None}, "'a': neither one tensor of each kind"),
        ({"a.router.weight": None}, "'a': one router of 2 rows .* found none"),
        ({"a.gate.weight": torch.zeros(2, 6)}, "'a': one router .* found a.gate.weight .*a.router.weight"),
        ({"a.experts.0.x": torch.zeros(6, 6, dtype=torch.int8)}, "a.experts.0.x is I8"),
    ):
        changed = {n: t for n, t in {**tensors, **broken}.items() if t is not None}
        with pytest.raises(MismatchError, match=told):
            merge_experts(save(tmp_path / f"x{len(list(tmp_path.iterdir()))}", changed), out=tmp_path / "no", experts=1)
    with pytest.raises(MismatchError, match="got none"):
        merge_experts(save(tmp_path / "dense", {"a.mlp.up": torch.ones(2, 2)}), out=tmp_path / "no", experts=1)
    assert not (tmp_path / "no").exists()


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ({}, f"'{LAYER}' is missing"),
        ({LAYER: [1, 2]}, r"shape \(3,\)"),
        ({LAYER: [1, 2, -3]}, "below 0"),
        ({LAYER: [1, 2, 3], "7": [1]}, "'7' is no layer"),
        ({LAYER: [1, 2, "x"]}, r"shape \(3,\)"),
        ([1], "a mapping"),
    ],
)
def test_wrong_frequencies(tmp_path, content, told):
    folder = save(tmp_path / "in", separate(drawn(3)))
    with pytest.raises(ArgumentError, match=told):
        merge_experts(folder, out=tmp_path / "out", experts=2, frequencies=table(tmp_path / "f.json", content))


def test_tables_of_safetensors(tmp_path):
    folder = save(tmp_path / "in", separate(drawn(3)))
    save_file({LAYER: torch.tensor([0, 5, 2])}, tmp_path / "used.safetensors")
    alike = torch.tensor([[1.0, 0.1, 0.9], [0.1, 1.0, 0.0], [0.9, 0.0, 1.0]])
    save_file({LAYER: alike}, tmp_path / "alike.safetensors")
    given = {"frequencies": tmp_path / "used.safetensors", "similarity": tmp_path / "alike.safetensors"}
    done = merge_experts(folder, out=tmp_path / "out", experts=2, **given)
    assert done.summary()["layers"][LAYER]["groups"] == [[1], [2, 0]]
    got = loaded(tmp_path / "out")
    assert torch.equal(got[f"{LAYER}.experts.0.w1.weight"], drawn(3)["gate"][2])  # expert 0 was never used
    save_file({LAYER: alike + torch.arange(9.0).reshape(3, 3)}, tmp_path / "alike.safetensors")
    with pytest.raises(ArgumentError, match="not symmetric"):
        merge_experts(folder, out=tmp_path / "no", experts=2, **given)


def test_bytes_do_not_depend_on_threads(tmp_path):
    from weightsmith import Options

    folder = save(tmp_path / "in", separate(drawn(6, hidden=40, units=300)))
    for threads in (1, 3):
        merge_experts(folder, out=tmp_path / str(threads), experts=2, options=Options(threads=threads))
    assert (tmp_path / "1" / "model.safetensors").read_bytes() == (tmp_path / "3" / "model.safetensors").read_bytes()


@pytest.mark.parametrize("make", [separate, stacked])
def test_models_of_different_count_are_refused_with_the_reason(tmp_path, make):
    folders = [save(tmp_path / str(n), make(drawn(n))) for n in (8, 4)]
    with pytest.raises(MismatchError, match=r"1\. experts of different count: 8 in '.*8'; 4 in '.*4'") as caught:
        merge("linear", models=folders, out=tmp_path / "out")
    assert "vocabulary" not in str(caught.value)


@pytest.fixture
def mixtral(tmp_path):
    """A tiny Mixtral whose second half of experts are copies of the first with shuffled units; its config and logits."""
    from transformers import MixtralConfig, MixtralForCausalLM

    torch.manual_seed(0)
    config = MixtralConfig(
        hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=2,
        num_local_experts=4, num_experts_per_tok=2, vocab_size=32, initializer_range=0.3,
    )  # fmt: skip
    model = MixtralForCausalLM(config).eval()
    with torch.no_grad():
        for layer in model.model.layers:
            experts, router = layer.mlp.experts, layer.mlp.gate.weight
            router[2:] = router[:2] + 0.1 * torch.randn(2, 16)
            for e in (0, 1):
                order = torch.randperm(24)
                experts.gate_up_proj[e + 2] = experts.gate_up_proj[e][torch.cat([order, order + 24])]
                experts.down_proj[e + 2] = experts.down_proj[e][:, order]
    return model


def logits(model, ids):
    with torch.no_grad():
        return model(ids).logits


@pytest.mark.parametrize("is_stacked", [False, True])
def test_mixtral_keeps_its_logits(tmp_path, mixtral, is_stacked):
    from transformers import MixtralForCausalLM

    folder, ids = tmp_path / "in", torch.randint(0, 32, (3, 11))
    if is_stacked:
        folder.mkdir()
        mixtral.config.architectures = ["MixtralForCausalLM"]
        mixtral.config.save_pretrained(folder)
        save_file(
            {n: t.contiguous() for n, t in mixtral.state_dict().items()}, folder / "model.safetensors", {"format": "pt"}
        )
    else:
        mixtral.save_pretrained(folder)
    expected = logits(mixtral, ids)
    given = {"experts": 2, "gate_up": "halves" if is_stacked else None}
    merge_experts(folder, out=tmp_path / "same", **given)
    assert torch.allclose(
        logits(MixtralForCausalLM.from_pretrained(tmp_path / "same").eval(), ids), expected, atol=1e-4
    )
    merge_experts(folder, out=tmp_path / "unaligned", align=False, experts=2)
    moved = logits(MixtralForCausalLM.from_pretrained(tmp_path / "unaligned").eval(), ids)
    assert (moved - expected).abs().max() > 0.1
    merge_experts(folder, out=tmp_path / "compact", layout="compact", **given)
    with pytest.raises((RuntimeError, ValueError)):
        MixtralForCausalLM.from_pretrained(tmp_path / "compact")
    merge_experts(folder, out=tmp_path / "dominant", layout="dominant", **given)
    small = MixtralForCausalLM.from_pretrained(tmp_path / "dominant").eval()
    assert small.config.num_local_experts == 2
    assert torch.isfinite(logits(small, ids)).all()
    with pytest.raises(MismatchError, match="takes 2 experts per token, of 1 left"):
        merge_experts(folder, out=tmp_path / "no", layout="dominant", **{**given, "experts": 1})
