"""Rules about what a task shares with its host: modes of the namespaces, and the members that only
the launch type EC2 has. The first half is Fargate's too (contract 2.9)."""

from __future__ import annotations

import ipaddress
import re

from fargatelite.taskdef.fields import ContainerDefinition, TaskDefinition
from fargatelite.taskdef.launch_type import Policy
from fargatelite.taskdef.problems import Problems, each_container, problem

__all__ = ["SECURITY_OPTIONS", "check_host_members", "check_modes"]

_HOST_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.-]{0,251}[A-Za-z0-9])?", re.ASCII)
_LINK = re.compile(r"[A-Za-z0-9_-]{1,255}(:[A-Za-z0-9_.-]{1,255})?", re.ASCII)
_DEVICE = re.compile(r"/dev(/[A-Za-z0-9._:+-]+)+", re.ASCII)
SECURITY_OPTIONS = ("no-new-privileges", "seccomp:unconfined")


def check_modes(task: TaskDefinition, policy: Policy) -> Problems:
    """pidMode and ipcMode."""
    if task.pid_mode not in policy.pid_modes:
        yield problem(
            "pidMode",
            f"Tasks using the Fargate launch type do not support pidMode '{task.pid_mode}'. The "
            "supported value for pidMode is 'task'.",
            task.pid_mode,
            "task",
        )
    # Fargate has refused ipcMode as a whole.
    if policy.name != "FARGATE" and task.ipc_mode not in policy.ipc_modes:
        yield problem("ipcMode", "not supported yet: ipcMode task", task.ipc_mode, "host, none")


def check_host_members(task: TaskDefinition, policy: Policy) -> Problems:
    """Values of members that Fargate refuses; there nothing is left to look at."""
    if policy.name == "FARGATE":
        return
    names = {container.name for container in task.containers}
    for path, container in each_container(task):
        yield from _check_privileges(path, container, policy)
        yield from _check_names(path, container)
        for index, link in enumerate(container.links):
            if task.network_mode not in (None, "bridge"):
                yield problem(
                    f"{path}.links[{index}]",
                    f"Links are not supported when networkMode={task.network_mode}.", link,
                )  # fmt: skip
            elif not _LINK.fullmatch(link) or link.partition(":")[0] not in names:
                yield problem(
                    f"{path}.links[{index}]",
                    f"Container '{container.name}' links to unknown container "
                    f"'{link.partition(':')[0]}'.",
                    link, "NAME[:ALIAS] with " + ", ".join(sorted(names)),
                )  # fmt: skip
        for index, control in enumerate(container.system_controls):
            if task.network_mode == "host" and (control.namespace or "").startswith("net."):
                yield problem(
                    f"{path}.systemControls[{index}].namespace",
                    "systemControls of net.* are the host's when networkMode=host.",
                    control.namespace,
                )
            is_ipc = (control.namespace or "").startswith(("kernel.", "fs.mqueue."))
            if task.ipc_mode == "host" and is_ipc:
                yield problem(
                    f"{path}.systemControls[{index}].namespace",
                    "systemControls of the IPC namespace are the host's when ipcMode=host.",
                    control.namespace,
                )
        linux = container.linux_parameters
        for index, device in enumerate(linux.devices if linux is not None else ()):
            target = device.container_path or device.host_path
            if not _DEVICE.fullmatch(target) or ".." in target.split("/"):
                yield problem(
                    f"{path}.linuxParameters.devices[{index}].containerPath",
                    "Invalid containerPath for a device.", target, "a path below /dev",
                )  # fmt: skip
        shm = linux.shared_memory_size_mib if linux is not None else None
        if shm is not None and shm < 1:
            yield problem(
                f"{path}.linuxParameters.sharedMemorySize", "Invalid sharedMemorySize.", shm,
                "1 MiB up",
            )  # fmt: skip
    for index, volume in enumerate(task.volumes):
        source = volume.host.source_path if volume.host is not None else None
        if source is not None and not source.startswith("/"):
            yield problem(
                f"volumes[{index}].host.sourcePath", "Invalid sourcePath.", source,
                "an absolute path",
            )  # fmt: skip


def _check_privileges(path: str, container: ContainerDefinition, policy: Policy) -> Problems:
    needs = "needs allow_privileged in the configuration file, or --allow-privileged"
    if container.privileged and not policy.allow_privileged:
        yield problem(
            f"{path}.privileged",
            f"A privileged container {needs}: it gets every capability within its task and no "
            "system call filter.",
        )
    for index, option in enumerate(container.docker_security_options):
        where = f"{path}.dockerSecurityOptions[{index}]"
        if option not in SECURITY_OPTIONS:
            yield problem(where, f"not supported yet: {where}", option, ", ".join(SECURITY_OPTIONS))
        elif option == "seccomp:unconfined" and not policy.allow_privileged:
            yield problem(where, f"A container without system call filter {needs}.", option)


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return "%" not in text


def _check_names(path: str, container: ContainerDefinition) -> Problems:
    if container.hostname is not None and (
        not _HOST_NAME.fullmatch(container.hostname) or len(container.hostname) > 63
    ):
        yield problem(
            f"{path}.hostname", "Invalid hostname.", container.hostname,
            "letters, digits, - and ., at most 63",
        )  # fmt: skip
    for index, server in enumerate(container.dns_servers):
        if not _is_address(server):
            yield problem(
                f"{path}.dnsServers[{index}]", "Invalid DNS server.", server, "an IP address"
            )
    for index, domain in enumerate(container.dns_search_domains):
        if not _HOST_NAME.fullmatch(domain):
            yield problem(f"{path}.dnsSearchDomains[{index}]", "Invalid DNS domain.", domain)
    for index, entry in enumerate(container.extra_hosts):
        where = f"{path}.extraHosts[{index}]"
        if not _HOST_NAME.fullmatch(entry.hostname):
            yield problem(f"{where}.hostname", "Invalid hostname.", entry.hostname)
        if not _is_address(entry.ip_address):
            yield problem(
                f"{where}.ipAddress", "Invalid IP address.", entry.ip_address, "an IP address"
            )
