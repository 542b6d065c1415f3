"""Changes to a config.json that leave every other byte as it is."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from weightsmith.checkpoint.header import strict_json

_JSON_TOKEN = re.compile(rb'"(?:[^"\\]|\\.)*"|[{}\[\],:]|[^\s{}\[\],:"]+')
_SIZE_KEYS = (b'"vocab_size"', b'"padded_vocab_size"', b'"n_vocab"')
_ID_KEYS = (b'"suppress_tokens"', b'"begin_suppress_tokens"', b'"bad_words_ids"', b'"forced_decoder_ids"')
_COUNT_KEYS = (
    b'"num_hidden_layers"', b'"num_layers"', b'"num_decoder_layers"', b'"n_layer"', b'"n_layers"', b'"encoder_layers"',
    b'"decoder_layers"', b'"num_blocks"', b'"depth"',
)  # fmt: skip
_LAYER_LIST = re.compile(rb'(?<!\\)("\w*layer\w*")\s*:\s*(\[[^\[\]{}]*\])')
_EXPERT_KEY = re.compile(rb'"(?!\w*shared)\w*experts"')
_LIST = b"[]"


def config_with_dtype(text: bytes, dtype: str | None, what: str = "config.json") -> bytes:
    """Return a config.json whose `dtype` and `torch_dtype` keys say `dtype`; every other byte stays.

    Keys of the top level and of nested `*_config` objects (`text_config`, ...) count, except those that
    describe a quantization. No key is added, an empty key is filled at the top level only, and values that
    are not a dtype's name are left alone. None changes nothing.

    >>> config_with_dtype(b'{"a": 1, "torch_dtype": "float32"}', "bfloat16")
    b'{"a": 1, "torch_dtype": "bfloat16"}'
    """
    strict_json(text, what, nonfinite=True)
    if dtype is None:
        return text
    name = f'"{dtype}"'.encode()

    def change(path: Sequence[bytes], key: bytes, word: bytes) -> bytes:
        return name if key in (b'"dtype"', b'"torch_dtype"') and _is_stale(path, word, dtype) else word

    return _edited(text, change)


def config_with_vocabulary(
    text: bytes, sizes: tuple[int, int], ids: Mapping[int, int], what: str = "config.json"
) -> bytes:
    """Return a config.json or generation_config.json for another vocabulary; every other byte stays.

    Keys of the top level and of nested `*_config` objects count.

    Args:
        text: The file.
        sizes: Rows of the embedding before and now. `vocab_size` is set at the top level, and below where it is the former.
        ids: Token ids that changed, the former to the new one; for `*_token_id` and the lists of tokens to suppress.
        what: What the text is, for messages.

    >>> config_with_vocabulary(b'{"vocab_size": 4, "eos_token_id": [2, 3]}', (4, 6), {2: 5})
    b'{"vocab_size": 6, "eos_token_id": [5, 3]}'
    """
    strict_json(text, what, nonfinite=True)

    def change(path: Sequence[bytes], key: bytes, word: bytes) -> bytes:
        if not word.isdigit() or not all(part == _LIST or part.endswith(b'_config"') for part in path[1:]):
            return word
        if key in _SIZE_KEYS:
            return str(sizes[1]).encode() if len(path) == 1 or int(word) == sizes[0] else word
        is_id = key.endswith((b'_token_id"', b'_token_ids"', b'_token_index"')) or key in _ID_KEYS
        return str(ids.get(int(word), int(word))).encode() if is_id else word

    return _edited(text, change)


def config_with_layers(
    text: bytes, before: int, origins: Sequence[tuple[Mapping[str, Any], int]], what: str = "config.json"
) -> bytes:
    """Return a config.json for another stack of layers; every other byte stays.

    Keys that count the layers are set where they say `before`; flat lists with one entry per layer (`layer_types`, ...) get
    the entries of the layers that the new ones come from. Nested objects count.

    Args:
        text: The file.
        before: Layers of the model it describes.
        origins: Per new layer, the config of the model that it comes from and its number there.
        what: What the text is, for messages.

    >>> config_with_layers(b'{"n_layer": 2, "layer_types": ["a", "b"]}', 2, [({}, 0), ({}, 1), ({}, 1)])
    b'{"n_layer": 3, "layer_types": ["a", "b", "b"]}'
    """
    strict_json(text, what, nonfinite=True)
    now = str(len(origins)).encode()
    text = _edited(text, lambda path, key, word: now if key in _COUNT_KEYS and word == str(before).encode() else word)

    def restack(found: re.Match[bytes]) -> bytes:
        own = json.loads(found[2])
        if len(own) != before:
            return found.group()
        key = json.loads(found[1])
        given = [config.get(key, own) for config, _ in origins]
        if any(not isinstance(v, list) or layer >= len(v) for v, (_, layer) in zip(given, origins, strict=True)):
            return found.group()
        new = [values[layer] for values, (_, layer) in zip(given, origins, strict=True)]
        return found[0][: found.start(2) - found.start()] + json.dumps(new).encode()

    return _LAYER_LIST.sub(restack, text)


def config_with_experts(text: bytes, before: int, now: int, what: str = "config.json") -> bytes:
    """Return a config.json whose keys that count routed experts say `now` where they said `before`; nested objects count.

    >>> config_with_experts(b'{"num_local_experts": 8, "num_experts_per_tok": 8, "n_shared_experts": 8}', 8, 4)
    b'{"num_local_experts": 4, "num_experts_per_tok": 8, "n_shared_experts": 8}'
    """
    strict_json(text, what, nonfinite=True)
    told, new = str(before).encode(), str(now).encode()
    return _edited(text, lambda _, key, word: new if word == told and _EXPERT_KEY.fullmatch(key) else word)


def _edited(text: bytes, change: Callable[[Sequence[bytes], bytes, bytes], bytes]) -> bytes:
    """Return a JSON text with each scalar replaced by change(path, key, word).

    The path holds, from the outermost in, the quoted key of each open object (that of the whole is empty) and `[]`
    for each open list; a list's scalars have its key.
    """
    pieces: list[bytes] = []
    done = 0
    path: list[bytes] = []
    keys: list[bytes] = []  # that of each open object or list
    key = before = b""
    for token in _JSON_TOKEN.finditer(text):
        word = token.group()
        is_value = before == b":" or (bool(path) and path[-1] == _LIST and word not in (b",", b"]"))
        if is_value and before != b":":
            key = keys[-1]
        if word in (b"{", b"["):
            is_nested = bool(path) and path[-1] == _LIST
            keys.append(key)
            path.append(_LIST if word == b"[" else b"" if is_nested else key)
            key = b""
        elif word in (b"}", b"]"):
            path.pop()
            keys.pop()
        elif word == b":":
            key = before
        elif is_value:
            changed = change(path, key, word)
            if changed != word:
                pieces += [text[done : token.start()], changed]
                done = token.end()
        before = word
    return b"".join([*pieces, text[done:]])


def _is_stale(path: Sequence[bytes], word: bytes, dtype: str) -> bool:
    """Tell whether a JSON value at `path` is the name of another dtype than the weights'."""
    if any(not key.endswith(b'_config"') or key.startswith(b'"quantization') for key in path[1:]):
        return False
    if word == b"null":
        return len(path) == 1
    return word.startswith(b'"') and word.strip(b'"').removeprefix(b"torch.") != dtype.encode()
