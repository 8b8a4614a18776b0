"""splunk with real tasks, against an HTTPS server with a certificate of its own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fargatelite import Settings, Task, run_task
from fargatelite.runtime.record import read_record
from tests.fixtures.images import free_port
from tests.root.logdrivers.conftest import TIMEOUT_S, Endpoint, definition, shell

pytestmark = [
    pytest.mark.root,
    pytest.mark.registry,
    # What splunk-insecureskipverify asks for.
    pytest.mark.filterwarnings("ignore::urllib3.exceptions.InsecureRequestWarning"),
]
TOKEN = "0123-token"


def run(settings: Settings, image: str, script: str, port: int, **options: str) -> Task:
    named = {name.replace("_", "-"): value for name, value in options.items()}
    base = {"splunk-url": f"https://127.0.0.1:{port}", "splunk-token": TOKEN}
    log = {"logDriver": "splunk", "options": base | named}
    task = run_task(
        definition(
            image, shell("app", script, logConfiguration=log, dockerLabels={"team": "a"})
        ),
        settings=settings,
    )  # fmt: skip
    task.wait(TIMEOUT_S)
    return task


def events(endpoint: Endpoint) -> list[Any]:
    decoder, found = json.JSONDecoder(), []
    for _, body in endpoint.posts:
        text = body.decode()
        while text:
            event, at = decoder.raw_decode(text)
            found.append(event)
            text = text[at:]
    return found


@pytest.mark.parametrize("gzipped", ["true", "false"])
def test_events_arrive_in_order_over_tls(
    settings: Settings, busybox: str, splunk: Endpoint, certificate: tuple[Path, Path], gzipped: str
) -> None:
    task = run(
        settings, busybox, "seq 1 1500; echo err >&2", splunk.port,
        splunk_capath=str(certificate[0]), splunk_caname="splunk.test", splunk_gzip=gzipped,
        splunk_index="main", labels="team", tag="{{.Name}}",
    )  # fmt: skip
    assert (task.exit_code, task.stopped_reason) == (0, "Essential container in task exited")
    found = events(splunk)
    out = [e["event"]["line"] for e in found if e["event"]["source"] == "stdout"]
    assert out == [*map(str, range(1, 1501))]
    assert {e["event"]["line"] for e in found if e["event"]["source"] == "stderr"} == {"err"}
    assert found[0]["event"] | {"line": "1"} == {
        "line": "1", "source": found[0]["event"]["source"], "tag": "app", "attrs": {"team": "a"},
    }  # fmt: skip
    assert found[0]["index"] == "main"
    assert {headers["Authorization"] for headers, _ in splunk.posts} == {f"Splunk {TOKEN}"}


def test_an_unknown_authority_stops_the_task(
    settings: Settings, busybox: str, splunk: Endpoint
) -> None:
    task = run(settings, busybox, "echo never", splunk.port)
    reason = task.stopped_reason or ""
    assert reason.startswith("ResourceInitializationError: failed to initialize logging driver: ")
    assert "certificate" in reason
    assert TOKEN not in reason
    assert splunk.posts == []


def test_verification_can_be_left_out(settings: Settings, busybox: str, splunk: Endpoint) -> None:
    run(settings, busybox, "echo a", splunk.port, splunk_insecureskipverify="true")
    assert [event["event"]["line"] for event in events(splunk)] == ["a"]


def test_a_collector_that_is_down_is_no_matter_when_it_is_not_verified(
    settings: Settings, busybox: str
) -> None:
    task = run(settings, busybox, "echo a", free_port(), splunk_verify_connection="false")
    assert task.exit_code == 0
    (lost,) = read_record(settings, task.id).logs_dropped
    assert (lost.container, lost.log_driver, lost.records) == ("app", "splunk", 1)
    assert TOKEN not in lost.reason


def test_a_refused_batch_is_dropped_and_the_next_one_sent(
    settings: Settings, busybox: str, splunk: Endpoint
) -> None:
    splunk.answers = [503, 400]
    task = run(settings, busybox, "seq 1 1500", splunk.port, splunk_insecureskipverify="true")
    (lost,) = read_record(settings, task.id).logs_dropped
    assert len(events(splunk)) + lost.records == 1500
    assert lost.records > 0
    assert "400" in lost.reason
