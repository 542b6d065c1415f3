"""Every method's docstring: complete, and its example true."""

import doctest
import sys

import pytest

from weightsmith.merge import METHODS

SECTIONS = ("Args:", "Returns:", "Differs from the paper:", "Cost:", "Command:", "Example:")


@pytest.mark.parametrize("method", METHODS, ids=lambda m: m.name)
def test_example_runs(method):
    module = sys.modules[method.function.__module__]
    test = doctest.DocTestParser().get_doctest(method.__doc__, dict(vars(module)), method.name, None, None)
    result = doctest.DocTestRunner().run(test)
    assert result.attempted > 0
    assert result.failed == 0


@pytest.mark.parametrize("method", METHODS, ids=lambda m: m.name)
def test_docstring_is_complete(method):
    for section in SECTIONS:
        assert section in method.__doc__, section
    assert "result = " in method.__doc__
    assert "arXiv" in method.source or "1985" in method.source
    assert method.example.startswith(f"weightsmith merge {method.name} ")
    for parameter in method.parameters.values():
        assert parameter.help, parameter.name
