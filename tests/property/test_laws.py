"""Laws that hold for drawn models; equal up to the rounding of arithmetic, or bit for bit where none happens."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from weightsmith.merge import METHODS
from weightsmith.method import Tile

BY_NAME = {m.name: m for m in METHODS}
LINEAR_IN_LAMBDA = [m for m in METHODS if "lambda_" in m.parameters]
DRAWN = ("dare", "dare_ties", "della", "della_linear")
IN_ORDER = (*DRAWN, "slerp", "tall_masks", "wise_ft", "magmax", "rebase", "robust_signatures")
# Where vectors cancel, or are at right angles, no direction is better than another.
UNDECIDED = ("karcher", "flag", "multislerp", "multislerp_base")
FREE_OF_ORDER = [m for m in METHODS if m.most is None and m.name not in IN_ORDER + UNDECIDED]
ELEMENTWISE = [
    m
    for m in METHODS
    if m.reach == "elementwise" and m.reduction_scope({n: p.default for n, p in m.parameters.items()}) is None
]
TILE = Tile(name="layers.1.w", layer=1, layers=3)

pytestmark = pytest.mark.property
drawn = settings(derandomize=True, max_examples=25, deadline=None, database=None)

# Multiples of 1/64 up to 4 and zeros: sums are exact, equal magnitudes and level votes are common.
level = st.integers(-256, 256).map(lambda n: n / 64) | st.sampled_from([0.0, 1.0, -1.0])
number = st.floats(-100, 100, width=32).map(lambda x: x if abs(x) > 1e-6 else 0.0)


def models(elements, count=3):
    def build(size):
        return arrays(np.float64, (count + 1, size), elements=elements)

    return st.integers(1, 40).flatmap(build)


def call(method, base, taus, **parameters):
    """Call a method on a base and task vectors, whatever inputs it takes."""
    taus = list(taus)[: method.most]
    finetuned = [base + t for t in taus]
    parameters.setdefault("tile", TILE)
    if not method.has_base:
        return method(finetuned, **parameters)
    return method(base, taus if "task_vectors" in method.inputs else finetuned, **parameters)


def step(*values):
    """Return a bound on a few roundings at the size of the operands."""
    return 16 * np.finfo(np.float64).eps * max(1.0, *(float(np.abs(v).max(initial=0)) for v in values))


@drawn
@given(models(number))
@pytest.mark.parametrize("method", [m for m in METHODS if not m.has_base], ids=lambda m: m.name)
def test_copies_of_one_model_merge_to_it(method, drawn):
    copies = [drawn[0].copy() for _ in range(method.most or 4)]
    assert np.array_equal(method(copies), drawn[0])


@drawn
@given(models(number, count=1))
@pytest.mark.parametrize("name", ["ties", "dare_ties"])
def test_copies_of_one_task_merge_to_its_model(name, drawn):
    base, tau = drawn
    found = call(BY_NAME[name], base, [tau] * 3, density=1.0)
    if name == "ties":
        np.testing.assert_allclose(found, base + tau, rtol=0, atol=step(base, tau))
    else:
        alone = call(BY_NAME[name], base, [tau], density=1.0)
        np.testing.assert_allclose(found, alone, rtol=0, atol=step(base, tau))


@drawn
@given(models(number), st.floats(-3, 3, width=16))
@pytest.mark.parametrize("method", LINEAR_IN_LAMBDA, ids=lambda m: m.name)
def test_linear_in_lambda(method, drawn, lambda_):
    base, taus = drawn[0], drawn[1:]
    none, one, some = (call(method, base, taus, lambda_=x) for x in (0.0, 1.0, float(lambda_)))
    np.testing.assert_array_equal(none, base)
    bound = step(base, *taus) * (1 + abs(lambda_)) * 4
    np.testing.assert_allclose(some - base, lambda_ * (one - base), rtol=0, atol=bound)


@drawn
@given(models(level), st.permutations(range(3)))
@pytest.mark.parametrize("method", FREE_OF_ORDER, ids=lambda m: m.name)
def test_order_of_models_does_not_matter(method, drawn, order):
    base, taus = drawn[0], drawn[1:]
    found = call(method, base, taus[list(order)])
    np.testing.assert_allclose(found, call(method, base, taus), rtol=0, atol=step(base, *taus))


@drawn
@given(models(level), st.permutations(range(3)))
def test_coefficients_go_with_their_models(drawn, order):
    base, taus = drawn[0], drawn[1:]
    factors = np.array([0.5, 2.0, 1.25])
    for name in ("linear", "task_arithmetic", "breadcrumbs"):
        there = call(BY_NAME[name], base, taus, coefficients=tuple(factors))
        back = call(BY_NAME[name], base, taus[list(order)], coefficients=tuple(factors[list(order)]))
        np.testing.assert_allclose(back, there, rtol=0, atol=4 * step(base, *taus))


@drawn
@given(models(level), st.floats(0, 1))
def test_what_is_kept_and_what_is_dropped_add_up(drawn, share):
    """A mask and its complement: breadcrumbs without a top, and the same top alone."""
    base, taus = np.zeros(drawn.shape[1]), drawn[1:2]
    size = base.size
    rank = min(max(1, round(share * size)), size - 1) if size > 1 else 1
    kept = call(BY_NAME["ties"], base, taus, density=rank / size)
    rest = call(BY_NAME["breadcrumbs"], base, taus, density=1.0, drop_top=rank / size, lambda_=1.0) if size > 1 else 0
    np.testing.assert_array_equal(kept + rest, taus[0])
    assert not np.any((kept != 0) & (rest != 0))


@drawn
@given(models(level), st.floats(0, 3))
def test_tall_masks_choose_between_base_and_sum(drawn, mask_lambda):
    base, taus = drawn[0], drawn[1:]
    for task in (1, 2, 3):
        found = call(BY_NAME["tall_masks"], base, taus, task=task, mask_lambda=mask_lambda)
        assert np.all((found == base) | (found == base + taus.sum(0)))


@drawn
@given(models(number), st.integers(0, 40), st.integers(0, 2**40))
@pytest.mark.parametrize("method", ELEMENTWISE, ids=lambda m: m.name)
def test_parts_of_a_tensor_are_the_parts_of_its_result(method, drawn, cut, start):
    drawn = drawn.astype(np.float32)
    base, others = (drawn[0], drawn[1:]) if method.has_base else (None, drawn)
    others = np.ascontiguousarray(others[: method.most])
    parameters = method.check({}, len(others))
    cut = min(cut, drawn.shape[1])

    def run(part, at):
        tile = Tile("w", (2**41,), start + at, start + at, 1, 3)
        left = None if base is None else np.ascontiguousarray(base[part])
        return method.apply(left, np.ascontiguousarray(others[:, part]), parameters, tile)

    parts = [run(slice(0, cut), 0), run(slice(cut, None), cut)]
    assert np.concatenate(parts).tobytes() == run(slice(None), 0).tobytes()


@drawn
@given(models(number))
@pytest.mark.parametrize("method", METHODS, ids=lambda m: m.name)
def test_float32_is_near_float64(method, drawn):
    """Where no vote or rank hangs on rounding: models that differ in scale alone."""
    base, tau = drawn[0], np.abs(drawn[1]) + 1
    if method.name == "arcee_fusion":
        base = base / 64  # where one entry of a softmax is nearly 1, float32 does not hold the divergence
    tau = np.sort(tau) * (1 + np.arange(tau.size) / 64)
    wide = [base.astype(np.float32).astype(np.float64), tau.astype(np.float32).astype(np.float64)]
    taus = [wide[1], 2 * wide[1], 4 * wide[1]][: method.most]
    off_the_edge = {"mask_lambda": 0.3} if "mask_lambda" in method.parameters else {}
    slim = call(method, wide[0].astype(np.float32), [t.astype(np.float32) for t in taus], **off_the_edge)
    assert slim.dtype == np.float32
    scale = max(1.0, float(np.abs(wide[0]).max()), float(np.abs(taus[-1]).max()))
    np.testing.assert_allclose(slim, call(method, wide[0], taus, **off_the_edge), rtol=0, atol=64 * scale * 2.0**-23)
