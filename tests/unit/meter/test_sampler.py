"""The C thread and parser over plain files; no root needed."""

from __future__ import annotations

import importlib
import os
import signal
import subprocess
import sys
import threading
import time
import zlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Struct

from fargatelite.errors import CgroupFailed, StateCorrupt, TaskBusy
from fargatelite.meter.ledger import LedgerHeader, SampleFlag, read_ledger, summarise
from fargatelite.meter.sampler import Sampler

TASK = "0123456789abcdef" * 2
EXTENSION = importlib.import_module("fargatelite.meter._meter")


class FileGroup(Struct, frozen=True, kw_only=True):
    version: int
    cpu_usage_file: str
    memory_usage_file: str
    memory_peak_file: str | None


def group(
    directory: Path, version: int = 1, cpu: str = "12345\n", memory: str = "4096\n"
) -> FileGroup:
    directory.mkdir(exist_ok=True)
    (directory / "cpu").write_text(cpu)
    (directory / "memory").write_text(memory)
    (directory / "peak").write_text("8192\n")
    return FileGroup(
        version=version,
        cpu_usage_file=str(directory / "cpu"),
        memory_usage_file=str(directory / "memory"),
        memory_peak_file=str(directory / "peak"),
    )


def header(task_id: str = TASK) -> LedgerHeader:
    boot_id = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return LedgerHeader(
        task_id=task_id,
        boot_id=boot_id,
        created_at_ns=time.time_ns(),
        cpu_units=256,
        memory_mib=512,
    )


def await_ticks(sampler: Sampler, count: int) -> None:
    deadline = time.monotonic() + count + 5
    until = sampler.counters().ticks + count
    while sampler.counters().ticks < until:
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_thread_samples_on_the_second(tmp_path: Path) -> None:
    with Sampler() as sampler:
        sampler.add(TASK, tmp_path / "t.ledger", header(), group(tmp_path / "task"))
        sampler.add_container(
            TASK, "web", group(tmp_path / "web", 2, "usage_usec 77\nuser_usec 1\n")
        )
        await_ticks(sampler, 2)
        latest = sampler.latest(TASK)
        sampler.remove(TASK)
        sampler.remove(TASK)
    assert latest["web"].cpu_usage_ns == 77_000
    assert latest[None].memory_bytes == 4096
    ledger = read_ledger(tmp_path / "t.ledger")
    assert ledger.problems == ()
    assert ledger.header.containers == ("web",)
    assert (tmp_path / "t.ledger").stat().st_size == 4096 + 64 * len(ledger.samples)
    assert (tmp_path / "t.ledger").stat().st_mode & 0o777 == 0o600
    web = [sample for sample in ledger.samples if sample.container == 0]
    assert web[0].flags == SampleFlag.FIRST | SampleFlag.EXTRA
    assert web[-1].flags == SampleFlag.LAST | SampleFlag.EXTRA
    ticks = [sample for sample in web if not sample.flags & SampleFlag.EXTRA]
    assert len(ticks) >= 2
    for sample in ticks:
        assert sample.wall_ns % 1_000_000_000 // 1000 >= sample.late_us % 1_000_000
        assert (sample.late_us >= 100_000) == bool(sample.flags & SampleFlag.LATE)


def test_value_that_does_not_parse_is_a_gap(tmp_path: Path) -> None:
    sampler = Sampler()
    files = group(tmp_path / "task", cpu="12x\n")
    sampler.add(TASK, tmp_path / "t.ledger", header(), files)
    Path(files.memory_usage_file).write_text("")
    Path(files.cpu_usage_file).write_text("99\n")
    sampler.sample_now(TASK)
    sampler.remove(TASK)
    samples = read_ledger(tmp_path / "t.ledger").samples
    assert [sample.cpu_usage_ns for sample in samples] == [None, 99, 99]
    assert [sample.memory_bytes for sample in samples] == [4096, None, None]


def test_two_writers_are_refused(tmp_path: Path) -> None:
    first, second = Sampler(), Sampler()
    files = group(tmp_path / "task")
    first.add(TASK, tmp_path / "t.ledger", header(), files)
    with pytest.raises(TaskBusy, match=r"another process writes ledger .*t\.ledger"):
        second.add(TASK, tmp_path / "t.ledger", header(), files)
    first.remove(TASK)
    second.add(TASK, tmp_path / "t.ledger", header(), files)
    second.remove(TASK)
    assert [sample.seq for sample in read_ledger(tmp_path / "t.ledger").samples] == [0, 1, 2, 3]


def test_other_tasks_ledger_is_refused(tmp_path: Path) -> None:
    sampler = Sampler()
    sampler.add(TASK, tmp_path / "t.ledger", header(), None)
    sampler.remove(TASK)
    other = "f" * 32
    with pytest.raises(StateCorrupt, match=f"is of task {TASK}, not {other}"):
        sampler.add(other, tmp_path / "t.ledger", header(other), None)


def test_missing_group_is_named_and_leaves_nothing(tmp_path: Path) -> None:
    sampler = Sampler()
    files = group(tmp_path / "task")
    Path(files.memory_usage_file).unlink()
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(CgroupFailed, match=r"cannot meter .*memory: ENOENT"):
        sampler.add(TASK, tmp_path / "t.ledger", header(), files)
    assert len(os.listdir("/proc/self/fd")) == before


def test_restarted_container_keeps_its_index(tmp_path: Path) -> None:
    sampler = Sampler()
    sampler.add(TASK, tmp_path / "t.ledger", header(), None)
    sampler.add_container(TASK, "web", group(tmp_path / "one", cpu="1000\n"))
    with pytest.raises(TaskBusy):
        sampler.add_container(TASK, "web", group(tmp_path / "one", cpu="1000\n"))
    sampler.remove_container(TASK, "web")
    sampler.remove_container(TASK, "web")
    sampler.add_container(TASK, "web", group(tmp_path / "two", cpu="5000\n"))
    sampler.remove(TASK)
    ledger = read_ledger(tmp_path / "t.ledger")
    assert ledger.header.containers == ("web",)
    assert summarise(ledger)["web"].cpu_ns == 6000


def test_segment_grows(tmp_path: Path) -> None:
    sampler = Sampler()
    sampler.add(TASK, tmp_path / "t.ledger", header(), group(tmp_path / "task"))
    sampler.run_sweeps(5000)
    sampler.remove(TASK)
    ledger = read_ledger(tmp_path / "t.ledger")
    assert len(ledger.samples) == 5002
    assert ledger.problems == ()
    assert sampler.counters().dropped_records == 0


def test_kill_9_loses_nothing_and_another_process_goes_on(tmp_path: Path) -> None:
    files = group(tmp_path / "task")
    program = f"""
import sys, time
from pathlib import Path
sys.path.insert(0, {str(Path(__file__).parent)!r})
from test_sampler import Sampler, group, header, TASK
sampler = Sampler()
sampler.add(TASK, {str(tmp_path / "t.ledger")!r}, header(), group(Path({str(tmp_path / "task")!r})))
for _ in range(9):
    sampler.sample_now(TASK)
print("ready", flush=True)
time.sleep(60)
"""
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    assert len(read_ledger(tmp_path / "t.ledger").samples) == 10
    sampler = Sampler()
    sampler.add(TASK, tmp_path / "t.ledger", header(), files)
    sampler.remove(TASK)
    ledger = read_ledger(tmp_path / "t.ledger")
    assert [sample.seq for sample in ledger.samples] == list(range(12))
    assert ledger.problems == ()


def test_tasks_come_and_go_while_the_thread_sweeps(tmp_path: Path) -> None:
    files = group(tmp_path / "task")
    done: list[int] = []
    with Sampler() as sampler:

        def live(index: int) -> None:
            task_id = f"{index:032x}"
            for _ in range(50):
                sampler.add(task_id, tmp_path / f"{index}.ledger", header(task_id), files)
                sampler.add_container(task_id, "web", files)
                sampler.sample_now(task_id)
                sampler.remove(task_id)
            done.append(index)

        threads = [threading.Thread(target=live, args=(index,)) for index in range(3)]
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads):
            sampler.run_sweeps(10)
        for thread in threads:
            thread.join()
    assert sorted(done) == [0, 1, 2]
    for index in range(3):
        assert read_ledger(tmp_path / f"{index}.ledger").problems == ()


@given(st.binary(max_size=64))
def test_crc_is_the_usual_one(data: bytes) -> None:
    assert EXTENSION.lib.ledger_crc32(data, len(data)) == zlib.crc32(data)


@given(st.one_of(st.integers(0, 2**70).map(lambda value: f"{value}\n".encode()), st.binary()))
def test_number_parser_agrees_with_python(text: bytes) -> None:
    value = EXTENSION.ffi.new("uint64_t *")
    result = EXTENSION.lib.parse_number(text, len(text), value)
    line = text.split(b"\n", 1)[0]
    good = line.isdigit() and int(line) < 2**64
    assert (result == 0) == good
    if good:
        assert value[0] == int(line)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (b"usage_usec 5\nuser_usec 4\n", 5),
        (b"nr_periods 1\nusage_usec 18446744073709551615\n", 2**64 - 1),
        (b"xusage_usec 5\n", None),
        (b"usage_usec 5", None),  # cut off: it could be 50
        (b"usage_usec \n", None),
        (b"usage_usec", None),
        (b"", None),
    ],
)
def test_keyed_parser(text: bytes, expected: int | None) -> None:
    value = EXTENSION.ffi.new("uint64_t *")
    result = EXTENSION.lib.parse_keyed(text, len(text), b"usage_usec", value)
    assert (value[0] if result == 0 else None) == expected


def test_mirrored_constants_are_those_of_the_format() -> None:
    from fargatelite.meter import ledger

    assert EXTENSION.lib.LEDGER_VERSION == ledger.FORMAT_VERSION
    assert EXTENSION.lib.LEDGER_HEADER_BYTES == ledger._HEADER_BYTES
    assert EXTENSION.lib.LEDGER_NAMES_OFFSET == ledger._NAMES_OFFSET
    assert EXTENSION.lib.LEDGER_MAX_CONTAINERS == ledger.MAX_CONTAINERS
    assert EXTENSION.ffi.sizeof("struct ledger_record") == ledger._RECORD.size
