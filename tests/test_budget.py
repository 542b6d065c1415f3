"""Budgets: what is chosen fits, what cannot fit is refused with the need, and limits of the machine are seen."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from weightsmith import budget
from weightsmith.budget import Demand, choose_limits, machine_limit, usable_threads
from weightsmith.errors import ResourceError
from weightsmith.tensor.arrays import BLOCK

DEMANDS = [
    Demand(2, 10, 4),
    Demand(4, 3000, 4, ranks=1),
    Demand(4, 3000, 4, ranks=1, ranked=10**8),
    Demand(51, 20_000, 8, ranks=2, ranked=10**6),
    Demand(4, 3000, 4, ranks=2, row=1_000_003),
    Demand(4, 3000, 4, factor_bytes=50_000_000),
    Demand(4, 3000, 4, on_device=True),
    Demand(300, 1_000_000, 4),
]


def least(demand: Demand) -> int:
    """Return the megabytes that the error names."""
    with pytest.raises(ResourceError) as caught:
        choose_limits(demand, 1_000_000, 4)
    text = str(caught.value)
    assert text.startswith("--memory is too small; expected at least")
    assert f"for {demand.inputs} inputs; got 1 MB. Pass --memory" in text
    assert ("--scope than row" in text) == bool(demand.row)
    return int(text.split("at least ")[1].split(" MB")[0])


@pytest.mark.parametrize("demand", DEMANDS, ids=str)
def test_what_is_chosen_fits_for_every_budget_above_the_least(demand):
    need = least(demand)
    with pytest.raises(ResourceError):
        choose_limits(demand, (need - 1) * 1_000_000, 4)
    before = 0
    for megabytes in (need, need + 1, 2 * need, 10 * need, 1000 * need):
        limits = choose_limits(demand, megabytes * 1_000_000, 4)
        assert before <= limits.peak_bytes <= megabytes * 1_000_000
        assert limits.tile % BLOCK == 0
        assert limits.tile >= max(BLOCK, demand.row)
        assert 1 <= limits.threads <= 4
        assert limits.window == 2 * limits.threads + 2
        assert limits.chunk_bytes >= 1_000_000
        assert limits.regions >= 1
        before = limits.peak_bytes
    assert limits.threads == 4


def test_the_prediction_grows_with_every_part_of_the_demand():
    demand = Demand(3, 1000, 4, ranks=1, row=1 << 18)
    base = choose_limits(demand, 10**12, 4).peak_bytes
    for part in ("inputs", "entries", "itemsize", "ranks", "row"):
        assert choose_limits(replace(demand, **{part: 2 * getattr(demand, part)}), 10**12, 4).peak_bytes > base, part
    assert choose_limits(replace(demand, factor_bytes=10**6), 10**12, 4).peak_bytes == base + 4 * 2 * 10**6
    assert choose_limits(demand, 10**12, 8).peak_bytes > base
    assert choose_limits(replace(demand, on_device=True), 10**12, 4).peak_bytes > base + budget.CUDA_BYTES


def test_what_is_kept_aside_shrinks_with_the_budget():
    demand = Demand(4, 3000, 4, ranks=1, ranked=10**8)
    chosen = [choose_limits(demand, megabytes * 10**6, 2) for megabytes in (300, 450, 700, 10**6)]
    asides = [limits.aside_bytes for limits in chosen]
    assert asides == sorted(set(asides))
    assert 10**6 < asides[0] < asides[-1] < 100 * 10**6
    assert all(limits.peak_bytes > 150 * 10**6 + 2 * 3 * limits.aside_bytes for limits in chosen)
    assert choose_limits(replace(demand, ranked=10**5), 10**12, 2).aside_bytes == 10**5 * 4 * 5 // 6
    assert choose_limits(replace(demand, ranked=0), 10**12, 2).aside_bytes == 0


@pytest.mark.parametrize("megabytes", [100, 400, 1000, 5000])
def test_matrices_that_take_turns_leave_all_threads_and_share_one_room(megabytes):
    matrix = 10**9
    demand = Demand(4, 300, 4, matrix_bytes=matrix, takes_turns=True)
    limits = choose_limits(demand, megabytes * 10**6, 4)
    assert limits.threads == (4 if megabytes > 100 else 1)  # 100 MB do not even hold the interpreter
    assert limits.room_bytes == max(
        matrix, min(4 * matrix, megabytes * 10**6 - (limits.peak_bytes - limits.room_bytes))
    )
    if megabytes > 2000:
        assert limits.peak_bytes <= megabytes * 10**6
    else:
        assert limits.room_bytes == matrix
    each = choose_limits(replace(demand, takes_turns=False), megabytes * 10**6, 4)
    assert each.threads <= limits.threads
    assert each.room_bytes == 0


def test_matrices_that_take_turns_are_refused_where_the_machine_has_less():
    demand = Demand(4, 300, 4, matrix_bytes=10**9, takes_turns=True)
    with pytest.raises(ResourceError, match="the container's limit is too small"):
        choose_limits(demand, 900 * 10**6, 4, "the container's limit")
    assert choose_limits(demand, 1300 * 10**6, 4, "the container's limit").peak_bytes <= 1300 * 10**6


def test_many_inputs_get_tiles_that_stay_in_cache():
    few, many = (choose_limits(Demand(n, 10, 4), 10**12, 1).tile for n in (2, 100))
    assert many < few
    assert 100 * many * 4 <= 12_000_000


def test_another_limit_is_named():
    with pytest.raises(ResourceError, match=r"the container's limit is too small.*Raise the limit"):
        choose_limits(Demand(2, 10, 4), 1_000_000, 1, "the container's limit")


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        ({"/sys/fs/cgroup/memory.max": "max\n"}, None),
        ({"/sys/fs/cgroup/memory.max": "500000000\n"}, 500_000_000),
        ({"/sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n"}, None),
        ({"/sys/fs/cgroup/memory/memory.limit_in_bytes": "700000000"}, 700_000_000),
        ({"/sys/fs/cgroup/memory.max": "strange"}, None),
        ({}, None),
    ],
)
def test_limits_of_control_groups_are_read(monkeypatch, texts, expected):
    def read(self, *_, **__):
        if str(self) not in texts:
            raise FileNotFoundError(str(self))
        return texts[str(self)]

    monkeypatch.setattr(Path, "read_text", read)
    monkeypatch.setattr(budget.resource, "getrlimit", lambda _: (budget.resource.RLIM_INFINITY,) * 2)
    assert machine_limit() == expected
    monkeypatch.setattr(budget.resource, "getrlimit", lambda _: (600_000_000, 600_000_000))
    assert machine_limit() == min(600_000_000, expected or 600_000_000)


def test_threads_are_those_this_process_may_use():
    allowed = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
    assert usable_threads() == len(allowed)
