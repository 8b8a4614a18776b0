"""`fargatelite exec`."""

from __future__ import annotations

import click

from fargatelite.errors import ExecFailed
from fargatelite.runtime.guest import run_guest
from fargatelite.runtime.record import find_record
from fargatelite.settings import Settings


class _GuestCommand(click.Command):
    """Options before and behind TASK are ours; from CMD on nothing is."""

    allow_interspersed_args = False

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        options = click.Command(
            None, params=[item for item in self.get_params(ctx) if isinstance(item, click.Option)]
        ).make_parser(ctx)
        _, rest, _ = options.parse_args(list(args))
        if rest:
            _, words, _ = options.parse_args(rest[1:])
            before = args[: len(args) - len(rest)]
            between = rest[1 : len(rest) - len(words)]
            args = [word for word in (*before, *between) if word != "--"]
            args += ["--", rest[0], *words]
        return super().parse_args(ctx, args)


@click.command("exec", cls=_GuestCommand)
@click.option("-c", "--container", help="Container; may be left out when there is only one.")
@click.option("-i", "--interactive", is_flag=True, help="Pass standard input on.")
@click.option("-t", "--tty", is_flag=True, help="Give the command a terminal.")
@click.option(
    "-e", "--env", "environment", multiple=True, metavar="NAME=VALUE",
    help="Variable over the container's own.",
)  # fmt: skip
@click.option("--force", is_flag=True, help="Also into a task without enableExecuteCommand.")
@click.argument("task")
@click.argument("command_line", nargs=-1, required=True, type=click.UNPROCESSED, metavar="CMD...")
@click.pass_obj
def command(
    settings: Settings,
    container: str | None,
    interactive: bool,
    tty: bool,
    environment: tuple[str, ...],
    force: bool,
    task: str,
    command_line: tuple[str, ...],
) -> int:
    """Run a command in a running container, as its user and within its limits.

    Exits with the command's code; 126 when it cannot be run, 127 when it is not there.

    \b
    Example:
      fargatelite exec -it 3f2a -c web sh
    """
    import os

    if tty and "TERM" in os.environ:
        environment = (f"TERM={os.environ['TERM']}", *environment)
    for variable in environment:
        if "=" not in variable or variable.startswith("="):
            raise click.BadParameter(f"{variable!r} is not NAME=VALUE", param_hint="--env")
    try:
        return run_guest(
            settings,
            find_record(settings, task),
            container,
            command_line,
            interactive=interactive,
            terminal=tty,
            environment=environment,
            force=force,
        )
    except ExecFailed as error:
        if error.exit_code is None:
            raise
        click.echo(f"Error: {error}", err=True)
        return error.exit_code
