"""libnftables and the numbers of descriptors: glibc aborts a process whose select(2) has none."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from contextlib import ExitStack

import pytest

from fargatelite import Settings, run_task
from fargatelite.descriptors import FD_SETSIZE

TASKS = 3
TIMEOUT_S = 60

# Every number below FD_SETSIZE is taken, then a firewall entry is asked for.
FULL = f"""
import os
from fargatelite.network import nft
nft.open_context().cmd("list tables")
while (fd := os.open("/", os.O_PATH)) < {FD_SETSIZE + 8}:
    pass
try:
    nft.open_context().cmd("list tables")
except Exception as error:
    print(type(error).__name__, error)
"""

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(
        resource.getrlimit(resource.RLIMIT_NOFILE)[1] < 2 * FD_SETSIZE,
        reason="this host allows no more descriptors than select(2) takes",
    ),
]


def test_no_low_descriptor_is_an_error_and_no_abort() -> None:
    done = subprocess.run(
        ["prlimit", f"--nofile={2 * FD_SETSIZE}:", sys.executable, "-c", FULL],
        capture_output=True, text=True, timeout=TIMEOUT_S,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("NetworkFailed this process has used up its descriptors below")


def test_what_a_task_holds_lies_above(settings: Settings, busybox: str) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 2 * FD_SETSIZE), hard))
    document = {
        "family": "low", "networkMode": "awsvpc", "requiresCompatibilities": ["FARGATE"],
        "cpu": "256", "memory": "512",
        "containerDefinitions": [
            {"name": "c", "image": busybox, "command": ["sleep", "600"], "stopTimeout": 2}
        ],
    }  # fmt: skip

    def held() -> tuple[int, int]:
        numbers = [int(name) for name in os.listdir("/proc/self/fd")]
        low = sum(number < FD_SETSIZE for number in numbers)
        return low, len(numbers) - low

    try:
        with ExitStack() as stack:
            first = stack.enter_context(run_task(document, settings=settings))
            first.until("RUNNING", timeout=TIMEOUT_S)
            low, high = held()
            for _ in range(TASKS):
                task = stack.enter_context(run_task(document, settings=settings))
                task.until("RUNNING", timeout=TIMEOUT_S)
            more_low, more_high = held()
            assert more_high - high >= 10 * TASKS
            # Some that are open for a moment, on any thread.
            assert more_low - low < 2 * TASKS
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
