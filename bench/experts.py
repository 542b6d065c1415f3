"""Train one small vision transformer on eight real image tasks, for `bundles.py`.

    python bench/experts.py --data IMAGES --out EXPERTS

IMAGES holds NAME/NAME.npz with x_train, y_train, x_test and y_test (labels from 0; images of 28 x 28 or 32 x 32, grey or
colored, 8 bits). The body is pre-trained on three of them; a task gets a linear head, fitted once to the features of the
pre-trained body, and then a body of its own is trained below that head, which stays as it is. EXPERTS/base and
EXPERTS/TASK are checkpoint folders of the bodies; heads lie outside, in EXPERTS/heads, and are never merged. What exists is
kept. One thread and fixed seeds: the same bytes each time on one machine. Takes about five minutes of one core.
"""

import argparse
import json
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional

SIDE, PATCH, WIDTH, LAYERS, HEADS = 32, 8, 128, 4, 4
BATCH = 32
SHIFT = 1  # pixels that an image is moved by at most while training
WEIGHTS = "model.safetensors"


@dataclass(frozen=True)
class Task:
    """A data set and how long a body is trained on it.

    Attributes:
        name: The expert's folder.
        data: The data set's folder.
        steps: Batches of 32 images.
        labels: The task's label for each of the file's; none where they are the same.
        mirrored: Whether a mirrored image is as good.
    """

    name: str
    data: str
    steps: int
    labels: tuple[int, ...] = ()
    mirrored: bool = False


TASKS = (  # in the order in which `bundles.py` adds them
    Task("cifar10", "cifar10", 600, mirrored=True),
    Task("mnist", "mnist", 400),
    Task("omniglot_a", "omniglot_a", 450),
    Task("fashion_mnist", "fashion_mnist", 300, mirrored=True),
    Task("cmater_bangla", "cmater_bangla", 350),
    Task("cifar10_animals", "cifar10", 250, labels=(0, 0, 1, 1, 1, 1, 1, 1, 0, 0), mirrored=True),
    Task("pneumonia_mnist", "pneumonia_mnist", 200),
    Task("cmater_devanagari", "cmater_devanagari", 300),
)
PRETRAINING = (
    Task("cifar100_fine", "cifar100", 900, mirrored=True),
    Task("omniglot_a", "omniglot_a", 500),
    Task("fashion_mnist", "fashion_mnist", 500, mirrored=True),
)
PRETRAINING_RATE, RATE = 1e-3, 2e-4


@dataclass(frozen=True)
class Split:
    """Images (n, 3, 32, 32) of 8 bits and their labels (n,)."""

    images: Tensor
    labels: Tensor

    def first(self, count: int) -> "Split":
        """Return the first examples, all where `count` is 0."""
        return Split(self.images[: count or None], self.labels[: count or None])


class Layer(nn.Module):
    """Attention and an MLP, each behind a norm and beside a shortcut."""

    def __init__(self) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(WIDTH)
        self.qkv_proj = nn.Linear(WIDTH, 3 * WIDTH, bias=False)
        self.o_proj = nn.Linear(WIDTH, WIDTH, bias=False)
        self.mlp_norm = nn.LayerNorm(WIDTH)
        self.up_proj = nn.Linear(WIDTH, 4 * WIDTH, bias=False)
        self.down_proj = nn.Linear(4 * WIDTH, WIDTH, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Tokens (n, tokens, width) to the same."""
        parts = self.qkv_proj(self.attention_norm(x)).unflatten(-1, (3, HEADS, WIDTH // HEADS))
        query, key, value = parts.permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(query, key, value)
        x = x + self.o_proj(mixed.transpose(1, 2).flatten(-2))
        return x + self.down_proj(functional.gelu(self.up_proj(self.mlp_norm(x))))


class Body(nn.Module):
    """The vision transformer without a head: three convolutions make a token of each patch of 8 x 8."""

    def __init__(self) -> None:
        super().__init__()
        widths = (3, WIDTH // 4, WIDTH // 2, WIDTH)
        self.stem = nn.ModuleList(nn.Conv2d(a, b, 3, 2, 1, bias=False) for a, b in pairwise(widths))
        self.position = nn.Parameter(0.1 * torch.randn((SIDE // PATCH) ** 2, WIDTH))
        self.layers = nn.ModuleList(Layer() for _ in range(LAYERS))
        self.norm = nn.LayerNorm(WIDTH)

    def forward(self, images: Tensor) -> Tensor:
        """Images (n, 3, 32, 32) of 8 bits to features (n, width), the mean over tokens."""
        x = self.stem[0](images.float() / 127.5)
        for convolution in self.stem[1:]:
            x = convolution(functional.gelu(x))
        x = 2 * x.flatten(2).transpose(1, 2) + self.position
        for layer in self.layers:
            x = layer(x)
        return self.norm(x.mean(1))


def read_splits(data: Path, task: Task) -> dict[str, Split]:
    """Return a task's train, validation (a tenth of the file's training images, 200 to 500) and test examples."""
    with np.load(data / task.data / f"{task.data}.npz", allow_pickle=False) as file:
        arrays = {name: file[name] for name in file.files if name[1:2] == "_"}
    held = min(500, max(200, len(arrays["y_train"]) // 10))
    order = np.random.default_rng(0).permutation(len(arrays["y_train"]))
    found = {}
    for name, part, chosen in (
        ("train", "train", order[held:]),
        ("validation", "train", order[:held]),
        ("test", "test", None),
    ):
        labels = arrays[f"y_{part}"].astype(np.int64)
        if task.labels:
            labels = np.array(task.labels)[labels]
        images = _pictures(arrays[f"x_{part}"])
        found[name] = Split(*(torch.from_numpy(x if chosen is None else x[chosen]) for x in (images, labels)))
    return found


def _pictures(images: np.ndarray) -> np.ndarray:
    """Return images as (n, 3, 32, 32): padded by zeros, grey ones three times."""
    if images.ndim == 3:
        images = np.repeat(images[..., None], 3, axis=-1)
    space = SIDE - images.shape[1]
    padded = np.pad(images, ((0, 0), (space // 2, space - space // 2), (space // 2, space - space // 2), (0, 0)))
    return np.ascontiguousarray(padded.transpose(0, 3, 1, 2))


def features(body: Body, images: Tensor) -> Tensor:
    """Return the features of many images."""
    with torch.no_grad():
        return torch.cat([body(part) for part in images.split(500)])


def accuracy(body: Body, head: Tensor, split: Split) -> float:
    """Return the share of a split's examples that are labeled correctly; `head` is (classes, width + 1)."""
    found = features(body, split.images) @ head[:, :-1].T + head[:, -1]
    return float((found.argmax(-1) == split.labels).double().mean())


def fitted_head(body: Body, split: Split) -> Tensor:
    """Fit a head (classes, width + 1) to a body's features, by least squares with a small ridge.

    Its logits are then scaled to the least cross-entropy, among powers of two.
    """
    found = features(body, split.images).double()
    inputs = torch.cat([found, torch.ones(len(found), 1, dtype=torch.float64)], 1)
    classes = int(split.labels.max()) + 1
    targets = functional.one_hot(split.labels, classes).double() - 1 / classes
    gram = inputs.T @ inputs
    ridge = 1e-3 * gram.diagonal().mean() * torch.eye(len(gram), dtype=torch.float64)
    head = torch.linalg.solve(gram + ridge, inputs.T @ targets).T
    logits = inputs @ head.T
    scale = min((2.0**k for k in range(8)), key=lambda k: functional.cross_entropy(k * logits, split.labels).item())
    return (scale * head).float()


def batches(split: Split, steps: int, mirrored: bool, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield batches in shuffled rounds, each moved by some pixels, half of them mirrored where that is as good."""
    random = torch.Generator().manual_seed(seed)
    waiting = torch.empty(0, dtype=torch.long)
    for _ in range(steps):
        while len(waiting) < BATCH:
            waiting = torch.cat([waiting, torch.randperm(len(split.labels), generator=random)])
        chosen, waiting = waiting[:BATCH], waiting[BATCH:]
        down, right, flip = (int(torch.randint(n, (), generator=random)) for n in (2 * SHIFT + 1, 2 * SHIFT + 1, 2))
        images = functional.pad(split.images[chosen], (SHIFT,) * 4)[..., down : down + SIDE, right : right + SIDE]
        yield images.flip(-1) if mirrored and flip else images, split.labels[chosen]


def train(body: Body, name: str, work: Sequence[tuple[Task, Split, Tensor]], rate: float, heads_too: bool) -> None:
    """Train a body in place on tasks that take turns, each as often as it has steps."""
    trained = [*body.parameters(), *(head for _, _, head in work if heads_too)]
    for value in trained:
        value.requires_grad_()
    total = sum(task.steps for task, _, _ in work)
    streams = [batches(split, task.steps, task.mirrored, seed) for seed, (task, split, _) in enumerate(work)]
    turns = sorted((turn / task.steps, which) for which, (task, _, _) in enumerate(work) for turn in range(task.steps))
    optimizer = torch.optim.AdamW(trained, lr=rate, weight_decay=0.01, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total, pct_start=0.1)
    began, sums = time.process_time(), 0.0
    for step, (_, which) in enumerate(turns, 1):
        images, labels = next(streams[which])
        head = work[which][2]
        loss = functional.cross_entropy(body(images) @ head[:, :-1].T + head[:, -1], labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        sums += loss.item()
        if step % 100 == 0 or step == total:
            since = (step - 1) % 100 + 1
            print(
                f"{name}: step {step} of {total}, loss {sums / since:.3f}, {time.process_time() - began:.0f} s",
                flush=True,
            )
            sums = 0.0
    for value in trained:
        value.requires_grad_(False)


def save(folder: Path, body: Body, told: dict[str, Any]) -> None:
    """Write a checkpoint folder; it appears complete or not at all."""
    config = {
        "architectures": ["SmallVisionTransformer"],
        "model_type": "small_vision_transformer",
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "hidden_size": WIDTH,
        "intermediate_size": 4 * WIDTH,
        "image_size": SIDE,
        "patch_size": PATCH,
        "dtype": "float32",
    }
    partial = folder.with_name(f"{folder.name}.partial")
    partial.mkdir(parents=True, exist_ok=True)
    save_file({n: t.contiguous() for n, t in body.state_dict().items()}, partial / WEIGHTS, metadata={"format": "pt"})
    (partial / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    (partial / "training.json").write_text(json.dumps(told, indent=2) + "\n", encoding="utf-8")
    partial.rename(folder)


def load_body(file: Path) -> Body:
    """Read a body from a checkpoint file."""
    body = Body()
    body.load_state_dict(load_file(file))
    return body.requires_grad_(False)


def load_head(folder: Path, name: str) -> Tensor:
    """Read a task's head."""
    return load_file(folder / "heads" / f"{name}.safetensors")["head"]


def pretrain(data: Path, out: Path) -> None:
    """Train the base, with heads of its own that are not kept."""
    torch.manual_seed(0)
    body = Body()
    work = []
    for task in PRETRAINING:
        split = read_splits(data, task)["train"]
        work.append((task, split, torch.zeros(int(split.labels.max()) + 1, WIDTH + 1)))
    train(body, "base", work, PRETRAINING_RATE, heads_too=True)
    save(out / "base", body, {"rate": PRETRAINING_RATE, "tasks": {task.name: task.steps for task in PRETRAINING}})


def finetune(data: Path, out: Path, task: Task) -> None:
    """Fit a task's head to the base, then train a body below it."""
    body = load_body(out / "base" / WEIGHTS)
    splits = read_splits(data, task)
    head = fitted_head(body, splits["train"])
    before = accuracy(body, head, splits["validation"])
    train(body, task.name, [(task, splits["train"], head)], RATE, heads_too=False)
    after = accuracy(body, head, splits["validation"])
    print(f"{task.name}: validation accuracy {before:.3f} before, {after:.3f} after", flush=True)
    (out / "heads").mkdir(exist_ok=True)
    save_file({"head": head}, out / "heads" / f"{task.name}.safetensors")
    save(out / task.name, body, {"rate": RATE, "steps": task.steps, "validation": {"base": before, "expert": after}})


def main() -> int:
    """Train what is missing."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of the image data sets")
    parser.add_argument("--out", type=Path, required=True, help="folder for the base, the experts and their heads")
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.out.mkdir(parents=True, exist_ok=True)
    if (options.out / "base").exists():
        print("base: exists")
    else:
        pretrain(options.data, options.out)
    for task in TASKS:
        if (options.out / task.name).exists():
            print(f"{task.name}: exists")
        else:
            finetune(options.data, options.out, task)
    return 0


if __name__ == "__main__":
    sys.exit(main())
