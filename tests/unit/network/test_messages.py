"""Only a part of pyroute2 is imported, and all of it when somebody wants it."""

from __future__ import annotations

import subprocess
import sys

CODE = """
import sys
from fargatelite.network.messages import ifinfmsg
message = ifinfmsg()
message["ifi_type"] = 1
message.encode()
few = sum(name.startswith("pyroute2") for name in sys.modules)
import pyroute2
assert callable(pyroute2.IPRoute)
assert pyroute2.netlink.rtnl.ifinfmsg.ifinfmsg is ifinfmsg
from pyroute2 import NetNS
many = sum(name.startswith("pyroute2") for name in sys.modules)
print(few, many, type(pyroute2).__name__)
"""
FIRST = """
import pyroute2
from fargatelite.network.messages import rtmsg
assert pyroute2.IPRoute
print("whole", type(pyroute2).__name__)
"""


def run(code: str) -> list[str]:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_the_rest_of_the_package_is_imported_when_it_is_wanted() -> None:
    few, many, kind = run(CODE)
    assert int(few) < 40
    assert int(many) > 100
    assert kind == "module"


def test_a_package_that_is_there_is_used() -> None:
    assert run(FIRST) == ["whole", "module"]
