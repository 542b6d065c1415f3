"""Permutation groups of a PyTorch module, derived from its traced graph: no table per architecture."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

from weightsmith.align.axes import Factor, ParameterAxis, count, fix, fresh, leaves
from weightsmith.align.groups import Groups, Member
from weightsmith.align.operators import VIEWS, Value, find_rule, unknown
from weightsmith.errors import ArgumentError, ResourceError, shown

_IDENTITIES = ("_assert_tensor_metadata", "sym_size", "sym_numel")


def permutation_groups(module: Any, example_inputs: Sequence[Any]) -> Groups:
    """Derive which axes of a module's parameters may be permuted together without changing what it computes.

    The module is traced once by torch.export, in evaluation mode. Every axis of every parameter and intermediate value
    is a set of positions; each operator joins the axes that it pairs, cuts them where it reshapes (heads, flattened
    channels), and fixes those whose positions it tells apart. What remains free is a group. Axes of inputs and outputs,
    and all that an operator without a rule touches, stay fixed and are listed in `fixed` with the reason.

    Args:
        module: A torch.nn.Module.
        example_inputs: Positional arguments of its forward; only their shapes matter. A batch of 2 or more tells
            batch axes from broadcast ones.

    Returns:
        The groups, named after their first parameter; `write_groups` writes them to a file.

    Raises:
        ArgumentError: The module cannot be traced.
        ResourceError: torch is not installed.

    Cost: one trace; time and memory of one forward pass without arithmetic.
    """
    exported = _export(module, tuple(example_inputs))
    graph = exported.graph_module.graph
    graph.eliminate_dead_code()
    stored = {**exported.graph_signature.inputs_to_parameters, **exported.graph_signature.inputs_to_buffers}
    inputs = set(exported.graph_signature.user_inputs)
    shared: dict[int, list[str]] = {}
    for name, tensor in module.state_dict(keep_vars=True).items():
        shared.setdefault(id(tensor), []).append(name)
    names = {name: tuple(listed) for listed in shared.values() for name in listed}
    parameters: dict[tuple[str, ...], list[ParameterAxis]] = {}
    values: dict[Any, Any] = {}
    for node in graph.nodes:
        if node.op == "placeholder":
            shape = _shape(node.meta.get("val"))
            key = names.get(stored.get(node.name, ""))
            if key is None:
                why = "an input of the module" if node.name in inputs else "a tensor that is not stored"
                values[node] = None if shape is None else Value(shape, fresh(shape, why))
                continue
            axes = parameters.setdefault(key, [ParameterAxis(axis) for axis in fresh(shape or ())])
            values[node] = Value(shape or (), list(axes))
            for owned in axes:
                owned.users += len(node.users)
        elif node.op == "output":
            for axis in [axis for value in _flat(_given(node.args, values)) for axis in value.axes]:
                fix(axis, "an output of the module")
        else:
            values[node] = _apply(node, values)
    return _collect(parameters, dict.fromkeys(names.values()))


def _export(module: Any, inputs: tuple[Any, ...]) -> Any:
    try:
        import torch
    except ImportError as error:
        raise ResourceError(
            f"permutation_groups: torch is not installed ({error})",
            do="Install it with: pip install 'weightsmith[torch]'",
        ) from error
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        with torch.enable_grad():
            return torch.export.export(module, inputs)
    except Exception as error:  # whatever the module's own code raises
        raise ArgumentError(
            f"permutation_groups: torch.export cannot trace {type(module).__name__}: {shown(error)}",
            do="Pass inputs that its forward takes, or write the groups by hand",
        ) from error
    finally:
        for part, mode in modes:
            part.training = mode


def _shape(value: Any) -> tuple[int, ...] | None:
    return tuple(int(n) for n in value.shape) if hasattr(value, "shape") else None


def _given(arguments: Any, values: dict[Any, Any]) -> Any:
    """Return an operator's arguments with the values of nodes in place of the nodes."""
    if isinstance(arguments, list | tuple):
        return [_given(a, values) for a in arguments]
    if isinstance(arguments, dict):
        return {k: _given(a, values) for k, a in arguments.items()}
    return values.get(arguments) if hasattr(arguments, "op") and hasattr(arguments, "users") else arguments


def _flat(values: Any) -> Iterable[Value]:
    if isinstance(values, Value):
        yield values
    elif isinstance(values, list | tuple):
        for value in values:
            yield from _flat(value)
    elif isinstance(values, dict):
        yield from _flat(list(values.values()))


def _apply(node: Any, values: dict[Any, Any]) -> Any:
    """Return the value of one operator: one Value, or a list of them."""
    given, named = _given(list(node.args), values), _given(dict(node.kwargs), values)
    word = getattr(node.target, "__name__", str(node.target))
    if word == "getitem" and isinstance(given[0], list):
        return given[0][given[1]]
    operator = word.partition(".")[0]
    made = node.meta.get("val")
    shapes = [_shape(v) or () for v in made] if isinstance(made, list | tuple) else _shape(made)
    touched = [*given, *named.values()]
    if shapes is None:
        if operator not in _IDENTITIES:
            unknown(operator, touched, ())
        return None
    try:
        return _ruled(operator, given, named, shapes)
    except (AttributeError, IndexError, TypeError, ValueError):  # arguments in a form that the rule does not know
        if isinstance(shapes, list):
            return [Value(s, unknown(operator, touched, s)) for s in shapes]
        return Value(shapes, unknown(operator, touched, shapes))


def _ruled(operator: str, given: list[Any], named: dict[str, Any], shapes: Any) -> Any:
    """Return what the operator's rule makes; ValueError where there is no rule, or its result does not fit."""
    rule = find_rule(operator)
    if rule is None:
        raise ValueError(operator)
    several = isinstance(shapes, list)
    found: Any = rule(given, named, shapes)
    pairs = zip(*((shapes, found) if several else ([shapes], [found])), strict=True)
    made = [Value(s, axes if operator in VIEWS else [list(axis) for axis in axes]) for s, axes in pairs]
    if any(tuple(math.prod(f.size for f in axis) for axis in v.axes) != v.shape for v in made):
        raise ValueError(operator)
    return made if several else made[0]


def _collect(parameters: dict[tuple[str, ...], list[ParameterAxis]], order: Iterable[tuple[str, ...]]) -> Groups:
    """Return the groups that are left free; of the parts of one axis that could move, the outermost does."""
    held: dict[Factor, list[tuple[tuple[str, ...], int, Member]]] = {}
    for key in order:
        for at, axis in enumerate(parameters.get(key, ())):
            if 0 < axis.reads < axis.users:  # a shared parameter that both makes these units and sums over them
                count(axis)
            now = leaves(axis)
            for factor in now:
                if now.count(factor) > 1:
                    fix([factor], "it lies more than once on one axis")
            for factor, member in zip(now, _members(key, at, axis, now), strict=True):
                held.setdefault(factor, []).append((key, at, member))
    taken: set[tuple[tuple[str, ...], int]] = set()
    members: dict[str, tuple[Member, ...]] = {}
    counted = []
    for factor, found in held.items():
        axes = {(key, at) for key, at, _ in found}
        if factor.why or taken & axes:
            factor.why = factor.why or "it moves as part of larger units"
            continue
        taken |= axes
        name = _name(found[0][0][0], found[0][1], members)
        members[name] = tuple(member for _, _, member in found)
        counted += [name] if factor.counted else []
    fixed = {}
    for key in order:
        for at, axis in enumerate(parameters.get(key, ())):
            if (key, at) not in taken and axis:
                fixed[f"{key[0]} axis {at}"] = leaves(axis)[0].why
        if key not in parameters:
            fixed[key[0]] = "not used"
    return Groups(members, tuple(counted), fixed)


def _members(key: tuple[str, ...], at: int, axis: ParameterAxis, parts: Sequence[Factor]) -> Iterable[Member]:
    """Yield an axis as a member of the group of each of its parts."""
    side = "reads" if axis.reads else "writes"
    side = "" if (side == "reads") == (at > 0) else side
    for i in range(len(parts)):
        repeat, block = (math.prod(f.size for f in some) for some in (parts[:i], parts[i + 1 :]))
        yield Member(key[0] if len(key) == 1 else key, at, block, repeat, side)


def _name(tensor: str, axis: int, taken: Iterable[str]) -> str:
    name = tensor.rpartition(".")[0] or tensor
    while name in taken:
        name += f".axis{axis}"
    return name
