"""Twenty tasks at once from four processes: each keeps its own number, nothing is left."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from fargatelite import Settings
from fargatelite.runtime.record import list_records
from fargatelite.runtime.usage import compute_task_bill
from tests.fixtures.patience import patient

pytestmark = [pytest.mark.root, pytest.mark.registry]

PROCESSES = 4
TASKS_EACH = 5

# Its containers end when somebody connects, which waits for the parent's word. Prints, for each of
# its tasks, the number it was given, its exit code, output, address, reason and id.
PROGRAM = """
import json, socket, sys, threading
from fargatelite import Settings, run_task

data_root, run_root, image, first, count = sys.argv[1:]
settings = Settings(data_root=data_root, run_root=run_root)
results = []

def ask_parent():
    print("running", flush=True)
    assert sys.stdin.readline() == "go\\n"

all_run = threading.Barrier(int(count), action=ask_parent)

def run(number):
    task = run_task(
        {
            "family": f"many-{number}",
            "networkMode": "awsvpc",
            "requiresCompatibilities": ["FARGATE"],
            "cpu": "256",
            "memory": "512",
            "containerDefinitions": [
                {
                    "name": "app",
                    "image": image,
                    "entryPoint": ["/bin/sh", "-c"],
                    "command": [f"echo number {number}; ip -4 addr show eth1; "
                                f"nc -l -p 80; exit {number}"],
                }
            ],
        },
        settings=settings,
    ).until("RUNNING", 60)
    all_run.wait(600)
    while True:
        try:
            socket.create_connection((task.address, 80), 5).close()
            break
        except ConnectionRefusedError:
            assert task.last_status == "RUNNING"
    code = task.wait(600)
    text = b"".join(line.text + b"\\n" for line in task.logs("app")).decode()
    results.append([number, code, text, task.address, task.stopped_reason, task.id])

threads = [
    threading.Thread(target=run, args=(number,))
    for number in range(int(first), int(first) + int(count))
]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
print(json.dumps(results))
"""


def test_twenty_tasks_from_four_processes(settings: Settings, busybox: str, tmp_path: Path) -> None:
    program = tmp_path / "many.py"
    program.write_text(PROGRAM)
    processes = [
        subprocess.Popen(
            [
                sys.executable, program, settings.data_root, settings.run_root, busybox,
                str(1 + index * TASKS_EACH), str(TASKS_EACH),
            ],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for index in range(PROCESSES)
    ]  # fmt: skip
    results = []
    try:
        for process in processes:
            assert process.stdout is not None
            assert process.stdout.readline() == "running\n"
        for process in processes:
            assert process.stdin is not None
            process.stdin.write("go\n")
            process.stdin.flush()
        for process in processes:
            out, err = process.communicate(timeout=patient(100))
            assert (process.returncode, err) == (0, "")
            results += json.loads(out)
    finally:
        for process in processes:
            if process.poll() is None:
                process.terminate()
                process.communicate(timeout=patient(30))

    numbers = list(range(1, PROCESSES * TASKS_EACH + 1))
    assert sorted(result[0] for result in results) == numbers
    for number, code, text, address, reason, _ in results:
        assert (code, reason) == (number, "Essential container in task exited")
        assert text.startswith(f"number {number}\n")
        assert f"inet {address}/" in text
    # They lived at the same time, so no two had the same address.
    assert len({result[3] for result in results}) == len(numbers)

    records = {record.task_id: record for record in list_records(settings, stopped=True)}
    assert set(records) == {result[5] for result in results}
    assert max(record.state.started_at_ns or 0 for record in records.values()) < min(
        record.state.stopped_at_ns or 0 for record in records.values()
    )
    for number, *_, task_id in results:
        record = records[task_id]
        assert record.definition["family"] == f"many-{number}"
        bill = compute_task_bill(settings, record)
        assert bill.is_final
        assert bill.cpu_seconds is not None
        assert 0 < bill.cpu_seconds < 1
    assert list(settings.runs.iterdir()) == []
