"""Docker's default device list, for both hierarchies: rules for v1, a BPF program for v2.

v2 has no devices controller; a program of type BPF_PROG_TYPE_CGROUP_DEVICE (Linux 4.15) is attached
to the group instead. It is 80 instructions without a map or a helper call, so it is assembled here
instead of bringing in libbpf.

Source: moby daemon/pkg/oci defaults and runc's allowed devices; bpf(2);
include/uapi/linux/bpf.h (struct bpf_cgroup_dev_ctx).
"""

from __future__ import annotations

import errno
import os
import platform
import struct
from typing import TYPE_CHECKING

from msgspec import Struct

from fargatelite.errors import CgroupFailed, HostUnsupported

if TYPE_CHECKING:
    import ctypes

__all__ = ["ALLOWED", "DeviceRule", "attach_device_program", "device_program"]


class DeviceRule(Struct, frozen=True, kw_only=True):
    """One kind of access that is allowed; `major` or `minor` None means any."""

    kind: str
    """`c` or `b`."""
    major: int | None
    minor: int | None
    access: str
    """Some of `rwm` in this order: read, write, mknod."""

    def v1_text(self) -> str:
        """The rule as devices.allow takes it and devices.list shows it."""
        major = "*" if self.major is None else str(self.major)
        minor = "*" if self.minor is None else str(self.minor)
        return f"{self.kind} {major}:{minor} {self.access}"


def _char(major: int, minor: int | None) -> DeviceRule:
    return DeviceRule(kind="c", major=major, minor=minor, access="rwm")


ALLOWED = (
    # mknod of any device is allowed and harmless: opening it is what the other rules decide.
    DeviceRule(kind="c", major=None, minor=None, access="m"),
    DeviceRule(kind="b", major=None, minor=None, access="m"),
    _char(1, 3),  # null
    _char(1, 5),  # zero
    _char(1, 7),  # full
    _char(1, 8),  # random
    _char(1, 9),  # urandom
    _char(5, 0),  # tty
    _char(5, 1),  # console
    _char(5, 2),  # ptmx
    _char(136, None),  # pts/*
)

_BPF_SYSCALL = {"x86_64": 321, "aarch64": 280}
_BPF_PROG_LOAD, _BPF_PROG_ATTACH, _BPF_PROG_QUERY = 5, 8, 16
_PROG_TYPE_CGROUP_DEVICE, _ATTACH_CGROUP_DEVICE, _ALLOW_MULTI = 15, 6, 2
_LDX_W, _AND, _RSH, _MOV_REGISTER, _MOV, _JNE, _EXIT = 0x61, 0x57, 0x77, 0xBF, 0xB7, 0x55, 0x95
_KINDS = {"b": 1, "c": 2}
_ACCESS = {"m": 1, "r": 2, "w": 4}


def _instruction(
    code: int, register: int, source: int = 0, offset: int = 0, value: int = 0
) -> bytes:
    return struct.pack("<BBhi", code, register | source << 4, offset, value)


def device_program(rules: tuple[DeviceRule, ...] = ALLOWED) -> bytes:
    """BPF instructions that return 1 for an access which some rule allows and 0 for all others."""
    program = [
        _instruction(_LDX_W, 2, source=1, offset=0),  # r2 = access << 16 | kind
        _instruction(_MOV_REGISTER, 3, source=2),
        _instruction(_AND, 3, value=0xFFFF),  # r3 = kind
        _instruction(_RSH, 2, value=16),  # r2 = access
        _instruction(_LDX_W, 4, source=1, offset=4),  # r4 = major
        _instruction(_LDX_W, 5, source=1, offset=8),  # r5 = minor
    ]
    for rule in rules:
        tests = [(3, _KINDS[rule.kind])]
        if rule.major is not None:
            tests.append((4, rule.major))
        if rule.minor is not None:
            tests.append((5, rule.minor))
        allowed = sum(_ACCESS[letter] for letter in rule.access)
        length = len(tests) + 3 + 2  # tests, the access test, return 1
        for index, (register, value) in enumerate(tests):
            program.append(_instruction(_JNE, register, offset=length - index - 1, value=value))
        program += [
            _instruction(_MOV_REGISTER, 0, source=2),
            _instruction(_AND, 0, value=7 & ~allowed),
            _instruction(_JNE, 0, offset=2, value=0),  # asks for more than the rule allows
            _instruction(_MOV, 0, value=1),
            _instruction(_EXIT, 0),
        ]
    program += [_instruction(_MOV, 0, value=0), _instruction(_EXIT, 0)]
    return b"".join(program)


def attach_device_program(directory: str, rules: tuple[DeviceRule, ...] = ALLOWED) -> None:
    """Attaches the program to the v2 group at `directory`; a group that has one is left as it is.

    Programs of parent groups go on to hold too (BPF_F_ALLOW_MULTI: all must allow).
    Raises: HostUnsupported without CONFIG_CGROUP_BPF, CgroupFailed otherwise.
    """
    import ctypes  # 2 ms, on v2 only

    group = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        query = ctypes.create_string_buffer(
            struct.pack("<IIIIQI4x", group, _ATTACH_CGROUP_DEVICE, 0, 0, 0, 0), 64
        )
        # With no room for ids the kernel says ENOSPC when there are programs; either way it counts.
        _bpf(_BPF_PROG_QUERY, query, directory, tolerate=errno.ENOSPC)
        if struct.unpack_from("<I", query, 24)[0] > 0:
            return
        instructions = ctypes.create_string_buffer(
            device_program(rules), len(device_program(rules))
        )
        licence = ctypes.create_string_buffer(b"Apache-2.0")
        load = ctypes.create_string_buffer(
            struct.pack(
                "<IIQQ",
                _PROG_TYPE_CGROUP_DEVICE,
                len(instructions) // 8,
                ctypes.addressof(instructions),
                ctypes.addressof(licence),
            ),
            128,
        )
        program = _bpf(_BPF_PROG_LOAD, load, directory)
        try:
            attach = ctypes.create_string_buffer(
                struct.pack("<IIII", group, program, _ATTACH_CGROUP_DEVICE, _ALLOW_MULTI), 64
            )
            _bpf(_BPF_PROG_ATTACH, attach, directory)
        finally:
            os.close(program)  # the group holds the program now
    finally:
        os.close(group)


def _bpf(
    command: int, attributes: ctypes.Array[ctypes.c_char], directory: str, tolerate: int = 0
) -> int:
    import ctypes

    number = _BPF_SYSCALL.get(platform.machine())
    if number is None:
        raise HostUnsupported(f"no bpf(2) number known for {platform.machine()}")
    call = ctypes.CDLL(None, use_errno=True).syscall
    result = int(call(number, command, attributes, len(attributes)))
    error = ctypes.get_errno()
    if result < 0 and error != tolerate:
        text = f"cannot limit devices of group {directory} (bpf): {errno.errorcode.get(error)}"
        if error in (errno.ENOSYS, errno.EINVAL):
            raise HostUnsupported(f"{text}: needs CONFIG_CGROUP_BPF", errno=error, path=directory)
        raise CgroupFailed(text, errno=error, path=directory)
    return result
