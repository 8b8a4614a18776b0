"""The log drivers of one task: opened before anything else of it exists, started with each
container, drained before the task is gone; and the wiring of a FireLens router.

A task without logConfiguration and firelensConfiguration has none of this, and imports nothing.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from msgspec.structs import replace

from fargatelite import names
from fargatelite.errors import StateCorrupt
from fargatelite.rundir import RunDirectory
from fargatelite.runtime.describe import TaskFacts
from fargatelite.runtime.events import LogsDroppedEvent
from fargatelite.sandbox.compile import ContainerSpec
from fargatelite.sandbox.mounts import VolumeMount
from fargatelite.settings import Settings
from fargatelite.shim import Shim
from fargatelite.taskdef.fields import ContainerDefinition, TaskDefinition
from fargatelite.taskdef.log_options import is_blocking

if TYPE_CHECKING:
    from fargatelite.logdrivers.driver import LogDriver
    from fargatelite.logdrivers.shipper import Dropped, Shipment

__all__ = ["TaskLogs", "prepare"]

logger = logging.getLogger(__name__)

DRAIN_S = 5.0  # after its end; Fargate's own logger has the same
FLUENT_HOST, FLUENT_PORT = "127.0.0.1", "24224"
_ROUTER_RUN = "/var/run"

SecretOptions = Callable[[ContainerDefinition], Mapping[str, str]]
OnDropped = Callable[[LogsDroppedEvent], None]


def prepare(
    settings: Settings,
    run: RunDirectory,
    definition: TaskDefinition,
    facts: TaskFacts,
    on_dropped: OnDropped,
) -> TaskLogs | None:
    """None for a task that has nothing to do with log drivers."""
    if any(c.log_configuration or c.firelens_configuration for c in definition.containers):
        return TaskLogs(settings, run, definition, facts, on_dropped)
    return None


class TaskLogs:
    """See the module. Its methods are called from the worker pool, but for `is_router`."""

    def __init__(
        self,
        settings: Settings,
        run: RunDirectory,
        definition: TaskDefinition,
        facts: TaskFacts,
        on_dropped: OnDropped,
    ) -> None:
        self._settings = settings
        self._run = run
        self._definition = definition
        self._facts = facts
        self._on_dropped = on_dropped
        self._sockets = settings.layers / run.task_id / ".firelens"  # no container has a dot
        self._secrets: dict[str, Mapping[str, str]] = {}
        self._drivers: dict[str, LogDriver] = {}
        self._shipments: dict[str, Shipment] = {}
        self._router = next(
            (c for c in definition.containers if c.firelens_configuration is not None), None
        )

    def open(self, secret_options: SecretOptions, *, is_new: bool = True) -> None:
        """Makes the drivers, and what their endpoints need before a container starts. Not `is_new`:
        another supervisor has done the latter, and an endpoint that is away now ends no task.

        `secret_options(container)`: the values of its `secretOptions` by option.
        Raises: LogDriverFailed, which is the task's stoppedReason.
        """
        from fargatelite.logdrivers.build import build_driver

        self._secrets = {c.name: secret_options(c) for c in self._definition.containers}
        if self._settings.log_drivers == "local":
            return
        for number, container in enumerate(self._definition.containers):
            driver = build_driver(
                container,
                number,
                self._run.task_id,
                hostname=os.uname().nodename,
                sockets=self._sockets,
                secrets=self._secrets[container.name],
                execution_role_arn=self._execution_role(),
            )
            if driver is not None:
                if is_new:
                    driver.open()
                self._drivers[container.name] = driver

    def _execution_role(self) -> str | None:
        role = self._definition.execution_role_arn
        if not role or not self._settings.assume_roles:
            return None
        from fargatelite.aws.session import role_arn_of

        return role_arn_of(self._settings, role)

    # ---- a container's start ----

    def wire(self, name: str, spec: ContainerSpec) -> ContainerSpec:
        """The specification with what logging adds: back-pressure, FLUENT_HOST and FLUENT_PORT for
        who logs through the router, configuration and socket directory for the router itself."""
        from fargatelite.logdrivers.firelens_config import CONFIG_PATHS
        from fargatelite.logdrivers.shipper import HOLD_BYTES

        container = self._container(name)
        log = container.log_configuration
        if name in self._drivers and is_blocking(log):
            spec = replace(spec, log_hold_bytes=HOLD_BYTES)
        if log is not None and log.log_driver == "awsfirelens":
            return _with_environment(spec, {"FLUENT_HOST": FLUENT_HOST, "FLUENT_PORT": FLUENT_PORT})
        firelens = container.firelens_configuration
        if firelens is None:
            return spec
        config = self._prepare_router(spec.id_base)
        directories = replace(
            spec.directories,
            files=spec.directories.files | {CONFIG_PATHS[firelens.type]: str(config)},
            volumes=(
                *spec.directories.volumes,
                VolumeMount(source=str(self._sockets), target=_ROUTER_RUN),
            ),
        )
        return _with_environment(replace(spec, directories=directories), self._router_secrets())

    def start(self, name: str, shim: Shim, number: int) -> None:
        """Follows the log of a container that is about to start, if a driver wants it."""
        if name in self._drivers:
            self._run.write_sent(name, 0)
            self._follow(name, shim, number, 0)

    def resume(self, name: str, shim: Shim | None, number: int, *, is_live: bool) -> None:
        """Goes on with the log of a container that another supervisor started, where that one was:
        what it may not have sent is sent. `shim` None: it is gone."""
        from fargatelite.logdrivers.shipper import END

        if name not in self._drivers:
            return
        try:
            place = self._run.read_sent(name)
        except StateCorrupt as error:
            logger.error("the log goes on from its end: %s", error)
            place = None
        if place is not None:
            self._follow(name, shim, number, place)
        elif is_live:  # started by a version that did not write it down
            self._follow(name, shim, number, END)

    def _follow(self, name: str, shim: Shim | None, number: int, begin_at: int) -> None:
        from fargatelite.logdrivers.local import log_path
        from fargatelite.logdrivers.shipper import Shipment, get_shipper

        driver = self._drivers[name]
        shipment = Shipment(
            f"task {self._run.task_id} container {name}",
            log_path(self._settings.records, self._run.task_id, name),
            driver,
            on_dropped=lambda dropped: self._tell_dropped(name, driver, dropped),
            tell_read=(lambda count: shim.tell_log_read(number, count))
            if shim is not None and driver.buffer.is_blocking
            else None,
            tell_sent=lambda place: self._run.write_sent(name, place),
            begin_at=begin_at,
        )
        self._shipments[name] = shipment
        get_shipper().add(shipment)

    def _tell_dropped(self, name: str, driver: LogDriver, dropped: Dropped) -> None:
        logger.warning(
            "task %s: %s of container %s lost %d records (%d bytes) and %d unread bytes: %s",
            self._run.task_id, driver.name, name,
            dropped.records, dropped.bytes, dropped.unread_bytes, dropped.reason,
        )  # fmt: skip
        self._on_dropped(
            LogsDroppedEvent(
                task_id=str(self._run.task_id),
                at_ns=time.time_ns(),
                container=name,
                log_driver=driver.name,
                records=dropped.records,
                bytes=dropped.bytes,
                unread_bytes=dropped.unread_bytes,
                reason=dropped.reason,
            )
        )

    # ---- the router ----

    def is_router(self, name: str) -> bool:
        """Whether this container receives the logs of others."""
        return self._router is not None and self._router.name == name

    def _prepare_router(self, owner: int) -> Path:
        """Its configuration, and the directory of its socket; may be repeated."""
        from fargatelite.logdrivers.firelens_config import Routed, generate_config, secret_variable

        assert self._router is not None
        firelens = self._router.firelens_configuration
        assert firelens is not None
        routed = []
        for index, container in enumerate(self._definition.containers):
            log = container.log_configuration
            if log is not None and log.log_driver == "awsfirelens":
                secrets = {i.name: secret_variable(i.name, index) for i in log.secret_options}
                routed.append(
                    Routed(container=container.name, options=log.options, secrets=secrets)
                )
        facts = self._facts
        text = generate_config(
            firelens.type,
            firelens.options,
            routed,
            cluster=facts.cluster,
            task_arn=names.task_arn(facts.region, facts.account, facts.cluster, self._run.task_id),
            task_definition=f"{self._definition.family}:{self._definition.revision}",
        )
        config = self._run.path / "files" / "fluent.conf"
        config.write_text(text)
        config.chmod(0o644)
        os.chown(config, owner, owner)
        self._sockets.mkdir(mode=0o700, parents=True, exist_ok=True)
        os.chown(self._sockets, owner, owner)
        self._sockets.chmod(0o777)  # whatever user the router runs as; only it has the directory
        return config

    def _router_secrets(self) -> dict[str, str]:
        from fargatelite.logdrivers.firelens_config import secret_variable

        return {
            secret_variable(option, index): value
            for index, container in enumerate(self._definition.containers)
            if container.log_configuration is not None
            and container.log_configuration.log_driver == "awsfirelens"
            for option, value in self._secrets[container.name].items()
        }

    def drain_into_router(self, then: Callable[[], None]) -> None:
        """What others still have for the router reaches it before it is asked to stop."""
        assert self._router is not None
        routed = [n for n, driver in self._drivers.items() if driver.name == "awsfirelens"]
        try:
            self._end(routed, min(DRAIN_S, self._router.stop_timeout_s / 2))
        finally:
            then()

    # ---- the end ----

    def drain(self) -> None:
        """All containers have ended: sends what is left, for `DRAIN_S` at most."""
        self._end(self._drivers, DRAIN_S)

    def _end(self, chosen: Iterable[str], timeout_s: float) -> None:
        from fargatelite.logdrivers.shipper import get_shipper

        ending = [self._shipments[name] for name in chosen if name in self._shipments]
        if ending:
            get_shipper().end(ending, timeout_s)

    def _container(self, name: str) -> ContainerDefinition:
        return next(c for c in self._definition.containers if c.name == name)


def _with_environment(spec: ContainerSpec, more: Mapping[str, str]) -> ContainerSpec:
    environment = {**spec.process.environment, **more}
    return replace(spec, process=replace(spec.process, environment=environment))
