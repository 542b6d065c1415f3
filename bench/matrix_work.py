"""The matrix merges that `matrices.py` measures, and the checkpoints and single tensors that they are given."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

import make_checkpoints
from oracle import Tensors

Floats = NDArray[np.floating[Any]]
Options = dict[str, Any]

RANK = 16  # of the adapters
KINDS = ("q_proj", "k_proj", "up_proj", "down_proj")  # one tensor of each shape that a layer has
ADAPTED = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
LAYERS = 2 * ADAPTED  # the matrices of two layers: with few, of unlike sizes, a thread waits for the other's last

for _size in ("15m", "0.3b", "1.1b"):  # one layer and a small vocabulary: the matrices of a model without its bulk
    _layer = {**make_checkpoints.SIZES[_size], "layers": 1, "vocabulary": 1000}
    make_checkpoints.SIZES[f"{_size}-layer"] = _layer


@dataclass(frozen=True)
class Work:
    """One merge.

    Attributes:
        name: As it appears in the table.
        method: The method's name.
        options: The method's options; as words on the command line, as keywords in memory.
        models: How many.
        adapters: Whether the models are adapters.
        peer: FusionBench's function in `fusionbench_driver.py`; None where it has none.
        peer_options: For it.
        target: How many times as fast as that it has to be; None where the two are not the same work.
        tolerance: Largest difference from its result, both in float64, as a share of the largest entry.
        decomposes: Whether 0.8 of the time has to be spent in decompositions.
        kinds: The tensors measured in memory.
        enlarged: With FusionBench's Adam: what the task vectors are multiplied by in memory, see `enlarge`.
        growth: Whether cost is measured against the number of models.
        sizes: Whether it is also measured against the size of the matrices.
    """

    name: str
    method: str
    options: tuple[tuple[str, Any], ...] = ()
    models: int = 3
    adapters: bool = False
    peer: str | None = None
    peer_options: tuple[tuple[str, Any], ...] = ()
    target: float | None = None
    tolerance: float = 1e-6
    decomposes: bool = True
    kinds: tuple[str, ...] = KINDS
    enlarged: float | None = None
    growth: bool = False
    sizes: bool = False

    def words(self) -> list[str]:
        """Return the options as words of the command line."""
        found = []
        for name, value in self.options:
            found += [f"--{name.rstrip('_').replace('_', '-')}", f"{value}"]
        return found

    def arguments(self, data: Path | None, models: int | None = None) -> list[str]:
        """Return the command's words after the verb; without a folder, as written in the README."""
        base = str(data / "base") if data else "base"
        words = [self.method, "--base", base]
        for number in range(1, (models or self.models) + 1):
            model = str(data / f"ft{number}") if data else f"ft{number}"
            adapter = f"{data / f'lora{number}'}" if data else f"lora{number}"
            words += ["--model", f"{base}+{adapter}" if self.adapters else model]
        return [*words, *self.words()]

    def keywords(self, task_vectors: Floats) -> Options:
        """Return the options in memory: those of the command, in FusionBench's terms where it sets them otherwise."""
        found: Options = dict(self.options)
        count, rows, columns = task_vectors.shape
        if self.peer == "knots":  # it keeps floor(density * size) + 1 entries of a block
            size = columns * min(rows, count * (RANK if self.adapters else columns))
            found |= {"density": kept_share(size, 0.2), "lambda_": 1.0, "cutoff": 1e-4}
        if self.peer in ("wudi", "doge"):  # its rate is in units of the weights
            deviation = float(np.sqrt(np.mean(task_vectors.astype(np.float64) ** 2)))
            found["rate"] = {"wudi": 1e-5, "doge": 1e-4}[self.peer] / deviation
        if self.peer == "doge":
            found["density"] = kept_share(rows * columns, 0.3)
        return found


def kept_share(size: int, density: float) -> float:
    """Return the density with which we keep as many of `size` entries as FusionBench does."""
    return (int(size * density) + 1) / size


def enlarge(task_vectors: Floats, times: float) -> Floats:
    """Return task vectors with which two ways of doing the same give the same.

    Adam's epsilon and rate are absolute in FusionBench and relative here; with larger task vectors the epsilon counts for
    nothing in either, and the steps stay short of where they turn to and fro. Of entries equal to a threshold, which
    bfloat16 makes many, FusionBench keeps all and we as many as asked; a thousandth of noise leaves none.
    """
    noise = np.random.default_rng(0).standard_normal(task_vectors.shape, np.float32)
    return task_vectors * (1 + noise / 1024) * np.float32(times)


WORKS = (
    Work("tsv_m", "tsv_m", peer="tsv_m", target=2, growth=True, sizes=True, kinds=LAYERS),
    Work("tsv_m, 8 models", "tsv_m", models=8, peer="tsv_m", target=2),
    Work("tsv_m, randomized, 8 models", "tsv_m", (("algorithm", "randomized"),), models=8, decomposes=False),
    Work("iso_c", "iso_c", peer="iso_c", target=2, growth=True, sizes=True, kinds=LAYERS),
    Work("iso_cts", "iso_cts", peer="iso_cts", peer_options=(("common", 0.8),), target=2, growth=True),
    Work(
        "knots, adapters",
        "knots",
        adapters=True,
        peer="knots",
        peer_options=(("eps", 1e-4), ("density", 0.2)),
        target=20,
        decomposes=False,
    ),
    Work(
        "knots, whole models",
        "knots",
        peer="knots",
        peer_options=(("eps", 1e-4), ("density", 0.2)),
        target=2,
        growth=True,
    ),
    Work(
        "wudi, iterative",
        "wudi",
        peer="wudi",
        peer_options=(("steps", 300),),
        target=2,
        tolerance=1e-3,
        decomposes=False,
        kinds=("q_proj", "k_proj"),
        enlarged=16.0,
    ),
    Work("wudi, closed", "wudi", (("solver", "closed"),), growth=True),
    Work(
        "doge",
        "doge",
        peer="doge",
        peer_options=(("subspace", 6), ("density", 0.3), ("eta", 0.07)),
        target=2,
        tolerance=5e-3,
        decomposes=False,
        kinds=("q_proj", "k_proj"),
        enlarged=256.0,
    ),
    Work("delta_svd", "delta_svd", (("rank", 64),), growth=True),
    Work("delta_svd, randomized", "delta_svd", (("rank", 64), ("algorithm", "randomized")), decomposes=False),
)


def make_data(folder: Path, size: str, models: int) -> Path:
    """Write a checkpoint, its fine-tunes and, for single layers, adapters of it, where missing."""
    make_checkpoints.make(folder, size, models)
    if size.endswith("-layer"):
        shapes = make_checkpoints.shapes_of(size)
        for number in range(1, models + 1):
            make_adapter(folder / f"lora{number}", shapes, number)
    return folder


def make_adapter(folder: Path, shapes: make_checkpoints.Shapes, number: int) -> None:
    """Write an adapter of all projections, in float32, where missing."""
    target = folder / "adapter_model.safetensors"
    if target.exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(number)
    tensors = {}
    for name, shape in shapes.items():
        if name.split(".")[-2] in ADAPTED:
            for part, size, scale in (("A", (RANK, shape[1]), shape[1] ** -0.5), ("B", (shape[0], RANK), 0.01)):
                values = generator.standard_normal(size, np.float32) * np.float32(scale)
                tensors[f"base_model.model.{name.removesuffix('.weight')}.lora_{part}.weight"] = values
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": RANK,
        "lora_alpha": RANK,
        "target_modules": [*ADAPTED],
    }
    (folder / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")
    save_file(tensors, target)


def problems(work: Work, data: Path, folder: Path, kinds: Sequence[str]) -> tuple[list[dict[str, Any]], ...]:
    """Write the first layer's task vectors of some kinds as single files.

    Returns:
        What `matrix_serve.load` takes: for weightsmith, and for FusionBench.
    """
    folder.mkdir(parents=True, exist_ok=True)
    shapes = make_checkpoints.shapes_of(make_checkpoints.describe(data)["size"])
    ours, theirs = [], []
    for kind in kinds:
        name = next(n for n in shapes if f".0.self_attn.{kind}." in n or f".0.mlp.{kind}." in n)
        factors = adapter_factors(data, name, work.models) if work.adapters else None
        # Products of float32 factors are formed in float64, exact enough to be compared in it.
        product = factors and factors[0].astype(np.float64) @ factors[1]
        task_vectors = differences(data, name, work.models) if product is None else product
        if work.enlarged:
            task_vectors = enlarge(task_vectors, work.enlarged)
        path = folder / f"{kind}.npy"
        np.save(path, task_vectors)
        entry: dict[str, Any] = {"task_vectors": str(path)}
        theirs.append({**entry, "options": dict(work.peer_options)})
        if factors:
            entry["factors"] = [str(folder / f"{kind}.{side}.npy") for side in ("left", "right")]
            for place, values in zip(entry["factors"], factors, strict=True):
                np.save(place, values)
        ours.append({**entry, "options": work.keywords(task_vectors)})
    return ours, theirs


def differences(data: Path, name: str, models: int) -> Floats:
    """Return the task vectors of one tensor, (T, rows, columns), float32."""
    base = Tensors(data / "base")
    found = [Tensors(data / f"ft{t}").values(name) - base.values(name) for t in range(1, models + 1)]
    return np.stack(found).reshape(models, *base.shape(name))


def adapter_factors(data: Path, name: str, models: int) -> tuple[Floats, Floats]:
    """Return the factors of one tensor's adapters: (T, rows, RANK) and (T, RANK, columns), float32."""
    key = f"base_model.model.{name.removesuffix('.weight')}"
    files = [load_file(data / f"lora{t}" / "adapter_model.safetensors") for t in range(1, models + 1)]
    left, right = ([file[f"{key}.lora_{part}.weight"] for file in files] for part in ("B", "A"))
    return np.stack(left), np.stack(right)
