"""Does a launch take longer for its defences? Launches with all of them alternate with launches
from whose plan one is taken away, or all, as the tests of attacks do it.

    python -m benchmarks.without [ROUNDS]     as root; results and the table of docs/security.md

A launch differs from the next by more than most defences cost, so what counts is the difference
within a round, whose order is drawn anew: its median, and the range in which the median lies with
95 % by the ranks of the differences. A row whose range has zero in it says nothing but "less than
that". One row takes nothing away: what it shows is the noise. CPU is that of this process, the shim
and the container, from the call until nothing is left; wall until the container is RUNNING.
"""

from __future__ import annotations

import math
import random
import re
import resource
import sys
import tempfile
from collections import defaultdict
from pathlib import Path

import pytest

from benchmarks.launch import Launch, definition_of
from benchmarks.report import describe_machine, p50
from benchmarks.rows import Row, compare, write_results
from fargatelite.runtime.images import open_store
from fargatelite.sandbox.plan import Plan
from fargatelite.settings import Settings
from tests.attacks.conftest import edit_plans
from tests.fixtures.images import build_oci_layout, busybox_files, tar_layer

ROUNDS = 60
WARM_UP = 5
DOCUMENT = Path(__file__).parent.parent / "docs" / "security.md"
WITH_ALL, NOTHING, ALL = "with all", "nothing (the noise)", "all of them"
DEFENCES: dict[str, frozenset[str]] = {
    "user namespace": frozenset({"user_namespace"}),
    "system-call filter": frozenset({"seccomp"}),
    "masked and read-only paths": frozenset({"mask", "readonly"}),
    "network namespace, entered": frozenset({"join_network"}),
    "capabilities": frozenset({"bounding", "capabilities"}),
    "session keyring": frozenset({"keyring"}),
}
"""Operations of the plan. Namespaces are made with or without what enters them."""
VARIANTS: dict[str, frozenset[str]] = {
    WITH_ALL: frozenset(), NOTHING: frozenset(), **DEFENCES,
    ALL: frozenset().union(*DEFENCES.values()),
}  # fmt: skip


def cpu_ms() -> float:
    """CPU time of this process and of those that it has reaped, and they."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return 1000 * sum(item.ru_utime + item.ru_stime for item in used)


def measure(settings: Settings, definition: dict[str, object], gone: frozenset[str]) -> list[float]:
    """[CPU, wall] milliseconds of one launch without these operations."""

    def edit(plan: Plan) -> Plan:
        return tuple(item for item in plan if item.name not in gone)

    with pytest.MonkeyPatch.context() as patch:
        edit_plans(patch, edit)
        before = cpu_ms()
        launch = Launch(settings, definition)
        return [cpu_ms() - before, launch.started_ms]


def interval(differences: list[float]) -> tuple[float, float]:
    """Where their median lies with 95 %: ranks of a binomial distribution, approximated."""
    ordered, n = sorted(differences), len(differences)
    reach = 0.98 * math.sqrt(n)
    low, high = math.floor(n / 2 - reach), math.ceil(n / 2 + reach)
    return ordered[max(0, low)], ordered[min(n - 1, high)]


def run(rounds: int) -> list[Row]:
    """Rows by CPU, then by wall."""
    taken: dict[str, list[list[float]]] = defaultdict(list)
    with tempfile.TemporaryDirectory() as directory:
        root = Path(directory)
        settings = Settings(data_root=str(root / "data"), run_root=str(root / "run"))
        layout = build_oci_layout(root / "layout", [tar_layer(busybox_files())])
        (image,) = open_store(settings).load(layout)
        definition = definition_of(image.reference)
        for number in range(WARM_UP + rounds):
            order = list(VARIANTS)
            random.shuffle(order)
            for name in order:
                found = measure(settings, definition, VARIANTS[name])
                if number >= WARM_UP:
                    taken[name].append(found)
    rows = []
    for index, kind in enumerate(("CPU", "wall")):
        ours = [item[index] for item in taken[WITH_ALL]]
        for name in list(VARIANTS)[1:]:
            theirs = [item[index] for item in taken[name]]
            low, high = interval([a - b for a, b in zip(ours, theirs, strict=True)])
            rows.append(compare(
                f"launch, {kind}: {name}", "ms", ours, "without", theirs,
                "ratio <= 1.3" if name == ALL else None,
                f"of the difference in a round: {low:+.2f} to {high:+.2f} ms",
            ))  # fmt: skip
    return rows


def table(rows: list[Row], rounds: int) -> str:
    """For the document."""
    host = describe_machine()
    said = [
        f"`python -m benchmarks.without {rounds}`, {host['kernel']}, {host['cpu']}, load "
        f"{host['load']}; {p50([row.value for row in rows if 'CPU' in row.name]):.1f} ms of CPU "
        f"and {p50([row.value for row in rows if 'wall' in row.name]):.1f} ms until RUNNING with "
        f'all defences, medians of {rounds}. "Less" is the difference of medians.',
        "",
        "| Taken away | CPU, ms less | in a round, 95 % | wall, ms less | in a round, 95 % |",
        "|---|--:|--:|--:|--:|",
    ]
    half = len(rows) // 2
    for cpu, wall in zip(rows[:half], rows[half:], strict=True):
        cells = [cpu.name.partition(": ")[2]]
        for row in (cpu, wall):
            low, high = re.findall(r"[+-][\d.]+", row.note or "")
            cells += [f"{row.value - (row.peer_value or 0):+.2f}", f"{low} to {high}"]
        said.append(f"| {' | '.join(cells)} |")
    return "\n".join(said)


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else ROUNDS
    rows = run(rounds)
    write_results("defences", rows, {})
    begin, end = "<!-- defences: begin -->\n", "\n<!-- defences: end -->"
    before, _, rest = DOCUMENT.read_text().partition(begin)
    DOCUMENT.write_text(before + begin + table(rows, rounds) + end + rest.partition(end)[2])


if __name__ == "__main__":
    main()
