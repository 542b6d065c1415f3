"""What each operator of a traced graph demands of the axes it reads: which move together, which stay, which are new.

A rule takes the operator's arguments, with every tensor's `Axes` in place of the tensor, and the shape of the result;
it returns the result's axes. An operator without a rule fixes all that it touches: nothing is guessed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from weightsmith.align.axes import Axes, Axis, contract, count, fix, fresh, join, regroup

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Value:
    """A tensor in the graph: its shape and axes."""

    shape: Shape
    axes: Axes


Rule = Callable[[list[Any], dict[str, Any], Shape], Axes]

_ELEMENTWISE = (
    "abs", "add", "add_", "bitwise_and", "bitwise_not", "bitwise_or", "ceil", "clamp", "clamp_max", "clamp_min",
    "clone", "contiguous", "cos", "detach", "detach_", "div", "div_", "dropout", "dropout_", "elu", "eq", "erf",
    "exp", "expm1", "floor", "ge", "gelu", "gt", "hardsigmoid", "hardswish", "hardtanh", "alias", "le",
    "leaky_relu", "lift_fresh_copy", "log", "log1p", "log_sigmoid", "logical_and", "logical_not", "logical_or",
    "lt", "masked_fill", "maximum", "minimum", "mish", "mul", "mul_", "ne", "neg", "pow", "reciprocal", "relu",
    "relu_", "relu6", "rsqrt", "rsub", "selu", "sigmoid", "sign", "silu", "silu_", "sin", "softplus", "sqrt",
    "square", "sub", "sub_", "tanh", "to", "type_as", "where", "_to_copy", "zeros_like", "ones_like", "full_like",
    "feature_dropout", "alpha_dropout",
)  # fmt: skip
VIEWS = ("transpose", "swapaxes", "t", "numpy_T", "permute")  # a parameter's axes stay its own through these
_RESHAPES = ("view", "reshape", "flatten", "unflatten", "squeeze", "unsqueeze", "_unsafe_view", "view_as")
_POOLS = (
    "max_pool1d", "max_pool2d", "max_pool3d", "avg_pool1d", "avg_pool2d", "avg_pool3d", "adaptive_avg_pool1d",
    "adaptive_avg_pool2d", "adaptive_avg_pool3d", "adaptive_max_pool1d", "adaptive_max_pool2d",
)  # fmt: skip
_REDUCTIONS = ("mean", "sum", "amax", "amin")


def find_rule(operator: str) -> Rule | None:
    """Return the rule of an ATen operator, named without its overload; None where there is none."""
    return _RULES.get(operator)


def unknown(operator: str, given: Sequence[Any], shape: Shape) -> Axes:
    """Fix everything that an operator without a rule reads and makes."""
    why = f"the operator {operator} has no rule"
    for value in given:
        if isinstance(value, Value):
            for axis in value.axes:
                fix(axis, why)
        elif isinstance(value, list | tuple):
            unknown(operator, value, ())
    return fresh(shape, why)


def _broadcast(values: Sequence[Value], shape: Shape) -> Axes:
    """Join axes aligned from the right; an axis of one position goes along with any other."""
    made: Axes = [[] for _ in shape]
    for value in values:
        for place, axis in enumerate(value.axes, len(shape) - len(value.axes)):
            if not axis:
                continue
            if made[place]:
                join(made[place], axis)
            else:
                made[place] = axis
    return made


def _elementwise(given: list[Any], named: dict[str, Any], shape: Shape) -> Axes:
    return _broadcast([v for v in [*given, *named.values()] if isinstance(v, Value)], shape)


def _reshape(given: list[Any], named: dict[str, Any], shape: Shape) -> Axes:
    made = regroup(given[0].axes, shape)
    return made if made is not None else unknown("reshape of axes that do not divide", given, shape)


def _transpose(given: list[Any], named: dict[str, Any], shape: Shape) -> Axes:
    axes = list(given[0].axes)
    a, b = given[1:3]
    axes[a], axes[b] = axes[b], axes[a]
    return axes


def _reverse(given: list[Any], named: dict[str, Any], shape: Shape) -> Axes:
    axes: Axes = given[0].axes
    return axes[::-1]


def _permute(given: list[Any], named: dict[str, Any], shape: Shape) -> Axes:
    return [given[0].axes[i] for i in given[1]]


def _linear(given: list[Any], named: dict[str, Any], shape: Shape) -> Axes:
    x, weight, *bias = given
    contract(x.axes[-1], weight.axes[1])
    if bias and bias[0] is not None:
        join(weight.axes[0], bias[0].axes[0])
    return [*x.axes[:-1], weight.axes[0]]


def _matmul(given: list[Any], named: dict[str, Any], shape: Shape) -> Axes:
    x, y = given[:2]
    if len(x.shape) == 1 or len(y.shape) == 1:
        return unknown("matmul of a vector", given, shape)
    contract(x.axes[-1], y.axes[-2])
    batch = _broadcast([Value(v.shape[:-2], v.axes[:-2]) for v in (x, y)], shape[:-2])
    return [*batch, x.axes[-2], y.axes[-1]]


def _addmm(given: list[Any], named: dict[str, Any], shape: Shape) -> Axes:
    product = Value(shape, _matmul(given[1:3], {}, shape))
    return _broadcast([product, given[0]], shape)


def _attention(given: list[Any], named: dict[str, Any], shape: Shape) -> Axes:
    q, k, v, *rest = given
    causal = rest[2] if len(rest) > 2 else named.get("is_causal", False)
    if any(len(x.shape) != len(shape) for x in (q, k, v)) or q.shape[:-2] != k.shape[:-2]:
        return unknown("attention with grouped heads", given, shape)
    scores = (*shape[:-1], k.shape[-2])
    found = _matmul([q, Value((), _transpose([k, -1, -2], {}, ()))], {}, scores)
    mask = rest[0] if rest and rest[0] is not None else named.get("attn_mask")
    found = _broadcast([Value(scores, found), *([mask] if isinstance(mask, Value) else [])], scores)
    if causal:
        for axis in found[-2:]:
            fix(axis, "a causal mask tells positions apart")
    return _matmul([Value(scores, found), v], {}, shape)


def _convolution(given: list[Any], named: dict[str, Any], shape: Shape) -> Axes:
    x, weight, *rest = given
    groups = rest[4] if len(rest) > 4 else named.get("groups", 1)
    if len(x.shape) != len(shape) or (groups != 1 and not groups == x.shape[1] == weight.shape[0]):
        return unknown("convolution in groups", given, shape)
    if groups == 1:
        contract(x.axes[1], weight.axes[1])
    else:
        join(x.axes[1], weight.axes[0])
    if rest and rest[0] is not None:
        join(weight.axes[0], rest[0].axes[0])
    for axis in [*x.axes[2:], *weight.axes[2:]]:
        fix(axis, "a convolution tells places apart")
    return [x.axes[0], weight.axes[0], *fresh(shape[2:], "a convolution tells places apart")]


def _pool(given: list[Any], named: dict[str, Any], shape: Shape) -> Axes:
    x = given[0]
    first = 2 if isinstance(given[1], int) or len(shape) > len(given[1]) + 1 else 1  # after batch and channel
    for axis in x.axes[first:]:
        fix(axis, "pooling tells places apart")
    return [*x.axes[:first], *fresh(shape[first:], "pooling tells places apart")]


def _embedding(given: list[Any], named: dict[str, Any], shape: Shape) -> Axes:
    weight, index = given[:2]
    fix(weight.axes[0], "rows of an embedding are looked up by number")
    return [*index.axes, weight.axes[1]]


def _layer_norm(given: list[Any], named: dict[str, Any], shape: Shape) -> Axes:
    x, over, *vectors = given
    taken = x.axes[len(shape) - len(over) :]
    for vector in vectors[:2]:
        if isinstance(vector, Value):
            for axis, other in zip(taken, vector.axes, strict=True):
                join(axis, other)
    for axis in taken:
        count(axis)
    return list(x.axes)


def _batch_norm(given: list[Any], named: dict[str, Any], shape: Shape) -> Axes:
    for vector in given[1:5]:
        if isinstance(vector, Value):
            join(given[0].axes[1], vector.axes[0])
    return list(given[0].axes)


def _softmax(given: list[Any], named: dict[str, Any], shape: Shape) -> Axes:
    count(given[0].axes[given[1]])
    return list(given[0].axes)


def _reduction(given: list[Any], named: dict[str, Any], shape: Shape) -> Axes:
    x = given[0]
    over = given[1] if len(given) > 1 else named.get("dim")
    over = [over] if isinstance(over, int) else over or range(len(x.shape))
    taken = {i % len(x.shape) for i in over} if x.shape else set()
    for i in taken:
        count(x.axes[i])
    if len(shape) == len(x.shape):  # keepdim
        return [[] if i in taken else axis for i, axis in enumerate(x.axes)]
    return [axis for i, axis in enumerate(x.axes) if i not in taken]


def _expand(given: list[Any], named: dict[str, Any], shape: Shape) -> Axes:
    x = given[0]
    new = fresh(shape)  # copies of one position may change places freely
    old = [[] for _ in range(len(shape) - len(x.axes))] + list(x.axes)
    return [o or n for o, n in zip(old, new, strict=True)]


def _select(given: list[Any], named: dict[str, Any], shape: Shape) -> Axes:
    axes = list(given[0].axes)
    fix(axes.pop(given[1] % len(axes)), "positions are picked by number")
    return axes


def _slice(given: list[Any], named: dict[str, Any], shape: Shape) -> Axes:
    x = given[0]
    at = (given[1] if len(given) > 1 else 0) % len(x.shape)
    size, kept = x.shape[at], shape[at]
    axes = list(x.axes)
    if kept == size:
        return axes
    start = (given[2] if len(given) > 2 else 0) or 0
    step = given[4] if len(given) > 4 else 1
    start += size if start < 0 else 0
    whole = step == 1 and kept > 0 and size % kept == 0 and start % kept == 0
    axes[at] = _part(axes[at], size // kept) if whole else _stay(axes[at], kept)
    return axes


def _split(given: list[Any], named: dict[str, Any], shapes: Any) -> list[Axes]:
    """Rule of chunk, split and tensor_split: one result per shape."""
    x = given[0]
    at = (given[2] if len(given) > 2 else named.get("dim", 0)) % len(x.shape)
    equal = len({shape[at] for shape in shapes}) == 1
    made = []
    for shape in shapes:
        axes = list(x.axes)
        axes[at] = _part(axes[at], len(shapes)) if equal else _stay(axes[at], shape[at])
        made.append(axes)
    return made


def _part(axis: Axis, pieces: int) -> Axis:
    """Return one of equal pieces of an axis; the pieces stay in order, what is inside them moves in all alike."""
    size = math.prod(f.size for f in axis)
    made = regroup([axis], (pieces, size // pieces))
    if made is None:
        return _stay(axis, size // pieces)
    fix(made[0], "pieces are taken by number")
    return made[1]


def _stay(axis: Axis, size: int) -> Axis:
    fix(axis, "positions are picked by number")
    return fresh((size,), "positions are picked by number")[0]


def _cat(given: list[Any], named: dict[str, Any], shape: Shape) -> Axes:
    values = given[0]
    at = (given[1] if len(given) > 1 else named.get("dim", 0)) % len(shape)
    others = []
    for value in values:
        fix(value.axes[at], "axes are set side by side")
        others.append(Value((), [a if i != at else [] for i, a in enumerate(value.axes)]))
    made = _broadcast(others, shape)
    made[at] = fresh((shape[at],), "axes are set side by side")[0]
    return made


_RULES: dict[str, Any] = {
    **dict.fromkeys(_ELEMENTWISE, _elementwise),
    **dict.fromkeys(_RESHAPES, _reshape),
    **dict.fromkeys(_POOLS, _pool),
    **dict.fromkeys(_REDUCTIONS, _reduction),
    **dict.fromkeys(VIEWS[:2], _transpose),
    **dict.fromkeys(VIEWS[2:4], _reverse),
    **dict.fromkeys(("conv1d", "conv2d", "conv3d"), _convolution),
    **dict.fromkeys(("matmul", "bmm", "mm"), _matmul),
    **dict.fromkeys(("softmax", "_softmax", "log_softmax", "_log_softmax"), _softmax),
    **dict.fromkeys(("expand", "expand_as"), _expand),
    **dict.fromkeys(("chunk", "split", "split_with_sizes", "tensor_split"), _split),
    "permute": _permute,
    "linear": _linear,
    "addmm": _addmm,
    "scaled_dot_product_attention": _attention,
    "embedding": _embedding,
    "layer_norm": _layer_norm,
    "rms_norm": _layer_norm,
    "batch_norm": _batch_norm,
    "select": _select,
    "slice": _slice,
    "cat": _cat,
}
