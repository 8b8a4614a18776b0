"""Fargate's rules about containers, a function each; messages are the service's (contract 2.9)."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import pairwise

from fargatelite.taskdef.fields import TaskDefinition
from fargatelite.taskdef.launch_type import Policy
from fargatelite.taskdef.problems import Problems, each_container, problem

__all__ = ["CONTAINER_RULES", "check_names"]

_NAME = re.compile(r"[A-Za-z0-9_-]{1,255}", re.ASCII)
_PORT_NAME = re.compile(r"[a-z0-9_][a-z0-9_-]{0,63}", re.ASCII)

CAPABILITIES = frozenset(
    """ALL AUDIT_CONTROL AUDIT_WRITE BLOCK_SUSPEND CHOWN DAC_OVERRIDE DAC_READ_SEARCH FOWNER FSETID
    IPC_LOCK IPC_OWNER KILL LEASE LINUX_IMMUTABLE MAC_ADMIN MAC_OVERRIDE MKNOD NET_ADMIN
    NET_BIND_SERVICE NET_BROADCAST NET_RAW SETFCAP SETGID SETPCAP SETUID SYS_ADMIN SYS_BOOT
    SYS_CHROOT SYS_MODULE SYS_NICE SYS_PACCT SYS_PTRACE SYS_RAWIO SYS_RESOURCE SYS_TIME
    SYS_TTY_CONFIG SYSLOG WAKE_ALARM""".split()
)
NOFILE_MAX = 1048576  # contract 4.3


def check_names(task: TaskDefinition) -> Problems:
    """Name and image of each container."""
    for path, container in each_container(task):
        if not container.name:
            yield problem(f"{path}.name", "Container.name should not be null or empty.")
        elif not _NAME.fullmatch(container.name):
            yield problem(
                f"{path}.name", "Container.name contains invalid characters.",
                repr(container.name), "1 to 255 letters, digits, - and _",
            )  # fmt: skip
        if not container.image:
            yield problem(f"{path}.image", "Container.image should not be null or empty.")
        elif len(container.image.partition("@")[0]) > 255:
            yield problem(
                f"{path}.image", "Container.image repository should be 255 characters or less.",
                None, "at most 255 characters",
            )  # fmt: skip


def check_container_memory(task: TaskDefinition, policy: Policy) -> Problems:
    """Limits of one container (contract 1, 2.2)."""
    for path, container in each_container(task):
        hard, soft = container.memory_mib, container.memory_reservation_mib
        if hard is not None and hard < 6:
            yield problem(
                f"{path}.memory", f"Invalid 'memory' setting for container '{container.name}'.",
                hard, "at least 6 MiB",
            )  # fmt: skip
        if soft is not None and soft < 6:
            yield problem(
                f"{path}.memoryReservation",
                f"Invalid 'memoryReservation' setting for container '{container.name}'.",
                soft, "at least 6 MiB",
            )  # fmt: skip
        if hard is not None and soft is not None and hard < soft:
            yield problem(
                f"{path}.memoryReservation",
                f"Invalid setting for container '{container.name}'. 'memory' must be greater than "
                "or equal to 'memoryReservation'.",
                soft, f"at most {hard}",
            )  # fmt: skip
        if container.cpu_units < 0:
            yield problem(
                f"{path}.cpu", f"Invalid 'cpu' setting for container '{container.name}'.",
                container.cpu_units, "at least 0",
            )  # fmt: skip


def _port_range(text: str) -> tuple[int, int] | None:
    first, dash, last = text.partition("-")
    if not dash or not (first.isascii() and first.isdigit() and last.isascii() and last.isdigit()):
        return None
    if len(first) > 5 or len(last) > 5 or not 1 <= int(first) < int(last) <= 65535:
        return None
    return int(first), int(last)


def check_ports(task: TaskDefinition, policy: Policy) -> Problems:
    """Contract 2.3."""
    names: set[str] = set()
    used: dict[tuple[str, int], str] = {}
    for path, container in each_container(task):
        for index, port in enumerate(container.port_mappings):
            where = f"{path}.portMappings[{index}]"
            if port.container_port_range is not None:
                if port.container_port is not None:
                    yield problem(where, "You cannot specify both single port and port range")
                elif _port_range(port.container_port_range) is None:
                    yield problem(
                        f"{where}.containerPortRange",
                        f"Invalid 'containerPortRange' setting for container '{container.name}'.",
                        port.container_port_range, "a-b with 1 <= a < b <= 65535",
                    )  # fmt: skip
            elif port.container_port is None or not 1 <= port.container_port <= 65535:
                yield problem(
                    f"{where}.containerPort",
                    f"Invalid 'containerPort' setting for container '{container.name}'.",
                    port.container_port, "1 to 65535",
                )  # fmt: skip
            elif task.network_mode in ("awsvpc", "host") and port.host_port not in (
                None, 0, port.container_port,
            ):  # fmt: skip
                yield problem(
                    f"{where}.hostPort",
                    "When networkMode=awsvpc, the host ports and container ports in port mappings "
                    "must match.",
                    port.host_port, f"{port.container_port} or absent",
                )  # fmt: skip
            if port.container_port is not None:
                protocol = "udp" if port.protocol == "udp" else "tcp"
                key = (protocol, port.container_port)
                if used.setdefault(key, path) == path:
                    pass
                elif task.network_mode != "awsvpc":
                    yield problem(
                        f"{where}.containerPort",
                        "not supported yet: containers of a task share one network, and port "
                        f"{port.container_port} is used twice",
                    )
                else:
                    yield problem(
                        f"{where}.containerPort",
                        f"{protocol.upper()} container port '{port.container_port}' is used "
                        "multiple times in task when networkMode=awsvpc.",
                    )
            if port.name is not None:
                if not _PORT_NAME.fullmatch(port.name):
                    yield problem(
                        f"{where}.name", "Invalid port mapping name.", repr(port.name),
                        "1 to 64 of a-z, 0-9, _ and -, not - first",
                    )  # fmt: skip
                elif port.name in names:
                    yield problem(
                        f"{where}.name",
                        "When networkMode=awsvpc, port mapping name is already used", port.name,
                    )  # fmt: skip
                names.add(port.name)


def check_environment(task: TaskDefinition, policy: Policy) -> Problems:
    """A variable needs a name that execve(2) can carry."""
    for path, container in each_container(task):
        for index, item in enumerate(container.environment):
            if not item.name or "=" in item.name:
                yield problem(
                    f"{path}.environment[{index}].name", "Environment variable name is invalid.",
                    repr(item.name), "not empty, without =",
                )  # fmt: skip


def check_timeouts(task: TaskDefinition, policy: Policy) -> Problems:
    """2 to 120 s on Fargate."""
    for path, container in each_container(task):
        stop, start = container.stop_timeout_s, container.start_timeout_s
        if policy.max_stop_timeout_s is not None and stop > policy.max_stop_timeout_s:
            yield problem(
                f"{path}.stopTimeout",
                "Tasks using the Fargate launch type must have a container stop timeout of less "
                "than 120 seconds.",
                stop, "2 to 120",
            )  # fmt: skip
        elif stop < 2:
            yield problem(
                f"{path}.stopTimeout",
                f"Granular stop timeout on container '{container.name}' must be at least 2 "
                "seconds.",
                stop, "2 to 120",
            )  # fmt: skip
        if start is not None and not 2 <= start <= (policy.max_timeout_s or start):
            yield problem(
                f"{path}.startTimeout",
                f"Granular start timeout on container '{container.name}' must be between 2 and 120 "
                "seconds.",
                start, "2 to 120",
            )  # fmt: skip


def check_health_checks(task: TaskDefinition, policy: Policy) -> Problems:
    """Ranges of contract 3.7."""
    for path, container in each_container(task):
        check = container.health_check
        if check is None:
            continue
        if not [word for word in check.command if word not in ("CMD", "CMD-SHELL")]:
            yield problem(
                f"{path}.healthCheck.command",
                f"Health check command must not be empty for container '{container.name}'",
                None, 'like ["CMD-SHELL", "curl -f http://localhost/ || exit 1"]',
            )  # fmt: skip
        for member, value, low, high in (
            ("interval", check.interval_s, 5, 300),
            ("timeout", check.timeout_s, 2, 60),
            ("retries", check.retries, 1, 10),
            ("startPeriod", check.start_period_s, 0, 300),
        ):
            where = f"{path}.healthCheck.{member}"
            if value > high:
                yield problem(
                    where,
                    f"Health check {member} must be less than or equal to the maximum allowed "
                    f"value {high} for container '{container.name}'",
                    value, f"{low} to {high}",
                )  # fmt: skip
            elif value < low:
                yield problem(
                    where,
                    f"Health check {member} must be greater than or equal to the minimum allowed "
                    f"value {low} for container '{container.name}'",
                    value, f"{low} to {high}",
                )  # fmt: skip


def check_ulimits(task: TaskDefinition, policy: Policy) -> Problems:
    """Contract 2.2, 4.3."""
    for path, container in each_container(task):
        for index, limit in enumerate(container.ulimits):
            where = f"{path}.ulimits[{index}]"
            soft, hard = limit.soft_limit, limit.hard_limit
            if hard != -1 and (soft == -1 or soft > hard):
                yield problem(
                    f"{where}.softLimit", "Ulimit soft limit must not exceed the hard limit.",
                    soft, f"at most {hard}",
                )  # fmt: skip
            if soft < -1 or hard < -1:
                yield problem(where, "Ulimit must not be negative.", min(soft, hard), "-1 or more")
            if limit.name == "nofile" and not 0 <= hard <= NOFILE_MAX:
                yield problem(
                    f"{where}.hardLimit", "Invalid nofile limit.", hard, f"at most {NOFILE_MAX}"
                )


def check_capabilities(task: TaskDefinition, policy: Policy) -> Problems:
    """Only SYS_PTRACE may be added (contract 2.7)."""
    for path, container in each_container(task):
        linux = container.linux_parameters
        if linux is None or linux.capabilities is None:
            continue
        where = f"{path}.linuxParameters.capabilities"
        for index, name in enumerate(linux.capabilities.add):
            if policy.capabilities is None:
                if name not in CAPABILITIES:
                    yield problem(f"{where}.add[{index}]", "Invalid capability.", name)
            elif name not in policy.capabilities:
                yield problem(
                    f"{where}.add[{index}]",
                    f"{name} is not allowed on Fargate.",
                    name,
                    "SYS_PTRACE",
                )
        for index, name in enumerate(linux.capabilities.drop):
            if name not in CAPABILITIES:
                yield problem(f"{where}.drop[{index}]", "Invalid capability.", name)


def check_dependencies(task: TaskDefinition, policy: Policy) -> Problems:
    """Contract 2.9, 3.5: known targets, possible conditions, no cycle."""
    containers = {container.name: container for container in task.containers}
    for path, container in each_container(task):
        for index, item in enumerate(container.depends_on):
            where = f"{path}.dependsOn[{index}]"
            target = containers.get(item.container_name)
            if target is None:
                yield problem(
                    f"{where}.containerName",
                    f"Cannot depend on container + '{item.container_name}' because it does not "
                    "exist",
                    item.container_name, ", ".join(sorted(containers)),
                )  # fmt: skip
            elif item.condition in ("SUCCESS", "COMPLETE") and target.essential:
                yield problem(
                    f"{where}.condition",
                    "A dependency container with SUCCESS or COMPLETE condition cannot be an "
                    "essential container",
                    item.container_name,
                )
            elif item.condition == "HEALTHY" and target.health_check is None:
                yield problem(
                    f"{where}.condition",
                    "A dependency container with HEALTHY condition must have health check "
                    "configured",
                    item.container_name,
                )
    depends = {
        name: [item.container_name for item in container.depends_on]
        for name, container in containers.items()
    }
    cycle = _find_cycle(depends)
    if not cycle:
        # Also waited for, so that they may not close a ring (contract 3.5). One of volumesFrom
        # alone is told with the volumes.
        sources = {
            name: [item.source_container or "" for item in container.volumes_from]
            for name, container in containers.items()
        }
        others = {
            name: [*depends[name], *(link.partition(":")[0] for link in container.links)]
            for name, container in containers.items()
        }
        ring = _find_cycle({name: [*others[name], *sources[name]] for name in containers})
        if any(after in others[name] for name, after in pairwise(ring)):
            cycle = ring
    if cycle:
        index = next(i for i, c in enumerate(task.containers) if c.name == cycle[0])
        yield problem(
            f"containerDefinitions[{index}].dependsOn",
            "Container dependencies must not form a cycle.",
            " -> ".join(cycle),
        )


def _find_cycle(edges: Mapping[str, Sequence[str]]) -> list[str]:
    done: set[str] = set()
    for start in edges:
        trail: list[str] = []
        stack = [(start, 0)]
        while stack:
            name, depth = stack.pop()
            del trail[depth:]
            if name in trail:
                return [*trail[trail.index(name) :], name]
            if name in done or name not in edges:
                continue
            trail.append(name)
            stack += [(after, len(trail)) for after in edges[name]]
        done.update(trail)
        done.add(start)
    return []


CONTAINER_RULES = (
    check_container_memory,
    check_ports,
    check_environment,
    check_timeouts,
    check_health_checks,
    check_ulimits,
    check_capabilities,
    check_dependencies,
)
