"""Write Llama-shaped checkpoints for the measurements: one base and several fine-tunes of it.

    python bench/make_checkpoints.py FOLDER --size 15m|0.3b|1.1b|4.4b --models 3

The values are random but shaped like the real thing: base weights are normal with deviation 0.02 (norm
weights close to 1), and a fine-tune is the base plus a small heavy-tailed change that leaves one entry in
five as it was. The same seed gives the same bytes. Files are written in blocks, so memory does not grow
with the size; a folder that is already complete is left alone.
"""

import argparse
import json
import math
import os
import struct
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

SIZES: dict[str, dict[str, int]] = {
    "15m": {"hidden": 256, "intermediate": 688, "layers": 10, "heads": 8, "kv_heads": 4, "vocabulary": 16000},
    "0.3b": {
        "hidden": 1024,
        "intermediate": 2816,
        "layers": 22,
        "heads": 16,
        "kv_heads": 4,
        "vocabulary": 32000,
    },
    "1.1b": {
        "hidden": 2048,
        "intermediate": 5632,
        "layers": 22,
        "heads": 32,
        "kv_heads": 4,
        "vocabulary": 32000,
    },
    "4.4b": {
        "hidden": 2048,
        "intermediate": 5632,
        "layers": 97,
        "heads": 32,
        "kv_heads": 4,
        "vocabulary": 32000,
    },
}
SHARDS = 2
BLOCK = 1 << 18  # entries made and written at a time
POOL = 1 << 22  # random numbers drawn once and used again from other offsets
BASE_DEVIATION = 0.02
CHANGE_DEVIATION = 0.0006  # three percent of the base's
UNCHANGED = 0.2
VERSION = 2  # of the values; goes into the note that tells a complete folder

Shapes = dict[str, tuple[int, ...]]


def shapes_of(size: str) -> Shapes:
    """Return the name and shape of every tensor, in the order a Llama model lists them."""
    s = SIZES[size]
    hidden, inner = s["hidden"], s["intermediate"]
    kv = hidden // s["heads"] * s["kv_heads"]
    shapes: Shapes = {"model.embed_tokens.weight": (s["vocabulary"], hidden)}
    for layer in range(s["layers"]):
        at = f"model.layers.{layer}."
        shapes[at + "self_attn.q_proj.weight"] = (hidden, hidden)
        shapes[at + "self_attn.k_proj.weight"] = (kv, hidden)
        shapes[at + "self_attn.v_proj.weight"] = (kv, hidden)
        shapes[at + "self_attn.o_proj.weight"] = (hidden, hidden)
        shapes[at + "mlp.gate_proj.weight"] = (inner, hidden)
        shapes[at + "mlp.up_proj.weight"] = (inner, hidden)
        shapes[at + "mlp.down_proj.weight"] = (hidden, inner)
        shapes[at + "input_layernorm.weight"] = (hidden,)
        shapes[at + "post_attention_layernorm.weight"] = (hidden,)
    shapes["model.norm.weight"] = (hidden,)
    shapes["lm_head.weight"] = (s["vocabulary"], hidden)
    return shapes


def config_of(size: str) -> dict[str, object]:
    """Return what transformers' LlamaForCausalLM expects in config.json."""
    s = SIZES[size]
    return {
        "architectures": ["LlamaForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "head_dim": s["hidden"] // s["heads"],
        "hidden_act": "silu",
        "hidden_size": s["hidden"],
        "initializer_range": BASE_DEVIATION,
        "intermediate_size": s["intermediate"],
        "max_position_embeddings": 2048,
        "mlp_bias": False,
        "model_type": "llama",
        "num_attention_heads": s["heads"],
        "num_hidden_layers": s["layers"],
        "num_key_value_heads": s["kv_heads"],
        "rms_norm_eps": 1e-05,
        "rope_theta": 10000.0,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "use_cache": True,
        "vocab_size": s["vocabulary"],
    }


def split(shapes: Shapes) -> list[Shapes]:
    """Cut the tensors into shards of about equal bytes, in order."""
    limit = sum(math.prod(shape) for shape in shapes.values()) / SHARDS
    shards: list[Shapes] = [{}]
    held = 0
    for name, shape in shapes.items():
        if held >= limit and len(shards) < SHARDS:
            shards.append({})
            held = 0
        shards[-1][name] = shape
        held += math.prod(shape)
    return shards


def header_of(shapes: Shapes) -> bytes:
    """Return a safetensors header, its length in front, padded to a multiple of 8 bytes."""
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    at = 0
    for name, shape in shapes.items():
        end = at + 2 * math.prod(shape)
        entries[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [at, end]}
        at = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text


def shard_name(number: int) -> str:
    """Return the file name of one shard, counted from 0."""
    return f"model-{number + 1:05d}-of-{SHARDS:05d}.safetensors"


def to_bfloat16(values: NDArray[np.float32]) -> NDArray[np.uint16]:
    """Round to nearest, ties to even, and return the upper halves; `values` is used up as scratch space."""
    bits = values.view(np.uint32)
    odd = bits >> np.uint32(16)
    odd &= np.uint32(1)
    odd += np.uint32(0x7FFF)
    bits += odd
    bits >>= np.uint32(16)
    return bits.astype(np.uint16)


def from_bfloat16(halves: NDArray[np.uint16]) -> NDArray[np.float32]:
    """Return the float32 numbers that bfloat16 bits stand for."""
    bits = halves.astype(np.uint32)
    bits <<= np.uint32(16)
    return bits.view(np.float32)


class Source:
    """Random numbers drawn once, handed out from offsets that depend on seed, model, tensor and block."""

    def __init__(self, seed: int):
        self.seed = seed
        generator = np.random.default_rng(seed)
        self.normal = generator.standard_normal(POOL + BLOCK, dtype=np.float32)
        change = generator.standard_t(4, POOL + BLOCK).astype(np.float32)
        change *= np.float32(CHANGE_DEVIATION / math.sqrt(2.0))  # a t of 4 degrees has variance 2
        change[generator.random(POOL + BLOCK, dtype=np.float32) < UNCHANGED] = 0.0
        self.change = change

    def _take(self, model: int, name: str, block: int, count: int) -> tuple[slice, slice]:
        generator = np.random.default_rng([self.seed, model, zlib.crc32(name.encode()), block])
        first, second = generator.integers(0, POOL, 2).tolist()
        return slice(first, first + count), slice(second, second + count)

    def _strength(self, model: int, name: str) -> np.float32:
        """Return how much more a tensor changes than others, 1/2 to 2, so that thresholds depend on scope."""
        generator = np.random.default_rng([self.seed, model, zlib.crc32(name.encode())])
        return np.float32(2.0 ** generator.uniform(-1.0, 1.0))

    def base(self, name: str, block: int, count: int) -> NDArray[np.uint16]:
        """Return one block of a base tensor: two draws mixed, so that blocks are not shifted copies."""
        first, second = self._take(0, name, block, count)
        values = self.normal[first] * np.float32(0.6 * BASE_DEVIATION)
        values += self.normal[second] * np.float32(0.8 * BASE_DEVIATION)
        if name.endswith("norm.weight"):
            values += np.float32(1.0)
        return to_bfloat16(values)

    def finetuned(self, base: NDArray[np.float32], model: int, name: str, block: int) -> NDArray[np.uint16]:
        """Return the same block of fine-tune number `model`, counted from 1."""
        first, _ = self._take(model, name, block, base.size)
        values = self.change[first] * self._strength(model, name)
        values += base
        return to_bfloat16(values)


def write_shard(source: Source, folders: dict[int, Path], number: int, shapes: Shapes) -> None:
    """Write one shard of all the wanted models at once, since the fine-tunes need the base's values."""
    paths = {model: folder / shard_name(number) for model, folder in folders.items()}
    files = {model: open(f"{path}.part", "wb", buffering=0) for model, path in paths.items()}  # noqa: SIM115  # all closed below
    try:
        header = header_of(shapes)
        for file in files.values():
            file.write(header)
        for name, shape in shapes.items():
            size = math.prod(shape)
            for block, start in enumerate(range(0, size, BLOCK)):
                base = source.base(name, block, min(BLOCK, size - start))
                values = from_bfloat16(base)
                for model, file in files.items():
                    halves = source.finetuned(values, model, name, block) if model else base
                    file.write(halves.data)
    finally:
        for file in files.values():
            file.close()
    for path in paths.values():
        os.replace(f"{path}.part", path)


def write_texts(folder: Path, size: str, shards: list[Shapes], made: dict[str, object]) -> None:
    """Write the small files; `made.json`, kept beside the checkpoint, goes last and marks it complete."""

    def write(path: Path, content: dict[str, object]) -> None:
        path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")

    write(folder / "config.json", config_of(size))
    write(folder / "generation_config.json", {"_from_model_config": True, "bos_token_id": 1, "eos_token_id": 2})
    total = sum(2 * math.prod(shape) for shapes in shards for shape in shapes.values())
    places = {name: shard_name(number) for number, shapes in enumerate(shards) for name in shapes}
    index: dict[str, object] = {"metadata": {"total_size": total}, "weight_map": places}
    write(folder / "model.safetensors.index.json", index)
    write(folder.with_name(folder.name + ".made.json"), made)


def is_complete(folder: Path, shards: list[Shapes], made: dict[str, object]) -> bool:
    """Tell whether a folder holds what these options would write into it."""
    note = folder.with_name(folder.name + ".made.json")
    if not note.is_file() or json.loads(note.read_text(encoding="utf-8")) != made:
        return False
    for number, shapes in enumerate(shards):
        path = folder / shard_name(number)
        expected = len(header_of(shapes)) + sum(2 * math.prod(shape) for shape in shapes.values())
        if not path.is_file() or path.stat().st_size != expected:
            return False
    return True


def make(folder: Path, size: str, models: int, seed: int = 0) -> list[Path]:
    """Write what is missing of base, ft1, ... and return the folders, the base first."""
    shards = split(shapes_of(size))
    folders = {model: folder / (f"ft{model}" if model else "base") for model in range(models + 1)}
    notes: dict[int, dict[str, object]] = {
        m: {"size": size, "seed": seed, "model": m, "version": VERSION} for m in folders
    }
    missing = {m: path for m, path in folders.items() if not is_complete(path, shards, notes[m])}
    if missing:
        for path in missing.values():
            path.mkdir(parents=True, exist_ok=True)
            path.with_name(path.name + ".made.json").unlink(missing_ok=True)
        source = Source(seed)
        with ThreadPoolExecutor(SHARDS) as threads:
            tasks = [
                threads.submit(write_shard, source, missing, number, shapes) for number, shapes in enumerate(shards)
            ]
            for task in tasks:
                task.result()
        for model, path in missing.items():
            write_texts(path, size, shards, notes[model])
    return list(folders.values())


def describe(folder: Path) -> dict[str, object]:
    """Return the size and the number of parameters of a folder that `make` filled."""
    note = folder / "base.made.json"
    if not note.is_file():
        raise SystemExit(f"{folder}: no checkpoints; make them with: python bench/make_checkpoints.py {folder}")
    size = json.loads(note.read_text(encoding="utf-8"))["size"]
    return {"size": size, "parameters": sum(math.prod(shape) for shape in shapes_of(size).values())}


def main() -> None:
    """Read the options and write the checkpoints."""
    parser = argparse.ArgumentParser(description="Write Llama-shaped checkpoints: base, ft1, ft2, ...")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--size", choices=SIZES, default="15m")
    parser.add_argument("--models", type=int, default=3, help="number of fine-tunes")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    count = sum(math.prod(shape) for shape in shapes_of(options.size).values())
    for path in make(options.folder, options.size, options.models, options.seed):
        print(f"{path}: {count / 1e6:.1f} million parameters")


if __name__ == "__main__":
    main()
