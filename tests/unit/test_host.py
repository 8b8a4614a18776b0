"""What this host can run, from what binfmt_misc shows."""

from __future__ import annotations

import platform
from pathlib import Path

import pytest

from fargatelite.host import can_run_programs_of, matches_binfmt

# As qemu-user-static registers it (binfmt.d/qemu-aarch64.conf), shown by the kernel.
AARCH64 = """enabled
interpreter /usr/libexec/qemu-binfmt/aarch64-binfmt-P
flags: POCF
offset 0
magic 7f454c460201010000000000000000000200b700
mask ffffffffffffff00fffffffffffffffffeffffff
"""
ARM = AARCH64.replace("0200b700", "02002800").replace("4602", "4601")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (AARCH64, True),
        (AARCH64.replace("enabled", "disabled"), False),
        (AARCH64.replace("POCF", "POC"), False),  # the container has no interpreter of its own
        (AARCH64.replace("offset 0", "offset 4"), False),
        (ARM, False),
        ("enabled\ninterpreter /usr/bin/jar\nflags: F\nextension .jar\n", False),
        ("", False),
    ],
    ids=["aarch64", "disabled", "not-fixed", "offset", "32-bit-arm", "extension", "empty"],
)
def test_an_entry_of_binfmt_misc(text: str, expected: bool) -> None:
    assert matches_binfmt(text, "arm64") is expected


def test_its_own_kind_needs_no_entry(tmp_path: Path) -> None:
    own = {"x86_64": "amd64", "aarch64": "arm64"}[platform.machine()]
    other = "arm64" if own == "amd64" else "amd64"
    assert can_run_programs_of(own, tmp_path / "missing")
    assert not can_run_programs_of(other, tmp_path / "missing")
    (tmp_path / "register").write_text("")
    (tmp_path / "status").write_text("enabled\n")
    assert not can_run_programs_of(other, tmp_path)


def test_an_entry_makes_it_runnable(tmp_path: Path) -> None:
    if platform.machine() == "x86_64":
        (tmp_path / "qemu-aarch64").write_text(AARCH64)
        assert can_run_programs_of("arm64", tmp_path)
    else:
        (tmp_path / "qemu-x86_64").write_text(AARCH64.replace("b700", "3e00"))
        assert can_run_programs_of("amd64", tmp_path)
