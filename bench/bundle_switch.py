"""Switch a model in memory from one task of a bundle to another, and beside it the bound; `bundle_speed.py` runs this.

    python bench/bundle_switch.py BUNDLE FROM TO --expect FOLDER --rounds 3 --json FILE

The model is a torch module with the checkpoint's tensors as parameters. The bound copies the model's bytes into it from the
base's files, which lie in the page cache, and reads the shared part and the task's, by one thread, or by all (overlapped);
nothing is computed and nothing is written to disk. At the end the module must hold the bits of FOLDER, the unpacked task TO.
"""

import argparse
import json
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch

import weightsmith
from oracle import Tensors

BLOCK = 1 << 20
Job = tuple[Path, int, int, memoryview | None]  # file, from byte, how many, where to (None: anywhere)


def module_of(folder: Path) -> torch.nn.Module:
    """Return a module whose parameters are a checkpoint's tensors, all zero."""
    tensors = Tensors(folder)
    root = torch.nn.Module()
    for name in tensors.places:
        *path, last = name.split(".")
        place = root
        for word in path:
            if word not in dict(place.named_children()):
                place.add_module(word, torch.nn.Module())
            place = place.get_submodule(word)
        zeros = torch.zeros(tensors.shape(name), dtype=torch.bfloat16)
        place.register_parameter(last, torch.nn.Parameter(zeros, requires_grad=False))
    return root


def raw(parameter: torch.Tensor) -> memoryview:
    """Return a tensor's bytes."""
    return memoryview(parameter.detach().reshape(-1).view(torch.uint8).numpy())


def jobs_of(module: torch.nn.Module, base: Tensors, files: Sequence[Path]) -> list[Job]:
    """Return what the bound reads, block by block."""
    jobs: list[Job] = []
    for name, parameter in module.named_parameters():
        path, offset, _, _ = base.places[name]
        whole = raw(parameter)
        jobs += [(path, offset + at, 0, whole[at : at + BLOCK]) for at in range(0, len(whole), BLOCK)]
    for path in files:
        size = path.stat().st_size
        jobs += [(path, at, min(BLOCK, size - at), None) for at in range(0, size, BLOCK)]
    return jobs


def move(jobs: Sequence[Job], threads: int) -> None:
    """Read all blocks, by all threads."""
    handles = {path: os.open(path, os.O_RDONLY) for path in {job[0] for job in jobs}}

    def some(part: Sequence[Job]) -> None:
        buffer = memoryview(bytearray(BLOCK))
        for path, offset, count, target in part:
            place = buffer[:count] if target is None else target
            if os.preadv(handles[path], [place], offset) != len(place):
                raise OSError(f"{path}: short read")

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(some, [jobs[number::threads] for number in range(threads)]))
    for handle in handles.values():
        os.close(handle)


def anonymous_now() -> int:
    """Return the bytes that this process holds without the files it maps."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon:")) * 1024


def timed(action: Callable[[], object]) -> dict[str, float]:
    """Return the wall and CPU seconds of an action."""
    wall, cpu = time.perf_counter(), time.process_time()
    action()
    return {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}


def main() -> None:
    """Switch there and back as often as asked, and write the times down."""
    parser = argparse.ArgumentParser(description="Time a bundle's switch in memory, and its bound.")
    parser.add_argument("bundle", type=Path)
    parser.add_argument("source")
    parser.add_argument("target")
    parser.add_argument("--base", type=Path, required=True)
    parser.add_argument("--expect", type=Path, required=True, help="the unpacked task, to compare with")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, required=True)
    options = parser.parse_args()
    module = module_of(options.base)
    bundle = weightsmith.Bundle(options.bundle)
    parts = sorted(options.bundle.glob("tasks/*/part.safetensors"))
    place = next(p for p in parts if json.loads(p.with_suffix(".json").read_text())["task"] == options.target)
    files = [place, *options.bundle.glob("shared/*.safetensors")]
    jobs = jobs_of(module, Tensors(options.base), files)
    threads = os.cpu_count() or 1
    bundle.load_into(module, options.target)  # the first use writes all, loads loops and opens tasks
    before = anonymous_now()
    bound, overlapped, ours = [], [], []
    for _ in range(options.rounds):
        bound.append(timed(lambda: move(jobs, 1)))
        overlapped.append(timed(lambda: move(jobs, threads)))
        bundle.load_into(module, options.source)
        ours.append(timed(lambda: bundle.load_into(module, options.target)))
    expected = Tensors(options.expect)
    for name, parameter in module.named_parameters():
        path, offset, _, _ = expected.places[name]
        whole = np.frombuffer(raw(parameter), np.uint8)
        for at in range(0, whole.size, BLOCK):
            part = whole[at : at + BLOCK]
            if not np.array_equal(part, np.fromfile(path, np.uint8, part.size, offset=offset + at)):
                raise SystemExit(f"{name}: the module does not hold what the unpacked task holds")
    written = {"bound": bound, "bound_overlapped": overlapped, "weightsmith": ours, "anonymous_before": before}
    options.json.write_text(json.dumps(written) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
