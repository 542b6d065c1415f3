"""Tokenizer files of a model's folder: which token has which row, chat templates, and a tokenizer with more tokens."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from weightsmith.checkpoint.config_text import config_with_vocabulary
from weightsmith.checkpoint.folder import check_member, read_json
from weightsmith.checkpoint.header import read_exactly, regular_file
from weightsmith.errors import CheckpointError, ResourceError, shown

MAX_BYTES = 200_000_000
# Files that say what the tokens are. Those of a slow tokenizer say it without the tokens that were added later.
SLOW_FILES = ("vocab.json", "merges.txt", "vocab.txt", "added_tokens.json", "tokenizer.model", "spiece.model",
              "sentencepiece.bpe.model", "sentencepiece.model", "spm.model", "vocab.bpe")  # fmt: skip
FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", *SLOW_FILES)
TEMPLATE_FILES = ("chat_template.jinja", "chat_template.json")
_FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")


@dataclass(frozen=True)
class Tokenizer:
    """The vocabulary that a folder's files state.

    Attributes:
        file: The file that states it.
        ids: Token to id.
        added: The settings of the tokens beside the model's own, as tokenizer.json has them, by id.
    """

    file: Path
    ids: dict[str, int]
    added: tuple[Mapping[str, Any], ...]


def read_tokenizer(folder: Path) -> Tokenizer | None:
    """Return the vocabulary of tokenizer.json, else of vocab.json or vocab.txt with the tokens added to it.

    None where the folder has no tokenizer.

    Raises:
        CheckpointError: The files are damaged, or of a kind that is not read, such as sentencepiece's alone.
    """
    file = vocabulary_file(folder)
    if file is None:
        found = [name for name in SLOW_FILES if _has(folder, name)]
        if not found:
            return None
        raise CheckpointError(
            f"tokenizer of '{shown(folder)}'",
            expected="tokenizer.json, or vocab.json with merges.txt, or vocab.txt",
            got=" and ".join(found),
            do="Save it as a fast tokenizer, which writes tokenizer.json: AutoTokenizer.from_pretrained(FOLDER).save_pretrained",
        )
    ids, added = _read_fast(file) if file.name == "tokenizer.json" else _read_slow(file)
    places: dict[int, str] = {}
    for token, place in ids.items():
        if type(place) is not int or not 0 <= place < 2**31 or places.setdefault(place, token) != token:
            raise CheckpointError(
                f"file '{shown(file)}'",
                expected="a whole number of its own for every token",
                got=f"{shown(place)} for '{shown(token)}'"
                + (f" and '{shown(places[place])}'" if type(place) is int and place in places else ""),
            )
    return Tokenizer(file, ids, tuple(sorted(added, key=lambda settings: int(settings["id"]))))


def vocabulary_file(folder: Path) -> Path | None:
    """Return the file of a folder that states the vocabulary, None where there is none that is read."""
    names = ("tokenizer.json", "vocab.json", "vocab.txt")
    return next((folder / name for name in names if _has(folder, name)), None)


def digest(folder: Path) -> str | None:
    """Return the SHA-256 of the files that state a folder's vocabulary; None where there are none."""
    first = vocabulary_file(folder)
    if first is None:
        return None
    rest = [] if first.name == "tokenizer.json" else ["added_tokens.json", "tokenizer_config.json"]
    sums = hashlib.sha256()
    for file in (first, *(folder / name for name in rest if _has(folder, name))):
        sums.update(_content(file))
    return sums.hexdigest()


def _has(folder: Path, name: str) -> bool:
    """Tell whether a folder has a file of its own, no link that leads outside."""
    return (folder / name).is_file() and not check_member(folder / name, folder, follow_symlinks=False)


def _content(file: Path) -> bytes:
    with regular_file(file) as (handle, size):
        if size > MAX_BYTES:
            raise CheckpointError(f"file '{shown(file)}'", expected=f"at most {MAX_BYTES} bytes", got=f"{size}")
        return read_exactly(handle, size, 0, file)


def _read_fast(file: Path) -> tuple[dict[str, int], list[Mapping[str, Any]]]:
    whole = read_json(file, MAX_BYTES)
    model = whole.get("model") if isinstance(whole, dict) else None
    vocab = model.get("vocab") if isinstance(model, dict) else None
    added = (whole.get("added_tokens") or []) if isinstance(whole, dict) else []
    if isinstance(vocab, list) and all(isinstance(p, list) and p and isinstance(p[0], str) for p in vocab):
        vocab = {piece[0]: place for place, piece in enumerate(vocab)}  # Unigram: [piece, score] by id
    is_list = isinstance(added, list) and all(
        isinstance(t, dict) and isinstance(t.get("content"), str) and type(t.get("id")) is int for t in added
    )
    if not isinstance(vocab, dict) or not is_list:
        raise CheckpointError(
            f"file '{shown(file)}'",
            expected="the JSON of the tokenizers library: model.vocab and added_tokens",
            got="another",
        )
    return _joined(file, vocab, added), added


def _read_slow(file: Path) -> tuple[dict[str, int], list[Mapping[str, Any]]]:
    if file.name == "vocab.json":
        vocab = read_json(file, MAX_BYTES)
    else:
        lines = _content(file).decode("utf-8", "surrogateescape").split("\n")
        vocab = {line.rstrip("\r"): place for place, line in enumerate(lines) if line or place + 1 < len(lines)}
    more = "added_tokens.json"
    by_token = read_json(file.parent / more, MAX_BYTES) if _has(file.parent, more) else {}
    decoder = read_settings(file.parent).get("added_tokens_decoder") or {}
    if not isinstance(vocab, dict) or not isinstance(by_token, dict) or not isinstance(decoder, dict):
        raise CheckpointError(f"file '{shown(file)}'", expected="a vocabulary: token to id", got="another content")
    added = [{"content": token, "id": place} for token, place in by_token.items()]
    for place, settings in decoder.items():
        if not place.isdigit() or not isinstance(settings, dict) or not isinstance(settings.get("content"), str):
            raise CheckpointError(f"file '{shown(file.parent)}/tokenizer_config.json'", expected="tokens by their id")
        added = [settings | {"id": int(place)}, *(a for a in added if a["content"] != settings["content"])]
    return _joined(file, vocab, added), list(added)


def _joined(file: Path, vocab: Mapping[str, int], added: Iterable[Mapping[str, Any]]) -> dict[str, int]:
    """Return a model's own tokens and the added ones; a token in both must have one id."""
    ids = dict(vocab)
    for settings in added:
        token, place = settings["content"], settings["id"]
        if ids.setdefault(token, place) != place:
            raise CheckpointError(
                f"file '{shown(file)}'",
                expected=f"one id for '{shown(token)}'",
                got=f"{shown(ids[token])} and {shown(place)}",
            )
    return ids


def extended_text(
    tokenizer: Tokenizer, ordinary: Sequence[str], added: Sequence[Mapping[str, Any]]
) -> tuple[str, dict[str, int]]:
    """Return tokenizer.json's text with more tokens after its own, whose ids stay; and all ids.

    Args:
        tokenizer: What is extended.
        ordinary: Tokens to add, in order.
        added: Settings of tokens to be added as such, in order; they may be ordinary tokens so far.

    Raises:
        CheckpointError: It has no tokenizer.json that the library reads, or its ids have gaps.
        ResourceError: The tokenizers library is not installed.
    """
    try:
        import tokenizers
    except ImportError as error:
        raise ResourceError(
            "a vocabulary with more tokens than the base's needs the library tokenizers, which is not installed",
            do="Install it: pip install 'weightsmith[hf]'",
        ) from error
    if tokenizer.file.name != "tokenizer.json":
        raise CheckpointError(
            f"tokenizer of '{shown(tokenizer.file.parent)}' cannot be extended",
            expected="tokenizer.json",
            got=f"only {tokenizer.file.name}",
            do="Save it as a fast tokenizer: AutoTokenizer.from_pretrained(FOLDER).save_pretrained",
        )
    try:
        built = tokenizers.Tokenizer.from_str(_content(tokenizer.file).decode("utf-8"))
    except Exception as error:  # the library raises plain Exception
        raise CheckpointError(
            f"file '{shown(tokenizer.file)}' is not read by the library tokenizers {tokenizers.__version__}: {shown(error)}",
            do="Update the library, or save the tokenizer anew",
        ) from error
    built.add_tokens(list(ordinary))
    built.add_tokens(
        [tokenizers.AddedToken(t["content"], **{flag: bool(t[flag]) for flag in _FLAGS if flag in t}) for t in added]
    )
    ids: dict[str, int] = built.get_vocab(with_added_tokens=True)
    moved = [token for token, place in tokenizer.ids.items() if ids.get(token) != place]
    if moved or len(set(ids.values())) < len(ids):
        raise CheckpointError(
            f"file '{shown(tokenizer.file)}' cannot be extended",
            expected="ids without gaps, and added tokens at the ids it states",
            got=f"'{shown(moved[0])}' at another id" if moved else "two tokens at one id",
            do="Choose another model as the vocabulary's source",
        )
    return built.to_str(pretty=True), ids


def read_settings(folder: Path) -> dict[str, Any]:
    """Return tokenizer_config.json as a mapping, {} where there is none."""
    path = folder / "tokenizer_config.json"
    settings = read_json(path, MAX_BYTES) if _has(folder, path.name) else {}
    if not isinstance(settings, dict):
        raise CheckpointError(f"file '{shown(path)}'", expected="a JSON object", got=type(settings).__name__)
    return settings


def read_template(folder: Path) -> str | None:
    """Return a folder's chat template, the default one where it has several; None where it has none."""
    jinja, other = TEMPLATE_FILES
    if _has(folder, jinja):
        return _content(folder / jinja).decode("utf-8", "replace")
    found = read_settings(folder).get("chat_template")
    if found is None and _has(folder, other):
        whole = read_json(folder / other, MAX_BYTES)
        found = whole.get("chat_template") if isinstance(whole, dict) else None
    if isinstance(found, list):
        named = {t.get("name"): t.get("template") for t in found if isinstance(t, dict)}
        found = named.get("default", next(iter(named.values()), None))
    return found if isinstance(found, str) else None


@dataclass(frozen=True)
class TokenizerFiles:
    """What becomes of the tokenizer files of an output.

    Attributes:
        donor: The folder whose tokenizer files are taken; None to leave those of the first input.
        name: The donor, for the record.
        text: The new tokenizer.json; None for the donor's.
        template: The new chat template; None for the donor's.
    """

    donor: Path | None = None
    name: str = ""
    text: str | None = None
    template: str | None = None


def settle(into: Path, output: TokenizerFiles, records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Put the output's tokenizer files in place of the first input's, which were carried over; return the new records.

    A tokenizer with more tokens leaves the files of a slow one out, which would say another vocabulary.
    """
    known = {record["file"]: record for record in records}
    if output.donor is not None:
        for name in (*FILES, *TEMPLATE_FILES):
            _remove(into / name, known)
            if _has(output.donor, name):
                _write(into / name, _content(output.donor / name), "copied", f"tokenizer of {output.name}", known)
    if output.text is not None:
        for name in SLOW_FILES:
            if (into / name).is_file():
                _remove(into / name, known)
                known[name] = {"file": name, "action": "skipped", "reason": "lacks the new tokens", "bytes": 0}
        _write(into / "tokenizer.json", output.text.encode(), "rewritten", "with the tokens of the output", known)
        settings = read_settings(into)
        if "added_tokens_decoder" in settings:
            added = sorted(json.loads(output.text)["added_tokens"], key=lambda t: int(t["id"]))
            settings["added_tokens_decoder"] = {str(t.pop("id")): t for t in added}
            _write_settings(into, settings, "with the tokens of the output", known)
    if output.template is not None:
        _remove(into / TEMPLATE_FILES[1], known)
        _write(into / TEMPLATE_FILES[0], output.template.encode(), "rewritten", "the recipe's chat_template", known)
        settings = read_settings(into)
        if settings:
            _write_settings(into, settings | {"chat_template": output.template}, "the recipe's chat_template", known)
    return [known[name] for name in sorted(known)]


def adapt_configs(
    into: Path, rows: tuple[int, int], moved: Mapping[int, int], records: list[dict[str, Any]]
) -> list[dict[str, Any]]:
    """Set the number of rows and the ids of special tokens in the configs of an output; return the new records.

    Args:
        into: The folder.
        rows: Rows of the embedding now, and in the first input.
        moved: Ids that changed, the former to the new one.
        records: Of the files carried over.
    """
    known = {record["file"]: record for record in records}
    for name in ("config.json", "generation_config.json"):
        if (into / name).is_file():
            before = _content(into / name)
            after = config_with_vocabulary(before, (rows[1], rows[0]), moved, name)
            if after != before:
                _write(into / name, after, "rewritten", "for the vocabulary of the output", known)
    return [known[name] for name in sorted(known)]


def _write_settings(into: Path, settings: Mapping[str, Any], why: str, known: dict[str, dict[str, Any]]) -> None:
    text = json.dumps(settings, indent=2, ensure_ascii=False) + "\n"
    _write(into / "tokenizer_config.json", text.encode(), "rewritten", why, known)


def _write(path: Path, raw: bytes, action: str, why: str, known: dict[str, dict[str, Any]]) -> None:
    try:
        path.write_bytes(raw)
    except OSError as error:
        raise ResourceError(f"file {shown(path)} cannot be written: {error.strerror}") from error
    former = known.get(path.name, {})
    reason = f"{former['reason']}; {why}" if former.get("action") == "rewritten" else why
    known[path.name] = {"file": path.name, "action": action, "reason": reason, "bytes": len(raw)}


def _remove(path: Path, known: dict[str, dict[str, Any]]) -> None:
    path.unlink(missing_ok=True)
    known.pop(path.name, None)
