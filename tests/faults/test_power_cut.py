"""A power cut at any moment: every prefix of what a pull and a task's life did to the disk, with
any one operation missing that was not synced, and what was not synced torn, is a store that works
and a record, a ledger and a bill that are right or say that they are not."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest

from fargatelite import find_task
from fargatelite.errors import StateCorrupt, TaskNotFound
from fargatelite.images.credentials import RegistryConfig
from fargatelite.images.reference import parse_reference
from fargatelite.images.registry import Registry
from fargatelite.images.store import ImageStore
from fargatelite.images.verify import verify
from fargatelite.images.worker import fetch_image
from fargatelite.runtime.gc import collect
from fargatelite.settings import Settings
from tests.fixtures.images import RunningRegistry, build_oci_layout, tar_layer

from .conftest import CHOSEN, task_of
from .recording import State, crash_states, final_names, record, write_state

pytestmark = [pytest.mark.root, pytest.mark.registry, pytest.mark.timeout(300)]


def contents_of(names: dict[int, str], root: Path) -> dict[int, bytes]:
    return {file: (root / path).read_bytes() for file, path in names.items()}


def ways(state: State) -> tuple[str, ...]:
    return ("empty", "zeros", "whole") if state.torn else ("whole",)


def test_a_pull(registry: RunningRegistry, tmp_path: Path) -> None:
    layers = [tar_layer({"etc/passwd": b"root:x:0:0::/:/bin/sh\n", "b": b"b" * 9000})]
    if CHOSEN:  # the states are as the square of the operations
        layers.append(tar_layer({"second": b"2"}))
    layout = build_oci_layout(tmp_path / "layout", layers, {"Cmd": ["x"]})
    reference = registry.push(layout, "power/cut")
    (tmp_path / "docker.json").write_text("{}")
    config = RegistryConfig(docker_config=str(tmp_path / "docker.json"))
    root = tmp_path / "store"
    root.mkdir(mode=0o700)
    code = (
        "from pathlib import Path\n"
        "from fargatelite.images.credentials import RegistryConfig\n"
        "from fargatelite.images.store import ImageStore\n"
        f"config = RegistryConfig(docker_config={config.docker_config!r})\n"
        f"ImageStore(Path({str(root)!r}), config=config).pull({reference!r})\n"
    )
    operations = record([sys.executable, "-c", code], root, tmp_path / "log")
    assert {"mkdir", "create", "rename", "sync"} <= {item.kind for item in operations}
    contents = contents_of(final_names(operations), root)
    broken, tried = [], 0
    client = Registry(parse_reference(reference), None, insecure=True)
    after = tmp_path / "after"
    for state in crash_states(operations):
        for how in ways(state):
            tried += 1
            write_state(state, contents, after, how)
            try:
                store = ImageStore(after, config=config)
                damage = [f"{item.path}: {item.what}" for item in verify(store).damage]
                if store.find(reference) is None:
                    fetch_image(store, client, reference, "linux/amd64", lambda progress: None)
                assert store.find(reference) is not None
                damage += [f"{item.path}: {item.what}" for item in verify(store).damage]
                store.gc()
                assert store.find(reference) is not None
            except Exception as error:  # noqa: BLE001  each state is told
                damage = [f"{type(error).__name__}: {error}"]
            if damage:
                broken.append(f"{state.what}; torn files {how}: {damage}")
            shutil.rmtree(after)
    client.close()
    print(f"states after a power cut in a pull: {tried} of {len(operations)} operations")
    assert tried > 100
    assert not broken, f"{len(broken)}:\n" + "\n".join(broken[:40])


def test_a_tasks_life(settings: Settings, busybox: str, tmp_path: Path) -> None:
    """The run root is gone with the power."""
    root = Path(settings.data_root)
    definition = task_of(busybox, "echo out; exit 7")
    code = (
        "import fargatelite\n"
        f"settings = fargatelite.Settings(data_root={settings.data_root!r},"
        f" run_root={settings.run_root!r})\n"
        f"task = fargatelite.run_task({definition!r}, settings=settings)\n"
        "assert task.wait(60) == 7\n"
        "task.logs('app')\n"
    )
    operations = record([sys.executable, "-c", code], root, tmp_path / "log")
    kept = [item for item in operations if item.path.partition("/")[0] in ("records", "ledger")]
    contents = contents_of(final_names(kept), root)
    record_at = max(n for n, item in enumerate(kept) if item.to.endswith("/record.json"))
    task_id = kept[record_at].to.split("/")[1]
    broken, tried = [], 0
    for state in crash_states(kept):
        for how in ways(state):
            tried += 1
            after = tmp_path / "after"
            write_state(state, contents, after, how)
            found = Settings(data_root=str(after), run_root=str(tmp_path / "run after"))
            problems = []
            try:
                task = find_task(task_id, settings=found)
                if task.exit_code != 7 or task.bill().billed_seconds != 60:
                    problems.append(f"{task.exit_code}, {task.bill()}")
                has_record = True
            except (TaskNotFound, StateCorrupt) as error:
                has_record = False
                if isinstance(error, StateCorrupt):
                    problems.append(str(error))
            report = collect(found)
            if report.failures:
                problems.append(f"gc: {report.failures}")
            if bool(report.records) == has_record and list((after / "records").glob("?" * 32)):
                problems.append(f"gc: {report.records}")
            if problems:
                broken.append(f"{state.what}; torn files {how}: {problems}")
            shutil.rmtree(after)
            shutil.rmtree(found.run_root, ignore_errors=True)
    whole = [state for state in crash_states(kept) if state.what.startswith(f"up to {len(kept)}:")]
    lost = [
        state.what for state in whole
        if not any(path.endswith("/record.json") for path, _ in state.files)
    ]  # fmt: skip
    print(f"states after a power cut in a life: {tried} of {len(kept)} operations")
    assert tried > 20
    assert not broken, f"{len(broken)}:\n" + "\n".join(broken[:40])
    assert not lost, "a task that was told to have stopped has no record"
