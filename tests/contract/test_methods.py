"""What every merge method promises, whatever it computes."""

import math

import numpy as np
import pytest
import torch

from weightsmith.errors import ArgumentError, MismatchError, NonFiniteError
from weightsmith.merge import METHODS
from weightsmith.method import Tile

SHAPES = [(), (0,), (1,), (3,), (64,), (8, 8), (4, 0), (0, 4), (2, 3, 5), (1, 1), (7, 1), (5000,)]
NUMPY = ["float32", "float64", "float16"]
DTYPES = [*NUMPY, "bfloat16"]
TILE = Tile(name="layers.1.w", layer=1, layers=3)

every_method = pytest.mark.parametrize("method", METHODS, ids=lambda m: m.name)


def count_of(method):
    return method.most or 3


def draw(method, shape=(64,), seed=0):
    """Return (base, others) or (others,): small multiples of 1/64, exact in every dtype."""
    rng = np.random.default_rng(seed)
    base = np.array(rng.integers(-64, 65, shape) / 64)
    change = [np.array(rng.integers(-8, 9, shape) / 64) for _ in range(count_of(method))]
    if method.inputs == ("base", "task_vectors"):
        return base, change
    models = [base + c for c in change]
    return (base, models) if method.has_base else (models,)


def convert(inputs, make):
    return tuple([make(t) for t in x] if isinstance(x, list) else make(x) for x in inputs)


def as_numpy(dtype):
    return lambda a: np.array(a, dtype)


def as_torch(dtype):
    return lambda a: torch.from_numpy(np.array(a)).to(getattr(torch, dtype))


def flat(inputs):
    return [t for x in inputs for t in (x if isinstance(x, list) else [x])]


def raw(tensor):
    if isinstance(tensor, torch.Tensor):
        assert tensor.dtype != torch.bfloat16
        tensor = tensor.numpy()
    return str(tensor.dtype), tensor.shape, tensor.tobytes()


def same(first, second, method):
    """Tell whether two results have the same bytes; of decompositions, whose libraries differ, the same but for rounding."""
    if method.reach != "matrix" or first.ndim < 2:
        return raw(first) == raw(second)
    (kind, shape, _), (other, beside, _) = raw(first), raw(second)
    a, b = (np.asarray(x, np.float64) for x in (first, second))
    tolerance = max(1e-5, 2 * np.finfo(kind).eps) * np.abs(a).max(initial=0)
    return (kind, shape) == (other, beside) and np.allclose(a, b, rtol=0, atol=tolerance)


def settings(method):
    """Yield parameter sets: the defaults, every word of every choice, both ends of the shares."""
    yield {}
    for name, parameter in method.parameters.items():
        for value in getattr(parameter.kind, "values", ()):
            yield {name: value}
    if "density" in method.parameters:
        more = {"merged": "ties"} if "merged" in method.parameters else {}
        yield {"density": 1.0, **more}
        yield {"density": 1e-12, **more}
    if "drop_top" in method.parameters:
        yield {"drop_top": 0.0}
        yield {"drop_top": 0.999999}
        yield {"drop_top": 0.5, "density": 1.0}


cases = pytest.mark.parametrize(
    ("method", "parameters"),
    [pytest.param(m, s, id="-".join([m.name, *map(str, s.values())])) for m in METHODS for s in settings(m)],
)


@pytest.mark.parametrize("dtype", DTYPES)
@cases
def test_shape_and_dtype_are_kept_and_inputs_unchanged(method, parameters, dtype):
    for shape in SHAPES:
        inputs = convert(draw(method, shape), as_torch(dtype))
        before = [t.clone() for t in flat(inputs)]
        result = method(*inputs, tile=TILE, **parameters)
        assert tuple(result.shape) == shape
        assert result.dtype == getattr(torch, dtype)
        assert torch.isfinite(result).all()
        assert all(torch.equal(a, b) for a, b in zip(before, flat(inputs), strict=True))


@pytest.mark.parametrize("dtype", NUMPY)
@cases
def test_numpy_and_torch_give_the_same_bits(method, parameters, dtype):
    for shape in SHAPES:
        inputs = draw(method, shape)
        ours = convert(inputs, as_numpy(dtype))
        before = [raw(t) for t in flat(ours)]
        result = method(*ours, tile=TILE, **parameters)
        assert same(result, method(*convert(inputs, as_torch(dtype)), tile=TILE, **parameters), method)
        assert [raw(t) for t in flat(ours)] == before


@every_method
def test_numpy_and_torch_give_the_same_bits_for_numbers_of_all_digits(method):
    rng = np.random.default_rng(3)
    inputs = convert(draw(method, (4097,)), lambda a: (a + rng.standard_normal(a.shape)).astype(np.float32))
    theirs = convert(inputs, torch.from_numpy)
    assert raw(method(*inputs, tile=TILE)) == raw(method(*theirs, tile=TILE))


@cases
def test_same_input_same_bytes(method, parameters):
    inputs = draw(method)
    assert raw(method(*inputs, **parameters)) == raw(method(*inputs, **parameters))


@every_method
def test_seed_and_name_matter_where_there_is_a_seed(method):
    if "seed" not in method.parameters:
        assert raw(method(*draw(method), tile=Tile(name="a"))) == raw(method(*draw(method), tile=Tile(name="b")))
        return
    draws = {"sparsify": "random", "densities": (0.5,) * 3} if "sparsify" in method.parameters else {}
    inputs = draw(method)
    if method.reach == "matrix":  # where only sketches are random
        inputs, draws = draw(method, (64, 64)), {"algorithm": "randomized"}
        draws |= {"rank": 5} if "rank" in method.parameters else {}
    found = {
        raw(method(*inputs, tile=Tile(name=name), seed=seed, **draws)) for seed in (0, 1, 2**40) for name in ("a", "b")
    }
    assert len(found) == 6


@every_method
def test_input_order_is_respected(method):
    inputs = draw(method)
    others = inputs[-1]
    backward = (*inputs[:-1], others[::-1])
    if "coefficients" in method.parameters:
        factors = (0.5, 0.25, 2.0)[: count_of(method)]
        there = method(*inputs, coefficients=factors, tile=TILE)
        assert not np.array_equal(there, method(*inputs, coefficients=factors[::-1], tile=TILE))
        if method.name not in ("dare", "della", "della_linear"):  # whose masks go by place
            back = method(*backward, coefficients=factors[::-1], tile=TILE)
            np.testing.assert_allclose(back, there, rtol=0, atol=1e-14)
    elif method.name == "slerp":
        np.testing.assert_allclose(method(*backward, t=0.75), method(*inputs, t=0.25), rtol=0, atol=1e-14)
        assert not np.array_equal(method(*inputs, t=0.75), method(*inputs, t=0.25))
    elif method.name == "tall_masks":
        for task in (1, 2, 3):
            back = method(*backward, task=4 - task)
            np.testing.assert_allclose(back, method(*inputs, task=task), rtol=0, atol=1e-14)
    elif method.name in ("dare_ties", "magmax", "rebase", "robust_signatures"):
        assert not np.array_equal(method(*backward), method(*inputs))
    else:  # flag and others iterate
        np.testing.assert_allclose(method(*backward, tile=TILE), method(*inputs, tile=TILE), rtol=0, atol=1e-13)


@pytest.mark.parametrize(
    ("method", "parameters"),
    [pytest.param(m, s, id=f"{m.name}-{s}") for m in METHODS if m.has_base for s in settings(m)],
)
def test_zero_task_vectors_give_the_base(method, parameters):
    for shape in ((), (1,), (64,), (3, 5)):
        base, others = draw(method, shape)
        base = np.where(base == 0, 1.0, base).astype(np.float32)
        still = [np.zeros_like(base) if "task_vectors" in method.inputs else base.copy() for _ in others]
        assert raw(method(base, still, tile=TILE, **parameters)) == raw(base)


@cases
def test_memory_layout_does_not_matter(method, parameters):
    inputs = draw(method, (12, 10))
    expected = method(*inputs, tile=TILE, **parameters)
    spread = convert(inputs, lambda a: np.repeat(np.repeat(a, 2, 0), 3, 1)[::2, ::3])
    fortran = convert(inputs, np.asfortranarray)
    turned = convert(inputs, lambda a: torch.from_numpy(np.ascontiguousarray(a.T)).T)
    backward = convert(inputs, lambda a: np.ascontiguousarray(a[::-1])[::-1])
    for other in (spread, fortran, turned, backward):
        assert same(expected, method(*other, tile=TILE, **parameters), method)


@every_method
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("make", [as_numpy("float32"), as_torch("float32"), as_torch("bfloat16")])
def test_nonfinite_input_is_refused(method, bad, make):
    for place in range(len(flat(draw(method)))):
        inputs = draw(method)
        flat(inputs)[place][17] = bad
        with pytest.raises(NonFiniteError, match=f"merge {method.name}: input {place}"):
            method(*convert(inputs, make), tile=TILE)


@every_method
def test_shapes_that_differ_are_refused(method):
    for shape in ((63,), (8, 8), (64, 1), ()):
        inputs = draw(method)
        inputs[-1][-1] = np.zeros(shape)
        if len(flat(inputs)) == 1:
            continue
        with pytest.raises(MismatchError) as caught:
            method(*inputs)
        text = str(caught.value)
        assert f"merge {method.name}: model {count_of(method)}" in text
        assert "(64,)" in text
        assert str(shape) in text


@every_method
def test_bad_values_are_refused_by_name(method):
    assert method.parameters or method.name == "arcee_fusion"
    for name, parameter in method.parameters.items():
        assert len(parameter.kind.bad()) >= 3
        for bad in parameter.kind.bad():
            if bad is None and parameter.default is None:
                continue
            with pytest.raises(ArgumentError) as caught:
                method(*draw(method), **{name: bad})
            text = str(caught.value)
            assert text.startswith(f"merge {method.name}: {name}"), text
            assert "expected " in text
            assert "got " in text


@every_method
def test_unknown_parameter_brings_the_nearest(method):
    for name in method.parameters:
        wrong = name[:-1] + "x" + name[-1:]
        with pytest.raises(ArgumentError) as caught:
            method(*draw(method), **{wrong: 1})
        assert f"merge {method.name}: unknown parameter '{wrong}'" in str(caught.value)
        if len(name) > 2:
            assert f"'{name}'" in str(caught.value)


@every_method
def test_wrong_number_of_models(method):
    wrong = [0] if method.most is None else [0, method.least - 1, method.most + 1]
    for count in wrong:
        inputs = draw(method)
        others = [inputs[-1][0]] * count
        with pytest.raises(ArgumentError, match=f"merge {method.name}: number of models") as caught:
            method(*inputs[:-1], others)
        assert f"got {count}" in str(caught.value)


@every_method
def test_wrong_number_of_inputs(method):
    with pytest.raises(ArgumentError, match=f"merge {method.name}: tensors"):
        method(*draw(method), [np.zeros(64)])


@every_method
def test_wrong_number_of_coefficients(method):
    if "coefficients" not in method.parameters:
        with pytest.raises(ArgumentError, match="unknown parameter"):
            method(*draw(method), coefficients=(1.0, 1.0, 1.0))
        return
    for wrong in ((), (1.0,), (1.0, 1.0, 1.0, 1.0)):
        with pytest.raises(ArgumentError, match=f"merge {method.name}: coefficients") as caught:
            method(*draw(method), coefficients=wrong)
        assert f"got {len(wrong)}" in str(caught.value)


@every_method
def test_coefficients_may_be_any_sequence_of_numbers(method):
    if "coefficients" in method.parameters:
        whole = list(range(1, count_of(method) + 1))
        given = (whole, tuple(map(float, whole)), np.array(whole, float))
        found = [raw(method(*draw(method), coefficients=c, tile=TILE)) for c in given]
        assert found[0] == found[1] == found[2]
