"""Items computed by a pool of threads a window ahead, large ones only when there is room for them, yielded in order."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import FIRST_COMPLETED, Executor, Future, wait
from typing import TypeVar

from weightsmith.budget import Limits

T = TypeVar("T")
U = TypeVar("U")


def in_order(
    pool: Executor,
    items: Iterable[T],
    function: Callable[[T], U],
    limits: Limits,
    claim: Callable[[T], tuple[int, int]] | None = None,
) -> Generator[U, None, None]:
    """Yield function(item) for each item, in order, computed by the pool.

    Args:
        pool: Its threads take the items in order.
        items: Taken one by one.
        function: What is computed.
        limits: At most `window` items are in flight, holding at most `room_bytes`.
        claim: The bytes that an item holds while it is computed, and those of its result while it waits; none by default.
            An item that holds more than there is room for is computed alone.
    """
    waiting: deque[tuple[Future[U], tuple[int, int]]] = deque()

    def fits(needed: int) -> bool:
        held = sum(claims[future.done()] for future, claims in waiting)
        return len(waiting) < limits.window and (not needed or held + needed <= limits.room_bytes)

    try:
        for item in items:
            claims = (0, 0) if claim is None else claim(item)
            while waiting and not fits(claims[0]):
                if waiting[0][0].done():
                    yield waiting[0][0].result()
                    waiting.popleft()
                else:
                    wait([future for future, _ in waiting if not future.done()], return_when=FIRST_COMPLETED)
            waiting.append((pool.submit(function, item), claims))
        while waiting:
            yield waiting[0][0].result()
            waiting.popleft()
    finally:
        for future, _ in waiting:
            future.cancel()
        wait([future for future, _ in waiting])  # none may still write when the caller closes what it writes to
