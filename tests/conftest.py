"""Helpers of all tests: checkpoints made with torch and safetensors, without the code under test."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest


def _save_model(folder: Path, *shards: dict[str, Any]) -> Path:
    """Write torch tensors as model.safetensors, or as shards with their index."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True)
    if len(shards) == 1:
        save_file(shards[0], folder / "model.safetensors")
        return folder
    listed = {}
    for i, tensors in enumerate(shards, 1):
        name = f"model-{i:05d}-of-{len(shards):05d}.safetensors"
        save_file(tensors, folder / name)
        listed |= dict.fromkeys(tensors, name)
    total = sum(t.numel() * t.element_size() for tensors in shards for t in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": listed}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def _load_model(folder: Path) -> dict[str, Any]:
    """Read all tensors of a folder, in file order."""
    from safetensors.torch import load_file

    tensors = {}
    for path in sorted(folder.glob("*.safetensors")):
        found = load_file(path)
        with path.open("rb") as file:
            table = json.loads(file.read(struct.unpack("<Q", file.read(8))[0]))
        table.pop("__metadata__", None)
        tensors |= {n: found[n] for n in sorted(table, key=lambda n: table[n]["data_offsets"])}
    return tensors


@pytest.fixture
def save_model():
    """`save_model(folder, tensors, ...)` writes one file, or one shard per mapping, of torch tensors."""
    return _save_model


@pytest.fixture
def load_model():
    """`load_model(folder)` reads a checkpoint's tensors, in file order."""
    return _load_model


@pytest.fixture(scope="session")
def write_model():
    """`save_model` for fixtures that live as long as a module."""
    return _save_model


class Ran(NamedTuple):
    """What one command did."""

    code: int
    out: str
    err: str


SHAPES = {
    "model.embed_tokens.weight": (32, 16),
    **{
        f"model.layers.{i}.{part}.weight": shape
        for i in range(3)
        for part, shape in (("mlp.up_proj", (24, 16)), ("self_attn.q_proj", (16, 16)))
    },
    "model.norm.weight": (16,),
    "lm_head.weight": (32, 16),
}
CONFIG = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "torch_dtype": "float32"}


def _save_raw(path: Path, tensors: dict[str, tuple[str, tuple[int, ...], bytes]], metadata: Any = None) -> Path:
    """Write a .safetensors file of any dtypes, byte by byte: name to (dtype, shape, bytes)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    header: dict[str, Any] = {"__metadata__": metadata} if metadata else {}
    place = 0
    for name, (dtype, shape, raw) in tensors.items():
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [place, place + len(raw)]}
        place += len(raw)
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + b"".join(raw for _, _, raw in tensors.values()))
    return path


def _save_arrays(folder: Path, arrays: dict[str, np.ndarray], *shards: list[str], config: Any = None) -> Path:
    """Write numpy arrays as one file, or as shards of the names given, with a config if there is one."""
    kinds = {"float64": "F64", "float32": "F32", "float16": "F16", "int64": "I64", "uint8": "U8"}
    raw = {n: (kinds[a.dtype.name], a.shape, a.tobytes()) for n, a in arrays.items()}
    if not shards:
        _save_raw(folder / "model.safetensors", raw)
    listed = {}
    for i, names in enumerate(shards, 1):
        file = f"model-{i:05d}-of-{len(shards):05d}.safetensors"
        _save_raw(folder / file, {n: raw[n] for n in names})
        listed |= dict.fromkeys(names, file)
    if shards:
        index = {"metadata": {"total_size": sum(len(r[2]) for r in raw.values())}, "weight_map": listed}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config))
    return folder


def _make_arrays(seed: int = 0, base: dict[str, np.ndarray] | None = None, dtype: str = "float32", shapes: Any = None):
    rng = np.random.default_rng(seed)
    made = {}
    for name, shape in (shapes or SHAPES).items():
        drawn = rng.standard_normal(shape) * (1.0 if base is None else 0.05)
        made[name] = (drawn if base is None else base[name] + drawn).astype(dtype)
    return made


@pytest.fixture
def save_raw() -> Callable[..., Path]:
    """`save_raw(path, {name: (dtype, shape, bytes)}, metadata=None)` writes one file of any dtypes."""
    return _save_raw


@pytest.fixture
def save_arrays() -> Callable[..., Path]:
    """`save_arrays(folder, arrays, *shards, config=None)` writes a checkpoint folder of numpy arrays."""
    return _save_arrays


@pytest.fixture
def make_arrays() -> Callable[..., dict[str, np.ndarray]]:
    """`make_arrays(seed=0, base=None, dtype=..., shapes=...)` draws a small model, or one trained from a base."""
    return _make_arrays


@pytest.fixture
def load_arrays() -> Callable[[Path], dict[str, np.ndarray]]:
    """`load_arrays(folder)` reads every .safetensors file of a folder with the safetensors package."""

    def load(folder: Path) -> dict[str, np.ndarray]:
        from safetensors.numpy import load_file

        return {n: a for path in sorted(folder.glob("*.safetensors")) for n, a in load_file(path).items()}

    return load


@pytest.fixture
def family(tmp_path: Path) -> list[Path]:
    """A base and two models trained from it, in `tmp_path/in`: weights, config and tokenizer files."""
    base = _make_arrays()
    folders = []
    for i, name in enumerate(("base", "a", "b")):
        arrays = base if i == 0 else _make_arrays(i, base)
        folder = _save_arrays(tmp_path / "in" / name, arrays, config=CONFIG)
        (folder / "generation_config.json").write_text('{"do_sample": true}\n')
        (folder / "tokenizer.json").write_text('{"version": "1.0"}\n')
        (folder / "README.md").write_text("---\nlicense: mit\n---\n# Parent\n")
        folders.append(folder)
    return folders


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Ran]:
    """`command("merge", "ties", ...)` runs one command in this process: exit code, standard output and error."""
    from weightsmith.cli import main

    # As on a terminal: click would take escape sequences away.
    monkeypatch.setattr("click.utils.should_strip_ansi", lambda *_: False)

    def run(*words: object) -> Ran:
        capsys.readouterr()
        code = main([str(w) for w in words])
        out, err = capsys.readouterr()
        assert "Traceback" not in err or code == 5, err
        return Ran(code, out, err)

    return run


@pytest.fixture
def ties_words(family: list[Path], tmp_path: Path) -> list[str]:
    """The words of a merge of the family by ties into `tmp_path/out`."""
    base, a, b = map(str, family)
    return ["merge", "ties", "--base", base, "--model", a, "--model", b, "--out", str(tmp_path / "out"), "--quiet"]


def _content(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture
def content() -> Callable[[Path], dict[str, bytes]]:
    """`content(folder)` reads every file: relative name to bytes."""
    return _content
