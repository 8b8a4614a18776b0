"""Slots are given to one task at a time, by any number of processes."""

from __future__ import annotations

import ipaddress
import subprocess
import sys
from pathlib import Path

import pytest

from fargatelite.errors import ConfigurationInvalid, StateCorrupt
from fargatelite.names import new_task_id
from fargatelite.network.pool import SlotPool, choose_subnet, host_networks, parse_fib_trie

FIB_TRIE = """Main:
  +-- 0.0.0.0/0 3 0 5
     |-- 0.0.0.0
        /0 universe UNICAST
     +-- 172.29.0.0/16 2 0 2
        |-- 172.29.0.0
           /20 link UNICAST
Local:
  +-- 127.0.0.0/8 2 0 2
     |-- 127.0.0.1
        /32 host LOCAL
"""


def test_routes_are_read() -> None:
    assert [str(network) for network in parse_fib_trie(FIB_TRIE)] == [
        "127.0.0.1/32",
        "172.29.0.0/20",
    ]


def test_hosts_own_addresses_are_among_them() -> None:
    assert ipaddress.IPv4Network("127.0.0.1/32") in host_networks()


@pytest.mark.parametrize(
    ("taken", "chosen"),
    [
        ([], "10.213.0.0/20"),
        (["10.213.3.0/24"], "10.213.16.0/20"),
        (["10.0.0.0/8"], "172.29.0.0/20"),
        (["10.0.0.0/8", "172.16.0.0/12"], "192.168.208.0/20"),
    ],
)
def test_subnet_collides_with_nothing(taken: list[str], chosen: str) -> None:
    assert choose_subnet(map(ipaddress.IPv4Network, taken)) == chosen


def test_host_that_routes_everything() -> None:
    with pytest.raises(ConfigurationInvalid, match="no free /20"):
        choose_subnet([ipaddress.IPv4Network("0.0.0.0/1"), ipaddress.IPv4Network("128.0.0.0/1")])


def test_allocate_and_release_may_be_repeated(tmp_path: Path) -> None:
    pool = SlotPool(tmp_path, tmp_path / "slots")
    first, second = new_task_id(), new_task_id()
    slot = pool.allocate(first)
    assert pool.allocate(first) == slot
    assert pool.allocate(second).index == 1
    assert SlotPool(tmp_path, tmp_path / "slots").list_own() == [slot, pool.allocate(second)]
    pool.release(first)
    pool.release(first)
    third = new_task_id()
    assert pool.allocate(third).index == 0
    assert (tmp_path / "slots/network.json").exists()
    for task in (second, third):
        pool.release(task)
    assert pool.list_own() == []
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == [".lock"]


def test_subnet_stays_while_a_slot_is_taken(tmp_path: Path) -> None:
    (tmp_path / "slots").mkdir()
    (tmp_path / "slots/network.json").write_text('{"version": 2, "subnet": "10.77.0.0/20"}')
    pool = SlotPool(tmp_path, tmp_path / "slots")
    assert pool.allocate(new_task_id()).subnet == "10.77.0.0/20"
    assert pool.allocate(new_task_id()).address == "10.77.0.3"


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        (
            "slots/network.json",
            '{"version": 1, "subnet": ""}',
            "has version 1, this fargatelite reads 2",
        ),
        ("slots/network.json", "{", "network.json is damaged"),
        ("slots/network.json", '{"version": 2, "subnet": "x"}', "holds subnet 'x'"),
        ("slots/x.json", "{}", "is not the name of a slot"),
        ("slots/3.json", "[]", r"3\.json is damaged"),
    ],
)
def test_damaged_files_are_named(tmp_path: Path, file: str, content: str, message: str) -> None:
    (tmp_path / "slots").mkdir()
    (tmp_path / file).write_text(content)
    pool = SlotPool(tmp_path, tmp_path / "slots")

    def use() -> None:
        pool.allocate(new_task_id())
        pool.list_own()

    with pytest.raises(StateCorrupt, match=message):
        use()


def test_a_slot_without_its_link_is_released(tmp_path: Path) -> None:
    """Its owner was killed between the two, or is older than the links."""
    pool = SlotPool(tmp_path, tmp_path / "slots")
    first, second = new_task_id(), new_task_id()
    pool.allocate(first)
    slot = pool.allocate(second)
    (tmp_path / "slots" / first).unlink()
    assert pool.list_lost()[0].task_id == first
    pool.release(first)
    assert pool.list_own() == [slot]
    assert pool.allocate(first).index == 0


def test_others_slots_are_not_read_for_a_new_one(tmp_path: Path) -> None:
    pool = SlotPool(tmp_path, tmp_path / "slots")
    pool.allocate(new_task_id())
    (tmp_path / "slots/0.json").write_text("[]")
    assert pool.allocate(new_task_id()).index == 1


def test_two_run_roots_share_the_hosts_slots(tmp_path: Path) -> None:
    first = SlotPool(tmp_path / "a", tmp_path / "slots")
    second = SlotPool(tmp_path / "b", tmp_path / "slots")
    one, two = first.allocate(new_task_id()), second.allocate(new_task_id())
    assert (one.index, two.index) == (0, 1)
    assert one.uid_base != two.uid_base
    assert first.list_own() == [one]
    assert first.find(two.task_id) == two
    (tmp_path / "b/tasks" / two.task_id).mkdir(parents=True)
    assert first.list_lost() == [one]


def test_processes_never_share_a_slot(tmp_path: Path) -> None:
    program = """
import sys
from pathlib import Path
from fargatelite.names import new_task_id
from fargatelite.network.pool import SlotPool
pool = SlotPool(Path(sys.argv[1]), Path(sys.argv[1]) / "slots")
kept = []
for _ in range(20):
    kept.append(new_task_id())
    pool.allocate(kept[-1])
    extra = new_task_id()
    pool.allocate(extra)
    pool.release(extra)
print(*[f"{pool.allocate(task).index}:{task}" for task in kept])
"""
    command = [sys.executable, "-c", program, str(tmp_path)]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(4)]
    told: list[str] = []
    for process in processes:
        output, _ = process.communicate(timeout=60)
        assert process.returncode == 0
        told += output.split()
    assert len({text.split(":")[0] for text in told}) == 80
    listed = {
        f"{slot.index}:{slot.task_id}" for slot in SlotPool(tmp_path, tmp_path / "slots").list_own()
    }
    assert listed == set(told)
