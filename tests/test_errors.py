"""Messages in four parts, and faults of several stages gathered into one error."""

from __future__ import annotations

import pytest

from weightsmith.errors import ArgumentError, CheckpointError, Gathered, MismatchError, RecipeError


def test_a_question_ends_in_its_own_sign() -> None:
    assert str(ArgumentError(str(ArgumentError("x", do="did you mean 'y'?")))) == "x. Did you mean 'y'?"
    assert str(ArgumentError("x.", got="y")) == "x; got y."


def test_nothing_gathered_raises_nothing() -> None:
    found = Gathered()
    found.add([], RecipeError, "recipe", "do")
    found.add_errors([], "inputs")
    found.absorb(Gathered())
    found.raise_any()


def test_the_first_stage_gives_kind_and_heading_and_each_fault_is_told_once() -> None:
    found = Gathered()
    found.add(["a", "b"], RecipeError, "recipe r")
    found.add_errors([CheckpointError("c"), CheckpointError("c")], "inputs")
    found.add(["b", "d"], MismatchError, "tensors", "Look")
    with pytest.raises(RecipeError) as caught:
        found.raise_any()
    assert str(caught.value) == "recipe r: 4 faults:\n  1. a\n  2. b\n  3. c.\n  4. d\nLook."


def test_an_error_that_stays_alone_is_raised_as_it_is() -> None:
    error = CheckpointError("x", got="y")
    found = Gathered()
    found.add_errors([error], "inputs")
    with pytest.raises(CheckpointError) as caught:
        found.raise_any()
    assert caught.value is error
    found.add(["more"], MismatchError, "tensors")
    with pytest.raises(CheckpointError, match=r"^inputs: 2 faults:\n  1. x; got y.\n  2. more$"):
        found.raise_any()


def test_ten_faults_are_listed_and_all_counted() -> None:
    found, other = Gathered(), Gathered()
    other.add((f"fault {i}" for i in range(12)), MismatchError, "tensors")
    found.absorb(other)
    found.absorb(other)
    text = str(found.error())
    assert text.startswith("tensors: 12 faults:\n  1. fault 0\n")
    assert text.endswith("\n  10. fault 9\n  ... and 2 more")
