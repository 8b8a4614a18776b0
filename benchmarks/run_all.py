"""`make bench`: every benchmark that has goals beside peers, in one run; all write their
`benchmarks/results/NAME.json` and plots.

    python -m benchmarks.run_all [--only NAME]... [--rounds N]
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import traceback
from collections.abc import Callable

from benchmarks import cli, density, guard, inside, launch, pull
from benchmarks.report import describe_machine
from benchmarks.rows import Row
from benchmarks.tables import write_tables
from fargatelite.errors import FargateliteError

BENCHMARKS: dict[str, tuple[Callable[[int], list[Row]], int]] = {
    "launch": (launch.run, launch.ROUNDS),
    "cli": (cli.run, cli.ROUNDS),
    "pull": (pull.run, pull.ROUNDS),
    "inside": (inside.run, inside.ROUNDS),
    "density": (density.run, density.TASKS),
    "meter": (guard.run_meter, guard.ROUNDS),
}


def main() -> None:
    """Runs the chosen benchmarks; ends with 1 when one of them could not be run. A goal that is not
    met is a result."""
    parser = argparse.ArgumentParser(description="benchmarks beside crun, podman and others")
    parser.add_argument("--only", action="append", choices=list(BENCHMARKS))
    parser.add_argument("--rounds", type=int, help="rounds (density: tasks) of each")
    arguments = parser.parse_args()
    if os.getuid() != 0:
        sys.exit("the benchmarks need root: they make namespaces, cgroups and mounts")
    print("; ".join(f"{name} {value}" for name, value in describe_machine().items()))
    failed = False
    rows: list[Row] = []
    for name in arguments.only or BENCHMARKS:
        work, rounds = BENCHMARKS[name]
        try:
            rows += work(arguments.rounds or rounds)
        except (RuntimeError, OSError, subprocess.SubprocessError, FargateliteError):
            failed = True
            traceback.print_exc()  # the others' figures are worth having all the same
    write_tables()
    goals = [row for row in rows if row.goal is not None]
    print(f"\n{sum(bool(row.met) for row in goals)} of {len(goals)} goals met")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
