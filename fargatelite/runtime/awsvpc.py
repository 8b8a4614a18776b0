"""RunTask's `networkConfiguration`: what of it holds on this host.

Source: AwsVpcConfiguration in the ECS API reference.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import msgspec

from fargatelite.errors import ConfigurationInvalid
from fargatelite.security_groups import SecurityGroup, select_groups
from fargatelite.settings import Settings
from fargatelite.taskdef.fields import TaskDefinition

__all__ = ["TaskNetwork", "parse_network_configuration"]


class _AwsVpc(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, rename="camel"
):
    subnets: tuple[str, ...] = ()
    security_groups: tuple[str, ...] = ()
    assign_public_ip: Literal["ENABLED", "DISABLED"] = "DISABLED"


class _Configuration(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, rename="camel"
):
    awsvpc_configuration: _AwsVpc = _AwsVpc()


class TaskNetwork(msgspec.Struct, frozen=True, kw_only=True):
    """What a task's interface gets. The subnet is a name to be shown: all tasks are in one."""

    subnet_id: str | None = None
    groups: tuple[SecurityGroup, ...] = ()


def parse_network_configuration(
    settings: Settings, definition: TaskDefinition, given: Mapping[str, Any] | None
) -> TaskNetwork:
    """The network that RunTask was asked for.

    Raises: SecurityGroupNotFound; ConfigurationInvalid for what a task here cannot have.
    """
    if given is None:
        return TaskNetwork()
    try:
        asked = msgspec.convert(given, _Configuration).awsvpc_configuration
    except msgspec.ValidationError as error:
        raise ConfigurationInvalid(f"networkConfiguration: {error}") from error
    if definition.network_mode != "awsvpc":
        raise ConfigurationInvalid(
            "Network Configuration is not valid for the given networkMode of this task definition."
        )
    if asked.assign_public_ip == "ENABLED":
        raise ConfigurationInvalid(
            "networkConfiguration: assignPublicIp ENABLED: a task of this host has no public "
            "address; leave it out, and publish its ports"
        )
    return TaskNetwork(
        subnet_id=asked.subnets[0] if asked.subnets else None,
        groups=select_groups(settings.security_groups, asked.security_groups),
    )
