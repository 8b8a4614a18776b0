"""The layouts in csrc/formats and those in Python are the same, byte by byte."""

from __future__ import annotations

import re
import struct
import subprocess
from pathlib import Path

import pytest

from fargatelite import shim
from fargatelite.meter import ledger, records

FORMATS = Path(__file__).parents[2] / "csrc" / "formats"

# The C struct, its header, and the Python layouts that follow each other in it.
LAYOUTS = {
    "request": ("control.h", [shim._REQUEST]),
    "failure": ("control.h", [shim._FAILURE]),
    "event": ("control.h", [shim._EVENT, shim._FAILURE]),
    "exit_record": ("exit_record.h", [shim.EXIT_RECORD]),
    "ledger_header": ("ledger.h", [ledger._HEADER]),
    "ledger_name": ("ledger.h", [ledger._NAME]),
    "ledger_sample": ("ledger.h", [records._SAMPLE]),
    "ledger_base": ("ledger.h", [records._BASE]),
    "ledger_clock": ("ledger.h", [records._CLOCK]),
    "ledger_mark": ("ledger.h", [records._MARK]),
    "ledger_memory": ("ledger.h", [records._MEMORY]),
    "ledger_pair": ("ledger.h", [records._PAIR]),
    "ledger_pressure": ("ledger.h", [records._PRESSURE]),
}

CONSTANTS = {
    "CONTROL_MAGIC": ("control.h", shim._MAGIC),
    "CONTROL_VERSION": ("control.h", shim._VERSION),
    "EVENT_OUTPUT_BYTES": ("control.h", shim._OUTPUT_BYTES),
    "REQUEST_START": ("control.h", shim._START),
    "START_STREAMS": ("control.h", shim._START_STREAMS),
    "START_TERMINAL": ("control.h", shim._START_TERMINAL),
    "REQUEST_SIGNAL": ("control.h", shim._SIGNAL),
    "REQUEST_STATUS": ("control.h", shim._STATUS),
    "REQUEST_LOG_READ": ("control.h", shim._LOG_READ),
    "REQUEST_SHUTDOWN": ("control.h", shim._SHUTDOWN),
    "EVENT_READY": ("control.h", shim._READY),
    "EVENT_STARTED": ("control.h", shim._STARTED),
    "EVENT_FAILED": ("control.h", shim._FAILED),
    "EVENT_EXITED": ("control.h", shim._EXITED),
    "EVENT_STATUS": ("control.h", shim._STATUS_EVENT),
    "EVENT_REFUSED": ("control.h", shim._REFUSED),
    "EXIT_RECORD_MAGIC": ("exit_record.h", shim._EXIT_MAGIC),
    "EXIT_RECORD_VERSION": ("exit_record.h", shim._EXIT_VERSION),
    "LEDGER_VERSION": ("ledger.h", ledger.FORMAT_VERSION),
    "LEDGER_MAX_CONTAINERS": ("ledger.h", ledger.MAX_CONTAINERS),
    "LEDGER_HEADER_BYTES": ("ledger.h", ledger._HEADER_BYTES),
    "LEDGER_NAMES_OFFSET": ("ledger.h", ledger._NAMES_OFFSET),
    "LEDGER_TASK": ("ledger.h", ledger.TASK_INDEX),
    "LEDGER_RECORD_BYTES": ("ledger.h", ledger.RECORD_BYTES),
    **{
        f"LEDGER_{name}": ("ledger.h", getattr(records, f"_KIND_{name}"))
        for name in (
            "SAMPLE",
            "BASE",
            "CLOCK",
            "MARK",
            "MEMORY",
            "IO",
            "PRESSURE",
            "RECEIVED",
            "SENT",
        )
    },
    **{
        f"LEDGER_{name}": ("ledger.h", getattr(records, f"_{name}"))
        for name in (
            "GENERATION",
            "PEAK_IS_MEMORY",
            "PEAK_UNKNOWN",
            "NO_THROTTLING",
            "DETAILED",
            "GAP_STAT",
            "GAP_USER",
            "PIDS_UNKNOWN",
            "LATE_IN_CLOCK",
            "PERIOD_BITS",
            "LATE_SHIFT",
            "TIME_BITS",
        )
    },
    **{f"LEDGER_MARK_{kind.name}": ("ledger.h", kind.value) for kind in ledger.MarkType},
    **{
        f"LEDGER_{flag.name}": ("ledger.h", flag.value)
        for flag in ledger.SampleFlag
        if flag.name is not None
    },
}


def _members(name: str, header: str) -> list[str]:
    """The members of a C struct, in order; a struct within it is given by its own members."""
    text = re.sub(r"/\*.*?\*/", "", (FORMATS / header).read_text(), flags=re.S)
    found = re.search(rf"struct {name} \{{(.*?)\}};", text, flags=re.S)
    assert found, f"struct {name} in {header}"
    members = []
    for declaration in found[1].split(";"):
        words = declaration.split()
        if not words:
            continue
        member = words[-1].partition("[")[0]
        if words[0] == "struct":
            members += [f"{member}.{inner}" for inner in _members(words[1], header)]
        else:
            members.append(member)
    return members


def _offsets(layouts: list[struct.Struct]) -> list[int]:
    """Where each value of consecutive layouts begins, and where the last ends."""
    offsets, base = [], 0
    for layout in layouts:
        codes = re.findall(r"\d*s|[a-zA-Z]", layout.format[1:])
        offsets += [
            base + struct.calcsize("<" + "".join(codes[:index])) for index in range(len(codes))
        ]
        base += layout.size
    return [*offsets, base]


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[int]]:
    """What the C compiler says: offsets and size of each struct, value of each constant."""
    lines = []
    for name, (header, _) in LAYOUTS.items():
        numbers = [f"offsetof(struct {name}, {member})" for member in _members(name, header)]
        numbers.append(f"sizeof(struct {name})")
        pattern = " %llu" * len(numbers)
        arguments = ", ".join(f"(unsigned long long){number}" for number in numbers)
        lines.append(f'printf("{name}{pattern}\\n", {arguments});')
    lines += [f'printf("{name} %llu\\n", (unsigned long long){name});' for name in CONSTANTS]
    directory = tmp_path_factory.mktemp("formats")
    source = directory / "layout.c"
    includes = "".join(f'#include "{path.name}"\n' for path in sorted(FORMATS.glob("*.h")))
    source.write_text(
        f"#include <stddef.h>\n#include <stdio.h>\n{includes}int main(void) {{\n"
        + "\n".join(lines)
        + "\nreturn 0;\n}\n"
    )
    program = directory / "layout"
    subprocess.run(
        ["gcc", "-std=gnu11", "-Wall", "-Werror", f"-I{FORMATS}", source, "-o", program], check=True
    )
    said = subprocess.run([program], check=True, capture_output=True, text=True).stdout
    rows = [line.split() for line in said.splitlines()]
    return {row[0]: [int(number) for number in row[1:]] for row in rows}


@pytest.mark.parametrize("name", sorted(LAYOUTS))
def test_struct_has_the_same_layout(name: str, compiled: dict[str, list[int]]) -> None:
    assert _offsets(LAYOUTS[name][1]) == compiled[name]


@pytest.mark.parametrize("name", sorted(CONSTANTS))
def test_constant_has_the_same_value(name: str, compiled: dict[str, list[int]]) -> None:
    assert compiled[name] == [CONSTANTS[name][1]]
