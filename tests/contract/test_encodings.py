"""What every encoding promises: documentation whose examples run, checked parameters, the same parts wherever runs end."""

import doctest
import sys

import numpy as np
import pytest

from weightsmith.compress import ENCODINGS
from weightsmith.errors import ArgumentError
from weightsmith.method import Tile, reduce_in_memory

NAMED = {"ids": lambda e: e.name}
FLAT = [e for e in ENCODINGS if e.reach == "elementwise" and e.form != "difference"]


@pytest.mark.parametrize("encoding", ENCODINGS, **NAMED)
def test_example_in_docstring(encoding):
    module = sys.modules[encoding.function.__module__]
    test = doctest.DocTestParser().get_doctest(encoding.__doc__, dict(vars(module)), encoding.name, None, None)
    assert test.examples
    assert doctest.DocTestRunner().run(test).failed == 0


@pytest.mark.parametrize("encoding", ENCODINGS, **NAMED)
def test_documentation(encoding):
    assert encoding.summary.endswith(".")
    assert encoding.source.endswith(".")
    assert encoding.example.startswith(f"weightsmith pack {encoding.name} --base B --model ")
    for part in ("Args:", "Returns:", "Differs from the paper:", "Cost:", "Example:"):
        assert part in encoding.__doc__
    assert all(p.help for p in encoding.parameters.values())


@pytest.mark.parametrize("encoding", ENCODINGS, **NAMED)
def test_bad_parameters_are_refused_by_name(encoding):
    for name, parameter in encoding.parameters.items():
        for value in parameter.kind.bad():
            if value is None and parameter.default is None:
                continue
            with pytest.raises(ArgumentError, match=f"pack {encoding.name}: {name}"):
                encoding.check({name: value}, 2)
    with pytest.raises(ArgumentError, match="unknown parameter"):
        encoding.check({"no_such": 1}, 2)


@pytest.mark.parametrize("encoding", FLAT, **NAMED)
def test_parts_do_not_depend_on_where_runs_end(encoding):
    rng = np.random.default_rng(0)
    own, shared = rng.standard_normal((2, 1000)).astype(np.float32)
    given = (own, shared) if encoding.has_shared else (own,)
    before = [x.copy() for x in given]
    whole = encoding(*given)
    assert all((a == b).all() for a, b in zip(given, before, strict=True))
    statistics = _statistics(encoding, given)
    parameters = encoding.of_task(encoding.check({}, 1), 0)
    parts = [
        encoding.encode(
            own[a:b],
            shared[a:b] if encoding.has_shared else None,
            parameters,
            Tile("w", (1000,), a, a, None, 0, statistics),
        )
        for a, b in ((0, 1), (1, 400), (400, 1000))
    ]
    assert all(p.settings == whole.settings for p in parts)
    for name, array in whole.arrays.items():
        assert np.array_equal(np.concatenate([p.arrays[name] for p in parts]), array)


def _statistics(encoding, given):
    if encoding.prepare is None:
        return None
    parameters = encoding.of_task(encoding.check({}, 1), 0)
    names = encoding.packing.prepared_by
    asked = encoding.prepare(**{n: parameters[n] for n in names})
    return reduce_in_memory(asked, np.zeros(1000, np.float32), np.stack(given), Tile("w", (1000,)))


@pytest.mark.parametrize("encoding", FLAT, **NAMED)
def test_a_task_that_is_the_base(encoding):
    zero = np.zeros(10, np.float32)
    part = encoding(zero, zero) if encoding.has_shared else encoding(zero)
    assert all(np.isfinite(a).all() for a in part.arrays.values())
    assert all(np.isfinite(v) for v in part.settings.values() if isinstance(v, float))
