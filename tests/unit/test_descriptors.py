"""Descriptors above what select(2) takes, and where there are none."""

from __future__ import annotations

import os
import resource
import socket
import subprocess
import sys

import pytest

from fargatelite.descriptors import FD_SETSIZE, can_open_low, move_high

# A process that may have 1,024, as a shell gives; its descriptor came through a socket.
SMALL = f"""
import array, os, resource, socket
from fargatelite.descriptors import move_high
resource.setrlimit(resource.RLIMIT_NOFILE, ({FD_SETSIZE}, {FD_SETSIZE}))
ours, theirs = socket.socketpair()
socket.send_fds(theirs, [b"x"], [0])
_, ancillary, _, _ = ours.recvmsg(1, socket.CMSG_SPACE(4))
got = array.array("i", ancillary[0][2])[0]
assert os.get_inheritable(got), "what recvmsg gives is not closed on exec"
kept = move_high(got)
print(kept == got, os.get_inheritable(kept))
"""


@pytest.mark.skipif(
    resource.getrlimit(resource.RLIMIT_NOFILE)[0] <= FD_SETSIZE,
    reason="this process may have no descriptor above 1,023",
)
def test_it_is_the_same_file_elsewhere() -> None:
    ours, theirs = socket.socketpair()
    moved = socket.socket(fileno=move_high(ours.detach()))
    with moved, theirs:
        assert moved.fileno() >= FD_SETSIZE
        assert not os.get_inheritable(moved.fileno())
        theirs.send(b"here")
        assert moved.recv(4) == b"here"


def test_without_room_above_it_stays_and_is_closed_on_exec() -> None:
    done = subprocess.run(
        [sys.executable, "-c", SMALL], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.stdout, done.stderr) == ("True False\n", "")


def test_low_numbers_are_there() -> None:
    assert can_open_low()
