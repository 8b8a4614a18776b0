"""System calls that exploits of the kernel need, and the filter before them.

Each attempt is made as root of a container, as another user, by `exec` and by a health check; then
once more without the defence, where it works. "Works" for a system call is any answer of the kernel
behind the filter: the arguments are chosen so that nothing happens.
"""

from __future__ import annotations

import pytest

from fargatelite import Settings, run_task
from fargatelite.sandbox.seccomp import ALLOWED
from tests.attacks.conftest import (
    TIMEOUT_S,
    Answers,
    Attempts,
    answers_of,
    container,
    task_of,
    text_of,
)

pytestmark = [pytest.mark.root, pytest.mark.registry]

ALONE = ("filter",)
WITH_RIGHTS = ("filter", "capabilities", "user namespace")
"""Also as the host's root: the kernel would refuse a task by itself."""


def test_cve_2026_31431_copy_fail_af_alg(attempts: Attempts) -> None:
    """CVE-2026-31431: AF_ALG and splice write the page cache that images share."""
    attempts.fail("af_alg", "EPERM", without=ALONE, then={"OK", "EAFNOSUPPORT"})


def test_af_alg_with_upper_bits(attempts: Attempts) -> None:
    """The kernel ignores the upper half of socket(2)'s family; a filter that compares 64 bits for
    inequality does not see AF_ALG there (seccomp(2), "Caveats")."""
    attempts.fail("af_alg_upper_bits", "ENOSYS", without=ALONE, then={"OK", "EAFNOSUPPORT"})


def test_cve_2026_43500_dirty_frag_af_rxrpc(attempts: Attempts) -> None:
    """CVE-2026-43500: rxrpc decrypts in place, in the page cache."""
    attempts.fail("af_rxrpc", "EPERM", without=ALONE, then={"OK", "EAFNOSUPPORT"})


def test_cve_2026_43284_dirty_frag_xfrm(attempts: Attempts) -> None:
    """CVE-2026-43284: esp; a NETLINK_XFRM socket sets the state up."""
    attempts.fail("netlink_xfrm", "EPERM", without=ALONE, then={"OK", "EPROTONOSUPPORT"})


def test_af_key(attempts: Attempts) -> None:
    """PF_KEY is xfrm's older door (RFC 2367)."""
    attempts.fail("af_key", "EPERM", without=ALONE, then={"OK", "EAFNOSUPPORT"})


def test_af_vsock_to_the_hypervisor(attempts: Attempts) -> None:
    """AF_VSOCK reaches the hypervisor of a cloud host past every network rule (moby
    profiles/seccomp)."""
    attempts.fail("af_vsock", "EPERM", without=ALONE, then={"OK", "EAFNOSUPPORT", "ENODEV"})


def test_cve_2016_0728_add_key(attempts: Attempts) -> None:
    """CVE-2016-0728: reference counts of keyrings; keyrings know no container."""
    attempts.fail("add_key", "EPERM", without=ALONE, then={"OK"})


def test_keyctl(attempts: Attempts) -> None:
    """keyctl(2): read and join keyrings of the same user outside."""
    attempts.fail("keyctl", "EPERM", without=ALONE, then={"OK"})


def test_request_key_upcall(attempts: Attempts) -> None:
    """request_key(2) makes the kernel run /sbin/request-key on the host."""
    attempts.fail("request_key", "EPERM", without=ALONE, then={"ENOKEY", "ENOENT"})


def test_cve_2021_3490_bpf(attempts: Attempts) -> None:
    """CVE-2021-3490 and kin: the verifier of bpf(2)."""
    attempts.fail("bpf", "EPERM", without=ALONE, then={"EINVAL"})


def test_cve_2022_1729_perf_event_open(attempts: Attempts) -> None:
    """CVE-2022-1729, CVE-2023-6931: perf_event_open(2)."""
    attempts.fail("perf_event_open", "EPERM", without=ALONE, then={"EFAULT"})


def test_cve_2022_29582_io_uring(attempts: Attempts) -> None:
    """CVE-2022-29582, CVE-2023-2598 and kin: io_uring also does I/O that no filter sees."""
    attempts.fail("io_uring_setup", "EPERM", without=ALONE, then={"EFAULT", "ENOSYS"})


def test_userfaultfd_stops_the_kernel(attempts: Attempts) -> None:
    """userfaultfd(2) holds the kernel in the middle of a copy: half of the exploits since 2016."""
    attempts.fail("userfaultfd", "EPERM", without=WITH_RIGHTS, then={"EINVAL"})


def test_clone3_hides_its_flags(attempts: Attempts) -> None:
    """clone3(2) has its flags in memory, which a filter cannot read: ENOSYS, so that libraries
    fall back to clone (moby 42681)."""
    attempts.fail("clone3", "ENOSYS", without=ALONE, then={"EINVAL"})


def test_cve_2022_0185_unshare_user(attempts: Attempts) -> None:
    """CVE-2022-0185, CVE-2023-0386, CVE-2024-1086, CVE-2022-34918, CVE-2023-32233: a new user
    namespace gives the capabilities that these need."""
    attempts.fail("unshare_user", "EPERM", without=ALONE, then={"OK"})


def test_clone_with_a_user_namespace(attempts: Attempts) -> None:
    """The same by clone(2)."""
    attempts.fail("clone_user", "EPERM", without=ALONE, then={"OK"})


def test_unshare_mount_namespace(attempts: Attempts) -> None:
    """A mount namespace of one's own, to change mounts in."""
    attempts.fail("unshare_mount", "EPERM", without=("filter", "capabilities"), then={"OK"})


def test_unshare_network_namespace(attempts: Attempts) -> None:
    """CVE-2022-34918: nf_tables in a network namespace of one's own."""
    attempts.fail("unshare_net", "EPERM", without=("filter", "capabilities"), then={"OK"})


def test_setns(attempts: Attempts) -> None:
    """setns(2): into another namespace by its file."""
    attempts.fail("setns_pid1", "EPERM", without=("filter", "capabilities"), then={"OK"})


def test_cve_2023_0386_overlay_by_fsopen(attempts: Attempts) -> None:
    """CVE-2021-3493, CVE-2023-0386, CVE-2023-2640, CVE-2023-32629: an overlay of one's own. The
    mount namespace is the host's user namespace's, so that the kernel refuses it by itself too
    (since 3.8)."""
    attempts.fail("fsopen_overlay", "EPERM", without=WITH_RIGHTS, then={"OK"})


def test_cve_2022_0185_fsconfig(attempts: Attempts) -> None:
    """CVE-2022-0185: fsconfig(2)'s length underflows."""
    attempts.fail("fsconfig", "EPERM", without=ALONE, then={"EINVAL"})


def test_open_tree_clone(attempts: Attempts) -> None:
    """open_tree(2) takes a mount without what covers it."""
    attempts.fail("open_tree", "EPERM", without=WITH_RIGHTS, then={"OK"})


def test_move_mount(attempts: Attempts) -> None:
    """move_mount(2) over a mask."""
    attempts.fail("move_mount", "EPERM", without=WITH_RIGHTS, then={"ENOENT", "EBADF"})


def test_mount_setattr(attempts: Attempts) -> None:
    """mount_setattr(2): CVE-2020-29373's kin, undo read-only."""
    attempts.fail("mount_setattr", "EPERM", without=ALONE, then={"EINVAL"})


def test_cve_2025_52881_mount_over_proc(attempts: Attempts) -> None:
    """CVE-2025-52881: a mount over what the runtime writes to."""
    attempts.fail("mount_tmpfs", "EPERM", without=WITH_RIGHTS, then={"OK"})


def test_remount_proc_sys(attempts: Attempts) -> None:
    """Make /proc/sys writable again: a bind remount."""
    attempts.fail("remount_root", "EPERM", without=WITH_RIGHTS, then={"OK"})


def test_umount_of_a_mask(attempts: Attempts) -> None:
    """Take a mask away, as CVE-2023-28642's second step did."""
    attempts.fail("umount_mask", "EPERM", without=WITH_RIGHTS, then={"OK"})


def test_pivot_root(attempts: Attempts) -> None:
    """pivot_root(2) in the container."""
    attempts.fail("pivot_root", "EPERM", without=WITH_RIGHTS, then={"EBUSY", "EINVAL"})


def test_cve_2026_43391_nsfs_handles(attempts: Attempts) -> None:
    """CVE-2026-43391, CVE-2026-43403: file handles of namespaces."""
    attempts.fail("name_to_handle_at", "EPERM", without=ALONE, then={"EOPNOTSUPP", "EFAULT"})


def test_shocker_open_by_handle_at(attempts: Attempts) -> None:
    """Shocker (2014): open_by_handle_at(2) opens any inode of the file system below."""
    attempts.fail("open_by_handle_at", "EPERM", without=ALONE, then={"EFAULT"})


def test_kexec_load(attempts: Attempts) -> None:
    """kexec_load(2): another kernel."""
    attempts.fail(
        "kexec_load", "EPERM", without=WITH_RIGHTS, then={"ENOSYS", "EINVAL", "EADDRNOTAVAIL"}
    )


def test_init_module(attempts: Attempts) -> None:
    """init_module(2): code in the kernel."""
    attempts.fail("init_module", "EPERM", without=WITH_RIGHTS, then={"ENOSYS", "EFAULT", "ENOEXEC"})


def test_delete_module(attempts: Attempts) -> None:
    """delete_module(2)."""
    attempts.fail("delete_module", "EPERM", without=WITH_RIGHTS, then={"ENOSYS", "ENOENT"})


def test_swapon(attempts: Attempts) -> None:
    """swapon(2)."""
    attempts.fail("swapon", "EPERM", without=WITH_RIGHTS, then={"ENOENT"})


def test_reboot(attempts: Attempts) -> None:
    """reboot(2): in a pid namespace it ends that, elsewhere the host."""
    attempts.fail("reboot", "EPERM", without=WITH_RIGHTS, then={"EINVAL"})


def test_acct(attempts: Attempts) -> None:
    """acct(2) writes a file for every process."""
    attempts.fail("acct", "EPERM", without=WITH_RIGHTS, then={"ENOENT", "ENOSYS"})


def test_iopl(attempts: Attempts) -> None:
    """iopl(2): ports of the machine."""
    attempts.fail("iopl", "EPERM", without=WITH_RIGHTS, then={"ENOSYS", "EINVAL"})


def test_clock_settime(attempts: Attempts) -> None:
    """clock_settime(2): the clock is the host's."""
    attempts.fail("clock_settime", "EPERM", without=ALONE, then={"EFAULT"})


def test_syslog(attempts: Attempts) -> None:
    """syslog(2): the kernel's log has its addresses."""
    attempts.fail("syslog_read", "EPERM", without=WITH_RIGHTS, then={"OK"})


def test_personality_read_implies_exec(attempts: Attempts) -> None:
    """READ_IMPLIES_EXEC makes all readable memory run (moby profiles/seccomp)."""
    attempts.fail("personality_exec", "ENOSYS", without=ALONE, then={"OK"})


def test_fanotify_init(attempts: Attempts) -> None:
    """fanotify_init(2): events of a whole file system."""
    attempts.fail("fanotify_init", "EPERM", without=WITH_RIGHTS, then={"EINVAL"})


def test_move_pages(attempts: Attempts) -> None:
    """move_pages(2), migrate_pages(2): which pages are shared and where (CVE-2017-14140)."""
    attempts.fail("move_pages", "EPERM", without=ALONE, then={"OK", "EFAULT", "ENOSYS"})


def test_listmount(attempts: Attempts) -> None:
    """listmount(2) and statmount(2): mounts of other namespaces by number (Linux 6.8)."""
    attempts.fail("listmount", "ENOSYS", without=ALONE, then={"EFAULT", "EINVAL"})


def test_vhangup(attempts: Attempts) -> None:
    """vhangup(2) of the host's terminal."""
    attempts.fail("vhangup", "EPERM", without=WITH_RIGHTS, then={"OK"})


def test_pidfd_getfd_needs_ptrace(attempts: Attempts) -> None:
    """pidfd_getfd(2) steals descriptors; with SYS_PTRACE, the one capability that Fargate adds, it
    is as allowed as ptrace(2) is, within the container."""
    attempts.fail("pidfd_getfd", "EPERM", without=ALONE, then={"EBADF"})
    assert attempts.as_debugger["pidfd_getfd"] == "EBADF"


@pytest.mark.parametrize("name", ["x32_getpid", "x32_socket_alg", "x32_unshare"])
def test_x32_entry(attempts: Attempts, name: str) -> None:
    """CVE-2014-0038's door: numbers with bit 30. A kernel without CONFIG_X86_X32_ABI closes it by
    itself; where it has it, the filter answers as if not."""
    attempts.need(name)
    attempts.fail(name, "ENOSYS")
    assert attempts.weakened(*ALONE)[name] in {"ENOSYS", "OK", "EAFNOSUPPORT"}


def test_i386_entry_is_there(attempts: Attempts) -> None:
    """Programs of 32 bit run on Fargate, so the door is open; what follows is what it lets in."""
    attempts.need("i386_getpid")
    assert attempts.defended["i386_getpid"] in {"OK", "signal 11"}


def test_i386_socketcall(attempts: Attempts) -> None:
    """socketcall(2) has its family in memory: without ENOSYS it is AF_ALG's back door."""
    attempts.need("i386_getpid", "OK")
    attempts.fail("i386_socketcall", "ENOSYS", without=ALONE, then={"EFAULT"})


def test_i386_af_alg(attempts: Attempts) -> None:
    """socket(2) by the entry of 32 bit."""
    attempts.need("i386_getpid", "OK")
    attempts.fail("i386_socket_alg", "ENOSYS", without=ALONE, then={"OK", "EAFNOSUPPORT"})


def test_i386_unshare(attempts: Attempts) -> None:
    """unshare(2) by the entry of 32 bit."""
    attempts.need("i386_getpid", "OK")
    attempts.fail("i386_unshare", "EPERM", without=ALONE, then={"OK"})


def test_i386_keyctl(attempts: Attempts) -> None:
    """keyctl(2) by the entry of 32 bit."""
    attempts.need("i386_getpid", "OK")
    attempts.fail("i386_keyctl", "EPERM", without=ALONE, then={"OK"})


def test_i386_mount(attempts: Attempts) -> None:
    """mount(2) by the entry of 32 bit."""
    attempts.need("i386_getpid", "OK")
    attempts.fail("i386_mount", "EPERM", without=ALONE, then={"EFAULT"})


def test_i386_bpf(attempts: Attempts) -> None:
    """bpf(2) by the entry of 32 bit."""
    attempts.need("i386_getpid", "OK")
    attempts.fail("i386_bpf", "EPERM", without=ALONE, then={"EINVAL"})


def test_i386_clone3(attempts: Attempts) -> None:
    """clone3(2) by the entry of 32 bit."""
    attempts.need("i386_getpid", "OK")
    attempts.fail("i386_clone3", "ENOSYS", without=ALONE, then={"EINVAL"})


def test_a_profile_takes_the_place_of_the_filter(
    attempts: Attempts, ground: Settings, attack_image: str
) -> None:
    """`--seccomp` of the user's (Docker's format): one that allows all is as no filter; podman's of
    Debian 12 lets through what it does under podman. A profile for socket(2) alone does not open
    socketcall(2), which libseccomp would (see test_i386_socketcall)."""

    def under(profile: object) -> Answers:
        task = run_task(
            task_of(container(attack_image, "attack", "all")), settings=ground, seccomp=profile
        )  # type: ignore[call-overload]
        task.wait(TIMEOUT_S)
        return answers_of(text_of(task))

    names = ("af_alg", "netlink_xfrm", "keyctl", "unshare_user", "clone3", "io_uring_setup")
    bare, weakened = under({"defaultAction": "SCMP_ACT_ALLOW"}), attempts.weakened(*ALONE)
    assert {name: bare[name] for name in names} == {name: weakened[name] for name in names}
    podmans = under("/usr/share/containers/seccomp.json")
    assert podmans["netlink_xfrm"] in {"OK", "EPROTONOSUPPORT"}
    assert podmans["unshare_mount"] == podmans["bpf"] == "EPERM"
    if attempts.defended.get("i386_getpid") == "OK":
        inet = {"index": 0, "value": 2, "op": "SCMP_CMP_EQ"}
        only_inet = {
            "defaultAction": "SCMP_ACT_ERRNO",
            "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86"],
            "syscalls": [
                {"names": [*ALLOWED, "clone"], "action": "SCMP_ACT_ALLOW"},
                {"names": ["socket"], "action": "SCMP_ACT_ALLOW", "args": [inet]},
            ],
        }
        assert under(only_inet)["i386_socketcall"] == "ENOSYS"
