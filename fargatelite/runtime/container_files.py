"""/etc/hosts, /etc/hostname and /etc/resolv.conf: of the task, and of a container that has its own.

On Fargate all containers of a task share them (contract 4.4). The launch type EC2 has members that
give a container another name, other hosts and other servers; it then gets files of its own.
"""

from __future__ import annotations

import os
from pathlib import Path

from fargatelite.network.slot import Slot, hosts_text, resolv_conf_text
from fargatelite.rundir import RunDirectory
from fargatelite.taskdef.fields import ContainerDefinition, TaskDefinition

__all__ = [
    "directory_of",
    "hostname_of",
    "hosts_of",
    "resolv_conf_of",
    "write_container_files",
    "write_task_files",
]


def hostname_of(
    slot: Slot,
    definition: TaskDefinition | None = None,
    container: ContainerDefinition | None = None,
) -> str:
    """The private DNS name that a task interface has in us-east-1's style (contract 4.4); the
    host's name with the host's network; a container's own name where it has one."""
    if container is not None and container.hostname is not None:
        return container.hostname
    if definition is not None and definition.network_mode == "host":
        return os.uname().nodename
    return f"ip-{slot.address.replace('.', '-')}.ec2.internal"


def hosts_of(definition: TaskDefinition, container: ContainerDefinition | None, slot: Slot) -> str:
    """/etc/hosts. Linked containers share the task's network, so their names are its address."""
    hostname = hostname_of(slot, definition, container)
    match definition.network_mode:
        case "host":
            text = f"127.0.0.1 localhost\n127.0.1.1 {hostname}\n"
        case "none":
            text = f"127.0.0.1 localhost {hostname}\n"
        case _:
            text = hosts_text(slot, hostname)
    if container is None:
        return text
    for link in container.links:
        name, _, alias = link.partition(":")
        text += f"{slot.address} {' '.join(dict.fromkeys((alias or name, name)))}\n"
    for entry in container.extra_hosts:
        text += f"{entry.ip_address} {entry.hostname}\n"
    return text


def _read(path: str) -> str | None:
    try:
        return Path(path).read_text()
    except FileNotFoundError:
        return None


def resolv_conf_of(definition: TaskDefinition, container: ContainerDefinition | None) -> str:
    """/etc/resolv.conf: the host's servers, or those behind its loopback resolver, which only the
    host's own network reaches; a container's own servers and domains before them."""
    host = _read("/etc/resolv.conf") or ""
    if definition.network_mode != "host":
        host = resolv_conf_text(host, _read("/run/systemd/resolve/resolv.conf"))
    servers = container.dns_servers if container is not None else ()
    domains = container.dns_search_domains if container is not None else ()
    lines = host.splitlines()
    if servers:
        lines = [line for line in lines if line.split()[:1] != ["nameserver"]]
        lines = [*(f"nameserver {server}" for server in servers), *lines]
    if domains:
        lines = [line for line in lines if line.split()[:1] not in (["search"], ["domain"])]
        lines.append(f"search {' '.join(domains)}")
    return "".join(f"{line}\n" for line in lines)


def _has_own(container: ContainerDefinition) -> bool:
    return bool(
        container.hostname
        or container.links
        or container.extra_hosts
        or container.dns_servers
        or container.dns_search_domains
    )


def directory_of(run: RunDirectory, container: ContainerDefinition) -> Path:
    """Where a container's three files are."""
    files = run.path / "files"
    # A dot: a container may be named hosts.
    return files / f".{container.name}" if _has_own(container) else files


def _write_owned(path: Path, text: str, owner: int) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
    with open(fd, "w") as file:
        file.write(text)
        os.fchown(fd, owner, owner)
        os.fchmod(fd, 0o644)


def _write(
    directory: Path, definition: TaskDefinition, container: ContainerDefinition | None, slot: Slot
) -> None:
    owner = slot.uid_base
    _write_owned(directory / "hosts", hosts_of(definition, container, slot), owner)
    _write_owned(directory / "hostname", hostname_of(slot, definition, container) + "\n", owner)
    _write_owned(directory / "resolv.conf", resolv_conf_of(definition, container), owner)


def write_task_files(run: RunDirectory, definition: TaskDefinition, slot: Slot) -> None:
    """The files that all containers share."""
    _write(run.path / "files", definition, None, slot)


def write_container_files(
    run: RunDirectory, definition: TaskDefinition, container: ContainerDefinition, slot: Slot
) -> None:
    """The files of a container that has its own; nothing for others."""
    if _has_own(container):
        directory = directory_of(run, container)
        directory.mkdir(mode=0o700, exist_ok=True)
        _write(directory, definition, container, slot)
