"""Helpers of the tests of weightsmith.checkpoint: files written byte by byte, without the code under test."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

DTYPES = {"float32": "F32", "float16": "F16", "float64": "F64", "int64": "I64", "uint8": "U8"}


def pack(header: dict[str, Any] | str | bytes, buffer: bytes = b"") -> bytes:
    raw = header if isinstance(header, bytes) else header.encode() if isinstance(header, str) else None
    if raw is None:
        raw = json.dumps(header).encode()
    return struct.pack("<Q", len(raw)) + raw + buffer


def save(path: Path, tensors: dict[str, np.ndarray], metadata: dict[str, str] | None = None) -> Path:
    header: dict[str, Any] = {"__metadata__": metadata} if metadata else {}
    buffer = b""
    for name, array in tensors.items():
        raw = np.ascontiguousarray(array).tobytes()
        header[name] = {
            "dtype": DTYPES[array.dtype.name],
            "shape": list(array.shape),
            "data_offsets": [len(buffer), len(buffer) + len(raw)],
        }
        buffer += raw
    path.write_bytes(pack(header, buffer))
    return path


def save_sharded(
    folder: Path, shards: dict[str, dict[str, np.ndarray]], weight_map: dict[str, Any] | None = None
) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    listed: dict[str, Any] = {}
    for shard, tensors in shards.items():
        save(folder / shard, tensors)
        listed |= dict.fromkeys(tensors, shard)
    total = sum(a.nbytes for tensors in shards.values() for a in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": listed if weight_map is None else weight_map}
    path = folder / "model.safetensors.index.json"
    path.write_text(json.dumps(index))
    return path


@pytest.fixture
def write_safetensors() -> Callable[..., Path]:
    """`write_safetensors(path, tensors, metadata=None)` writes one file."""
    return save


@pytest.fixture
def write_sharded() -> Callable[..., Path]:
    """`write_sharded(folder, shards, weight_map=None)` writes shards and their index."""
    return save_sharded


@pytest.fixture
def packed() -> Callable[..., bytes]:
    """`packed(header, buffer=b"")` gives the bytes of a file with any header."""
    return pack
