"""The program under faults: forks a process for each piece of a task's life that it is asked for.

It imports everything before it forks, so that the calls that are counted are those of the life and
not those of imports, and a life costs a fork. It runs below `injector`, which it arms by prctl(2)
in the forked process, just before the piece begins. One request per line of stdin, one answer per
line of stdout, both JSON; a process that does not come to its end is an answer too, with its
stacks.
"""

from __future__ import annotations

import ctypes
import faulthandler
import json
import os
import pkgutil
import resource
import select
import signal
import sys
import time
import traceback
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

ARM, DISARM = 0x464C5441, 0x464C5442
DEADLINE_S = float(os.environ.get("FARGATELITE_FAULT_DEADLINE_S", "30"))

_prctl = ctypes.CDLL(None, use_errno=True).prctl
_prctl.argtypes = [ctypes.c_int] + [ctypes.c_long] * 4

Answer = dict[str, Any]


def _arm(fault: list[int]) -> None:
    _prctl(ARM, *fault)


def _disarm() -> int:
    return int(_prctl(DISARM, 0, 0, 0, 0))


def _import_all() -> None:
    import fargatelite

    for module in pkgutil.walk_packages(fargatelite.__path__, "fargatelite."):
        if not module.name.endswith("__main__"):
            import_module(module.name)
    for name in ("nftables", "pyroute2", "pyroute2.netlink.rtnl.ifinfmsg", "inotify_simple",
                 "fargatelite.meter._meter", "botocore.session", "pyseccomp"):  # fmt: skip
        import_module(name)


# ---- pieces of a life ----


def _describe(task: Any) -> Answer:
    return {
        "id": task.id,
        "exitCode": task.exit_code,
        "status": task.last_status,
        "stopCode": task.stop_code,
        "reason": task.stopped_reason,
        "reasons": [item.reason for item in task.containers.values()],
    }


def _run(settings: Any, request: Answer, arm: Callable[[], None]) -> Answer:
    from fargatelite import run_task

    if "descriptors" in request:
        resource.setrlimit(resource.RLIMIT_NOFILE, (request["descriptors"],) * 2)
    arm()
    task = run_task(request["definition"], settings=settings, pull=request.get("pull", "missing"))
    if "kill" in request:
        task.until("RUNNING", DEADLINE_S)
        pid = task.state.container("app").pid
        assert pid is not None
        os.kill(pid if request["kill"] == "init" else _parent_of(pid), signal.SIGKILL)
    task.wait(DEADLINE_S)
    return _describe(task)


def _parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def _stop(settings: Any, request: Answer, arm: Callable[[], None]) -> Answer:
    from fargatelite import run_task

    task = run_task(request["definition"], settings=settings, pull="missing")
    task.until("RUNNING", DEADLINE_S)
    arm()
    task.stop("enough")
    return _describe(task)


def _pull(settings: Any, request: Answer, arm: Callable[[], None]) -> Answer:
    """Of an image that is not in the store."""
    from fargatelite.runtime.images import open_store

    store = open_store(settings)
    if "fault" in request and store.find(request["reference"]) is not None:
        store.remove(request["reference"])
    arm()
    return {"imageId": store.pull(request["reference"]).image_id}


def _remove(settings: Any, request: Answer, arm: Callable[[], None]) -> Answer:
    from fargatelite.runtime.images import open_store

    open_store(settings).remove(request["reference"])
    return {}


def _adopt(settings: Any, request: Answer, arm: Callable[[], None]) -> Answer:
    from fargatelite.errors import TaskNotFound
    from fargatelite.rundir import RunDirectory
    from fargatelite.runtime.request import adopt_task

    arm()
    adopted = []
    for run in RunDirectory.list_all(settings.runs):
        try:
            task = adopt_task(settings, run)
        except TaskNotFound:
            continue
        if task is not None:
            adopted.append(task)
    for task in adopted:
        assert task.wait_finished(DEADLINE_S), f"{task.run.task_id} does not end"
    return {"adopted": [str(task.run.task_id) for task in adopted]}


def _collect(settings: Any, request: Answer, arm: Callable[[], None]) -> Answer:
    from fargatelite.runtime.gc import collect

    arm()
    found = collect(settings, images=request.get("images", False))
    return {"tasks": found.tasks, "orphans": found.orphans, "failures": found.failures}


def _settle(settings: Any, request: Answer, arm: Callable[[], None]) -> Answer:
    """One gc, a second that must find nothing, and what is there after it. Of the tasks that are
    `known` nothing more is told: after a thousand points they would take longer than all else."""
    from fargatelite import find_task
    from fargatelite.images.verify import verify
    from fargatelite.network.pool import SlotPool
    from fargatelite.runtime.gc import collect
    from fargatelite.runtime.images import open_store
    from fargatelite.runtime.record import list_records

    first, second = collect(settings), collect(settings)
    records, known = [], set(request.get("known", []))
    for record in list_records(settings, stopped=True):
        if record.task_id in known:
            continue
        task = find_task(record.task_id, settings=settings)
        bill = task.bill()
        records.append(_describe(task) | {
            "isFinal": bill.is_final,
            "billedSeconds": float(bill.billed_seconds),
            "created": record.state.created_at_ns,
            "leftovers": list(record.leftovers),
        })  # fmt: skip
    left = [
        str(path)
        for directory in (settings.runs, settings.layers, settings.storage, settings.efs_mounts)
        if directory.is_dir()
        for path in directory.iterdir()
    ]
    mounts = Path(settings.run_root, "images")
    if mounts.is_dir():
        left += [str(path) for path in mounts.iterdir()]
    store = open_store(settings)
    damage = verify(store).damage if request.get("verify") else []
    return {
        "first": {"tasks": first.tasks, "orphans": first.orphans, "failures": first.failures},
        "second": [*second.tasks, *second.orphans, *second.failures],
        "records": records,
        "left": left,
        "slots": [str(slot.task_id) for slot in SlotPool(Path(settings.run_root)).list_own()],
        "damage": [f"{item.path}: {item.what}" for item in damage],
    }


PIECES = {
    "run": _run, "stop": _stop, "pull": _pull, "remove": _remove, "adopt": _adopt, "gc": _collect,
    "settle": _settle,
}  # fmt: skip


# ---- processes ----


def _child(request: Answer, answer_to: int, stacks: Path) -> None:
    from fargatelite.errors import FargateliteError
    from fargatelite.settings import Settings

    settings = Settings(**request["settings"])
    with open(stacks, "w") as file:
        faulthandler.dump_traceback_later(DEADLINE_S + 2, file=file)
        fault = request.get("fault")
        answer: Answer
        try:
            answer = PIECES[request["piece"]](
                settings, request, (lambda: _arm(fault)) if fault else (lambda: None)
            )
        except (FargateliteError, OSError, TimeoutError) as error:
            answer = {"raised": type(error).__name__, "message": str(error)}
        except BaseException as error:  # noqa: BLE001  it is the answer
            answer = {
                "raised": type(error).__name__, "message": str(error), "isUnexpected": True,
                "traceback": traceback.format_exc(),
            }  # fmt: skip
        answer["counted"] = _disarm()
        os.write(answer_to, json.dumps(answer).encode())
        faulthandler.cancel_dump_traceback_later()


def _serve(request: Answer) -> Answer:
    ours, theirs = os.pipe()
    stacks = Path(request["stacks"])
    process = os.fork()
    if not process:
        os.close(ours)
        try:
            _child(request, theirs, stacks)
        finally:
            os._exit(0)
    os.close(theirs)
    data, deadline = b"", time.monotonic() + DEADLINE_S + 5
    with open(ours, "rb", buffering=0) as pipe:
        while select.select([pipe], [], [], max(0.0, deadline - time.monotonic()))[0]:
            part = pipe.read(1 << 20)
            if not part:
                break
            data += part
        else:
            os.kill(process, signal.SIGKILL)
            os.waitpid(process, 0)
            _disarm()
            return {"hung": stacks.read_text()}
    _, status = os.waitpid(process, 0)
    counted = _disarm()
    if data:
        return json.loads(data)  # type: ignore[no-any-return]
    killed = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
    # Dumping them may end a process whose threads run on (SIGSEGV).
    return {"killed": killed, "counted": counted, "stacks": stacks.read_text()}


def main() -> None:
    """Answers requests until the end of stdin."""
    _import_all()
    for line in sys.stdin:
        sys.stdout.write(json.dumps(_serve(json.loads(line))) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
