"""Regions restored and ablated."""

import json

import numpy as np
import pytest

from weightsmith import localize, restore, verify
from weightsmith.errors import ArgumentError, CheckpointError, MismatchError


@pytest.fixture
def mask(tmp_path, experts):
    localize(experts[0], experts[1:], lambdas=0.5, trim=None, masks=tmp_path / "masks")
    return tmp_path / "masks" / "a"


def test_stored_bytes_inside_and_outside(tmp_path, experts, mask, load_arrays):
    kept, target, source = (load_arrays(f) for f in (mask, experts[1], experts[0]))
    done = restore(experts[1], source=experts[0], mask=mask, out=tmp_path / "in")
    other = restore(experts[1], source=experts[0], mask=mask, out=tmp_path / "out", outside=True)
    inside, outside = load_arrays(tmp_path / "in"), load_arrays(tmp_path / "out")
    assert sorted(inside) == sorted(target)
    for name, chosen in kept.items():
        assert np.array_equal(inside[name], np.where(chosen, source[name], target[name])), name
        assert np.array_equal(outside[name], np.where(chosen, target[name], source[name])), name
    assert inside["steps"].tolist() == [0, 1, 2]
    assert done.selected == other.selected == sum(int(m.sum()) for m in kept.values())
    assert verify(tmp_path / "in").is_sound
    record = json.loads((tmp_path / "in" / "edit.json").read_text())
    assert record["parameters"] == {
        "target": str(experts[1]),
        "from": str(experts[0]),
        "mask": str(mask),
        "outside": False,
    }


def test_nothing_depends_on_the_cut(tmp_path, experts, mask, cut):
    given = {"source": experts[0], "mask": mask}
    restore(experts[1], out=tmp_path / "one", **given)
    restore(experts[1], out=tmp_path / "two", options=cut, **given)
    one, two = ((tmp_path / n / "model.safetensors").read_bytes() for n in ("one", "two"))
    assert one == two


def test_every_bit_is_kept(tmp_path, save_raw):
    # NaN of unusual bits, -0, and half precision: bytes, not numbers.
    bits = {"x": np.array([0x7FA00001, 0x80000000, 1], "<u4"), "y": np.array([0xFE01, 0x8000, 3], "<u2")}
    for name, given in (("target", bits), ("source", {n: np.zeros_like(b) for n, b in bits.items()})):
        raw = {n: ({4: "F32", 2: "BF16"}[b.itemsize], (3,), b.tobytes()) for n, b in given.items()}
        save_raw(tmp_path / name / "model.safetensors", raw)
    save_raw(tmp_path / "mask" / "model.safetensors", dict.fromkeys(bits, ("BOOL", (3,), b"\x00\x00\x01")))
    out = tmp_path / "out"
    restore(tmp_path / "target", source=tmp_path / "source", mask=tmp_path / "mask", out=out)
    from weightsmith.checkpoint.read import open_checkpoint, read_array

    found = {n: read_array(e) for n, e in open_checkpoint(out).tensors.items()}
    assert found == {n: np.where([1, 1, 0], b, 0).astype(b.dtype).tobytes() for n, b in bits.items()}


def test_a_mask_of_some_tensors(tmp_path, experts, save_raw, load_arrays):
    save_raw(tmp_path / "some" / "model.safetensors", {"model.norm.weight": ("BOOL", (6,), b"\1" * 6)})
    given = {"source": experts[2], "mask": tmp_path / "some"}
    assert restore(experts[1], out=tmp_path / "in", **given).tensors == 1
    restore(experts[1], out=tmp_path / "out", outside=True, **given)
    a, b, inside, outside = (load_arrays(f) for f in (*experts[1:3], tmp_path / "in", tmp_path / "out"))
    for name in a:
        first, second = (b, a) if name == "model.norm.weight" else (a, b)
        assert np.array_equal(inside[name], first[name])
        assert np.array_equal(outside[name], second[name])


def test_dry_run_writes_nothing(tmp_path, experts, mask):
    done = restore(experts[1], source=experts[0], mask=mask, out=tmp_path / "out", dry_run=True)
    assert done.out is None
    assert done.tensors == 7
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("tensors", "error", "message"),
    [
        ({"model.norm.weight": ("F32", (6,), b"\0" * 24)}, MismatchError, "is F32, a mask is BOOL"),
        ({"model.norm.weight": ("BOOL", (7,), b"\0" * 7)}, MismatchError, r"has shape \(7,\)"),
        ({"model.norm.wait": ("BOOL", (6,), b"\0" * 6)}, MismatchError, "did you mean 'model.norm.weight'"),
        ({"model.norm.weight": ("BOOL", (6,), b"\0\1\2\0\1\0")}, CheckpointError, "got 2 at flat index 2"),
        ({}, CheckpointError, "mask"),
    ],
)
def test_masks_that_do_not_fit(tmp_path, experts, save_raw, tensors, error, message):
    save_raw(tmp_path / "bad" / "model.safetensors", tensors)
    with pytest.raises((error, ArgumentError), match=message):
        restore(experts[1], source=experts[0], mask=tmp_path / "bad", out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_sources_that_do_not_fit(tmp_path, experts, save_arrays, mask, load_arrays):
    other = load_arrays(experts[0])
    other["model.norm.weight"] = other["model.norm.weight"].astype("float16")
    other["scale"] = np.zeros(2, "float32")
    del other["model.embed_tokens.weight"]
    odd = save_arrays(tmp_path / "odd", other)
    with pytest.raises(MismatchError, match="3 faults") as caught:
        restore(experts[1], source=odd, mask=mask, out=tmp_path / "out")
    for text in ("is missing in the source", "has shape () in the target and (2,)", "is F32 in the target and F16"):
        assert text in str(caught.value)
