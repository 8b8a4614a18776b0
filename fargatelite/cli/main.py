"""The command line: `fargatelite COMMAND`. Each command is a module of this package, loaded only
when it is asked for, so that `ps` does not pay for what `run` needs.

Exit codes are part of the interface (docs/cli.md): 0; a container's own code from `run` and `wait`;
2 for wrong usage; 125 when fargatelite itself failed; 126 and 127 for a program that cannot be run
or is not there; 130 and 143 after Ctrl-C and SIGTERM.
"""

from __future__ import annotations

import importlib
import logging
import os
import signal
import sys
import traceback
from typing import TYPE_CHECKING, Any, NoReturn

import click

from fargatelite.cli.tables import make_printable
from fargatelite.errors import FargateliteError, InvalidTaskDefinition

if TYPE_CHECKING:
    from fargatelite.settings import Settings

OWN_FAILURE = 125

# Command -> module and help line, so that `--help` imports none of them.
COMMANDS = {
    "run": ("run", "Run a task definition and wait for it."),
    "ps": ("ps", "List tasks."),
    "describe": ("describe", "Show tasks as DescribeTasks does."),
    "logs": ("logs", "Show what a task's containers wrote."),
    "events": ("events", "Show what happened to tasks."),
    "stop": ("stop", "Stop a task."),
    "exec": ("execute", "Run a command in a running container."),
    "cp": ("cp", "Copy files into or out of a container."),
    "wait": ("wait", "Wait for a task to stop; exit with its code."),
    "stats": ("stats", "Show CPU and memory of running tasks."),
    "bill": ("bill", "Show what tasks cost and what they used."),
    "estimate": ("estimate", "Show what a task will cost before it runs."),
    "report": ("report", "Make a page of a task: use, events, launch, bill."),
    "metrics": ("metrics", "Give figures of tasks to Prometheus."),
    "check": ("check", "Show what this host offers and lacks."),
    "gc": ("gc", "Remove what crashed tasks left, records and unused images."),
    "image": ("image", "Pull, load, list and remove images."),
    "definition": ("definition", "Validate, explain and register task definitions."),
}

_LOOK_AT_TASKS = frozenset("ps describe logs events stop exec cp wait stats".split())


class LazyGroup(click.Group):
    """Lists commands from a table and imports the one that is run."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(f"fargatelite.cli.{COMMANDS[cmd_name][0]}")
        command: click.Command = module.command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--data-root", metavar="DIR", help="Images, ledgers and records of stopped tasks.")
@click.option("--run-root", metavar="DIR", help="State of live tasks.")
@click.option("--debug", is_flag=True, help="Log to stderr; show a traceback on own failures.")
@click.version_option(package_name="fargatelite")
@click.pass_context
def cli(ctx: click.Context, data_root: str | None, run_root: str | None, debug: bool) -> None:
    """Run Amazon ECS task definitions on this host as Fargate would.

    \b
    Example:
      fargatelite run examples/hello.json
    """
    from fargatelite.settings import load_settings

    logging.basicConfig(
        level=logging.DEBUG if debug else logging.ERROR,
        format="%(levelname)s %(name)s: %(message)s",
        stream=sys.stderr,
    )
    # At DEBUG botocore logs bodies: secrets, tokens.
    logging.getLogger("botocore").setLevel(logging.INFO)
    settings = ctx.obj = load_settings(data_root=data_root, run_root=run_root)
    if ctx.invoked_subcommand in _LOOK_AT_TASKS and settings.runs.is_dir():
        _adopt_lost(settings)


def _adopt_lost(settings: Settings) -> None:
    """Whoever looks at tasks sees to it that somebody supervises them."""
    from fargatelite.runtime.remote import is_one_lost

    if not is_one_lost(settings):
        return
    from fargatelite.runtime.detached import ensure_supervised

    try:
        ensure_supervised(settings)
    except FargateliteError as error:
        # The command itself may have another task in mind.
        click.echo(f"Warning: a task without a supervisor: {make_printable(str(error))}", err=True)


def format_error(error: FargateliteError) -> str:
    """An error for a person: all problems of a definition, one a line with its place."""
    if not isinstance(error, InvalidTaskDefinition) or not error.problems:
        return str(error)
    lines = [f"{len(error.problems)} problem(s) in the task definition:"]
    for problem in error.problems:
        place = f" (line {problem.line})" if getattr(problem, "line", None) else ""  # type: ignore[attr-defined]
        path = getattr(problem, "path", "")
        lines.append(f"  {path or 'document'}{place}: {getattr(problem, 'message', problem)}")
        details = [
            f"{word} {value}"
            for word, value in (
                ("found", getattr(problem, "found", None)),
                ("allowed:", getattr(problem, "allowed", None)),
            )
            if value not in (None, "")
        ]
        if details:
            lines.append(f"      {'; '.join(details)}")
    return "\n".join(lines)


def _fail(text: str, *, with_traceback: bool) -> NoReturn:
    if with_traceback:
        traceback.print_exc()
    click.echo(f"Error: {make_printable(text)}", err=True)
    sys.exit(OWN_FAILURE)


def main(arguments: list[str] | None = None) -> NoReturn:
    """The program's entry point; never returns."""
    debug = "--debug" in (sys.argv if arguments is None else arguments)
    try:
        result: Any = cli.main(args=arguments, prog_name="fargatelite", standalone_mode=False)
        sys.exit(result if isinstance(result, int) else 0)
    except click.exceptions.Abort:
        sys.exit(128 + signal.SIGINT)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except BrokenPipeError:
        # `fargatelite logs | head`: the reader has seen enough.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except FargateliteError as error:
        _fail(format_error(error), with_traceback=debug)
    except PermissionError as error:
        _fail(f"{error}; fargatelite needs root, see `fargatelite check`", with_traceback=debug)
    except OSError as error:  # a full disk, a wait that timed out
        _fail(str(error), with_traceback=debug)
    except Exception as error:  # noqa: BLE001
        # The interpreter's own exit code would be 1, which from `run` means the container's.
        _fail(f"unexpected {type(error).__name__}: {error}; this is a bug", with_traceback=True)


if __name__ == "__main__":
    main()
