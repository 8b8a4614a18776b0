"""What the metadata endpoint tells about one task, and the server that all tasks share.

The server asks from a thread of its own; a task's state is a frozen value, so that what is read of
it is of one moment. Figures are read when somebody asks for them: a task that nobody asks about
costs nothing.
"""

from __future__ import annotations

import os
import threading
import time
import uuid
from pathlib import Path
from typing import TYPE_CHECKING
from typing import Protocol as Interface

from fargatelite import names
from fargatelite.cgroups.cgroup import Driver
from fargatelite.metadata.clock import read_clock_drift
from fargatelite.metadata.faults import FaultInjector
from fargatelite.metadata.readings import GroupPaths, read_networks, read_reading
from fargatelite.metadata.routes import Credentials, Protection
from fargatelite.metadata.shapes import (
    EphemeralStorage,
    HealthFacts,
    MetadataContainer,
    MetadataTask,
    MetadataVolume,
    Networks,
    PortMapping,
)
from fargatelite.metadata.stats import Reading
from fargatelite.network.slot import Slot
from fargatelite.runtime.dependencies import ContainerStep
from fargatelite.runtime.describe import TaskFacts, container_uuid
from fargatelite.runtime.task import ContainerState, TaskState
from fargatelite.storage.ephemeral import RESERVED_MIB, read_use
from fargatelite.taskdef.fields import ContainerDefinition, TaskDefinition
from fargatelite.taskdef.log_options import shown_options

if TYPE_CHECKING:
    from fargatelite.metadata.server import MetadataServer

__all__ = ["Live", "TaskEndpoint", "TaskRole", "get_metadata_server"]

_READING_AGE_NS = 1_000_000_000
"""Two readings this far apart make a rate; a container that asks more often gets the same pair."""

_SHOWN_STEPS = {
    ContainerStep.NONE: "NONE",
    ContainerStep.PULLED: "PULLED",
    ContainerStep.STARTING: "CREATED",
    ContainerStep.RUNNING: "RUNNING",
    ContainerStep.STOPPED: "STOPPED",
}


class TaskRole(Interface):
    """Where the task role's credentials come from."""

    def credentials(self) -> Credentials | None:
        """Current ones, None while there are none. May be called from any thread."""
        ...


class Live(Interface):
    """What changes of a task, as its supervisor holds it."""

    @property
    def state(self) -> TaskState: ...
    @property
    def facts(self) -> TaskFacts: ...


class TaskEndpoint:
    """A `metadata.routes.Source`: one task's side of the endpoint."""

    def __init__(
        self,
        live: Live,
        definition: TaskDefinition,
        slot: Slot,
        netns_fd: int,
        driver: Driver,
        hostname: str,
        resolv_conf: str,
        storage: Path | None,
        faults: FaultInjector,
        role: TaskRole | None,
        credentials_id: str | None = None,
    ) -> None:
        """`credentials_id`: of a task that has been told it already, under another supervisor."""
        self._live = live
        self._definition = definition
        self._slot = slot
        self._netns_fd = netns_fd
        self._driver = driver
        self._role = role
        self._storage = storage
        self._networks = _networks(slot, hostname, resolv_conf)
        self._readings: dict[str, tuple[Reading | None, Reading]] = {}
        self._protection: Protection | None = None
        self.credentials_id = credentials_id or (str(uuid.uuid4()) if role is not None else None)
        """Random, 122 bits: nobody guesses another task's."""
        self.faults = faults if definition.enable_fault_injection else None

    # ---- metadata.routes.Source ----

    def describe(self) -> MetadataTask:
        """The task as it is now."""
        state, facts, definition = self._live.state, self._live.facts, self._definition
        task_id = names.TaskId(state.task_id)
        return MetadataTask(
            cluster_arn=names.cluster_arn(facts.region, facts.account, facts.cluster),
            task_arn=names.task_arn(facts.region, facts.account, facts.cluster, task_id),
            family=definition.family,
            revision=definition.revision,
            desired_status=state.desired_status,
            known_status=str(state.last_status),
            containers=tuple(
                self._container(state, item, definition.containers[number], number, facts)
                for number, item in enumerate(state.containers)
            ),
            cpu_units=definition.cpu_units,
            memory_mib=definition.memory_mib,
            pull_started_at_ns=state.pull_started_at_ns,
            pull_stopped_at_ns=state.pull_stopped_at_ns,
            execution_stopped_at_ns=state.execution_stopped_at_ns,
            availability_zone=f"{facts.region}a",
            service_name=_service_of(facts),
            group=facts.group,
            tags=facts.tags,
            clock_drift=read_clock_drift(),
            ephemeral_storage=self._storage_use(),
            is_fault_injection_enabled=definition.enable_fault_injection,
        )

    def readings(self, name: str) -> tuple[Reading | None, Reading] | None:
        """The last but one and the last reading; a new one when the last is a second old."""
        state = self._live.state.container(name)
        if state.step != ContainerStep.RUNNING:
            return None
        last = self._readings.get(name)
        if last is None or time.time_ns() - last[1].time_ns >= _READING_AGE_NS:
            before = last[1] if last is not None else None
            now = read_reading(self._group_paths(name), read_networks(self._netns_fd))
            last = self._readings[name] = (before, now)
        return last

    def credentials(self) -> Credentials | None:
        """The task role's."""
        return self._role.credentials() if self._role is not None else None

    def protection(self) -> Protection | None:
        """Only a service's task can be protected (contract 5.6)."""
        if _service_of(self._live.facts) is None:
            return None
        held = self._protection
        if held is None or (held.expires_at_ns or 0) <= time.time_ns():
            return Protection(is_enabled=False)
        return held

    def protect(self, is_enabled: bool, expires_in_minutes: int) -> Protection | None:
        """Sets it, from now."""
        if is_enabled:
            self._protection = Protection(
                is_enabled=True,
                expires_at_ns=time.time_ns() + expires_in_minutes * 60 * 1_000_000_000,
            )
        else:
            self._protection = None
        return self.protection()

    # ---- what it is made of ----

    def _storage_use(self) -> EphemeralStorage | None:
        if self._storage is None:
            return None
        return EphemeralStorage(
            utilized_mib=read_use(self._storage).used_bytes >> 20,
            reserved_mib=self._definition.ephemeral_storage_gib * 1024 + RESERVED_MIB,
        )

    def _group_paths(self, name: str) -> GroupPaths:
        path = names.cgroup_path(names.TaskId(self._live.state.task_id), name)

        def directory(controller: str) -> str | None:
            found = self._driver.directory(controller, path)
            return found if found is not None and os.path.isdir(found) else None

        memory = directory("memory") or ""
        return GroupPaths(
            version=self._driver.version,
            cpu=directory("cpu") or memory,
            cpuacct=directory("cpuacct") or memory,
            memory=memory,
            pids=directory("pids"),
            blkio=directory("blkio"),
        )

    def _container(
        self,
        state: TaskState,
        item: ContainerState,
        definition: ContainerDefinition,
        number: int,
        facts: TaskFacts,
    ) -> MetadataContainer:
        task_id = names.TaskId(state.task_id)
        logging = definition.log_configuration
        has_restarts = definition.restart_policy is not None and definition.restart_policy.enabled
        return MetadataContainer(
            runtime_id=names.runtime_id(task_id, number),
            name=item.name,
            image=definition.image,
            image_id=item.image_digest,
            ports=tuple(
                PortMapping(container_port=port.container_port, protocol=port.protocol,
                            host_port=port.host_port or port.container_port)
                for port in definition.port_mappings
                if port.container_port is not None
            ),
            labels=_labels(self._definition, item.name, facts, task_id)
            | definition.docker_labels,
            desired_status="STOPPED"
            if item.is_signalled or state.desired_status == "STOPPED"
            else "RUNNING",
            known_status=_SHOWN_STEPS[item.step],
            exit_code=item.exit_code,
            cpu_units=definition.cpu_units,
            memory_mib=definition.memory_mib,
            created_at_ns=state.pull_stopped_at_ns,
            started_at_ns=item.started_at_ns,
            finished_at_ns=item.finished_at_ns,
            networks=self._networks,
            health=_health(item),
            volumes=tuple(
                MetadataVolume(docker_name=point.source_volume, destination=point.container_path)
                for point in definition.mount_points
                if point.container_path is not None
            ),
            log_driver=logging.log_driver if logging is not None else None,
            log_options=shown_options(definition, task_id),
            container_arn=names.container_arn(
                facts.region, facts.account, facts.cluster, task_id,
                container_uuid(state, item.name),
            ),
            snapshotter="overlayfs",
            restart_count=item.restart_count if has_restarts else None,
        )  # fmt: skip


def _service_of(facts: TaskFacts) -> str | None:
    return facts.group.removeprefix("service:") if facts.group.startswith("service:") else None


def _labels(
    definition: TaskDefinition, container: str, facts: TaskFacts, task_id: names.TaskId
) -> dict[str, str]:
    """Contract 4.7."""
    prefix = "com.amazonaws.ecs."
    return {
        f"{prefix}cluster": names.cluster_arn(facts.region, facts.account, facts.cluster),
        f"{prefix}container-name": container,
        f"{prefix}task-arn": names.task_arn(facts.region, facts.account, facts.cluster, task_id),
        f"{prefix}task-definition-family": definition.family,
        f"{prefix}task-definition-version": str(definition.revision),
    }


def _health(item: ContainerState) -> HealthFacts | None:
    if item.health_policy is None:
        return None
    return HealthFacts(
        status=str(item.health_status),
        status_since_ns=item.health_since_ns,
        exit_code=item.health_exit_code,
        output=item.health_output,
    )


def _networks(slot: Slot, hostname: str, resolv_conf: str) -> Networks:
    lines = [line.split() for line in resolv_conf.splitlines()]
    return Networks(
        ipv4_addresses=(slot.address,),
        mac_address=slot.mac,
        ipv4_subnet_cidr_block=slot.subnet,
        domain_name_servers=tuple(words[1] for words in lines if words[:1] == ["nameserver"]),
        domain_name_search_list=tuple(
            name for words in lines if words[:1] == ["search"] for name in words[1:]
        ),
        private_dns_name=hostname,
        subnet_gateway_ipv4_address=f"{slot.gateway}/{slot.prefix_length}",
    )


_lock = threading.Lock()
_server: MetadataServer | None = None


def get_metadata_server() -> MetadataServer:
    """The server of this process, started on first use."""
    global _server
    from fargatelite.metadata.server import MetadataServer

    with _lock:
        if _server is None:
            _server = MetadataServer()
        return _server


def _forget_after_fork() -> None:
    # Its thread did not survive (see runtime.supervise).
    global _server
    _server = None


os.register_at_fork(after_in_child=_forget_after_fork)
