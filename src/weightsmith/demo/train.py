"""Training for the demo: one base on plain digits and a few examples of every task, then one expert per task."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from weightsmith.demo.model import Shape, Weights, apply_head, features, initial_head, initial_weights, logits
from weightsmith.demo.tasks import Examples, imported

WORKERS = 2


@dataclass(frozen=True)
class Settings:
    """How much is trained. The base sees few images of each task, so that it is weak at all of them."""

    shape: Shape = field(default_factory=Shape)
    base_images: int = 128
    base_epochs: int = 20
    base_batch: int = 64
    base_rate: float = 3e-3
    expert_epochs: int = 8
    expert_batch: int = 64
    expert_rate: float = 5e-4


@contextmanager
def reproducible() -> Iterator[None]:
    """Make torch deterministic, one thread per operation; put back what was set before.

    One thread, because tiny operations shared between threads wait for each other on a busy machine.
    """
    torch = imported("torch")
    threads, strict = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(strict, warn_only=warn_only)


def pretrain(
    plain: Examples, tasks: Sequence[Examples], settings: Settings, seed: int = 0
) -> tuple[Weights, dict[str, Weights]]:
    """Train trunk and heads together on all plain digits and the first `base_images` images of every task.

    Tasks whose labels are the ten digits share one head; the others have their own. Afterwards the heads are
    frozen, as the zero-shot heads of CLIP are: experts train the trunk alone.
    """
    torch = imported("torch")
    cross_entropy = imported("torch.nn.functional").cross_entropy
    generator = torch.Generator().manual_seed(seed)
    weights = initial_weights(settings.shape, generator)
    of_digits = initial_head(settings.shape, 10, generator)
    per_task = [
        of_digits if e.task.classes == 10 else initial_head(settings.shape, e.task.classes, generator) for e in tasks
    ]
    few = settings.base_images
    images = torch.stack([torch.from_numpy(e.images["train"][:few]) for e in tasks])
    labels = torch.stack([torch.from_numpy(e.labels["train"][:few]) for e in tasks])
    plain_images, plain_labels = (torch.from_numpy(part["train"]) for part in (plain.images, plain.labels))

    def loss(batch: tuple[Any, Any]) -> Any:  # (tasks, k) indices of task images, (n,) of plain ones
        chosen, of_plain = batch
        parts = [images[i, chosen[i]] for i in range(len(tasks))]
        found = features(weights, torch.cat([*parts, plain_images[of_plain]]), settings.shape)
        answers = [*(labels[i, chosen[i]] for i in range(len(tasks))), plain_labels[of_plain]]
        pieces = zip(found.split([len(a) for a in answers]), [*per_task, of_digits], answers, strict=True)
        return torch.stack([cross_entropy(apply_head(head, x), a) for x, head, a in pieces]).mean()

    def batches() -> Iterator[tuple[Any, Any]]:
        for _ in range(settings.base_epochs):
            for of_plain in torch.randperm(len(plain_labels), generator=generator).split(settings.base_batch):
                yield (
                    torch.randint(few, (len(tasks), settings.base_batch // 8), generator=generator),
                    of_plain,
                )

    unique = {id(t): t for part in (weights, of_digits, *per_task) for t in part.values()}
    _descend(list(unique.values()), loss, list(batches()), settings.base_rate)
    return _detached(weights), {e.task.name: _detached(head) for e, head in zip(tasks, per_task, strict=True)}


def finetune(base: Weights, head: Weights, task: Examples, settings: Settings, seed: int = 0) -> Weights:
    """Train a copy of the base's trunk on all training images of one task, the head frozen."""
    torch = imported("torch")
    cross_entropy = imported("torch.nn.functional").cross_entropy
    generator = torch.Generator().manual_seed(seed)
    weights = {name: tensor.clone() for name, tensor in base.items()}
    images, labels = torch.from_numpy(task.images["train"]), torch.from_numpy(task.labels["train"])

    def loss(batch: Any) -> Any:
        return cross_entropy(logits(weights, head, images[batch], settings.shape), labels[batch])

    def batches() -> Iterator[Any]:
        for _ in range(settings.expert_epochs):
            yield from torch.randperm(len(labels), generator=generator).split(settings.expert_batch)

    _descend(list(weights.values()), loss, list(batches()), settings.expert_rate)
    return _detached(weights)


def finetune_all(
    base: Weights,
    heads: dict[str, Weights],
    tasks: Sequence[Examples],
    settings: Settings,
    seed: int,
    done: Callable[[str], None],
) -> dict[str, Weights]:
    """Train one expert per task, two at a time; `done` hears each finished task's name."""
    torch = imported("torch")
    with ThreadPoolExecutor(WORKERS, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        running = {
            pool.submit(finetune, base, heads[e.task.name], e, settings, seed + 1 + i): e.task.name
            for i, e in enumerate(tasks)
        }
        for future in as_completed(running):
            future.result()
            done(running[future])
    return {name: future.result() for future, name in running.items()}


def _descend(tensors: list[Any], loss: Callable[[Any], Any], batches: Sequence[Any], rate: float) -> None:
    """Minimize by AdamW; the rate rises linearly over the first fifth of the steps and then falls to 0."""
    torch = imported("torch")
    for tensor in tensors:
        tensor.requires_grad_()
    optimizer = torch.optim.AdamW(tensors, lr=rate, weight_decay=0.01)
    for step, batch in enumerate(batches):
        at = (step + 1) / len(batches)
        optimizer.param_groups[0]["lr"] = rate * min(at / 0.2, (1 - at) / 0.8 + 1e-3)
        optimizer.zero_grad()
        loss(batch).backward()
        optimizer.step()


def _detached(weights: Weights) -> Weights:
    return {name: tensor.detach() for name, tensor in weights.items()}
