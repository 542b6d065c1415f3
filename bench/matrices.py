"""Measure the matrix methods: against FusionBench, against what `plan` predicts, and how they grow.

    python bench/matrices.py --data FOLDER --fusionbench PATH/TO/python --json FILE

PATH/TO/python is the interpreter of an environment with FusionBench. FOLDER gets the checkpoints, where missing: `15m`
of `make_checkpoints.py`, and one layer each of larger models. Results are compared and targets asserted; what is not as it
should be ends with exit code 1.
"""

import argparse
import json
import math
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

import measure
from matrix_work import KINDS, WORKS, Work, make_data, problems
from merge import clear, run_weightsmith, weights

BENCH = Path(__file__).parent
SHARE = 0.8  # of the time that has to be spent in decompositions
MOST_MODELS = 12
FLOAT32_TOLERANCE = 0.02  # a singular vector in float32, between values that lie close together
Costs = list[dict[str, float]]


class Server:
    """A process that answers jobs, see `matrix_serve.py`."""

    def __init__(self, python: str, script: str, threads: int):
        names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
        environment = {**os.environ, **dict.fromkeys(names, str(threads)), "HF_HUB_OFFLINE": "1"}
        self.log = tempfile.TemporaryFile()  # noqa: SIM115  # closed with the process
        self.process = subprocess.Popen(
            [python, str(BENCH / script)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log,
            env=environment,
            text=True,
        )

    def ask(
        self,
        work: str,
        tensors: list[dict[str, Any]],
        results: Sequence[Path] = (),
        dtype: str = "float32",
        side_by_side: bool = False,
    ) -> dict[str, float]:
        """Have the tensors merged; what it took comes back, the results go to files."""
        job = {"work": work, "tensors": tensors, "dtype": dtype, "side_by_side": side_by_side}
        job["results"] = [str(path) for path in results]
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        try:
            self.process.stdin.write(json.dumps(job) + "\n")
            self.process.stdin.flush()
            line = self.process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            self.log.seek(0)
            raise SystemExit(f"{self.process.args}: ended:\n{self.log.read().decode(errors='replace')[-4000:]}")
        return json.loads(line)

    def close(self) -> None:
        """End the process."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()
        self.log.close()


def middle(costs: Costs, part: str) -> float:
    """Return the median of one measure."""
    return float(statistics.median(cost[part] for cost in costs))


def distance(results: Sequence[Path], others: Sequence[Path]) -> dict[str, float]:
    """Return how far results lie apart: the largest over the tensors.

    largest: largest difference of entries, as a share of the largest entry; norm: of Frobenius norms.
    """
    pairs = [
        (np.load(a).astype(np.float64), np.load(b).astype(np.float64)) for a, b in zip(results, others, strict=True)
    ]
    return {
        "largest": max(float(np.abs(a - b).max() / np.abs(b).max()) for a, b in pairs),
        "norm": max(float(np.linalg.norm(a - b) / np.linalg.norm(b)) for a, b in pairs),
    }


class Session:
    """All that the measurements share."""

    def __init__(self, options: argparse.Namespace, scratch: Path):
        self.options, self.scratch = options, scratch
        self.faults: list[str] = []
        self.ours = Server(sys.executable, "matrix_worker.py", options.threads)
        self.theirs = Server(str(options.fusionbench), "fusionbench_driver.py", options.threads)

    def close(self) -> None:
        """End the processes."""
        self.ours.close()
        self.theirs.close()

    def expect(self, holds: bool, what: str) -> bool:
        """Note what is not as it should be."""
        if not holds:
            self.faults.append(what)
            print(f"  WRONG: {what}", file=sys.stderr, flush=True)
        return holds

    def target(self, holds: bool, what: str) -> None:
        """Note a target of speed that is missed, unless sizes are too small for it to mean anything."""
        if not self.options.no_targets:
            self.expect(holds, what)

    def files(self, who: str, count: int) -> list[Path]:
        """Return where results of one side go."""
        return [self.scratch / f"{who}{number}.npy" for number in range(count)]


def in_memory(session: Session, work: Work) -> dict[str, Any]:
    """Measure one merge on single tensors, ours and theirs in turn, and compare the results."""
    data = session.options.data / f"{session.options.size}-layer"
    ours, theirs = problems(work, data, session.scratch / "tensors", work.kinds)
    entry: dict[str, Any] = {"agreement": agreement(session, work), "tensors": len(ours), "models": work.models}
    plain: Costs = []
    parallel: Costs = []
    peer: Costs = []
    files, others = session.files("ours", len(ours)), session.files("theirs", len(ours))
    for _ in range(session.options.rounds):
        plain.append(session.ours.ask(work.method, ours, files))
        parallel.append(session.ours.ask(work.method, ours, side_by_side=True))
        if work.peer:
            peer.append(session.theirs.ask(work.peer, theirs, others))
    entry |= {"plain": plain, "side_by_side": parallel, "fusionbench": peer}
    shares = [decomposing(cost, cost["wall"], "wall") for cost in plain]
    entry["share"] = statistics.median(shares)
    busy = middle(parallel, "cpu") / middle(parallel, "wall")
    print(
        f"{work.name}: {middle(plain, 'wall'):.2f} s in memory, side by side {middle(parallel, 'wall'):.2f} s "
        f"({busy:.1f} cores busy), {entry['share']:.2f} in decompositions and products"
    )
    if peer:
        best = min(middle(plain, "wall"), middle(parallel, "wall"))
        entry["times_as_fast"] = middle(peer, "wall") / best
        entry["float32"] = distance(files, others)
        print(
            f"  FusionBench {middle(peer, 'wall'):.2f} s: {entry['times_as_fast']:.1f} times as fast; "
            f"in float32 apart by {entry['float32']['norm']:.1e}, in float64 by {entry['agreement']['largest']:.1e}"
        )
        session.expect(
            entry["float32"]["norm"] <= FLOAT32_TOLERANCE, f"{work.name}: float32 result: {entry['float32']}"
        )
        least = work.target or 0
        session.target(entry["times_as_fast"] >= least, f"{work.name}: {entry['times_as_fast']:.1f} times, not {least}")
    if work.decomposes:
        session.target(entry["share"] >= SHARE, f"{work.name}: {entry['share']:.2f} of the time in decompositions")
    return entry


def decomposing(spent: dict[str, float], total: float, clock: str) -> float:
    """Return the share of the time that decompositions and products took."""
    return sum(spent.get(f"{kind}_{clock}", 0.0) for kind in ("linalg", "products")) / total


def agreement(session: Session, work: Work) -> dict[str, float] | None:
    """Compare results on small tensors in float64, where rounding leaves nothing open. Also a warm-up of both sides."""
    ours, theirs = problems(work, session.options.data / "15m-layer", session.scratch / "small", KINDS)
    files, others = session.files("ours", len(ours)), session.files("theirs", len(ours))
    session.ours.ask(work.method, ours, files)
    session.ours.ask(work.method, ours, files, "float64")
    if not work.peer:
        return None
    session.theirs.ask(work.peer, theirs, others, "float64")
    found = distance(files, others)
    session.expect(found["largest"] <= work.tolerance, f"{work.name}: not FusionBench's result: {found}")
    return {**found, "tolerance": work.tolerance}


def command(session: Session, work: Work, size: str, models: int | None = None) -> dict[str, Any]:
    """Measure one merge as a whole process, and its memory against what `plan` predicts."""
    data = session.options.data / size
    words = [*work.arguments(data, models), *session.options.extra]
    planned = subprocess.run(
        [sys.executable, "-m", "weightsmith", "plan", *words, "--json"], capture_output=True, text=True, check=False
    )
    if planned.returncode:
        raise SystemExit(f"plan {' '.join(words)}\n{planned.stderr}")
    plan = json.loads(planned.stdout)
    out = session.scratch / "out"
    folders = [data / "base", *(data / f"ft{t + 1}" for t in range(models or work.models))]
    measure.touch(weights(folders))
    costs = [run_weightsmith(["merge", *words], out).as_dict() for _ in range(session.options.rounds)]
    clear(out)
    most = max(cost["anonymous"] for cost in costs)
    session.expect(
        most <= plan["peak_memory_bytes"],
        f"{work.name}, {size}: {most / 1e6:.0f} MB anonymous, planned {plan['peak_memory_bytes'] / 1e6:.0f} MB",
    )
    input_bytes = sum(path.stat().st_size for path in weights(folders))
    print(
        f"{work.name}, {size}, {models or work.models} models: {middle(costs, 'wall'):.2f} s, "
        f"{middle(costs, 'cpu') / middle(costs, 'wall'):.2f} cores busy, {most / 1e6:.0f} MB of "
        f"{plan['peak_memory_bytes'] / 1e6:.0f} MB planned, {plan['threads']} threads",
        flush=True,
    )
    return {
        "weightsmith": costs,
        "planned_bytes": plan["peak_memory_bytes"],
        "threads": plan["threads"],
        "input_bytes": input_bytes,
        "elements": plan["merged_elements"],
        "size": size,
        "models": models or work.models,
        "command": " ".join(["weightsmith merge", *work.arguments(None, models), "--out", "out", "--quiet"]),
    }


def profile(session: Session, work: Work, size: str) -> dict[str, float]:
    """Return where the CPU seconds of a whole command go, start-up included."""
    out, target = session.scratch / "out", session.scratch / "profile.json"
    words = ["merge", *work.arguments(session.options.data / size), "--out", str(out), "--quiet"]
    measure.run([sys.executable, str(BENCH / "matrix_profile.py"), str(target), *words])
    clear(out)
    spent = json.loads(target.read_text(encoding="utf-8"))
    share = decomposing(spent, spent["total_cpu"], "cpu")
    print(f"  of the CPU seconds of the whole command, {share:.2f} in decompositions and products", flush=True)
    return {**spent, "share": share, "size": size}


def stated_bound(rank: int, least: int) -> float:
    """Return the randomized form's expected error in units of the largest singular value left out.

    After Halko, Martinsson and Tropp (2011), Corollary 10.10, with 10 extra columns and 2 power iterations.
    """
    extra, power = 10, 2
    inner = 1 + math.sqrt(rank / (extra - 1)) + math.e * math.sqrt(rank + extra) / extra * math.sqrt(least - rank)
    return inner ** (1 / (2 * power + 1))


def randomized(session: Session) -> list[dict[str, float]]:
    """Measure the randomized form's error, in the spectral norm, against the one stated."""
    work = Work("delta_svd", "delta_svd", models=1)
    data = session.options.data / f"{session.options.size}-layer"
    found = []
    for kind in ("q_proj", "up_proj"):
        ours, _ = problems(work, data, session.scratch / "tensors", [kind])
        matrix = np.load(ours[0]["task_vectors"])[0].astype(np.float64)
        values = np.linalg.svd(matrix, compute_uv=False)
        least = min(matrix.shape)
        for rank in (16, least // 8, least // 3):
            entry = {"kind": kind, "rows": matrix.shape[0], "columns": matrix.shape[1], "rank": rank}
            files = session.files("ours", 1)
            for algorithm in ("exact", "randomized"):
                tensors = [{**ours[0], "options": {"rank": rank, "algorithm": algorithm}}]
                entry[f"{algorithm}_seconds"] = session.ours.ask("delta_svd", tensors, files)["wall"]
                error = float(np.linalg.norm(matrix - np.load(files[0]), 2))
                entry[f"{algorithm}_error"] = error / float(values[rank])
            entry["stated"] = stated_bound(rank, least)
            text = f"{kind}, rank {rank}: error {entry['randomized_error']:.3f}, stated {entry['stated']:.3f}"
            print(f"randomized: {text}", flush=True)
            session.expect(entry["randomized_error"] <= entry["stated"], f"randomized, {text}")
            session.expect(entry["exact_error"] <= 1 + 1e-3, f"exact, {kind}, rank {rank}: {entry['exact_error']}")
            found.append(entry)
    return found


def growth(session: Session, work: Work) -> list[dict[str, Any]]:
    """Measure whole commands against the number of models, and against the size of the matrices."""
    layer = f"{session.options.size}-layer"
    found = [command(session, work, layer, models) for models in (3, 6, MOST_MODELS)]
    return found + [command(session, work, f"{size}-layer") for size in (session.options.growth if work.sizes else ())]


def parse() -> argparse.Namespace:
    """Read the options."""
    parser = argparse.ArgumentParser(description="Measure the matrix methods against FusionBench.")
    parser.add_argument("--data", type=Path, required=True, help="folder that holds or gets the checkpoints")
    parser.add_argument("--fusionbench", type=Path, required=True, help="python of FusionBench's own environment")
    parser.add_argument("--size", default="0.3b", help="the model one layer of which is compared: 15m, 0.3b or 1.1b")
    parser.add_argument("--growth", default="15m,1.1b", help="further sizes, one layer each, with commas between")
    parser.add_argument("--only", default="", help="works to measure, with semicolons between")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--no-targets", action="store_true", help="do not assert speed and share: for small sizes")
    parser.add_argument("--scratch", type=Path, help="where outputs go; by default beside the data")
    parser.add_argument("--json", type=Path, help="file to write the measurements to")
    parser.add_argument("extra", nargs="*", help="after --: further options for weightsmith")
    options = parser.parse_args()
    options.growth = [size for size in options.growth.split(",") if size]
    unknown = set(filter(None, options.only.split(";"))) - {work.name for work in WORKS}
    if unknown:
        raise SystemExit(f"--only: {sorted(unknown)}: unknown; known: {';'.join(work.name for work in WORKS)}")
    return options


def measure_all(session: Session) -> dict[str, Any]:
    """Measure everything, writing down what there is after each merge."""
    options = session.options
    layer = f"{options.size}-layer"
    entries: dict[str, Any] = {}
    results = {
        "machine": measure.machine(),
        "size": options.size,
        "threads": options.threads,
        "rounds": options.rounds,
        "matrices": entries,
    }

    def keep() -> None:
        if options.json:
            options.json.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")

    for work in WORKS:
        if options.only and work.name not in options.only.split(";"):
            continue
        entry = entries[work.name] = in_memory(session, work)
        entry["target"] = work.target
        entry["command"] = command(session, work, layer)
        largest = f"{options.growth[-1]}-layer" if work.sizes and options.growth else layer
        entry["profile"] = profile(session, work, largest)
        if work.models == 3 and not work.adapters and not work.enlarged:  # the iterative ones take long
            sizes = ["15m", options.size] if work.sizes else ["15m"]
            entry["complete"] = [command(session, work, size) for size in sizes]
        if work.growth:
            entry["growth"] = growth(session, work)
        keep()
    results["randomized"] = randomized(session)
    keep()
    return results


def main() -> None:
    """Make the data, measure, print and write down."""
    options = parse()
    for size in {"15m", options.size}:
        make_data(options.data / size, size, 3)
    make_data(options.data / "15m-layer", "15m-layer", 8)
    make_data(options.data / f"{options.size}-layer", f"{options.size}-layer", MOST_MODELS)
    for size in options.growth:
        make_data(options.data / f"{size}-layer", f"{size}-layer", 3)
    scratch = Path(tempfile.mkdtemp(prefix="bench-", dir=options.scratch or options.data))
    session = Session(options, scratch)
    try:
        measure_all(session)
    finally:
        session.close()
        shutil.rmtree(scratch, ignore_errors=True)
    if session.faults:
        raise SystemExit("\n".join(["results that are not as they should be:", *session.faults]))


if __name__ == "__main__":
    main()
