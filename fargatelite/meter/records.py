"""Records of version 3 of the ledger: low bits of counters, and the rest now and then.

The format to the byte is docs/ledger-format.md and csrc/formats/ledger.h. A value is the one before
plus what its low bits have grown by; growth of more than half of what they hold cannot be (the
writer tells such values in detail), so it counts as none and nothing is made up.
"""

from __future__ import annotations

import struct
import zlib

from msgspec import structs

from fargatelite.meter.samples import (
    KIB,
    Mark,
    MarkType,
    NetworkSample,
    Pressure,
    Sample,
    SampleFlag,
    SlowSample,
)

__all__ = ["RECORD_BYTES", "TASK_INDEX", "Records"]

RECORD_BYTES = 28
TASK_INDEX = 15
"""Container index of the task's own group."""

_SAMPLE = struct.Struct("<IBBHIIIII")
_BASE = struct.Struct("<IBBBBIIIII")
_CLOCK = struct.Struct("<IB3sIQQ")
_MARK = struct.Struct("<IBBBBIQq")
_MEMORY = struct.Struct("<IBBHIIIII")
_PAIR = struct.Struct("<IBBHIQQ")
_PRESSURE = struct.Struct("<IBBH4s4I")
_SEQ = struct.Struct("<I")
(_KIND_SAMPLE, _KIND_BASE, _KIND_CLOCK, _KIND_MARK, _KIND_MEMORY, _KIND_IO, _KIND_PRESSURE,
 _KIND_RECEIVED, _KIND_SENT) = range(1, 10)  # fmt: skip
_GENERATION, _PEAK_IS_MEMORY, _PEAK_UNKNOWN, _NO_THROTTLING, _DETAILED = 15, 16, 32, 64, 128
_GAP_STAT, _GAP_USER = 16, 32
_PIDS_UNKNOWN = 65535
_LATE_IN_CLOCK = 4095
_PERIOD_BITS, _LATE_SHIFT, _TIME_BITS = 10, 20, 24
_PERIODS = (1 << 2 * _PERIOD_BITS) - 1
_NO_FLAGS = SampleFlag(0)
_FLAGS = tuple(SampleFlag(bits) for bits in range(256))
_LOST = 4
"""Behind more damaged records than these nothing is told by low bits alone: a clock may have run,
or a counter grown, by more than half of them."""


def _forward(known: int, low: int, bits: int) -> int:
    """`known` or more, with these low bits."""
    grown = (low - known) & ((1 << bits) - 1)
    return known + grown if grown < 1 << (bits - 1) else known


class _Group:
    """The newest values of one group."""

    __slots__ = (
        "counts",
        "cpu_ns",
        "generation",
        "peak_kib",
        "periods",
        "throttled_low",
        "throttled_periods",
        "throttled_us",
    )

    def __init__(self, generation: int) -> None:
        self.generation = generation
        self.cpu_ns = self.throttled_us = self.periods = self.throttled_periods = 0
        self.counts = self.throttled_low = 0
        self.peak_kib: int | None = None

    def forward_throttling(self, counts: int, throttled: int) -> None:
        """Most groups have none, so that these stay what they are."""
        self.throttled_us = _forward(self.throttled_us, throttled, 32)
        self.periods = _forward(self.periods, counts, _PERIOD_BITS)
        self.throttled_periods = _forward(
            self.throttled_periods, counts >> _PERIOD_BITS, _PERIOD_BITS
        )
        self.counts, self.throttled_low = counts, throttled


class Records:
    """Collects the records of one segment."""

    def __init__(self) -> None:
        self.samples: list[Sample] = []
        self.slow: list[SlowSample] = []
        self.pressure: list[Pressure] = []
        self.network: list[NetworkSample] = []
        self.marks: list[Mark] = []
        self._groups: dict[int, _Group] = {}
        self._generations: dict[int, int] = {}
        self._base: tuple[int, bytes] | None = None
        self._now_us: int | None = None
        self._ahead_ns = 0
        self._late_100us = 0
        self._received: tuple[int, int, int] | None = None

    def check(self, seq: int, raw: bytes) -> str | None:
        """What is wrong with the bytes of record `seq`."""
        if int.from_bytes(raw[:4], "little") != zlib.crc32(_SEQ.pack(seq) + raw[4:]):
            return f"record {seq}: wrong checksum"
        return None

    def lose(self, count: int) -> None:
        """So many records before the next one are damaged."""
        for group in self._groups.values():
            group.peak_kib = None
        if count > _LOST:
            self._groups.clear()
            self._now_us = None

    def add(self, seq: int, raw: bytes) -> str | None:
        """Takes in record `seq`, which is whole; why it says nothing, when something before it is
        missing. Kinds of later writers are passed over."""
        kind, container = raw[4] >> 4, raw[4] & 15
        if kind == _KIND_BASE:
            self._base = (seq, raw)
        elif kind == _KIND_CLOCK:
            _, _, _, self._late_100us, wall_ns, monotonic_ns = _CLOCK.unpack(raw)
            self._now_us = monotonic_ns // 1000
            self._ahead_ns = wall_ns - monotonic_ns
        elif self._now_us is None:
            return f"record {seq}: no clock before it"
        elif kind == _KIND_SAMPLE:
            return self._add_sample(seq, container, raw)
        elif kind == _KIND_MARK:
            self._add_mark(container, raw)
        elif kind == _KIND_PRESSURE:
            self._add_pressure(container, raw)
        elif kind == _KIND_MEMORY:
            self._add_memory(container, raw)
        elif kind in (_KIND_IO, _KIND_RECEIVED, _KIND_SENT):
            self._add_pair(kind, container, raw)
        return None

    def _time(self, low: int, bits: int) -> int:
        """Monotonic clock, ns."""
        assert self._now_us is not None
        self._now_us = _forward(self._now_us, low, bits)
        return self._now_us * 1000

    def _add_sample(self, seq: int, container: int, raw: bytes) -> str | None:
        _, _, bits, pids, counts, time_cpu, cpu, throttled, memory_kib = _SAMPLE.unpack(raw)
        flags = 0
        group = self._groups.get(container)
        if bits & _DETAILED:
            base = self._base
            if base is None or base[0] != seq - 1 or base[1][4] & 15 != container:
                return f"record {seq}: its base, {seq - 1}, is damaged"
            (_, _, flags, generation, _, cpu_high, throttled_high, periods, throttled_periods,
             peak_kib) = _BASE.unpack(base[1])  # fmt: skip
            group = self._groups[container] = _Group(generation)
            self._generations[container] = generation
            group.cpu_ns = cpu_high << 32 | cpu
            group.throttled_us = throttled_high << 32 | throttled
            group.periods, group.throttled_periods = periods, throttled_periods
            group.counts, group.throttled_low = counts, throttled
            group.peak_kib = None if flags & 4 else peak_kib
        elif group is None or (group.generation ^ bits) & _GENERATION:
            return f"record {seq}: nothing before it says what its counters begin with"
        else:
            group.cpu_ns = _forward(group.cpu_ns, time_cpu >> _TIME_BITS << 32 | cpu, 40)
            if (counts ^ group.counts) & _PERIODS or throttled != group.throttled_low:
                group.forward_throttling(counts, throttled)
            if bits & _PEAK_IS_MEMORY:
                group.peak_kib = memory_kib
            if bits & _NO_THROTTLING:
                flags |= 8
            if pids == _PIDS_UNKNOWN:
                flags |= 16
        peak = None if bits & _PEAK_UNKNOWN else group.peak_kib
        if peak is None:
            flags |= 4
        monotonic_ns = self._time(time_cpu, _TIME_BITS)
        late_100us = counts >> _LATE_SHIFT
        has_throttling = not flags & 8
        self.samples.append(
            Sample(
                seq=seq,
                container=None if container == TASK_INDEX else container,
                flags=_FLAGS[flags] if flags else _NO_FLAGS,
                generation=group.generation,
                wall_ns=monotonic_ns + self._ahead_ns,
                monotonic_ns=monotonic_ns,
                cpu_usage_ns=None if flags & 1 else group.cpu_ns,
                memory_bytes=None if flags & 2 else memory_kib * KIB,
                memory_peak_bytes=None if peak is None else peak * KIB,
                throttled_ns=group.throttled_us * 1000 if has_throttling else None,
                periods=group.periods if has_throttling else None,
                throttled_periods=group.throttled_periods if has_throttling else None,
                pids=None if flags & 16 else pids,
                late_us=100 * (self._late_100us if late_100us == _LATE_IN_CLOCK else late_100us),
            )
        )
        return None

    def _add_mark(self, container: int, raw: bytes) -> None:
        _, _, kind, generation, _, time, wall_ns, value = _MARK.unpack(raw)
        monotonic_ns = self._time(time, 32)
        # A step is told by what it led to, should the clock record before it be damaged.
        self._ahead_ns = wall_ns - monotonic_ns
        if kind == MarkType.GROUP:
            self._generations[container] = generation
            self._groups.pop(container, None)
        self.marks.append(
            Mark(
                kind=kind,
                container=_index(container),
                generation=generation,
                wall_ns=wall_ns,
                monotonic_ns=monotonic_ns,
                value=value,
            )
        )

    def _generation(self, container: int, bits: int) -> int:
        """The whole number of the group whose slow values these are."""
        known = self._generations.get(container, 0)
        return known + ((bits - known) & _GENERATION)

    def _add_memory(self, container: int, raw: bytes) -> None:
        _, _, bits, user_high, time, working_kib, rss_kib, cache_kib, user = _MEMORY.unpack(raw)
        monotonic_ns = self._time(time, 32)
        has_stat = not bits & _GAP_STAT
        self.slow.append(
            SlowSample(
                container=_index(container),
                generation=self._generation(container, bits),
                wall_ns=monotonic_ns + self._ahead_ns,
                monotonic_ns=monotonic_ns,
                user_ns=None if bits & _GAP_USER else (user_high << 32 | user) * 1000,
                working_set_bytes=working_kib * KIB if has_stat else None,
                rss_bytes=rss_kib * KIB if has_stat else None,
                cache_bytes=cache_kib * KIB if has_stat else None,
                read_bytes=None,
                write_bytes=None,
            )
        )

    def _add_pair(self, kind: int, container: int, raw: bytes) -> None:
        _, _, bits, _, time, first, second = _PAIR.unpack(raw)
        monotonic_ns = self._time(time, 32)
        wall_ns = monotonic_ns + self._ahead_ns
        if kind == _KIND_RECEIVED:
            self._received = (monotonic_ns, first, second)
        elif kind == _KIND_SENT:
            if self._received is not None and self._received[0] == monotonic_ns:
                self.network.append(
                    NetworkSample(
                        wall_ns=wall_ns,
                        received_bytes=self._received[1],
                        received_packets=self._received[2],
                        sent_bytes=first,
                        sent_packets=second,
                    )
                )
        else:
            self._add_io(container, bits, wall_ns, monotonic_ns, (first, second))

    def _add_io(
        self, container: int, bits: int, wall_ns: int, monotonic_ns: int, moved: tuple[int, int]
    ) -> None:
        """Beside the memory of the same moment, where that is whole."""
        index = _index(container)
        last = self.slow[-1] if self.slow else None
        if last is None or (last.container, last.monotonic_ns) != (index, monotonic_ns):
            self.slow.append(
                SlowSample(
                    container=index, generation=self._generation(container, bits),
                    wall_ns=wall_ns, monotonic_ns=monotonic_ns, user_ns=None,
                    working_set_bytes=None, rss_bytes=None, cache_bytes=None,
                    read_bytes=moved[0], write_bytes=moved[1],
                )
            )  # fmt: skip
        else:
            self.slow[-1] = structs.replace(last, read_bytes=moved[0], write_bytes=moved[1])

    def _add_pressure(self, container: int, raw: bytes) -> None:
        _, _, bits, highest, high, *low = _PRESSURE.unpack(raw)
        assert self._now_us is not None
        told = [
            None
            if bits & 16 << index
            else (highest >> 4 * index & 15) << 40 | high[index] << 32 | low[index]
            for index in range(4)
        ]
        self.pressure.append(
            Pressure(
                container=_index(container),
                generation=self._generation(container, bits),
                wall_ns=self._now_us * 1000 + self._ahead_ns,
                cpu_us=told[0],
                memory_us=told[1],
                memory_full_us=told[2],
                io_us=told[3],
            )
        )


def _index(container: int) -> int | None:
    return None if container == TASK_INDEX else container
