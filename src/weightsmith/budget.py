"""How the engine cuts its work so that it stays inside `--memory`: predicted, and refused beforehand."""

from __future__ import annotations

import os
import resource
from dataclasses import dataclass
from pathlib import Path

from weightsmith.errors import ResourceError
from weightsmith.tensor.arrays import BLOCK

RADIX = 1 << 16
MEGABYTE = 1_000_000

# Anonymous memory of the interpreter with numpy and the compiled loops, measured by bench/scaling.py; with torch, more.
HOST_BYTES = 150 * MEGABYTE
CUDA_BYTES = 1_500 * MEGABYTE
TOKEN_BYTES = 200  # one token of one model, where vocabularies are brought together
ENTRY_BYTES = 700  # one tensor of one checkpoint in the tables of the plan


@dataclass(frozen=True)
class Limits:
    """How the engine cuts its work.

    Attributes:
        tile: Elements computed at a time by one thread, a multiple of BLOCK.
        chunk_bytes: Output bytes handed on at a time.
        window: Chunks in flight.
        threads: Computing threads.
        regions: Parts of a scope whose counts are kept apart in a search for a k-th magnitude.
        peak_bytes: Anonymous memory expected at the most.
        aside_bytes: For each thread, room for entries kept aside in place of such counts, see `windows.py`.
        room_bytes: What the matrices in flight may hold together, where they wait for each other.
    """

    tile: int
    chunk_bytes: int
    window: int
    threads: int
    regions: int
    peak_bytes: int
    aside_bytes: int = 0
    room_bytes: int = 0


@dataclass(frozen=True)
class Demand:
    """What one run asks of memory.

    Attributes:
        inputs: Checkpoints read at once, the base included.
        entries: Tensors in all of them together.
        itemsize: Bytes of a working number, 4 or 8.
        ranks: k-th values searched at once per input; 0 for none.
        ranked: Size of the largest tensor that is ranked by itself; 0 for none.
        row: Longest row that must be held whole, in elements; 0 for none.
        factor_bytes: Low-rank factors of the largest adapted tensor, of all inputs together, as float32.
        matrix_bytes: What one thread holds for the largest tensor that is taken as a whole matrix; 0 for none.
        takes_turns: Whether matrices wait until there is room for them, so that small ones get all threads and only large
            ones have few; otherwise every thread has room for the largest.
        token_bytes: The tables of tokens, where vocabularies are brought together.
        on_device: Whether tiles are computed on a CUDA device.
    """

    inputs: int
    entries: int
    itemsize: int
    ranks: int = 0
    ranked: int = 0
    row: int = 0
    factor_bytes: int = 0
    matrix_bytes: int = 0
    takes_turns: bool = False
    token_bytes: int = 0
    on_device: bool = False


def usable_threads() -> int:
    """Return the number of processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def choose_limits(demand: Demand, memory_bytes: int, threads: int, limit: str = "--memory") -> Limits:
    """Choose tiles that fit in cache and buffers that fit in memory_bytes, which `limit` names in messages.

    A method that takes whole matrices gets what the largest needs even where that is more: on one thread, or beside idle
    threads where they take turns.

    Raises:
        ResourceError: Even the smallest cut needs more; the message says how much.
    """
    wanted = 4_194_304 if demand.on_device else 131_072
    cached = 12 * MEGABYTE * (100 if demand.on_device else 1)
    row = -(-demand.row // BLOCK) * BLOCK
    tile = max(BLOCK, wanted)
    while tile > BLOCK and demand.inputs * tile * demand.itemsize > cached:
        tile //= 2
    tile = max(tile, row)
    chunk, regions = 4 * MEGABYTE, 16
    each, largest = (0, demand.matrix_bytes) if demand.takes_turns else (demand.matrix_bytes, 0)
    never_fits = largest and limit == "--memory" and largest + _peak(demand, BLOCK, MEGABYTE, 1, 1) > memory_bytes
    while True:
        window = threads + 1 if each else 2 * threads + 2  # results that wait may be whole matrices
        rest = _peak(demand, tile, chunk, regions, threads) + threads * each
        room = max(largest, min(memory_bytes - rest, threads * largest))
        limits = Limits(tile, chunk, window, threads, regions, rest + room, _aside(demand, regions, threads), room)
        if limits.peak_bytes <= memory_bytes:
            return limits
        if regions > 1 and demand.ranks:
            regions //= 2
        elif tile > max(BLOCK, row):
            tile = max(tile // 2, row)
        elif chunk > MEGABYTE:
            chunk //= 2
        elif threads > 1 and not (never_fits and rest <= memory_bytes):
            threads -= 1
        elif demand.matrix_bytes and limit == "--memory":
            return limits  # a matrix cannot be cut: the plan tells what it takes
        else:
            need = -(-limits.peak_bytes // MEGABYTE)
            do = f"Pass --memory {need}MB or more" if limit == "--memory" else "Raise the limit"
            raise ResourceError(
                f"{limit} is too small",
                expected=f"at least {need} MB for {demand.inputs} inputs",
                got=f"{memory_bytes // MEGABYTE} MB",
                do=do + (", or choose another --scope than row" if row else ""),
            )


def _peak(demand: Demand, tile: int, chunk: int, regions: int, threads: int) -> int:
    """Return the anonymous memory expected at the most, whole matrices apart."""
    working = tile * (max(8, 2 * demand.inputs) + (2 * demand.inputs + 6) * demand.itemsize)
    counted = demand.ranks * demand.inputs * RADIX
    digits = counted * (4 * regions + 8 * (regions + 4))
    fixed = (CUDA_BYTES if demand.on_device else 0) + HOST_BYTES + demand.entries * ENTRY_BYTES + demand.token_bytes
    search = max(digits, 3 * _aside(demand, regions, threads))  # each thread may search a tensor of its own
    each = working + 2 * demand.factor_bytes + search
    return fixed + threads * each + (2 * threads + 2) * chunk


def _aside(demand: Demand, regions: int, threads: int) -> int:
    """Return a thread's room for entries kept aside; the search among them takes at most twice as much again.

    A third of the largest tensor is plenty; where there are fewer regions, memory is short.
    """
    most = 21 * regions * demand.ranks * demand.inputs * RADIX
    return min(most, demand.ranked * demand.itemsize * (demand.inputs + 1) // (3 * threads))


def machine_limit() -> int | None:
    """Return the bytes this process may take by its control group or address-space limit; None where unlimited."""
    found = []
    soft, _ = resource.getrlimit(resource.RLIMIT_AS)
    if soft != resource.RLIM_INFINITY:
        found.append(soft)
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            text = Path(path).read_text().strip()
        except OSError:
            continue
        if text.isdigit() and int(text) < 2**60:
            found.append(int(text))
    return min(found, default=None)
