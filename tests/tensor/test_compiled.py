import subprocess
import sys

import numba

from weightsmith.tensor import loops


def test_without_a_folder_for_compiled_code(monkeypatch):
    njit = numba.njit

    def refuse(*functions, **options):
        if options.get("cache"):
            raise RuntimeError("cannot cache function: no locator available")
        return njit(*functions, **options)

    monkeypatch.setattr(numba, "njit", refuse)
    assert loops.loop(lambda x: x + 1)(1) == 2


def test_numba_is_imported_when_first_used():
    code = (
        "import sys; from weightsmith.tensor import compiled; assert 'numba' not in sys.modules;"
        "compiled.is_finite; assert 'numba' in sys.modules"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
