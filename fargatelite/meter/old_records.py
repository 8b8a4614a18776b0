"""Records of versions 1 and 2 of the ledger: 64 bytes, all values whole.

Nothing writes them any more; docs/ledger-format.md describes them to the byte.
"""

from __future__ import annotations

import struct
import zlib

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

__all__ = ["OLD_RECORD_BYTES", "OldRecords"]

OLD_RECORD_BYTES = 64

_SAMPLE = struct.Struct("<IBBBBQQQQIIIIHHI")
_SLOW = struct.Struct("<IBBBBQQQQQIIII")
_PRESSURE = struct.Struct("<IBBBBQQQQQQII")
_NETWORK = struct.Struct("<IBBBBQQQQQQII")
_MARK = struct.Struct("<IBBBBQQIIqQ12sI")
_RECORD_V1 = struct.Struct("<IHHQQQQQQII")
_TASK = 0xFF
_TASK_V1 = 0xFFFF
_KIND_SAMPLE, _KIND_SLOW, _KIND_PRESSURE, _KIND_NETWORK, _KIND_MARK = range(1, 6)
_UNKNOWN = 2**64 - 1
_GAP_STAT, _GAP_USER, _GAP_IO = 1, 2, 4
_V1_GAPS = 7
_V1_SHIFTED = 16 | 32 | 64  # FIRST, LAST, EXTRA stand one bit higher since version 2


class OldRecords:
    """Collects the records of one segment of version 1 or 2."""

    def __init__(self, version: int) -> None:
        self._version = version
        self.samples: list[Sample] = []
        self.slow: list[SlowSample] = []
        self.pressure: list[Pressure] = []
        self.network: list[NetworkSample] = []
        self.marks: list[Mark] = []
        self._groups: dict[int, tuple[int, int]] = {}

    def check(self, seq: int, raw: bytes) -> str | None:
        """What is wrong with the bytes of record `seq`."""
        if int.from_bytes(raw[-4:], "little") != zlib.crc32(raw[:-4]):
            return f"record {seq}: wrong checksum"
        said = int.from_bytes(raw[:4], "little")
        return None if said == seq else f"record {seq} says {said}"

    def lose(self, count: int) -> None:
        """Each record stands for itself: nothing else is lost with some of them."""

    def add(self, seq: int, raw: bytes) -> str | None:
        """Takes in record `seq`, which is whole; kinds of later writers are passed over."""
        if self._version == 1:
            self._add_v1(raw)
        else:
            self._add_v2(raw)
        return None

    def _add_v2(self, raw: bytes) -> None:
        kind = raw[4]
        if kind == _KIND_SAMPLE:
            self.samples.append(_sample(raw))
        elif kind == _KIND_SLOW:
            self.slow.append(_slow(raw))
        elif kind == _KIND_PRESSURE:
            self.pressure.append(_pressure(raw))
        elif kind == _KIND_NETWORK:
            wall, _, *figures, _, _ = _NETWORK.unpack(raw)[5:]
            self.network.append(
                NetworkSample(
                    wall_ns=wall,
                    received_bytes=figures[0],
                    sent_bytes=figures[1],
                    received_packets=figures[2],
                    sent_packets=figures[3],
                )
            )
        elif kind == _KIND_MARK:
            self.marks.append(_mark(raw))

    def _add_v1(self, raw: bytes) -> None:
        """One whole record of version 1: a group's inode tells its generation."""
        seq, container, bits, wall, monotonic, cpu, memory, peak, group_id, late_us, _ = (
            _RECORD_V1.unpack(raw)
        )
        known = self._groups.get(container)
        if known is None or known[0] != group_id:
            known = (group_id, known[1] + 1 if known else 0)
            self._groups[container] = known
        index = None if container == _TASK_V1 else container
        flags = SampleFlag(bits & _V1_GAPS | (bits & _V1_SHIFTED) << 1)
        if SampleFlag.FIRST in flags:
            self.marks.append(
                Mark(
                    kind=MarkType.GROUP,
                    container=index,
                    generation=known[1] % 256,
                    wall_ns=wall,
                    monotonic_ns=monotonic,
                    value=group_id,
                )
            )
        self.samples.append(
            Sample(
                seq=seq,
                container=index,
                flags=flags,
                generation=known[1] % 256,
                wall_ns=wall,
                monotonic_ns=monotonic,
                cpu_usage_ns=None if flags & SampleFlag.GAP_CPU else cpu,
                memory_bytes=None if flags & SampleFlag.GAP_MEMORY else memory,
                memory_peak_bytes=None if flags & SampleFlag.GAP_PEAK else peak,
                late_us=late_us,
            )
        )


def _index(container: int) -> int | None:
    return None if container == _TASK else container


_FLAGS = tuple(SampleFlag(bits) for bits in range(256))


def _sample(raw: bytes) -> Sample:
    (seq, _, container, bits, generation, wall, monotonic, cpu, throttled, memory_kib, peak_kib,
     periods, throttled_periods, pids, late_100us, _) = _SAMPLE.unpack(raw)  # fmt: skip
    has_throttling = not bits & 8
    return Sample(
        seq=seq,
        container=None if container == _TASK else container,
        flags=_FLAGS[bits],
        generation=generation,
        wall_ns=wall,
        monotonic_ns=monotonic,
        cpu_usage_ns=None if bits & 1 else cpu,
        memory_bytes=None if bits & 2 else memory_kib * KIB,
        memory_peak_bytes=None if bits & 4 else peak_kib * KIB,
        throttled_ns=throttled if has_throttling else None,
        periods=periods if has_throttling else None,
        throttled_periods=throttled_periods if has_throttling else None,
        pids=None if bits & 16 else pids,
        late_us=late_100us * 100,
    )


def _slow(raw: bytes) -> SlowSample:
    (_, _, container, bits, generation, wall, monotonic, user, read, write, working_kib, rss_kib,
     cache_kib, _) = _SLOW.unpack(raw)  # fmt: skip
    return SlowSample(
        container=_index(container),
        generation=generation,
        wall_ns=wall,
        monotonic_ns=monotonic,
        user_ns=None if bits & _GAP_USER else user,
        working_set_bytes=None if bits & _GAP_STAT else working_kib * KIB,
        rss_bytes=None if bits & _GAP_STAT else rss_kib * KIB,
        cache_bytes=None if bits & _GAP_STAT else cache_kib * KIB,
        read_bytes=None if bits & _GAP_IO else read,
        write_bytes=None if bits & _GAP_IO else write,
    )


def _pressure(raw: bytes) -> Pressure:
    _, _, container, _, generation, wall, _, *times, _, _ = _PRESSURE.unpack(raw)
    known = [None if value == _UNKNOWN else value for value in times]
    return Pressure(
        container=_index(container),
        generation=generation,
        wall_ns=wall,
        cpu_us=known[0],
        memory_us=known[1],
        memory_full_us=known[2],
        io_us=known[3],
    )


def _mark(raw: bytes) -> Mark:
    (_, _, container, _, generation, wall, monotonic, kind, _, value, _, _, _) = _MARK.unpack(raw)
    return Mark(
        kind=kind,
        container=_index(container),
        generation=generation,
        wall_ns=wall,
        monotonic_ns=monotonic,
        value=value,
    )
