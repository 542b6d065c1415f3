"""Options that several verbs share, and options derived from a method's parameters."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import click

from weightsmith.arguments import Choice, Parameter
from weightsmith.encoding import Encoding
from weightsmith.errors import ArgumentError, nearest, shown
from weightsmith.method import Method
from weightsmith.plan import DEFAULT_MEMORY, Options
from weightsmith.recipe import DTYPES, parse_size
from weightsmith.recipe.origin import option_of

Function = TypeVar("Function", bound=Callable[..., Any])
INPUTS = (
    click.Option(["--base"], metavar="MODEL", help="The model that the others were trained from."),
    click.Option(
        ["--model", "models"],
        metavar="MODEL",
        multiple=True,
        help="A model to merge: file, folder, MODEL+ADAPTER, or hub id org/name[@revision]. Repeat, in order.",
    ),
    click.Option(["--copy"], metavar="GLOB", multiple=True, help="Take these tensors from the first input unmerged."),
    click.Option(
        ["--drop"],
        metavar="GLOB",
        multiple=True,
        help="Leave out these tensors, which the first input lacks.",
    ),
    click.Option(
        ["--mask"], metavar="MASK", help="Merge inside this mask alone; elsewhere the first input's bytes stay."
    ),
    click.Option(["--dtype"], type=click.Choice(list(DTYPES)), help="Output dtype. Default: as in the first input."),
    click.Option(
        ["--tokenizer"],
        metavar="base|union|MODEL",
        help="The output's vocabulary, where the models' differ: rows of embeddings are merged by token.",
    ),
    click.Option(["--shard-size"], default="5GB", show_default=True, metavar="SIZE", help="Bytes per output file."),
)
MACHINE = (
    click.Option(
        ["--memory"],
        default=f"{DEFAULT_MEMORY // 10**9}GB",
        show_default=True,
        metavar="SIZE",
        help="Budget.",
    ),
    click.Option(["--threads"], type=click.IntRange(1), metavar="N", help="Default: all processors."),
    click.Option(["--device"], default="cpu", show_default=True, metavar="NAME", help="cpu, cuda or cuda:N."),
    click.Option(["--follow-symlinks"], is_flag=True, help="Let links lead out of a model's folder."),
    click.Option(["--allow-nonfinite"], is_flag=True, help="Let NaN and infinity pass."),
    click.Option(["--force-base"], is_flag=True, help="Accept a base that the models do not seem to come from."),
)
WRITING = (
    click.Option(["--force"], is_flag=True, help="Replace an older output, once the new one is complete."),
    click.Option(["--code"], is_flag=True, help="Carry custom code files over as well."),
    click.Option(["--digest-inputs"], is_flag=True, help="Record the SHA-256 of every input file."),
    click.Option(["--dry-run"], is_flag=True, help="Only say what would be done, from headers alone."),
)
PEER_EXACT = click.Option(
    ["--peer-exact"],
    is_flag=True,
    help="With mergekit's recipes: reproduce its harmless defects, which `weightsmith convert-recipe --help` lists.",
)
SHOWING = (
    click.Option(["--json", "as_json"], is_flag=True, help="Print one JSON document."),
    click.Option(["--quiet"], is_flag=True, help="Show no progress."),
)


def followed_by(*options: click.Option) -> Callable[[Function], Function]:
    """Return a decorator that lists options after the verb's own ones, which are decorated above it."""

    def decorate(function: Function) -> Function:
        function.__click_params__ = [*reversed(options)]  # type: ignore[attr-defined]  # click's place for them
        return function

    return decorate


def offered(*names: str) -> list[click.Option]:
    """Return those of MACHINE and WRITING that have these names."""
    return [o for o in (*MACHINE, *WRITING) if o.name in names]


def machine_options(given: dict[str, Any]) -> Options:
    """Take the machine's options out of `given`."""
    return Options(
        memory_bytes=parse_size(given.pop("memory"), "--memory"),
        threads=given.pop("threads"),
        device=given.pop("device", "cpu"),
        follow_symlinks=given.pop("follow_symlinks", False),
        allow_nonfinite=given.pop("allow_nonfinite", False),
        force_base=given.pop("force_base", False),
    )


def method_options(method: Method | Encoding) -> list[click.Option]:
    """Return one option per parameter of the method or encoding, with its kind, default and help."""
    return [_option(p) for p in method.parameters.values()]


def _option(parameter: Parameter) -> click.Option:
    kind = parameter.kind
    text = parameter.help.rstrip(".") + f". {kind.describe().capitalize()}."
    if parameter.default is not None:
        text += f"  [default: {parameter.default}]"
    metavar = "|".join(kind.values) if isinstance(kind, Choice) else type(kind).__name__.upper()
    return click.Option([option_of(parameter.name), parameter.name], metavar=metavar, help=text)


def parse_parameters(method: Method | Encoding, given: dict[str, Any]) -> dict[str, Any]:
    """Take the method's parameters that were given out of `given`, parsed by their kinds."""
    taken = {n: given.pop(n) for n in method.parameters}
    return {n: method.parameters[n].kind.parse(v) for n, v in taken.items() if v is not None}


def option_parameters(encoding: Encoding, settings: Sequence[str], caller: str) -> dict[str, Any]:
    """Return parameters spelled NAME=VALUE, parsed by their kinds; ArgumentError for an unknown name."""
    found = {}
    for text in settings:
        spelled, _, value = text.partition("=")
        names = {option_of(n)[2:]: n for n in encoding.parameters}
        if spelled.replace("_", "-") not in names:
            raise ArgumentError(f"{caller}: --set '{shown(text)}'", expected="NAME=VALUE", do=nearest(spelled, names))
        name = names[spelled.replace("_", "-")]
        found[name] = encoding.parameters[name].kind.parse(value)
    return found
