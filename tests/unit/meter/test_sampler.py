"""The C thread and parser over plain files; no root needed."""

from __future__ import annotations

import importlib
import os
import random
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
from msgspec import Struct, structs

from fargatelite.errors import CgroupFailed, StateCorrupt, TaskBusy
from fargatelite.meter.ledger import (
    LedgerHeader,
    MarkType,
    SampleFlag,
    list_segments,
    read_ledger,
    read_task_ledger,
)
from fargatelite.meter.sampler import Sampler
from fargatelite.meter.usage import summarise
from tests.fixtures import plain_ledger

TASK = "0123456789abcdef" * 2
EXTENSION = importlib.import_module("fargatelite.meter._meter")


class FileGroup(Struct, frozen=True, kw_only=True):
    version: int
    cpu_usage_file: str
    memory_usage_file: str
    memory_peak_file: str | None
    throttled_file: str | None = None
    is_cpu_limited: bool = True
    pids_file: str | None = None
    memory_stat_file: str | None = None
    cpu_user_file: str | None = None
    io_file: str | None = None
    processes_file: str | None = None
    pressure_files: tuple[str, str, str] | None = None


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
    assert (tmp_path / "t.ledger").stat().st_size == 4096 + 28 * ledger.next_seq
    assert (tmp_path / "t.ledger").stat().st_mode & 0o777 == 0o600
    web = [sample for sample in ledger.samples if sample.container == 0]
    ends = SampleFlag.FIRST | SampleFlag.LAST | SampleFlag.EXTRA
    assert web[0].flags & ends == SampleFlag.FIRST | SampleFlag.EXTRA
    assert web[-1].flags & ends == SampleFlag.LAST | SampleFlag.EXTRA
    ticks = [sample for sample in web if not sample.flags & SampleFlag.EXTRA]
    assert len(ticks) >= 2
    for sample in ticks:
        assert sample.wall_ns % 1_000_000_000 // 1000 >= sample.late_us % 1_000_000


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
    ledger = read_ledger(tmp_path / "t.ledger")
    assert (len(ledger.samples), ledger.next_seq, ledger.problems) == (4, 14, ())
    assert [sample.generation for sample in ledger.samples] == [0, 0, 0, 0]


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
    assert len(ledger.samples) == 12
    assert {sample.generation for sample in ledger.samples} == {0}
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


MOMENT_NS = 1_000_000_000


def marks_of(path: Path) -> list[tuple[MarkType, int]]:
    return [
        (MarkType(mark.kind), mark.value)
        for mark in read_task_ledger(path).marks
        if mark.kind != MarkType.GROUP
    ]


@pytest.mark.parametrize("sign", [1, -1])
def test_a_clock_that_is_set_adds_no_time(tmp_path: Path, sign: int) -> None:
    """An hour forward or back: the monotonic clock tells what was used, the mark what happened."""
    hour_ns = sign * 3600 * MOMENT_NS
    sampler = Sampler()
    sampler.add(TASK, tmp_path / "t.ledger", header(), group(tmp_path / "task"))
    for shift_ns in (0, hour_ns, 0):
        sampler.shift_clocks(wall_ns=shift_ns + MOMENT_NS, monotonic_ns=MOMENT_NS,
                             boottime_ns=MOMENT_NS)  # fmt: skip
        sampler.tick()
    sampler.remove(TASK)
    ((kind, value),) = marks_of(tmp_path / "t.ledger")
    assert kind == MarkType.STEP
    assert value == pytest.approx(hour_ns, abs=0.05 * MOMENT_NS)
    usage = summarise(read_ledger(tmp_path / "t.ledger"))[None]
    assert usage.observed_ns == pytest.approx(3 * MOMENT_NS, rel=0.2)
    assert usage.memory_byte_ns == 4096 * usage.observed_ns


def test_missed_seconds_are_marked_and_nothing_is_made_up(tmp_path: Path) -> None:
    sampler = Sampler()
    files = group(tmp_path / "task")
    sampler.add(TASK, tmp_path / "t.ledger", header(), files)
    for seconds in (1, 10, 1):
        shift = seconds * MOMENT_NS
        sampler.shift_clocks(wall_ns=shift, monotonic_ns=shift, boottime_ns=shift)
        Path(files.cpu_usage_file).write_text(f"{seconds * 1_000_000}\n")
        sampler.tick()
    sampler.remove(TASK)
    assert marks_of(tmp_path / "t.ledger") == [(MarkType.MISSED, 9)]
    usage = summarise(read_ledger(tmp_path / "t.ledger"))[None]
    assert usage.samples == 5
    assert usage.estimated_ns == pytest.approx(10 * MOMENT_NS, rel=0.05)
    assert usage.cpu_ns == 10_000_000


def test_a_host_that_slept_says_so(tmp_path: Path) -> None:
    sampler = Sampler()
    sampler.add(TASK, tmp_path / "t.ledger", header(), group(tmp_path / "task"))
    for asleep_s in (0, 500, 0):
        sampler.shift_clocks(
            wall_ns=(1 + asleep_s) * MOMENT_NS,
            monotonic_ns=MOMENT_NS,
            boottime_ns=(1 + asleep_s) * MOMENT_NS,
        )
        sampler.tick()
    sampler.remove(TASK)
    ((kind, value),) = marks_of(tmp_path / "t.ledger")
    assert kind == MarkType.SUSPEND
    assert value == pytest.approx(500 * MOMENT_NS, abs=0.01 * MOMENT_NS)
    assert summarise(read_ledger(tmp_path / "t.ledger"))[None].observed_ns < 4 * MOMENT_NS


def test_a_stopped_process_marks_what_it_missed(tmp_path: Path) -> None:
    """SIGSTOP for three seconds, by the real clock and the real thread."""
    program = f"""
import sys, time
from pathlib import Path
sys.path.insert(0, {str(Path(__file__).parent)!r})
from test_sampler import Sampler, await_ticks, group, header, TASK
with Sampler() as sampler:
    sampler.add(TASK, {str(tmp_path / "t.ledger")!r}, header(), group(Path({str(tmp_path)!r})))
    await_ticks(sampler, 1)
    print("ready", flush=True)
    sys.stdin.read()
    await_ticks(sampler, 2)
    sampler.remove(TASK)
"""
    process = subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    process.send_signal(signal.SIGSTOP)
    time.sleep(3.2)  # the length of what is simulated
    process.send_signal(signal.SIGCONT)
    process.communicate()
    missed = [value for kind, value in marks_of(tmp_path / "t.ledger") if kind == MarkType.MISSED]
    ledger = read_ledger(tmp_path / "t.ledger")
    assert sum(missed) in (2, 3)
    assert max(sample.late_us for sample in ledger.samples) > 1_000_000
    # Boundaries from the first to the last tick: each has a sample or is marked.
    ticks = [
        s.wall_ns - s.late_us * 1000 for s in ledger.samples if SampleFlag.EXTRA not in s.flags
    ]
    passed = round((ticks[-1] - ticks[0]) / 1e9) + 1
    assert len(ticks) + sum(missed) == passed


def test_every_value_of_a_group_of_v2(tmp_path: Path) -> None:
    files = {
        "cpu.stat": "usage_usec 900\nuser_usec 600\nsystem_usec 300\nnice_usec 0\n"
        "nr_periods 7\nnr_throttled 3\nthrottled_usec 50\nnr_bursts 0\n",
        "memory.current": "40960\n",
        "memory.peak": "81920\n",
        "pids.current": "12\n",
        "memory.stat": "anon 12288\nfile 24576\nkernel 1\ninactive_file 8192\n",
        "io.stat": "8:0 rbytes=100 wbytes=200 rios=1\n8:16 rbytes=10 wbytes=20 rios=1\n",
        "cpu.pressure": "some avg10=0.00 avg60=0.00 avg300=0.00 total=11\n",
        "memory.pressure": "some avg10=0.00 total=22\nfull avg10=0.00 total=21\n",
        "io.pressure": "some avg10=0.00 total=33\nfull avg10=0.00 total=30\n",
    }
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    network = tmp_path / "dev"
    network.write_text(
        "Inter-|   Receive  |  Transmit\n face |bytes packets |bytes packets\n"
        "    lo: 9 9 0 0 0 0 0 0 9 9 0 0 0 0 0 0\n"
        "  eth1:1000 10 0 0 0 0 0 0 2000 20 0 0 0 0 0 0\n"
    )
    v2 = FileGroup(
        version=2,
        cpu_usage_file=str(tmp_path / "cpu.stat"),
        memory_usage_file=str(tmp_path / "memory.current"),
        memory_peak_file=str(tmp_path / "memory.peak"),
        pids_file=str(tmp_path / "pids.current"),
        memory_stat_file=str(tmp_path / "memory.stat"),
        io_file=str(tmp_path / "io.stat"),
        pressure_files=(
            str(tmp_path / "cpu.pressure"),
            str(tmp_path / "memory.pressure"),
            str(tmp_path / "io.pressure"),
        ),
    )
    sampler = Sampler()
    sampler.add(TASK, tmp_path / "t.ledger", header(), v2)
    sampler.add_network(TASK, os.open(network, os.O_RDONLY))
    with pytest.raises(TaskBusy):
        sampler.add_network(TASK, os.open(network, os.O_RDONLY))
    sampler.remove(TASK)
    ledger = read_ledger(tmp_path / "t.ledger")
    last = ledger.samples[-1]
    assert (last.cpu_usage_ns, last.throttled_ns, last.periods, last.throttled_periods) == (
        900_000, 50_000, 7, 3,
    )  # fmt: skip
    assert (last.memory_bytes, last.memory_peak_bytes, last.pids) == (40960, 81920, 12)
    (slow,) = ledger.slow
    assert (slow.user_ns, slow.read_bytes, slow.write_bytes) == (600_000, 110, 220)
    assert (slow.working_set_bytes, slow.rss_bytes, slow.cache_bytes) == (32768, 12288, 24576)
    (stalls,) = ledger.pressure
    assert (stalls.cpu_us, stalls.memory_us, stalls.memory_full_us, stalls.io_us) == (
        11, 22, 21, 33,
    )  # fmt: skip
    (traffic,) = ledger.network
    assert (traffic.received_bytes, traffic.sent_bytes) == (1000, 2000)
    assert (traffic.received_packets, traffic.sent_packets) == (10, 20)


def test_a_ledger_of_another_boot_goes_on_in_a_new_segment(tmp_path: Path) -> None:
    files = group(tmp_path / "task", cpu="1000\n")
    sampler = Sampler()
    before = structs.replace(header(), boot_id="0" * 36)
    sampler.add(TASK, tmp_path / "t.ledger", before, None)
    sampler.add_container(TASK, "web", files)
    sampler.remove(TASK)
    sampler.add(TASK, tmp_path / "t.ledger", header(), None)
    sampler.add_container(TASK, "web", group(tmp_path / "again", cpu="500\n"))
    sampler.remove(TASK)
    assert (tmp_path / "t.1.ledger").exists()
    ledger = read_task_ledger(tmp_path / "t.ledger")
    assert ledger.header.containers == ("web",)
    assert [sample.generation for sample in ledger.samples] == [0, 0, 1, 1]
    assert summarise(ledger)["web"].cpu_ns == 1500


def test_a_group_that_is_given_a_limit_is_found_out(tmp_path: Path) -> None:
    """Where there is none, cpu.stat is not read every second, but now and then."""
    throttled = tmp_path / "throttled"
    files = structs.replace(
        group(tmp_path / "task"), throttled_file=str(throttled), is_cpu_limited=False
    )

    def put(periods: int) -> None:
        throttled.write_text(f"nr_periods {periods}\nnr_throttled 0\nthrottled_time 0\n")

    put(0)
    sampler = Sampler(slow_every_s=0)
    sampler.add(TASK, tmp_path / "t.ledger", header(), files)
    for second in range(1, 60):
        put(max(0, second - 5))
        sampler.shift_clocks(wall_ns=MOMENT_NS, monotonic_ns=MOMENT_NS, boottime_ns=MOMENT_NS)
        sampler.tick()
    sampler.remove(TASK)
    samples = read_ledger(tmp_path / "t.ledger").samples
    assert not any(sample.flags & SampleFlag.GAP_THROTTLED for sample in samples)
    periods = [sample.periods for sample in samples]
    found = next(second for second, value in enumerate(periods) if value)
    assert 6 <= found <= 26
    assert periods[found:60] == [second - 5 for second in range(found, 60)]


SMALL = 8192
"""Bytes of a segment in these tests: some 140 records."""


def test_a_full_segment_is_followed_by_another(tmp_path: Path) -> None:
    sampler = Sampler(segment_bytes=SMALL, slow_every_s=0)
    files = group(tmp_path / "task")
    sampler.add(TASK, tmp_path / "t.ledger", header(), None)
    sampler.add_container(TASK, "web", files)
    Path(files.cpu_usage_file).write_text(f"{2**40}\n")
    for number in range(1000):
        if number == 500:
            sampler.add_container(TASK, "late", group(tmp_path / "late"))
        sampler.run_sweeps(1)
    sampler.remove(TASK)
    segments = list(list_segments(tmp_path / "t.ledger"))
    assert len(segments) > 5
    largest = max(segment.stat().st_size for segment in segments)
    assert largest <= SMALL + 28 * 6  # what one sweep adds
    ledger = read_task_ledger(tmp_path / "t.ledger")
    assert ledger.problems == ()
    assert ledger.header.containers == ("web", "late")
    web = [sample for sample in ledger.samples if sample.container == 0]
    assert len(web) == 1002
    assert {sample.cpu_usage_ns for sample in web[1:]} == {2**40}
    # Each tells everything by itself.
    assert all(read_ledger(segment).samples[0].cpu_usage_ns for segment in segments)
    assert all(read_ledger(segment).header.boot_id == header().boot_id for segment in segments)
    groups, _ = plain_ledger.read(tmp_path / "t.ledger")[1:3]
    assert len(groups[0, 0]) == 1002


def test_killed_anywhere_between_segments_nothing_is_lost(tmp_path: Path) -> None:
    """One process after the other is killed while it begins segments all the time; what each said
    that it had sampled is there, once."""
    said = 0
    program = f"""
import sys
from pathlib import Path
sys.path.insert(0, {str(Path(__file__).parent)!r})
from test_sampler import SMALL, Sampler, group, header, TASK
sampler = Sampler(segment_bytes=4096 + 28 * 4, slow_every_s=0, sync_every_s=0)
sampler.add(TASK, {str(tmp_path / "t.ledger")!r}, header(), group(Path({str(tmp_path / "task")!r})))
while True:
    sampler.run_sweeps(1)
    print(".", end="", flush=True)
"""
    for life in range(8):
        process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE)
        assert process.stdout is not None
        process.stdout.read(40 + 7 * life)
        process.send_signal(signal.SIGKILL)
        said += 40 + 7 * life + len(process.stdout.read())
        process.wait()
        process.stdout.close()
        (tmp_path / "t.ledger.next").write_bytes(b"what dying halfway leaves")
    ledger = read_task_ledger(tmp_path / "t.ledger")
    # Each life has its first sample, and may have died between a sample and its saying so.
    assert said + 8 <= len(ledger.samples) <= said + 2 * 8
    assert [problem for problem in ledger.problems if "checksum" not in problem.reason] == []
    assert len(ledger.problems) <= 8  # torn while it was being stored
    times = [sample.monotonic_ns for sample in ledger.samples]
    assert times == sorted(times)
    assert {sample.generation for sample in ledger.samples} == {0}
    assert len(list(list_segments(tmp_path / "t.ledger"))) > 50


def test_a_segment_whose_header_is_lost_costs_only_itself(tmp_path: Path) -> None:
    """A power cut may leave a segment with its name and without its first page."""
    path = tmp_path / "t.ledger"
    sampler = Sampler(segment_bytes=SMALL, slow_every_s=0)
    sampler.add(TASK, path, header(), group(tmp_path / "task"))
    sampler.run_sweeps(300)
    sampler.remove(TASK)
    whole = read_task_ledger(path)
    last = list(list_segments(path))[-1]
    lost = len(read_ledger(last).samples)
    last.write_bytes(bytes(65536))
    ledger = read_task_ledger(path)
    assert len(ledger.samples) == len(whole.samples) - lost
    assert ["is not a ledger" in problem.reason for problem in ledger.problems] == [True]
    sampler.add(TASK, path, header(), group(tmp_path / "task"))
    sampler.remove(TASK)
    ledger = read_task_ledger(path)
    assert len(ledger.samples) == len(whole.samples) - lost + 2
    assert {sample.generation for sample in ledger.samples} == {0}


def test_an_old_ledger_goes_on_in_a_segment_of_this_version(tmp_path: Path) -> None:
    path = tmp_path / "t.ledger"
    path.write_bytes((Path(__file__).parents[2] / "fixtures" / "version2.ledger").read_bytes())
    seen = read_ledger(path).samples
    before, generation = len(seen), max(sample.generation for sample in seen)
    sampler = Sampler()
    sampler.add(TASK, path, header(), None)
    sampler.add_container(TASK, "web", group(tmp_path / "task"))
    sampler.remove(TASK)
    ledger = read_task_ledger(path)
    assert (ledger.version, ledger.problems) == (3, ())
    assert len(ledger.samples) == before + 2
    assert ledger.samples[-1].generation == generation + 1  # a group of its own: counted anew


@pytest.mark.parametrize("process_count", [1, 16, 64])
def test_what_low_bits_tell_is_what_was_read(tmp_path: Path, process_count: int) -> None:
    """Counters of 1 to 64 busy CPUs, memory that comes and goes, seconds that are missing, values
    that cannot be read: the ledger has each exactly as the files had it."""
    files = group(tmp_path / "task")
    throttled = tmp_path / "throttled"
    pids = tmp_path / "pids"
    files = structs.replace(files, throttled_file=str(throttled), pids_file=str(pids))
    chance = random.Random(process_count)
    cpu, periods, held, stalled, peak = 0, 0, 0, 0, 0
    expected: list[tuple[int | None, ...]] = []
    # On tmpfs or not, these are plain files: what is read is what was written before.
    sampler = Sampler(slow_every_s=0)

    def put() -> None:
        nonlocal cpu, periods, held, stalled, peak
        cpu += chance.randrange(process_count * MOMENT_NS)
        grown = chance.choice([0, 10, 10, 1000])
        periods, held = periods + grown, held + grown // 2
        stalled += chance.randrange(process_count * MOMENT_NS) // 1000 * 1000
        memory = chance.randrange(2**18) * 4096
        peak = max(peak, memory) if chance.random() < 0.9 else max(peak, memory + 4096)
        is_known = chance.random() > 0.05
        Path(files.cpu_usage_file).write_text(f"{cpu}\n" if is_known else "?")
        Path(files.memory_usage_file).write_text(f"{memory}\n")
        assert files.memory_peak_file is not None
        Path(files.memory_peak_file).write_text(f"{peak}\n")
        has_stat = chance.random() > 0.05
        throttled.write_text(
            f"nr_periods {periods}\nnr_throttled {held}\nthrottled_time {stalled}\n"
            if has_stat
            else ""
        )
        pids.write_text(f"{periods % 70000}\n")
        expected.append(
            (cpu if is_known else None, memory, peak, periods if has_stat else None,
             held if has_stat else None, stalled if has_stat else None, min(periods % 70000, 65534))
        )  # fmt: skip

    put()
    sampler.add(TASK, tmp_path / "t.ledger", header(), files)
    for _ in range(400):
        step_ns = chance.choice([1] * 30 + [9, 70, 5000]) * MOMENT_NS
        sampler.shift_clocks(wall_ns=step_ns, monotonic_ns=step_ns, boottime_ns=step_ns)
        put()
        sampler.tick()
    sampler.remove(TASK)
    ledger = read_task_ledger(tmp_path / "t.ledger")
    assert ledger.problems == ()
    found = [
        (s.cpu_usage_ns, s.memory_bytes, s.memory_peak_bytes, s.periods, s.throttled_periods,
         s.throttled_ns, s.pids)
        for s in ledger.samples
    ]  # fmt: skip
    assert found[:-1] == expected
    times = [sample.monotonic_ns for sample in ledger.samples]
    assert times == sorted(times)
    ahead_ns = {round((s.wall_ns - s.monotonic_ns) / 2_000_000) for s in ledger.samples}
    assert max(ahead_ns) - min(ahead_ns) <= 1


def test_segments_are_written_back(tmp_path: Path) -> None:
    with Sampler(sync_every_s=1) as sampler:
        sampler.add(TASK, tmp_path / "t.ledger", header(), group(tmp_path / "task"))
        deadline = time.monotonic() + 10
        while sampler.counters().synced == 0:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        assert sampler.counters().sync_failures == 0
        sampler.remove(TASK)


_text = st.one_of(
    st.binary(max_size=300),
    st.lists(
        st.sampled_from(
            [b"nr_periods", b"nr_throttled", b" ", b"\n", b"1", b"9" * 20, b":", b"lo", b"eth1:",
             b" rbytes=", b" wbytes=", b"some", b" total=", b"full"]
        ),
        max_size=60,
    ).map(b"".join),
)  # fmt: skip


@given(_text)
def test_no_text_makes_a_parser_read_beyond_it(text: bytes) -> None:
    """Under the address sanitizer this would tell more; here: no crash, and errors are errors."""
    ffi, lib = EXTENSION.ffi, EXTENSION.lib
    network = ffi.new("struct network *")
    one, two = ffi.new("uint64_t *"), ffi.new("uint64_t *")
    for result in (
        lib.parse_process_io(text, len(text), one, two),
        lib.parse_network(text, len(text), network),
        lib.parse_block_stat(text, len(text), one, two),
        lib.parse_io_v2(text, len(text), one, two),
        lib.parse_pressure(text, len(text), one, two),
    ):
        assert result <= 0


def test_a_block_devices_stat_is_in_sectors() -> None:
    ffi, lib = EXTENSION.ffi, EXTENSION.lib
    one, two = ffi.new("uint64_t *"), ffi.new("uint64_t *")
    text = b"  495004    53500 20258414   306327  1327689   635429 106255432  1019210  0 1 2\n"
    assert lib.parse_block_stat(text, len(text), one, two) == 0
    assert (one[0], two[0]) == (20258414 * 512, 106255432 * 512)


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
    assert EXTENSION.lib.LEDGER_RECORD_BYTES == ledger.RECORD_BYTES
    assert EXTENSION.lib.LEDGER_TASK == ledger.TASK_INDEX
