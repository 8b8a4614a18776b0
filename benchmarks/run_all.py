"""`make bench`: launch, pull and meter beside their peers, in one run.

    run_all.py [--only launch|pull|meter] [--rounds N]

Ratios below 1 are ours being faster. Single values lie in build/bench/results as JSON; all else
that is made lies in build/bench, and all that is started has ended when this ends.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import traceback
from collections.abc import Callable

from benchmarks import launch, meter_tick, pull
from benchmarks.report import Table, describe_machine, write_results
from fargatelite.errors import FargateliteError

BENCHMARKS: dict[str, tuple[Callable[[int], Table], int]] = {
    "launch": (launch.run, launch.ROUNDS),
    "pull": (pull.run, pull.ROUNDS),
    "meter": (meter_tick.run, meter_tick.ROUNDS),
}


def main() -> None:
    """Runs the chosen benchmarks and prints their tables."""
    parser = argparse.ArgumentParser(description="benchmarks beside crun, podman and a C loop")
    parser.add_argument("--only", action="append", choices=list(BENCHMARKS))
    parser.add_argument("--rounds", type=int, help="rounds of each, by default as many as it has")
    arguments = parser.parse_args()
    if os.getuid() != 0:
        sys.exit("the benchmarks need root: they make namespaces, cgroups and mounts")
    machine = describe_machine()
    print("; ".join(f"{name} {value}" for name, value in machine.items()))
    tables = []
    failed = False
    for name in arguments.only or BENCHMARKS:
        work, rounds = BENCHMARKS[name]
        try:
            tables.append(work(arguments.rounds or rounds))
        except (RuntimeError, OSError, subprocess.SubprocessError, FargateliteError):
            failed = True
            traceback.print_exc()  # the others' figures are worth having all the same
    print(f"\nall values: {os.path.relpath(write_results(machine, tables))}")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
