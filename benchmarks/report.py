"""Figures of one question: what was measured, and the row that shows it."""

from __future__ import annotations

import datetime
import math
import os
import platform
import statistics
import subprocess
from collections.abc import Sequence
from pathlib import Path

BENCH = Path(__file__).parent.parent / "build" / "bench"
"""All that benchmarks make lies here."""


def p50(values: Sequence[float]) -> float:
    """The median."""
    return statistics.median(values)


def p99(values: Sequence[float]) -> float:
    """The 99th percentile by nearest rank: with fewer than 100 values, the worst."""
    ordered = sorted(values)
    return ordered[math.ceil(0.99 * len(ordered)) - 1]


def describe_machine() -> dict[str, str]:
    """Kernel, CPU, memory, load before the run, commit: what figures mean nothing without."""
    here = Path(__file__).parent

    def git(*arguments: str) -> str:
        done = subprocess.run(["git", *arguments], cwd=here, capture_output=True, text=True)
        return done.stdout.strip() if done.returncode == 0 else "not a git checkout"

    models = [
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    ]
    changed = git(
        "status", "--porcelain", "--untracked-files=no", "--", "../fargatelite", "../csrc"
    )
    memory_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "kernel": f"Linux {platform.release()} {platform.machine()}",
        "cpu": f"{models[0] if models else platform.processor()} x {os.cpu_count()}",
        "memory": f"{memory_bytes / 2**30:.0f} GiB",
        "load": f"{os.getloadavg()[0]:.1f}",
        "commit": git("rev-parse", "--short=12", "HEAD") + (" with changes" if changed else ""),
        "at": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }
