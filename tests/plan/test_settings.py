"""Per-model parameters: singular names, defaults, schedules by the model's own names, and what is refused."""

from __future__ import annotations

from typing import Annotated

import pytest

from weightsmith.arguments import Coefficients, Flag, Number, Proportion, Reals
from weightsmith.errors import ArgumentError
from weightsmith.method import Sums, method
from weightsmith.plan.settings import per_model, resolver, split_settings
from weightsmith.plan.slicing import Part
from weightsmith.recipe import Recipe, Rule, Schedule, plural, singular

Several = Annotated[tuple[float, ...] | None, Reals()]


def _prepare(*, rescale):
    return (x for x in (Sums(lambda base, others, tile: others),)) if rescale else None


@method(prepare=_prepare, scope="model")
def toy(
    base,
    task_vectors,
    *,
    density: Proportion = 0.2,
    densities: Several = None,
    gammas: Several = None,
    coefficients: Coefficients = None,
    lambda_: Number = 1.0,
    normalize: Flag = False,
    rescale: Flag = False,
    tile,
):
    """Do nothing."""
    return base


def resolved(settings, *, count=3, own=("layers.5.mlp.w", "layers.9.mlp.w"), place=1, **parameters):
    part = Part("", (0, 1, 2), settings, parameters, (0, 0, 0), count)
    recipe = Recipe("toy", ("a", "b"), "base", settings, parameters=parameters)
    return resolver(recipe, toy, part).resolve("layers.1.mlp.w", own, place)


def refused(settings, **parameters):
    with pytest.raises(ArgumentError) as caught:
        resolved(settings, **parameters)
    return str(caught.value)


@pytest.mark.parametrize("name", ["coefficients", "densities", "gammas", "epsilons", "weights"])
def test_names_have_one_singular(name):
    assert plural(singular(name)) == name


def test_the_parameters_that_are_given_per_model():
    assert per_model(toy) == ["densities", "gammas", "coefficients"]


def test_a_model_without_a_part_takes_the_default():
    found = resolved(({"coefficient": 0.5, "gamma": 1}, {"density": 0.7, "gamma": 2}), density=0.4)
    assert found["coefficients"] == (0.5, 1.0)
    assert found["densities"] == (0.4, 0.7)
    assert found["gammas"] == (1.0, 2.0)
    assert resolved(({}, {}))["densities"] is None


def test_the_default_may_differ_between_tensors():
    shared = Schedule((Rule("*.mlp.*", (0.1, 0.3)), Rule("*", (1.0,))))
    assert resolved(({}, {"density": 0.7}), density=shared)["densities"] == (0.2, 0.7)
    assert resolved(({}, {"density": 0.7}), density=shared, place=2)["densities"] == (0.3, 0.7)


def test_a_parameter_without_a_usual_value_is_needed_from_all():
    message = refused(({"gamma": 1}, {}))
    assert "model 'b' has no gamma, and others have one" in message
    assert "Give each model its gamma" in message


def test_a_models_schedule_goes_by_its_own_names_and_the_parts_layers():
    first = Schedule((Rule("layers.5.*", (10.0, 30.0)), Rule("*", (-1.0,))))
    second = Schedule((Rule("layers.5.*", (10.0, 30.0)), Rule("*", (-1.0,))))
    found = resolved(({"coefficient": first}, {"coefficient": second}))
    assert found["coefficients"] == (20.0, -1.0)


def test_a_shared_schedule_goes_by_the_outputs_names():
    assert resolved(({}, {}), lambda_=Schedule((Rule("layers.1.*", (7.0,)), Rule("*", (8.0,)))))["lambda_"] == 7.0


def test_flags_may_differ_between_tensors_where_no_reduction_depends_on_them():
    schedule = Schedule((Rule("*.mlp.*", (True,)), Rule("*", (False,))))
    assert resolved(({}, {}), normalize=schedule)["normalize"] is True
    assert "merge toy: rescale; expected one value for all tensors; got a schedule" in refused(
        ({}, {}), rescale=schedule
    )


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        (({"densty": 0.5}, {}), "model 'a' has 'densty', which toy does not take. Did you mean 'density'?"),
        (({"lambda_": 0.5}, {}), "model 'a' has 'lambda_', which toy does not take"),
        (({}, {"coefficient": float("nan")}), "coefficients[1]; expected a finite number; got nan"),
        (({}, {"coefficient": "much"}), "coefficients[1]"),
        (({"coefficient": 1}, {"coefficient": Schedule((Rule("*", (True,)),))}), "coefficients[1]"),
    ],
)
def test_what_is_refused(settings, told):
    assert told.lower() in refused(settings).lower()


def test_tuples_are_split_by_model():
    assert split_settings(toy, {"coefficients": (1, 2), "densities": None, "lambda_": 3}, 2) == (
        {"coefficient": 1.0},
        {"coefficient": 2.0},
    )
    assert split_settings(toy, {"lambda_": 3}, 2) == ()
    with pytest.raises(ArgumentError, match="merge toy: gammas; expected 2, one per model; got 3"):
        split_settings(toy, {"gammas": (1, 2, 3)}, 2)
