"""`fargatelite definition`: validate."""

from __future__ import annotations

import sys
from typing import Any

import click

from fargatelite.cli.main import OWN_FAILURE, format_error
from fargatelite.cli.run import read_source
from fargatelite.cli.tables import make_printable, print_json
from fargatelite.errors import InvalidTaskDefinition
from fargatelite.taskdef.load import load_definition, to_wire


@click.group("definition")
def command() -> None:
    """Validate task definitions.

    \b
    Example:
      fargatelite definition validate examples/hello.json
    """


@command.command("validate")
@click.argument("definitions", nargs=-1, required=True, metavar="DEFINITION...")
@click.option("--output", type=click.Choice(["table", "json"]), default="table")
def validate(definitions: tuple[str, ...], output: str) -> int:
    """Check definitions (JSON files, or -) against Fargate's rules; all problems at once.

    \b
    Example:
      fargatelite definition validate examples/hello.json
    """
    valid: list[dict[str, Any]] = []
    failures: list[dict[str, Any]] = []
    for text in definitions:
        try:
            loaded = load_definition(read_source(text))
        except InvalidTaskDefinition as error:
            failures.append({"definition": text, "reason": str(error), "problems": error.problems})
            if output == "table":
                click.echo(f"{text}: {make_printable(format_error(error))}", err=True)
            continue
        valid.append(to_wire(loaded))
        if output == "table":
            sys.stdout.write(
                f"{text}: valid: {loaded.family}, {len(loaded.containers)} container(s), "
                f"{loaded.cpu_units / 1024:g} vCPU, {loaded.memory_mib} MiB\n"
            )
    if output == "json":
        print_json({"taskDefinitions": valid, "failures": failures})
    return OWN_FAILURE if failures else 0
