"""What the v2 hierarchy does without controllers, on the real kernel: kill, device programs."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from pathlib import Path

import pytest

from fargatelite.cgroups.cgroup import Cgroup
from fargatelite.cgroups.devices import attach_device_program
from fargatelite.cgroups.v2 import V2Driver
from tests.fixtures.patience import patient

from .conftest import Inhabitants

pytestmark = [pytest.mark.root, pytest.mark.vm]


@pytest.fixture
def group(unified_root: Path) -> Iterator[tuple[V2Driver, Cgroup]]:
    """A group made by mkdir: create() asks for controllers, which this hierarchy may lack."""
    driver = V2Driver(str(unified_root))
    path = f"fargatelite/test-{os.getpid()}-{secrets.token_hex(4)}"
    directory = unified_root / path
    directory.mkdir(parents=True)
    yield driver, driver._describe(path)
    driver.kill(path)
    driver.remove(path)
    assert not directory.exists()


def test_cgroup_kill_ends_a_tree(group: tuple[V2Driver, Cgroup], inhabitants: Inhabitants) -> None:
    driver, cgroup = group
    process = inhabitants.start(
        cgroup,
        "import os, signal\nfor _ in range(3): os.fork()\n"
        f"while len(open({cgroup.join_files[0]!r}).read().split()) < 8: pass\n"
        "if os.getpid() == int(open('/proc/self/stat').read().split()[4]): pass\n"
        "os.write(1, b'ready\\n')\nsignal.pause()\n",
    )
    assert len(driver.pids(cgroup.path)) == 8
    driver.kill(cgroup.path)
    assert driver.pids(cgroup.path) == []
    assert process.wait(patient(5)) == -9
    assert driver.cpu_usage_ns(cgroup.path) > 0


def test_device_program_refuses_what_is_not_listed(
    group: tuple[V2Driver, Cgroup], inhabitants: Inhabitants
) -> None:
    _, cgroup = group
    assert cgroup.clone_into is not None
    attach_device_program(cgroup.clone_into)
    attach_device_program(cgroup.clone_into)  # the second leaves the first
    node = f"/dev/fargatelite-test-{secrets.token_hex(4)}"
    process = inhabitants.start(
        cgroup,
        f"""
import os, stat
print('ready', flush=True)
os.write(os.open('/dev/null', os.O_RDWR), b'x')
os.read(os.open('/dev/urandom', os.O_RDONLY), 1)
os.mknod({node!r}, stat.S_IFCHR | 0o600, os.makedev(1, 11))
try:
    os.open({node!r}, os.O_RDONLY)
except PermissionError:
    print('refused')
finally:
    os.unlink({node!r})
""",
    )
    assert process.stdout is not None
    assert process.stdout.read() == "refused\n"
    assert process.wait(patient(5)) == 0
