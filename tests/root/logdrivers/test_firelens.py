"""awsfirelens from end to end: a router container that gets its configuration and its socket, and
receives what the others write, up to the last line."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import msgspec
import pytest

from fargatelite import Settings, Task, run_task
from fargatelite.runtime.record import read_record
from tests.fixtures.images import RunningRegistry, build_oci_layout, busybox_files, tar_layer
from tests.root.logdrivers.conftest import TIMEOUT_S, definition, local_lines, shell

pytestmark = [pytest.mark.root, pytest.mark.registry]
CONFIG = "/fluent-bit/etc/fluent-bit.conf"


@pytest.fixture(scope="module")
def router_image(registry: RunningRegistry, tmp_path_factory: pytest.TempPathFactory) -> str:
    """busybox and the receiver."""
    directory = tmp_path_factory.mktemp("router")
    source = Path(__file__).with_name("receiver.c")
    program = directory / "receiver"
    subprocess.run(["gcc", "-static", "-O1", "-Wall", "-Werror", source, "-o", program], check=True)
    files = busybox_files() | {"bin/receiver": program.read_bytes()}
    layout = build_oci_layout(directory / "layout", [tar_layer(files)])
    return registry.push(layout, "router")


def router(image: str, **more: Any) -> dict[str, Any]:
    return {
        "name": "router", "image": image, "command": ["/bin/receiver", CONFIG],
        "firelensConfiguration": {"type": "fluentbit"}, "stopTimeout": 10, **more,
    }  # fmt: skip


def firelens(**options: str) -> dict[str, Any]:
    named = {name.replace("_", "-"): value for name, value in options.items()}
    return {"logDriver": "awsfirelens", "options": {"Name": "stdout"} | named}


def received(task: Task) -> list[tuple[str, Any]]:
    """(tag, record) of all messages that the router printed, in order per connection."""
    streams: dict[str, bytes] = {}
    for line in local_lines_joined(task, "router"):
        if line.startswith("DATA "):
            _, connection, data = line.split(" ")
            streams[connection] = streams.get(connection, b"") + bytes.fromhex(data)
    found = []
    for data in streams.values():
        # A stream of msgpack objects: msgspec decodes one, so they are told apart by their tags.
        while data:
            size, (tag, entries) = first_message(data)
            found += [(tag, record) for _, record in entries]
            data = data[size:]
    return found


def first_message(data: bytes) -> tuple[int, Any]:
    """The first object of a stream, and how long it is."""
    begin = data[:2]
    at = data.find(begin, 1)
    while True:
        end = at if at > 0 else len(data)
        try:
            return end, msgspec.msgpack.decode(data[:end])
        except msgspec.DecodeError:
            if at < 0:
                raise
            at = data.find(begin, at + 1)


def local_lines_joined(task: Task, container: str) -> list[str]:
    """Whole lines, whatever their length."""
    text = b"".join(
        line.text + (b"" if line.is_partial else b"\n") for line in task.logs(container)
    )
    return text.decode().splitlines()


@pytest.mark.field("containerDefinitions[].firelensConfiguration")
@pytest.mark.field("containerDefinitions[].firelensConfiguration.type")
@pytest.mark.field("containerDefinitions[].firelensConfiguration.options")
def test_the_router_receives_all_to_the_last_line(
    settings: Settings, busybox: str, router_image: str
) -> None:
    script = "seq 1 500; env | grep FLUENT >&2; printf 'the end'"
    task = run_task(
        definition(
            busybox,
            shell("app", script, logConfiguration=firelens(region="eu-west-1")),
            router(router_image),
        ),
        settings=settings,
    )
    task.wait(TIMEOUT_S)
    assert (task.exit_code, task.stopped_reason) == (0, "Essential container in task exited")
    assert task.containers["router"].exit_code == 0, "it was asked to stop after the last line"
    found = received(task)
    assert {tag for tag, _ in found} == {f"app-firelens-{task.id}"}
    out = [record["log"] for _, record in found if record["source"] == "stdout"]
    assert out == [*map(str, range(1, 501)), "the end"]
    err = {record["log"] for _, record in found if record["source"] == "stderr"}
    assert err == {"FLUENT_HOST=127.0.0.1", "FLUENT_PORT=24224"}
    assert found[0][1]["container_name"] == "app"
    assert found[0][1]["container_id"].startswith(f"{task.id}-")
    config = "\n".join(local_lines(task, "router"))
    assert "    unix_path /var/run/fluent.sock\n" in config
    assert f"Record ecs_task_arn {task.arn}\n" in config
    assert "Record ecs_task_definition test:1\n" in config
    assert "    Name stdout\n    Match app-firelens*\n    region eu-west-1\n" in config
    assert read_record(settings, task.id).logs_dropped == ()
    assert local_lines(task, "app")[-1] == "the end"


def test_the_router_starts_first_and_stops_last(
    settings: Settings, busybox: str, router_image: str
) -> None:
    app = shell("app", "sleep 1000", logConfiguration=firelens())
    task = run_task(definition(busybox, app, router(router_image)), settings=settings)
    task.until("RUNNING", TIMEOUT_S)
    task.stop()
    first, second = (task.state.container(name) for name in ("router", "app"))
    assert (first.started_at_ns or 0) < (second.started_at_ns or 0)
    assert (first.finished_at_ns or 0) >= (second.finished_at_ns or 0)


def test_a_long_line_comes_in_pieces(settings: Settings, busybox: str, router_image: str) -> None:
    script = "head -c 40000 /dev/zero | tr '\\000' x; echo"
    task = run_task(
        definition(
            busybox, shell("app", script, logConfiguration=firelens()), router(router_image)
        ),
        settings=settings,
    )  # fmt: skip
    task.wait(TIMEOUT_S)
    records = [record for _, record in received(task)]
    assert "".join(record["log"] for record in records) == "x" * 40000
    assert [record["partial_ordinal"] for record in records] == ["1", "2", "3"]
    assert [record["partial_last"] for record in records] == ["false", "false", "true"]


def test_a_router_that_never_listens_costs_lines_beyond_the_buffer(
    settings: Settings, busybox: str, router_image: str
) -> None:
    log = firelens(log_driver_buffer_limit="10")
    task = run_task(
        definition(
            busybox,
            shell("app", "seq 1 100", logConfiguration=log),
            router(router_image, command=["sleep", "1000"], stopTimeout=2),
        ),
        settings=settings,
    )
    task.wait(TIMEOUT_S)
    assert task.exit_code == 0
    (lost,) = read_record(settings, task.id).logs_dropped
    assert (lost.records, lost.log_driver) == (100, "awsfirelens")
    assert "fluent.sock" in lost.reason
