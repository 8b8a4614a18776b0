"""Figures of one question: what was measured, and the row that shows it."""

from __future__ import annotations

import datetime
import json
import math
import os
import platform
import statistics
import subprocess
from collections.abc import Mapping, Sequence
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


class Table:
    """Rows of one benchmark, printed as they come and kept for the JSON file."""

    COLUMNS = ("question", "n", "ours p50", "p99", "peer p50", "p99", "ours/peer", "bare limit")

    def __init__(self, name: str, unit: str) -> None:
        self.name = name
        self.unit = unit
        self.rows: list[dict[str, object]] = []

    def start(self, note: str) -> None:
        """Heading."""
        print(f"\n{self.name} ({self.unit}): {note}", flush=True)
        self._print(self.COLUMNS)

    def add(
        self,
        question: str,
        ours: Sequence[float],
        peer: Sequence[float],
        bare: Sequence[float] | None = None,
    ) -> None:
        """A question's row. The ratio is that of the medians, with its range over the quarters of
        the run, so that drift of the machine shows."""
        quarter = max(1, len(ours) // 4)
        ratios = [
            p50(ours[start : start + quarter]) / p50(peer[start : start + quarter])
            for start in range(0, len(ours) - quarter + 1, quarter)
        ]
        self.rows.append(
            {"question": question, "ours": list(ours), "peer": list(peer), "bare": list(bare or ())}
        )
        self._print(
            (
                question,
                str(len(ours)),
                f"{p50(ours):.2f}",
                f"{p99(ours):.2f}",
                f"{p50(peer):.2f}",
                f"{p99(peer):.2f}",
                f"{p50(ours) / p50(peer):.2f} ({min(ratios):.2f}-{max(ratios):.2f})",
                f"{p50(bare):.2f}" if bare else "-",
            )
        )

    def missing(self, question: str, reason: str) -> None:
        """A question that this machine cannot answer, and why."""
        self.rows.append({"question": question, "missing": reason})
        print(f"  {question}: not measured: {reason}", flush=True)

    def _print(self, cells: Sequence[str]) -> None:
        widths = (46, 4, 9, 9, 9, 9, 17, 10)
        aligned = (
            f"{cell:<{width}}" if index == 0 else f"{cell:>{width}}"
            for index, (cell, width) in enumerate(zip(cells, widths, strict=True))
        )
        print("  " + " ".join(aligned), flush=True)


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


def write_results(machine: Mapping[str, str], tables: Sequence[Table]) -> Path:
    """All single values as JSON, for whoever wants more than medians."""
    path = BENCH / "results" / f"{machine['at'].replace(':', '')}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        json.dumps(
            {
                "machine": dict(machine),
                "tables": [
                    {"name": table.name, "unit": table.unit, "rows": table.rows} for table in tables
                ],
            },
            indent=1,
        )
    )
    return path
