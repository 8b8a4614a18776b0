"""Log drivers and fault injection, as definitions name them."""

from __future__ import annotations

import json

import pytest

from tests.fixtures.published import Published
from tests.root.logdrivers.conftest import Endpoint
from tests.root.logdrivers.conftest import certificate as certificate
from tests.root.logdrivers.conftest import splunk as splunk

pytestmark = [pytest.mark.root, pytest.mark.registry]


@pytest.mark.field(
    "containerDefinitions[].logConfiguration.logDriver",
    "containerDefinitions[].logConfiguration.options",
)
def test_stack_traces_are_one_event(published: Published) -> None:
    ran = published.run("awslogs-multiline")
    events = published.log_events("/ecs/java", f"app/java/{ran.task.id}")
    assert events[-2:] == [
        "2026-11-25 ERROR boom\n  at Main.run\n  at Main.main\n", "2026-11-25 INFO on\n",
    ], ran.why  # fmt: skip


@pytest.mark.filterwarnings("ignore::urllib3.exceptions.InsecureRequestWarning")
@pytest.mark.field("containerDefinitions[].logConfiguration.secretOptions")
def test_splunk_with_its_token_from_a_parameter(published: Published, splunk: Endpoint) -> None:
    published.aws.client("ssm").put_parameter(
        Name="/splunk/hec-token", Value="hec-token-5512", Type="SecureString"
    )
    published.replacements["${SPLUNK_URL}"] = f"https://127.0.0.1:{splunk.port}"
    ran = published.run("splunk")
    assert ran.codes == {"audit": 0}, ran.why
    text = "".join(body.decode() for _, body in splunk.posts)
    decoder, events = json.JSONDecoder(), []
    while text:
        event, at = decoder.raw_decode(text)
        events.append(event)
        text = text[at:]
    assert [event["event"].partition(" ")[2] for event in events[-2:]] == [
        "user=alice action=login", "user=bob action=logout",
    ]  # fmt: skip
    assert {(event["source"], event["index"]) for event in events} == {("audit", "security")}
    assert {headers["Authorization"] for headers, _ in splunk.posts} == {"Splunk hec-token-5512"}


@pytest.mark.field(
    "containerDefinitions[].firelensConfiguration.type",
    "containerDefinitions[].firelensConfiguration.options",
)
def test_firelens(published: Published) -> None:
    """The router is a stand-in that shows its configuration and what arrives."""
    ran = published.run("firelens")
    assert ran.codes == {"log_router": 0, "clicks": 0}, ran.why
    config = "\n".join(ran.lines("log_router"))
    assert "    Name firehose\n    Match clicks-firelens*\n" in config
    assert "delivery_stream clicks" in config
    data = b"".join(
        bytes.fromhex(line.split()[2]) for line in ran.lines("log_router") if line[:5] == "DATA "
    )
    assert b"click one" in data
    assert b"click two" in data
    assert "FLUENT_HOST" in ran.seen("clicks")["environment"]
    assert "FLUENT_HOST" not in ran.seen("log_router")["environment"]


@pytest.mark.field("enableFaultInjection")
def test_a_port_becomes_a_black_hole(published: Published) -> None:
    lines = published.run("fault-injection").lines("monkey")
    assert '{"Status":"running"}' in [line.replace(" ", "") for line in lines]
    assert "unreachable" in lines
