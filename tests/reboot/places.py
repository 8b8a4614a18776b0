"""What both halves of a restart share: roots at fixed places, one of them on a tmpfs."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

DATA_ROOT = Path("/var/lib/fargatelite-reboot")
RUN_ROOT = Path("/run/fargatelite-reboot")
IDS = DATA_ROOT.with_name("fargatelite-reboot.json")

MARKS = [
    pytest.mark.root,
    pytest.mark.registry,
    pytest.mark.vm,
    pytest.mark.skipif(
        os.environ.get("FARGATELITE_TEST_GUEST") != "reboot", reason="restarts the whole machine"
    ),
]
