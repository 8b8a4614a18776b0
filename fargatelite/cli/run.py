"""`fargatelite run`: from a definition to an exit code and a bill."""

from __future__ import annotations

import contextlib
import json
import queue
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from fargatelite.cli.main import OWN_FAILURE
from fargatelite.cli.screen import STATS_PERIOD_S, Screen
from fargatelite.cli.tables import make_printable
from fargatelite.host import forbid_core_dumps
from fargatelite.runtime.events import Event
from fargatelite.runtime.handle import RecordedTask, Task, TaskHandle
from fargatelite.runtime.logs import LogLine
from fargatelite.runtime.request import PullPolicy, TaskRequest, prepare_request, start_task
from fargatelite.runtime.trace import Timeline
from fargatelite.runtime.upkeep import collect_if_due
from fargatelite.sandbox.seccomp_profile import SeccompProfile, read_profile
from fargatelite.settings import MAX_WAIT_S, Settings
from fargatelite.taskdef.launch_type import LaunchType, policy_for
from fargatelite.taskdef.store import parse_identifier

WAITING_LINES = 4096


def read_source(text: str) -> Any:
    """A definition argument: `-` is standard input, then a path that exists; else the name of a
    registered definition, which `find_source` looks up."""
    if text == "-":
        return sys.stdin.buffer.read()  # bytes: a str could be taken for a path
    path = Path(text)
    if path.exists():
        return path
    if parse_identifier(text) is None:
        raise click.UsageError(f"no such file: {text}")
    return text


def launch_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Options of whatever checks a definition."""
    for option in (
        click.option(
            "--allow-privileged", is_flag=True, help="With EC2: accept privileged containers."
        ),
        click.option(
            "--launch-type",
            type=click.Choice(["FARGATE", "EC2"]),
            default="FARGATE",
            show_default=True,
            help="Whose rules hold.",
        ),
    ):
        function = option(function)
    return function


def _parse_tags(pairs: tuple[str, ...]) -> dict[str, str]:
    tags = {}
    for pair in pairs:
        key, separator, value = pair.partition("=")
        if not separator or not key:
            raise click.BadParameter(f"{pair!r} is not KEY=VALUE", param_hint="--tag")
        tags[key] = value
    return tags


def _parse_overrides(text: str | None) -> dict[str, Any] | None:
    if text is None:
        return None
    try:
        content = Path(text[1:]).read_text() if text.startswith("@") else text
    except OSError as error:
        raise click.BadParameter(
            f"cannot read {text[1:]}: {error.strerror}", param_hint="--overrides"
        ) from error
    try:
        value = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise click.BadParameter(f"not JSON: {error}", param_hint="--overrides") from error
    if not isinstance(value, dict):
        raise click.BadParameter("must be a JSON object", param_hint="--overrides")
    return value


def _network_configuration(security_groups: tuple[str, ...]) -> dict[str, Any] | None:
    if not security_groups:
        return None
    return {"awsvpcConfiguration": {"securityGroups": list(security_groups)}}


def _read_seccomp(path: str | None) -> SeccompProfile | None:
    if path is None:
        return None
    profile = read_profile(path)
    if profile.ignored:  # as podman does, which does not say so: one may be misspelt
        keys = make_printable(", ".join(profile.ignored[:5]))
        click.echo(f"Warning: {make_printable(path)}: unknown keys are ignored: {keys}", err=True)
    return profile


class _Interrupts:
    """Ctrl-C, SIGTERM and SIGHUP stop the task; a second one does nothing more: the task has its
    `stopTimeout`, after which it is killed."""

    def __init__(self) -> None:
        self.number: int | None = None
        self.task: Task | None = None
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> _Interrupts:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            self._previous[number] = signal.signal(number, self._handle)
        return self

    def _handle(self, number: int, frame: object) -> None:
        # Only the first: a handler that interrupts itself inside `stop` waits for its own lock.
        if self.number is None:
            self.number = number
            self.stop_if_asked()

    def stop_if_asked(self) -> None:
        """Passes a signal that came before there was a task on to it."""
        if self.number is not None and self.task is not None:
            name = signal.Signals(self.number).name
            self.task.stop(f"stopped by {name}", wait=False)

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)


def _pump_logs(
    task: Task, items: queue.SimpleQueue[Event | LogLine | None], room: threading.Semaphore
) -> None:
    for line in task.logs(follow=True):
        room.acquire()
        items.put(line)
    items.put(None)


def _exit_code(task: TaskHandle, interrupted: int | None) -> int:
    if interrupted is not None:
        return 128 + interrupted
    if task.stop_code == "TaskFailedToStart":
        failed = [c.exit_code for c in task.containers.values() if c.exit_code in (126, 127)]
        return failed[0] if failed else OWN_FAILURE
    return task.exit_code if task.exit_code is not None else OWN_FAILURE


def _leave(task: RecordedTask, wait_for: str, output: str) -> int:
    """Prints a detached task once it has come far enough; its failure to start is ours."""
    task.until(wait_for)
    if output == "json":
        from fargatelite.cli.tables import print_json

        print_json({"tasks": [task.describe()], "failures": []})
    else:
        click.echo(task.id)
    if task.stop_code != "TaskFailedToStart":
        return 0
    click.echo(f"Error: {make_printable(task.stopped_reason or '')}", err=True)
    return _exit_code(task, None)


@click.command("run")
@click.argument("definition")
@click.option("--overrides", metavar="JSON", help="RunTask overrides; @FILE reads a file.")
@click.option(
    "--pull",
    type=click.Choice(["always", "missing", "never"]),
    default="always",
    show_default=True,
    help="When to ask the registry.",
)
@click.option("-p", "--publish", multiple=True, metavar="HOST:CONTAINER", help="Port on loopback.")
@click.option("--tag", "tags", multiple=True, metavar="KEY=VALUE", help="Tag of the task.")
@click.option("--started-by", metavar="TEXT", help="RunTask's startedBy.")
@click.option("--enable-execute-command", is_flag=True, help="Allow `fargatelite exec`.")
@click.option("--group", metavar="NAME", help="Task group; family:<family> by default.")
@launch_options
@click.option("--address", metavar="IPV4", help="The task's own address, if the host grants it.")
@click.option(
    "--security-group",
    "security_groups",
    multiple=True,
    metavar="NAME",
    help="Security group of the task, by name or id.",
)
@click.option("--strict-isolation", is_flag=True, help="Refuse where a defence is weaker.")
@click.option(
    "--wait-for-capacity",
    type=click.IntRange(0, MAX_WAIT_S),
    metavar="SECONDS",
    help="Where the host is full, wait so long for room.",
)
@click.option(
    "--seccomp", metavar="FILE", help="Filter of system calls in Docker's format, not the built-in."
)
@click.option("-d", "--detach", is_flag=True, help="Print the id and leave; the task lives on.")
@click.option(
    "--wait-for",
    type=click.Choice(["PENDING", "RUNNING"]),
    default="PENDING",
    show_default=True,
    help="With --detach: leave when the task has come so far.",
)
@click.option("--trace", is_flag=True, help="Print each step and operation with its microseconds.")
@click.option("--dry-run", is_flag=True, help="Print the plan of each container; run nothing.")
@click.option("--output", type=click.Choice(["table", "json"]), default="table")
@click.pass_obj
def command(
    settings: Settings,
    definition: str,
    overrides: str | None,
    pull: PullPolicy,
    publish: tuple[str, ...],
    tags: tuple[str, ...],
    started_by: str | None,
    enable_execute_command: bool,
    group: str | None,
    launch_type: LaunchType,
    allow_privileged: bool,
    address: str | None,
    security_groups: tuple[str, ...],
    strict_isolation: bool,
    wait_for_capacity: int | None,
    seccomp: str | None,
    detach: bool,
    wait_for: str,
    trace: bool,
    dry_run: bool,
    output: str,
) -> int:
    """Run a task definition and wait for it: a JSON file, - for standard input, or a registered
    FAMILY, FAMILY:REVISION or ARN. A file wins over a family of the same name.

    Exits with the code of the essential container that stopped first.

    \b
    Example:
      fargatelite run examples/hello.json
    """
    source = read_source(definition)
    parsed_overrides = _parse_overrides(overrides)
    profile = _read_seccomp(seccomp)
    if dry_run:
        from fargatelite.runtime.dryrun import print_plans

        policy = policy_for(launch_type, settings, allow_privileged=allow_privileged)
        return print_plans(settings, source, parsed_overrides, pull, sys.stdout, policy, profile)

    timeline = Timeline()

    def prepare() -> TaskRequest:
        with timeline.phase("task definition"):
            return prepare_request(
                settings, source, overrides=parsed_overrides, tags=_parse_tags(tags),
                started_by=started_by, group=group, enable_execute_command=enable_execute_command,
                pull=pull, publish=publish, launch_type=launch_type,
                allow_privileged=allow_privileged, address=address, trace=trace,
                network_configuration=_network_configuration(security_groups),
                strict_isolation=strict_isolation, wait_for_capacity_s=wait_for_capacity,
                seccomp=profile,
            )  # fmt: skip

    if detach:
        from fargatelite.runtime.detached import start_detached

        record = start_detached(settings, prepare())
        return _leave(RecordedTask(settings, record), wait_for, output)

    forbid_core_dumps()
    items: queue.SimpleQueue[Event | LogLine | None] = queue.SimpleQueue()
    with contextlib.ExitStack() as stack:
        # Before the definition is read: it may come from somebody who takes his time.
        interrupts = stack.enter_context(_Interrupts())
        task = Task(start_task(settings, prepare(), timeline, items.put))
        interrupts.task = task
        interrupts.stop_if_asked()
        # Logs are data: on stdout, unless JSON is.
        screen = stack.enter_context(Screen(task, sys.stderr if output == "json" else sys.stdout))
        # A container may write faster than the terminal takes; the rest waits in its log file.
        # Events need no bound, and must have none: the task is not over until all are delivered.
        room = threading.Semaphore(WAITING_LINES)
        pump = threading.Thread(target=_pump_logs, args=(task, items, room), daemon=True)
        pump.start()
        while True:
            screen.refresh_stats()
            try:
                item = items.get(timeout=STATS_PERIOD_S)
            except queue.Empty:
                continue
            if item is None:
                break
            if isinstance(item, LogLine):
                room.release()
            screen.show(item)
        while not items.empty():
            rest = items.get()
            if rest is not None:
                screen.show(rest)
        task.wait()
    screen.summarise(with_trace=trace)
    if output == "json":
        from fargatelite.billing.bill import bill_to_builtins
        from fargatelite.cli.tables import print_json

        print_json({"task": task.describe(), "bill": bill_to_builtins(task.bill())})
    sys.stdout.flush()
    collect_if_due(settings)
    return _exit_code(task, interrupts.number)
