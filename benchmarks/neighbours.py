"""A victim beside hostile tasks: how long its requests take, alone and beside each.

python -m benchmarks.neighbours [REQUESTS]     as root; benchmarks/results/neighbours.json and the
table in docs/security.md

The victim (victim.c) is a task of 0.5 CPU, each neighbour one of 1 CPU and 2 GiB that does nothing
but harm. The victim runs alone before each neighbour, so that drift of the machine shows.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.report import p50, p99
from fargatelite import Settings, Task, run_task
from fargatelite.runtime.images import open_store
from tests.fixtures.images import build_oci_layout, busybox_files, tar_layer

ROOT = Path(__file__).parent.parent
DOCUMENT = ROOT / "docs" / "security.md"
RESULT = ROOT / "benchmarks" / "results" / "neighbours.json"
MARKS = ("<!-- neighbours: begin -->", "<!-- neighbours: end -->")
REQUESTS = 1000
SETTLE_S = 2.0
"""A neighbour's harm is under way."""
TIMEOUT_S = 300
PROMISE = 2.0

NEIGHBOURS = {
    "fork bomb": "f() { f | f & }; f; while :; do sleep 1; done",
    "memory bomb": "while :; do attack memory; done",
    "disk filler": "while :; do dd if=/dev/zero of=/fill bs=1M; rm /fill; done",
    "inode filler": "mkdir /many; while :; do attack inodes /many; rm -r /many/*; done",
    "log flood": "yes a line of a log that has no end, and tells nothing",
    "page cache thrash": "dd if=/dev/zero of=/big bs=1M count=3072;"
    " while :; do cat /big >/dev/null; done",
    "CPU hog": "for i in 1 2 3 4 5 6 7 8; do (while :; do :; done) & done; wait",
}


def _start(settings: Settings, image: str, script: str, cpu: str, memory: str) -> Task:
    definition: dict[str, Any] = {
        "family": "neighbours", "networkMode": "awsvpc", "requiresCompatibilities": ["FARGATE"],
        "cpu": cpu, "memory": memory,
        "containerDefinitions": [
            {"name": "c", "image": image, "command": ["sh", "-c", script], "stopTimeout": 2,
             "linuxParameters": {"initProcessEnabled": True}}
        ],
    }  # fmt: skip
    return run_task(definition, settings=settings, pull="never")


@contextlib.contextmanager
def _harming(settings: Settings, image: str, script: str) -> Iterator[None]:
    """A neighbour from its start on; one that dies of what it does is started again (on cgroup v2 a
    container dies of memory as one)."""
    is_over, is_running = threading.Event(), threading.Event()

    def keep() -> None:
        while not is_over.is_set():
            with _start(settings, image, script, "1024", "2048") as task:
                task.until("RUNNING", TIMEOUT_S)
                is_running.set()
                while task.last_status == "RUNNING" and not is_over.wait(0.05):
                    pass

    thread = threading.Thread(target=keep)
    thread.start()
    try:
        if not is_running.wait(TIMEOUT_S):
            raise RuntimeError(f"the neighbour does not start: {script}")
        yield
    finally:
        is_over.set()
        thread.join()


def _measure(settings: Settings, image: str, requests: int) -> list[float]:
    """Microseconds of each request of a victim."""
    task = _start(settings, image, f"victim {requests}; exit $?", "512", "1024")
    if task.wait(TIMEOUT_S) != 0:
        raise RuntimeError(f"the victim did not live: {task.exit_code}, {task.stopped_reason}")
    text = "".join(
        line.text.decode() + ("" if line.is_partial else "\n") for line in task.logs("c")
    )
    return [float(line) for line in text.split() if line != "done"]


def _summary(values: list[float]) -> dict[str, float]:
    return {"p50": p50(values), "p99": p99(values), "max": max(values)}


def _rows(result: dict[str, Any]) -> list[str]:
    rows = [
        f"`make bench-neighbours`, Linux {result['kernel']}, {result['cpus']} shared virtual CPUs, "
        f"{result['requests']} requests each; microseconds of a request of a victim with 0.5 CPU, "
        "alone just before and beside a neighbour of 1 CPU and 2 GiB.",
        "",
        "| Neighbour | p50 alone | beside | p99 alone | beside | p99, times |",
        "|---|--:|--:|--:|--:|--:|",
    ]
    for name, measured in result["us"].items():
        alone, beside = measured["alone"], measured["beside"]
        times = beside["p99"] / alone["p99"]
        mark = "" if times <= PROMISE else " (over 2)"
        rows.append(
            f"| {name} | {alone['p50']:.0f} | {beside['p50']:.0f} | {alone['p99']:.0f} | "
            f"{beside['p99']:.0f} | {times:.2f}{mark} |"
        )
    return rows


def main() -> None:
    requests = int(sys.argv[1]) if len(sys.argv) > 1 else REQUESTS
    us: dict[str, dict[str, dict[str, float]]] = {}
    with tempfile.TemporaryDirectory(prefix="fln") as name:
        directory = Path(name)
        files = busybox_files()
        for program, source in (
            ("attack", ROOT / "tests" / "attacks" / "attack.c"),
            ("victim", ROOT / "benchmarks" / "victim.c"),
        ):
            built = directory / program
            command = ["cc", "-std=gnu11", "-O1", "-static", "-o", built, source]
            subprocess.run(command, check=True)
            files[f"bin/{program}"] = built.read_bytes()
        settings = Settings(data_root=str(directory / "data"), run_root=str(directory / "run"))
        layout = build_oci_layout(directory / "layout", [tar_layer(files)])
        (image,) = open_store(settings).load(layout)
        for kind, script in NEIGHBOURS.items():
            alone = _measure(settings, image.reference, requests)
            with _harming(settings, image.reference, script):
                time.sleep(SETTLE_S)
                beside = _measure(settings, image.reference, requests)
            us[kind] = {"alone": _summary(alone), "beside": _summary(beside)}
            print(
                f"{kind}: p99 {p99(alone):.0f} us alone, {p99(beside):.0f} beside, "
                f"{p99(beside) / p99(alone):.2f} times",
                flush=True,
            )
    result = {
        "version": 1, "kernel": os.uname().release, "cpus": os.cpu_count(), "requests": requests,
        "us": us,
    }  # fmt: skip
    RESULT.write_text(json.dumps(result, indent=1) + "\n")
    before, _, rest = DOCUMENT.read_text().partition(MARKS[0])
    _, mark, after = rest.partition(MARKS[1])
    if not mark:
        raise RuntimeError(f"{DOCUMENT} has no {MARKS}")
    DOCUMENT.write_text("\n".join([before + MARKS[0], *_rows(result), mark]) + after)


if __name__ == "__main__":
    main()
