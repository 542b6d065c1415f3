"""Measuring for the demo in two processes: compiling and interpreting occupy one processor each."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from queue import SimpleQueue
from typing import IO, Any, TypeVar, cast

from weightsmith.demo.train import WORKERS, reproducible

T = TypeVar("T")

CHILD = [sys.executable, "-c", "from weightsmith.demo.workers import serve; serve()"]
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")


def side_by_side(jobs: Sequence[Callable[[], T]], done: Callable[[T], None]) -> list[T]:
    """Run jobs in processes of their own, begun in their order; `done` hears each result as it comes.

    Not multiprocessing's processes, which run the caller's script again (spawn) or inherit its threads (fork).
    They end with the caller, whatever ends it, and leave interrupts to it.

    Args:
        jobs: Callables that can be pickled, as their results can.
        done: Called in this process.

    Returns:
        The results, in the order of the jobs.
    """
    children = [_child() for _ in range(WORKERS)]
    idle: SimpleQueue[subprocess.Popen[bytes]] = SimpleQueue()
    for child in children:
        idle.put(child)

    def run(job: Callable[[], T]) -> T:
        child = idle.get()
        to, back = cast("IO[bytes]", child.stdin), cast("IO[bytes]", child.stdout)
        _send(to, job)
        result, error = pickle.load(back)
        idle.put(child)
        if error is not None:
            raise error
        found: T = result
        return found

    pool = ThreadPoolExecutor(WORKERS)
    try:
        running = [pool.submit(run, job) for job in jobs]
        for future in as_completed(running):
            done(future.result())
        return [future.result() for future in running]
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        for child in children:
            child.kill()
            child.communicate()
        pool.shutdown()


def serve() -> None:
    """Run the jobs that come through standard input; send what they return or raise through standard output."""
    replies = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a job prints must not get among the replies
    with reproducible():
        while True:
            try:
                job = pickle.load(sys.stdin.buffer)
            except EOFError:
                return
            try:
                reply: tuple[Any, Exception | None] = job(), None
            except Exception as error:  # raised again by `side_by_side`
                reply = None, error
            _send(replies, reply)


def _child() -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        CHILD,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=os.environ | ONE_THREAD,
        start_new_session=True,
    )


def _send(stream: IO[bytes], what: object) -> None:
    pickle.dump(what, stream)
    stream.flush()
