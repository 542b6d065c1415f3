"""Bundles that are damaged, hostile or not what they say: refused with file, tensor and reason; other tasks still open."""

import contextlib
import hashlib
import json
import struct
import tracemalloc

import numpy as np
import pytest

from weightsmith import Bundle, WeightsmithError, add, verify
from weightsmith.checkpoint.read import Files, open_checkpoint, read_array
from weightsmith.errors import ArgumentError, CheckpointError


def place_of(bundle, task):
    return next((bundle / "tasks").glob(f"*-{task}"))


def restate(bundle):
    """Make sizes and digests in the manifests fit what now lies there, as whoever wants to deceive would."""
    content = json.loads((bundle / "bundle.json").read_text())
    for item in content["tasks"]:
        place = bundle / "tasks" / item["folder"]
        if not (place / "part.json").is_file():
            continue
        part = json.loads((place / "part.json").read_text())
        for file in part.get("files", []):
            raw = (place / file["file"]).read_bytes()
            file |= {"bytes": len(raw), "sha256": hashlib.sha256(raw).hexdigest()}
        raw = json.dumps(part).encode()
        (place / "part.json").write_bytes(raw)
        item["part"] = {"bytes": len(raw), "sha256": hashlib.sha256(raw).hexdigest()}
    (bundle / "bundle.json").write_text(json.dumps(content))


def edit_manifest(bundle, change):
    content = json.loads((bundle / "bundle.json").read_text())
    change(content)
    (bundle / "bundle.json").write_text(json.dumps(content))


def edit_part(bundle, task, change):
    path = place_of(bundle, task) / "part.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    restate(bundle)


def edit_pieces(bundle, task, change):
    """Let `change(header, payload)` change a file of pieces; the payload is a bytearray."""
    path = place_of(bundle, task) / "part.safetensors"
    raw = path.read_bytes()
    (length,) = struct.unpack("<Q", raw[:8])
    header, payload = json.loads(raw[8 : 8 + length]), bytearray(raw[8 + length :])
    change(header, payload)
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + payload)
    restate(bundle)


def read_all(reference):
    for entry in open_checkpoint(reference).tensors.values():
        read_array(entry)


def refused(reference, *told):
    """The task cannot be opened, or one of its tensors not read; the message has the four parts."""
    with pytest.raises(WeightsmithError) as error:
        read_all(reference)
    text = str(error.value)
    assert error.value.exit_code == 3
    for part in told:
        assert part in text, text
    return text


def still_fine(bundle, task, tasks):
    for name, entry in open_checkpoint(f"{bundle}#{task}").tensors.items():
        assert read_array(entry) == tasks[task][name].tobytes()


@pytest.fixture
def bundle(pack_all):
    return pack_all("lossless")


@pytest.fixture
def masks(pack_all):
    return pack_all("tall_masks")


@pytest.mark.parametrize(
    "name", ["../../x", "a/b", "<img src=x onerror=alert(1)>", ".hidden", "", "x" * 65, "a\nb", "a\u202eb", "C:\\x"]
)
def test_task_names_with_paths_or_markup(bundle, name):
    edit_manifest(bundle, lambda c: c["tasks"][0].update(name=name))
    text = refused(f"{bundle}#b", "bundle.json", "expected letters, digits", "Restore the bundle")
    assert text.isprintable()


@pytest.mark.parametrize("folder", ["../0001-a", "/etc", "0001-a/../0002-b", "x"])
def test_task_folders_lead_nowhere_else(bundle, folder):
    edit_manifest(bundle, lambda c: c["tasks"][0].update(folder=folder))
    refused(f"{bundle}#b", "bundle.json", "expected a number and a name")


def test_a_task_that_is_listed_twice(bundle):
    edit_manifest(bundle, lambda c: c["tasks"].append(c["tasks"][0]))
    refused(f"{bundle}#b", "listed twice", "expected each task once")


def test_a_key_that_is_there_twice(bundle):
    path = bundle / "bundle.json"
    path.write_text(path.read_text().replace('"format": 1', '"format": 1, "format": 1'))
    refused(f"{bundle}#a", "bundle.json", "not valid JSON")


def test_a_version_from_the_future(bundle, tasks):
    edit_part(bundle, "a", lambda c: c.update(format=2))
    refused(f"{bundle}#a", "part.json", "expected 1", "got 2", "Use a newer weightsmith")
    still_fine(bundle, "b", tasks)
    edit_manifest(bundle, lambda c: c.update(format=2))
    refused(f"{bundle}#b", "bundle.json", "expected 1", "got 2", "Use a newer weightsmith")


@pytest.mark.parametrize("key", ["format", "base", "shared", "tasks"])
def test_manifests_without_their_keys(bundle, key):
    edit_manifest(bundle, lambda c: c.pop(key))
    refused(f"{bundle}#a", "bundle.json", f"expected '{key}' to be there")


@pytest.mark.parametrize("value", [None, 7, "x", [], {}])
def test_manifests_of_other_shapes(bundle, value):
    (bundle / "bundle.json").write_text(json.dumps(value))
    refused(f"{bundle}#a", "bundle.json")


def test_another_base(bundle, family, save_arrays, tasks):
    other = {**tasks["base"], "model.norm.weight": np.zeros(9, np.float32)}
    (family / "base" / "model.safetensors").unlink()
    save_arrays(family / "base", other)
    refused(f"{bundle}#a", "base", "expected the files that it was packed with", "Restore that base")


def test_a_base_that_is_gone(bundle, family):
    (family / "base").rename(family / "elsewhere")
    refused(f"{bundle}#a", "the base of bundle", "cannot be found", "--copy-base")


def test_the_base_moves_along_with_the_bundle(tmp_path, bundle, tasks):
    (tmp_path / "both").mkdir()
    (tmp_path / "in").rename(tmp_path / "both" / "in")
    bundle.rename(tmp_path / "both" / "bundle")
    still_fine(tmp_path / "both" / "bundle", "a", tasks)


def test_a_bundle_as_its_own_base_is_no_loop(bundle):
    edit_manifest(bundle, lambda c: c["base"].update(reference=str(bundle), relative=None))
    refused(f"{bundle}#a", "holds no weights")


def test_damage_of_one_task_leaves_the_others(bundle, tasks):
    path = place_of(bundle, "b") / "part.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    refused(f"{bundle}#b", "part.safetensors", "missing")
    still_fine(bundle, "a", tasks)
    still_fine(bundle, "c", tasks)
    (place_of(bundle, "c") / "part.json").unlink()
    refused(f"{bundle}#c", "part.json", "missing")
    still_fine(bundle, "a", tasks)


def test_a_manifest_of_a_task_with_a_flipped_bit(bundle, tasks):
    path = place_of(bundle, "b") / "part.json"
    raw = bytearray(path.read_bytes())
    raw[50] ^= 1
    path.write_bytes(raw)
    refused(f"{bundle}#b", "part.json", "expected those of bundle.json", "another SHA-256")
    still_fine(bundle, "a", tasks)


def test_masks_of_another_length(masks):
    def shorten(content):
        item = content["tensors"][0]
        item["shape"] = [item["shape"][0] * 4, item["shape"][1]]

    edit_part(masks, "a", shorten)
    refused(f"{masks}#a", "model.embed_tokens.weight", "expected a tensor of the base with")


def test_a_mask_with_too_few_frames(masks):
    def cut(header, payload):
        entry = header["model.embed_tokens.weight/lengths"]
        assert entry["shape"] == [2]
        first = header["model.layers.0.mlp.up_proj.weight/frames"]
        begin = entry["data_offsets"][0] + 4
        entry |= {"shape": [1], "data_offsets": [begin - 4, begin]}
        del payload[begin : begin + 4]
        for other in header.values():
            if other is not entry and other.get("data_offsets", [0])[0] >= first["data_offsets"][0]:
                other["data_offsets"] = [o - 4 for o in other["data_offsets"]]

    edit_pieces(masks, "a", cut)
    refused(f"{masks}#a", "model.embed_tokens.weight", "expected 2 frames for its 76800 elements", "[1] lengths")


def lengths_at(header, name="model.embed_tokens.weight"):
    return header[f"{name}/lengths"]["data_offsets"][0]


@pytest.mark.parametrize("change", [-1, 1, 2**31])
def test_frame_lengths_that_do_not_add_up(bundle, change):
    def alter(header, payload):
        at = lengths_at(header)
        (length,) = struct.unpack_from("<I", payload, at)
        struct.pack_into("<I", payload, at, (length + change) % 2**32)

    edit_pieces(bundle, "a", alter)
    refused(
        f"{bundle}#a", "part.safetensors", "model.embed_tokens.weight", "the lengths of its frames", "that add up to"
    )


@pytest.mark.parametrize("encoding", ["lossless", "tall_masks", "compeft", "sparse", "bitdelta", "rounded"])
def test_truncated_frames(pack_all, encoding):
    """A frame that lost its last bytes to the next one: lengths still add up, but neither can be decoded."""
    bundle = pack_all(encoding)
    name = "model.layers.0.mlp.up_proj.weight" if encoding == "bitdelta" else "model.embed_tokens.weight"

    def shift(header, payload):
        at = lengths_at(header, name)
        if encoding == "bitdelta":
            begin, end = header[f"{name}/frames"]["data_offsets"]
            payload[begin] = 200
            assert end > begin
            return
        first, second = struct.unpack_from("<II", payload, at)
        struct.pack_into("<II", payload, at, first - 3, second + 3)

    edit_pieces(bundle, "a", shift)
    refused(f"{bundle}#a", "part.safetensors", name, "frame 0")


def test_every_flipped_byte_of_a_frame_is_refused_or_gives_other_numbers_but_nothing_worse(pack_all):
    bundle = pack_all("compeft")
    entry = open_checkpoint(f"{bundle}#a").tensors["model.layers.0.mlp.up_proj.weight"]
    frames = entry.packed.terms[0].parts["frames"]
    path = place_of(bundle, "a") / "part.safetensors"
    raw = path.read_bytes()
    for at in range(frames.offset, frames.offset + frames.nbytes):
        path.write_bytes(raw[:at] + bytes([raw[at] ^ 0xFF]) + raw[at + 1 :])
        with contextlib.suppress(WeightsmithError):
            assert len(read_array(entry)) == entry.nbytes


def test_a_decompression_bomb(bundle):
    """Frames that would become gigabytes are refused without the room for them."""
    zstandard = pytest.importorskip("zstandard")
    bomb = zstandard.ZstdCompressor(level=19).compress(bytes(300_000_000))
    assert len(bomb) < 100_000
    name = "model.norm.weight"

    def plant(header, payload):
        begin, end = header[f"{name}/frames"]["data_offsets"]
        at = lengths_at(header, name)
        for codec in range(1, 4):
            planted = bytes([codec]) + struct.pack("<I", len(bomb)) + bomb
            kept = payload[begin:end]
            if codec == 2:
                payload[begin:end] = planted
                struct.pack_into("<I", payload, at + len(planted) - len(kept), len(planted))
                more = len(planted) - len(kept)
                for key, entry in header.items():
                    if key == f"{name}/frames":
                        entry |= {"shape": [len(planted)], "data_offsets": [begin, begin + len(planted)]}
                    elif "data_offsets" in entry and entry["data_offsets"][0] >= end:
                        entry["data_offsets"] = [o + more for o in entry["data_offsets"]]

    edit_pieces(bundle, "a", plant)
    entry = open_checkpoint(f"{bundle}#a").tensors[name]
    tracemalloc.start()
    with pytest.raises(WeightsmithError, match=name), Files() as files:
        files.entry_into(entry, 0, memoryview(bytearray(entry.nbytes)))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 5_000_000


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda t: t["terms"][0].update(form="magic"), "got the form 'magic'"),
        (lambda t: t["terms"][0]["parts"].update(frames="nothing"), "which is not stored"),
        (lambda t: t["terms"][0]["parts"].pop("lengths"), "expected frames, lengths, vector"),
        (lambda t: t["terms"][0]["settings"].update(scale="1"), "expected a finite number"),
        (lambda t: t["terms"][0]["settings"].update(scale=float("inf")), "expected a finite number"),
        (lambda t: t["terms"][0]["shared"].update(vector="model.norm.weight/vector"), "expected 76800 of one of"),
        (lambda t: t.update(base="model.norm.weight"), "expected a tensor of the base with 76800 elements"),
        (lambda t: t.update(base="nothing"), "'nothing' of the base"),
        (lambda t: t.update(dtype="F31"), "dtype F31"),
        (lambda t: t.update(dtype="I32"), "terms for I32"),
        (lambda t: t.update(shape=[-1, 5]), "shape (-1, 5)"),
        (lambda t: t.update(shape=[2**40, 2**40]), "expected whole bytes"),
        (lambda t: t["terms"].append({"form": "difference", "parts": {}, "shared": {}, "settings": {}}), "difference"),
        (lambda t: t.pop("terms"), "expected 'terms' to be there"),
        (lambda t: t.update(name="model.norm.weight"), "listed twice"),
    ],
)
def test_tensors_that_the_pieces_do_not_fit(masks, change, told):
    edit_part(masks, "a", lambda c: change(c["tensors"][0]))
    refused(f"{masks}#a", told)
    open_checkpoint(f"{masks}#b")


@pytest.mark.parametrize("name", ["/etc/passwd", "../part.json", "beside/../../x", "other"])
def test_files_of_a_task_lie_in_its_folder(bundle, name):
    content = json.loads((place_of(bundle, "a") / "part.json").read_text())
    content["files"].append({"file": name, "bytes": 1, "sha256": "0" * 64})
    path = place_of(bundle, "a") / "part.json"
    raw = json.dumps(content).encode()
    path.write_bytes(raw)
    stated = {"bytes": len(raw), "sha256": hashlib.sha256(raw).hexdigest()}
    edit_manifest(bundle, lambda c: c["tasks"][0].update(part=stated))
    refused(f"{bundle}#a", "part.json", f"the file '{name}'")


def test_links_out_of_the_bundle(bundle, tmp_path):
    path = place_of(bundle, "a") / "part.safetensors"
    path.rename(tmp_path / "outside")
    path.symlink_to(tmp_path / "outside")
    refused(f"{bundle}#a", "outside its folder")


@pytest.mark.parametrize("name", ["tasks/0001-a", "tasks/0001-a/beside", "shared"])
def test_folders_that_are_links_out_of_the_bundle(masks, tmp_path, name):
    (masks / name).rename(tmp_path / "outside")
    (masks / name).symlink_to(tmp_path / "outside")
    refused(f"{masks}#a", f"{name}' is a link out of the bundle", "Restore the bundle")
    assert not verify(masks).is_sound


def test_which_task(bundle, pack_all, tasks, tmp_path):
    with pytest.raises(WeightsmithError, match="is a bundle of 3 tasks") as error:
        open_checkpoint(bundle)
    assert error.value.exit_code == 2
    with pytest.raises(
        WeightsmithError, match=r"has no task 'd'.*'a', 'b', 'c'|valid names: a, b, c|Valid names: a, b, c"
    ):
        open_checkpoint(f"{bundle}#d")
    one = pack_all("lossless", out="one", models=("b",))
    assert read_array(open_checkpoint(one).tensors["ids"]) == tasks["b"]["ids"].tobytes()
    named = tmp_path / "x#y"
    one.rename(named)
    assert read_array(open_checkpoint(f"{named}#b").tensors["ids"]) == tasks["b"]["ids"].tobytes()


@pytest.mark.parametrize(
    ("key", "value"),
    [("encoding", None), ("encoding", ["x"]), ("parameters", None), ("exact", 7), ("exact", [[]])],
)
def test_manifests_that_other_verbs_could_not_use(bundle, family, key, value):
    edit_manifest(bundle, lambda c: c.update({key: value}))
    refused(f"{bundle}#a", "bundle.json")
    for use in (lambda: Bundle(bundle).account(), lambda: add(bundle, {"d": family / "c"})):
        with pytest.raises(CheckpointError, match=r"bundle\.json"):
            use()


@pytest.mark.parametrize(
    "change",
    [
        lambda c: c["tensors"].__setitem__(1, 0.5),
        lambda c: c["tensors"][2].pop("name"),
        lambda c: c["tensors"][2].pop("terms"),
        lambda c: c["tensors"][2].update(shape=["x"]),
        lambda c: c["tensors"][2].update(dtype="F31"),
        lambda c: c["tensors"][0]["terms"].__setitem__(0, "mask"),
        lambda c: c["tensors"][0]["terms"][0].pop("shared"),
        lambda c: c.update(files=c["files"][1:]),
    ],
)
def test_what_a_bundle_stores_is_told_without_a_damaged_task(bundle, change):
    edit_part(bundle, "a", change)
    found = Bundle(bundle).account()
    assert set(found.damaged) == {"a"}
    assert "part.json" in found.damaged["a"]
    assert set(found.tasks) == {"b", "c"}
    assert any("task 'a'" in text for text in verify(bundle).findings)


def test_what_is_no_bundle(tmp_path, family):
    for path, got in ((tmp_path / "nothing", "nothing there"), (family / "a", "a folder without it")):
        with pytest.raises(ArgumentError, match=f"is not a bundle; expected a folder with bundle.json; got {got}"):
            Bundle(path)
