"""The forward protocol, and the routers' configurations (golden, as the ECS agent's)."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import msgspec
import pytest

from fargatelite.errors import LogEndpointUnavailable
from fargatelite.logdrivers.driver import LogRecord, Message, Partial
from fargatelite.logdrivers.firelens import Firelens, encode_forward
from fargatelite.logdrivers.firelens_config import Routed, generate_config

GOLDEN = Path(__file__).parents[2] / "golden"
ROUTED = [
    Routed(
        container="web",
        options={
            "Name": "firehose", "@type": "firehose", "region": "us-west-2",
            "delivery_stream": "my-stream", "include-pattern": "^ERROR",
            "exclude-pattern": "healthz", "log-driver-buffer-limit": "10", "mode": "non-blocking",
        },
        secrets={"api_key": "api_key_0"},
    ),
    Routed(container="api", options={}),
]  # fmt: skip


@pytest.mark.parametrize("kind", ["fluentbit", "fluentd"])
@pytest.mark.parametrize("metadata", ["true", "false"])
def test_configuration(kind: str, metadata: str) -> None:
    text = generate_config(
        kind,
        {
            "enable-ecs-log-metadata": metadata, "config-file-type": "file",
            "config-file-value": "/extra.conf",
        },
        ROUTED,
        cluster="default",
        task_arn="arn:aws:ecs:us-east-1:000000000000:task/default/0123",
        task_definition="app:1",
    )  # fmt: skip
    path = GOLDEN / f"{kind}-metadata-{metadata}.conf"
    if os.environ.get("FARGATELITE_REWRITE_GOLDEN"):
        path.write_text(text)
    assert text == path.read_text()


def driver(sockets: Path = Path("/nowhere"), **options: str) -> Firelens:
    named = {name.replace("_", "-"): value for name, value in options.items()}
    return Firelens(named, "web", "0123", "0123-9", sockets)


def message(text: str) -> Message:
    (made,) = driver().shape(
        LogRecord(at_ns=2 * 10**9 + 5, stream="stdout", text=text.encode())
    )  # fmt: skip
    return made


def test_forward_mode() -> None:
    data = encode_forward("tag", [message("a").body, message("b").body])
    tag, entries = msgspec.msgpack.decode(data)
    assert tag == "tag"
    assert [record for _, record in entries] == [
        {"container_id": "0123-9", "container_name": "web", "source": "stdout", "log": text}
        for text in ("a", "b")
    ]
    time = entries[0][0]
    assert (time.code, bytes(time.data)) == (0, bytes([0, 0, 0, 2, 0, 0, 0, 5]))


def test_a_piece_says_so() -> None:
    partial = Partial(id="ab", ordinal=2, is_last=True)
    (made,) = driver().shape(LogRecord(at_ns=1, stream="stderr", text=b"x", partial=partial))
    _, record = msgspec.msgpack.decode(made.body)
    assert record["partial_message"] == "true"
    assert (record["partial_id"], record["partial_ordinal"]) == ("ab", "2")
    assert record["partial_last"] == "true"


def test_buffer_limit_is_a_number_of_events() -> None:
    assert driver().buffer.max_messages == 1048576
    assert driver(log_driver_buffer_limit="7").buffer.max_messages == 7


def test_it_goes_to_the_socket_and_comes_again_after_a_break(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "fluent.sock"))
        listening.listen(2)
        listening.settimeout(10)
        made = driver(tmp_path)
        assert made.send([message("a")]) == 0
        first, _ = listening.accept()
        with first:
            tag, entries = msgspec.msgpack.decode(first.recv(65536))
            assert (tag, len(entries)) == ("web-firelens-0123", 1)
        with pytest.raises(LogEndpointUnavailable):
            made.send([message("b")])
        made.send([message("c")])
        second, _ = listening.accept()
        with second:
            _, entries = msgspec.msgpack.decode(second.recv(65536))
            assert entries[0][1]["log"] == "c"
        made.close()


@pytest.mark.parametrize("kind", ["link", "file", "nothing"])
def test_only_a_socket_of_the_directory_is_spoken_to(tmp_path: Path, kind: str) -> None:
    """The router writes this directory: a link would lead us to a socket of the host."""
    outside, inside = tmp_path / "outside", tmp_path / "inside"
    outside.mkdir()
    inside.mkdir()
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(outside / "host.sock"))
        listening.listen(1)
        if kind == "link":
            (inside / "fluent.sock").symlink_to(outside / "host.sock")
        elif kind == "file":
            (inside / "fluent.sock").write_text("")
        with pytest.raises(LogEndpointUnavailable):
            driver(inside).send([message("a")])
        listening.setblocking(False)
        with pytest.raises(BlockingIOError):
            listening.accept()
