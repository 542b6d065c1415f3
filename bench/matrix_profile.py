"""Account for the time that weightsmith's matrix methods spend in decompositions and products.

    python bench/matrix_profile.py FILE.json merge tsv_m --base ...

runs a command of weightsmith and writes to FILE.json how many of the process's CPU seconds were spent in LAPACK
(`numpy.linalg`) and in products of matrices (`@`). The products are mostly the Gram matrices and the vectors drawn from them,
so they belong to the decompositions. Operators leave no trace in a profiler of Python, so the methods and
`tensor/spectral.py` are compiled here with every `a @ b` replaced by a call that takes the time; nothing else is changed.
"""

import ast
import builtins
import importlib.machinery
import json
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

MODULES = ("weightsmith.merge.", "weightsmith.tensor.spectral")
DECOMPOSITIONS = ("eigh", "eigvalsh", "svd", "qr", "cholesky", "solve", "inv")
PRODUCT = "__timed_product__"

_lock = threading.Lock()
_spent: dict[str, float] = {}


def take() -> dict[str, float]:
    """Return the seconds spent since the last call, by kind and clock, and forget them."""
    with _lock:
        found = dict(_spent)
        _spent.clear()
    return found


def timed(function: Callable[..., Any], kind: str) -> Callable[..., Any]:
    """Return the function, its time added to a kind: wall seconds, and CPU seconds of the calling thread."""

    def run(*given: Any, **options: Any) -> Any:
        wall, cpu = time.perf_counter(), time.thread_time()
        try:
            return function(*given, **options)
        finally:
            wall, cpu = time.perf_counter() - wall, time.thread_time() - cpu
            with _lock:
                for clock, seconds in (("wall", wall), ("cpu", cpu)):
                    _spent[f"{kind}_{clock}"] = _spent.get(f"{kind}_{clock}", 0.0) + seconds

    return run


class _Products(ast.NodeTransformer):
    """Turns every `a @ b` into a call."""

    def visit_BinOp(self, node: ast.BinOp) -> ast.AST:
        self.generic_visit(node)
        if not isinstance(node.op, ast.MatMult):
            return node
        return ast.Call(ast.Name(PRODUCT, ast.Load()), [node.left, node.right], [])


def install() -> None:
    """Take the time from now on; weightsmith must not have been imported."""
    loader = importlib.machinery.SourceFileLoader
    usual = loader.get_code

    def get_code(self: Any, fullname: str) -> Any:
        if not fullname.startswith(MODULES):
            return usual(self, fullname)
        path = self.get_filename(fullname)
        tree = _Products().visit(ast.parse(self.get_data(path), path))
        return compile(ast.fix_missing_locations(tree), path, "exec")

    loader.get_code = get_code  # type: ignore[method-assign]  # what this module is for
    setattr(builtins, PRODUCT, timed(np.matmul, "products"))
    for name in DECOMPOSITIONS:
        setattr(np.linalg, name, timed(getattr(np.linalg, name), "linalg"))


def main() -> None:
    """Run weightsmith with the rest of the command line."""
    target, sys.argv[1:] = Path(sys.argv[1]), sys.argv[2:]
    install()
    from weightsmith.cli import main as weightsmith

    wall = time.perf_counter()
    code = weightsmith()
    spent = {**take(), "wall": time.perf_counter() - wall, "total_cpu": time.process_time()}
    target.write_text(json.dumps(spent), encoding="utf-8")
    sys.exit(code)


if __name__ == "__main__":
    main()
