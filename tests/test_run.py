"""Runs: complete outputs that can be made again, and nothing at all where something fails."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from weightsmith import Options, merge
from weightsmith.checkpoint.entry import DTYPE_BITS
from weightsmith.checkpoint.read import Files
from weightsmith.engine.stream import Worker
from weightsmith.errors import ArgumentError, CheckpointError, MismatchError, NonFiniteError, ResourceError
from weightsmith.recipe.text import parse_recipe

UP = "model.layers.0.mlp.up_proj.weight"


def ties(family, out, **given):
    return merge("ties", base=family[0], models=family[1:], out=out, **given)


def leftovers(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir() if ".partial-" in p.name or ".replaced-" in p.name)


# what an output holds


def test_an_output_is_complete(family, tmp_path, load_arrays):
    (family[0] / "special_tokens_map.json").write_text("{}")
    (family[0] / "modeling_custom.py").write_text("raise SystemExit")
    result = ties(family, tmp_path / "out", dtype="float16", shard_size=2000)
    names = {p.name for p in result.out.iterdir()}
    shards = {n for n in names if n.endswith(".safetensors")}
    assert len(shards) > 2
    assert names - shards == {
        "config.json", "edit.json", "generation_config.json", "model.safetensors.index.json", "README.md",
        "special_tokens_map.json", "tokenizer.json",
    }  # fmt: skip
    index = json.loads((result.out / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"].values()) == shards
    assert index["metadata"]["total_size"] == result.bytes_written
    found = load_arrays(result.out)
    assert {a.dtype for a in found.values()} == {np.dtype("float16")}
    assert set(found) == set(index["weight_map"])
    assert json.loads((result.out / "config.json").read_text())["torch_dtype"] == "float16"
    assert json.loads((family[0] / "config.json").read_text())["torch_dtype"] == "float32"
    assert (result.out / "tokenizer.json").read_bytes() == (family[0] / "tokenizer.json").read_bytes()
    card = (result.out / "README.md").read_text()
    front = yaml.safe_load(card.split("---")[1])
    assert front["base_model"] == ["base", "a", "b"]
    assert front["license"] == "mit"
    assert front["tags"] == ["merge", "weightsmith"]
    assert str(tmp_path) not in card


def test_the_record_has_size_and_digest_of_every_file(family, tmp_path):
    result = ties(family, tmp_path / "out", shard_size=2000)
    record = json.loads((result.out / "edit.json").read_text())
    assert record == json.loads(json.dumps(result.record))
    assert {o["file"] for o in record["outputs"]} == {p.name for p in result.out.iterdir()} - {"edit.json"}
    for output in record["outputs"]:
        raw = (result.out / output["file"]).read_bytes()
        assert (len(raw), hashlib.sha256(raw).hexdigest()) == (output["bytes"], output["sha256"]), output["file"]
    assert record["method"] == "ties"
    assert record["parameters"] == {"density": 0.2, "lambda_": 1.0, "merge": "mean", "scope": "model"}
    assert record["tensors"]["merged"] == 9
    assert [i["reference"] for i in record["inputs"]] == [str(f) for f in family]
    for told, folder in zip(record["inputs"], family, strict=True):
        raw = (folder / "model.safetensors").read_bytes()
        header = raw[: 8 + int.from_bytes(raw[:8], "little")]
        assert told["files"] == [
            {"file": "model.safetensors", "bytes": len(raw), "header_sha256": hashlib.sha256(header).hexdigest()}
        ]


def test_inputs_are_digested_when_asked(family, tmp_path):
    record = ties(family, tmp_path / "out", digest_inputs=True).record
    for told, folder in zip(record["inputs"], family, strict=True):
        (file,) = told["files"]
        assert file["sha256"] == hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()


@pytest.mark.parametrize(
    ("method", "given"),
    [
        ("ties", {"density": 0.3, "dtype": "bfloat16", "copy": ["*.norm.*"]}),
        ("dare", {"seed": 7, "coefficients": (0.25, 0.5)}),
        ("lines", {"beta": 0.3, "shard_size": "2KB"}),
    ],
)
def test_the_recorded_recipe_gives_the_same_bytes(family, tmp_path, content, method, given):
    first = merge(method, base=family[0], models=family[1:], out=tmp_path / "out", **given)
    recipe = parse_recipe(json.loads((first.out / "edit.json").read_text())["recipe"])
    before = content(first.out)
    again = merge(recipe, out=tmp_path / "out", force=True)
    assert content(again.out) == before
    (tmp_path / "recipe.yaml").write_text(first.record["recipe"])
    merge(tmp_path / "recipe.yaml", out=tmp_path / "out", force=True, options=Options(threads=1))
    assert content(first.out) == before
    assert leftovers(tmp_path) == []


def test_every_dtype_is_copied_byte_for_byte(tmp_path, save_raw):
    from safetensors import safe_open

    rng = np.random.default_rng(0)
    tensors = {"w": ("F32", (4,), np.ones(4, "<f4").tobytes())}
    for dtype, bits in DTYPE_BITS.items():
        for i, shape in enumerate(((3, 8), (8,), (0, 8))):
            count = int(np.prod(shape))
            tensors[f"{dtype}.{i}"] = (dtype, shape, rng.bytes(count * bits // 8))
        if bits >= 8:
            tensors[f"{dtype}.scalar"] = (dtype, (), rng.bytes(bits // 8))
    folders = []
    for name in "ab":
        other = {n: (d, s, raw if name == "a" or n == "w" else bytes(len(raw))) for n, (d, s, raw) in tensors.items()}
        folders.append(save_raw(tmp_path / name / "model.safetensors", other).parent)
    result = merge("linear", models=folders, out=tmp_path / "out", copy=["[A-Z]*"], shard_size=100)
    assert result.record["tensors"]["merged"] == 1
    found = {}
    for path in (tmp_path / "out").glob("*.safetensors"):
        raw = path.read_bytes()
        start = 8 + int.from_bytes(raw[:8], "little")
        table = json.loads(raw[8:start])
        table.pop("__metadata__")
        for name, told in table.items():
            first, last = told["data_offsets"]
            found[name] = (told["dtype"], tuple(told["shape"]), raw[start + first : start + last])
        if not any(
            t["dtype"].startswith(("F4", "F6", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ")) for t in table.values()
        ):
            with safe_open(path, "np") as opened:
                assert set(opened.keys()) == set(table)
    assert found == tensors


def test_a_bin_input_gives_the_bytes_of_a_safetensors_input(family, tmp_path, load_arrays, content):
    first = ties(family, tmp_path / "first")
    for folder in family:
        arrays = load_arrays(folder)
        (folder / "model.safetensors").unlink()
        torch.save({n: torch.from_numpy(a) for n, a in arrays.items()}, folder / "pytorch_model.bin")
    second = ties(family, tmp_path / "second")
    assert content(first.out)["model.safetensors"] == content(second.out)["model.safetensors"]
    assert {p.name for p in second.out.iterdir()} == {p.name for p in first.out.iterdir()}


def test_aliased_storage_is_written_once_and_named_in_the_header(tmp_path):
    from safetensors import safe_open

    folders = []
    for name in "ab":
        shared = torch.arange(12.0).reshape(3, 4)
        (tmp_path / name).mkdir()
        tensors = {"model.embed_tokens.weight": shared, "lm_head.weight": shared, "w": torch.ones(2)}
        torch.save(tensors, tmp_path / name / "pytorch_model.bin")
        folders.append(tmp_path / name)
    result = merge("linear", models=folders, out=tmp_path / "out")
    with safe_open(result.out / "model.safetensors", "np") as opened:
        names, metadata = set(opened.keys()), opened.metadata()
    assert len(names) == 2
    (alias,) = {"model.embed_tokens.weight", "lm_head.weight"} - names
    assert metadata["format"] == "pt"
    assert metadata[alias] in names
    assert result.bytes_written == 4 * 14


def adapter(folder: Path, rank: int = 2) -> tuple[Path, np.ndarray]:
    from safetensors.numpy import save_file

    rng = np.random.default_rng(5)
    down, up = (rng.standard_normal(s).astype("float32") / 8 for s in ((rank, 16), (24, rank)))
    folder.mkdir()
    prefix = "base_model.model." + UP.removesuffix(".weight")
    save_file({f"{prefix}.lora_A.weight": down, f"{prefix}.lora_B.weight": up}, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": rank, "lora_alpha": 4, "target_modules": ["up_proj"]}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder, 4 / rank * up @ down


def test_an_adapter_is_a_model(family, tmp_path, load_arrays):
    folder, update = adapter(tmp_path / "adapter")
    result = merge(
        "task_arithmetic", base=family[0], models=[f"{family[0]}+{folder}"], out=tmp_path / "out", lambda_=1.0
    )
    base, found = load_arrays(family[0]), load_arrays(result.out)
    np.testing.assert_allclose(found[UP], base[UP] + update, rtol=1e-6, atol=1e-6)
    assert all(np.array_equal(found[n], base[n]) for n in base if n != UP)
    assert [f["file"] for f in result.record["inputs"][1]["files"]] == [
        "model.safetensors",
        "adapter_model.safetensors",
    ]


# where outputs go


@pytest.mark.parametrize("place", ["in/a", "in/a/out", "in/base/x/y", "link", "link/out", "in/../in/b"])
@pytest.mark.parametrize("force", [False, True])
def test_an_input_is_never_written_to(family, tmp_path, content, place, force):
    (tmp_path / "link").symlink_to(family[1])
    before = content(tmp_path)
    with pytest.raises(ArgumentError):
        ties(family, tmp_path / place, force=force)
    assert content(tmp_path) == before


def test_a_lone_weight_file_is_never_written_beside_into(family, tmp_path, content):
    base, *models = (f / "model.safetensors" for f in family)
    before = content(tmp_path)
    with pytest.raises(ArgumentError, match="inputs are never changed"):
        merge("ties", base=base, models=models, out=models[0], force=True)
    assert content(tmp_path) == before


def test_an_adapter_is_never_written_to(family, tmp_path, content):
    folder, _ = adapter(tmp_path / "adapter")
    before = content(tmp_path)
    for place in (folder, folder / "out"):
        with pytest.raises(ArgumentError, match="inputs are never changed"):
            merge("linear", models=[family[0], f"{family[0]}+{folder}"], out=place, force=True)
    assert content(tmp_path) == before


def test_an_existing_output_is_replaced_only_by_force(family, tmp_path, content):
    ties(family, tmp_path / "out")
    (tmp_path / "out" / "mine.txt").write_text("x")
    before = content(tmp_path / "out")
    with pytest.raises(ArgumentError, match="pass --force"):
        ties(family, tmp_path / "out", density=0.5)
    assert content(tmp_path / "out") == before
    ties(family, tmp_path / "out", density=0.5, force=True)
    after = content(tmp_path / "out")
    assert "mine.txt" not in after
    assert after["model.safetensors"] != before["model.safetensors"]
    assert leftovers(tmp_path) == []


def test_force_replaces_nothing_that_weightsmith_did_not_write(family, tmp_path, content):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("x")
    with pytest.raises(ArgumentError, match="move it away yourself"):
        ties(family, tmp_path / "out", force=True)
    assert content(tmp_path / "out") == {"thesis.txt": b"x"}


@pytest.mark.parametrize(
    "name", ["../../escaped", "/tmp/escaped", "a/b", "..", "C:\\x", "model.safetensors", "edit.json"]
)
def test_names_of_tensors_never_become_paths(tmp_path, save_arrays, load_arrays, name):
    arrays = {name: np.ones(3, "float32"), "w": np.ones(2, "float32")}
    folders = [save_arrays(tmp_path / "deep" / "er" / n, arrays) for n in "ab"]
    before = set(tmp_path.rglob("*"))
    merge("linear", models=folders, out=tmp_path / "deep" / "er" / "out", shard_size=8)
    made = set(tmp_path.rglob("*")) - before
    assert all(p.is_relative_to(tmp_path / "deep" / "er" / "out") for p in made), made
    assert set(load_arrays(tmp_path / "deep" / "er" / "out")) == set(arrays)


@pytest.mark.parametrize("name", ["a\nb", "a\0b", "\x1b[2J", "\u202ex", "\x7f"])
def test_names_with_control_characters_are_not_written(tmp_path, save_arrays, name):
    folders = [save_arrays(tmp_path / n, {name: np.ones(3, "float32")}) for n in "ab"]
    with pytest.raises(CheckpointError) as caught:
        merge("linear", models=folders, out=tmp_path / "out")
    assert name not in str(caught.value)
    assert not (tmp_path / "out").exists()


# what is left when something fails


@pytest.fixture
def older(family, tmp_path, content):
    """An older output, and a check that it is still all there is."""
    ties(family, tmp_path / "out", density=0.5)
    before = content(tmp_path / "out")

    def unharmed(what=""):
        assert content(tmp_path / "out") == before, f"{what}: the older output changed"
        assert leftovers(tmp_path) == [], f"{what}: something was left"

    return unharmed


CALLS = {"rename": 2, "fsync": 5, "pwrite": 4, "preadv": 5}


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("lasting", [False, True], ids=["once", "from then on"])
def test_every_failing_call_leaves_the_older_output(family, tmp_path, older, command, monkeypatch, call, lasting):
    words = [
        "merge",
        "ties",
        "--base",
        family[0],
        "--model",
        family[1],
        "--model",
        family[2],
        "--out",
        tmp_path / "out",
    ]
    words += ["--force", "--quiet", "--shard-size", "4KB", "--threads", "2"]
    real, calls = getattr(os, call), 0

    def counted(*arguments, **more):
        nonlocal calls
        calls += 1
        if calls == failing or (lasting and calls > failing and call != "rename"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(*arguments, **more)

    for failing in range(1, 200):
        calls = 0
        monkeypatch.setattr(os, call, counted)
        ran = command(*words)
        monkeypatch.undo()
        if calls < failing:
            break
        assert ran.code == 4, f"{call} {failing}: {ran}"
        assert "No space left on device" in ran.err
        assert re.search(r"Free space|Check the disk", ran.err), ran.err
        older(f"{call} {failing}")
    assert failing > CALLS[call], f"{call} was called {failing - 1} times only"
    assert ran.code == 0


@pytest.mark.parametrize("call", ["pwrite", "preadv", "fsync", "rename"])
def test_every_failing_call_leaves_nothing_where_nothing_was(family, tmp_path, monkeypatch, call):
    real, calls = getattr(os, call), 0

    def counted(*arguments):
        nonlocal calls
        calls += 1
        if calls == failing:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return real(*arguments)

    for failing in range(1, 200):
        calls, told = 0, ""
        monkeypatch.setattr(os, call, counted)
        try:
            ties(family, tmp_path / "out")
        except ResourceError as error:
            told = str(error)
        else:
            break
        finally:
            monkeypatch.undo()
        assert told.endswith("Check the disk."), told
        assert [p.name for p in tmp_path.iterdir()] == ["in"], f"{call} {failing}"
    assert failing > 1


@pytest.mark.parametrize("call", ["pwrite", "preadv"])
def test_interrupted_calls_are_repeated_and_short_ones_continued(family, tmp_path, content, monkeypatch, call):
    ties(family, tmp_path / "first")
    real = getattr(os, call)

    def short(handle, data, offset):
        if call == "pwrite":
            return real(handle, data[:100], offset)
        return real(handle, (memoryview(data[0]).cast("B")[:100],), offset)

    monkeypatch.setattr(os, call, short)
    ties(family, tmp_path / "second")
    assert content(tmp_path / "first")["model.safetensors"] == content(tmp_path / "second")["model.safetensors"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, MemoryError, NonFiniteError])
@pytest.mark.parametrize("part", ["progress", "store", "carry"])
def test_any_error_on_the_way_leaves_the_older_output(family, tmp_path, older, monkeypatch, error, part):
    def failing(*_, **__):
        raise error("made up")

    if part == "store":
        monkeypatch.setattr(Worker, "store", failing)
    elif part == "carry":
        monkeypatch.setattr("weightsmith.record.carry", failing)
    with pytest.raises(error):
        ties(family, tmp_path / "out", force=True, progress=failing if part == "progress" else None)
    older()


def test_an_input_modified_during_the_run_is_refused(family, tmp_path, older):
    path = family[1] / "model.safetensors"

    def touch(*_):
        raw = path.read_bytes()
        path.write_bytes(raw)
        os.utime(path, ns=(1, 1))

    with pytest.raises(CheckpointError) as caught:
        ties(family, tmp_path / "out", force=True, progress=touch)
    assert "inputs changed while they were read" in str(caught.value)
    assert str(path) in str(caught.value)
    older()


def test_an_input_replaced_by_a_link_to_another_is_refused(family, tmp_path, older):
    path = family[1] / "model.safetensors"

    def replace(*_):
        if not path.is_symlink():
            path.rename(family[1] / "other")
            path.symlink_to(family[2] / "model.safetensors")

    with pytest.raises(CheckpointError, match="inputs changed"):
        ties(family, tmp_path / "out", force=True, progress=replace)
    older()


def test_an_input_that_shrinks_during_the_run_is_an_error(family, tmp_path, older, monkeypatch):
    pread_into = Files.pread_into

    def shrinking(self, path, offset, target):
        os.truncate(family[1] / "model.safetensors", 1000)
        pread_into(self, path, offset, target)

    monkeypatch.setattr(Files, "pread_into", shrinking)
    with pytest.raises(CheckpointError) as caught:
        ties(family, tmp_path / "out", force=True)
    assert "bytes missing" in str(caught.value)
    older()


def test_a_disk_too_small_is_refused_beforehand(family, tmp_path, older, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    monkeypatch.setattr(Files, "pread_into", lambda *_: pytest.fail("weights were read"))
    with pytest.raises(ResourceError) as caught:
        ties(family, tmp_path / "out", force=True)
    assert "bytes of free disk" in str(caught.value)
    assert "got 1000" in str(caught.value)
    older()


RUN = "import sys; from weightsmith.cli import main; sys.exit(main(sys.argv[1:]))"
SLOW = """
import sys, time, os, signal
from weightsmith.checkpoint.write import Output
append = Output.append
def slow(self, *arguments):
    append(self, *arguments)
    print("writing", flush=True)
    time.sleep(30) if "FREEZE" in os.environ else time.sleep(0.5)
Output.append = slow
from weightsmith.cli import main
sys.exit(main(sys.argv[1:]))
"""


def start(family, out, code=SLOW, more=(), **environment):
    words = ["merge", "ties", "--base", family[0], "--model", family[1], "--model", family[2], "--out", out]
    words += ["--quiet", "--shard-size", "1KB", "--threads", "1", *more]
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, words)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **environment},
    )


@pytest.mark.parametrize(("sent", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_during_a_run_leaves_nothing(family, tmp_path, older, sent, code):
    process = start(family, tmp_path / "out", more=["--force"])
    assert process.stdout.readline() == "writing\n", process.communicate()
    process.send_signal(sent)
    _, err = process.communicate(timeout=30)
    assert process.returncode == code, err
    assert "nothing half-written is left" in err
    assert "Traceback" not in err
    older()


def test_a_kill_during_a_run_leaves_a_partial_folder_at_most(family, tmp_path, content):
    process = start(family, tmp_path / "out")
    assert process.stdout.readline() == "writing\n", process.communicate()
    process.kill()
    process.communicate(timeout=30)
    assert not (tmp_path / "out").exists()
    names = sorted(p.name for p in tmp_path.iterdir())
    assert [re.sub("partial-.*", "partial-X", n) for n in names] == ["in", "out.partial-X"]
    first = ties(family, tmp_path / "first", shard_size="1KB")
    ties(family, tmp_path / "out", shard_size="1KB")
    ours, theirs = content(tmp_path / "out"), content(first.out)
    assert {n: b for n, b in ours.items() if "safetensors" in n} == {
        n: b for n, b in theirs.items() if "safetensors" in n
    }


def test_a_limit_of_address_space_below_the_need_is_refused_beforehand(tmp_path):
    # One row of 20 million weights must be held whole: over 1 GB for three inputs. The files are sparse.
    rows = 20_000_000
    for name in ("base", "a", "b"):
        (tmp_path / name).mkdir()
        with (tmp_path / name / "model.safetensors").open("wb") as file:
            text = json.dumps({"w": {"dtype": "F32", "shape": [rows], "data_offsets": [0, 4 * rows]}}).encode()
            file.write(len(text).to_bytes(8, "little") + text)
            file.truncate(8 + len(text) + 4 * rows)
    limit = "import resource; resource.setrlimit(resource.RLIMIT_AS, (10**9, 10**9))\n"
    words = ["merge", "breadcrumbs", "--scope", "row", "--base", "base", "--model", "a", "--model", "b", "--out", "out"]
    ran = subprocess.run(
        [sys.executable, "-c", limit + RUN, *words, "--memory", "100GB"], cwd=tmp_path, capture_output=True, text=True
    )
    assert (ran.returncode, ran.stdout) == (4, ""), ran.stderr
    assert "the memory limit of this process (container or ulimit -v) is too small; expected at least" in ran.stderr
    assert "got 1000 MB" in ran.stderr
    assert "Raise the limit" in ran.stderr
    assert "Traceback" not in ran.stderr
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "b", "base"]


def test_memory_that_runs_out_is_an_error_without_output(family, tmp_path, older, command, monkeypatch):
    def failing(*_, **__):
        raise MemoryError

    monkeypatch.setattr(Worker, "compute", failing)
    words = ["merge", "linear", "--model", family[1], "--model", family[2], "--out", tmp_path / "out", "--force"]
    ran = command(*words)
    assert ran.code == 4
    assert "out of memory; nothing was published" in ran.err
    older()


# scale


def test_many_tiny_tensors(tmp_path, save_arrays, load_arrays):
    arrays = {f"model.layers.{i // 100}.part{i % 100}.weight": np.full(3, i, "float32") for i in range(20_000)}
    folders = [save_arrays(tmp_path / n, arrays) for n in "ab"]
    began = time.monotonic()
    merge("linear", models=folders, out=tmp_path / "out")
    seconds = time.monotonic() - began
    found = load_arrays(tmp_path / "out")
    assert len(found) == len(arrays)
    assert all(
        np.array_equal(found[n], arrays[n]) for n in ("model.layers.0.part0.weight", "model.layers.199.part99.weight")
    )
    assert seconds < 30, f"20,000 tensors took {seconds:.1f} s"


def test_many_models(tmp_path, save_arrays, make_arrays, load_arrays):
    base = make_arrays()
    folders = [save_arrays(tmp_path / f"m{i}", make_arrays(i, base)) for i in range(1, 51)]
    merge("linear", models=folders, out=tmp_path / "out")
    mean = np.mean([load_arrays(f)[UP].astype("float64") for f in folders], axis=0)
    np.testing.assert_allclose(load_arrays(tmp_path / "out")[UP], mean, rtol=1e-5, atol=1e-6)


def test_many_shards_within_the_limit_of_open_files(tmp_path, save_arrays, load_arrays):
    arrays = {f"w{i}": np.full(4, i, "float32") for i in range(300)}
    folders = [save_arrays(tmp_path / n, arrays, *([f"w{i}"] for i in range(300))) for n in "ab"]
    one = Options(threads=1)  # each thread may hold up to 64 inputs open
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    used = len(list(Path("/proc/self/fd").iterdir())) if Path("/proc/self/fd").is_dir() else 64
    resource.setrlimit(resource.RLIMIT_NOFILE, (used + 100, hard))
    try:
        merge("linear", models=folders, out=tmp_path / "out", shard_size=16, options=one)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert len(list((tmp_path / "out").glob("*.safetensors"))) == 300
    assert load_arrays(tmp_path / "out").keys() == arrays.keys()


@pytest.mark.parametrize(
    ("method", "given"),
    [
        ("linear", {}),
        ("ties", {}),
        ("ties", {"scope": "tensor"}),
        ("lines", {"merged": "ties"}),
        ("breadcrumbs", {"scope": "row"}),
    ],
)
def test_progress_only_grows_and_ends_at_all_bytes(family, tmp_path, method, given):
    told = []
    base, models = (None, family) if method == "linear" else (family[0], family[1:])
    result = merge(method, base=base, models=models, out=tmp_path / "out", progress=lambda *s: told.append(s), **given)
    done = [d for _, d, _ in told]
    assert done == sorted(done)
    assert {total for _, _, total in told} == {result.bytes_read}
    assert done[-1] == result.bytes_read, f"ended at {done[-1]} of {result.bytes_read}"
    assert {stage for stage, _, _ in told} <= {"measure", "merge"}


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="no /proc")
def test_memory_stays_within_the_budget(tmp_path, command):
    arrays_code = """
import json, struct, sys
from pathlib import Path
import numpy as np
root = Path(sys.argv[1])
for i, name in enumerate(("base", "a")):
    (root / name).mkdir()
    shape = (2500, 1000)
    names = [f"model.layers.{k}.w" for k in range(30)]
    size = shape[0] * shape[1] * 4
    table = {n: {"dtype": "F32", "shape": shape, "data_offsets": [k * size, k * size + size]} for k, n in enumerate(names)}
    text = json.dumps(table).encode()
    block = np.random.default_rng(0).standard_normal(shape, dtype="float32") + i * 0.01
    with open(root / name / "model.safetensors", "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for _ in names:
            file.write(block.tobytes())
"""
    subprocess.run([sys.executable, "-c", arrays_code, str(tmp_path)], check=True)
    code = """
import sys, threading, time
from weightsmith.cli import main
most, stop = 0, threading.Event()
def watch():
    global most
    while not stop.wait(0.005):
        with open("/proc/self/status") as file:
            most = max(most, *(int(line.split()[1]) for line in file if line.startswith("RssAnon")))
thread = threading.Thread(target=watch)
thread.start()
code = main(sys.argv[1:])
stop.set()
thread.join()
print("anonymous", most * 1024)
sys.exit(code)
"""
    words = ["ties", "--base", tmp_path / "base", "--model", tmp_path / "a", "--memory", "170MB", "--threads", "8"]
    run_words = ["merge", *map(str, words), "--out", str(tmp_path / "out"), "--quiet"]
    ran = subprocess.run([sys.executable, "-c", code, *run_words], capture_output=True, text=True)
    predicted = json.loads(command("plan", *words, "--json").out)["peak_memory_bytes"]
    for name in ("base", "a", "out"):
        shutil.rmtree(tmp_path / name)
    assert ran.returncode == 0, ran.stderr
    most = int(ran.stdout.split()[-1])
    assert 20_000_000 < most < predicted <= 170_000_000, f"{most / 1e6:.0f} MB of anonymous memory"


# arguments of `merge`


def test_a_recipe_and_arguments_contradict(family, tmp_path):
    recipe = parse_recipe(f"method: linear\nmodels: ['{family[0]}', '{family[1]}']\n")
    with pytest.raises(ArgumentError, match="a recipe says what to merge"):
        merge(recipe, models=family, out=tmp_path / "out")
    for more in (
        {"dtype": "float16"},
        {"copy": ["*.norm.*"]},
        {"drop": ["x"]},
        {"coefficients": [1, 2]},
        {"shard_size": 5},
    ):
        with pytest.raises(ArgumentError):
            merge(recipe, out=tmp_path / "out", **more)
        assert not (tmp_path / "out").exists(), f"{more} was ignored"


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"dtype": "int8"}, "dtype; expected one of float64, float32, float16, bfloat16; got 'int8'"),
        ({"shard_size": 0}, "size; expected a whole number of bytes above 0"),
        ({"shard_size": "5 GBB"}, "size"),
        ({"options": Options(device="tpu")}, "--device; expected cpu, cuda or cuda:N"),
        ({"options": Options(memory_bytes=10)}, "--memory is too small"),
        ({"no_such": 1}, "unknown parameter 'no_such'"),
        ({"copy": ["^a.*$"]}, "regular expression"),
        ({"copy": "*.norm.*"}, "list"),
    ],
)
def test_bad_arguments(family, tmp_path, given, told):
    with pytest.raises((ArgumentError, ResourceError, MismatchError)) as caught:
        ties(family, tmp_path / "out", **given)
    assert told in str(caught.value), str(caught.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("pattern", ["w(1)", "w|x", "a" * 300])
def test_what_the_record_cannot_hold_is_refused_before_any_work(tmp_path, save_arrays, monkeypatch, pattern):
    arrays = {pattern: np.ones(3, "float32"), "v": np.ones(3, "float32")}
    folders = [save_arrays(tmp_path / n, arrays) for n in "ab"]
    monkeypatch.setattr(Files, "pread_into", lambda *_: pytest.fail("weights were read"))
    with pytest.raises(ArgumentError, match="copy, entry 1"):
        merge("linear", models=folders, out=tmp_path / "out", copy=[pattern])


def test_parameters_may_be_given_as_their_default_none(family, tmp_path, content):
    lines = {"base": family[0], "models": family[1:]}
    merge("lines", **lines, out=tmp_path / "first", alpha=None)
    merge("lines", **lines, out=tmp_path / "second")
    assert content(tmp_path / "first")["model.safetensors"] == content(tmp_path / "second")["model.safetensors"]


def test_numbers_of_numpy_are_parameters(family, tmp_path):
    result = merge("ties", base=family[0], models=family[1:], out=tmp_path / "out", density=np.float64(0.3))
    assert parse_recipe(result.record["recipe"]).parameters == {"density": 0.3}
