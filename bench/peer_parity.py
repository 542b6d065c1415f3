"""Run a grid of mergekit recipes through mergekit and through weightsmith, and compare every element of the results.

    python bench/peer_parity.py --data FOLDER --mergekit PATH/bin/mergekit-yaml [--only TEXT] [--json FILE] [--into FILE]

Checkpoints of six shapes (Llama, GPT-2, BERT, ViT, T5, Mixtral; a base and three fine-tunes, bfloat16) are made in FOLDER
once. mergekit, from its own environment, runs all recipes in one process; weightsmith reads the same recipe files.

Printed per recipe: the largest absolute difference; the share of elements that differ; the largest difference in units
in the last place of the output dtype, entries tied at a trimming threshold left out and counted apart (there the peer's
choice is an accident of its sort); the largest difference against the root mean square of its tensor; tensors missing here,
and tensors that mergekit drops. For random methods only the distribution is compared: the share of changed elements and the
mean change. mergekit runs on one thread: its sums in a narrow dtype depend on how many there are.

Where a recipe that is computed in float32 exceeds one unit, mergekit runs it once more with dtype float64, and the mean
distance to that, over the entries that differ, is printed for both: which of the two is nearer is measured, not asserted.

Exit code 1 where a recipe exceeds one unit, or tensors are missing here; recipes for which a larger difference is known and
explained (`known` in peer_recipes.py) are marked so, and must stay within the bounds stated there and be nearer to float64.

--into puts a table of all recipes, per method, between the two marker comments of a file.
"""

import argparse
import json
import math
import os
import shutil
import subprocess
import sys
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open

from peer_recipes import Case, cases, make_checkpoints
from peer_table import put_into
from weightsmith import make_plan, merge
from weightsmith.dialect import read_steps
from weightsmith.engine.stream import Work

RUN_PEER = """
import json, sys, torch
torch.set_num_threads(1)
from mergekit.scripts.run_yaml import main
for recipe, out, *flags in json.load(open(sys.argv[1])):
    try:
        fixed = ["--no-write-model-card", "--quiet", "--random-seed", "1"]
        main.main([recipe, out, *fixed, *flags], standalone_mode=False)
        print("done", out, flush=True)
    except Exception as error:
        print("failed", out, type(error).__name__, str(error).replace("\\n", " ")[:300], flush=True)
"""
WIDTH = {
    torch.bfloat16: torch.int16,
    torch.float16: torch.int16,
    torch.float32: torch.int32,
    torch.float64: torch.int64,
}


@dataclass
class Compared:
    """What one recipe gave on both sides."""

    name: str
    method: str
    random: bool
    error: str = ""
    elements: int = 0
    differing: int = 0
    max_abs: float = 0.0
    max_ulp: int = 0
    over_one: int = 0
    relative: float = 0.0
    tied: int = 0
    only_peer: list[str] = field(default_factory=list)
    only_ours: list[str] = field(default_factory=list)
    kept: tuple[float, float] | None = None
    mean: tuple[float, float] | None = None
    far: tuple[float, float] | None = None
    known: str = ""
    bound: float = 0.0
    share: float = 1.0
    nearer: bool = True

    @property
    def passed(self) -> bool:
        """Whether the goal is met."""
        if self.error or self.only_peer:
            return False
        if self.random and self.kept and self.mean:
            near = 6 * math.sqrt(0.25 / max(self.elements, 1)) + 2e-3
            apart = abs(self.kept[0] - self.kept[1]), abs(self.mean[0] - self.mean[1])
            return bool(apart[0] < near and apart[1] < 0.02 * self.mean[0] + 1e-7)
        return self.over_one == 0

    @property
    def excused(self) -> bool:
        """Whether a known difference stays within its bounds, on the side of float64 where that is known."""
        within = self.relative <= self.bound and self.over_one <= self.share * self.elements
        nearer = not self.nearer or self.far is None or self.far[1] < self.far[0]
        return bool(self.known) and within and nearer and not self.error and not self.only_peer


def load(folder: Path) -> dict[str, torch.Tensor]:
    """Read every tensor of a folder."""
    tensors = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            tensors |= {name: file.get_tensor(name) for name in list(file.keys())}
    return tensors


def steps_apart(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Return how many representable numbers lie between each pair; the two zeros are one number."""
    kind = WIDTH[a.dtype]
    low = torch.iinfo(kind).min
    bits = [x.contiguous().view(kind).to(torch.int64) for x in (a, b)]
    placed = [torch.where(x < 0, low - x, x) for x in bits]
    return (placed[0] - placed[1]).abs()


def input_of(work: Work, index: int, dtype: torch.dtype) -> torch.Tensor:
    """Read one input of a tensor, as the peer casts it."""
    entry = work.inputs[index]
    kind = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}[entry.dtype]
    raw = np.fromfile(entry.file, np.uint8, entry.nbytes, offset=entry.offset)
    return torch.from_numpy(raw).view(kind).to(dtype).reshape(-1)


def tied_entries(work: Work, case: Case) -> torch.Tensor | None:
    """Return which elements have a magnitude equal to a trimming cut in some model; None where nothing is trimmed."""
    parameters = work.parameters or {}
    kind = parameters.get("sparsify")
    if kind not in ("magnitude", "outliers"):
        return variance_ties(work, case)
    dtype = torch.bfloat16 if case.computes_in == "bfloat16" else torch.float32
    base = input_of(work, 0, dtype)
    found = torch.zeros(work.size, dtype=torch.bool)
    for i in range(1, len(work.inputs)):
        density = (parameters["densities"] or [1.0] * len(work.inputs))[i - 1]
        if density >= 1:
            continue
        size = (input_of(work, i, dtype) - base).abs().float()
        ordered = size.sort().values
        n = len(ordered)
        k = max(1, int(density * n)) if kind == "magnitude" else int(density * n)
        top = 0 if kind == "magnitude" else int((parameters["gammas"] or [0.01] * len(work.inputs))[i - 1] * n)
        low = max(0, n - k - top)
        for place in {low - 1, low, low + k - 1, low + k}:
            if 0 <= place < n:
                found |= size == ordered[place]
    return found


def variance_ties(work: Work, case: Case) -> torch.Tensor | None:
    """The same for sce, which trims by the variance over the models."""
    share = (work.parameters or {}).get("select_topk", (work.parameters or {}).get("density", 1.0))
    if case.method != "sce" or share >= 1:
        return None
    dtype = torch.bfloat16 if case.computes_in == "bfloat16" else torch.float32
    base = input_of(work, 0, dtype)
    deltas = torch.stack([input_of(work, i, dtype) - base for i in range(1, len(work.inputs))])
    variance = deltas.var(dim=0, unbiased=False).float()
    k = int(share * int((variance != 0).sum()))
    cut = variance.sort(descending=True).values[max(k - 1, 0)]
    return (variance - cut).abs() <= 2.0**-7 * cut if dtype == torch.bfloat16 else (variance - cut).abs() <= 1e-5 * cut


def in_token_order(tensors: dict[str, torch.Tensor], theirs: Path, ours: Path) -> dict[str, torch.Tensor]:
    """Return the peer's tensors with the rows of tokens where ours has them: it numbers new tokens as a Python set falls."""
    there, here = (tokens_of(folder) for folder in (theirs, ours))
    if there.keys() != here.keys():
        return tensors
    moved = {}
    for name, values in tensors.items():
        if values.shape and len(there) <= values.shape[0] < len(there) + 64 and ("embed" in name or "head" in name):
            values = values.clone()
            values[list(here.values())] = tensors[name][[there[token] for token in here]]
        moved[name] = values
    return moved


def tokens_of(folder: Path) -> dict[str, int]:
    """Return the vocabulary of a tokenizer."""
    table = json.loads((folder / "tokenizer.json").read_text())
    return table["model"]["vocab"] | {token["content"]: token["id"] for token in table["added_tokens"]}


def works_of(case: Case, data: Path) -> dict[str, Work]:
    """Return what weightsmith plans for each tensor, by name."""
    (step,) = read_steps(data / "recipes" / f"{case.name}.yml")
    return {w.name: w for w in make_plan(step.translate(peer_exact=case.exact).recipe).merged}


def open_steps(x: torch.Tensor, y: torch.Tensor, work: Work | None, case: Case) -> tuple[torch.Tensor, int]:
    """Return how far entries are apart, 0 for those tied at a cut, and how many of these differ."""
    apart = steps_apart(x, y).reshape(-1)
    tied = tied_entries(work, case) if work is not None and apart.any() else None
    if tied is None or tied.shape != apart.shape:
        return apart, 0
    count = int(((apart > 0) & tied).sum())
    apart[tied] = 0
    return apart, count


def compare(case: Case, data: Path, error: str) -> Compared:
    """Run weightsmith on one recipe and compare it with what the peer wrote."""
    allowed = {"known": case.known, "bound": case.bound, "share": case.share, "nearer": case.nearer}
    result = Compared(case.name, case.method, case.random, error, **allowed)
    recipe, ours, theirs = data / "recipes" / f"{case.name}.yml", data / "ours" / case.name, data / "peer" / case.name
    shutil.rmtree(ours, ignore_errors=True)
    try:
        merge(recipe, out=ours, peer_exact=case.exact)
    except Exception as problem:
        result.error = f"weightsmith: {type(problem).__name__}: {str(problem)[:400]}"
        return result
    if error:
        return result
    a, b = load(theirs), load(ours)
    if case.name.startswith("tokenizer"):
        a = in_token_order(a, theirs, ours)
    result.only_peer, result.only_ours = sorted(a.keys() - b.keys()), sorted(b.keys() - a.keys())
    works = works_of(case, data)
    base = load(data / case.shape / "base") if case.random else {}
    kept, changes = np.zeros(2), np.zeros(2)
    for name in sorted(a.keys() & b.keys()):
        x, y = a[name], b[name]
        if x.dtype != y.dtype or x.shape != y.shape:
            result.error = f"{name}: {x.dtype} {tuple(x.shape)} there, {y.dtype} {tuple(y.shape)} here"
            return result
        result.elements += x.numel()
        if case.random:
            moved = [(t - base[name].to(t.dtype)).double() for t in (x, y)]
            kept += [float((m != 0).sum()) for m in moved]
            changes += [float(m.abs().sum()) for m in moved]
            continue
        apart, tied = open_steps(x, y, works.get(name), case)
        result.tied += tied
        result.differing += tied + int((apart > 0).sum())
        if not apart.any():
            continue
        largest = float((x.double() - y.double()).abs().reshape(-1)[apart > 0].max())
        result.max_abs = max(result.max_abs, largest)
        result.relative = max(result.relative, largest / float(x.double().square().mean().sqrt()))
        result.max_ulp = max(result.max_ulp, int(apart.max()))
        result.over_one += int((apart > 1).sum())
    if case.random:
        result.kept = (float(kept[0]) / result.elements, float(kept[1]) / result.elements)
        result.mean = (float(changes[0]) / result.elements, float(changes[1]) / result.elements)
    return result


def distances(case: Case, data: Path) -> tuple[float, float]:
    """Return how far both are from mergekit in float64: means over entries that differ, against their root mean square."""
    there, here = (load(data / side / case.name) for side in ("peer", "ours"))
    far, count, works = np.zeros(2), 0, works_of(case, data)
    for name, exact in load(data / "peer" / in_float64(case).name).items():
        differ = open_steps(there[name], here[name], works.get(name), case)[0].reshape(exact.shape) > 0
        near, size = exact[differ], float(exact.square().mean().sqrt())
        far += [float((t[name][differ].double() - near).abs().sum()) / (size or 1.0) for t in (there, here)]
        count += len(near)
    return float(far[0]) / max(count, 1), float(far[1]) / max(count, 1)


def in_float64(case: Case) -> Case:
    """Return the case as mergekit computes and writes it in float64."""
    body = case.body.replace("\nout_dtype: bfloat16\n", "\n").replace("\ndtype: float32\n", "\ndtype: float64\n")
    return replace(case, name=f"{case.name.partition('.')[0]}.f64", body=body)


def run_peer(listed: list[Case], data: Path, mergekit: Path) -> dict[str, str]:
    """Run every recipe that the peer has not run yet; return what failed, by name."""
    jobs = []
    failed: dict[str, str] = {}
    for case in listed:
        recipe, out = data / "recipes" / f"{case.name}.yml", data / "peer" / case.name
        text = case.text(data)
        if recipe.is_file() and recipe.read_text() == text and list(out.glob("*.safetensors")):
            continue
        recipe.write_text(text)
        shutil.rmtree(out, ignore_errors=True)
        jobs.append([str(recipe), str(out), *case.flags])
    if not jobs:
        return failed
    todo = data / "todo.json"
    todo.write_text(json.dumps(jobs))
    offline = {**os.environ, "HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
    python = mergekit.parent / "python"
    with subprocess.Popen(
        [python, "-c", RUN_PEER, todo], env=offline, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as peer:
        for line in peer.stdout or ():
            word, _, rest = line.partition(" ")
            out, _, told = rest.strip().partition(" ")
            if word == "failed":
                failed[Path(out).name] = told
    return failed


def version_of(mergekit: Path) -> str:
    """Return the version of the mergekit that was run."""
    command = [str(mergekit.absolute().parent / "python"), "-c"]
    command += ["from importlib.metadata import version; print(version('mergekit'))"]
    return subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout.strip()


def line_of(result: Compared) -> str:
    """Return one row of the table."""
    state = "ok" if result.passed else "known" if result.excused else "FAIL"
    if result.error:
        return f"{state:5} {result.name:28} {result.error.replace(chr(10), ' ')}"
    missing = f"missing {len(result.only_peer)}, dropped by mergekit {len(result.only_ours)}"
    if result.kept and result.mean:
        (kept, ours), (mean, our_mean) = result.kept, result.mean
        return (
            f"{state:5} {result.name:28} changed {kept:.4f} / {ours:.4f}, mean {mean:.3e} / {our_mean:.3e}; {missing}"
        )
    share = result.differing / max(result.elements, 1)
    ulps = f"ulp {result.max_ulp} ({result.over_one} over 1)"
    told = f"max {result.max_abs:.1e}, differ {share:8.4%}, {ulps}, relative {result.relative:.1e}, tied {result.tied}"
    told += f", from float64 {result.far[0]:.2e} / {result.far[1]:.2e}" if result.far else ""
    return f"{state:5} {result.name:28} {told}; {missing}" + (f" [{result.known}]" if state == "known" else "")


def main() -> int:
    """Make, run, compare, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder for checkpoints, recipes and results")
    parser.add_argument("--mergekit", type=Path, required=True, help="mergekit-yaml of an environment of its own")
    parser.add_argument("--only", default="", help="recipes whose name contains this")
    parser.add_argument("--json", type=Path, help="write the results here")
    parser.add_argument(
        "--into", type=Path, help="file whose part between the markers is replaced by a table of all recipes"
    )
    given = parser.parse_args()
    if given.into and given.only:
        parser.error("--into: the table is of all recipes; leave --only out")
    data: Path = given.data.resolve()
    for name in ("recipes", "peer", "ours"):
        (data / name).mkdir(parents=True, exist_ok=True)
    make_checkpoints(data)
    listed = [case for case in cases() if given.only in case.name]
    exact = {case.name: in_float64(case) for case in listed if case.known and case.computes_in == "float32"}
    failed = run_peer(
        [*listed, *{case.name: case for case in exact.values()}.values()], data, given.mergekit.absolute()
    )
    results: list[Compared] = []
    for case in listed:
        error = f"mergekit: {failed[case.name]}" if case.name in failed else ""
        results.append(compare(case, data, error))
        if case.name in exact and not results[-1].error and results[-1].over_one:
            results[-1].far = distances(case, data)
        print(line_of(results[-1]), flush=True)
    bad = [r for r in results if not r.passed]
    print(
        f"{len(results)} recipes, {len(results) - len(bad)} as the peer, {sum(r.excused for r in bad)} known exceptions"
    )
    told: list[dict[str, Any]] = [{**asdict(r), "passed": r.passed, "excused": r.excused} for r in results]
    if given.json:
        given.json.write_text(json.dumps(told, indent=1) + "\n")
    if given.into:
        put_into(given.into, told, version_of(given.mergekit))
    return int(any(not r.excused for r in bad))


if __name__ == "__main__":
    sys.exit(main())
