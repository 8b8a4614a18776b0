"""Security groups as EC2 has them: who may reach a task, and what a task may reach.

They are defined in the configuration file, in the words of EC2's IpPermissions::

    [security_groups.web]
    egress = [{ IpProtocol = "-1", IpRanges = [{ CidrIp = "0.0.0.0/0" }] }]   # the default

    [[security_groups.web.ingress]]
    IpProtocol = "tcp"
    FromPort = 80
    ToPort = 80
    UserIdGroupPairs = [{ GroupName = "lb" }]

`select_groups` turns what a task names into data that the firewall takes: ids instead of names,
canonical ranges, one spelling of a protocol. Pure.

Source: IpPermission, AuthorizeSecurityGroupIngress in the EC2 API reference.
"""

from __future__ import annotations

import hashlib
import ipaddress
import re
from collections.abc import Mapping, Sequence
from typing import Annotated

import msgspec

from fargatelite.errors import ConfigurationInvalid, SecurityGroupNotFound

__all__ = [
    "MAX_GROUPS",
    "GroupDefinition",
    "IpPermission",
    "IpRange",
    "Permission",
    "SecurityGroup",
    "UserIdGroupPair",
    "define_groups",
    "select_groups",
]

MAX_GROUPS = 5
"""Of one task: the bound of awsvpcConfiguration's securityGroups."""

ANYWHERE = "0.0.0.0/0"
_NAME = re.compile(r"(?!sg-)[A-Za-z0-9][A-Za-z0-9 ._\-:/()#,@\[\]+=&;{}!$*]{0,254}", re.ASCII)
_PROTOCOLS = {"6": "tcp", "17": "udp", "1": "icmp"}
_WITH_PORTS = ("tcp", "udp")


class _Wire(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, rename="pascal"):
    """EC2's spelling of members."""


class IpRange(_Wire, frozen=True, kw_only=True):
    """A range of IPv4 addresses."""

    cidr_ip: str
    description: str = ""


class UserIdGroupPair(_Wire, frozen=True, kw_only=True):
    """Every task of a group, by its id or name."""

    group_id: str | None = None
    group_name: str | None = None
    description: str = ""


class IpPermission(_Wire, frozen=True, kw_only=True):
    """What is let through. `-1` is every protocol; for icmp the ports are type and code, -1 any."""

    ip_protocol: str
    from_port: Annotated[int, msgspec.Meta(ge=-1, le=65535)] | None = None
    to_port: Annotated[int, msgspec.Meta(ge=-1, le=65535)] | None = None
    ip_ranges: tuple[IpRange, ...] = ()
    user_id_group_pairs: tuple[UserIdGroupPair, ...] = ()
    ipv6_ranges: Annotated[tuple[str, ...], msgspec.Meta(max_length=0)] = ()
    """Tasks have no IPv6; EC2's own answers have an empty list here."""
    prefix_list_ids: Annotated[tuple[str, ...], msgspec.Meta(max_length=0)] = ()


class GroupDefinition(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A group as the configuration file has it; what leaves is free unless `egress` says so.
    `name` is its table's."""

    name: str
    group_id: Annotated[str, msgspec.Meta(pattern=r"^sg-[0-9a-f]{8,17}$")] | None = None
    description: str = ""
    ingress: tuple[IpPermission, ...] = ()
    egress: tuple[IpPermission, ...] = (
        IpPermission(ip_protocol="-1", ip_ranges=(IpRange(cidr_ip=ANYWHERE),)),
    )


class Permission(msgspec.Struct, frozen=True, kw_only=True):
    """A rule, resolved. `protocol` is -1, tcp, udp, icmp or a number; ports are None for all."""

    protocol: str
    from_port: int | None = None
    to_port: int | None = None
    cidrs: tuple[str, ...] = ()
    group_ids: tuple[str, ...] = ()


class SecurityGroup(msgspec.Struct, frozen=True, kw_only=True):
    """A group as a task has it, from its start to its end."""

    group_id: str
    name: str
    ingress: tuple[Permission, ...] = ()
    egress: tuple[Permission, ...] = ()


def _id_of(definition: GroupDefinition) -> str:
    """Follows from the name, so that it is the same after every start and on every host."""
    digest = hashlib.sha256(definition.name.encode()).hexdigest()
    return definition.group_id or f"sg-{digest[:17]}"


def _protocol(text: str, place: str) -> str:
    protocol = _PROTOCOLS.get(text, text)
    if protocol in ("-1", "tcp", "udp", "icmp"):
        return protocol
    if text.isascii() and text.isdigit() and int(text) < 256 and int(text) != 58:
        return str(int(text))
    raise ConfigurationInvalid(
        f"configuration: {place}: IpProtocol {text!r} is none of -1, tcp, udp, icmp or a "
        "protocol's number (tasks have no IPv6)"
    )


def _ports(item: IpPermission, protocol: str, place: str) -> tuple[int | None, int | None]:
    low, high = item.from_port, item.to_port
    if protocol in _WITH_PORTS:
        if low is None or high is None or not 0 <= low <= high:
            raise ConfigurationInvalid(
                f"configuration: {place}: must specify both from and to ports with TCP/UDP, "
                "FromPort not above ToPort"
            )
        return low, high
    if protocol == "icmp":
        if any(number is not None and number > 255 for number in (low, high)):
            raise ConfigurationInvalid(
                f"configuration: {place}: FromPort and ToPort of icmp are its type and code, up to "
                "255; -1 means any"
            )
        return (None if low == -1 else low), (None if high == -1 else high)
    return None, None  # EC2: every port is let through, whatever is said


def _cidr(text: str, place: str) -> str:
    try:
        return str(ipaddress.IPv4Network(text, strict=False))
    except ValueError as error:
        raise ConfigurationInvalid(
            f"configuration: {place}: CIDR block {text} is malformed"
        ) from error


def _referred(pair: UserIdGroupPair, ids: Mapping[str, str], place: str) -> str:
    if (pair.group_id is None) == (pair.group_name is None):
        raise ConfigurationInvalid(
            f"configuration: {place}: a UserIdGroupPair has either GroupId or GroupName"
        )
    wanted = pair.group_id or ids.get(pair.group_name or "")
    if wanted not in ids.values():
        raise ConfigurationInvalid(
            f"configuration: {place}: no security group "
            f"{pair.group_id or pair.group_name!r} is defined"
        )
    return str(wanted)


def _permission(item: IpPermission, ids: Mapping[str, str], place: str) -> Permission:
    protocol = _protocol(item.ip_protocol, place)
    low, high = _ports(item, protocol, place)
    if not item.ip_ranges and not item.user_id_group_pairs:
        raise ConfigurationInvalid(
            f"configuration: {place}: names neither IpRanges nor UserIdGroupPairs"
        )
    return Permission(
        protocol=protocol,
        from_port=low,
        to_port=high,
        cidrs=tuple(_cidr(entry.cidr_ip, place) for entry in item.ip_ranges),
        group_ids=tuple(_referred(pair, ids, place) for pair in item.user_id_group_pairs),
    )


def define_groups(definitions: Sequence[GroupDefinition]) -> dict[str, SecurityGroup]:
    """The groups by name, references resolved.

    Raises: ConfigurationInvalid naming group and rule.
    """
    ids = {definition.name: _id_of(definition) for definition in definitions}
    for name in ids:
        if not _NAME.fullmatch(name):
            raise ConfigurationInvalid(
                f"configuration: security group name {name!r} is not one of EC2: at most 255 of "
                "A-Z a-z 0-9 and ._-:/()#,@[]+=&;{}!$*, not beginning with sg-"
            )
    if len(set(ids.values())) != len(definitions):
        raise ConfigurationInvalid(
            "configuration: two security groups have the same group_id or name"
        )

    def resolve(items: tuple[IpPermission, ...], place: str) -> tuple[Permission, ...]:
        return tuple(
            _permission(item, ids, f"{place}[{number}]") for number, item in enumerate(items)
        )

    return {
        item.name: SecurityGroup(
            group_id=ids[item.name],
            name=item.name,
            ingress=resolve(item.ingress, f"security_groups.{item.name}.ingress"),
            egress=resolve(item.egress, f"security_groups.{item.name}.egress"),
        )
        for item in definitions
    }


def select_groups(
    definitions: Sequence[GroupDefinition], wanted: Sequence[str]
) -> tuple[SecurityGroup, ...]:
    """The groups that a task names, by name or id, each once.

    Raises: SecurityGroupNotFound in EC2's words; ConfigurationInvalid for more than five.
    """
    if not wanted:
        return ()
    by_name = define_groups(definitions)
    known = {group.group_id: group for group in by_name.values()} | by_name
    for text in wanted:
        if text not in known:
            raise SecurityGroupNotFound(
                f"InvalidGroup.NotFound: The security group '{text}' does not exist; define it "
                "under [security_groups] in the configuration file"
            )
    chosen = {known[text].group_id: known[text] for text in wanted}
    if len(chosen) > MAX_GROUPS:
        raise ConfigurationInvalid(f"securityGroups can have at most {MAX_GROUPS} items.")
    return tuple(chosen.values())
