"""The shapes of HEC events, as Docker's driver has them."""

from __future__ import annotations

import json
from typing import Any

import pytest

from fargatelite.logdrivers.driver import LogRecord
from fargatelite.logdrivers.splunk import Source, Splunk

SOURCE = Source(
    container_id="0123456789abcdef-1",
    name="web",
    image="repo/web:1",
    hostname="box",
    labels={"team": "a", "other": "b"},
    environment={"STAGE": "prod", "STAGE_2": "x"},
)


def driver(**options: str) -> Splunk:
    named = {name.replace("_", "-"): value for name, value in options.items()}
    return Splunk({"splunk-url": "https://splunk.test:8088"} | named, "secret", SOURCE)


def event(made: Splunk, text: bytes, stream: str = "stdout") -> Any:
    (message,) = made.shape(LogRecord(at_ns=1_500_000_123_456_789, stream=stream, text=text))
    return json.loads(message.body)


def test_inline() -> None:
    assert event(driver(), b"hello", "stderr") == {
        "event": {"line": "hello", "source": "stderr", "tag": "0123456789ab"},
        "time": "1500000.123456",
        "host": "box",
    }


def test_json_is_taken_apart_only_where_it_is_json() -> None:
    made = driver(splunk_format="json", tag="")
    assert event(made, b'{"a": [1]}')["event"]["line"] == {"a": [1]}
    assert event(made, b"no json")["event"]["line"] == "no json"
    assert event(made, b'{"a": "\xff"}')["event"]["line"] == '{"a": "�"}'
    assert "tag" not in event(made, b"x")["event"]


def test_raw_is_tag_attributes_and_text() -> None:
    made = driver(splunk_format="raw", tag="{{.Name}}/{{ .ID }}", labels="team", env="STAGE")
    assert event(made, b"hello")["event"] == "web/0123456789ab team=a STAGE=prod hello"


def test_where_it_goes() -> None:
    made = driver(splunk_source="s", splunk_sourcetype="t", splunk_index="i")
    shown = event(made, b"x")
    assert (shown["source"], shown["sourcetype"], shown["index"]) == ("s", "t", "i")


def test_attributes_by_name_and_by_pattern() -> None:
    made = driver(labels="team,absent", env_regex="^STAGE_")
    assert event(made, b"x")["event"]["attrs"] == {"team": "a", "STAGE_2": "x"}


@pytest.mark.parametrize("text", [b"", b"  \t"])
def test_nothing_but_space_is_no_event(text: bytes) -> None:
    assert driver().shape(LogRecord(at_ns=1, stream="stdout", text=text)) == []


def test_the_token_is_in_no_message() -> None:
    assert b"secret" not in json.dumps(event(driver(), b"x")).encode()
