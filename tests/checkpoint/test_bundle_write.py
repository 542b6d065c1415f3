"""Files of pieces: what is appended lies where the header says, and safetensors reads it; what was taken back is gone."""

import hashlib
import json

import numpy as np
import pytest
from safetensors.numpy import load_file

from weightsmith.checkpoint.bundle_write import PieceWriter, write_json


def test_pieces_are_read_by_safetensors(tmp_path):
    names = [(name, 2) for name in ("a", "b", "lengths", "never")]
    with PieceWriter(tmp_path / "x" / "p.safetensors", names) as writer:
        begin = writer.nbytes
        writer.append(b"one")
        writer.append(np.arange(4, dtype=np.uint8))
        writer.close_piece("a", "U8", (7,), begin)
        writer.add("lengths", np.array([3, 4], np.uint32))
        begin = writer.nbytes
        writer.append(b"forgotten")
        writer.close_piece("never", "U8", (9,), begin)
        writer.rewind(begin)
        writer.add("b", np.ones((2, 3), np.float32))
        record = writer.finish(tmp_path)
    path = tmp_path / "x" / "p.safetensors"
    found = load_file(path)
    assert set(found) == {"a", "b", "lengths"}
    assert found["a"].tobytes() == b"one\x00\x01\x02\x03"
    assert found["lengths"].tolist() == [3, 4]
    assert found["b"].tolist() == [[1.0] * 3] * 2
    raw = path.read_bytes()
    assert record == {"file": "x/p.safetensors", "bytes": len(raw), "sha256": hashlib.sha256(raw).hexdigest()}
    assert int.from_bytes(raw[:8], "little") % 8 == 0


def test_the_kept_room_is_enough_for_any_names(tmp_path):
    names = ["é" * 50, 'with "quotes" \\', "x" * 300, "\u2028"]
    with PieceWriter(tmp_path / "p", [(n, 3) for n in names]) as writer:
        for name in names:
            writer.add(name, np.zeros((1, 1, 1), np.uint8))
        writer.finish(tmp_path)
    (tmp_path / "p").rename(tmp_path / "p.safetensors")
    assert set(load_file(tmp_path / "p.safetensors")) == set(names)


def test_names_without_room_are_a_fault(tmp_path):
    with PieceWriter(tmp_path / "p", []) as writer:
        writer.add("x" * 500, np.zeros(1, np.uint8))
        with pytest.raises(ValueError, match="were kept free"):
            writer.finish(tmp_path)


def test_no_pieces_at_all(tmp_path):
    with PieceWriter(tmp_path / "p.safetensors", [("a", 1)]) as writer:
        writer.finish(tmp_path)
    assert load_file(tmp_path / "p.safetensors") == {}


def test_a_manifest_is_replaced_at_once(tmp_path):
    write_json(tmp_path / "m.json", {"a": 1})
    write_json(tmp_path / "m.json", {"a": "é"})
    assert json.loads((tmp_path / "m.json").read_text(encoding="utf-8")) == {"a": "é"}
    assert [p.name for p in tmp_path.iterdir()] == ["m.json"]
