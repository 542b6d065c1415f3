"""Inspection of a checkpoint: by hand, against plain numpy, and the same however the work is cut."""

import importlib
import json
import math

import numpy as np
import pytest
import torch

from weightsmith.budget import Limits
from weightsmith.cli import main
from weightsmith.inspection import inspect
from weightsmith.tensor.arrays import BLOCK

COMPARING = importlib.import_module("weightsmith.distance")  # where both verbs take their limits from


def small_model(layers=3, seed=0, dtype=torch.float32):
    draw = torch.Generator().manual_seed(seed)
    shapes = {"lm_head.weight": (10, 4), "model.embed_tokens.weight": (10, 4), "model.norm.weight": (4,)}
    for i in range(layers):
        shapes |= {f"model.layers.{i}.mlp.up_proj.weight": (8, 4), f"model.layers.{i}.self_attn.q_proj.weight": (4, 4)}
    return {n: torch.randn(s, generator=draw).to(dtype) for n, s in shapes.items()}


def by_name(parts):
    return {p.name: p for p in parts}


def joined(tensors):
    return np.concatenate([t.double().numpy().reshape(-1) for t in tensors])


def assert_extent(extent, tensors):
    values = joined(tensors)
    fine = values[np.isfinite(values)]
    assert extent.elements == values.size
    assert extent.nonfinite == values.size - fine.size
    assert extent.zeros == np.count_nonzero(values == 0)
    assert extent.norm == pytest.approx(np.linalg.norm(fine), rel=1e-12)
    assert extent.max_magnitude == np.abs(fine).max()


def assert_drift(part, models, bases):
    w, b = joined(models), joined(bases)
    assert part.drift.norm_difference == pytest.approx(np.linalg.norm(w - b), rel=1e-12)
    assert part.drift.relative == pytest.approx(np.linalg.norm(w - b) / np.linalg.norm(b), rel=1e-12)
    assert part.drift.cosine == pytest.approx(w @ b / np.linalg.norm(w) / np.linalg.norm(b), rel=1e-12)
    assert part.sparsity == np.count_nonzero(w == b) / w.size


def test_figures_by_hand(tmp_path, save_model):
    base = save_model(tmp_path / "base", {"h.0.w": torch.tensor([3.0, 0.0, 0.0, 4.0])})
    model = save_model(tmp_path / "model", {"h.0.w": torch.tensor([3.0, 0.0, -12.0, 4.0])})
    found = inspect(model, base=base)
    (part,) = found.tensors
    assert (part.extent.norm, part.extent.max_magnitude, part.extent.zero_fraction) == (13.0, 12.0, 0.25)
    assert (part.drift.norm_difference, part.drift.relative, part.sparsity) == (12.0, 12 / 5, 0.75)
    assert part.drift.cosine == pytest.approx(25 / (5 * 13))
    assert found.tree.drift == part.drift
    assert inspect(model).tree.drift is None
    assert inspect(model).tree.sparsity is None


def test_layers_come_in_order_and_hold_kinds_that_hold_tensors(tmp_path, save_model):
    found = inspect(save_model(tmp_path / "model", small_model(layers=11)))
    assert [p.name for p in found.layers] == ["embedding", *(f"layer {i}" for i in range(11)), "norm", "head"]
    layer = by_name(found.layers)["layer 10"]
    assert [k.name for k in layer.parts] == ["attention", "mlp"]
    assert [t.name for t in layer.leaves()] == [
        "model.layers.10.self_attn.q_proj.weight",
        "model.layers.10.mlp.up_proj.weight",
    ]
    assert (layer.tensors, layer.parameters, layer.nbytes, layer.dtypes) == (2, 48, 192, ("F32",))
    assert [k.name for k in found.kinds] == ["embedding", "attention", "mlp", "norm", "head"]
    assert sum(k.parameters for k in found.kinds) == found.tree.parameters == 11 * 48 + 84


def test_an_encoder_and_a_decoder_are_two_stacks(tmp_path, save_model):
    names = ["decoder.block.0.layer.1.w", "encoder.block.0.layer.0.w", "encoder.block.1.layer.0.w", "shared.weight"]
    found = inspect(save_model(tmp_path / "model", {n: torch.ones(1) for n in names}))
    assert [p.name for p in found.layers] == ["embedding", "decoder.block 0", "encoder.block 0", "encoder.block 1"]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_figures_against_numpy(tmp_path, save_model, dtype):
    base, noise = small_model(dtype=dtype), small_model(seed=1)
    model = {n: (t + 0.02 * noise[n] * (noise[n] > 0)).to(dtype) for n, t in base.items()}
    model["model.norm.weight"][1] = 0
    found = inspect(save_model(tmp_path / "model", model), base=save_model(tmp_path / "base", base))
    assert len(found.tensors) == len(model)
    for part in (found.tree, *found.layers, *found.kinds, *found.tensors):
        names = [t.name for t in part.leaves()] or [n for n in model if part.name in kinds_of(n)]
        assert_extent(part.extent, [model[n] for n in names])
        assert_drift(part, [model[n] for n in names], [base[n] for n in names])


def kinds_of(name):
    """Return the kind of a tensor of `small_model`, written out."""
    parts = {"lm_head": "head", "embed": "embedding", "norm": "norm", "mlp": "mlp", "attn": "attention"}
    return [kind for part, kind in parts.items() if part in name]


def test_nan_is_counted_and_left_out(tmp_path, save_model):
    spoiled = {"w": torch.tensor([math.nan, 3.0, math.inf, -4.0, 0.0])}
    base = {"w": torch.tensor([1.0, 3.0, 1.0, math.nan, 1.0])}
    found = inspect(save_model(tmp_path / "a", spoiled), base=save_model(tmp_path / "b", base))
    assert_extent(found.tree.extent, spoiled.values())
    assert (found.tree.drift.finite, found.tree.drift.norm_difference, found.tree.sparsity) == (2, 1.0, 0.5)
    assert json.dumps(found.summary(), allow_nan=False)


def test_tensors_that_are_not_numbers_are_listed_without_figures(tmp_path, save_model):
    tensors = {"position_ids": torch.arange(4), "transformer.w.weight": torch.ones(2).to(torch.float8_e4m3fn)}
    found = inspect(save_model(tmp_path / "model", tensors))
    assert all(p.extent is None for p in (found.tree, *found.tensors))
    assert (found.tree.parameters, found.tree.nbytes, found.tree.dtypes) == (6, 34, ("F8_E4M3", "I64"))


def test_what_cannot_be_compared_with_the_base_is_named(tmp_path, save_model):
    model = {"w": torch.ones(2), "shape": torch.ones(2), "int": torch.ones(2).int(), "new": torch.ones(2)}
    base = {"w": torch.zeros(2), "shape": torch.ones(3), "int": torch.ones(2).int(), "old": torch.ones(2)}
    found = inspect(save_model(tmp_path / "model", model), base=save_model(tmp_path / "base", base))
    assert found.not_compared == {
        "shape": "shape (2,), in the base (3,)",
        "int": "I32 is not computed with",
        "new": "not in the base",
    }
    assert found.only_base == ("old",)
    assert found.tree.drift.elements == 2
    assert found.tree.drift.relative == math.inf


def test_empty_tensors_and_models_of_other_dtypes(tmp_path, save_model):
    model = {"none": torch.zeros(0, 3), "w": torch.ones(2).bfloat16()}
    base = {"none": torch.zeros(0, 3), "w": torch.ones(2).double()}
    found = inspect(save_model(tmp_path / "model", model), base=save_model(tmp_path / "base", base))
    empty = by_name(found.tensors)["none"]
    assert (empty.extent.norm, empty.extent.zero_fraction, empty.drift.relative, empty.sparsity) == (0.0, 0.0, 0.0, 1.0)
    assert found.tree.sparsity == 1.0


def test_the_result_does_not_depend_on_tiles_or_threads(tmp_path, save_model, monkeypatch):
    draw = torch.Generator().manual_seed(1)
    model = {f"h.{i}.w": torch.randn(n, generator=draw) for i, n in enumerate((5, 3 * BLOCK, 70_001, 200_000))}
    base = {n: t + 1e-3 * torch.randn(t.shape, generator=draw) for n, t in model.items() if n != "h.1.w"}
    references = save_model(tmp_path / "model", model), save_model(tmp_path / "base", base)
    found = []
    for tile, threads in ((BLOCK, 1), (BLOCK, 2), (131_072, 3)):
        limits = Limits(tile, 4 * tile, 2 * threads + 2, threads, 1, 0)
        monkeypatch.setattr(COMPARING, "choose_limits", lambda *_, limits=limits: limits)
        found.append(inspect(references[0], base=references[1]))
    assert all(f == found[0] for f in found)
    for part in found[0].tensors:
        assert_extent(part.extent, [model[part.name]])


def test_config_and_notes(tmp_path, save_model):
    folder = save_model(tmp_path / "model", {"model.embed_tokens.weight": torch.ones(2, 2)})
    config = {"architectures": ["Some"], "model_type": "some", "hidden_size": 2, "tie_word_embeddings": True}
    odd = {"vocab_size": {"a": 1}, "dtype": math.nan, "unlisted": 1}
    (folder / "config.json").write_text(json.dumps(config | odd))
    found = inspect(folder)
    assert found.config == config
    assert found.files == 1
    assert any("ties it to" in note for note in found.notes)


def test_command_shows_layers_and_drift(tmp_path, save_model, capsys):
    base = small_model()
    model = {n: t + ("layers.1" in n) * 0.1 for n, t in base.items()}
    folders = save_model(tmp_path / "model", model), save_model(tmp_path / "base", base)
    assert main(["inspect", str(folders[0]), "--base", str(folders[1])]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "228 parameters in 9 tensors, 912 B in 1 file, F32" in lines[0]
    assert "drift" in lines[1]
    assert next(line for line in lines if line.startswith("layer 1")).count("█") == 16
    assert next(line for line in lines if line.startswith("layer 2")).count("█") == 0
    assert not any("q_proj" in line for line in lines)


def test_command_shows_the_whole_tree(tmp_path, save_model, capsys):
    model = small_model(layers=1) | {"model.layers.0.\x1b[2J": torch.ones(1)}
    assert main(["inspect", str(save_model(tmp_path / "model", model)), "--tensors"]) == 0
    lines = capsys.readouterr().out.splitlines()
    at = next(i for i, line in enumerate(lines) if line.startswith("layer 0"))
    assert [line.split("  F32")[0].rstrip() for line in lines[at + 1 : at + 5]] == [
        "  attention",
        "    model.layers.0.self_attn.q_proj.weight [4, 4]",
        "  mlp",
        "    model.layers.0.mlp.up_proj.weight [8, 4]",
    ]
    assert not any("\x1b" in line for line in lines)
    assert sum("embed" in line for line in lines) == 3  # the part, its tensor, and the kind below


def test_command_prints_one_json_document(tmp_path, save_model, capsys):
    folders = [save_model(tmp_path / n, small_model(seed=i)) for i, n in enumerate(("model", "base"))]
    assert main(["inspect", str(folders[0]), "--base", str(folders[1]), "--json"]) == 0
    found = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    assert found == inspect(folders[0], base=folders[1]).summary()
    assert found["layers"][1]["kinds"][0]["name"] == "attention"
    assert len(found["tensors"]) == 9
    assert {"norm", "zero_fraction", "relative_drift", "sparsity", "cosine"} <= found["tensors"][0].keys()


def test_command_on_nothing(tmp_path, capsys):
    assert main(["inspect", str(tmp_path / "nothing")]) == 2
    assert "does not exist" in capsys.readouterr().err
