"""Kinds of parameter: what they take, refuse, read from text and say."""

import math
from fractions import Fraction
from typing import get_args

import numpy as np
import pytest

from weightsmith import arguments
from weightsmith.arguments import Choice, Parameter, Real, Reals, Whole, check_all
from weightsmith.errors import ArgumentError

KINDS = {
    name: get_args(getattr(arguments, name))[1]
    for name in (
        "Proportion", "Share", "Number", "NonNegative", "Count", "Ordinal", "Seed", "Coefficients", "Flag",
    )
}  # fmt: skip


@pytest.mark.parametrize("name", KINDS)
def test_bad_values_are_refused_with_name_bound_and_value(name):
    kind = KINDS[name]
    for bad in kind.bad():
        with pytest.raises(ArgumentError) as caught:
            kind.check(bad, "size", "merge ties")
        assert str(caught.value).startswith("merge ties: size")
        assert isinstance(caught.value, ValueError)
        if not isinstance(kind, Reals):
            assert kind.describe() in str(caught.value)


@pytest.mark.parametrize(
    ("name", "good"),
    [
        ("Proportion", [1e-300, 0.5, 1, 1.0, np.float64(0.25)]),
        ("Share", [0, 0.0, 0.999]),
        ("Number", [-1e300, 0, 3]),
        ("NonNegative", [0, 1e9]),
        ("Count", [0, 7]),
        ("Ordinal", [1, 7]),
        ("Seed", [0, 2**63 - 1]),
        ("Flag", [True, False]),
    ],
)
def test_good_values_pass(name, good):
    for value in good:
        assert KINDS[name].check(value, "size", "merge ties") == value
    whole = name in ("Count", "Ordinal", "Seed")
    kind = bool if name == "Flag" else int if whole else float
    assert all(type(KINDS[name].check(v, "size", "merge ties")) is kind for v in good)


@pytest.mark.parametrize(
    ("name", "edge"),
    [
        ("Proportion", 0.0),
        ("Proportion", math.nextafter(1, 2)),
        ("Share", 1.0),
        ("NonNegative", -5e-324),
        ("Ordinal", 0),
    ],
)
def test_bounds_are_sharp(name, edge):
    with pytest.raises(ArgumentError):
        KINDS[name].check(edge, "size", "merge ties")


@pytest.mark.parametrize("value", ["0.5", None, [0.5], Fraction(1, 2), True, 1j, math.nan, -math.inf])
def test_what_is_no_number_is_refused(value):
    with pytest.raises(ArgumentError):
        Real().check(value, "size", "merge ties")


@pytest.mark.parametrize("value", [2.0, "2", None, True, -1, 2**63])
def test_what_is_no_whole_number_is_refused(value):
    with pytest.raises(ArgumentError):
        Whole(0).check(value, "size", "merge ties")


def test_description_of_bounds():
    assert Real().describe() == "a finite number"
    assert Real(0, 1, open_low=True).describe() == "a number in (0, 1]"
    assert Real(0, 1, open_high=True).describe() == "a number in [0, 1)"
    assert Real(0).describe() == "a number in [0, inf)"
    assert Whole(1).describe() == "a whole number from 1"
    assert Whole(1, 5).describe() == "a whole number from 1 to 5"


def test_text_is_read():
    assert Real().parse("1e-3") == 1e-3
    assert Real().parse("much") == "much"
    assert Whole(0).parse("12") == 12
    assert Whole(0).parse("1.5") == "1.5"
    assert Choice(("a",)).parse("b") == "b"
    assert Reals().parse("0.7,-0.3") == (0.7, -0.3)


@pytest.mark.parametrize("text", ["nan", "inf", "-inf", "1,5", "", "0x10", "much"])
def test_text_that_is_no_finite_number_is_refused(text):
    with pytest.raises(ArgumentError):
        Real().check(Real().parse(text), "size", "merge ties")


@pytest.mark.parametrize("text", ["", "1,,2", "1,b", "1;2", "nan,1"])
def test_text_that_is_no_list_of_numbers_is_refused(text):
    with pytest.raises(ArgumentError, match="coefficients"):
        Reals().check(Reals().parse(text), "coefficients", "merge ties")


def test_a_bad_coefficient_is_told_by_its_place():
    with pytest.raises(ArgumentError, match=r"coefficients\[1\]"):
        Reals().check([1.0, "x"], "coefficients", "merge ties")


def test_a_word_that_is_nearly_right_brings_the_right_one():
    with pytest.raises(ArgumentError, match="Did you mean 'mean'"):
        Choice(("mean", "sum", "max")).check("maen", "merge", "merge ties")


def test_a_word_with_control_characters_is_escaped():
    with pytest.raises(ArgumentError) as caught:
        Choice(("mean",)).check("\x1b[31m", "merge", "merge ties")
    assert "\x1b" not in str(caught.value)


def test_defaults_fill_in_and_unknown_names_are_refused():
    parameters = {
        "density": Parameter("density", Real(0, 1), 0.2, ""),
        "alpha": Parameter("alpha", Real(), None, ""),
    }
    assert check_all(parameters, {}, "merge ties") == {"density": 0.2, "alpha": None}
    assert check_all(parameters, {"alpha": None, "density": 1}, "merge ties") == {"density": 1.0, "alpha": None}
    with pytest.raises(ArgumentError, match=r"unknown parameter 'densty'.*Did you mean 'density'"):
        check_all(parameters, {"densty": 1}, "merge ties")
    with pytest.raises(ArgumentError, match="merge ties: density"):
        check_all(parameters, {"density": None}, "merge ties")
