"""The plan: what the C shim does for one process, as data.

A plan is an ordered tuple of operations. Nothing has happened when one exists: tests compare it
without root, `--dry-run` prints it, and the shim executes it without knowing any policy. The table
`OPERATIONS` is the only place that lists what the shim can do; `csrc/formats/plan_ops.h` is
generated from it (`python -m fargatelite.sandbox.plan`), checked in, and a test holds that both
agree.

Wire form (little-endian, version 1)::

    plan      magic "FLPL", u16 version, u16 number of operations, then the operations
    operation u16 code, u16 zero, u32 length of its arguments, arguments in the order of the table
    u         u64
    s         u32 length, bytes, NUL        (no NUL inside)
    b         u32 length, bytes
    l         u32 count, then count times s

The decoder checks every length against what remains (CVE-2021-43784 is a length that wrapped) and
refuses unknown codes, a wrong order of phases and left-over bytes.
"""

from __future__ import annotations

import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

__all__ = [
    "MAX_PLAN_BYTES",
    "OPERATIONS",
    "PLAN_VERSION",
    "Op",
    "Operation",
    "Plan",
    "decode_plan",
    "describe_op",
    "encode_plan",
    "generate_header",
]

PLAN_MAGIC = b"FLPL"
PLAN_VERSION = 1
MAX_OPS = 512  # the largest compiled plan has about 90; a bound for the decoder's arena
MAX_PLAN_BYTES = 4 * 1024 * 1024  # execve(2) takes at most 2 MiB of arguments; the rest is small

Value = int | str | bytes | tuple[str, ...]


class Operation(NamedTuple):
    """One kind of operation: its code, whether the shim ("parent") or the new process ("child")
    executes it, and its arguments as (name, kind) with kind one of u, s, b, l."""

    name: str
    code: int
    phase: str
    arguments: tuple[tuple[str, str], ...]
    effect: str


def _operation(name: str, code: int, phase: str, arguments: str, effect: str) -> Operation:
    pairs = tuple((word.split(":")[0], word.split(":")[1]) for word in arguments.split())
    return Operation(name, code, phase, pairs, effect)


OPERATIONS: dict[str, Operation] = {
    row.name: row
    for row in (
        # Parent: before the process exists.
        _operation(
            "namespaces", 1, "parent", "flags:u cgroup:s",
            "clone3 with these CLONE_NEW* flags, into this v2 group (empty: the shim's own)",
        ),
        _operation(
            "join_pid", 2, "parent", "process:u",
            "start in the pid namespace of another process, which only clone3 can enter",
        ),
        _operation(
            "log", 3, "parent", "path:s max_bytes:u max_files:u",
            "append stdout and stderr to this file; rotated at max_bytes (0: never), "
            "max_files are kept",
        ),
        _operation(
            "log_hold", 9, "parent", "bytes:u",
            "stop reading stdout and stderr while so many bytes of the log are unread",
        ),
        _operation("capture", 4, "parent", "max_bytes:u", "keep the end of stdout and stderr"),
        _operation("streams", 5, "parent", "uid:u gid:u", "owner of the stdout and stderr pipes"),
        _operation("stdin", 7, "parent", "", "keep stdin open: nothing to read, no end of file"),
        _operation(
            "trace", 6, "parent", "path:s", "write when each operation ended (ns) to this file"
        ),
        _operation(
            "id_map", 8, "parent", "map:u uid:u host_uid:u gid:u host_gid:u",
            "make a map in which this owner on disk is this one of the host, and nobody else is",
        ),
        # Child: in order, until exec.
        _operation(
            "join_cgroup", 16, "child", "file:s", "write 0 to this file (v2 cgroup.procs, v1 tasks)"
        ),
        _operation("join_network", 17, "child", "", "enter the task's network namespace"),
        _operation(
            "join_process", 44, "child", "process:u flags:u",
            "enter these namespaces of another process",
        ),
        _operation("unshare", 18, "child", "flags:u", "unshare(2)"),
        _operation("private_mounts", 19, "child", "", "no mount event leaves or enters"),
        _operation(
            "open_tree", 20, "child", "slot:u path:s attributes:u idmap:u recursive:u",
            "clone the mount at path into slot; idmap: 0 none, 1 the task's ids, 2 + n map n",
        ),
        _operation(
            "move_mount", 21, "child", "slot:u target:s resolve:u", "attach slot at target"
        ),
        _operation(
            "mount", 22, "child",
            "type:s source:s target:s attributes:u resolve:u options:l",
            "new file system at target",
        ),
        _operation("chdir", 23, "child", "path:s", "chdir(2), before the root is changed"),
        _operation("pivot_root", 24, "child", "root:s", "make it / and detach the old root"),
        _operation(
            "mkdir", 25, "child", "path:s mode:u uid:u gid:u resolve:u",
            "create directory and parents; an existing directory stays as it is",
        ),
        _operation(
            "mknod", 26, "child", "path:s mode:u major:u minor:u uid:u gid:u", "mknod(2)"
        ),
        _operation("symlink", 27, "child", "target:s path:s", "symlink(2)"),
        _operation(
            "write_file", 28, "child", "path:s mode:u uid:u gid:u contents:b", "create a file"
        ),
        _operation("mask", 29, "child", "path:s", "hide: /dev/null or an empty directory over it"),
        _operation("readonly", 30, "child", "path:s recursive:u", "make the mount at path ro"),
        _operation("touch", 31, "child", "path:s mode:u uid:u gid:u resolve:u",
                   "create an empty file as a mount point; an existing file stays as it is"),
        _operation("hostname", 32, "child", "name:s", "sethostname(2)"),
        _operation("rlimit", 33, "child", "resource:u soft:u hard:u", "setrlimit(2)"),
        _operation("keyring", 34, "child", "", "join a new session keyring"),
        _operation("user_namespace", 35, "child", "", "enter the task's user namespace"),
        _operation("seccomp", 36, "child", "program:b", "install this BPF program"),
        _operation(
            "apparmor", 50, "child", "profile:s now:u",
            "the AppArmor profile of the program that is executed; now: of this process too",
        ),
        _operation("bounding", 37, "child", "mask:u", "drop all other bounding capabilities"),
        _operation("user", 38, "child", "uid:u gid:u groups:b", "setgroups, setresgid, setresuid"),
        _operation(
            "capabilities", 39, "child", "permitted:u inheritable:u ambient:u",
            "effective = permitted",
        ),
        _operation("no_new_privileges", 40, "child", "", "PR_SET_NO_NEW_PRIVS"),
        _operation("sysctl", 45, "child", "path:s value:s", "write below /proc/sys"),
        _operation(
            "terminal", 48, "child", "uid:u gid:u rows:u columns:u",
            "a pseudo terminal of the container's own as stdin, stdout, stderr and /dev/console",
        ),
        _operation(
            "init", 46, "child", "",
            "fork: the new process goes on, this one stays as PID 1, reaps and forwards signals",
        ),
        _operation("pause", 47, "child", "", "never go on: hold the pid namespace and reap"),
        _operation("umask", 41, "child", "mode:u", "umask(2)"),
        _operation("workdir", 42, "child", "path:s", "chdir(2) as the user; must be below /"),
        _operation(
            "exec", 43, "child", "argv:l environment:l candidates:l",
            "execve(2) of the first candidate that exists",
        ),
        _operation(
            "exec_in", 49, "child", "process:u argv:l environment:l",
            "execve(2) with a running process's environment, then these variables; by its PATH",
        ),
    )
}  # fmt: skip

_BY_CODE = {row.code: row for row in OPERATIONS.values()}


class Op(NamedTuple):
    """One operation of a plan; `values` in the order of its table row."""

    name: str
    values: tuple[Value, ...]


Plan = tuple[Op, ...]


def op(name: str, *values: Value) -> Op:
    """An operation, checked against the table.

    Raises: TypeError when number or kind of the values is not what the table says.
    """
    row = OPERATIONS[name]
    if len(values) != len(row.arguments):
        raise TypeError(f"{name} takes {len(row.arguments)} arguments, not {len(values)}")
    for (argument, kind), value in zip(row.arguments, values, strict=True):
        expected = {"u": int, "s": str, "b": bytes, "l": tuple}[kind]
        if not isinstance(value, expected):
            raise TypeError(f"{name}.{argument} must be {expected.__name__}, not {value!r}")
    return Op(name, values)


def _string(text: str) -> bytes:
    # surrogateescape: an image's paths and environment need not be UTF-8.
    data = text.encode("utf-8", "surrogateescape")
    if b"\0" in data:
        raise ValueError(f"{text!r} holds a NUL byte, which no path, argument or variable can")
    return struct.pack("<I", len(data)) + data + b"\0"


def _argument(kind: str, value: Value) -> bytes:
    match kind, value:
        case "u", int():
            return struct.pack("<Q", value)
        case "s", str():
            return _string(value)
        case "b", bytes():
            return struct.pack("<I", len(value)) + value
        case "l", tuple():
            return struct.pack("<I", len(value)) + b"".join(map(_string, value))
    raise TypeError(f"{value!r} is not of kind {kind}")


def encode_plan(plan: Plan) -> bytes:
    """The wire form of a plan.

    Raises: ValueError for a NUL in a string, or a plan beyond the decoder's bounds.
    """
    out = [PLAN_MAGIC, struct.pack("<HH", PLAN_VERSION, len(plan))]
    for item in plan:
        row = OPERATIONS[item.name]
        body = b"".join(
            _argument(kind, value)
            for (_, kind), value in zip(row.arguments, item.values, strict=True)
        )
        out.append(struct.pack("<HHI", row.code, 0, len(body)) + body)
    data = b"".join(out)
    if len(data) > MAX_PLAN_BYTES or len(plan) > MAX_OPS:
        raise ValueError(
            f"plan has {len(plan)} operations in {len(data)} bytes; "
            f"at most {MAX_OPS} in {MAX_PLAN_BYTES}: the environment or the command is too large"
        )
    return data


def decode_plan(data: bytes) -> Plan:
    """The plan that `data` encodes: the inverse of `encode_plan`, for tests and `--trace`.

    Raises: ValueError on anything that `encode_plan` does not make.
    """
    try:
        return _decode_plan(data)
    except (struct.error, KeyError) as error:
        raise ValueError(f"damaged plan: {error}") from error


def _decode_plan(data: bytes) -> Plan:
    if data[:4] != PLAN_MAGIC:
        raise ValueError("not a plan: wrong magic")
    version, count = struct.unpack_from("<HH", data, 4)
    if version != PLAN_VERSION:
        raise ValueError(f"plan of version {version}, this reads {PLAN_VERSION}")
    offset, ops = 8, []
    for _ in range(count):
        code, _, length = struct.unpack_from("<HHI", data, offset)
        row = _BY_CODE[code]
        cursor, values = offset + 8, list[Value]()
        offset = cursor + length

        def string(at: int) -> tuple[str, int]:
            (size,) = struct.unpack_from("<I", data, at)
            raw = data[at + 4 : at + 5 + size]
            if len(raw) != size + 1 or raw.find(b"\0") != size:
                raise ValueError(f"string at byte {at} does not end where it says")
            return raw[:-1].decode("utf-8", "surrogateescape"), at + 5 + size

        for _, kind in row.arguments:
            if kind == "u":
                values.append(struct.unpack_from("<Q", data, cursor)[0])
                cursor += 8
            elif kind == "s":
                text, cursor = string(cursor)
                values.append(text)
            elif kind == "b":
                (size,) = struct.unpack_from("<I", data, cursor)
                values.append(data[cursor + 4 : cursor + 4 + size])
                cursor += 4 + size
            else:
                (items,) = struct.unpack_from("<I", data, cursor)
                cursor += 4
                listed = []
                for _ in range(items):
                    text, cursor = string(cursor)
                    listed.append(text)
                values.append(tuple(listed))
        if cursor != offset:
            raise ValueError(f"{row.name} has {length} bytes of arguments, {cursor} were read")
        ops.append(Op(row.name, tuple(values)))
    if offset != len(data):
        raise ValueError(f"{len(data) - offset} bytes after the last operation")
    return tuple(ops)


_OCTAL = {"mode"}
_HEX = {"flags", "attributes", "resolve", "mask", "permitted", "inheritable", "ambient"}


def _shown(item: Op) -> Iterator[str]:
    for (name, kind), value in zip(OPERATIONS[item.name].arguments, item.values, strict=True):
        match kind, value:
            case "u", int() if name in _OCTAL:
                yield f"{name}={value:o}"
            case "u", int() if name in _HEX:
                yield f"{name}={value:#x}"
            case "b", bytes():
                yield f"{name}=<{len(value)} bytes>"
            case "l", tuple() if name == "environment":
                # Values may be secrets: names only.
                yield f"{name}={[text.split('=', 1)[0] for text in value]}"
            case "l", tuple():
                yield f"{name}={list(value)}"
            case "s", _:
                yield f"{name}={value!r}"
            case _:
                yield f"{name}={value!r}"


def describe_op(item: Op) -> str:
    """One line for a person: `mount type='proc' source='proc' target='/proc' ...`.

    Values of environment variables are never shown.
    """
    return " ".join([item.name, *_shown(item)])


def generate_header() -> str:
    """The text of csrc/formats/plan_ops.h."""
    lines = [
        "/* Generated by `python -m fargatelite.sandbox.plan` from its table; do not edit. */",
        "#ifndef FARGATELITE_PLAN_OPS_H",
        "#define FARGATELITE_PLAN_OPS_H",
        "",
        '#define PLAN_MAGIC "FLPL"',
        f"#define PLAN_VERSION {PLAN_VERSION}",
        f"#define PLAN_MAX_OPS {MAX_OPS}",
        f"#define PLAN_MAX_BYTES {MAX_PLAN_BYTES}",
        "",
        "/* Argument kinds: u = u64, s = string, b = bytes, l = list of strings. */",
        "/* clang-format off */",
        "#define PLAN_OPS(X) \\",
    ]
    for row in OPERATIONS.values():
        kinds = "".join(kind for _, kind in row.arguments)
        names = ", ".join(name for name, _ in row.arguments)
        is_child = 1 if row.phase == "child" else 0
        lines.append(
            f'    X({row.name.upper()}, {row.code}, {is_child}, "{kinds}") /* {names} */ \\'
        )
    lines += ["    /* end */", "/* clang-format on */", "", "enum op_code {"]
    lines += [f"    OP_{row.name.upper()} = {row.code}," for row in OPERATIONS.values()]
    lines += ["};", "", "#endif", ""]
    return "\n".join(lines)


if __name__ == "__main__":
    path = Path(__file__).resolve().parents[2] / "csrc" / "formats" / "plan_ops.h"
    path.write_text(generate_header())
    sys.exit(0)
