"""Verification: sound right after every kind of merge, and never sound after any change of a file."""

from __future__ import annotations

import json
import os
import random
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from weightsmith import Options, merge, verify
from weightsmith.errors import ArgumentError, CheckpointError
from weightsmith.plan.headers import find_method
from weightsmith.recipe import Rule, Schedule

WIDE = {
    "model.embed_tokens.weight": (70, 1000),
    "model.layers.0.mlp.up_proj.weight": (200_000,),
    "model.layers.1.mlp.up_proj.weight": (41, 103),
    "model.layers.2.mlp.up_proj.weight": (300, 7),
    "model.layers.2.scalar": (),
    "model.norm.weight": (513,),
}

SETTINGS = [
    ("ties", {"scope": "model"}),
    ("ties", {"scope": "tensor", "merge": "max"}),
    ("breadcrumbs", {"scope": "tensor"}),
    ("breadcrumbs_ties", {"scope": "row"}),
    ("slerp", {"t": 0.3}),
    ("dare", {"density": 0.3, "seed": 3}),
    ("dare_ties", {"density": 0.6}),
    ("lines", {"beta": 0.7}),
    ("lines", {"merged": "ties"}),
    ("linear", {"coefficients": (0.2, 0.5, 0.3)}),
    ("task_arithmetic", {"lambda_": Schedule((Rule("*.mlp.*", (0.1, 0.9)), Rule("*", (0.3,))))}),
    ("wise_ft", {}),
    ("tall_masks", {"task": 2}),
    ("consensus", {}),
    ("emr", {"task": 2}),
    ("pcb", {"scope": "tensor"}),
    ("karcher", {}),
    ("della", {}),
    ("sce", {"select_topk": 0.5}),
    ("arcee_fusion", {}),
    ("nuslerp_columns", {}),
    ("tsv_m", {}),
    ("iso_cts", {}),
    ("knots", {}),
    ("wudi", {"solver": "closed"}),
    ("delta_svd", {"rank": 3}),
]


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    """A base and two models with tensors above and below a tile, in one file each."""
    from safetensors.numpy import save_file

    root = tmp_path_factory.mktemp("wide")
    rng = np.random.default_rng(0)
    base = {n: rng.standard_normal(s).astype("float32") for n, s in WIDE.items()}
    folders = []
    for i in range(3):
        arrays = {n: np.asarray(a + i * 0.03 * rng.standard_normal(a.shape), "float32") for n, a in base.items()}
        (root / f"m{i}").mkdir()
        save_file({**arrays, "steps": np.arange(5) + i}, root / f"m{i}" / "model.safetensors")
        folders.append(root / f"m{i}")
    return folders


def made(method, folders, out, **given):
    chosen = find_method(method)
    base, models = (folders[0], folders[1:]) if chosen.has_base else (None, folders)
    return merge(method, base=base, models=models[: chosen.most], out=out, **given).out


def is_sound(found, tensors=7):
    assert found.findings == ()
    assert found.is_sound
    assert found.skipped == ()
    assert (found.tensors, found.nonfinite) == (tensors, 0)
    assert found.recomputed > 1000


@pytest.mark.parametrize(
    "setting", SETTINGS, ids=lambda s: "-".join([s[0], *(v for v in s[1].values() if type(v) is str)])
)
def test_every_method_is_sound(wide, tmp_path, setting):
    method, given = setting
    out = made(method, wide, tmp_path / "out", **given)
    is_sound(verify(out))
    shutil.rmtree(out)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_every_output_dtype_is_sound(wide, tmp_path, dtype):
    is_sound(verify(made("ties", wide, tmp_path / "out", dtype=dtype, shard_size="100KB")))


@pytest.mark.parametrize("dtype", ["float16", "float64", "bfloat16"])
def test_every_input_dtype_is_sound(tmp_path, save_model, make_arrays, dtype):
    base = make_arrays()
    folders = [
        save_model(
            tmp_path / f"m{i}",
            {
                n: torch.from_numpy(a).to(getattr(torch, dtype))
                for n, a in (make_arrays(i, base) if i else base).items()
            },
        )
        for i in range(3)
    ]
    for method in ("ties", "breadcrumbs", "slerp"):
        is_sound(verify(made(method, folders, tmp_path / method)), tensors=len(base))


def test_copies_shards_and_carried_files_are_sound(family, tmp_path):
    result = merge(
        "ties", base=family[0], models=family[1:], out=tmp_path / "out", copy=["*.norm.*", "*embed*"], shard_size=2000
    )
    found = verify(result.out)
    assert found.findings == ()
    assert found.files == len(list(result.out.iterdir())) - 1


def test_bin_and_adapter_inputs_are_sound(family, tmp_path, load_arrays):
    from safetensors.numpy import save_file

    arrays = load_arrays(family[1])
    (family[1] / "model.safetensors").unlink()
    torch.save({n: torch.from_numpy(a) for n, a in arrays.items()}, family[1] / "pytorch_model.bin")
    rng = np.random.default_rng(5)
    (tmp_path / "adapter").mkdir()
    prefix = "base_model.model.model.layers.1.mlp.up_proj"
    factors = {
        f"{prefix}.lora_A.weight": rng.standard_normal((3, 16)).astype("float32"),
        f"{prefix}.lora_B.weight": rng.standard_normal((24, 3)).astype("float32"),
    }
    save_file(factors, tmp_path / "adapter" / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 3, "lora_alpha": 0.5, "target_modules": ["up_proj"]}
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps(config))
    models = [family[1], f"{family[2]}+{tmp_path / 'adapter'}"]
    for method in ("ties", "task_arithmetic"):
        result = merge(method, base=family[0], models=models, out=tmp_path / method)
        is_sound(verify(result.out), tensors=9)


def test_products_of_adapters_are_sound(family, tmp_path):
    from safetensors.numpy import save_file

    rng = np.random.default_rng(6)
    for name, rank in (("one", 3), ("two", 2), ("three", 5)):
        factors = {}
        for layer in range(3):
            prefix = f"base_model.model.model.layers.{layer}.self_attn.q_proj"
            factors[f"{prefix}.lora_A.weight"] = rng.standard_normal((rank, 16)).astype("float32")
            factors[f"{prefix}.lora_B.weight"] = rng.standard_normal((16, rank)).astype("float32")
        (tmp_path / name).mkdir()
        save_file(factors, tmp_path / name / "adapter_model.safetensors")
        config = {"peft_type": "LORA", "r": rank, "lora_alpha": 0.3, "target_modules": ["q_proj"]}
        (tmp_path / name / "adapter_config.json").write_text(json.dumps(config))
    models = [f"{family[0]}+{tmp_path / name}" for name in ("one", "two", "three")]
    result = merge("knots", base=family[0], models=models, out=tmp_path / "out")
    is_sound(verify(result.out), tensors=9)


@pytest.fixture
def out(family, tmp_path):
    return merge(
        "ties", base=family[0], models=family[1:], out=tmp_path / "out", copy=["*.norm.*"], shard_size=4000
    ).out


def flip(path: Path, bit: int) -> None:
    with path.open("r+b") as file:
        file.seek(bit // 8)
        (byte,) = file.read(1)
        file.seek(bit // 8)
        file.write(bytes([byte ^ 1 << bit % 8]))


def bits_of(path: Path, count: int) -> list[int]:
    """Draw bits of a file, its first and last among them; of a weight file some of the header and some beyond."""
    size = path.stat().st_size
    parts = [(0, size)]
    if path.suffix == ".safetensors":
        header = 8 + int.from_bytes(path.read_bytes()[:8], "little")
        parts = [(0, 8), (8, header), (header, size)]
    draw = random.Random(path.name)
    drawn = [draw.randrange(8 * a, 8 * b) for a, b in parts for _ in range(count)]
    return [0, 8 * size - 1, *drawn]


@pytest.mark.parametrize(
    "name",
    ["model-00001-of-00004.safetensors", "config.json", "README.md", "tokenizer.json", "model.safetensors.index.json"],
)
def test_any_flipped_bit_is_found(out, name):
    path = out / name
    for bit in bits_of(path, 6):
        flip(path, bit)
        found = verify(out)
        assert any(f"file '{name}' has another SHA-256" in f for f in found.findings), f"{name}, bit {bit}: {found}"
        assert not found.is_sound
        flip(path, bit)
    assert verify(out).is_sound


def test_any_flipped_bit_of_the_record_is_found(out, command):
    path = out / "edit.json"
    for bit in bits_of(path, 60):
        flip(path, bit)
        code = command("verify", out, "--quiet").code
        assert code in (1, 2, 3), f"edit.json, bit {bit} of byte {path.read_bytes()[bit // 8]:#x}: exit {code}"
        flip(path, bit)
    assert verify(out).is_sound


def test_truncated_grown_missing_and_added_files_are_found(out):
    path = out / "model-00002-of-00004.safetensors"
    raw = path.read_bytes()
    for data in (raw[:-1], raw[:20], b"", raw + b"\0"):
        path.write_bytes(data)
        assert f"file '{path.name}' has {len(data)} bytes; edit.json says {len(raw)}" in verify(out).findings
    path.unlink()
    assert f"file '{path.name}' is missing" in verify(out).findings
    path.write_bytes(raw)
    (out / "new.bin").write_text("x")
    (out / "deep" / "er").mkdir(parents=True)
    (out / "deep" / "er" / "x").write_text("x")
    findings = verify(out).findings
    assert "file 'new.bin' was added later" in findings
    assert f"file '{os.path.join('deep', 'er', 'x')}' was added later" in findings


def test_a_file_replaced_by_a_link_or_folder_is_found(out):
    for make in (lambda p: p.mkdir(), lambda p: p.symlink_to("nowhere")):
        path = out / "config.json"
        kept = path.read_bytes()
        path.unlink()
        make(path)
        assert "file 'config.json' is missing" in verify(out).findings
        path.rmdir() if path.is_dir() else path.unlink()
        path.write_bytes(kept)
    assert verify(out).is_sound


def test_inputs_that_are_gone_are_said(out, family):
    for change in ("rename", "grown"):
        path = family[1] / "model.safetensors"
        raw = path.read_bytes()
        if change == "rename":
            path.rename(family[1] / "x")
        else:
            path.write_bytes(raw.replace(b'"model.norm.weight"', b'"model.nrom.weight"', 1))
        found = verify(out)
        assert found.findings == ()
        assert found.recomputed == 0
        assert len(found.skipped) == 1
        assert found.skipped[0].startswith("the inputs cannot be used")
        assert str(family[1]) in found.skipped[0]
        path.write_bytes(raw)
        (family[1] / "x").unlink(missing_ok=True)


def rewritten(out, change):
    """Change the record and give it the digest that it then needs, as one who tampers would."""
    from weightsmith.record import record_digest

    path = out / "edit.json"
    record = json.loads(path.read_text())
    change(record)
    record["record_sha256"] = record_digest(record)
    path.write_text(json.dumps(record))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("method: ties", "method: task_arithmetic"),
        ("copy:", "dtype: float16\ncopy:"),
        ("models:", "parameters: {density: 0.9}\nmodels:"),
        ("models:", "parameters: {lambda: 0.9}\nmodels:"),
    ],
)
def test_another_recipe_in_the_record_is_found(out, old, new):
    def change(record):
        assert old in record["recipe"]
        record["recipe"] = record["recipe"].replace(old, new)

    rewritten(out, change)
    found = verify(out)
    assert any("differ" in f for f in found.findings), found


def test_tampered_weights_with_a_matching_digest_are_found(out, family):
    import hashlib

    path = out / "model-00001-of-00004.safetensors"
    flip(path, 8 * (path.stat().st_size - 100))

    def change(record):
        (told,) = [o for o in record["outputs"] if o["file"] == path.name]
        told["sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()

    rewritten(out, change)
    (finding,) = verify(out).findings
    assert "differs from its recomputation, first at flat index" in finding


@pytest.mark.parametrize(
    "change",
    [
        lambda r: r["outputs"].append({"file": "../in/base/model.safetensors", "bytes": 1, "sha256": ""}),
        lambda r: r["outputs"].append({"file": "/etc/passwd", "bytes": 1, "sha256": ""}),
    ],
)
def test_names_that_lead_out_of_the_folder_are_findings_and_never_read(out, change):
    rewritten(out, change)
    assert any("leads out of the folder" in f for f in verify(out).findings)


@pytest.mark.parametrize(
    "change",
    [
        lambda r: r.pop("outputs"),
        lambda r: r.update(outputs={}),
        lambda r: r.update(outputs=[1]),
        lambda r: r.update(outputs=[{"file": 3}]),
        lambda r: r.update(outputs=[{"file": "config.json"}]),
        lambda r: r.update(outputs=[{"file": "a\0b", "bytes": 1, "sha256": "x"}]),
        lambda r: r.update(outputs=[{"file": "x" * 5000, "bytes": 1, "sha256": "x"}]),
        lambda r: r.update(inputs=[1, 2, 3]),
        lambda r: r.update(inputs=[{}, {}, {}]),
        lambda r: r.update(inputs=[]),
        lambda r: r["inputs"][0].update(files=[{}]),
        lambda r: r.update(tensors={}),
        lambda r: r.update(tensors={"merged": "many", "copied": 3}),
        lambda r: r.update(format=2),
        lambda r: r.update(format="1"),
        lambda r: r.update(format=True),
        lambda r: r.update(recipe="!!python/object/apply:os.system [touch marker]"),
        lambda r: r.update(recipe="method: nothing\nmodels: [x]"),
        lambda r: r.update(recipe=""),
    ],
)
def test_any_other_record_is_refused_or_found(out, change, command, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    rewritten(out, change)
    ran = command("verify", out, "--quiet")
    assert ran.code in (1, 3), ran
    assert not (tmp_path / "marker").exists()


@pytest.mark.parametrize(
    "text", ["", "[]", "null", "{", '{"format": 1, "format": 1}', "[" * 100_000, "\ud800", "9" * 5000]
)
def test_a_record_that_is_none_is_refused(out, command, text):
    (out / "edit.json").write_text(text, errors="surrogatepass")
    ran = command("verify", out)
    assert ran.code == 3, ran
    assert "edit.json" in ran.err


def test_a_folder_without_record_is_refused(tmp_path, family, command):
    for place in (tmp_path / "nowhere", family[0], family[0] / "config.json"):
        with pytest.raises(ArgumentError, match=r"a folder with edit\.json"):
            verify(place)
        assert command("verify", place).code == 2


def test_a_record_that_is_no_file_is_refused(out):
    (out / "edit.json").unlink()
    os.mkfifo(out / "edit.json")
    with pytest.raises((ArgumentError, CheckpointError)):
        verify(out)


def test_nonfinite_numbers_are_counted(family, tmp_path, save_arrays, make_arrays):
    arrays = make_arrays(1, make_arrays())
    arrays["model.norm.weight"][[1, 4]] = np.nan, np.inf
    (family[1] / "model.safetensors").unlink()
    save_arrays(family[1], arrays)
    options = Options(allow_nonfinite=True)
    result = merge("linear", models=family[1:], out=tmp_path / "out", options=options)
    found = verify(result.out)
    assert found.nonfinite == 2
    assert "2 elements are NaN or infinite" in found.findings
    found = verify(result.out, options=options)
    assert (found.nonfinite, found.findings) == (2, ())


def test_exit_codes_and_text(out, family, command):
    ran = command("verify", out)
    assert ran.code == 0
    assert f"{out}: sound; 9 files by SHA-256, 9 tensors, 0 NaN or infinite" in ran.out
    ran = command("verify", out, "--json", "--quiet")
    told = json.loads(ran.out)
    assert ran.err == ""
    assert (told["is_sound"], told["findings"], told["out"], told["files"]) == (True, [], str(out), 9)
    (out / "\x1b[31mred").write_text("x")
    ran = command("verify", out, "--quiet")
    assert ran.code == 1
    assert f"{out}: 1 finding;" in ran.out
    assert "  wrong: file '\\x1b[31mred' was added later" in ran.out
    ran = command("verify", out, "--json")
    assert (ran.code, json.loads(ran.out)["is_sound"]) == (1, False)
    (family[0] / "model.safetensors").unlink()
    ran = command("verify", out).out
    assert "  digests and counts checked; not recomputed, because the inputs cannot be used: " in ran


def test_threads_and_budget_change_nothing(out):
    first = verify(out)
    assert verify(out, options=Options(threads=1, memory_bytes=200_000_000)) == first
    told = []
    assert verify(out, progress=lambda *s: told.append(s)) == first
    done = [d for _, d, _ in told]
    assert done == sorted(done)
    assert done[-1] == told[-1][2] == 11840
