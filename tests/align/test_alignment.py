"""Weight matching: the card's invariants, toy M, and the command."""

import itertools
import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from weightsmith import align, merge, verify, write_groups
from weightsmith.align.groups import Groups, Member, parse_groups
from weightsmith.errors import ArgumentError, MismatchError, NonFiniteError
from weightsmith.plan import Options
from weightsmith.tensor.permute import UnitAxis, permuted


def perceptron(width=24):
    return nn.Sequential(nn.Linear(8, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 5))


def shuffled(tensors, groups, seed=0):
    rng = np.random.default_rng(seed)
    made = {n: t.clone() for n, t in tensors.items()}
    for members in groups.members.values():
        first = members[0]
        order = rng.permutation(made[first.tensor].shape[first.axis] // (first.block * first.repeat))
        for m in members:
            words = made[m.tensor].view({2: torch.int16, 4: torch.int32}[made[m.tensor].element_size()]).numpy()
            moved = torch.from_numpy(permuted(words, UnitAxis(m.axis, m.repeat, m.block), order))
            made[m.tensor] = moved.view(made[m.tensor].dtype)
    return made


def inner(first, second):
    return sum(float((first[n].double() * second[n].double()).sum()) for n in first)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_shuffled_copy_is_recovered_exactly(tmp_path, nets, save_model, dtype):
    (module, _), _, groups = nets(perceptron, torch.randn(2, 8))
    tensors = {n: t.to(dtype) for n, t in module.state_dict().items()}
    a, b = save_model(tmp_path / "x", tensors), save_model(tmp_path / "y", shuffled(tensors, groups))
    found = align(a, b, groups=groups, out=tmp_path / "out", singular_values=True)
    back = load_file(tmp_path / "out" / "model.safetensors")
    assert all(torch.equal(back[n], t) for n, t in tensors.items())
    assert found.before.norm_difference > 1
    assert found.after.norm_difference == 0
    assert all(g.cosine_after == pytest.approx(1) and g.moved > 0.5 for g in found.groups)
    assert found.singular_deviation < 1e-12


def test_the_function_and_the_singular_values_stay(tmp_path, nets):
    (_, module), (a, b), groups = nets(perceptron, torch.randn(2, 8))
    found = align(a, b, groups=groups, out=tmp_path / "out", singular_values=True)
    assert found.after.norm_difference < 0.95 * found.before.norm_difference
    moved = perceptron()
    moved.load_state_dict(load_file(tmp_path / "out" / "model.safetensors"))
    x = torch.randn(50, 8)
    assert torch.allclose(moved(x), module(x), atol=1e-5)
    old, new = module.state_dict(), moved.state_dict()
    for name in ("0.weight", "2.weight", "4.weight"):
        assert not torch.equal(old[name], new[name])
        values = [torch.linalg.svdvals(t[name].double()) for t in (old, new)]
        assert torch.allclose(*values, rtol=1e-12)
    assert found.singular_deviation < 1e-12
    distance = sum(float((load_file(a / "model.safetensors")[n].double() - t).square().sum()) for n, t in new.items())
    assert found.after.norm_difference == pytest.approx(distance**0.5)


def test_the_objective_never_falls_from_sweep_to_sweep(tmp_path, nets):
    (first, _), (a, b), groups = nets(lambda: perceptron(40), torch.randn(2, 8))
    reference = first.state_dict()
    values = [inner(reference, load_file(b / "model.safetensors"))]
    for sweeps in range(1, 6):
        out = tmp_path / f"out{sweeps}"
        found = align(a, b, groups=groups, out=out, max_sweeps=sweeps, seed=3)
        assert found.sweeps <= sweeps
        values.append(inner(reference, load_file(out / "model.safetensors")))
    assert all(y >= x - 1e-9 for x, y in itertools.pairwise(values))
    assert values[1] > values[0] + 1
    done = align(a, b, groups=groups, out=tmp_path / "end", seed=3)
    again = align(a, tmp_path / "end", groups=groups, out=tmp_path / "again", seed=4)
    assert done.sweeps < 100
    assert all(g.moved == 0 for g in again.groups)  # a local optimum in every group


def test_a_group_on_both_axes_never_makes_it_worse(tmp_path, save_model):
    """Square matrices on one stream: the assignment is only a guess, so the true product decides."""
    rng = torch.Generator().manual_seed(0)
    groups = parse_groups("groups: {s: [{tensor: w, axis: 0}, {tensor: w, axis: 1}]}")
    for trial in range(12):
        a, b = ({"w": torch.randn(7, 7, generator=rng)} for _ in range(2))
        folders = [save_model(tmp_path / f"{n}{trial}", t) for n, t in (("a", a), ("b", b))]
        out = tmp_path / f"out{trial}"
        align(*folders, groups=groups, out=out, seed=trial)
        assert inner(a, load_file(out / "model.safetensors")) >= inner(a, b) - 1e-12


def test_heads_move_as_blocks(tmp_path, save_model):
    """Two heads of three rows; the rows inside a head would fit better in another order, yet stay."""
    w = torch.arange(12.0).reshape(6, 2) ** 2
    other = torch.cat([w[3:].flip(0), w[:3].flip(0)])
    a, b = save_model(tmp_path / "a", {"w": w}), save_model(tmp_path / "b", {"w": other})
    blocks = Groups({"heads": (Member("w", 0, block=3),)})
    found = align(a, b, groups=blocks, out=tmp_path / "out")
    assert found.orders["heads"].tolist() == [1, 0]
    assert torch.equal(load_file(tmp_path / "out" / "model.safetensors")["w"], torch.cat([other[3:], other[:3]]))
    assert align(a, b, groups=Groups({"rows": (Member("w", 0),)}), out=tmp_path / "rows").after.norm_difference == 0


def test_same_bytes_for_any_number_of_threads(tmp_path, nets, content):
    _, (a, b), groups = nets(lambda: perceptron(64), torch.randn(2, 8))
    for threads in (1, 3):
        align(a, b, groups=groups, out=tmp_path / f"{threads}", options=Options(threads=threads))
    one, three = (content(tmp_path / n)["model.safetensors"] for n in ("1", "3"))
    assert one == three


@pytest.fixture(scope="module")
def toy(tmp_path_factory, write_model):
    """Toy M: two perceptrons trained on clean digits from different seeds, and the loss on the test digits."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    order = np.random.default_rng(0).permutation(len(digits.target))
    x, y = torch.tensor(digits.data[order] / 16, dtype=torch.float32), torch.tensor(digits.target[order])
    folder = tmp_path_factory.mktemp("toy")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    for seed in range(2):
        torch.manual_seed(seed)
        net = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 10))
        for layer in net[::2]:
            nn.init.kaiming_normal_(layer.weight)
            nn.init.zeros_(layer.bias)
        steps = torch.optim.Adam(net.parameters(), lr=1e-3)
        for _ in range(15):
            for rows in torch.randperm(1200).split(32):
                loss = nn.functional.cross_entropy(net(x[rows]), y[rows])
                steps.zero_grad()
                loss.backward()
                steps.step()
        write_model(folder / f"{seed}", {n: t.detach().clone() for n, t in net.state_dict().items()})
    torch.set_num_threads(threads)

    def loss_of(weights):
        net.load_state_dict({n: torch.from_numpy(w) for n, w in weights.items()})
        with torch.no_grad():
            return nn.functional.cross_entropy(net(x[1450:]), y[1450:]).item()

    return (
        folder,
        loss_of,
        Groups(
            {
                "0": (Member("0.weight", 0), Member("0.bias", 0), Member("2.weight", 1)),
                "2": (Member("2.weight", 0), Member("2.bias", 0), Member("4.weight", 1)),
            }
        ),
    )


def test_the_barrier_of_toy_m_falls(toy, tmp_path):
    folder, loss, groups = toy
    found = align(folder / "0", folder / "1", groups=groups, out=tmp_path / "out", loss=loss)
    assert found.barrier_before.height > 0.4
    assert found.barrier_after.height < 0.5 * found.barrier_before.height
    share = found.after.norm_difference / found.before.norm_difference
    assert 0.8 < share < 0.95  # the distance hardly falls
    merged = merge("linear", models=[folder / "0", tmp_path / "out"], out=tmp_path / "merged")
    middle = loss({n: t.numpy() for n, t in load_file(merged.out / "model.safetensors").items()})
    assert middle == pytest.approx(found.barrier_after.losses[12], rel=1e-4)
    assert found.barrier_after.losses[-1] == pytest.approx(found.barrier_before.losses[-1], rel=1e-5)


def test_the_record_and_what_verify_says(tmp_path, nets):
    _, (a, b), groups = nets(perceptron, torch.randn(2, 8))
    (b / "config.json").write_text('{"model_type": "x"}')
    found = align(a, b, groups=groups, out=tmp_path / "out")
    record = json.loads((tmp_path / "out" / "edit.json").read_text())
    assert record == found.record
    assert record["edit"] == "align"
    assert [int(n) for n in record["permutations"]["0"].split()] == found.orders["0"].tolist()
    assert record["tensors"]["merged"] == 5
    assert record["tensors"]["copied"] == [{"name": "4.bias", "reason": "in no group"}]
    assert (tmp_path / "out" / "config.json").read_text() == '{"model_type": "x"}'
    checked = verify(tmp_path / "out")
    assert checked.is_sound
    assert "only merges are" in checked.skipped[0]


def test_an_adapter_is_added_before_its_rows_move(tmp_path, save_model, save_raw):
    rng = np.random.default_rng(0)
    w, other, down, up = (rng.normal(size=s).astype(np.float32) for s in ((6, 4), (6, 4), (2, 4), (6, 2)))
    a = save_model(tmp_path / "a", {"l.weight": torch.from_numpy(other)})
    b = save_model(tmp_path / "b", {"l.weight": torch.from_numpy(w)})
    names = {"lora_A": down, "lora_B": up}
    raw = {f"base_model.model.l.{n}.weight": ("F32", x.shape, x.tobytes()) for n, x in names.items()}
    save_raw(tmp_path / "ad" / "adapter_model.safetensors", raw)
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["l"]}
    (tmp_path / "ad" / "adapter_config.json").write_text(json.dumps(config))
    groups = Groups({"rows": (Member("l.weight", 0),)})
    found = align(a, f"{b}+{tmp_path / 'ad'}", groups=groups, out=tmp_path / "out")
    moved = load_file(tmp_path / "out" / "model.safetensors")["l.weight"].numpy()
    assert np.allclose(moved, (w + 2 * up @ down)[found.orders["rows"]], atol=1e-5)


def test_what_does_not_fit_is_told_at_once_and_nothing_is_written(tmp_path, save_model):
    a = save_model(tmp_path / "a", {"w": torch.zeros(4, 2), "n": torch.zeros(4, dtype=torch.int32)})
    b = save_model(tmp_path / "b", {"w": torch.zeros(3, 2), "v": torch.zeros(3), "n": torch.zeros(3)})
    groups = parse_groups("groups: {g: [{tensor: '[wvn]', axis: 0}]}")
    with pytest.raises(MismatchError) as caught:
        align(a, b, groups=groups, out=tmp_path / "out")
    for told in ("no tensor 'v'", "F32 (4, 2) in the reference and F32 (3, 2)", "I32 (4,) in the reference"):
        assert told in str(caught.value)
    c = save_model(tmp_path / "c", {"w": torch.full((4, 2), float("nan"))})
    with pytest.raises(NonFiniteError, match="'w'"):
        align(a, c, groups=parse_groups("groups: {g: [{tensor: w, axis: 0}]}"), out=tmp_path / "out")
    for wrong in ({"seed": -1}, {"max_sweeps": 0}):
        with pytest.raises(ArgumentError, match="at least"):
            align(a, a, groups=groups, out=tmp_path / "out", **wrong)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "b", "c"]


def test_without_scipy_the_extra_is_named(tmp_path, save_model, monkeypatch, command):
    import sys

    monkeypatch.setitem(sys.modules, "scipy.optimize", None)
    a = save_model(tmp_path / "a", {"w": torch.randn(4, 2)})
    b = save_model(tmp_path / "b", {"w": torch.randn(4, 2)})
    write_groups(parse_groups("groups: {g: [{tensor: w, axis: 0}]}"), tmp_path / "g.yaml")
    ran = command("align", a, b, "--groups", tmp_path / "g.yaml", "--out", tmp_path / "out")
    assert ran.code == 4
    assert "pip install 'weightsmith[align]'" in ran.err
    assert not (tmp_path / "out").exists()


def test_the_command(tmp_path, nets, command, save_model):
    _, (a, b), groups = nets(perceptron, torch.randn(2, 8))
    torch.manual_seed(7)
    c = save_model(tmp_path / "c", perceptron().state_dict())
    write_groups(groups, tmp_path / "g.yaml")
    words = [
        "align",
        a,
        b,
        c,
        "--groups",
        tmp_path / "g.yaml",
        "--out",
        tmp_path / "x",
        "--out",
        tmp_path / "y",
        "--quiet",
    ]
    ran = command(*words, "--dry-run", "--json")
    assert [p["groups"]["0"]["units"] for p in json.loads(ran.out)] == [24, 24]
    assert not (tmp_path / "x").exists()
    ran = command(*words)
    assert (ran.code, ran.err) == (0, "")
    assert ran.out.count("2 groups matched") == 2
    assert command(*words).code == 2  # both are there
    ran = command(*words, "--force", "--json")
    assert [round(p["groups"]["2"]["moved"], 9) > 0.5 for p in json.loads(ran.out)] == [True, True]
    assert command(*words[:-2]).code == 2  # one --out too few
    assert command(*words[:-1][:-1], tmp_path / "x").code == 2  # the same twice
