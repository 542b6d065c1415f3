"""Writing LoRA adapters in the layout of PEFT: names and shapes of factors, and the config."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from weightsmith.checkpoint.adapter import PATTERN_COUNT, PREFIX
from weightsmith.checkpoint.write import Shard, lay_out
from weightsmith.errors import MismatchError

CONFIG_NAME, WEIGHTS_NAME = "adapter_config.json", "adapter_model.safetensors"
KINDS = ("linear", "transposed", "embedding", "convolution")
_SUFFIX = ".weight"


@dataclass(frozen=True, slots=True)
class Target:
    """A weight that an adapter changes, and how PEFT's module for it stores the factors A (rank, in) and B (out, rank).

    Attributes:
        name: The weight's, ending in ".weight".
        shape: As stored.
        kind: "linear": stored [out, in]; "transposed": [in, out], with fan_in_fan_out; "embedding": [tokens, out];
            "convolution": [out, in, ...], seen as a matrix [out, all others].
    """

    name: str
    shape: tuple[int, ...]
    kind: str

    @property
    def path(self) -> str:
        """The module's path in the model."""
        return self.name.removesuffix(_SUFFIX)

    @property
    def matrix(self) -> tuple[int, int]:
        """The shape (rows, columns) as which the weight is seen, as stored."""
        return self.shape[0], math.prod(self.shape[1:])

    @property
    def cost(self) -> int:
        """Numbers that one rank takes."""
        return sum(self.matrix)

    @property
    def nbytes(self) -> int:
        """Bytes of the weight in float64, as which it is worked on."""
        return 8 * math.prod(self.shape)

    @property
    def is_turned(self) -> bool:
        """Whether the weight is (B @ A) transposed."""
        return self.kind in ("transposed", "embedding")

    def tensors(self, rank: int) -> tuple[tuple[str, tuple[int, ...]], tuple[str, tuple[int, ...]]]:
        """Return names and shapes of A and B."""
        key, (rows, columns) = PREFIX + self.path, self.matrix
        if self.kind == "embedding":
            return (f"{key}.lora_embedding_A", (rank, rows)), (f"{key}.lora_embedding_B", (columns, rank))
        down, up = (rows, columns) if self.is_turned else (columns, rows)
        ones = (1,) * (len(self.shape) - 2)
        inner = self.shape[1:] if self.kind == "convolution" else (down,)
        return (f"{key}.lora_A.weight", (rank, *inner)), (f"{key}.lora_B.weight", (up, rank, *ones))


def saved_name(name: str) -> str:
    """Return the name in an adapter of a tensor that it replaces."""
    return PREFIX + name


def lay_out_adapter(tensors: Sequence[tuple[str, str, tuple[int, ...], int]]) -> Shard:
    """Lay an adapter's tensors, (name, dtype, shape, nbytes) each, out in its one file."""
    (shard,) = lay_out(tensors, sum(t[3] for t in tensors), {"format": "pt"})
    return replace(shard, name=WEIGHTS_NAME)


def adapter_config(ranks: Mapping[Target, int], modules_to_save: Sequence[str], base: str, revision: str | None) -> str:
    """Return adapter_config.json: alpha = rank everywhere, so that what is added is B @ A with scale 1.

    Ranks other than the most common one go into rank_pattern and alpha_pattern, each pattern a whole path from its start.

    Args:
        ranks: The rank of every module that has factors.
        modules_to_save: Paths of the modules whose tensors the adapter replaces.
        base: What the base was called.
        revision: Its commit on the hub.

    Raises:
        MismatchError: There are more patterns than a reader takes.
    """
    (common, _), *_ = Counter(ranks.values()).most_common(1)
    patterns = {f"^{re.escape(t.path)}": rank for t, rank in ranks.items() if rank != common}
    if len(patterns) > PATTERN_COUNT:
        raise MismatchError(
            f"{len(patterns)} modules have a rank of their own",
            expected=f"at most {PATTERN_COUNT}",
            do="Pass --rank, or write several adapters with --only",
        )
    config: dict[str, Any] = {
        "peft_type": "LORA",
        "task_type": None,
        "base_model_name_or_path": base,
        "revision": revision,
        "inference_mode": True,
        "r": common,
        "lora_alpha": common,
        "rank_pattern": patterns,
        "alpha_pattern": patterns,
        "target_modules": [t.path for t in ranks],
        "modules_to_save": list(modules_to_save) or None,
        "fan_in_fan_out": any(t.kind == "transposed" for t in ranks),
        "bias": "none",
        "init_lora_weights": True,
        "lora_dropout": 0.0,
        "use_dora": False,
        "use_rslora": False,
    }
    return json.dumps(config, indent=2, ensure_ascii=False) + "\n"
