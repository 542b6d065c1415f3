"""Read input files and write as many bytes as a merge would, with nothing in between: the physical bound.

    python bench/bound.py --out FOLDER --bytes 1000000,1000000 FILE...

Every byte of every FILE is read, the output files get the sizes listed in --bytes, and each is synced to
the disk before the program ends, as a merge must do too. Only the standard library is imported.

Plainly, one thread reads all inputs, block by block, then writes the outputs, then syncs them. With --overlap everything
goes on at once: each of two threads takes the next piece of work, which is one block of every input and the share of
output that belongs to it; another syncs what has been written so far, so that the disk is busy from the start and not
just at the end.
"""

import argparse
import os
import threading
import time

BLOCK = 1 << 20
THREADS = 2
SYNC_BYTES = 256 << 20


class Stretch:
    """Several files seen as one long run of bytes."""

    def __init__(self, paths: list[str], sizes: list[int], flags: int):
        self.handles = [os.open(path, flags, 0o644) for path in paths]
        self.sizes = sizes
        self.total = sum(sizes)

    def pieces(self, start: int, end: int) -> list[tuple[int, int, int]]:
        """Return (handle, offset, count) for the bytes from `start` to `end`."""
        found = []
        first = 0
        for handle, size in zip(self.handles, self.sizes, strict=True):
            low, high = max(start, first), min(end, first + size)
            if low < high:
                found.append((handle, low - first, high - low))
            first += size
        return found


def move(inputs: Stretch, outputs: Stretch) -> None:
    """Read all inputs, then write all outputs, then sync them."""
    buffer = memoryview(bytearray(BLOCK))
    for place in range(0, inputs.total, BLOCK):
        read(inputs, place, min(place + BLOCK, inputs.total), buffer)
    for place in range(0, outputs.total, BLOCK):
        write(outputs, place, min(place + BLOCK, outputs.total), buffer)
    for handle in outputs.handles:
        os.fsync(handle)


def read(inputs: Stretch, low: int, high: int, buffer: memoryview) -> None:
    """Read bytes low .. high, one after the other into the same block."""
    for handle, offset, count in inputs.pieces(low, high):
        if os.preadv(handle, [buffer[:count]], offset) != count:
            raise OSError("short read")


def write(outputs: Stretch, low: int, high: int, buffer: memoryview) -> None:
    """Write bytes low .. high, whatever the block holds."""
    for handle, offset, count in outputs.pieces(low, high):
        if os.pwrite(handle, buffer[:count], offset) != count:
            raise OSError("short write")


def move_at_once(inputs: Stretch, outputs: Stretch) -> None:
    """Read all inputs and write and sync all outputs at once, sharing the work out block by block."""
    steps = max(1, -(-inputs.total // BLOCK))
    numbers = iter(range(steps))
    lock = threading.Lock()
    written = 0
    moved = threading.Condition()
    done = False

    def work() -> None:
        nonlocal written
        buffer = memoryview(bytearray(BLOCK))
        while True:
            with lock:
                step = next(numbers, None)
            if step is None:
                return
            read(inputs, step * BLOCK, min((step + 1) * BLOCK, inputs.total), buffer)
            low, high = outputs.total * step // steps, outputs.total * (step + 1) // steps
            write(outputs, low, high, buffer)
            with moved:
                written += high - low
                moved.notify()

    def sync() -> None:
        synced = 0
        while True:
            with moved:
                while not done and written - synced < SYNC_BYTES:
                    moved.wait()
                last, synced = done, written
            for handle in outputs.handles:
                os.fsync(handle)
            if last:
                return

    workers = [threading.Thread(target=work) for _ in range(THREADS)]
    syncer = threading.Thread(target=sync)
    for thread in (*workers, syncer):
        thread.start()
    for thread in workers:
        thread.join()
    with moved:
        done = True
        moved.notify()
    syncer.join()


def main() -> None:
    """Read the options, move the bytes, and say how long it took."""
    parser = argparse.ArgumentParser(description="Read these files; write and sync as many bytes as asked.")
    parser.add_argument("files", nargs="+")
    parser.add_argument("--out", required=True, help="folder to write into")
    parser.add_argument("--bytes", required=True, help="sizes of the output files, with commas between")
    parser.add_argument("--overlap", action="store_true", help="read, write and sync at once, with two threads")
    options = parser.parse_args()
    began = time.perf_counter()
    sizes = [int(text) for text in options.bytes.split(",")]
    os.makedirs(options.out, exist_ok=True)
    paths = [os.path.join(options.out, f"bound-{number}.bin") for number in range(len(sizes))]
    inputs = Stretch(options.files, [os.stat(path).st_size for path in options.files], os.O_RDONLY)
    outputs = Stretch(paths, sizes, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    (move_at_once if options.overlap else move)(inputs, outputs)
    for handle in (*inputs.handles, *outputs.handles):
        os.close(handle)
    print(f"{inputs.total} bytes read, {outputs.total} written, {time.perf_counter() - began:.3f} s")


if __name__ == "__main__":
    main()
