"""A system-call filter of the user's, in the format of Docker's and podman's profiles.

The file is read once, by the process that starts the task; what it says goes with the task's
record, so that whoever adopts the task has the same. Meaning is podman's and runc's: unknown names
of system calls are skipped (each libseccomp knows others), unknown keys too, an unknown action,
operator or architecture is refused. `includes` and `excludes` are judged for each container's
capabilities when its program is compiled (seccomp.py).

Source: moby profiles/seccomp, containers-common pkg/seccomp, runc libcontainer/seccomp.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

import msgspec

from fargatelite.errors import ConfigurationInvalid
from fargatelite.sandbox.capabilities import CAPABILITIES

__all__ = [
    "MACHINES",
    "Action",
    "Comparison",
    "Rule",
    "SeccompProfile",
    "Selection",
    "parse_profile",
    "read_profile",
    "select_rules",
]

MAX_BYTES = 1 << 20
"""Of a file; Docker's own has 16 KiB."""
MAX_NAMES = 4096
"""In all rules together. The kernel takes no more instructions (BPF_MAXINSNS); Docker has 450."""
MAX_COMPARISONS = 512
"""For each name that they are about, together. libseccomp takes 5 s for 510 of the worst kind, and
far more than a minute for 1,536; Docker has 9."""
_MAX_ERRNO = 4095  # of the kernel; a filter's greater number is cut to it

_ACTIONS = ("ALLOW", "ERRNO", "KILL", "KILL_PROCESS", "KILL_THREAD", "LOG", "TRACE", "TRAP")
_OPERATORS = ("NE", "LT", "LE", "EQ", "GE", "GT", "MASKED_EQ")
_ARCHITECTURES = frozenset(
    """AARCH64 ARM LOONGARCH64 M68K MIPS MIPS64 MIPS64N32 MIPSEL MIPSEL64 MIPSEL64N32 PARISC
    PARISC64 PPC PPC64 PPC64LE RISCV64 S390 S390X SH SHEB X32 X86 X86_64""".split()
)
MACHINES: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "x86_64": ("amd64", "X86_64", ("X86_64", "X86", "X32")),
    "aarch64": ("arm64", "AARCH64", ("AARCH64", "ARM")),
}
"""By uname(2): what `arches` calls it, what libseccomp does, and the entries its kernel has."""
_ERRNOS: dict[str, int] = {
    name: number for name, number in vars(errno).items() if name.startswith("E")
}
_KERNEL = re.compile(r"(\d{1,4})\.(\d{1,4})", re.ASCII)


class Action(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a filter answers; `number` is the errno of ERRNO and the message of TRACE."""

    name: str
    number: int = errno.EPERM


class Comparison(msgspec.Struct, frozen=True, omit_defaults=True):
    """Of one argument; for MASKED_EQ `value` is the mask and `value_two` what is compared with."""

    index: int
    operator: str
    value: int = 0
    value_two: int = 0


class Selection(msgspec.Struct, frozen=True, omit_defaults=True):
    """`includes` or `excludes` of a rule; empty: does not matter."""

    capabilities: tuple[str, ...] = ()
    architectures: tuple[str, ...] = ()
    min_kernel: tuple[int, int] | None = None


class Rule(msgspec.Struct, frozen=True, omit_defaults=True):
    """An action for some system calls, of which all `comparisons` hold."""

    names: tuple[str, ...]
    action: Action
    comparisons: tuple[Comparison, ...] = ()
    includes: Selection = Selection()
    excludes: Selection = Selection()


class SeccompProfile(msgspec.Struct, frozen=True, omit_defaults=True):
    """A whole profile, checked. `architectures` are libseccomp's names for entries to the kernel
    beside the machine's own; `sub_architectures` are those of each machine, where the profile
    tells them apart. `ignored` are keys that nobody knows."""

    default: Action
    rules: tuple[Rule, ...] = ()
    architectures: tuple[str, ...] = ()
    sub_architectures: dict[str, tuple[str, ...]] = {}
    ignored: tuple[str, ...] = ()

    def entries(self, machine: str) -> tuple[str, ...]:
        """The kernel's entries that the rules hold for, on this machine; its own is the first.
        Another one answers ENOSYS, as without a profile."""
        _, native, possible = MACHINES[machine]
        wanted = {*self.architectures, *self.sub_architectures.get(native, ())}
        return tuple(name for name in possible if name == native or name in wanted)


_Number = Annotated[int, msgspec.Meta(ge=0)]


class _Argument(msgspec.Struct, frozen=True, rename="camel"):
    index: Annotated[int, msgspec.Meta(ge=0, le=5)]
    op: str
    value: _Number = 0
    value_two: _Number = 0


class _Filter(msgspec.Struct, frozen=True, rename="camel"):
    caps: list[str] | None = None
    arches: list[str] | None = None
    min_kernel: str | None = None


class _Syscall(msgspec.Struct, frozen=True, rename="camel"):
    action: str
    names: list[str] | None = None
    name: str | None = None
    errno_ret: _Number | None = None
    errno: str | None = None
    args: list[_Argument] | None = None
    includes: _Filter | None = None
    excludes: _Filter | None = None
    comment: str | None = None


class _Architecture(msgspec.Struct, frozen=True, rename="camel"):
    architecture: str
    sub_architectures: list[str] | None = None


class _Document(msgspec.Struct, frozen=True, rename="camel"):
    default_action: str
    default_errno_ret: _Number | None = None
    default_errno: str | None = None
    architectures: list[str] | None = None
    arch_map: list[_Architecture] | None = None
    syscalls: list[_Syscall] | None = None
    flags: list[str] | None = None
    listener_path: str | None = None
    listener_metadata: str | None = None
    comment: str | None = None


_NESTED: dict[str, type[msgspec.Struct]] = {
    "archMap": _Architecture, "syscalls": _Syscall, "args": _Argument, "includes": _Filter,
    "excludes": _Filter,
}  # fmt: skip


def read_profile(source: str | os.PathLike[str] | Mapping[str, Any]) -> SeccompProfile:
    """A profile of a file, or of a document that is there already.

    Raises: ConfigurationInvalid, with the place in the file.
    """
    if isinstance(source, Mapping):
        return _convert(dict(source), "seccomp profile")
    path = Path(source)
    try:
        with open(path, "rb") as file:
            data = file.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise ConfigurationInvalid(
            f"cannot read seccomp profile {path}: {reason}", path=path
        ) from error
    return parse_profile(data, str(path))


def parse_profile(data: bytes, path: str) -> SeccompProfile:
    """The profile in a file's bytes; `path` is for messages.

    Raises: ConfigurationInvalid, with the place in the file.
    """
    where = f"seccomp profile {path}"
    if len(data) > MAX_BYTES:
        raise ConfigurationInvalid(f"{where}: more than {MAX_BYTES >> 20} MiB", path=path)
    try:
        raw = msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ConfigurationInvalid(f"{where} is not JSON: {error}", path=path) from error
    return _convert(raw, where)


def _convert(raw: Any, where: str) -> SeccompProfile:
    try:
        document = msgspec.convert(raw, type=_Document)
        default = _action(
            document.default_action, document.default_errno_ret, document.default_errno,
            "defaultAction",
        )  # fmt: skip
        if document.architectures and document.arch_map:
            raise ValueError("both architectures and archMap are given: give one of them")
        for number, flag in enumerate(document.flags or ()):
            if flag != "SECCOMP_FILTER_FLAG_TSYNC":  # of a process with one thread: does nothing
                raise ValueError(f"flags[{number}]: {flag!r} is not supported: leave it out")
        if document.listener_path or document.listener_metadata:
            raise ValueError("listenerPath: no agent is asked about system calls: leave it out")
        architectures = tuple(
            _architecture(name, f"architectures[{number}]")
            for number, name in enumerate(document.architectures or ())
        )
        mapped = {
            _architecture(item.architecture, f"archMap[{number}].architecture"): tuple(
                _architecture(name, f"archMap[{number}].subArchitectures[{place}]")
                for place, name in enumerate(item.sub_architectures or ())
            )
            for number, item in enumerate(document.arch_map or ())
        }
        rules = tuple(
            _rule(item, f"syscalls[{number}]")
            for number, item in enumerate(document.syscalls or ())
        )
        count = sum(len(rule.names) for rule in rules)
        if count > MAX_NAMES:
            raise ValueError(f"{count} names of system calls; at most {MAX_NAMES}")
        count = sum(len(rule.names) * len(rule.comparisons) for rule in rules)
        if count > MAX_COMPARISONS:
            raise ValueError(f"{count} comparisons of arguments; at most {MAX_COMPARISONS}")
    except (msgspec.ValidationError, ValueError) as error:
        raise ConfigurationInvalid(f"{where}: {error}") from error
    return SeccompProfile(
        default, rules, architectures, mapped, tuple(_unknown_keys(raw, _Document, ""))
    )


def _unknown_keys(raw: Any, shape: type[msgspec.Struct], where: str) -> Iterator[str]:
    known = {field.encode_name for field in msgspec.structs.fields(shape)}
    for key, value in raw.items():
        if key not in known:
            yield where + key
        elif isinstance(value, dict):
            yield from _unknown_keys(value, _NESTED[key], f"{where}{key}.")
        elif key in _NESTED and isinstance(value, list):
            for number, item in enumerate(value):
                yield from _unknown_keys(item, _NESTED[key], f"{where}{key}[{number}].")


def _action(name: str, number: int | None, symbol: str | None, where: str) -> Action:
    short = name.removeprefix("SCMP_ACT_")
    if short == "NOTIFY":
        raise ValueError(f"{where}: SCMP_ACT_NOTIFY asks an agent, and there is none here")
    if short == name or short not in _ACTIONS:
        raise ValueError(
            f"{where}: {name!r} is no action; one of "
            f"{', '.join(f'SCMP_ACT_{item}' for item in _ACTIONS)}"
        )
    if symbol:  # podman: it wins over the number
        number = int(symbol) if symbol.isascii() and symbol.isdigit() else _errno_of(symbol, where)
    if number is None:
        return Action(short)
    if number > _MAX_ERRNO:
        raise ValueError(f"{where}: error number {number} is over {_MAX_ERRNO}")
    # The others answer nothing.
    return Action(short, number) if short in ("ERRNO", "TRACE") else Action(short)


def _errno_of(symbol: str, where: str) -> int:
    if symbol not in _ERRNOS:
        raise ValueError(f"{where}: {symbol!r} is no error number of this system")
    return _ERRNOS[symbol]


def _architecture(name: str, where: str) -> str:
    short = name.removeprefix("SCMP_ARCH_")
    if short == name or short not in _ARCHITECTURES:
        raise ValueError(f"{where}: {name!r} is no architecture that libseccomp knows")
    return short


def _rule(item: _Syscall, where: str) -> Rule:
    if item.names and item.name:
        raise ValueError(f"{where}: both name and names are given: give one of them")
    names = tuple(item.names or ([item.name] if item.name else ()))
    if not names:
        raise ValueError(f"{where}.names: no system call is named")
    return Rule(
        names=names,
        action=_action(item.action, item.errno_ret, item.errno, f"{where}.action"),
        comparisons=tuple(
            _comparison(argument, f"{where}.args[{number}]")
            for number, argument in enumerate(item.args or ())
        ),
        includes=_selection(item.includes, f"{where}.includes"),
        excludes=_selection(item.excludes, f"{where}.excludes"),
    )


def _comparison(item: _Argument, where: str) -> Comparison:
    short = item.op.removeprefix("SCMP_CMP_")
    if short == item.op or short not in _OPERATORS:
        raise ValueError(
            f"{where}.op: {item.op!r} is no operator; one of "
            f"{', '.join(f'SCMP_CMP_{name}' for name in _OPERATORS)}"
        )
    if max(item.value, item.value_two) >= 1 << 64:
        raise ValueError(f"{where}: a value has more than 64 bits")
    return Comparison(item.index, short, item.value, item.value_two)


def _selection(item: _Filter | None, where: str) -> Selection:
    if item is None:
        return Selection()
    version = None
    if item.min_kernel:
        found = _KERNEL.fullmatch(item.min_kernel)
        if found is None:
            raise ValueError(
                f"{where}.minKernel: {item.min_kernel!r} is not of the form MAJOR.MINOR"
            )
        version = (int(found[1]), int(found[2]))
    return Selection(tuple(item.caps or ()), tuple(item.arches or ()), version)


def select_rules(
    profile: SeccompProfile, capabilities: int, machine: str, release: str
) -> Iterator[tuple[int, Rule]]:
    """The rules that hold for a container, each with its number in the profile.

    `machine` and `release` are uname(2)'s.
    """
    held = {f"CAP_{name}" for name, bit in CAPABILITIES.items() if capabilities >> bit & 1}
    found = re.match(r"(\d+)\.(\d+)", release)
    kernel = (int(found[1]), int(found[2])) if found else (0, 0)
    architecture = MACHINES[machine][0]
    for number, rule in enumerate(profile.rules):
        wanted, unwanted = rule.includes, rule.excludes
        if (
            held.issuperset(wanted.capabilities)
            and (not wanted.architectures or architecture in wanted.architectures)
            and (wanted.min_kernel is None or kernel >= wanted.min_kernel)
            and held.isdisjoint(unwanted.capabilities)
            and architecture not in unwanted.architectures
            and (unwanted.min_kernel is None or kernel < unwanted.min_kernel)
        ):
            yield number, rule
