"""The demo's tasks: eight questions about the handwritten digits that scikit-learn ships."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from weightsmith.errors import ResourceError

Images: TypeAlias = NDArray[np.float32]  # (n, 8, 8), 0 = paper, 1 = ink
Labels: TypeAlias = NDArray[np.int64]  # (n,)

PATCH = 2
SPLITS = {"train": 1200, "validation": 250, "test": 347}


@dataclass(frozen=True)
class Task:
    """How a digit becomes an example of a task.

    Attributes:
        name: Also the name of the expert's folder.
        about: One line for the report.
        classes: Number of labels, from 0.
        change: Images and a random generator to images of the same shape.
        relabel: Digits (0 to 9) to labels.
    """

    name: str
    about: str
    classes: int
    change: Callable[[Images, np.random.Generator], Images]
    relabel: Callable[[Labels], Labels]


@dataclass(frozen=True)
class Examples:
    """One task's examples: per split ("train", "validation", "test") the images and their labels."""

    task: Task
    images: dict[str, Images]
    labels: dict[str, Labels]


def imported(name: str) -> ModuleType:
    """Import a module that only the demo needs; ResourceError names the extra when it is missing."""
    import importlib

    try:
        return importlib.import_module(name)
    except ImportError as error:
        package = {"sklearn": "scikit-learn"}.get(name.partition(".")[0], name.partition(".")[0])
        raise ResourceError(
            f"demo: {package} is not installed ({error})",
            do="Install it with: pip install 'weightsmith[demo]'",
        ) from error


def examples(seed: int = 0, tasks: tuple[Task, ...] | None = None) -> tuple[Examples, ...]:
    """Return every task's examples; all tasks split the same 1,797 digits in the same way.

    A digit that is a test digit of one task is a test digit of all, so no expert or base has seen it.
    """
    digits = imported("sklearn.datasets").load_digits()
    order = np.random.default_rng(seed).permutation(len(digits.target))
    images = (np.asarray(digits.images)[order] / 16).astype(np.float32)
    targets = np.asarray(digits.target)[order].astype(np.int64)
    edges = np.cumsum([0, *SPLITS.values()])
    parts = {name: slice(a, b) for name, a, b in zip(SPLITS, edges, edges[1:], strict=False)}
    found = []
    for number, task in enumerate(TASKS if tasks is None else tasks):
        changed = task.change(images, np.random.default_rng([seed, number]))
        changed = np.ascontiguousarray(changed, dtype=np.float32)
        labels = task.relabel(targets)
        found.append(
            Examples(task, {n: changed[s] for n, s in parts.items()}, {n: labels[s] for n, s in parts.items()})
        )
    return tuple(found)


def _same(images: Images, _: np.random.Generator) -> Images:
    return images


def _digits(labels: Labels) -> Labels:
    return labels


def _rotated(images: Images, _: np.random.Generator) -> Images:
    return np.rot90(images, axes=(1, 2))


def _occluded(images: Images, random: np.random.Generator) -> Images:
    covered = images.copy()
    for image, (top, left) in zip(covered, random.integers(0, 6, (len(images), 2)), strict=True):
        image[top : top + 3, left : left + 3] = 0.5
    return covered


def _inverted(images: Images, _: np.random.Generator) -> Images:
    return np.float32(1) - images


def _noisy(images: Images, random: np.random.Generator) -> Images:
    return (images + random.normal(0, 0.2, images.shape)).clip(0, 1).astype(np.float32)


def _scrambled(images: Images, random: np.random.Generator) -> Images:
    side = images.shape[1] // PATCH
    patches = images.reshape(-1, side, PATCH, side, PATCH).swapaxes(2, 3).reshape(-1, side * side, PATCH, PATCH)
    moved = patches[:, random.permutation(side * side)].reshape(-1, side, side, PATCH, PATCH)
    return moved.swapaxes(2, 3).reshape(images.shape)


def _parity(labels: Labels) -> Labels:
    return labels % 2


def _above_four(labels: Labels) -> Labels:
    return (labels > 4).astype(np.int64)


def _prime(labels: Labels) -> Labels:
    return np.isin(labels, (2, 3, 5, 7)).astype(np.int64)


PLAIN = Task("plain", "read a digit as it was written", 10, _same, _digits)
TASKS = (
    Task("rotated", "read a digit turned by a quarter", 10, _rotated, _digits),
    Task("inverted", "read a white digit on black ink", 10, _inverted, _digits),
    Task("noisy", "read a digit under noise (standard deviation 0.2)", 10, _noisy, _digits),
    Task("occluded", "read a digit behind a gray square of 3 x 3", 10, _occluded, _digits),
    Task("scrambled", "read a digit whose 16 patches changed places", 10, _scrambled, _digits),
    Task("parity", "even or odd?", 2, _same, _parity),
    Task("above_four", "greater than four?", 2, _same, _above_four),
    Task("prime", "a prime number?", 2, _same, _prime),
)
