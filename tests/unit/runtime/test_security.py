"""What is weaker on a host, from what its kernel says."""

from __future__ import annotations

import typing
from pathlib import Path

import msgspec
import pytest

from fargatelite.runtime.security import HostFacts, judge_defences
from fargatelite.settings import BeyondFargate, Settings, Weakness

GOOD = HostFacts(
    command_line=("quiet",), has_swap=False, has_swap_limit=True, core_pattern="core",
    vulnerable=(), exposed=(), can_count_connections=True,
)  # fmt: skip
STRICT = Settings()


def test_a_filter_of_ones_own_is_weaker_for_its_task_alone() -> None:
    def state(settings: Settings, **more: bool) -> str:
        found = {item.name: item.state for item in judge_defences(settings, GOOD, **more)}
        return found["built-in filter"]

    assert state(STRICT) == "in force"
    assert state(STRICT, has_own_filter=True) == "weaker"
    accepting = msgspec.structs.replace(STRICT, accepted_weaknesses=("built-in filter",))
    assert state(accepting, has_own_filter=True) == "accepted"


def weaker(settings: Settings, facts: HostFacts) -> dict[str, str]:
    return {
        item.name: item.detail
        for item in judge_defences(settings, facts)
        if item.state != "in force"
    }


def test_a_good_host_lacks_nothing_and_names_are_the_settings() -> None:
    assert weaker(STRICT, GOOD) == {}
    names = tuple(item.name for item in judge_defences(STRICT, GOOD))
    assert names == typing.get_args(Weakness)


@pytest.mark.parametrize(
    ("name", "settings", "facts", "said"),
    [
        ("storage limit", {"storage_backend": "unlimited"}, {}, "fill the disk"),
        ("swap limit", {}, {"has_swap": True, "has_swap_limit": False}, "spill"),
        ("kernel memory", {}, {"command_line": ("cgroup.memory=nosocket,nokmem",)}, "nokmem"),
        ("cpu cap", {"beyond_fargate": BeyondFargate(cpu_burst=True)}, {}, "cpu_burst"),
        ("privileged containers", {"allow_privileged": True}, {}, "no system-call filter"),
        ("core dumps", {}, {"core_pattern": "|/usr/share/apport/apport %p"}, "apport"),
        ("state directories", {}, {"exposed": ("/srv/fl",)}, "others can enter /srv/fl"),
        ("connection tracking", {}, {"can_count_connections": False}, "fill the host's table"),
        ("cpu side channels", {}, {"vulnerable": ("mds: Vulnerable; no microcode",)}, "mds"),
    ],
)
def test_each_loss_is_named(
    name: str, settings: dict[str, object], facts: dict[str, object], said: str
) -> None:
    chosen = msgspec.structs.replace(STRICT, **settings)
    seen = msgspec.structs.replace(GOOD, **facts)
    found = weaker(chosen, seen)
    assert list(found) == [name]
    assert said in found[name]
    accepting = msgspec.structs.replace(chosen, accepted_weaknesses=(name,))
    states = {item.name: item.state for item in judge_defences(accepting, seen)}
    assert states.pop(name) == "accepted"
    assert set(states.values()) == {"in force"}


def test_facts_are_read_from_the_kernels_files(tmp_path: Path) -> None:
    files = {
        "proc/cmdline": "quiet cgroup.memory=nokmem\n",
        "proc/swaps": "Filename Type\n/dev/vda2 partition\n",
        "proc/sys/kernel/core_pattern": "|/bin/handler %p\n",
        "sys/devices/system/cpu/vulnerabilities/mds": "Vulnerable: no microcode\n",
        "sys/devices/system/cpu/vulnerabilities/l1tf": "Mitigation: PTE Inversion\n",
    }
    for name, text in files.items():
        path = tmp_path / "root" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    open_to_all = tmp_path / "data"
    open_to_all.mkdir(mode=0o755)
    settings = Settings(data_root=str(open_to_all), run_root=str(tmp_path / "absent"))
    facts = HostFacts.read(settings, tmp_path / "root")
    assert facts.has_swap
    assert facts.core_pattern == "|/bin/handler %p"
    assert facts.vulnerable == ("mds: Vulnerable: no microcode",)
    assert facts.exposed == (str(open_to_all),)
    assert set(weaker(settings, facts)) >= {
        "kernel memory", "core dumps", "state directories", "cpu side channels",
    }  # fmt: skip
    open_to_all.chmod(0o700)
    assert HostFacts.read(settings, tmp_path / "root").exposed == ()
