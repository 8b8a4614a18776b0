"""Loop devices where the module is not loaded and nobody has made its node."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from fargatelite.mounts import LOOP_CONTROL, attach_loop

pytestmark = [pytest.mark.root, pytest.mark.vm]


@pytest.mark.skipif(
    bool(Path("/sys/module/loop").exists() and not Path("/sys/module/loop/initstate").exists()),
    reason="loop is built into this kernel",
)
def test_the_module_is_loaded_when_it_is_missing(tmp_path: Path) -> None:
    if subprocess.run(["modprobe", "-r", "loop"], capture_output=True, check=False).returncode:
        pytest.skip("loop devices of this host are in use")
    Path(LOOP_CONTROL).unlink(missing_ok=True)
    backing = tmp_path / "backing"
    backing.write_bytes(b"x" * 4096)
    device, name = attach_loop(backing, read_only=True)
    try:
        assert os.read(device, 4096) == b"x" * 4096
        assert name.startswith("/dev/loop")
    finally:
        os.close(device)
