"""Rules on tensor names: patterns, layer numbers, kinds, tied pairs. No table per architecture."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterable, Mapping
from itertools import pairwise

# First rule that fits wins; the parts are looked for anywhere in the lower-case name.
_KINDS = (
    ("norm", ("norm", "ln_", ".ln1", ".ln2")),
    ("head", ("lm_head", "embed_out", "classifier", "cls.predictions", "score.")),
    ("embedding", ("embed", "wte", "wpe", "shared.weight")),
    ("attention", ("attn", "attention", "q_proj", "k_proj", "v_proj", "o_proj", "qkv")),
    (
        "mlp",
        (
            "mlp",
            "ffn",
            "feed_forward",
            "expert",
            "fc1",
            "fc2",
            "wi_0",
            "wi_1",
            "intermediate",
            "dense",
            "up_proj",
            "down_proj",
            "gate_proj",
        ),
    ),
    ("convolution", ("conv",)),
)
# Input embedding, and the head beside the backbone that shares its storage where a config ties them.
_TIED = (
    ("shared.weight", "lm_head.weight"),
    ("embed_tokens.weight", "lm_head.weight"),
    ("wte.weight", "lm_head.weight"),
    ("word_embeddings.weight", "lm_head.weight"),
    ("tok_embeddings.weight", "output.weight"),
    ("embed_in.weight", "embed_out.weight"),
)
_HEADS = (
    "lm_head.weight",
    "embed_out.weight",
    "cls.predictions.decoder.weight",
    "lm_head.decoder.weight",
    "output.weight",
)
_EXPERT = re.compile(r"(?:(.*)\.)?experts\.(?:(?:expert_)?([0-9]{1,5})\.)?(.+)", re.DOTALL)
_BACKBONES = ("model", "transformer", "gpt_neox", "encoder", "decoder")


def layer_of(name: str) -> int | None:
    """Return the layer a tensor belongs to: the first part of its name that is a number, else None.

    Parts are what dots separate. Later numbers (experts, sub-layers) do not count, nor do numbers of more
    than five digits. An encoder and a decoder both number their layers from 0.

    >>> layer_of("model.layers.3.mlp.experts.5.up_proj.weight")
    3
    >>> layer_of("lm_head.weight") is None
    True
    """
    for part in name.split("."):
        if part.isdigit() and part.isascii() and len(part) <= 5:
            return int(part)
    return None


def renumbered(name: str, layer: int) -> str:
    """Return the name with the number of its layer replaced.

    >>> renumbered("model.layers.3.mlp.experts.5.up_proj.weight", 12)
    'model.layers.12.mlp.experts.5.up_proj.weight'
    """
    parts = name.split(".")
    for place, part in enumerate(parts):
        if layer_of(part) is not None:
            parts[place] = str(layer)
            break
    return ".".join(parts)


def stack_of(name: str) -> str:
    """Return what precedes the layer's number in a name: the stack of layers; "" outside the layers.

    >>> stack_of("model.layers.3.mlp.up_proj.weight"), stack_of("lm_head.weight")
    ('model.layers.', '')
    """
    parts = name.split(".")
    return next(("".join(f"{p}." for p in parts[:i]) for i, p in enumerate(parts) if layer_of(p) is not None), "")


def precedes_layers(name: str) -> bool:
    """Tell whether a tensor outside the layers comes before them (embeddings), not after (final norm, head).

    >>> [precedes_layers(n) for n in ("bert.embeddings.LayerNorm.weight", "model.norm.weight", "embed_out.weight")]
    [True, False, False]
    """
    kind = kind_of(name)
    return kind in ("embedding", "convolution", "other") or (kind == "norm" and "embed" in name.lower())


def layer_count(names: Iterable[str]) -> int:
    """Return 1 + the largest layer number among the names; 0 where none has one.

    >>> layer_count(["h.0.w", "h.11.w", "wte.weight"])
    12
    """
    return 1 + max((layer for name in names if (layer := layer_of(name)) is not None), default=-1)


def kind_of(name: str) -> str:
    """Return a label: norm, head, embedding, attention, mlp, convolution or other. For display only.

    >>> kind_of("model.layers.3.self_attn.q_proj.weight")
    'attention'
    """
    lower = name.lower()
    for kind, parts in _KINDS:
        if any(part in lower for part in parts):
            return kind
    return "head" if lower == "output.weight" else "other"


def expert_place(name: str) -> tuple[str, int | None, str] | None:
    """Return what precedes the part `experts`, the expert's number (None where all are stacked), and what follows.

    >>> expert_place("model.layers.3.mlp.experts.5.up_proj.weight"), expert_place("mlp.experts.down_proj")
    (('model.layers.3.mlp', 5, 'up_proj.weight'), ('mlp', None, 'down_proj'))
    >>> expert_place("mlp.shared_experts.up_proj.weight") is None
    True
    """
    found = _EXPERT.fullmatch(name)
    return None if found is None else (found[1] or "", None if found[2] is None else int(found[2]), found[3])


def expert_counts(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, int]:
    """Return how many experts there are, by what precedes `experts`: by the largest number, or stacked in 3 axes.

    >>> expert_counts({"a.experts.0.w1": (2, 3), "a.experts.1.w1": (2, 3), "b.experts.w1": (4, 2, 3)})
    {'a': 2, 'b': 4}
    """
    counts: dict[str, int] = {}
    for name, shape in shapes.items():
        place = expert_place(name)
        if place is not None and (place[1] is not None or len(shape) > 2):
            count = shape[0] if place[1] is None else place[1] + 1
            counts[place[0]] = max(count, counts.get(place[0], 0))
    return counts


def is_expert(name: str) -> bool:
    """Tell whether a tensor belongs to one of several numbered experts, which a model may hold as one tensor when loaded.

    >>> is_expert("model.layers.3.mlp.experts.5.up_proj.weight"), is_expert("model.layers.3.mlp.gate.weight")
    (True, False)
    """
    parts = name.split(".")
    return any(part == "experts" and after.isdigit() for part, after in pairwise(parts))


def matches(pattern: str, name: str) -> bool:
    """Tell whether a glob (`*`, `?`, `[abc]`) fits the whole name; case counts, and `*` spans dots.

    >>> matches("*.mlp.*", "model.layers.0.mlp.up_proj.weight")
    True
    """
    return fnmatch.fnmatchcase(name, pattern)


def tied_pair(names: Iterable[str]) -> tuple[str, str] | None:
    """Return the input embedding and the output head that `tie_word_embeddings` makes one tensor.

    The embedding is found by the end of its name. The head is the one present; where none is, the name it
    would have: beside the backbone, so `a.model.embed_tokens.weight` gives `a.lm_head.weight`. None where no
    embedding, or more than one, fits.

    >>> tied_pair(["model.embed_tokens.weight", "model.norm.weight"])
    ('model.embed_tokens.weight', 'lm_head.weight')
    """
    listed = list(names)
    for suffix, head in _TIED:
        found = [name for name in listed if _ends_with(name, suffix)]
        if len(found) > 1:
            return None
        if found:
            embedding = found[0]
            present = [n for h in _HEADS for n in listed if _ends_with(n, h) and n != embedding]
            return embedding, present[0] if present else _outer(embedding) + head
    return None


def _ends_with(name: str, suffix: str) -> bool:
    return name == suffix or name.endswith("." + suffix)


def _outer(name: str) -> str:
    """Return what precedes the backbone in a name, its dot included."""
    parts = name.split(".")
    for at, part in enumerate(parts):
        if part in _BACKBONES:
            return "".join(f"{p}." for p in parts[:at])
    return ""
