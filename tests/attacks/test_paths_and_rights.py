"""What lies below /proc, /sys and /dev, capabilities, and limits of a container's process.

Each attempt is made as root of a container, as another user, by `exec` and by a health check; then
once more without the defence, where it works. "Works" for a system call is any answer of the kernel
behind the filter: the arguments are chosen so that nothing happens.
"""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from fargatelite import Settings, run_task
from tests.attacks.conftest import (
    TIMEOUT_S,
    Attempts,
    Weakness,
    container,
    edit_plans,
    task_of,
    text_of,
    weaken_shim,
)

pytestmark = [pytest.mark.root, pytest.mark.registry]

OPEN = ("masks", "user namespace")
"""Two defences, each of which is enough: masks, and that the host's root is nobody's id here."""


def test_core_pattern(attempts: Attempts) -> None:
    """CVE-2022-0811, CVE-2025-52881: core_pattern makes the host run a program."""
    attempts.fail("write_core_pattern", "EACCES", without=OPEN, then={"OK"}, or_absent=True)


def test_modprobe_path(attempts: Attempts) -> None:
    """/proc/sys/kernel/modprobe: the program that the kernel runs for unknown formats."""
    attempts.fail("write_modprobe", "EACCES", without=OPEN, then={"OK"}, or_absent=True)


def test_binfmt_misc(attempts: Attempts) -> None:
    """binfmt_misc/register: an interpreter for the host's programs too."""
    attempts.fail("write_binfmt", "EACCES", without=OPEN, then={"OK"}, or_absent=True)


def test_cve_2025_52881_sysrq_trigger(attempts: Attempts) -> None:
    """CVE-2025-52881: /proc/sysrq-trigger crashes the host."""
    attempts.fail("write_sysrq", "EACCES", without=OPEN, then={"OK"}, or_absent=True)


def test_irq_affinity(attempts: Attempts) -> None:
    """/proc/irq: the host's interrupts."""
    attempts.fail("write_irq", "EACCES", without=OPEN, then={"OK"}, or_absent=True)


def test_sysctl_of_the_host(attempts: Attempts) -> None:
    """A sysctl that no namespace owns."""
    attempts.fail("write_panic", "EACCES", without=OPEN, then={"OK"}, or_absent=True)


def test_uevent_helper(attempts: Attempts) -> None:
    """/sys/kernel/uevent_helper: the program that the host runs for each event."""
    attempts.fail("write_uevent_helper", "EACCES", without=OPEN, then={"EROFS"}, or_absent=True)


def test_power_state(attempts: Attempts) -> None:
    """/sys/power/state suspends the host."""
    attempts.fail("write_hibernate", "EACCES", without=OPEN, then={"EROFS"}, or_absent=True)


def test_sysfs_setting(attempts: Attempts) -> None:
    """Any setting in sysfs: it is mounted read-only besides."""
    attempts.fail("write_vmcoreinfo", "EACCES", without=OPEN, then={"EROFS"}, or_absent=True)


def test_cve_2022_0492_release_agent(attempts: Attempts) -> None:
    """CVE-2022-0492: release_agent of cgroup v1 runs a program of the host. The file is in the
    root group only, which a container does not see."""
    attempts.fail("write_release_agent", "EACCES", without=OPEN, then={"EROFS"}, or_absent=True)


def test_cve_2022_0492_notify_on_release(attempts: Attempts) -> None:
    """CVE-2022-0492, second half: notify_on_release of the own group."""
    attempts.fail("write_notify", "EACCES", without=OPEN, then={"EROFS"}, or_absent=True)


def test_cve_2023_25809_leave_the_group_v1(attempts: Attempts) -> None:
    """CVE-2023-25809: writable groups: move to another one."""
    attempts.fail("write_v1_procs", "EACCES", without=OPEN, then={"EROFS"}, or_absent=True)


def test_cve_2023_25809_own_limit_v1(attempts: Attempts) -> None:
    """CVE-2023-25809: lift one's own limit."""
    attempts.fail("write_v1_limit", "EACCES", without=OPEN, then={"EROFS"}, or_absent=True)


def test_cve_2023_25809_own_devices_v1(attempts: Attempts) -> None:
    """CVE-2023-25809: allow oneself all devices."""
    attempts.fail("write_v1_devices", "EACCES", without=OPEN, then={"EROFS"}, or_absent=True)


def test_cve_2023_25809_leave_the_group_v2(attempts: Attempts) -> None:
    """The same on cgroup v2."""
    attempts.fail("write_v2_procs", "EACCES", without=OPEN, then={"EROFS"}, or_absent=True)


def test_cve_2023_25809_own_limit_v2(attempts: Attempts) -> None:
    """The same on cgroup v2."""
    attempts.fail("write_v2_limit", "EACCES", without=OPEN, then={"EROFS"}, or_absent=True)


def test_proc_kcore(attempts: Attempts) -> None:
    """/proc/kcore: the memory of the host."""
    attempts.fail("read_kcore", "empty", without=OPEN, then={"OK"}, or_absent=True)


def test_proc_keys(attempts: Attempts) -> None:
    """/proc/keys lists keys of other users."""
    attempts.fail("read_keys", "empty", without=OPEN, then={"OK"}, or_absent=True)


def test_proc_timer_list(attempts: Attempts) -> None:
    """/proc/timer_list has addresses and processes of the host."""
    attempts.fail("read_timer_list", "empty", without=OPEN, then={"OK"}, or_absent=True)


def test_proc_interrupts(attempts: Attempts) -> None:
    """/proc/interrupts: key strokes and other tasks' timing (Tracking the Page Fault, 2025; moby
    masked it in 28)."""
    attempts.fail("read_interrupts", "empty", without=("masks",), then={"OK"}, or_absent=True)


def test_firmware_tables(attempts: Attempts) -> None:
    """/sys/firmware: tables with the machine's identity and keys."""
    attempts.fail("list_firmware", "empty", without=("masks",), then={"OK"}, or_absent=True)


def test_proc_acpi(attempts: Attempts) -> None:
    """CVE-2018-10892: /proc/acpi changes the machine's hardware. This kernel may have none."""
    attempts.fail("list_acpi", "empty", without=("masks",), then={"OK", "empty"}, or_absent=True)


def test_proc_scsi(attempts: Attempts) -> None:
    """CVE-2017-16539: /proc/scsi removes disks."""
    attempts.fail("list_scsi", "empty", without=("masks",), then={"OK", "empty"}, or_absent=True)


def test_proc_kmsg(attempts: Attempts) -> None:
    """/proc/kmsg: the kernel's log, with addresses."""
    attempts.fail(
        "read_kmsg",
        "EACCES",
        without=("filter", "capabilities", "user namespace"),
        then={"OK"},
        or_absent=True,
    )


def test_proc_slabinfo(attempts: Attempts) -> None:
    """/proc/slabinfo: what a heap exploit aims by."""
    attempts.fail(
        "read_kallsyms_slabinfo", "EACCES", without=("user namespace",), then={"OK"}, or_absent=True
    )


def test_proc_kpageflags(attempts: Attempts) -> None:
    """/proc/kpageflags: rowhammer's map."""
    attempts.fail(
        "read_pagemap_flags",
        "EACCES",
        without=("user namespace",),
        then={"OK", "EINVAL"},
        or_absent=True,
    )


def test_kernel_addresses(attempts: Attempts) -> None:
    """/proc/kallsyms with addresses (kptr_restrict looks at CAP_SYSLOG of the host)."""
    attempts.fail(
        "kernel_addresses",
        "zeroes",
        without=("filter", "capabilities", "user namespace"),
        then={"OK", "zeroes"},
        or_absent=True,
    )


def test_device_mem(attempts: Attempts) -> None:
    """mknod of /dev/mem. Three defences: no device can be made in a user namespace (since 3.8),
    then the group's list, then nodev."""
    attempts.fail(
        "device_mem",
        "EPERM",
        without=("user namespace", "devices"),
        then={"OK", "ENXIO", "EPERM"},
        or_absent=True,
    )


def test_device_of_a_disk(attempts: Attempts) -> None:
    """mknod of a block device of the host."""
    attempts.fail(
        "device_loop",
        "EPERM",
        without=("user namespace", "devices"),
        then={"OK", "ENXIO"},
        or_absent=True,
    )


def test_device_loop_control(attempts: Attempts) -> None:
    """mknod of /dev/loop-control: new devices of the host."""
    attempts.fail(
        "device_loop_control",
        "EPERM",
        without=("user namespace", "devices"),
        then={"OK", "ENODEV", "ENXIO"},
        or_absent=True,
    )


def test_cve_2022_29162_capability_of_a_file(attempts: Attempts) -> None:
    """CVE-2022-29162, CVE-2022-24769: a file with CAP_SYS_ADMIN, which SETFCAP may write. The
    bounding set has none."""
    attempts.fail("cap_file", "EPERM", without=("capabilities",), then={"OK"}, or_absent=True)


def test_capset(attempts: Attempts) -> None:
    """capset(2) of a capability that was dropped."""
    attempts.fail("cap_raise", "EPERM", without=("capabilities",), then={"OK"}, or_absent=True)


def test_nice_below_zero(attempts: Attempts) -> None:
    """A priority above everybody's."""
    attempts.fail(
        "nice_below_zero",
        "EACCES",
        without=("filter", "capabilities", "user namespace"),
        then={"OK"},
        or_absent=True,
    )


@pytest.mark.parametrize("name", ["device_mem", "device_loop", "device_loop_control"])
def test_the_group_refuses_what_mknod_made(attempts: Attempts, name: str) -> None:
    """The second defence alone: without the user namespace the node is made, and not opened."""
    assert attempts.weakened("user namespace")[name] == "made, not opened"


@pytest.mark.parametrize("name", ["raise_limit", "real_time", "oom_immune"])
def test_limits_stay(attempts: Attempts, name: str) -> None:
    """prlimit(2), SCHED_FIFO and a process that the OOM killer spares: CAP_SYS_RESOURCE and
    SYS_NICE of the host's user namespace, which the kernel asks for by itself (since 3.8)."""
    attempts.fail(name, "EACCES" if name == "oom_immune" else "EPERM")


@pytest.mark.parametrize("name", ["console", "kmsg", "fuse", "kvm"])
def test_no_device_of_the_host(attempts: Attempts, name: str) -> None:
    """CVE-2025-52565 (/dev/console), and what else a host has in /dev: without the tmpfs over it an
    image's own /dev is there, in which nobody can make a device (mknod in a user namespace, since
    3.8)."""
    attempts.fail(name, "ENOENT")


def test_cve_2026_41579_terminals_of_the_host(attempts: Attempts) -> None:
    """CVE-2026-41579: /dev/pts is the container's own instance, as every mount of devpts is (since
    4.7)."""
    attempts.fail("host_terminal", "none")


@pytest.mark.parametrize("name", ["list_debugfs", "list_tracefs"])
def test_debugging_file_systems(attempts: Attempts, name: str) -> None:
    """debugfs and tracefs are the host's mounts; the container's sysfs has only their place. The
    kernel refuses to mount them in a user namespace (since 3.8)."""
    attempts.fail(name, "empty")


def answer_of_weakened_shim(
    ground: Settings, image: str, path: Path, attempt: str, *edits: tuple[str, str, str]
) -> str:
    """An attempt's answer in a task whose shim has been changed, and whose root is the host's, who
    may go where that leads to."""
    with pytest.MonkeyPatch.context() as patch:
        weaken_shim(patch, path, *edits)
        edit_plans(patch, Weakness(frozenset({"user namespace"})).edit)
        task = run_task(task_of(container(image, "attack", attempt)), settings=ground)
        task.wait(TIMEOUT_S)
    return text_of(task).strip()


def test_double_chroot(
    attempts: Attempts, ground: Settings, attack_image: str, tmp_path: Path
) -> None:
    """chroot(2) twice and `..`: SYS_CHROOT is in Fargate's set. The old root is detached, not
    covered, so that there is nowhere to get to (pivot_root(2)); after a mere chroot there is."""
    changed = ("ops.c", 'syscall(SYS_pivot_root, ".", ".")', 'chroot(".")')
    kept = ("ops.c", 'umount2(".", OLD_MNT_DETACH)', "0")
    assert answer_of_weakened_shim(
        ground, attack_image, tmp_path, "chroot_escape", changed, kept
    ) == "OK"  # fmt: skip
    assert attempts.defended["chroot_escape"] == attempts.in_exec["chroot_escape"] == "contained"
    assert attempts.as_user["chroot_escape"] == "EPERM"


def test_cve_2024_21626_leaked_descriptors(
    attempts: Attempts, ground: Settings, attack_image: str, tmp_path: Path
) -> None:
    """CVE-2024-21626, CVE-2016-9962: nothing beyond stdin, stdout and stderr is open. Without what
    marks all others (close_range) one that somebody forgot is."""
    attempts.fail("descriptors", "none")
    forgotten = (
        "exec.c",
        "syscall(SYS_close_range, 3, ~0U, 1U << 2 /* CLOSE_RANGE_CLOEXEC */)",
        "dup2(5, 77) != 77",
    )
    assert answer_of_weakened_shim(
        ground, attack_image, tmp_path, "descriptors", forgotten
    ) == "OK"  # fmt: skip


def test_no_process_of_the_host(attempts: Attempts) -> None:
    """kill(2) of every number, and whose program it is: a pid namespace of the container's own."""
    attempts.fail(
        "foreign_process", "none", without=("pid namespace", "user namespace"), then={"OK"}
    )


def test_cve_2020_15257_abstract_sockets(
    attempts: Attempts, ground: Settings, attack_image: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """CVE-2020-15257: an abstract socket of the host, which in the host's network namespace is
    there for whoever knows its name; in the task's own is none."""
    attempts.fail("abstract_socket", "none")

    def answer() -> str:
        task = run_task(
            task_of(container(attack_image, "attack", "abstract_socket")), settings=ground
        )
        task.wait(TIMEOUT_S)
        return text_of(task).strip()

    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("\0of the host")
        listener.listen()
        assert answer() == "none"
        edit_plans(monkeypatch, Weakness(frozenset({"network namespace"})).edit)
        assert answer() == "OK"


@pytest.mark.parametrize("name", ["cap_inheritable", "cap_ambient"])
def test_cve_2022_24769_inheritable_capabilities(attempts: Attempts, name: str) -> None:
    """CVE-2022-24769, CVE-2022-27649, CVE-2022-27650, CVE-2022-29162: empty in run, exec and health
    check."""
    attempts.fail(name, "0", without=("no inheritance",), then={"a80425fb"})


def test_bounding_set(attempts: Attempts) -> None:
    """Fargate's 14 capabilities, and SYS_PTRACE where it was asked for (contract 4.2)."""
    attempts.fail("cap_bounding", "a80425fb")
    assert int(attempts.weakened("capabilities")["cap_bounding"], 16) & 1 << 21, "SYS_ADMIN"
    assert attempts.as_debugger["cap_bounding"] == "a80c25fb"
    assert attempts.as_user["cap_effective"] == "0"
