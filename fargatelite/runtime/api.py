"""`run_task`; `import fargatelite` shows it."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping
from typing import IO, Any, Literal, overload

from fargatelite.errors import ConfigurationInvalid
from fargatelite.network.slot import PortPublication
from fargatelite.runtime.events import Event
from fargatelite.runtime.handle import RecordedTask, Task
from fargatelite.runtime.request import PullPolicy, prepare_request, start_task
from fargatelite.runtime.trace import Timeline
from fargatelite.sandbox.seccomp_profile import read_profile
from fargatelite.settings import Settings, load_settings
from fargatelite.taskdef.fields import TaskDefinition
from fargatelite.taskdef.launch_type import LaunchType

__all__ = ["run_task"]

Definition = TaskDefinition | Mapping[str, Any] | str | bytes | os.PathLike[str]
PublishSpec = PortPublication | str
SeccompSource = str | os.PathLike[str] | Mapping[str, Any]


def _copy_logs(task: Task, out: IO[str]) -> None:
    for line in task.logs(follow=True):
        text = line.text.decode("utf-8", "replace")
        out.write(text if line.is_partial else text + "\n")
        out.flush()


@overload
def run_task(
    definition: Definition,
    *,
    overrides: Mapping[str, Any] | None = None,
    tags: Mapping[str, str] | None = None,
    started_by: str | None = None,
    group: str | None = None,
    enable_execute_command: bool = False,
    pull: PullPolicy = "always",
    publish: tuple[PublishSpec, ...] | list[PublishSpec] = (),
    on_event: Callable[[Event], None] | None = None,
    stdout: IO[str] | None = None,
    launch_type: LaunchType = "FARGATE",
    allow_privileged: bool = False,
    address: str | None = None,
    network_configuration: Mapping[str, Any] | None = None,
    strict_isolation: bool = False,
    wait_for_capacity_s: float | None = None,
    seccomp: SeccompSource | None = None,
    trace: bool = False,
    detach: Literal[False] = False,
    settings: Settings | None = None,
) -> Task: ...


@overload
def run_task(
    definition: Definition,
    *,
    overrides: Mapping[str, Any] | None = None,
    tags: Mapping[str, str] | None = None,
    started_by: str | None = None,
    group: str | None = None,
    enable_execute_command: bool = False,
    pull: PullPolicy = "always",
    publish: tuple[PublishSpec, ...] | list[PublishSpec] = (),
    launch_type: LaunchType = "FARGATE",
    allow_privileged: bool = False,
    address: str | None = None,
    network_configuration: Mapping[str, Any] | None = None,
    strict_isolation: bool = False,
    wait_for_capacity_s: float | None = None,
    seccomp: SeccompSource | None = None,
    trace: bool = False,
    detach: Literal[True],
    settings: Settings | None = None,
) -> RecordedTask: ...


def run_task(
    definition: Definition,
    *,
    overrides: Mapping[str, Any] | None = None,
    tags: Mapping[str, str] | None = None,
    started_by: str | None = None,
    group: str | None = None,
    enable_execute_command: bool = False,
    pull: PullPolicy = "always",
    publish: tuple[PublishSpec, ...] | list[PublishSpec] = (),
    on_event: Callable[[Event], None] | None = None,
    stdout: IO[str] | None = None,
    launch_type: LaunchType = "FARGATE",
    allow_privileged: bool = False,
    address: str | None = None,
    network_configuration: Mapping[str, Any] | None = None,
    strict_isolation: bool = False,
    wait_for_capacity_s: float | None = None,
    seccomp: SeccompSource | None = None,
    trace: bool = False,
    detach: bool = False,
    settings: Settings | None = None,
) -> Task | RecordedTask:
    """Runs a task definition and returns at once; the task lives on the supervisor's thread.

    Args:
        definition: a dict, JSON text, a path, a `TaskDefinition`, or the family, family:revision or
            ARN of a registered one (a path wins when it exists).
        overrides: RunTask's `overrides` (contract 8.3).
        tags, started_by, group, enable_execute_command: as RunTask's; `group` is
            `family:<family>` by default.
        pull: `always` asks the registry for the digest as Fargate does, and takes layers from the
            store; `missing` asks only for an image that is not there; `never` asks nobody.
        publish: ports of the task on the host's loopback, `8080:80` or PortPublication.
        on_event: called for each Event, in order, on a thread of its own.
        stdout: gets all containers' output as text.
        launch_type: `FARGATE`, or `EC2` for what ECS takes on one's own machine.
        allow_privileged: as the setting: whether EC2's privileged containers may run.
        address: the task's own IPv4 address; needs the setting beyond_fargate.fixed_address.
        network_configuration: as RunTask's; `awsvpcConfiguration.securityGroups` has names or
            ids of the configuration's groups.
        strict_isolation: as the setting: refuse to run where a defence is weaker.
        wait_for_capacity_s: where the host's capacity is taken, how long the launch waits in line,
            PROVISIONING, before it ends as one that failed to start; by default the setting
            capacity.wait_s, which is 0: it is refused at once.
        seccomp: a system-call filter in Docker's format (a path, or the document as a dict) in
            place of the built-in one, for all containers of the task, `exec` and health checks; it
            goes before what the definition says.
        trace: record the time of each plan operation.
        detach: the task outlives this process: the run root's own supervisor, started when first
            needed, has it. Not with `on_event` and `stdout`; `fargatelite.find_task` finds it.
        settings: roots and region; by default those of `load_settings()`.

    Raises:
        InvalidTaskDefinition: with all problems at once.
        ConfigurationInvalid, SecurityGroupNotFound, HostUnsupported, CapacityExceeded: nothing has
            happened then.
    """
    timeline = Timeline()
    settings = settings or load_settings()
    with timeline.phase("task definition"):
        request = prepare_request(
            settings, definition, overrides=overrides, tags=tags, started_by=started_by,
            group=group, enable_execute_command=enable_execute_command, pull=pull,
            publish=publish, launch_type=launch_type, allow_privileged=allow_privileged,
            address=address, network_configuration=network_configuration, trace=trace,
            strict_isolation=strict_isolation, wait_for_capacity_s=wait_for_capacity_s,
            seccomp=read_profile(seccomp) if seccomp is not None else None,
        )  # fmt: skip
    if detach:
        if on_event is not None or stdout is not None:
            raise ConfigurationInvalid(
                "a detached task calls nobody in this process: leave on_event and stdout out, and "
                "use the handle's logs(follow=True)"
            )
        from fargatelite.runtime.detached import start_detached

        return RecordedTask(settings, start_detached(settings, request))
    task = Task(start_task(settings, request, timeline, on_event))
    if stdout is not None:
        threading.Thread(target=_copy_logs, args=(task, stdout), daemon=True).start()
    return task
