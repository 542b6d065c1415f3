"""A vision transformer for 8 x 8 digits: its weights are a dictionary of named tensors, its forward a function."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from weightsmith.demo.tasks import PATCH, imported

Weights: TypeAlias = dict[str, Any]  # name to torch tensor

HEAD_FILE = "heads/head.safetensors"  # beside the trunk, not in it: heads stay per task and are never merged


@dataclass(frozen=True)
class Shape:
    """Sizes of the trunk: width of a token, layers, attention heads, width inside the MLP."""

    width: int = 64
    layers: int = 4
    attention_heads: int = 4
    inner: int = 128

    @property
    def tokens(self) -> int:
        """Number of patches in an image of 8 x 8."""
        return (8 // PATCH) ** 2


def initial_weights(shape: Shape, generator: Any) -> Weights:
    """Return a trunk's random weights: float32, normal with variance 1 / (3 inputs); norms at one."""
    torch = imported("torch")
    weights: Weights = {}

    def linear(name: str, rows: int, columns: int) -> None:
        noise = torch.randn(rows, columns, generator=generator)
        weights[f"{name}.weight"] = noise / math.sqrt(3 * columns)
        weights[f"{name}.bias"] = torch.zeros(rows)

    def norm(name: str) -> None:
        weights[f"{name}.weight"] = torch.ones(shape.width)
        weights[f"{name}.bias"] = torch.zeros(shape.width)

    linear("model.embeddings.patch", shape.width, PATCH * PATCH)
    weights["model.embeddings.position"] = 0.02 * torch.randn(shape.tokens, shape.width, generator=generator)
    for layer in range(shape.layers):
        at = f"model.layers.{layer}"
        norm(f"{at}.input_norm")
        for part in ("q_proj", "k_proj", "v_proj", "o_proj"):
            linear(f"{at}.attention.{part}", shape.width, shape.width)
        norm(f"{at}.post_norm")
        linear(f"{at}.mlp.up_proj", shape.inner, shape.width)
        linear(f"{at}.mlp.down_proj", shape.width, shape.inner)
    norm("model.norm")
    return weights


def initial_head(shape: Shape, classes: int, generator: Any) -> Weights:
    """Return a linear head's weights: (classes, width) and a bias."""
    torch = imported("torch")
    noise = torch.randn(classes, shape.width, generator=generator)
    return {"head.weight": noise / math.sqrt(3 * shape.width), "head.bias": torch.zeros(classes)}


def features(weights: Weights, images: Any, shape: Shape) -> Any:
    """Run the trunk: images (n, 8, 8) -> features (n, width), the mean over tokens after the last layer."""
    functional = imported("torch.nn.functional")
    side = 8 // PATCH

    def linear(name: str, x: Any) -> Any:
        return functional.linear(x, weights[f"{name}.weight"], weights[f"{name}.bias"])

    def norm(name: str, x: Any) -> Any:
        return functional.layer_norm(x, (shape.width,), weights[f"{name}.weight"], weights[f"{name}.bias"])

    def split(x: Any) -> Any:  # (n, tokens, width) -> (n, heads, tokens, width / heads)
        return x.unflatten(-1, (shape.attention_heads, -1)).transpose(-2, -3)

    patches = images.reshape(-1, side, PATCH, side, PATCH).transpose(2, 3).reshape(-1, shape.tokens, PATCH**2)
    x = linear("model.embeddings.patch", patches) + weights["model.embeddings.position"]
    for layer in range(shape.layers):
        at = f"model.layers.{layer}"
        y = norm(f"{at}.input_norm", x)
        q, k, v = (split(linear(f"{at}.attention.{part}", y)) for part in ("q_proj", "k_proj", "v_proj"))
        scores = q @ k.transpose(-1, -2) / math.sqrt(shape.width // shape.attention_heads)
        mixed = (scores.softmax(-1) @ v).transpose(-2, -3).flatten(-2)
        x = x + linear(f"{at}.attention.o_proj", mixed)
        inner = functional.gelu(linear(f"{at}.mlp.up_proj", norm(f"{at}.post_norm", x)))
        x = x + linear(f"{at}.mlp.down_proj", inner)
    return norm("model.norm", x.mean(-2))


def apply_head(head: Weights, found: Any) -> Any:
    """Run a head: features (n, width) -> logits (n, classes)."""
    return imported("torch.nn.functional").linear(found, head["head.weight"], head["head.bias"])


def logits(weights: Weights, head: Weights, images: Any, shape: Shape) -> Any:
    """Run trunk and head: images (n, 8, 8) -> (n, classes)."""
    return apply_head(head, features(weights, images, shape))


def save(folder: Path, weights: Weights, head: Weights | None, shape: Shape) -> None:
    """Write a checkpoint folder: model.safetensors, config.json and, where given, heads/head.safetensors."""
    write = imported("safetensors.torch").save_file
    folder.mkdir(parents=True)
    config = {
        "architectures": ["DigitTransformer"],
        "model_type": "digit_transformer",
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.attention_heads,
        "hidden_size": shape.width,
        "intermediate_size": shape.inner,
        "image_size": 8,
        "patch_size": PATCH,
        "dtype": "float32",
    }
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    write(weights, folder / "model.safetensors", metadata={"format": "pt"})
    if head is not None:
        (folder / HEAD_FILE).parent.mkdir()
        write(head, folder / HEAD_FILE, metadata={"format": "pt"})


def load(folder: Path) -> tuple[Weights, Shape]:
    """Read a trunk and its shape back from a checkpoint folder."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    shape = Shape(
        width=config["hidden_size"],
        layers=config["num_hidden_layers"],
        attention_heads=config["num_attention_heads"],
        inner=config["intermediate_size"],
    )
    return imported("safetensors.torch").load_file(folder / "model.safetensors"), shape


def load_head(folder: Path) -> Weights:
    """Read the head that lies beside an expert's trunk."""
    found: Weights = imported("safetensors.torch").load_file(folder / HEAD_FILE)
    return found
