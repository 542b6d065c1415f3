"""Run one command as a whole process and measure its time and memory."""

import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

INTERVAL_SECONDS = 0.01


@dataclass(frozen=True)
class Cost:
    """What one run took: seconds and bytes.

    The peaks are read every ten milliseconds: resident memory from the kernel's own high-water mark, which
    misses at most what is new in the last interval, and anonymous memory (what the process allocated, without
    the files it maps) from the samples.
    """

    wall: float
    cpu: float
    resident: int
    anonymous: int

    def as_dict(self) -> dict[str, float]:
        """Return the numbers by name, for JSON."""
        return asdict(self)


def _family(pid: int) -> list[int]:
    """Return a process and all its descendants."""
    found = [pid]
    for process in found:
        try:
            for thread in os.listdir(f"/proc/{process}/task"):
                with open(f"/proc/{process}/task/{thread}/children", encoding="ascii") as file:
                    found.extend(int(word) for word in file.read().split())
        except OSError:  # ended meanwhile
            continue
    return found


def _memory(pid: int) -> tuple[int, int]:
    """Return the high-water mark of resident memory and the present anonymous memory, in bytes."""
    resident = anonymous = 0
    try:
        with open(f"/proc/{pid}/status", encoding="ascii") as file:
            for line in file:
                if line.startswith("VmHWM:"):
                    resident = int(line.split()[1]) * 1024
                elif line.startswith("RssAnon:"):
                    anonymous = int(line.split()[1]) * 1024
                    break
    except OSError:
        pass
    return resident, anonymous


class _Sampler(threading.Thread):
    """Keeps the peaks of a process and its descendants, added up, until told to stop."""

    def __init__(self, pid: int):
        super().__init__(daemon=True)
        self.pid = pid
        self.over = threading.Event()
        self.resident = self.anonymous = 0

    def run(self) -> None:
        while True:
            amounts = [_memory(process) for process in _family(self.pid)]
            self.resident = max(self.resident, sum(amount[0] for amount in amounts))
            self.anonymous = max(self.anonymous, sum(amount[1] for amount in amounts))
            if self.over.wait(INTERVAL_SECONDS):
                return


def _environment() -> dict[str, str]:
    """Return this process's variables, less the one that makes the interpreter compile sources anew each time."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}


def run(command: Sequence[str], environment: Mapping[str, str] | None = None) -> Cost:
    """Run a command to its end.

    Args:
        command: Program and arguments.
        environment: Variables to set on top of this process's.

    Raises:
        SystemExit: The command failed; its output is shown.
    """
    with tempfile.TemporaryFile() as output:
        began = time.perf_counter()
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env={**_environment(), **(environment or {})},
        )
        sampler = _Sampler(process.pid)
        sampler.start()
        _, status, usage = os.wait4(process.pid, 0)
        wall = time.perf_counter() - began
        process.returncode = os.waitstatus_to_exitcode(status)
        sampler.over.set()
        sampler.join()
        if process.returncode != 0:
            output.seek(0)
            text = output.read().decode(errors="replace")
            raise SystemExit(f"{' '.join(command)}\nended with status {process.returncode}:\n{text[-4000:]}")
    return Cost(wall, usage.ru_utime + usage.ru_stime, sampler.resident, sampler.anonymous)


def touch(paths: Sequence[Path]) -> None:
    """Read files from end to end, so that they lie in the page cache."""
    buffer = bytearray(1 << 20)
    for path in paths:
        with open(path, "rb", buffering=0) as file:
            while file.readinto(buffer):
                pass


def machine() -> dict[str, object]:
    """Describe the machine in general terms: nothing that names it."""
    model = memory = ""
    with open("/proc/cpuinfo", encoding="ascii", errors="replace") as file:
        for line in file:
            if line.startswith("model name"):
                model = line.split(":", 1)[1].strip()
                break
    with open("/proc/meminfo", encoding="ascii") as file:
        memory = file.readline().split()[1]
    return {
        "processor": model,
        "cores": os.cpu_count() or 0,
        "memory_bytes": int(memory) * 1024,
        "system": f"Linux {os.uname().release.split('-')[0]}",
        "python": ".".join(str(part) for part in sys.version_info[:3]),
    }
