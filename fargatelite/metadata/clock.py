"""How far this host's clock may be off, as the kernel's NTP discipline knows it: adjtimex(2)."""

from __future__ import annotations

import ctypes
import os
import time

from fargatelite.metadata.shapes import ClockDrift

__all__ = ["read_clock_drift"]

_STA_UNSYNC = 0x0040  # include/uapi/linux/timex.h


class _Timex(ctypes.Structure):
    """struct timex up to `status`; the kernel writes 208 bytes."""

    _fields_ = (
        ("modes", ctypes.c_uint),
        ("offset", ctypes.c_long),
        ("freq", ctypes.c_long),
        ("maxerror", ctypes.c_long),
        ("esterror", ctypes.c_long),
        ("status", ctypes.c_int),
        ("rest", ctypes.c_byte * 208),
    )


def read_clock_drift() -> ClockDrift:
    """Reads only (`modes` 0), which needs no privilege. Raises: OSError."""
    timex = _Timex()
    if ctypes.CDLL(None, use_errno=True).adjtimex(ctypes.byref(timex)) < 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error), "adjtimex")
    return ClockDrift(
        clock_error_bound_ms=timex.maxerror / 1000,
        reference_timestamp_ns=time.time_ns(),
        is_synchronized=not timex.status & _STA_UNSYNC,
    )
