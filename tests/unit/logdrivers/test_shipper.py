"""The shipper with real files, and a driver whose endpoint is a list."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path

import pytest

from fargatelite.errors import LogDriverFailed, LogEndpointUnavailable
from fargatelite.logdrivers.driver import Buffer, LogRecord, Message, Request
from fargatelite.logdrivers.shipper import Dropped, Shipment, Shipper


class ListDriver:
    """Sends to a list; fails as told."""

    name = "list"
    hold_s = 0.0

    def __init__(self, *failures: Exception, max_bytes: int = 2**20) -> None:
        self.buffer = Buffer(is_blocking=False, max_bytes=max_bytes)
        self.request = Request(max_bytes=2**20, max_messages=10, linger_s=0.0)
        self.got: list[str] = []
        self._failures = list(failures)

    def open(self) -> None: ...

    def shape(self, record: LogRecord) -> list[Message]:
        return [Message(record.at_ns, record.text)]

    def flush(self) -> list[Message]:
        return []

    def cut(self, queue: Sequence[Message]) -> int:
        return min(10, len(queue))

    def send(self, messages: list[Message]) -> int:
        if self._failures:
            raise self._failures.pop(0)
        self.got += [message.body.decode() for message in messages]
        return 0

    def close(self) -> None: ...


def write(path: Path, *texts: str) -> None:
    with open(path, "a") as file:
        for text in texts:
            file.write(f"2026-11-24T11:50:40.123456789Z stdout F {text}\n")


def shipment(path: Path, driver: ListDriver, reports: list[Dropped]) -> Shipment:
    return Shipment("app", path, driver, on_dropped=reports.append, tell_read=None)


@pytest.fixture(scope="module")
def shipper() -> Shipper:
    return Shipper()


def test_an_end_may_be_asked_for_twice(tmp_path: Path, shipper: Shipper) -> None:
    """A container that logs through a router is drained before the router stops, and again with
    its task; the second time ended the shipper's thread, and every task waited for ever."""
    write(tmp_path / "app.log", "a")
    driver = ListDriver()
    first = shipment(tmp_path / "app.log", driver, [])
    shipper.add(first)
    shipper.end([first], 5)
    shipper.end([first], 5)
    second = shipment(tmp_path / "app.log", driver, [])
    shipper.add(second)
    shipper.end([second], 5)
    assert driver.got == ["a", "a"]
    assert any(t.name == "fargatelite-shipper" for t in threading.enumerate())


def test_failures_are_retried_and_order_holds(tmp_path: Path, shipper: Shipper) -> None:
    reports: list[Dropped] = []
    driver = ListDriver(LogEndpointUnavailable("down"), LogEndpointUnavailable("down"))
    made = shipment(tmp_path / "app.log", driver, reports)
    shipper.add(made)
    write(tmp_path / "app.log", *map(str, range(35)))
    shipper.end([made], 10)
    assert driver.got == [*map(str, range(35))]
    assert reports == []


def test_what_is_refused_or_late_is_counted(tmp_path: Path, shipper: Shipper) -> None:
    reports: list[Dropped] = []
    down = [LogEndpointUnavailable("down")] * 1000
    made = shipment(tmp_path / "app.log", ListDriver(LogDriverFailed("no"), *down), reports)
    write(tmp_path / "app.log", *["12345"] * 25)
    shipper.add(made)
    shipper.end([made], 0.5)
    assert (made.dropped.records, made.dropped.bytes) == (25, 125)
    assert reports[-1] == made.dropped
    assert made.dropped.reason == "down"


def test_a_fault_of_a_driver_ends_only_its_own_log(tmp_path: Path, shipper: Shipper) -> None:
    class Broken(ListDriver):
        def shape(self, record: LogRecord) -> list[Message]:
            raise RuntimeError("a fault")

    write(tmp_path / "app.log", "a")
    broken, driver = shipment(tmp_path / "app.log", Broken(), []), ListDriver()
    fine = shipment(tmp_path / "app.log", driver, [])
    shipper.add(broken)
    shipper.add(fine)
    shipper.end([broken, fine], 5)
    assert driver.got == ["a"]


class Holding(ListDriver):
    """Keeps the last record back until the next one, as multi-line patterns do."""

    hold_s = 30.0

    def __init__(self, *failures: Exception) -> None:
        super().__init__(*failures)
        self.held: list[Message] = []
        self.has_read = threading.Event()

    def shape(self, record: LogRecord) -> list[Message]:
        out, self.held = self.held, [Message(record.at_ns, record.text)]
        self.has_read.set()
        return out

    def flush(self) -> list[Message]:
        out, self.held = self.held, []
        return out


class Places:
    """What was told of how far a log is sent."""

    def __init__(self) -> None:
        self.told: list[int] = []
        self.changed = threading.Condition()

    def __call__(self, place: int) -> None:
        with self.changed:
            self.told.append(place)
            self.changed.notify_all()

    def wait_for(self, place: int) -> None:
        with self.changed:
            assert self.changed.wait_for(lambda: place in self.told, 10), self.told


def followed(path: Path, driver: ListDriver, places: Places, begin_at: int = 0) -> Shipment:
    return Shipment(
        "app", path, driver, on_dropped=[].append, tell_read=None, tell_sent=places,
        begin_at=begin_at,
    )  # fmt: skip


def test_how_far_a_log_is_sent_is_told_and_gone_on_from(tmp_path: Path, shipper: Shipper) -> None:
    path = tmp_path / "app.log"
    write(path, *map(str, range(95)))
    size = path.stat().st_size
    places = Places()
    first = followed(path, ListDriver(), places)
    shipper.add(first)
    places.wait_for(size)
    shipper.end([first], 5)
    write(path, "more")
    driver = ListDriver()
    second = followed(path, driver, Places(), size)
    shipper.add(second)
    shipper.end([second], 5)
    assert driver.got == ["more"]


def test_what_did_not_come_back_is_not_sent(tmp_path: Path, shipper: Shipper) -> None:
    """Two reads, and the endpoint goes away for the second: it is behind the place."""
    path = tmp_path / "app.log"
    write(path, "a")
    size = path.stat().st_size
    driver, places = ListDriver(), Places()
    shipment = followed(path, driver, places)
    shipper.add(shipment)
    places.wait_for(size)
    driver._failures = [LogEndpointUnavailable("away")] * 1000
    write(path, "b")
    shipper.end([shipment], 1.5)
    assert places.told == [size]
    assert shipment.dropped.records == 1


def test_half_a_line_is_not_sent(tmp_path: Path, shipper: Shipper) -> None:
    path = tmp_path / "app.log"
    write(path, "whole")
    size = path.stat().st_size
    with open(path, "a") as file:
        file.write("2026-11-24T11:50:40.123456789Z stdout P ha\n")
    with open(path, "a") as file:
        file.write("2026-11-24T11:50:40.123456789Z stderr F beside\n")
    places = Places()
    driver = ListDriver()
    shipment = followed(path, driver, places)
    shipper.add(shipment)
    write(path, "lf")
    places.wait_for(path.stat().st_size)
    assert all(place in (size, path.stat().st_size) for place in places.told)
    assert sorted(driver.got) == ["beside", "half", "whole"]
    shipper.end([shipment], 5)


def test_what_a_driver_keeps_back_is_not_sent(tmp_path: Path, shipper: Shipper) -> None:
    path = tmp_path / "app.log"
    write(path, "a")
    driver, places = Holding(), Places()
    shipment = followed(path, driver, places)
    shipper.add(shipment)
    assert driver.has_read.wait(10)  # by itself: a place is that of the read that it came with
    sizes = [path.stat().st_size]
    for text in "bc":
        write(path, text)
        sizes.append(path.stat().st_size)
        places.wait_for(sizes[-2])
        assert sizes[-1] not in places.told
    shipper.end([shipment], 5)
    assert driver.got == ["a", "b", "c"]
