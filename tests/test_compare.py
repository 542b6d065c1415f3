"""Comparison of checkpoints: by hand, against plain numpy, and the same however the work is cut."""

import importlib
import json
import math

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from weightsmith.budget import Limits
from weightsmith.cli import main
from weightsmith.compare import Distance, compare
from weightsmith.errors import ArgumentError, CheckpointError
from weightsmith.plan import Options
from weightsmith.tensor.arrays import BLOCK

COMPARING = importlib.import_module("weightsmith.distance")  # `weightsmith.compare` may be the function
NUMBERS = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


@pytest.fixture
def pair(tmp_path, save_model):
    """`pair(a, b)` writes two mappings of tensors as models; returns their folders."""

    def write(a, b):
        return save_model(tmp_path / "a", a), save_model(tmp_path / "b", b)

    return write


def only_row(comparison):
    (row,) = comparison.rows
    return row


def expected_figures(a, b):
    """Return what two tensors should give, by plain numpy in float64."""
    x, y = (np.concatenate([t.double().numpy().reshape(-1) for t in side]) for side in (a, b))
    fine = np.isfinite(x) & np.isfinite(y)
    x, y = x[fine], y[fine]
    return {
        "max_difference": np.abs(x - y).max(),
        "mean_difference": np.abs(x - y).mean(),
        "norm_a": np.linalg.norm(x),
        "norm_b": np.linalg.norm(y),
        "norm_difference": np.linalg.norm(x - y),
        "relative": np.linalg.norm(x - y) / np.linalg.norm(x),
        "cosine": x @ y / (np.linalg.norm(x) * np.linalg.norm(y)),
    }


def assert_figures(distance, a, b):
    for name, value in expected_figures(a, b).items():
        assert getattr(distance, name) == pytest.approx(value, rel=1e-12), name


def test_figures_by_hand(pair):
    a, b = pair({"w": torch.tensor([1.0, 2.0, 3.0, 4.0])}, {"w": torch.tensor([1.0, 2.0, 3.0, 8.0])})
    found = compare(a, b)
    d = only_row(found).distance
    assert found.differs
    assert (d.elements, d.differing, d.equal, d.finite) == (4, 1, 3, 4)
    assert (d.max_difference, d.mean_difference, d.norm_difference) == (4.0, 1.0, 4.0)
    assert d.norm_a == pytest.approx(math.sqrt(30))
    assert d.norm_b == pytest.approx(math.sqrt(78))
    assert d.relative == pytest.approx(4 / math.sqrt(30))
    assert d.cosine == pytest.approx(46 / math.sqrt(30 * 78))
    assert found.total == d


def test_a_zero_tensor_has_no_cosine_and_an_infinite_relative_difference(pair):
    a, b = pair({"w": torch.zeros(3)}, {"w": torch.ones(3)})
    d = only_row(compare(a, b)).distance
    assert d.cosine is None
    assert d.relative == math.inf
    assert d.summary()["relative"] is None
    assert only_row(compare(a, a)).distance.relative == 0.0


@pytest.mark.parametrize("dtype_b", NUMBERS)
@pytest.mark.parametrize("dtype_a", NUMBERS)
def test_figures_against_numpy(pair, dtype_a, dtype_b):
    draw = torch.Generator().manual_seed(0)
    a, b = {}, {}
    for shape in ((1,), (3,), (), (BLOCK - 1,), (BLOCK + 1,), (50, 1000)):
        x = torch.randn(shape, generator=draw)
        a[f"w{shape}"], b[f"w{shape}"] = x.to(dtype_a), (x + 0.01 * torch.randn(shape, generator=draw)).to(dtype_b)
    found = compare(*pair(a, b))
    assert len(found.rows) == len(a)
    for row in found.rows:
        assert_figures(row.distance, [a[row.name]], [b[row.name]])
        widened = a[row.name].double() != b[row.name].double()
        assert row.distance.differing == int(widened.sum())
        assert row.has_other_dtype == (dtype_a != dtype_b)
    assert_figures(found.total, list(a.values()), list(b.values()))


@pytest.mark.parametrize("dtype", [*NUMBERS, torch.int64, torch.bool, torch.float8_e4m3fn])
def test_equal_bytes_are_identical(pair, dtype):
    tensors = {
        "weight": torch.arange(5000).remainder(7).to(dtype),
        "without_elements": torch.zeros((0, 3), dtype=dtype),
    }
    found = compare(*pair(tensors, tensors))
    assert not found.differs
    assert all(r.is_identical for r in found.rows)
    assert found.verdict() == "identical: 2 tensors"


@pytest.mark.parametrize("dtype", NUMBERS)
def test_nan_of_the_same_bits_is_equal(pair, dtype):
    spoiled = torch.tensor([1.0, math.nan, math.inf, -math.inf, 2.0]).to(dtype)
    a, b = pair({"w": spoiled}, {"w": spoiled})
    d = only_row(compare(a, b)).distance
    assert d == Distance(5, 0, 2, 2, 3, 3, 0.0, (0.0, 0.0, 5.0, 5.0, 5.0))
    assert not compare(a, b).differs


def test_nan_elsewhere_is_counted_and_left_out_of_the_figures(pair):
    a = torch.tensor([1.0, math.nan, 3.0, math.inf, 5.0])
    b = torch.tensor([1.0, 2.0, math.nan, -math.inf, 6.0])
    d = only_row(compare(*pair({"w": a}, {"w": b}))).distance
    assert (d.differing, d.equal, d.finite, d.nonfinite_a, d.nonfinite_b) == (4, 1, 2, 2, 2)
    assert_figures(d, [a], [b])


def test_zeros_of_another_sign_differ_by_nothing(pair):
    d = only_row(compare(*pair({"w": torch.zeros(2)}, {"w": torch.tensor([0.0, -0.0])}))).distance
    assert (d.differing, d.equal, d.max_difference, d.norm_difference) == (1, 2, 0.0, 0.0)


def test_numbers_near_the_end_of_float64_do_not_stop_it(pair):
    huge = torch.full((BLOCK + 1,), 1.5e308, dtype=torch.float64)
    sign = torch.where(torch.arange(BLOCK + 1) % 2 == 0, 1.0, -1.0)
    found = compare(*pair({"w": huge}, {"w": huge * sign}))
    assert found.differs
    assert json.dumps(found.summary(), allow_nan=False)


@pytest.mark.parametrize(
    ("dtype", "changed", "expected"),
    [(torch.int64, 2 + 256, 2), (torch.uint8, 9, 1), (torch.bool, 1, 1), (torch.float8_e5m2, 64.0, 1)],
)
def test_other_dtypes_are_compared_byte_for_byte(pair, dtype, changed, expected):
    a = torch.zeros(importlib.import_module("weightsmith.compare").COPIED_BYTES // dtype.itemsize + 3, dtype=dtype)
    b = a.clone()
    b[-1] = changed
    row = only_row(compare(*pair({"w": a}, {"w": b})))
    assert row.distance is None
    assert row.differing_bytes == expected
    assert not row.is_identical


def test_names_shapes_and_dtypes(pair):
    a = {"a": torch.ones(2), "shape": torch.ones(2, 3), "dtype": torch.ones(2), "int": torch.ones(2).int()}
    b = {"b": torch.ones(2), "shape": torch.ones(3, 2), "dtype": torch.ones(2).bfloat16(), "int": torch.ones(2)}
    found = compare(*pair(a, b))
    rows = {r.name: r for r in found.rows}
    assert (found.only_a, found.only_b) == (("a",), ("b",))
    assert rows["shape"].has_other_shape
    assert rows["shape"].distance is None
    assert rows["dtype"].dtypes == ("F32", "BF16")
    assert rows["dtype"].distance.differing == 0
    assert rows["int"].has_other_dtype
    assert rows["int"].distance is None
    assert rows["int"].differing_bytes is None
    assert found.verdict() == (
        "different: 1 of 3 common tensors in shape, 2 of 3 common tensors in dtype, 1 only in A, 1 only in B"
    )


@pytest.mark.parametrize(("a", "b"), [("x", "xy"), ("xy", "x"), ("x", "y")])
def test_other_names_alone_are_a_difference(pair, a, b):
    assert compare(*pair({n: torch.ones(1) for n in a}, {n: torch.ones(1) for n in b})).differs


def test_the_result_does_not_depend_on_tiles_or_threads(pair, monkeypatch):
    draw = torch.Generator().manual_seed(1)
    a = {f"w{i}": torch.randn(n, generator=draw) * 10 ** (i - 2) for i, n in enumerate((5, 3 * BLOCK, 70_001, 200_000))}
    b = {n: t + 1e-3 * torch.randn(t.shape, generator=draw) for n, t in a.items()}
    references = pair({**a, "i": torch.arange(9)}, {**b, "i": torch.arange(9)})
    monkeypatch.setattr(COMPARING, "HELD_BLOCKS", 3)  # so that sums are also added up piece by piece
    found = []
    for tile, threads in ((BLOCK, 1), (BLOCK, 2), (8 * BLOCK, 2), (131_072, 3)):
        limits = Limits(tile, 4 * tile, 2 * threads + 2, threads, 1, 0)
        monkeypatch.setattr(COMPARING, "choose_limits", lambda *_, limits=limits: limits)
        found.append(compare(*references))
    assert all(f == found[0] for f in found)
    for row in found[0].rows[1:]:
        assert_figures(row.distance, [a[row.name]], [b[row.name]])


def test_an_adapter_is_compared_as_what_it_makes_of_its_base(tmp_path, save_model):
    draw = torch.Generator().manual_seed(2)
    weight, bias = torch.randn(6, 4, generator=draw), torch.randn(6, generator=draw)
    up, down = torch.randn(6, 2, generator=draw), torch.randn(2, 4, generator=draw)
    base = save_model(tmp_path / "base", {"model.layers.0.q_proj.weight": weight, "model.layers.0.q_proj.bias": bias})
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    prefix = "base_model.model.model.layers.0.q_proj"
    save_file({f"{prefix}.lora_A.weight": down, f"{prefix}.lora_B.weight": up}, adapter / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 3, "target_modules": ["q_proj"]}
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    rows = {r.name: r for r in compare(base, f"{base}+{adapter}").rows}
    assert rows["model.layers.0.q_proj.bias"].is_identical
    d = rows["model.layers.0.q_proj.weight"].distance
    assert d.norm_difference == pytest.approx(float((1.5 * up @ down).norm()), rel=1e-5)
    assert d.norm_b == pytest.approx(float((weight + 1.5 * up @ down).norm()), rel=1e-6)


def test_a_name_that_shares_storage_counts_as_stored(tmp_path, save_model):
    shared = torch.arange(32.0).reshape(8, 4)
    torch.save({"embed.weight": shared, "head.weight": shared}, tmp_path / "shared.bin")
    whole = save_model(tmp_path / "whole", {"embed.weight": shared, "head.weight": shared.clone()})
    changed = save_model(tmp_path / "changed", {"embed.weight": shared, "head.weight": shared + 1})
    assert not compare(tmp_path / "shared.bin", whole).differs
    assert not compare(whole, tmp_path / "shared.bin").differs
    assert [r.name for r in compare(tmp_path / "shared.bin", changed).rows if not r.is_identical] == ["head.weight"]


def test_a_tied_head_that_is_not_stored_is_told(pair):
    embedding = torch.ones(3, 2)
    a, b = pair(
        {"model.embed_tokens.weight": embedding},
        {"model.embed_tokens.weight": embedding, "lm_head.weight": embedding.clone()},
    )
    (a / "config.json").write_text('{"tie_word_embeddings": true}')
    found = compare(a, b)
    assert found.only_b == ("lm_head.weight",)
    assert any("ties it to 'model.embed_tokens.weight'" in note for note in found.notes)


def test_progress_ends_at_the_bytes_of_both(pair):
    told = []
    a = {"w": torch.ones(300_000).bfloat16(), "i": torch.arange(3)}
    compare(*pair(a, a), progress=lambda *args: told.append(args))
    assert told[-1] == ("compare", 2 * (600_000 + 24), 2 * (600_000 + 24))
    assert [done for _, done, _ in told] == sorted(done for _, done, _ in told)


def test_a_file_that_changes_meanwhile_is_refused(pair):
    a, b = pair({"w": torch.ones(3)}, {"w": torch.ones(3)})

    def spoil(*_):
        with (b / "model.safetensors").open("r+b") as file:
            file.seek(-1, 2)
            file.write(b"\x01")

    with pytest.raises(CheckpointError, match="changed while they were read"):
        compare(a, b, progress=spoil)


def test_a_reference_to_nothing_is_refused(tmp_path, save_model):
    with pytest.raises(ArgumentError, match="does not exist"):
        compare(save_model(tmp_path / "a", {"w": torch.ones(1)}), tmp_path / "b")


def test_command_of_identical_models(pair, capsys):
    a, b = pair({"w": torch.ones(2)}, {"w": torch.ones(2)})
    assert main(["compare", str(a), str(b)]) == 0
    assert capsys.readouterr().out == "identical: 1 tensors\n"


def test_command_lists_the_largest_relative_difference_first(pair, capsys):
    a = {"small": torch.ones(4), "large": torch.ones(4), "same": torch.ones(4), "ids": torch.arange(3)}
    b = {"small": torch.ones(4) + 0.001, "large": torch.ones(4) + 1, "same": torch.ones(4), "ids": torch.arange(3) + 1}
    folders = [str(f) for f in pair({**a, "shape": torch.ones(1)}, {**b, "shape": torch.ones(2)})]
    assert main(["compare", *folders]) == 1
    lines = capsys.readouterr().out.splitlines()
    table = lines[next(i for i, line in enumerate(lines) if line.startswith("tensor ")) + 1 :]
    assert lines[0].startswith("different: 3 of 5 common tensors in values")
    assert [line.split()[0] for line in table] == ["shape", "large", "small", "ids"]
    assert main(["compare", *folders, "--top", "2"]) == 1
    assert capsys.readouterr().out.splitlines()[-1] == "... and 2 more; --top 4 shows all"


def test_command_escapes_names(pair, capsys):
    assert main(["compare", *map(str, pair({"a\x1b[31m": torch.ones(1)}, {"b": torch.ones(1)}))]) == 1
    out = capsys.readouterr().out
    assert "\x1b" not in out
    assert "only in A: a\\x1b[31m" in out


def test_command_prints_one_json_document(pair, capsys):
    a, b = pair(
        {"w": torch.tensor([0.0, math.nan]), "n": torch.ones(1)}, {"w": torch.tensor([1.0, 1.0]), "m": torch.ones(1)}
    )
    assert main(["compare", str(a), str(b), "--json", "--threads", "1"]) == 1
    found = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    assert found["differs"]
    assert (found["only_a"], found["only_b"]) == (["n"], ["m"])
    assert found["tensors"][0]["relative"] is None
    assert found["tensors"][0]["nonfinite_a"] == 1
    assert found == compare(a, b).summary()


def test_command_refuses_a_budget_too_small(pair, capsys):
    folders = map(str, pair({"w": torch.ones(1)}, {"w": torch.ones(1)}))
    assert main(["compare", *folders, "--memory", "1MB"]) == 4
    assert "--memory is too small" in capsys.readouterr().err


def test_options_change_nothing(pair):
    a, b = pair({"w": torch.arange(100_000.0).sin()}, {"w": torch.arange(100_000.0).cos()})
    assert compare(a, b, options=Options(threads=1)) == compare(a, b, options=Options(threads=2, memory_bytes=10**9))
