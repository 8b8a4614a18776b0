"""The driver of a container, from its definition."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from fargatelite import names
from fargatelite.logdrivers.awslogs import AwsLogs, stream_name
from fargatelite.logdrivers.driver import LogDriver
from fargatelite.logdrivers.firelens import Firelens
from fargatelite.logdrivers.splunk import Source, Splunk
from fargatelite.names import TaskId
from fargatelite.taskdef.fields import ContainerDefinition

__all__ = ["build_driver", "shown_options"]


def build_driver(
    container: ContainerDefinition,
    number: int,
    task_id: TaskId,
    *,
    hostname: str,
    sockets: Path,
    secrets: Mapping[str, str],
) -> LogDriver | None:
    """None without a logConfiguration: Fargate discards such output (contract 2.2), here it is in
    the local log alone.

    `secrets` are values by `valueFrom`; `sockets` is what the router has at /var/run.
    """
    log = container.log_configuration
    if log is None:
        return None
    container_id = names.runtime_id(task_id, number)
    match log.log_driver:
        case "awslogs":
            return AwsLogs(log.options, container.name, task_id)
        case "splunk":
            secret = {item.name: secrets[item.value_from] for item in log.secret_options}
            source = Source(
                container_id=container_id,
                name=container.name,
                image=container.image,
                hostname=hostname,
                labels=container.docker_labels,
                environment={item.name: item.value for item in container.environment},
            )
            options = log.options | {k: v for k, v in secret.items() if k != "splunk-token"}
            token = secret.get("splunk-token") or log.options["splunk-token"]
            return Splunk(options, token, source)
        case "awsfirelens":
            return Firelens(log.options, container.name, task_id, container_id, sockets)
    raise AssertionError(f"log driver {log.log_driver} passed the rules")


def shown_options(
    container: ContainerDefinition, task_id: TaskId
) -> tuple[str | None, dict[str, str]]:
    """LogDriver and LogOptions of the metadata endpoint (contract 5.3): with the stream that was
    resolved, without a token."""
    log = container.log_configuration
    if log is None:
        return None, {}
    options = {name: value for name, value in log.options.items() if name != "splunk-token"}
    if log.log_driver == "awslogs":
        prefix = options.get("awslogs-stream-prefix", "")
        options["awslogs-stream"] = stream_name(prefix, container.name, task_id)
    return log.log_driver, options
