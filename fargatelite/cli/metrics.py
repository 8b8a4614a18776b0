"""`fargatelite metrics`."""

from __future__ import annotations

import sys

import click

from fargatelite.settings import Settings


def _parse_listen(
    context: click.Context, parameter: click.Parameter, text: str | None
) -> tuple[str, int] | None:
    if text is None:
        return None
    host, _, port = text.rpartition(":")
    if not host or not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise click.BadParameter(f"{text!r} is not of the form 127.0.0.1:9400")
    return host.strip("[]"), int(port)


@click.command("metrics")
@click.option(
    "--listen", callback=_parse_listen, metavar="ADDRESS:PORT", help="Serve them over HTTP."
)
@click.pass_obj
def command(settings: Settings, listen: tuple[str, int] | None) -> None:
    """Print the figures of live tasks for Prometheus, or serve them.

    \b
    Example:
      fargatelite metrics --listen localhost:9400
    """
    from fargatelite.runtime.metrics import expose, make_registry

    if listen is None:
        sys.stdout.write(expose(settings))
        return
    from prometheus_client import start_http_server

    server, thread = start_http_server(listen[1], listen[0], make_registry(settings))
    click.echo(f"http://{listen[0]}:{server.server_port}/metrics", err=True)
    thread.join()
