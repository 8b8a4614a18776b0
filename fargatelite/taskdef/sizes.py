"""Fargate's 77 task sizes and the spellings of cpu and memory (contract 1)."""

from __future__ import annotations

import re
from decimal import Decimal

__all__ = ["SIZES", "parse_cpu", "parse_memory"]


def _steps(first: int, last: int, step: int) -> tuple[int, ...]:
    return tuple(range(first, last + 1, step))


SIZES: dict[int, tuple[int, ...]] = {
    256: (512, 1024, 2048),
    512: _steps(1024, 4096, 1024),
    1024: _steps(2048, 8192, 1024),
    2048: _steps(4096, 16384, 1024),
    4096: _steps(8192, 30720, 1024),
    8192: _steps(16384, 61440, 4096),
    16384: _steps(32768, 122880, 8192),
    32768: (61440, 122880, 249856),
}
"""CPU units to the memory values (MiB) that go with them."""

_NUMBER = r"(\d+(?:\.\d*)?|\.\d+)"
_CPU = re.compile(rf"{_NUMBER}\s*vcpu", re.ASCII | re.IGNORECASE)
_MEMORY = re.compile(rf"{_NUMBER}\s*gb", re.ASCII | re.IGNORECASE)


def _parse(text: str, form: re.Pattern[str], scale: int) -> int | None:
    text = text.strip()
    if len(text) > 32:
        return None
    if text.isascii() and text.isdigit():
        return int(text)
    match = form.fullmatch(text)
    if match is None:
        return None
    value = Decimal(match[1]) * scale
    return int(value) if value == int(value) else None


def parse_cpu(text: str) -> int | None:
    """CPU units for `256`, `.25 vCPU`, `1 vcpu`; None for what is no whole number of units."""
    return _parse(text, _CPU, 1024)


def parse_memory(text: str) -> int | None:
    """MiB for `512`, `0.5GB`, `1 GB`; None for what is no whole number of MiB."""
    return _parse(text, _MEMORY, 1024)
