"""Verifying a bundle: every byte counts, and a damaged task does not hide the others."""

import pytest

from weightsmith import verify


@pytest.mark.parametrize("encoding", ["lossless", "tall_masks"])
def test_a_sound_bundle(pack_all, tasks, encoding):
    result = verify(pack_all(encoding, copy_base=True))
    assert result.is_sound
    assert result.tensors == 15
    assert result.recomputed == 3 * sum(a.size for a in tasks["a"].values())
    assert result.files == 1 + 3 * 4 + (encoding == "tall_masks")


def test_every_file_counts(pack_all, content):
    bundle = pack_all("tall_masks", copy_base=True)
    for name, raw in content(bundle).items():
        if name == "bundle.json":
            continue
        path = bundle / name
        for at in (len(raw) // 2, len(raw) - 2):
            path.write_bytes(raw[:at] + bytes([raw[at] ^ 1]) + raw[at + 1 :])
            result = verify(bundle)
            assert not result.is_sound, name
            assert result.tensors == (15 if name.startswith("base/") else 0 if name.startswith("shared/") else 10), name
        path.write_bytes(raw)
    assert verify(bundle).is_sound


def test_what_does_not_belong(pack_all):
    bundle = pack_all("lossless")
    (bundle / "tasks" / "0009-x").mkdir()
    (bundle / "note").write_text("x")
    next((bundle / "tasks").glob("*-a/beside")).joinpath("more.json").write_text("{}")
    found = verify(bundle).findings
    assert len(found) == 3
    assert all(any(part in text for text in found) for part in ("0009-x", "note", "more.json"))


def test_rebuilt_bytes_are_compared_with_the_original(pack_all):
    """Even where all files are as stated: a base whose values changed is found by the digests of what is rebuilt."""
    bundle = pack_all("lossless", copy_base=True)
    path = bundle / "base" / "model.safetensors"
    raw = bytearray(path.read_bytes())
    raw[-1] ^= 1
    path.write_bytes(raw)
    found = verify(bundle).findings
    assert len([t for t in found if "rebuilt bytes have another SHA-256" in t]) >= 1
    assert any("of the base has another SHA-256" in t for t in found)


def test_every_value_of_the_manifest_counts(pack_all):
    bundle = pack_all("compeft")
    path = bundle / "bundle.json"
    text = path.read_text()
    assert '"density": 0.2' in text
    path.write_text(text.replace('"density": 0.2', '"density": 0.3'))
    assert any("bundle.json' is not as it was written" in t for t in verify(bundle).findings)
    path.write_text(text.replace("manifest_sha256", "manifest_sha257"))
    assert not verify(bundle).is_sound
    path.write_text(text)
    assert verify(bundle).is_sound
