"""The newest crun and podman that Debian has, in a directory: those of Debian 12 are years old.

Made once by mmdebstrap from this host's mirror and kept; run from there by a thread whose root
directory it is (peers.py).
"""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

from benchmarks.report import BENCH

SUITE = "forky"
PACKAGES = (
    "crun,podman,netavark,aardvark-dns,conmon,golang-github-containers-common,nftables,iproute2,"
    "ca-certificates,coreutils,bash"
)


def make_newest() -> Path:
    """The directory; 25 s and 200 MB at the first call. Raises: CalledProcessError."""
    root = BENCH / "newest"
    if (root / "usr/bin/podman").exists():
        return root
    BENCH.mkdir(parents=True, exist_ok=True)
    sources = BENCH / "newest.list"
    sources.write_text(f"deb {_mirror()} {SUITE} main\n")
    scratch = BENCH / "newest.new"
    shutil.rmtree(scratch, ignore_errors=True)
    subprocess.run(
        # A mirror's copy of a suite in the making may be older than it says it is good for.
        ["mmdebstrap", "--quiet", "--mode=root", "--variant=extract",
         '--aptopt=Acquire::Check-Valid-Until "false"', f"--include={PACKAGES}", SUITE, scratch,
         sources],
        check=True, timeout=900,
    )  # fmt: skip
    shutil.rmtree(root, ignore_errors=True)
    scratch.rename(root)
    return root


def _mirror() -> str:
    places = [Path("/etc/apt/sources.list"), *Path("/etc/apt/sources.list.d").glob("debian*")]
    text = "\n".join(path.read_text() for path in places if path.exists())
    found = re.findall(r"^(?:URIs:|deb(?: \[[^]]*\])?)\s+(https?://\S+)", text, re.MULTILINE)
    plain = [address for address in found if "security" not in address]
    return plain[0] if plain else "http://deb.debian.org/debian"
