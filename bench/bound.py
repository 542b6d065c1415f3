"""Read input files and write as many bytes as a merge would, with nothing in between: the physical bound.

    python bench/bound.py --out FOLDER --bytes 1000000,1000000 FILE...

Every byte of every FILE is read, the output files get the sizes listed in --bytes, and each is synced to
the disk before the program ends, as a merge must do too. Only the standard library is imported. Each thread
takes the next piece of work, which is one block of every input and the share of output that belongs to it,
so that reading and writing overlap; while the threads work, another thread syncs what has been written so
far, so that the disk is busy from the start and not just at the end. With --digest it also forms the SHA-256 of every
block it writes, as a merge that records digests must.
"""

import argparse
import hashlib
import os
import threading
import time

BLOCK = 1 << 20


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


def move(inputs: Stretch, outputs: Stretch, threads: int, sync_bytes: int, digest: bool) -> None:
    """Read all inputs and write all outputs, sharing the work out block by block; with `digest`, hash what is written."""
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
            for handle, offset, count in inputs.pieces(step * BLOCK, min((step + 1) * BLOCK, inputs.total)):
                if os.preadv(handle, [buffer[:count]], offset) != count:
                    raise OSError("short read")
            low, high = outputs.total * step // steps, outputs.total * (step + 1) // steps
            for handle, offset, count in outputs.pieces(low, high):
                if os.pwrite(handle, buffer[:count], offset) != count:
                    raise OSError("short write")
                if digest:
                    hashlib.sha256(buffer[:count])
            with moved:
                written += high - low
                moved.notify()

    def sync() -> None:
        synced = 0
        while True:
            with moved:
                while not done and written - synced < sync_bytes:
                    moved.wait()
                last, synced = done, written
            for handle in outputs.handles:
                os.fsync(handle)
            if last:
                return

    workers = [threading.Thread(target=work) for _ in range(threads)]
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
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--sync-bytes", type=int, default=256 << 20, help="sync after so many bytes written")
    parser.add_argument("--digest", action="store_true", help="form the SHA-256 of each block written, too")
    options = parser.parse_args()
    began = time.perf_counter()
    sizes = [int(text) for text in options.bytes.split(",")]
    os.makedirs(options.out, exist_ok=True)
    paths = [os.path.join(options.out, f"bound-{number}.bin") for number in range(len(sizes))]
    inputs = Stretch(options.files, [os.stat(path).st_size for path in options.files], os.O_RDONLY)
    outputs = Stretch(paths, sizes, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    move(inputs, outputs, options.threads, options.sync_bytes, options.digest)
    for handle in (*inputs.handles, *outputs.handles):
        os.close(handle)
    print(f"{inputs.total} bytes read, {outputs.total} written, {time.perf_counter() - began:.3f} s")


if __name__ == "__main__":
    main()
