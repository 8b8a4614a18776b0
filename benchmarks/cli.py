"""`make bench-cli`: what a command costs. `fargatelite run` of a trivial task beside `podman run
--network none`, `ps`, and what `import fargatelite` takes and takes in. Run as root."""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

from benchmarks.images import TAG, make_busybox, running_registry
from benchmarks.launch import Contest, Launch, definition_of, podman_command
from benchmarks.newest import make_newest
from benchmarks.peers import memory_directory, running_peers, timed_ms
from benchmarks.report import BENCH
from benchmarks.rows import Row, bars, compare, state, versions, write_results
from fargatelite.settings import Settings

ROUNDS = 30
PLOT = Path(__file__).parent.parent / "docs" / "cli.svg"
FAST = ("fargatelite", "msgspec", "click")
"""What the fast path may import beside the standard library."""

IMPORTED = """
import sys
before = set(sys.modules)
import fargatelite
print(*{name.partition(".")[0] for name in set(sys.modules) - before
        if name.partition(".")[0] not in sys.stdlib_module_names})
"""


def run(rounds: int = ROUNDS) -> list[Row]:
    """The whole benchmark."""
    base = BENCH / "cli"
    base.mkdir(mode=0o700, parents=True, exist_ok=True)
    print("\ncommand line, milliseconds of the whole command")
    layout, _ = make_busybox(base)
    shutil.rmtree(base / "ours", ignore_errors=True)
    with memory_directory() as run_directory, contextlib.ExitStack() as stack:
        (run_directory / "new").mkdir()
        old = stack.enter_context(running_peers(base / "peers", run_directory))
        stack.callback(old.remove_podman)
        new = stack.enter_context(
            running_peers(base / "newest", run_directory / "new", make_newest())
        )
        stack.callback(new.remove_podman)
        settings = Settings(
            data_root=str(base / "ours" / "data"), run_root=str(run_directory / "ours")
        )
        with running_registry(base / "registry") as registry:
            reference = registry.push(layout, "busybox", TAG)
            Launch(settings, definition_of(reference))
            for peers in (old, new):
                peers.run([*peers.podman(), "pull", "--quiet", "--tls-verify=false", reference])
        definition = base / "definition.json"
        definition.write_text(json.dumps(definition_of(reference)))
        ours = [sys.executable, "-m", "fargatelite", "--data-root", settings.data_root,
                "--run-root", settings.run_root]  # fmt: skip
        took: dict[str, list[float]] = {"run": [], "ps": [], "import": [], "python": []}
        commands = {
            "run": [*ours, "run", "--pull", "missing", str(definition)],
            "ps": [*ours, "ps"],
            "import": [sys.executable, "-c", "import fargatelite"],
            "python": [sys.executable, "-c", "pass"],
        }
        contest = Contest()
        for name, command in commands.items():
            contest.add_work(
                name,
                lambda name=name, command=command: took[name].append(timed_ms(command)),  # type: ignore[misc]
            )
        contest.add("podman, no network", old, podman_command(old, reference, "none"))
        contest.add("podman, newest, no network", new, podman_command(new, reference, "none"))
        contest.add("podman ps", old, [*old.podman(), "ps"])
        contest.run(rounds)
    for values in took.values():
        del values[:-rounds]
    imported = subprocess.run(
        [sys.executable, "-c", IMPORTED], capture_output=True, text=True, check=True
    ).stdout.split()
    alone = [one - two for one, two in zip(took["import"], took["python"], strict=True)]
    rows = [
        compare("fargatelite run", "ms", took["run"], peer, contest.took[peer], "ratio <= 1")
        for peer in ("podman, no network", "podman, newest, no network")
        if peer in contest.took
    ]
    rows += [
        compare("fargatelite ps", "ms", took["ps"], "podman ps", contest.took["podman ps"],
                "value <= 120"),
        state("import fargatelite, beyond python's own start", "ms", alone, "value <= 60"),
        state("imported packages beside the standard library's, msgspec and click", "count",
              len(set(imported) - set(FAST)), "value <= 0", " ".join(sorted(imported))),
    ]  # fmt: skip
    write_results("cli", rows, versions(("podman",)))
    PLOT.write_text(
        bars("One trivial task by the command line", "ms",
             [("fargatelite run", rows[0].value, True),
              *((str(row.peer), row.peer_value or 0, False) for row in rows[:2] if row.peer)])
    )  # fmt: skip
    return rows


if __name__ == "__main__":
    run(int(sys.argv[1]) if len(sys.argv) > 1 else ROUNDS)
