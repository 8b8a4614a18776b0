"""The driver of a container, from its definition."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from fargatelite import names
from fargatelite.logdrivers.awslogs import AwsLogs, Role
from fargatelite.logdrivers.driver import LogDriver
from fargatelite.logdrivers.firelens import Firelens
from fargatelite.logdrivers.splunk import Source, Splunk
from fargatelite.names import TaskId
from fargatelite.taskdef.fields import ContainerDefinition

__all__ = ["build_driver"]


def build_driver(
    container: ContainerDefinition,
    number: int,
    task_id: TaskId,
    *,
    hostname: str,
    sockets: Path,
    secrets: Mapping[str, str],
    execution_role_arn: str | None = None,
) -> LogDriver | None:
    """None without a logConfiguration: Fargate discards such output (contract 2.2), here it is in
    the local log alone.

    `secrets` are the values of its `secretOptions`; `sockets` is what the router has at /var/run;
    `execution_role_arn` None: AWS is called as the host itself.
    """
    log = container.log_configuration
    if log is None:
        return None
    container_id = names.runtime_id(task_id, number)
    match log.log_driver:
        case "awslogs":
            role = Role(execution_role_arn, task_id) if execution_role_arn else None
            return AwsLogs(log.options, container.name, task_id, role)
        case "splunk":
            source = Source(
                container_id=container_id,
                name=container.name,
                image=container.image,
                hostname=hostname,
                labels=container.docker_labels,
                environment={item.name: item.value for item in container.environment},
            )
            options = log.options | {k: v for k, v in secrets.items() if k != "splunk-token"}
            token = secrets.get("splunk-token") or log.options["splunk-token"]
            return Splunk(options, token, source)
        case "awsfirelens":
            return Firelens(log.options, container.name, task_id, container_id, sockets)
    raise AssertionError(f"log driver {log.log_driver} passed the rules")
