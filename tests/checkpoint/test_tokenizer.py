"""Vocabularies read from a folder's files, against what the tokenizers library itself says."""

import json

import pytest
from tokenizers import AddedToken, Tokenizer
from tokenizers.models import BPE, Unigram, WordLevel, WordPiece

from weightsmith.checkpoint.tokenizer import TokenizerFiles, digest, extended_text, read_tokenizer, settle
from weightsmith.errors import CheckpointError

VOCAB = {"<unk>": 0, "a": 1, "b": 2, "ab": 3}
MODELS = {
    "BPE": lambda: BPE(VOCAB, [("a", "b")]),
    "WordLevel": lambda: WordLevel(VOCAB, "<unk>"),
    "WordPiece": lambda: WordPiece(VOCAB, unk_token="<unk>"),
    "Unigram": lambda: Unigram([("<unk>", 0.0), ("a", -1.0), ("b", -2.0), ("ab", -3.0)], 0, False),
}


def saved(folder, model, added=()):
    tokenizer = Tokenizer(MODELS[model]())
    tokenizer.add_tokens(list(added))
    tokenizer.save(str(folder / "tokenizer.json"))
    return tokenizer


@pytest.mark.parametrize("model", MODELS)
def test_fast_tokenizers_are_read_as_the_library_reads_them(tmp_path, model):
    made = saved(tmp_path, model, ["x", AddedToken("<s>", special=True), "ab"])
    found = read_tokenizer(tmp_path)
    assert found.ids == made.get_vocab(with_added_tokens=True)
    assert [settings["content"] for settings in found.added] == [
        t.content for _, t in sorted(made.get_added_tokens_decoder().items())
    ]


@pytest.mark.parametrize("model", MODELS)
def test_extension_keeps_ids_and_appends(tmp_path, model):
    saved(tmp_path, model, ["x"])
    settings = {"content": "<s>", "special": True, "lstrip": True, "normalized": False}
    text, ids = extended_text(read_tokenizer(tmp_path), ["y", "z"], [settings, {"content": "b"}])
    assert ids == {**VOCAB, "x": 4, "y": 5, "z": 6, "<s>": 7}
    made = Tokenizer.from_str(text)
    assert made.get_vocab(with_added_tokens=True) == ids
    added = made.get_added_tokens_decoder()
    assert (added[7].special, added[7].lstrip, added[7].normalized) == (True, True, False)
    assert added[2].content == "b"


def test_slow_tokenizers(tmp_path):
    assert read_tokenizer(tmp_path) is None
    assert digest(tmp_path) is None
    (tmp_path / "vocab.json").write_text(json.dumps(VOCAB))
    (tmp_path / "merges.txt").write_text("a b\n")
    (tmp_path / "added_tokens.json").write_text('{"<s>": 4, "<t>": 5}')
    before = digest(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(
        '{"added_tokens_decoder": {"5": {"content": "<t>", "special": true}, "6": {"content": "<u>"}}}'
    )
    assert digest(tmp_path) != before
    found = read_tokenizer(tmp_path)
    assert found.ids == {**VOCAB, "<s>": 4, "<t>": 5, "<u>": 6}
    assert [settings["content"] for settings in found.added] == ["<s>", "<t>", "<u>"]
    with pytest.raises(CheckpointError, match=r"only vocab.json"):
        extended_text(found, ["y"], [])


def test_word_pieces_by_line(tmp_path):
    (tmp_path / "vocab.txt").write_bytes("[PAD]\r\n[UNK]\r\nä\r\n".encode())
    assert read_tokenizer(tmp_path).ids == {"[PAD]": 0, "[UNK]": 1, "ä": 2}


@pytest.mark.parametrize(
    "text",
    [
        "[]",
        "{}",
        '{"model": {"vocab": 3}}',
        '{"model": {"vocab": {"a": 0}}, "added_tokens": [{"id": 1}]}',
        '{"model": {"vocab": {"a": 0, "b": 0}}}',
        '{"model": {"vocab": {"a": -1}}}',
        '{"model": {"vocab": {"a": "0"}}}',
        '{"model": {"vocab": {"a": true}}}',
        '{"model": {"vocab": {"a": 0}}, "added_tokens": [{"id": 1, "content": "a"}]}',
        '{"model": {"vocab": [[3, 0.5]]}}',
        "not JSON",
        "\x80",
    ],
)
def test_damaged_tokenizers(tmp_path, text):
    (tmp_path / "tokenizer.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(CheckpointError):
        read_tokenizer(tmp_path)


def test_what_the_library_refuses_is_an_error(tmp_path):
    (tmp_path / "tokenizer.json").write_text('{"model": {"vocab": {"a": 0}}}')
    with pytest.raises(CheckpointError, match="not read by the library"):
        extended_text(read_tokenizer(tmp_path), ["b"], [])


def test_gaps_are_refused(tmp_path):
    """The library gives a new token the number of tokens as its id, which one of them may have."""
    Tokenizer(WordLevel({"a": 0, "b": 2}, "a")).save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(CheckpointError, match="gaps"):
        extended_text(read_tokenizer(tmp_path), ["c"], [])


def test_links_that_lead_outside_are_not_followed(tmp_path):
    (tmp_path / "secret").write_text("{}")
    folder, out = tmp_path / "model", tmp_path / "out"
    folder.mkdir()
    out.mkdir()
    (folder / "special_tokens_map.json").symlink_to(tmp_path / "secret")
    (folder / "tokenizer.json").symlink_to(tmp_path / "secret")
    assert read_tokenizer(folder) is None
    assert settle(out, TokenizerFiles(donor=folder, name="x"), []) == []
    assert list(out.iterdir()) == []


def test_slow_files_that_lack_the_new_tokens_are_left_out(tmp_path):
    for name in ("vocab.json", "merges.txt", "tokenizer.json", "config.json"):
        (tmp_path / name).write_text("{}")
    saved(tmp_path, "BPE")
    text, _ = extended_text(read_tokenizer(tmp_path), [], [{"content": "<s>", "special": True}])
    (tmp_path / "tokenizer_config.json").write_text('{"added_tokens_decoder": {}, "eos_token": "b"}')
    records = [
        {"file": name, "action": "copied", "reason": "", "bytes": 2}
        for name in ("config.json", "merges.txt", "tokenizer.json", "tokenizer_config.json", "vocab.json")
    ]
    found = {r["file"]: r["action"] for r in settle(tmp_path, TokenizerFiles(text=text), records)}
    assert found == {
        "config.json": "copied", "merges.txt": "skipped", "tokenizer.json": "rewritten",
        "tokenizer_config.json": "rewritten", "vocab.json": "skipped",
    }  # fmt: skip
    assert not (tmp_path / "vocab.json").exists()
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert settings["added_tokens_decoder"]["4"]["content"] == "<s>"
    assert settings["eos_token"] == "b"
