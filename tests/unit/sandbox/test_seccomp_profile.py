"""Profiles of the user's: what is taken, what is refused, and what the kernel makes of them."""

from __future__ import annotations

import errno
import json
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from fargatelite.errors import ConfigurationInvalid
from fargatelite.sandbox.capabilities import container_mask
from fargatelite.sandbox.seccomp import ALLOWED, compile_profile, load_program
from fargatelite.sandbox.seccomp_profile import (
    MAX_BYTES,
    MAX_COMPARISONS,
    MAX_NAMES,
    SeccompProfile,
    parse_profile,
    read_profile,
    select_rules,
)

DEFAULT = container_mask((), ())
PODMANS = Path("/usr/share/containers/seccomp.json")  # Debian: golang-github-containers-common
needs_podmans = pytest.mark.skipif(
    not PODMANS.exists(), reason="needs Debian's golang-github-containers-common"
)
ALLOW = {"defaultAction": "SCMP_ACT_ALLOW"}


def profile_of(*syscalls: dict[str, Any], **more: Any) -> SeccompProfile:
    return read_profile({**ALLOW, **more, "syscalls": list(syscalls)})


def refuse(*names: str, **more: Any) -> dict[str, Any]:
    return {"names": list(names), "action": "SCMP_ACT_ERRNO", **more}


def under(program: bytes, code: str) -> str:
    """What a Python process prints that has installed the filter."""
    script = (
        "import ctypes, os, sys\n"
        "libc = ctypes.CDLL(None, use_errno=True)\n"
        "program = sys.stdin.buffer.read()\n"
        "class Fprog(ctypes.Structure):\n"
        "    _fields_ = [('len', ctypes.c_ushort), ('filter', ctypes.c_char_p)]\n"
        "def call(*arguments):\n"
        "    result = libc.syscall(*map(ctypes.c_long, arguments))\n"
        "    return ctypes.get_errno() if result < 0 else 0\n"
        "assert libc.prctl(38, 1, 0, 0, 0) == 0\n"  # PR_SET_NO_NEW_PRIVS
        "fprog = Fprog(len(program) // 8, program)\n"
        "assert libc.prctl(22, 2, ctypes.byref(fprog), 0, 0) == 0\n"  # PR_SET_SECCOMP, filter
        f"{code}\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], input=program, capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout.decode()


@needs_podmans
def test_podmans_own_profile_is_taken_whole() -> None:
    profile = read_profile(PODMANS)
    assert profile.ignored == ()
    assert profile.default.number == errno.ENOSYS
    assert len(profile.rules) == len(json.loads(PODMANS.read_text())["syscalls"])
    if platform.machine() == "x86_64":
        assert profile.entries("x86_64") == ("X86_64", "X86", "X32")
    program = compile_profile(DEFAULT, profile)
    assert len(program) // 8 <= 4096
    assert compile_profile(container_mask(("SYS_PTRACE",), ()), profile) != program
    assert under(program, "os.getpid(); print(len(os.listdir('/')) > 0)") == "True\n"


def test_what_it_refuses_the_kernel_refuses(tmp_path: Path) -> None:
    program = compile_profile(DEFAULT, profile_of(refuse("mkdir", "mkdirat", errnoRet=28)))
    code = (
        "try: os.mkdir(sys.argv[0] + 'x')\n"
        "except OSError as error: print(error.errno)\n"
        "print(os.umask(0) >= 0)"
    )
    assert under(program, code) == f"{errno.ENOSPC}\nTrue\n"


@pytest.mark.skipif(platform.machine() != "x86_64", reason="numbers of system calls of x86_64")
def test_arguments_and_several_of_one() -> None:
    """Of different arguments all hold; of one, any does (runc, crun). 140 is getpriority."""

    def answers(*comparisons: tuple[int, str, int, int]) -> str:
        rule = refuse("getpriority", errnoRet=errno.EDOM, args=[
            {"index": index, "op": f"SCMP_CMP_{operator}", "value": value, "valueTwo": two}
            for index, operator, value, two in comparisons
        ])  # fmt: skip
        program = compile_profile(DEFAULT, profile_of(rule))
        code = "print([call(140, which, who) for which, who in ((0, 0), (0, 1), (9, 0), (9, 1))])"
        return under(program, code)

    usual, mine = errno.EINVAL, errno.EDOM
    assert answers() == f"{[mine] * 4}\n"
    assert answers((0, "EQ", 9, 0)) == f"{[0, 0, mine, mine]}\n"
    assert answers((0, "EQ", 9, 0), (1, "EQ", 1, 0)) == f"{[0, 0, usual, mine]}\n"
    assert answers((0, "EQ", 9, 0), (0, "EQ", 8, 0)) == f"{[0, 0, mine, mine]}\n"
    assert answers((0, "NE", 9, 0)) == f"{[mine, mine, usual, usual]}\n"
    assert answers((1, "GE", 1, 0)) == f"{[0, mine, usual, mine]}\n"
    assert answers((0, "MASKED_EQ", 8, 8)) == f"{[0, 0, mine, mine]}\n"


def test_unknown_calls_are_skipped_and_unknown_keys_named() -> None:
    profile = read_profile({
        **ALLOW, "$schema": "x", "defaultErrno": "",
        "syscalls": [refuse("of_tomorrow", "mkdir", excldes={"caps": ["CAP_CHOWN"]}, comment="c",
                            args=None, includes={"cap": []}, excludes={})],
    })  # fmt: skip
    assert profile.ignored == ("$schema", "syscalls[0].excldes", "syscalls[0].includes.cap")
    assert compile_profile(DEFAULT, profile) == compile_profile(
        DEFAULT, profile_of(refuse("mkdir"))
    )


def test_a_rule_that_says_what_happens_anyway_is_no_error() -> None:
    rule = {"names": ["mkdir"], "action": "SCMP_ACT_ALLOW"}
    assert compile_profile(DEFAULT, profile_of(rule)) == compile_profile(DEFAULT, profile_of())


@pytest.mark.parametrize(
    ("rule", "holds"),
    [
        ({}, True),
        ({"includes": {"caps": ["CAP_CHOWN"]}}, True),
        ({"includes": {"caps": ["CAP_CHOWN", "CAP_SYS_ADMIN"]}}, False),
        ({"includes": {"caps": ["CAP_OF_TOMORROW"]}}, False),
        ({"excludes": {"caps": ["CAP_SYS_ADMIN", "CAP_CHOWN"]}}, False),
        ({"excludes": {"caps": ["CAP_SYS_ADMIN"]}}, True),
        ({"includes": {"arches": ["arm64", "amd64"]}}, True),
        ({"includes": {"arches": ["x86", "x32"]}}, False),
        ({"excludes": {"arches": ["amd64"]}}, False),
        ({"includes": {"minKernel": "6.1"}}, True),
        ({"includes": {"minKernel": "6.2"}}, False),
        ({"excludes": {"minKernel": "6.1"}}, False),
        ({"excludes": {"minKernel": "6.10"}}, True),
        (
            {"includes": {"caps": ["CAP_CHOWN"], "minKernel": "4.8"}, "excludes": {"arches": []}},
            True,
        ),
    ],
    ids=str,
)
def test_includes_and_excludes(rule: dict[str, Any], holds: bool) -> None:
    profile = profile_of(refuse("mkdir", **rule))
    found = list(select_rules(profile, DEFAULT, "x86_64", "6.1.0-23-amd64"))
    assert [number for number, _ in found] == ([0] if holds else [])


def test_architectures_of_both_kinds() -> None:
    assert profile_of().entries("x86_64") == ("X86_64",)
    named = profile_of(architectures=["SCMP_ARCH_X86", "SCMP_ARCH_MIPS"])
    assert named.entries("x86_64") == ("X86_64", "X86")
    mapped = profile_of(archMap=[
        {"architecture": "SCMP_ARCH_X86_64", "subArchitectures": ["SCMP_ARCH_X32"]},
        {"architecture": "SCMP_ARCH_AARCH64", "subArchitectures": ["SCMP_ARCH_ARM"]},
    ])  # fmt: skip
    assert mapped.entries("x86_64") == ("X86_64", "X32")
    assert mapped.entries("aarch64") == ("AARCH64", "ARM")


@pytest.mark.parametrize(
    ("document", "said"),
    [
        ({}, "missing required field `defaultAction`"),
        ({"defaultAction": "ALLOW"}, "defaultAction: 'ALLOW' is no action; one of SCMP_ACT_ALLOW,"),
        ({"defaultAction": "SCMP_ACT_NOTIFY"}, "asks an agent"),
        ({**ALLOW, "syscalls": {}}, r"Expected `array \| null`, got `object` - at `$.syscalls`"),
        ({**ALLOW, "syscalls": [{"names": ["a"]}]}, "`action` - at `$.syscalls[0]`"),
        ({**ALLOW, "syscalls": [refuse("a"), refuse()]}, "syscalls[1].names: no system call"),
        ({**ALLOW, "syscalls": [refuse("a", name="b")]}, "syscalls[0]: both name and names"),
        ({**ALLOW, "syscalls": [{"name": "a", "action": "SCMP_ACT_DENY"}]}, "syscalls[0].action: "),
        ({**ALLOW, "syscalls": [refuse("a", errno="ENOWHERE")]}, "'ENOWHERE' is no error number"),
        ({**ALLOW, "syscalls": [refuse("a", errnoRet=4096)]}, "error number 4096 is over 4095"),
        ({**ALLOW, "syscalls": [refuse("a", args=[{"index": 6, "op": "SCMP_CMP_EQ"}])]},
         "at `$.syscalls[0].args[0].index`"),
        ({**ALLOW, "syscalls": [refuse("a", args=[{"index": 0, "op": "EQ"}])]},
         "syscalls[0].args[0].op: 'EQ' is no operator"),
        ({**ALLOW, "syscalls": [refuse("a", args=[
            {"index": 0, "op": "SCMP_CMP_EQ", "value": 1 << 64}])]}, "more than 64 bits"),
        ({**ALLOW, "syscalls": [refuse("a", includes={"minKernel": "4"})]},
         "syscalls[0].includes.minKernel: '4' is not of the form"),
        ({**ALLOW, "architectures": ["SCMP_ARCH_Z80"]}, "architectures[0]: 'SCMP_ARCH_Z80' is no"),
        ({**ALLOW, "architectures": ["SCMP_ARCH_X86"], "archMap": [
            {"architecture": "SCMP_ARCH_X86_64"}]}, "both architectures and archMap"),
        ({**ALLOW, "flags": ["SECCOMP_FILTER_FLAG_SPEC_ALLOW"]}, "flags[0]: "),
        ({**ALLOW, "listenerPath": "/run/agent"}, "no agent is asked"),
        ({**ALLOW, "syscalls": [refuse(*["a"] * (MAX_NAMES + 1))]}, f"at most {MAX_NAMES}"),
        ({**ALLOW, "syscalls": [refuse(*["a"] * (MAX_COMPARISONS + 1), args=[
            {"index": 0, "op": "SCMP_CMP_EQ"}])]}, f"at most {MAX_COMPARISONS}"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_refusals_say_where(document: dict[str, Any], said: str, tmp_path: Path) -> None:
    path = tmp_path / "profile.json"
    path.write_text(json.dumps(document))
    with pytest.raises(ConfigurationInvalid) as caught:
        read_profile(path)
    assert str(caught.value).startswith(f"seccomp profile {path}: ")
    assert said.replace(r"\|", "|") in str(caught.value)


@pytest.mark.parametrize(
    "data",
    [b"", b"null", b"[]", b"7", b"\xff\xfe", b"{" * 100_000, b'{"a":' * 100_000,
     b'{"defaultAction": ' + b"[" * 5000 + b"]" * 5000 + b"}", b" " * (MAX_BYTES + 1),
     b'{"defaultAction": "SCMP_ACT_ALLOW", "x": ' + b"[" * 100_000,
     b'{"defaultAction": "\\ud800"}'],
    ids=range(11),
)  # fmt: skip
def test_hostile_files(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "profile").write_bytes(data)
    with pytest.raises(ConfigurationInvalid) as caught:
        read_profile(tmp_path / "profile")
    assert len(str(caught.value)) < 1000


def test_no_file_an_endless_one_and_a_directory(tmp_path: Path) -> None:
    for path, said in (
        (tmp_path / "none", "No such file"), (tmp_path, "Is a directory"),
        (Path("/dev/zero"), "more than 1 MiB"), (Path("a\0b"), "embedded null"),
    ):  # fmt: skip
        with pytest.raises(ConfigurationInvalid, match=said):
            read_profile(path)


def test_libseccomps_refusals_are_errors_too() -> None:
    def over(index: int, value: int) -> dict[str, Any]:
        return {"index": index, "op": "SCMP_CMP_GT", "value": value}

    many = [
        refuse("socket", args=[over(index, number << 32 | number) for index in range(3)])
        for number in range(80)
    ]
    many += [
        refuse(name, args=[over(0, number << 33 | number)])
        for number, name in enumerate(ALLOWED[-272:])
    ]
    profile = profile_of(*many, architectures=["SCMP_ARCH_X86", "SCMP_ARCH_X32"])
    if platform.machine() == "x86_64":
        with pytest.raises(ConfigurationInvalid, match="the kernel takes 4096"):
            compile_profile(DEFAULT, profile)
    nul = profile_of(refuse("mk\0dir"))
    assert compile_profile(DEFAULT, nul) == compile_profile(DEFAULT, profile_of())


def test_the_cache_tells_profiles_apart(tmp_path: Path) -> None:
    profiles = [None, profile_of(), profile_of(refuse("mkdir"))]
    programs = [load_program(tmp_path, DEFAULT, profile) for profile in profiles]
    assert len(set(programs)) == len(os.listdir(tmp_path)) == 3
    assert [load_program(tmp_path, DEFAULT, profile) for profile in profiles] == programs


@needs_podmans
def test_parsing_is_the_same_from_a_document() -> None:
    assert read_profile(json.loads(PODMANS.read_text())) == parse_profile(PODMANS.read_bytes(), "")
