"""An image unpacked onto another file system than the one of its layers."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from fargatelite.sparse import copy_data

pytestmark = [pytest.mark.root, pytest.mark.vm]


def test_contents_are_copied_between_file_systems(tmp_path: Path) -> None:
    """Was EXDEV where copy_file_range(2) knows no way between two ext4."""
    other = tmp_path / "other"
    other.mkdir()
    image = tmp_path / "other.ext4"
    with open(image, "wb") as file:
        file.truncate(16 << 20)
    subprocess.run(["mkfs.ext4", "-q", "-F", image], check=True)
    subprocess.run(["mount", "-o", "loop", image, other], check=True)
    try:
        source = tmp_path / "source"
        source.write_bytes(b"a" * 4096 + b"b" * 5000)
        with open(source, "rb") as read, open(other / "target", "xb") as write:
            copy_data(read.fileno(), write.fileno(), 4096, 5000)
        assert (other / "target").read_bytes() == b"b" * 5000
    finally:
        subprocess.run(["umount", other], check=True)
