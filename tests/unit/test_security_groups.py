"""Security groups of the configuration: what is taken, what is refused in EC2's words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from fargatelite.errors import ConfigurationInvalid, SecurityGroupNotFound
from fargatelite.names import new_task_id
from fargatelite.network.rules import elements_of, group_chains
from fargatelite.network.slot import slot_for
from fargatelite.security_groups import (
    GroupDefinition,
    Permission,
    define_groups,
    select_groups,
)
from fargatelite.settings import Settings, load_settings

ANYWHERE = [{"CidrIp": "0.0.0.0/0"}]
TCP = {"IpProtocol": "tcp", "FromPort": 80, "ToPort": 80, "IpRanges": ANYWHERE}


def definitions(**groups: Any) -> tuple[GroupDefinition, ...]:
    named = [group | {"name": name} for name, group in groups.items()]
    return msgspec.convert(named, tuple[GroupDefinition, ...])


def test_a_file_with_groups(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_text(
        """
        [security_groups.lb]
        group_id = "sg-0123456789abcdef0"
        [security_groups.web]
        egress = []
        [[security_groups.web.ingress]]
        IpProtocol = "6"
        FromPort = 80
        ToPort = 81
        IpRanges = [{ CidrIp = "10.0.0.5/8", Description = "all" }]
        Ipv6Ranges = []
        PrefixListIds = []
        UserIdGroupPairs = [{ GroupName = "lb" }]
        """
    )
    settings = load_settings(environment={"FARGATELITE_CONFIG": str(path)})
    (web,) = select_groups(settings.security_groups, ["web"])
    assert web.ingress == (
        Permission(
            protocol="tcp", from_port=80, to_port=81,
            cidrs=("10.0.0.0/8",), group_ids=("sg-0123456789abcdef0",),
        ),
    )  # fmt: skip
    assert web.egress == ()
    (balancer,) = select_groups(settings.security_groups, ["sg-0123456789abcdef0", "lb"])
    assert balancer.name == "lb"
    assert balancer.egress == (Permission(protocol="-1", cidrs=("0.0.0.0/0",)),)


@pytest.mark.parametrize(
    ("rule", "said"),
    [
        (TCP | {"IpProtocol": "gre"}, "IpProtocol 'gre'"),
        (TCP | {"IpProtocol": "58"}, "no IPv6"),
        (TCP | {"ToPort": 79}, "FromPort not above ToPort"),
        ({"IpProtocol": "udp", "IpRanges": ANYWHERE}, "must specify both from and to ports"),
        (TCP | {"IpRanges": [{"CidrIp": "10.0.0.0/33"}]}, "CIDR block 10.0.0.0/33 is malformed"),
        (TCP | {"IpRanges": [{"CidrIp": "fd00::/8"}]}, "CIDR block fd00::/8 is malformed"),
        (TCP | {"IpRanges": []}, "neither IpRanges nor UserIdGroupPairs"),
        (TCP | {"UserIdGroupPairs": [{"GroupName": "none"}]}, "'none' is defined"),
        (TCP | {"UserIdGroupPairs": [{}]}, "either GroupId or GroupName"),
        ({"IpProtocol": "icmp", "FromPort": 256, "IpRanges": ANYWHERE}, "type and code"),
    ],
)
def test_a_rule_that_cannot_hold(rule: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigurationInvalid, match=r"security_groups\.web\.ingress\[1\]") as caught:
        define_groups(definitions(web={"ingress": [TCP, rule]}))
    assert said in str(caught.value)


@pytest.mark.parametrize("name", ["", "sg-web", 'a"b', "a\nb", "x" * 256, "é"])
def test_names_that_ec2_refuses(name: str) -> None:
    with pytest.raises(ConfigurationInvalid, match="security group name"):
        define_groups([GroupDefinition(name=name)])


def test_a_rule_of_ipv6_is_no_rule_here(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_text(
        'security_groups.web.ingress = [{ IpProtocol = "-1", Ipv6Ranges = ["::/0"] }]\n'
    )
    with pytest.raises(ConfigurationInvalid, match="Ipv6Ranges"):
        load_settings(environment={"FARGATELITE_CONFIG": str(path)})


def test_unknown_groups_are_refused_as_ec2_does() -> None:
    with pytest.raises(SecurityGroupNotFound) as caught:
        select_groups((), ["sg-00000000"])
    assert str(caught.value).startswith(
        "InvalidGroup.NotFound: The security group 'sg-00000000' does not exist"
    )
    many = definitions(**{f"g{number}": {} for number in range(6)})
    with pytest.raises(ConfigurationInvalid, match="at most 5 items"):
        select_groups(many, [group.name for group in many])
    with pytest.raises(ConfigurationInvalid, match="the same group_id or name"):
        define_groups(definitions(a={"group_id": "sg-00000000"}, b={"group_id": "sg-00000000"}))


def test_same_rules_are_the_same_chains_and_others_are_not() -> None:
    slot = slot_for(0, new_task_id(), "10.213.0.0/20")
    made = define_groups(definitions(a={"ingress": [TCP]}, b={"ingress": [TCP]}, c={}))

    def chains(name: str) -> dict[str, str | None]:
        return {item.name: item.value for item in elements_of(slot, (), [made[name]])}

    assert chains("a")["ingress1"] == chains("b")["ingress1"]
    assert "ingress1" not in chains("c")
    assert chains("a")["egress1"] == chains("c")["egress1"]


def test_overlapping_ranges_become_one_set() -> None:
    ranges = [{"CidrIp": cidr} for cidr in ("10.0.0.0/8", "10.1.0.0/16", "192.0.2.1/32")]
    group = define_groups(definitions(a={"egress": [TCP | {"IpRanges": ranges}]}))["a"]
    assert group_chains(group) == {
        "egress": ["tcp dport 80-80 ip daddr { 10.0.0.0/8, 192.0.2.1/32 } accept"],
        "named": ["tcp dport 80-80 ip daddr { 192.0.2.1/32 } accept"],
    }


@pytest.mark.parametrize(
    "text", ["security_groups = []", "security_groups.web = 1", "security_groups.web.name = 'x'"]
)
def test_tables_that_are_no_groups(tmp_path: Path, text: str) -> None:
    path = tmp_path / "config.toml"
    path.write_text(text)
    with pytest.raises(ConfigurationInvalid, match="security_groups"):
        load_settings(environment={"FARGATELITE_CONFIG": str(path)})


def test_no_groups_by_default() -> None:
    assert Settings().security_groups == ()
