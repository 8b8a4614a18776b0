"""What a process does to itself, seen in a process of its own."""

from __future__ import annotations

import subprocess
import sys

CODE = """
import prctl
from fargatelite.host import forbid_core_dumps
before = prctl.get_dumpable()
forbid_core_dumps()
print(before, prctl.get_dumpable())
"""


def test_no_core_dumps() -> None:
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True)
    assert done.stdout == "True False\n"
