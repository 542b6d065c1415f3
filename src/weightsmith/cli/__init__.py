"""The command line: one file per verb, imported when the verb is used."""

from __future__ import annotations

import contextlib
import importlib
import json
import signal
import sys
import traceback
from collections.abc import Sequence
from typing import Any

import click

from weightsmith.errors import ResourceError, WeightsmithError, nearest, shown

VERBS = {
    "merge": "Merge models into one.",
    "plan": "Say what a merge would do, from headers alone.",
    "convert-recipe": "Turn a recipe of mergekit's into one of ours.",
    "methods": "List the merge methods, or explain one.",
    "inspect": "Show a model's tensors by layer and kind, and what drifted from its base.",
    "compare": "Compare two models tensor by tensor.",
    "align": "Permute a model's hidden units to match a reference's; what it computes stays the same.",
    "shrink": "Merge a model's hidden units that are nearly alike into a narrower one.",
    "merge-experts": "Merge the experts inside a mixture-of-experts model in groups.",
    "extract-lora": "Write what a finetuned model changed as a LoRA adapter that PEFT loads.",
    "merge-adapters": "Merge LoRA adapters of one base into one, exactly on their products.",
    "localize": "Say where tasks lie in the weights, and how they clash.",
    "restore": "Put the weights of one model into another inside a mask.",
    "lineage": "Say whether one model was trained from another.",
    "pack": "Pack many finetuned models of one base into one bundle.",
    "unpack": "Write tasks of a bundle as checkpoint folders.",
    "add": "Add tasks to a bundle.",
    "remove": "Remove a task from a bundle.",
    "ls": "List the tasks of a bundle, and what it stores.",
    "verify": "Check a merged model, or a bundle, against its record and its inputs.",
    "demo": "Train, merge and evaluate small models on handwritten digits.",
}

EPILOG = """\b
Example:
  weightsmith merge ties --base BASE --model A --model B --density 0.2 --out MERGED

\b
Exit codes:
  0    done
  1    a check failed or a difference was found (verify, compare)
  2    wrong use: a bad option, recipe or parameter
  3    bad input: a damaged or hostile file, inputs that do not fit, NaN or infinity
  4    the machine: disk, memory, permission, network, a missing extra
  5    a fault of weightsmith itself
  130  interrupted; nothing half-written is left (143 when terminated)

Every verb has a Python twin: weightsmith.merge, .make_plan, .convert_recipe, .inspect, .compare, .align, .shrink,
.extract_lora, .merge_adapters, .merge_experts, .localize, .restore, .lineage, .pack, .unpack, .add, .remove, .Bundle,
.verify, .demo.
"""


class _Verbs(click.Group):
    """Verbs listed without importing them."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the verbs in the order they are shown."""
        return list(VERBS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        """Import the verb's file and return its command."""
        if name not in VERBS:
            return None
        module = "weightsmith.demo.verb" if name == "demo" else f"weightsmith.cli.{name.replace('-', '_')}"
        command: click.Command = importlib.import_module(module).command
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Name the nearest verb where there is none of that name."""
        if args[0] not in VERBS and not args[0].startswith("-"):
            raise click.UsageError(f"no verb '{shown(args[0])}'; {nearest(args[0], VERBS)}", ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the verbs with one line each."""
        with formatter.section("Verbs"):
            formatter.write_dl(list(VERBS.items()))


@click.group(
    cls=_Verbs,
    epilog=EPILOG,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)
@click.version_option(package_name="weightsmith")
def group() -> None:
    """Edit what a trained model knows, directly in its weights."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; return its exit code. Results go to standard output, all else to standard error."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    try:
        with _Terminated():
            code = group.main(arguments, prog_name="weightsmith", standalone_mode=False)
        return code if isinstance(code, int) else 0
    except click.UsageError as error:
        where = f"Try '{error.ctx.command_path} --help'." if error.ctx else "Try 'weightsmith --help'."
        return _fail("usage", f"{error.format_message()}\n{where}", 2, arguments)
    except WeightsmithError as error:
        return _fail(type(error).__name__, str(error), error.exit_code, arguments)
    except MemoryError:
        return _fail("MemoryError", "out of memory; nothing was published. Pass a smaller --memory.", 4, arguments)
    except OSError as error:
        return _fail(ResourceError.__name__, f"{error.filename or ''}: {error.strerror or error}", 4, arguments)
    except (click.exceptions.Abort, KeyboardInterrupt):
        return _fail("interrupted", "interrupted; nothing half-written is left", 130, arguments)
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else 1
    except Exception as error:
        traceback.print_exc()  # what a report of the fault needs
        text = (
            f"{type(error).__name__}: {error}. This is a fault of weightsmith: please report it with the lines above."
        )
        return _fail("fault", text, 5, arguments)


def _fail(kind: str, text: str, code: int, arguments: Sequence[str]) -> int:
    text = "".join(c if c.isprintable() or c == "\n" else shown(c) for c in text)
    if "--json" in arguments:
        click.echo(json.dumps({"error": kind, "message": text, "exit_code": code}, ensure_ascii=False))
    click.echo(f"weightsmith: {text}", err=True)
    return code


class _Terminated:
    """Turns SIGTERM into an exit through every clean-up, with code 143."""

    def __enter__(self) -> None:
        self._old: Any = None
        with contextlib.suppress(ValueError):  # not the main thread: whoever embeds us handles signals
            self._old = signal.signal(signal.SIGTERM, self._stop)

    def __exit__(self, *_: object) -> None:
        if self._old is not None:
            signal.signal(signal.SIGTERM, self._old)

    @staticmethod
    def _stop(*_: object) -> None:
        click.echo("weightsmith: terminated; nothing half-written is left", err=True)
        raise SystemExit(143)
