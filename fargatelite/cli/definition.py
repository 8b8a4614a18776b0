"""`fargatelite definition`: validate, explain, and the registered families."""

from __future__ import annotations

import sys
from typing import Any

import click

from fargatelite.cli.main import OWN_FAILURE, format_error
from fargatelite.cli.run import launch_options, read_source
from fargatelite.cli.tables import make_printable, print_json, print_table
from fargatelite.errors import InvalidTaskDefinition
from fargatelite.settings import Settings
from fargatelite.taskdef.launch_type import LaunchType, policy_for
from fargatelite.taskdef.load import load_definition, to_wire
from fargatelite.taskdef.store import DefinitionStore, find_source


@click.group("definition")
def command() -> None:
    """Validate, explain and register task definitions.

    \b
    Example:
      fargatelite definition validate examples/hello.json
    """


@command.command("validate")
@click.argument("definitions", nargs=-1, required=True, metavar="DEFINITION...")
@launch_options
@click.option("--output", type=click.Choice(["table", "json"]), default="table")
@click.pass_obj
def validate(
    settings: Settings,
    definitions: tuple[str, ...],
    launch_type: LaunchType,
    allow_privileged: bool,
    output: str,
) -> int:
    """Check definitions (JSON files, or -) against Fargate's rules; all problems at once.

    \b
    Example:
      fargatelite definition validate examples/hello.json
    """
    policy = policy_for(launch_type, settings, allow_privileged=allow_privileged)
    valid: list[dict[str, Any]] = []
    failures: list[dict[str, Any]] = []
    for text in definitions:
        try:
            loaded = load_definition(find_source(settings, read_source(text)), policy)
        except InvalidTaskDefinition as error:
            failures.append(
                {
                    "definition": text,
                    "reason": str(error),
                    "clientException": error.client_exception()["Error"]["Message"],
                    "problems": error.problems,
                }
            )
            if output == "table":
                click.echo(f"{text}: {make_printable(format_error(error))}", err=True)
            continue
        valid.append(to_wire(loaded))
        if output == "table":
            size = f"{loaded.cpu_units / 1024:g} vCPU, {loaded.memory_mib} MiB"
            sys.stdout.write(
                f"{text}: valid: {loaded.family}, {len(loaded.containers)} container(s), "
                f"{size if loaded.memory_mib else 'no size of its own'}\n"
            )
    if output == "json":
        print_json({"taskDefinitions": valid, "failures": failures})
    return OWN_FAILURE if failures else 0


@command.command("explain")
@click.argument("field")
@click.option("--output", type=click.Choice(["table", "json"]), default="table")
def explain_field(field: str, output: str) -> None:
    """Say what a field takes, what Fargate does with it, and where it takes effect here.

    FIELD is a path, or the end of one while that is unique.

    \b
    Example:
      fargatelite definition explain healthCheck.interval
    """
    from fargatelite.taskdef.explain import explain

    found = explain(field)
    if output == "json":
        print_json(found)
        return
    default = "none" if found.default in (None, [], (), {}, "") else str(found.default)
    if isinstance(found.default, bool):
        default = str(found.default).lower()
    lines = [
        ("field", found.path),
        ("type", found.type + (", required" if found.required else "")),
        ("default", None if found.required else default),
        ("values", ", ".join(found.values)),
        ("Fargate", found.fargate),
        ("takes effect", found.function and f"{found.function} (contract {found.contract})"),
        ("recorded", found.reason),
        ("refused", found.message),
        ("here", "not supported yet" if found.marker == "notYet" else None),
        ("with EC2", found.ec2),
    ]
    for name, text in lines:
        if text:
            sys.stdout.write(f"{name + ':':14}{text}\n")


@command.command("register")
@click.argument("definition")
def register(definition: str) -> None:
    """Register a definition (a JSON file, or -) as the next revision of its family.

    Prints what RegisterTaskDefinition answers.

    \b
    Example:
      fargatelite definition register examples/hello.json
    """
    settings = click.get_current_context().obj
    print_json(DefinitionStore(settings).register(read_source(definition)))


@command.command("list")
@click.option("--family-prefix", metavar="FAMILY", help="Only this family (its whole name).")
@click.option(
    "--status",
    type=click.Choice(["ACTIVE", "INACTIVE"]),
    default="ACTIVE",
    show_default=True,
    help="Registered, or deregistered.",
)
@click.option("--output", type=click.Choice(["table", "json"]), default="table")
@click.pass_obj
def list_definitions(
    settings: Settings, family_prefix: str | None, status: str, output: str
) -> None:
    """List registered definitions by family and revision.

    \b
    Example:
      fargatelite definition list
    """
    arns = DefinitionStore(settings).list_arns(family_prefix, status)
    if output == "json":
        print_json({"taskDefinitionArns": arns})
        return
    rows = []
    for arn in arns:
        family, _, revision = arn.rpartition("/")[2].partition(":")
        rows.append((family, revision, arn))
    print_table(("FAMILY", "REVISION", "ARN"), rows, right=("REVISION",))


@command.command("describe")
@click.argument("family")
@click.pass_obj
def describe(settings: Settings, family: str) -> None:
    """Show a registered definition: FAMILY (its latest active one), FAMILY:REVISION or an ARN.

    \b
    Example:
      fargatelite definition describe hello:1
    """
    print_json(DefinitionStore(settings).describe(family))


@command.command("deregister")
@click.argument("family_revision", metavar="FAMILY:REVISION")
@click.pass_obj
def deregister(settings: Settings, family_revision: str) -> None:
    """Deregister a revision: no new task starts from it; running tasks go on.

    \b
    Example:
      fargatelite definition deregister hello:1
    """
    print_json(DefinitionStore(settings).deregister(family_revision))
