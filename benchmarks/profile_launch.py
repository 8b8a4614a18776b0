"""`make profile-launch`: where one launch's time goes, in microseconds since the call.

Phases of the supervisor (Python), operations of the plan (the shim's child), and what lies between
them; a phase that runs beside another is set in. Medians of some launches. Run as root.
"""

from __future__ import annotations

import shutil
import statistics
import sys
from collections import defaultdict

import msgspec

import fargatelite
from benchmarks.images import TAG, make_busybox, running_registry
from benchmarks.launch import definition_of
from benchmarks.peers import memory_directory
from benchmarks.report import BENCH
from fargatelite.settings import Settings

LAUNCHES = 20
REMOVAL = "remove "


def show(settings: Settings, reference: str, title: str) -> None:
    """The timeline of a launch."""
    phases: dict[str, list[tuple[int, int]]] = defaultdict(list)
    operations: dict[tuple[int, str], list[int]] = defaultdict(list)
    for number in range(LAUNCHES + 3):
        if settings.prepared_sandboxes:
            fargatelite.prepare_sandboxes(settings, timeout_s=30)
        task = fargatelite.run_task(
            definition_of(reference), pull="missing", settings=settings, trace=True
        )
        task.wait(60)
        if number < 3:
            continue
        for phase in task.phases:
            phases[phase.name].append((phase.started_us, phase.duration_us))
        for index, (operation, took_us) in enumerate(task.op_traces["main"]):
            operations[index, operation.split(" ", 1)[0]].append(took_us)
    print(f"\n{title}: medians of {LAUNCHES} launches, us\n      AT   TOOK")
    rows = sorted(
        (
            (
                int(statistics.median(at for at, _ in found)),
                int(statistics.median(took for _, took in found)),
                name,
            )
            for name, found in phases.items()
            if not name.startswith(REMOVAL)
        )
    )
    end = 0
    for at, took, name in rows:
        if at > end + 50:
            print(f"{end:8} {at - end:6}    (Python between, threads' wake-ups)")
        print(f"{at:8} {took:6}  {'  beside: ' if at + took <= end else ''}{name}")
        end = max(end, at + took)
    total = 0
    print("         the child's operations, from clone3 to execve")
    for (index, operation), values in operations.items():
        middle = int(statistics.median(values))
        total += middle
        if middle >= 20:
            print(f"         {middle:6}  {index:3} {operation}")
    print(f"         {total:6}  all {len(operations)} of them")


def main() -> None:
    """Two timelines: as by default, and with a prepared sandbox."""
    base = BENCH / "profile"
    base.mkdir(mode=0o700, parents=True, exist_ok=True)
    shutil.rmtree(base / "data", ignore_errors=True)
    layout, _ = make_busybox(base)
    with memory_directory() as run, running_registry(base / "registry") as registry:
        settings = Settings(data_root=str(base / "data"), run_root=str(run / "ours"))
        reference = registry.push(layout, "busybox", TAG)
        show(settings, reference, "launch")
        ready = msgspec.structs.replace(settings, prepared_sandboxes=1)
        show(ready, reference, "launch with a prepared sandbox")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
