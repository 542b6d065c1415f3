"""Hostile and damaged inputs at the level of the command: refused in bounded time, without output and without trace.

The numbers are kinds of hostile input; each test's name starts with one. 1-5 pickles and archives, 6-14 headers and
files, 15-19 indexes and folders, 20-22 what lies beside weights, 23-27 recipes, 28-37 what is asked for.
"""

from __future__ import annotations

import io
import json
import os
import pickle
import resource
import struct
import time
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

REFUSED = 3
WRONG_USE = 2
DONE = 0
MARKER = "marker-of-run-code"


class Evil:
    def __init__(self, *call):
        self.call = call or (os.system, f"touch {MARKER}")

    def __reduce__(self):
        return self.call[0], self.call[1:]


def pack(header, data: bytes = b"", length: int | None = None) -> bytes:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(raw) if length is None else length) + raw + data


def told(dtype="F32", shape=(4,), offsets=(0, 16)) -> dict:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


GOOD = pack({"w": told()}, bytes(16))


def safetensors(raw: bytes):
    """Make a maker of a folder with one model.safetensors."""

    def make(folder: Path) -> Path:
        folder.mkdir()
        (folder / "model.safetensors").write_bytes(raw)
        return folder

    return make


def header(value, data: bytes = bytes(16)):
    return safetensors(pack(value, data))


def named(name: str, raw):
    """Make a maker of one file, of bytes or of what a function writes."""

    def make(folder: Path) -> Path:
        folder.mkdir()
        (folder / name).write_bytes(raw() if callable(raw) else raw)
        return folder / name

    return make


def saved(value, **options) -> bytes:
    stream = io.BytesIO()
    torch.save(value, stream, **options)
    return stream.getvalue()


def archive(edit=None, **given) -> bytes:
    """Return what torch saves, its archive written anew with changes: edit(name, data) gives entries."""
    source = zipfile.ZipFile(io.BytesIO(saved({"w": torch.ones(4)})))
    stream = io.BytesIO()
    with (
        warnings.catch_warnings(),
        zipfile.ZipFile(stream, "w", given.get("compression", zipfile.ZIP_STORED)) as target,
    ):
        warnings.simplefilter("ignore")  # names given twice
        for info in source.infolist():
            data = source.read(info)
            entries = edit(info.filename, data) if edit else [(info.filename, data)]
            for name, content in entries:
                target.writestr(name, content)
    return stream.getvalue()


def rebuilt(shape=(4,), stride=(1,), offset=0, size=4) -> bytes:
    """Return an archive whose pickle asks for any view of a storage of four numbers."""

    class Storage:
        pass

    class Pickler(pickle._Pickler):  # in Python, so that names need not exist
        def persistent_id(self, item):
            return ("storage", torch.FloatStorage, "0", "cpu", size) if isinstance(item, Storage) else None

    stream = io.BytesIO()
    call = (torch._utils._rebuild_tensor_v2, Storage(), offset, shape, stride, False, {})
    Pickler(stream, 2).dump({"w": Evil(*call)})
    return archive(lambda name, data: [(name, stream.getvalue() if name.endswith("data.pkl") else data)])


def encrypted() -> bytes:
    raw = bytearray(archive())
    for start in (raw.index(b"PK\3\4") + 6, raw.index(b"PK\1\2") + 8):
        raw[start] |= 1
    return bytes(raw)


def claims_much() -> bytes:
    raw = bytearray(archive())
    at = raw.index(b"PK\1\2")
    raw[at + 20 : at + 28] = struct.pack("<II", 2**32 - 2, 2**32 - 2)
    return bytes(raw)


def numpy_file(archive=False) -> bytes:
    stream = io.BytesIO()
    array = np.array([Evil()], object)
    np.savez(stream, w=array) if archive else np.save(stream, array, allow_pickle=True)
    return stream.getvalue()


def sharded(shards: dict[str, bytes], weight_map, **index):
    """Make a maker of a folder with shards and any index."""

    def make(folder: Path) -> Path:
        folder.mkdir()
        for name, raw in shards.items():
            (folder / name).write_bytes(raw)
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map, **index}))
        return folder

    return make


ONE, TWO = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
V = pack({"v": told()}, bytes(16))


def listed(value):
    return sharded({ONE: GOOD}, {"w": value})


def with_file(make_file, name=ONE, weight_map=None):
    """Make a maker of an index whose shard is something else than a file."""

    def make(folder: Path) -> Path:
        folder.mkdir()
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map or {"w": name}}))
        make_file(folder / name)
        return folder

    return make


def link_outside(path: Path) -> None:
    outside = path.parent.parent / "outside.safetensors"
    outside.write_bytes(GOOD)
    path.symlink_to(outside)


def link_loop(path: Path) -> None:
    path.symlink_to(path.name)


def hub_cache(folder: Path) -> Path:
    snapshot = folder / "models--org--name" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    blobs = folder / "models--org--name" / "blobs"
    blobs.mkdir()
    (blobs / "0123").write_bytes(GOOD)
    (snapshot / "model.safetensors").symlink_to("../../blobs/0123")
    return snapshot


def both(*files: tuple[str, bytes]):
    def make(folder: Path) -> Path:
        folder.mkdir()
        for name, raw in files:
            (folder / name).write_bytes(raw)
        return folder

    return make


def beside(config: bytes, name="config.json"):
    return both(("model.safetensors", GOOD), (name, config))


def huge(name: str, size: int):
    """Make a maker of a good model beside a huge sparse file."""

    def make(folder: Path) -> Path:
        safetensors(GOOD)(folder)
        with (folder / name).open("wb") as file:
            file.truncate(size)
        return folder

    return make


SCALAR_AND_EMPTY = {"v": told(shape=(), offsets=(0, 4)), "u": told(shape=(0, 3), offsets=(4, 4))}
LISTS_ITSELF = b'{"weight_map": {"w": "model.safetensors"}}'


def two_names(name: bytes) -> bytes:
    entry = json.dumps(told()).encode()
    return pack(b"{" + name + b":" + entry + b"," + name + b":" + entry + b"}", bytes(16))


MODELS = [
    # 1: pickles that run code, under every name
    *((f"1 {n}", named(n, lambda: saved({"w": Evil()})), REFUSED) for n in ("m.bin", "m.pt", "m.ckpt", "m.pth", "m.pkl")),
    ("1 legacy", named("m.bin", lambda: saved({"w": Evil()}, _use_new_zipfile_serialization=False)), REFUSED),
    ("1 bare pickle", named("m.pkl", lambda: pickle.dumps(Evil())), REFUSED),
    ("1 protocol 0", named("m.bin", lambda: pickle.dumps(Evil(), 0)), REFUSED),
    ("1 npy", named("m.npy", numpy_file), REFUSED),
    ("1 npz", named("m.npz", lambda: numpy_file(archive=True)), REFUSED),
    ("1 builtins", named("m.bin", lambda: saved({"w": Evil(eval, f"open('{MARKER}', 'w')")})), REFUSED),
    # 2: pickles under another name
    ("2 safetensors", both(("model.safetensors", pickle.dumps(Evil()))), REFUSED),
    ("2 archive as safetensors", both(("model.safetensors", saved({"w": torch.ones(4)}))), REFUSED),
    ("2 json", beside(pickle.dumps(Evil())), REFUSED),
    ("2 index", both((ONE, GOOD), ("model.safetensors.index.json", pickle.dumps(Evil()))), REFUSED),
    ("2 raw pickle as bin", both(("pytorch_model.bin", pickle.dumps(Evil()))), REFUSED),
    ("2 safetensors as bin", both(("pytorch_model.bin", GOOD)), REFUSED),
    # 3: allowed names with hostile arguments
    ("3 good view", named("m.bin", lambda: rebuilt()), DONE),
    ("3 huge stride", named("m.bin", lambda: rebuilt(stride=(2**62,))), REFUSED),
    ("3 negative stride", named("m.bin", lambda: rebuilt(stride=(-1,))), REFUSED),
    ("3 offset beyond the end", named("m.bin", lambda: rebuilt(offset=1)), REFUSED),
    ("3 negative offset", named("m.bin", lambda: rebuilt(offset=-1)), REFUSED),
    ("3 huge shape", named("m.bin", lambda: rebuilt(shape=(2**62, 4), stride=(0, 1))), REFUSED),
    ("3 larger storage than stored", named("m.bin", lambda: rebuilt(size=2**40)), REFUSED),
    ("3 shape of text", named("m.bin", lambda: rebuilt(shape="four")), REFUSED),
    # 6: lengths of headers
    *((f"6 length {n}", safetensors(struct.pack("<Q", n) + b"{}" * 20), REFUSED) for n in (0, 1, 7, 41, 2**40, 2**63, 2**64 - 1)),
    ("6 length above the cap", safetensors(struct.pack("<Q", 100_000_001) + b"{}"), REFUSED),
    ("6 only a length", safetensors(struct.pack("<Q", 2)), REFUSED),
    # 7: text of headers
    ("7 not UTF-8", header(b'{"\xff":{}}'), REFUSED),
    ("7 BOM", header(b"\xef\xbb\xbf{}"), REFUSED),
    ("7 NUL", header(b'{"w":null}\0\0\0'), REFUSED),
    ("7 a list", header(b"[]"), REFUSED),
    ("7 space first", header(b' {"w":' + json.dumps(told()).encode() + b"}"), REFUSED),
    ("7 trailing garbage", header(json.dumps({"w": told()}).encode() + b"x"), REFUSED),
    ("7 NaN", header(b'{"w":{"dtype":"F32","shape":[NaN],"data_offsets":[0,16]}}'), REFUSED),
    ("7 Infinity", header(b'{"w":{"dtype":"F32","shape":[4],"data_offsets":[0,Infinity]}}'), REFUSED),
    ("7 deep", header(b'{"w":' + b"[" * 100_000 + b"]" * 100_000 + b"}"), REFUSED),
    ("7 long integer", header(b'{"w":{"dtype":"F32","shape":[' + b"9" * 5000 + b'],"data_offsets":[0,16]}}'), REFUSED),
    # 8: duplicate keys
    ("8 tensor", safetensors(two_names(b'"w"')), REFUSED),
    ("8 escaped", safetensors(pack(b'{"w":%b,"\\u0077":%b}' % ((json.dumps(told()).encode(),) * 2), bytes(16))), REFUSED),
    ("8 metadata", header(b'{"__metadata__":{},"__metadata__":{},"w":' + json.dumps(told()).encode() + b"}"), REFUSED),
    # 9: names
    *(
        (f"9 {n!a}", header({n: told()}), REFUSED)
        for n in ("a\0b", "a\nb", "\x1b[31m", "\u202eb", "\ud800", "x" * 1_000_000)
    ),
    # 10: offsets
    *(
        (f"10 {a} {b}", header({"w": told(offsets=(a, b))}), REFUSED)
        for a, b in (
            (16, 0), (0, 17), (0, 2**60), (-16, 0), (0.0, 16.0), (2**53 + 1, 2**53 + 17), (1, 17), ("0", "16"), (True, 16),
        )
    ),
    ("10 overlap", header({"w": told(), "v": told(offsets=(8, 24))}, bytes(24)), REFUSED),
    ("10 gap", header({"w": told(), "v": told(offsets=(20, 36))}, bytes(36)), REFUSED),
    ("10 three offsets", header({"w": told(offsets=(0, 8, 16))}), REFUSED),
    # 11: shapes
    ("11 shape and bytes", header({"w": told(shape=(5,))}), REFUSED),
    ("11 overflow", header({"w": told(shape=(2**32, 2**32, 2**32))}), REFUSED),
    ("11 negative", header({"w": told(shape=(-4,))}), REFUSED),
    ("11 two negative", header({"w": told(shape=(-2, -2))}), REFUSED),
    ("11 many dimensions", header({"w": told(shape=(1,) * 1_000_000 + (4,))}), REFUSED),
    ("11 float", header({"w": told(shape=(4.0,))}), REFUSED),
    ("11 no list", header({"w": {**told(), "shape": 4}}), REFUSED),
    ("11 scalar and empty", header({**SCALAR_AND_EMPTY, "w": told(offsets=(4, 20))}, bytes(20)), REFUSED),  # in one only
    # 12: dtypes
    *((f"12 {d}", header({"w": told(dtype=d)}), REFUSED) for d in ("Q4", "f32", "float32", "", "F32 ", 4, None)),
    ("12 F8", header({"w": told("F8_E4M3", offsets=(0, 4))}, bytes(4)), REFUSED),
    ("12 C64", header({"w": told("C64", offsets=(0, 32))}, bytes(32)), REFUSED),
    # 13: metadata
    ("13 number", header({"__metadata__": {"a": 1}, "w": told()}), REFUSED),
    ("13 list", header({"__metadata__": [], "w": told()}), REFUSED),
    ("13 text", header({"__metadata__": "a", "w": told()}), REFUSED),
    ("13 large", header({"__metadata__": {"a": "x" * 101_000_000}, "w": told()}), REFUSED),
    # 14: sizes of files
    ("14 one byte short", safetensors(GOOD[:-1]), REFUSED),
    ("14 one byte more", safetensors(GOOD + b"\0"), REFUSED),
    ("14 empty", safetensors(b""), REFUSED),
    *((f"14 cut at {n}", safetensors(GOOD[:n]), REFUSED) for n in (1, 7, 8, 9, 20, len(GOOD) - 16)),
    ("14 archive cut", named("m.bin", lambda: archive()[:-30]), REFUSED),
    # 15: index and shards
    ("15 shard missing", sharded({ONE: GOOD}, {"w": ONE, "v": TWO}), REFUSED),
    ("15 shard not listed", sharded({ONE: GOOD, TWO: V}, {"w": ONE}), REFUSED),
    ("15 tensor not in shard", sharded({ONE: GOOD}, {"w": ONE, "v": ONE}), REFUSED),
    ("15 tensor not in index", sharded({ONE: GOOD, TWO: V}, {"v": TWO}), REFUSED),
    ("15 tensor in two shards", sharded({ONE: GOOD, TWO: GOOD}, {"w": ONE}), REFUSED),
    ("15 tensor in the other shard", sharded({ONE: GOOD, TWO: V}, {"w": TWO, "v": ONE}), REFUSED),
    # 16: file names of an index
    *(
        (f"16 {p!r}", listed(p), REFUSED)
        for p in ("../outside.safetensors", "/etc/passwd", "C:\\x.safetensors", "\\\\srv\\x.safetensors", "a/../../b.safetensors",
                  "file:///etc/passwd", "", ".", "..", "a\0.safetensors", "/dev/zero", "x" * 5000, 3, None, ["a"])
    ),
    ("16 directory", with_file(lambda p: p.mkdir()), REFUSED),
    ("16 FIFO", with_file(os.mkfifo), REFUSED),
    ("16 device", with_file(lambda p: p.symlink_to("/dev/zero")), REFUSED),
    # 17: links
    ("17 outside", with_file(link_outside), REFUSED),
    ("17 loop", with_file(link_loop), REFUSED),
    ("17 dangling", with_file(lambda p: p.symlink_to("nowhere")), REFUSED),
    ("17 inside the Hub's cache", hub_cache, DONE),
    # 18: total_size
    *(
        (f"18 {n}", sharded({ONE: GOOD}, {"w": ONE}, metadata=m), DONE)
        for n, m in (("wrong", {"total_size": 2**60}), ("negative", {"total_size": -1}), ("list", []), ("text", "x"))
    ),
    ("18 missing", sharded({ONE: GOOD}, {"w": ONE}), DONE),
    ("18 no weight_map", sharded({ONE: GOOD}, None), REFUSED),
    # 19: ambiguous folders
    ("19 stale index", both(("model.safetensors", GOOD), ("model.safetensors.index.json", LISTS_ITSELF)), REFUSED),
    ("19 two formats", both(("model.safetensors", GOOD), ("pytorch_model.bin", saved({"w": torch.ones(4)}))), REFUSED),
    ("19 two lone files", both(("a.safetensors", GOOD), ("b.safetensors", GOOD)), REFUSED),
    ("19 no weights", both(("config.json", b"{}")), REFUSED),
    # 20: config.json
    ("20 huge", huge("config.json", 2**30), REFUSED),
    ("20 deep", beside(b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}"), REFUSED),
    ("20 duplicate", beside(b'{"a": 1, "a": 2}'), REFUSED),
    ("20 a list", beside(b"[]"), REFUSED),
    ("20 empty", beside(b""), REFUSED),
    ("20 not UTF-8", beside(b'{"a": "\xff"}'), REFUSED),
    ("20 long integer", beside(b'{"a": ' + b"9" * 5000 + b"}"), REFUSED),
    ("20 many layers", beside(b'{"num_hidden_layers": 1000000000000, "vocab_size": -1}'), DONE),
    ("20 tie of text", beside(b'{"tie_word_embeddings": "yes"}'), DONE),
    ("20 link outside", with_file(lambda p: p.symlink_to("/etc/passwd"), "config.json", {"w": ONE}), REFUSED),
    # 21: custom code
    ("21 auto_map", beside(b'{"auto_map": {"AutoModel": "evil.Model"}}'), DONE),
    # 22: tokenizers
    ("22 tokenizer", beside(b'{"a":' * 100_000, "tokenizer.json"), DONE),
    ("22 huge tokenizer", huge("tokenizer.json", 2**31), DONE),
    # 34 and 36 as inputs
    ("34 another dtype", header({"w": told("I32")}), REFUSED),
    ("36 claims 100 GB", safetensors(pack({"w": told(shape=(25 * 10**9,), offsets=(0, 10**11))}, bytes(16))), REFUSED),
]  # fmt: skip

ARCHIVES = [
    ("4 duplicate entries", lambda: archive(lambda n, d: [(n, d)] * (1 + n.endswith("data.pkl"))), REFUSED),
    ("4 parent folder", lambda: archive(lambda n, d: [(n, d), (f"../{MARKER}", b"x")]), REFUSED),
    ("4 absolute", lambda: archive(lambda n, d: [(n, d), (f"/{MARKER}", b"x")]), REFUSED),
    ("4 compressed", lambda: archive(compression=zipfile.ZIP_DEFLATED), REFUSED),
    (
        "4 bomb",
        lambda: archive(lambda n, d: [(n, d), ("archive/data/1", bytes(10**8))], compression=zipfile.ZIP_DEFLATED),
        REFUSED,
    ),
    ("4 encrypted", encrypted, REFUSED),
    ("4 claims 4 GB", claims_much, REFUSED),
    ("4 pickle not in its place", lambda: archive(lambda n, d: [(n.replace("data.pkl", "other.pkl"), d)]), REFUSED),
    ("4 storage missing", lambda: archive(lambda n, d: [] if "/data/" in n else [(n, d)]), REFUSED),
    ("4 storage short", lambda: archive(lambda n, d: [(n, d[:8] if "/data/0" in n else d)]), REFUSED),
    ("4 nested", lambda: archive(lambda n, d: [(n, archive() if n.endswith("data.pkl") else d)]), REFUSED),
    ("5 marks", lambda: b"\x80\x02" + b"(" * 10**6 + b".", REFUSED),
    ("5 deep", lambda: b"\x80\x02" + b"]" * 10**5 + b"a" * (10**5 - 1) + b".", REFUSED),
    ("5 memo", lambda: b"\x80\x02]q\0" + b"h\0" * 10**6 + b".", REFUSED),
    ("5 long", lambda: b"\x80\x02\x8b" + struct.pack("<i", 2**31 - 1) + b"1.", REFUSED),
    ("5 text", lambda: b"\x80\x02X" + struct.pack("<I", 2**32 - 1) + b"1.", REFUSED),
    ("5 empty", lambda: b"\x80\x02.", REFUSED),
]
MODELS += [(name, named("m.bin", raw), code) for name, raw, code in ARCHIVES]


def alias_bomb() -> str:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 12)]
    return "\n".join(lines) + "\nmethod: linear\nmodels: *a11\n"


BASE = "method: linear\nmodels: [good, other]\n"
TIES = "method: ties\nbase: good\nmodels: [other]\n"
RECIPES = [
    ("23 python tag", f"method: !!python/object/apply:os.system ['touch {MARKER}']\nmodels: [good]\n"),
    ("23 python name", "method: linear\nmodels: !!python/name:os.system [good]\n"),
    ("23 custom tag", "method: !mine linear\nmodels: [good]\n"),
    ("23 merge key", "x: &x {method: linear}\n<<: *x\nmodels: [good]\n"),
    ("24 alias bomb", alias_bomb()),
    ("24 alias to itself", "method: linear\nmodels: &a [*a]\n"),
    ("25 deep", "method: linear\nmodels: " + "[" * 5000 + "]" * 5000 + "\n"),
    ("25 duplicate keys", BASE + "method: ties\n"),
    ("25 tabs", "method: linear\nmodels:\n\t- good\n"),
    ("25 two documents", BASE + "---\n" + BASE),
    ("25 octal", BASE + "seed: 010\n"),
    ("25 sexagesimal", BASE + "shard_size: 12:30\n"),
    ("25 yes", BASE + "parameters: {normalize: yes}\n"),
    ("25 empty", ""),
    ("25 binary", "\x00\x01\x02"),
    ("25 large", "#" * 2_000_000),
    ("26 unknown key", BASE + "modles: [a]\n"),
    ("26 method", BASE.replace("linear", "liner")),
    ("26 coefficient NaN", "method: linear\nmodels: [{model: good, coefficient: .nan}, other]\n"),
    ("26 coefficient text", "method: linear\nmodels: [{model: good, coefficient: heavy}, other]\n"),
    ("26 coefficients that add to 0", "method: linear\nmodels: [good, {model: other, coefficient: -1}]\n"),
    *((f"26 density {d}", TIES + f"parameters: {{density: {d}}}\n") for d in ("0", "-1", "1.01", "'x'")),
    ("26 no models", "method: linear\nmodels: []\n"),
    ("26 same model twice", "method: linear\nmodels: [good, good]\n"),
    ("26 same model in other words", "method: linear\nmodels: [good, ./good]\n"),
    ("26 base in models", "method: ties\nbase: good\nmodels: [other, good]\n"),
    ("26 no base", "method: ties\nmodels: [other]\n"),
    ("26 a base too many", BASE + "base: good\n"),
    ("26 unknown model", "method: linear\nmodels: [god, other]\n"),
    ("27 regular expression", BASE + "copy: ['(a+)+$']\n"),
    ("27 long pattern", BASE + f"copy: ['{'a*' * 200}']\n"),
]  # fmt: skip


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with two good models, `good` and `other`, which is the current one."""
    monkeypatch.chdir(tmp_path)
    for name in ("good", "other"):
        safetensors(GOOD)(tmp_path / name)
    return tmp_path


def nothing_but(place: Path, names: set[str]) -> None:
    found = {p.name for p in place.iterdir()}
    assert MARKER not in found, "code of an input ran"
    assert found == names, f"left: {found - names}"
    assert not (place.parent / MARKER).exists()


@pytest.mark.parametrize(("make", "code"), [m[1:] for m in MODELS], ids=[m[0] for m in MODELS])
def test_model(place, command, make, code):
    bad = make(place / "bad")
    before = {p.name for p in place.iterdir()}
    began = time.monotonic()
    ran = command("merge", "linear", "--model", "good", "--model", bad, "--out", "out", "--quiet")
    assert time.monotonic() - began < 20, "took too long"
    assert ran.code == code, ran
    if code == DONE:
        assert "out" in {p.name for p in place.iterdir()}
        nothing_but(place, before | {"out"})
        return
    assert ran.out == ""
    assert ran.err.startswith("weightsmith: ")
    assert len(ran.err) < 10_000, "the message is as large as the input"
    assert str(bad.name) in ran.err or str(bad) in ran.err, ran.err
    assert ran.err.isprintable() or all(c.isprintable() or c == "\n" for c in ran.err)
    nothing_but(place, before)
    assert command("plan", "linear", "--model", "good", "--model", bad).code == code


@pytest.mark.parametrize("text", [r[1] for r in RECIPES], ids=[r[0] for r in RECIPES])
def test_recipe(place, command, text):
    (place / "recipe.yaml").write_text(text)
    before = {p.name for p in place.iterdir()}
    began = time.monotonic()
    ran = command("merge", "recipe.yaml", "out")
    assert time.monotonic() - began < 10, "took too long"
    assert ran.code == WRONG_USE, ran
    assert ran.out == ""
    assert len(ran.err) < 10_000
    nothing_but(place, before)


def test_28_outputs_that_harm(place, command, content):
    (place / "link").symlink_to("good")
    (place / "file").write_text("x")
    (place / "full").mkdir()
    (place / "full" / "thesis").write_text("x")
    before = content(place)
    for out in ("good", "good/", "./good/x", "link", "link/x", "file", "full", "/", ".", ".."):
        for force in ([], ["--force"]):
            ran = command("merge", "linear", "--model", "good", "--model", "other", "--out", out, *force)
            assert ran.code == WRONG_USE, f"--out {out} {force}: {ran}"
            assert f"--out '{out.rstrip('/') or '/'}" in ran.err or out == "./good/x", ran.err
    assert content(place) == before


def test_29_names_of_models_never_become_paths(place, command):
    before = {p.name for p in place.iterdir()}
    assert command("merge", "linear", "--model", "good/../good", "--model", "other", "--out", "a/../out").code == DONE
    nothing_but(place, before | {"out"} | ({"a"} & {p.name for p in place.iterdir()}))


def test_30_shapes_and_names_bring_a_table(place, command):
    header({"w": told(shape=(2, 2)), "x": told(offsets=(16, 32))}, bytes(32))(place / "bad")
    ran = command("merge", "linear", "--model", "good", "--model", "bad", "--out", "out")
    assert ran.code == REFUSED
    assert "2 faults" in ran.err
    assert "shape (4,)" in ran.err
    assert "(2, 2)" in ran.err
    assert "tensor 'x' of 'bad' is not in the first input" in ran.err
    nothing_but(place, {"good", "other", "bad"})


def test_31_a_base_that_is_none(place, command, save_arrays):
    rng = np.random.default_rng(0)
    for name in ("x", "y"):
        save_arrays(place / name, {"w": rng.standard_normal(1000).astype("float32")})
    ran = command("merge", "task_arithmetic", "--base", "x", "--model", "y", "--out", "out")
    assert ran.code == REFUSED
    assert "--force-base" in ran.err
    assert (
        command("merge", "task_arithmetic", "--base", "x", "--model", "y", "--out", "out", "--force-base").code == DONE
    )


@pytest.mark.parametrize(
    "words",
    [
        "ties",
        "ties --scope tensor",
        "breadcrumbs --scope row",
        "dare",
        "lines --merged ties",
        "tall_masks",
        "consensus",
    ],
)
def test_32_models_that_are_the_base_give_the_base(place, command, save_arrays, load_arrays, words):
    rng = np.random.default_rng(0)
    arrays = {
        "layers.0.w": rng.standard_normal((3, 5)),
        "layers.1.w": np.full((4,), 0.5),
        "one": np.ones(1),
        "zero": np.zeros(3),
    }
    arrays = {n: a.astype("float32") for n, a in arrays.items()}
    for name in "xyz":
        save_arrays(place / name, arrays)
    more = ["--task", "1"] if "tall" in words else []
    ran = command("merge", *words.split(), *more, "--base", "x", "--model", "y", "--model", "z", "--out", "out")
    assert ran.code == DONE, ran
    found = load_arrays(place / "out")
    for name, array in arrays.items():
        assert np.array_equal(found[name], array), f"{name}: {found[name]}, expected {array}"


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_33_nonfinite_inputs(place, command, save_arrays, value):
    save_arrays(place / "bad", {"w": np.array([0, 1, value, value], "float32")})
    words = ["merge", "linear", "--model", "good", "--model", "bad", "--out", "out"]
    ran = command(*words)
    assert ran.code == REFUSED
    for part in ("bad", "'w'", "flat index 2", "2 of the", "--allow-nonfinite"):
        assert part in ran.err
    nothing_but(place, {"good", "other", "bad"})
    assert command(*words, "--allow-nonfinite", "--quiet").code == DONE


@pytest.mark.parametrize(("dtype", "largest"), [("float16", 65504.0), ("bfloat16", 3.3895314e38)])
def test_33_results_that_do_not_fit_the_output(place, command, save_arrays, dtype, largest):
    save_arrays(place / "x", {"w": np.array([0, largest, 0], "float64")})
    words = ["merge", "linear", "--model", "x", "--dtype", dtype, "--out"]
    assert command(*words, "fits").code == DONE
    save_arrays(place / "y", {"w": np.array([0, 0, -largest * 1.01], "float64")})
    words[3] = "y"
    ran = command(*words, "out")
    assert ran.code == REFUSED, ran
    for part in ("'w'", "flat index 2", "wider --dtype", {"float16": "F16", "bfloat16": "BF16"}[dtype]):
        assert part in ran.err, ran.err
    nothing_but(place, {"good", "other", "x", "y", "fits"})


def test_33_subnormal_numbers_survive(place, command, save_arrays, load_arrays):
    small = np.array([1e-45, -1e-40, 5e-39, 0], "float32")
    for name in "xy":
        save_arrays(place / name, {"w": small})
    assert command("merge", "linear", "--model", "x", "--model", "y", "--out", "out").code == DONE
    assert np.array_equal(load_arrays(place / "out")["w"], small)


def test_34_counters_are_copied_and_told(place, command, save_arrays, load_arrays):
    for i, name in enumerate("xy"):
        arrays = {"w": np.ones(4, "float32"), "position_ids": np.arange(3) + i, "num_batches_tracked": np.array(7 + i)}
        save_arrays(place / name, arrays)
    ran = command("plan", "linear", "--model", "x", "--model", "y")
    assert "position_ids: I64 is not averaged" in ran.out
    assert command("merge", "linear", "--model", "x", "--model", "y", "--out", "out").code == DONE
    found = load_arrays(place / "out")
    assert found["position_ids"].tolist() == [0, 1, 2]
    assert found["num_batches_tracked"] == 7


def test_35_a_tied_head_in_one_parent(place, command, save_arrays):
    arrays = {"model.embed_tokens.weight": np.ones((3, 2), "float32"), "lm_head.weight": np.full((3, 2), 2, "float32")}
    tied = {"tie_word_embeddings": True}
    save_arrays(place / "x", {"model.embed_tokens.weight": arrays["model.embed_tokens.weight"]}, config=tied)
    save_arrays(place / "y", arrays)
    ran = command("merge", "linear", "--model", "x", "--model", "y", "--out", "out")
    assert ran.code == REFUSED
    assert "lm_head.weight" in ran.err
    assert "ties the two" in ran.err
    nothing_but(place, {"good", "other", "x", "y"})


def test_37_a_budget_below_the_need(place, command):
    ran = command("merge", "linear", "--model", "good", "--model", "other", "--out", "out", "--memory", "10MB")
    assert ran.code == 4
    assert "Pass --memory" in ran.err
    nothing_but(place, {"good", "other"})


def test_memory_stays_bounded_whatever_a_header_claims(place, command):
    if not Path("/proc/self/status").exists():
        pytest.skip("no /proc")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for name, make, code in MODELS:
        if name.startswith(("6 ", "10 ", "11 overflow", "36 ", "3 larger", "5 long", "5 text")):
            folder = place / name.replace(" ", "-")
            assert command("plan", "linear", "--model", "good", "--model", make(folder)).code == code
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 200_000, f"{grown / 1000:.0f} MB more"


def test_11_scalars_and_empty_tensors_work(place, command, load_arrays):
    for name in "xy":
        header({**SCALAR_AND_EMPTY, "w": told(offsets=(4, 20))}, bytes(20))(place / name)
    assert command("merge", "linear", "--model", "x", "--model", "y", "--out", "out").code == DONE
    assert {n: a.shape for n, a in load_arrays(place / "out").items()} == {"v": (), "u": (0, 3), "w": (4,)}


def test_36_many_models_and_small_limits(place, command):
    models = []
    for i in range(300):
        safetensors(GOOD)(place / f"m{i}")
        models += ["--model", f"m{i}"]
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(200, soft), hard))
    try:
        ran = command("merge", "linear", *models, "--out", "out", "--memory", "300MB")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert ran.code == DONE, ran
