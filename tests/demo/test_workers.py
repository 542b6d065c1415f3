import os
import time
from functools import partial

import pytest

from weightsmith.demo.workers import side_by_side


def test_results_come_in_the_order_of_the_jobs_and_each_is_told():
    told = []
    assert side_by_side([partial(pow, n, 2) for n in range(5)], told.append) == [0, 1, 4, 9, 16]
    assert sorted(told) == [0, 1, 4, 9, 16]


def test_jobs_run_in_other_processes():
    assert os.getpid() not in side_by_side([os.getpid, os.getpid], lambda _: None)


def test_the_first_failure_is_raised_and_the_processes_end():
    found = []

    def told(value):
        found.append(value)

    with pytest.raises(ValueError, match="invalid literal"):
        side_by_side([os.getpid, partial(int, "x")], told)
    for process in found:
        with pytest.raises(ProcessLookupError):
            os.kill(process, 0)


def test_what_stops_the_caller_ends_the_processes():
    pids = []

    def interrupted(value):
        pids.append(value)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        side_by_side([os.getpid, *[partial(time.sleep, 600)] * 3], interrupted)
    with pytest.raises(ProcessLookupError):
        os.kill(pids[0], 0)
