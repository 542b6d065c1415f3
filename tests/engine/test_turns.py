"""Items in flight: in order, inside window and room, the larger than the room alone."""

from __future__ import annotations

import random
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from weightsmith.budget import Limits
from weightsmith.engine.turns import in_order


class Watched:
    """A function that notes how much its running calls hold together."""

    def __init__(self) -> None:
        self.lock, self.held, self.most, self.running, self.crowds = threading.Lock(), 0, 0, 0, {}

    def __call__(self, size: int) -> int:
        with self.lock:
            self.held, self.running = self.held + size, self.running + 1
            self.most = max(self.most, self.held)
            self.crowds[size] = max(self.crowds.get(size, 0), self.running)
        time.sleep(random.Random(size).random() / 500)
        with self.lock:
            self.held, self.running = self.held - size, self.running - 1
        return size


def limits(window: int, room: int, threads: int = 4) -> Limits:
    return Limits(4096, 4096, window, threads, 1, 0, 0, room)


@pytest.mark.parametrize("window", [1, 3, 10])
@pytest.mark.parametrize("room", [50, 200])
def test_results_come_in_order_and_stay_inside_the_room(window, room):
    items = [random.Random(7 + i).randrange(50) for i in range(200)]
    watched = Watched()
    with ThreadPoolExecutor(4) as pool:
        found = list(in_order(pool, items, watched, limits(window, room), lambda size: (size, 0)))
    assert found == items
    assert watched.most <= room
    assert max(watched.crowds.values()) <= min(4, window)
    if (window, room) == (10, 200):
        assert max(watched.crowds.values()) > 1


def test_what_is_larger_than_the_room_is_computed_alone():
    items = [1, 1, 900, 1, 1, 900, 900, 2, 2]
    watched = Watched()
    with ThreadPoolExecutor(4) as pool:
        assert list(in_order(pool, items, watched, limits(8, 100), lambda size: (size, 0))) == items
    assert watched.crowds[900] == 1


def test_results_that_wait_count_with_what_they_hold():
    held = []

    def compute(item: int) -> int:
        if item == 0:
            time.sleep(0.05)
        with lock:
            held.append(item)
        return item

    lock = threading.Lock()
    with ThreadPoolExecutor(4) as pool:
        found = in_order(pool, range(6), compute, limits(10, 25), lambda _: (10, 10))
        assert next(found) == 0
        assert len(held) == 2  # the second waits with its result: no room for a third
        assert list(found) == [1, 2, 3, 4, 5]


def test_copies_pass_beside_what_takes_the_whole_room():
    begun = threading.Event()

    def compute(size: int) -> int:
        if size == 0:
            begun.set()
        else:
            assert begun.wait(10)  # the copy behind it runs meanwhile
        return size

    with ThreadPoolExecutor(2) as pool:
        assert list(in_order(pool, [900, 0], compute, limits(4, 100), lambda size: (size, 0))) == [900, 0]


def test_a_failure_ends_it_and_nothing_runs_afterwards():
    done = []

    def compute(item: int) -> int:
        if item == 3:
            raise ValueError("three")
        time.sleep(0.001)
        done.append(item)
        return item

    with ThreadPoolExecutor(2) as pool:
        with pytest.raises(ValueError, match="three"):
            list(in_order(pool, range(100), compute, limits(4, 0)))
        count = len(done)
        time.sleep(0.02)
        assert len(done) == count < 10
