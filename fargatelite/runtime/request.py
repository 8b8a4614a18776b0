"""What RunTask was asked for, checked, as data: it starts a task in this process or in another."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import msgspec

from fargatelite import names
from fargatelite.errors import ConfigurationInvalid
from fargatelite.names import TaskId
from fargatelite.network.slot import PortPublication, Protocol
from fargatelite.rundir import RunDirectory, ensure_private_directory
from fargatelite.runtime import task as machine
from fargatelite.runtime.awsvpc import parse_network_configuration
from fargatelite.runtime.capacity import admitted
from fargatelite.runtime.close import end_lost
from fargatelite.runtime.describe import TaskFacts
from fargatelite.runtime.events import Event
from fargatelite.runtime.execute import SupervisedTask
from fargatelite.runtime.launch import compile_filters
from fargatelite.runtime.prepared import get_pool
from fargatelite.runtime.record import decode_record
from fargatelite.runtime.supervise import get_supervisor
from fargatelite.runtime.trace import Timeline
from fargatelite.sandbox.seccomp_profile import SeccompProfile
from fargatelite.security_groups import SecurityGroup
from fargatelite.settings import MAX_WAIT_S, Settings
from fargatelite.taskdef.fields import TaskDefinition
from fargatelite.taskdef.launch_type import LaunchType, policy_for
from fargatelite.taskdef.load import load_definition, load_recorded, to_wire
from fargatelite.taskdef.overrides import apply_overrides
from fargatelite.taskdef.store import find_source

__all__ = [
    "PullPolicy",
    "TaskRequest",
    "adopt_task",
    "parse_publication",
    "prepare_request",
    "start_task",
]

logger = logging.getLogger(__name__)

PullPolicy = Literal["always", "missing", "never"]


class TaskRequest(msgspec.Struct, frozen=True, kw_only=True):
    """A task to be run. `definition` is in the wire form of DescribeTaskDefinition, checked, after
    overrides; the rest is what else `run_task` takes."""

    version: int = 1
    task_id: str
    definition: dict[str, Any]
    facts: TaskFacts
    pull: PullPolicy = "always"
    publish: tuple[PortPublication, ...] = ()
    address: str | None = None
    groups: tuple[SecurityGroup, ...] = ()
    trace: bool = False
    wait_for_capacity_s: float = 0
    seccomp: SeccompProfile | None = None
    network_mbit: int = 0


def parse_publication(text: str) -> PortPublication:
    """`[ADDRESS:]HOST_PORT:CONTAINER_PORT[/tcp|/udp]`, as podman's --publish; the address is
    loopback and 127.0.0.1 by default.

    Raises: ConfigurationInvalid.
    """
    mapping, _, protocol = text.partition("/")
    parts = mapping.split(":")
    address = parts.pop(0) if len(parts) == 3 else "127.0.0.1"
    if (
        len(parts) != 2
        or not all(part.isascii() and part.isdigit() for part in parts)
        or not all(0 < int(part) < 65536 for part in parts)
        or (protocol or "tcp") not in ("tcp", "udp")
        or not address.startswith("127.")
    ):
        raise ConfigurationInvalid(
            f"cannot publish {text!r}: expected [127.x.y.z:]HOST_PORT:CONTAINER_PORT[/tcp|/udp]"
        )
    return PortPublication(
        host_address=address,
        host_port=int(parts[0]),
        container_port=int(parts[1]),
        protocol=Protocol(protocol or "tcp"),
    )


def _bridge_ports(definition: TaskDefinition) -> list[PortPublication]:
    """EC2's bridge maps host ports; here they answer on the host's loopback, as --publish."""
    if definition.network_mode not in (None, "bridge"):
        return []
    return [
        PortPublication(
            host_port=port.host_port,
            container_port=port.container_port,
            protocol=Protocol.UDP if port.protocol == "udp" else Protocol.TCP,
        )
        for container in definition.containers
        for port in container.port_mappings
        if port.host_port and port.container_port
    ]


def prepare_request(
    settings: Settings,
    definition: Any,
    *,
    overrides: Mapping[str, Any] | None,
    tags: Mapping[str, str] | None,
    started_by: str | None,
    group: str | None,
    enable_execute_command: bool,
    pull: PullPolicy,
    publish: Sequence[PortPublication | str],
    launch_type: LaunchType,
    allow_privileged: bool,
    address: str | None,
    network_configuration: Mapping[str, Any] | None,
    trace: bool,
    strict_isolation: bool = False,
    wait_for_capacity_s: float | None = None,
    seccomp: SeccompProfile | None = None,
) -> TaskRequest:
    """Checks all that can be checked before anything is made; arguments as `run_task`'s.

    Raises: InvalidTaskDefinition with all problems at once; ConfigurationInvalid;
    SecurityGroupNotFound; HostUnsupported where isolation must be strict and is not.
    """
    if strict_isolation or settings.strict_isolation:
        from fargatelite.runtime.security import require_isolation

        require_isolation(
            settings, allow_privileged=allow_privileged, has_own_filter=seccomp is not None
        )
    policy = policy_for(launch_type, settings, allow_privileged=allow_privileged)
    loaded = (
        definition
        if isinstance(definition, TaskDefinition)
        else load_definition(find_source(settings, definition), policy)
    )
    loaded = apply_overrides(loaded, dict(overrides) if overrides else None, policy)
    if address is not None and not settings.beyond_fargate.fixed_address:
        raise ConfigurationInvalid(
            "a task's address is chosen by this host: set beyond_fargate.fixed_address in the "
            "configuration file to ask for one"
        )
    network = parse_network_configuration(settings, loaded, network_configuration)
    wait_s = settings.capacity.wait_s if wait_for_capacity_s is None else wait_for_capacity_s
    if not 0 <= wait_s <= MAX_WAIT_S:
        raise ConfigurationInvalid(
            f"wait_for_capacity_s is {wait_s}: expected 0 to {MAX_WAIT_S} seconds"
        )
    if seccomp is not None:
        compile_filters(settings, loaded, seccomp)
    return TaskRequest(
        task_id=names.new_task_id(),
        definition=to_wire(loaded),
        facts=TaskFacts(
            account=settings.account,
            region=settings.region,
            cluster=settings.cluster,
            group=group or f"family:{loaded.family}",
            started_by=started_by,
            tags=dict(tags or {}),
            overrides=dict(overrides or {}),
            enable_execute_command=enable_execute_command,
            launch_type=launch_type,
            subnet_id=network.subnet_id,
            security_groups={group.name: group.group_id for group in network.groups},
        ),
        pull=pull,
        publish=tuple(
            parse_publication(item) if isinstance(item, str) else item
            for item in (*publish, *_bridge_ports(loaded))
        ),
        address=address,
        groups=network.groups,
        trace=trace,
        wait_for_capacity_s=wait_s,
        seccomp=seccomp,
        network_mbit=settings.task_network_mbit,
    )


def adopt_task(
    settings: Settings, run: RunDirectory, on_finished: Callable[[], None] | None = None
) -> SupervisedTask | None:
    """Goes on with a task whose supervisor is gone, on this process's supervisor.

    None for one that was lost before anything of it was written down, or that is over and has left
    something: it is removed.
    Raises: TaskBusy when somebody supervises it; TaskNotFound when it is gone; StateCorrupt.
    """
    from fargatelite.runtime.usage import get_sampler

    run.lock()
    try:
        data = run.read_state()
        recorded = None if data is None else decode_record(data, run.path)
        if recorded is None or recorded.state.last_status == machine.TaskStatus.STOPPED:
            for failure in end_lost(settings, run):
                logger.error("task %s: left behind: %s", run.task_id, failure)
            return None
        definition = load_recorded(recorded.definition)
    except BaseException:
        run.unlock()
        raise
    supervised = SupervisedTask(
        get_supervisor(settings),
        run,
        definition,
        recorded.state,
        TaskRequest(
            task_id=recorded.task_id,
            definition=recorded.definition,
            facts=recorded.facts,
            pull=recorded.pull,
            publish=recorded.publish,
            address=recorded.address,
            groups=recorded.groups,
            trace=recorded.trace,
            seccomp=recorded.seccomp,
            network_mbit=recorded.network_mbit,
        ),
        sampler=get_sampler(settings),
        timeline=Timeline(),
        on_event=None,
        on_finished=on_finished,
    )
    supervised.begin_adopted(recorded)
    return supervised


def start_task(
    settings: Settings,
    request: TaskRequest,
    timeline: Timeline,
    on_event: Callable[[Event], None] | None = None,
    on_finished: Callable[[], None] | None = None,
    *,
    has_known_id: bool = False,
) -> SupervisedTask:
    """Begins the task's life on this process's supervisor; returns at once. `on_finished` is called
    once, when it is STOPPED and nothing is left of it.

    Unless somebody knows the request's task id already, a prepared sandbox gives it its own.

    Raises: ConfigurationInvalid, HostUnsupported, CapacityExceeded: nothing has happened then. A
    task that may wait for capacity and waits in vain ends as one that failed to start.
    """
    from fargatelite.runtime.usage import get_sampler

    definition = load_recorded(request.definition)
    supervisor = get_supervisor(settings)
    sampler = get_sampler(settings)
    sandbox = ticket = None
    try:
        with (
            timeline.phase("run directory"),
            admitted(settings, definition, request.wait_for_capacity_s) as room,
        ):
            has_room = room is None or not room.must_wait
            if settings.prepared_sandboxes and not has_known_id and has_room:
                sandbox = get_pool(supervisor).take(definition, request.address)
            if sandbox is not None:
                request = msgspec.structs.replace(request, task_id=sandbox.run.task_id)
            task_id = TaskId(request.task_id)
            ensure_private_directory(Path(settings.data_root))
            # Before all else of the task: `gc` takes what has none for lost.
            run = sandbox.run if sandbox else RunDirectory.create(settings.runs, task_id)
            (settings.records / task_id).mkdir(mode=0o700, parents=True, exist_ok=True)
            if room is not None:
                ticket = room.take(run)
        supervised = SupervisedTask(
            supervisor,
            run,
            definition,
            machine.new_state(definition, task_id, time.time_ns()),
            request,
            sampler=sampler,
            timeline=timeline,
            on_event=on_event,
            on_finished=on_finished,
            sandbox=sandbox.launched if sandbox else None,
            ticket=ticket,
        )
    except BaseException:
        if ticket is not None:
            ticket.give_back()
        if sandbox is not None:
            get_pool(supervisor).give_back(sandbox)
        raise
    supervised.begin()
    return supervised
