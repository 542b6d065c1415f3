"""The contract of localizers: documented, one file each, called on whole tensors."""

import doctest

import numpy as np
import pytest

from weightsmith.errors import ArgumentError
from weightsmith.localize import LOCALIZERS, magnitude


@pytest.mark.parametrize("localizer", LOCALIZERS, ids=lambda m: m.name)
def test_example_runs(localizer):
    parser = doctest.DocTestParser()
    test = parser.get_doctest(localizer.__doc__, {localizer.name: localizer}, localizer.name, None, 0)
    assert test.examples
    assert doctest.DocTestRunner(verbose=False).run(test).failed == 0


@pytest.mark.parametrize("localizer", LOCALIZERS, ids=lambda m: m.name)
def test_docstring_has_every_part_and_every_parameter(localizer):
    for part in ("Args:", "Returns:", "Differs from the paper:", "Cost:", "Reference:", "Example:"):
        assert part in localizer.__doc__
    for parameter in localizer.parameters.values():
        assert parameter.help


@pytest.mark.parametrize("localizer", LOCALIZERS, ids=lambda m: m.name)
def test_empty_tensors_and_unknown_parameters(localizer):
    empty = np.zeros((0, 3))
    given = (empty, [empty]) if localizer.has_base else ([empty],)
    assert [m.shape for m in localizer(*given)] == [(0, 3)]
    with pytest.raises(ArgumentError, match="unknown parameter 'colour'"):
        localizer(*given, colour=1)


def test_the_wrong_number_of_inputs():
    with pytest.raises(ArgumentError, match="expected base, task_vectors"):
        magnitude([np.ones(2)])
