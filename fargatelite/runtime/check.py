"""What this host offers and lacks, found by trying each thing and leaving nothing behind.

Probes that change namespaces run in a child of their own (`python -m fargatelite.runtime.check`),
so the caller's stay as they are.
"""

from __future__ import annotations

import ctypes
import os
import platform
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import msgspec

from fargatelite.errors import FargateliteError, HostUnsupported
from fargatelite.host import CAP_SYS_RESOURCE, read_capabilities
from fargatelite.runtime.apparmor import is_enabled, load_profile
from fargatelite.settings import Settings

__all__ = ["CheckResult", "run_checks"]

OK, DEGRADED, MISSING = "ok", "degraded", "missing"

# What the shim and the drivers use, by number (capabilities(7)).
_NEEDED_CAPABILITIES = {
    0: "CAP_CHOWN", 1: "CAP_DAC_OVERRIDE", 5: "CAP_KILL", 6: "CAP_SETGID", 7: "CAP_SETUID",
    8: "CAP_SETPCAP", 12: "CAP_NET_ADMIN", 18: "CAP_SYS_CHROOT", 19: "CAP_SYS_PTRACE",
    21: "CAP_SYS_ADMIN", 27: "CAP_MKNOD",
}  # fmt: skip
NOFILE_DEFAULT = 65535
MIN_FREE_BYTES = 2 * 2**30


NO_TASK = "no task runs"


class CheckResult(msgspec.Struct, frozen=True, kw_only=True):
    """One line of `check`. `cost` says what goes without it or is worse with what is there instead,
    `remedy` what to do; both are empty when the state is ok."""

    name: str
    state: str
    detail: str
    cost: str = ""
    remedy: str = ""


def _result(
    name: str, ok: bool, detail: str, remedy: str, otherwise: str = MISSING, cost: str = NO_TASK
) -> CheckResult:
    if ok:
        return CheckResult(name=name, state=OK, detail=detail)
    return CheckResult(name=name, state=otherwise, detail=detail, cost=cost, remedy=remedy)


# ---- in this process: only looking ----


def _check_platform(settings: Settings) -> CheckResult:
    machine = platform.machine()
    ok = sys.platform == "linux" and machine in ("x86_64", "aarch64")
    return _result(
        "platform", ok, f"Linux {platform.release()} on {machine}",
        "use a Linux host on x86-64 or arm64",
    )  # fmt: skip


def _check_privileges(settings: Settings) -> CheckResult:
    have = read_capabilities()
    lacking = [name for bit, name in _NEEDED_CAPABILITIES.items() if not have >> bit & 1]
    return _result(
        "privileges", os.geteuid() == 0 and not lacking,
        f"uid {os.geteuid()}" + (f", without {' '.join(lacking)}" if lacking else ""),
        "run as root with all capabilities (sudo; in a container: --privileged)",
    )  # fmt: skip


def _check_nofile(settings: Settings) -> CheckResult:
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    ok = hard >= NOFILE_DEFAULT or bool(read_capabilities() >> CAP_SYS_RESOURCE & 1)
    return _result(
        "open files", ok, f"hard limit {hard}",
        "raise the hard limit (ulimit -Hn) or give CAP_SYS_RESOURCE",
        DEGRADED, f"Fargate's default of {NOFILE_DEFAULT} is cut to {hard}",
    )  # fmt: skip


def _check_shim(settings: Settings) -> CheckResult:
    path = Path(__file__).parent.parent / "_bin" / "fargatelite-shim"
    return _result("shim", path.exists(), str(path), "run `make build`, or install the wheel")


def _check_meter(settings: Settings) -> CheckResult:
    from fargatelite.meter.sampler import Sampler

    try:
        Sampler()
    except FargateliteError as error:
        return _result("meter", False, str(error), "run `make build`, or install the wheel")
    return _result("meter", True, "C extension", "")


def _check_cgroups(settings: Settings) -> CheckResult:
    from fargatelite.cgroups.detect import detect_driver

    try:
        driver = detect_driver()
    except FargateliteError as error:
        return _result("cgroups", False, str(error), "mount cgroup v2 with cpu, memory and pids")
    return _result("cgroups", True, f"version {driver.version}", "")


def _check_seccomp(settings: Settings) -> CheckResult:
    from fargatelite.sandbox.seccomp import compile_profile

    try:
        program = compile_profile(0)
    except FargateliteError as error:
        return _result("seccomp", False, str(error), "apt-get install libseccomp2")
    actions = Path("/proc/sys/kernel/seccomp/actions_avail")
    ok = actions.exists() and "errno" in actions.read_text()
    return _result(
        "seccomp", ok, f"{len(program) // 8} instructions",
        "use a kernel with CONFIG_SECCOMP_FILTER",
    )  # fmt: skip


def _check_apparmor(settings: Settings) -> CheckResult:
    if not is_enabled():
        ok, detail = settings.apparmor != "required", "not enabled in this kernel, and not used"
        remedy = 'boot with apparmor=1 security=apparmor, or set apparmor = "auto"'
        return _result("AppArmor", ok, detail, remedy)
    if settings.apparmor == "off":
        return _result("AppArmor", True, "not used: see `apparmor` of the configuration", "")
    try:
        return _result("AppArmor", True, f"profile {load_profile()}", "")
    except HostUnsupported as error:
        return _result(
            "AppArmor", False, "enabled, but the profile of tasks is not loaded", str(error),
            *((MISSING,) if settings.apparmor == "required" else
              (DEGRADED, "tasks run without a profile: one defence less behind masks and filter")),
        )  # fmt: skip


def _check_roots(settings: Settings) -> CheckResult:
    for path in (Path(settings.data_root), Path(settings.run_root)):
        existing = path
        while not existing.exists():
            existing = existing.parent
        if not os.access(existing, os.W_OK):
            return _result(
                "state directories", False, f"cannot write {existing}",
                "run as root, or choose others with --data-root and --run-root",
            )  # fmt: skip
    existing = Path(settings.data_root)
    while not existing.exists():
        existing = existing.parent
    space = os.statvfs(existing)
    free = space.f_bavail * space.f_frsize
    return _result(
        "state directories", free >= MIN_FREE_BYTES,
        f"{settings.data_root}, {settings.run_root}; {free / 2**30:.1f} GiB free",
        "free some, or choose another --data-root",
        DEGRADED, "an image or a task's files may fill it up",
    )  # fmt: skip


# ---- in a child: trying ----

_libc = ctypes.CDLL(None, use_errno=True)
_CLONE_NEWNS, _CLONE_NEWUSER, _CLONE_NEWNET = 0x20000, 0x10000000, 0x40000000
_CLONE_NEWPID, _CLONE_NEWIPC, _CLONE_NEWUTS = 0x20000000, 0x08000000, 0x04000000
_CLONE_NEWCGROUP = 0x02000000
_MS_REC, _MS_PRIVATE = 16384, 1 << 18


def _checked(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


def _unshare(flags: int) -> None:
    _checked(_libc.unshare(flags))


def _private_mounts() -> None:
    _unshare(_CLONE_NEWNS)
    _checked(_libc.mount(None, b"/", None, _MS_REC | _MS_PRIVATE, None))


def _user_namespace_fd() -> int:
    """A user namespace with ids mapped, kept by its descriptor."""
    ready, go = os.pipe(), os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            _unshare(_CLONE_NEWUSER | _CLONE_NEWNET)
            os.write(ready[1], b"1")
        except OSError:
            os.write(ready[1], b"0")
        os.read(go[0], 1)
        os._exit(0)
    try:
        if os.read(ready[0], 1) != b"1":
            raise OSError("unshare(CLONE_NEWUSER | CLONE_NEWNET) was refused")
        for name in ("uid_map", "gid_map"):
            Path(f"/proc/{pid}/{name}").write_text("0 1879048192 65536\n")
        return os.open(f"/proc/{pid}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
    finally:
        os.write(go[1], b"1")
        os.waitpid(pid, 0)


def _try_user_namespaces(scratch: Path) -> str:
    os.close(_user_namespace_fd())
    return "65536 ids mapped, with a network namespace"


def _try_namespaces(scratch: Path) -> str:
    _unshare(_CLONE_NEWNS | _CLONE_NEWPID | _CLONE_NEWIPC | _CLONE_NEWUTS | _CLONE_NEWCGROUP)
    return "mount, pid, ipc, uts, cgroup"


def _try_overlay(scratch: Path) -> str:
    _private_mounts()
    for name in ("lower", "upper", "work", "merged"):
        (scratch / name).mkdir()
    options = f"lowerdir={scratch}/lower,upperdir={scratch}/upper,workdir={scratch}/work,volatile"
    _checked(_libc.mount(b"overlay", bytes(scratch / "merged"), b"overlay", 0, options.encode()))
    return "writable, volatile"


def _make_erofs(scratch: Path) -> tuple[Path, Path]:
    from fargatelite.images.erofs import write_erofs
    from fargatelite.images.layer import Kind, Record
    from fargatelite.images.merge import merge_layers

    blob = scratch / "blob"
    blob.write_bytes(b"x" * 4096)
    records = [Record(b"file", Kind.FILE, 0o644, size=4096)]
    write_erofs(merge_layers([records]), [1], scratch / "image.erofs")
    return scratch / "image.erofs", blob


def _try_images(scratch: Path) -> str:
    from fargatelite.images.mount import mount_erofs

    _private_mounts()
    image, blob = _make_erofs(scratch)
    target = scratch / "mounted"
    target.mkdir()
    try:
        mount_erofs(image, [blob], target, loop=False)
        how = "EROFS mounted from files"
    except FargateliteError:
        try:
            mount_erofs(image, [blob], target, loop=True)
            how = "EROFS through loop devices"
        except HostUnsupported:
            return "no EROFS: images are unpacked to directories"
    if (target / "file").read_bytes() != b"x" * 4096:
        raise OSError("an EROFS image reads back wrong")
    return how


def _try_idmap(scratch: Path) -> str:
    from fargatelite.images.directory import bind_directory
    from fargatelite.images.mount import mount_erofs

    userns = _user_namespace_fd()
    _private_mounts()
    image, blob = _make_erofs(scratch)
    target = scratch / "mounted"
    target.mkdir()
    kind = "EROFS"
    try:
        mount_erofs(image, [blob], target)
    except HostUnsupported:
        kind = "directory"
        bind_directory(scratch, target)
    # open_tree(2) 428, mount_setattr(2) 442: numbers are the same on all architectures.
    tree = _checked(_libc.syscall(428, -100, bytes(target), 0x1 | os.O_CLOEXEC))
    attributes = (ctypes.c_uint64 * 4)(0x00100000, 0, 0, userns)
    _checked(_libc.syscall(442, tree, b"", 0x1000, ctypes.byref(attributes), 32))
    return f"{kind} mounts can be id-mapped"


def _try_storage(scratch: Path) -> str:
    from fargatelite.names import new_task_id
    from fargatelite.storage.ephemeral import create_storage, read_use, remove_storage

    _private_mounts()
    task_id, target = new_task_id(), scratch / "task"
    try:
        create_storage(scratch / "storage", scratch / "cache", target, task_id, 1)
        held = read_use(target).size_bytes
        if not 2**30 <= held < 2 * 2**30:
            raise OSError(f"storage of 1 GiB says that it has {held} bytes")
        quota = not os.path.ismount(target)
    finally:
        remove_storage(scratch / "storage", target, task_id)
    return "project quota" if quota else "a file system for each task, through loop devices"


def _try_nftables(scratch: Path) -> str:
    # In a process of its own: libnftables writes to stderr when it is refused.
    import nftables

    code, _, error = nftables.Nftables().cmd("list tables")
    if code:
        raise OSError(error.strip() or "tables cannot be listed")
    from fargatelite.network import firewall

    lacks = [
        words
        for words, can in (
            ("connections (nft_connlimit)", firewall.can_bound_connections()),
            ("bandwidth (nft_limit)", firewall.can_bound_bandwidth()),
        )
        if not can
    ]
    if lacks:
        return f"{_UNBOUNDED}{' and '.join(lacks)} of a task"
    return "tables can be listed; connections and bandwidth of a task can be bounded"


_UNBOUNDED = "tables can be listed, but not bounded: "


_LOOP_COST = (
    "a loop device for each layer of an image in use, and 1 ms more for each when it is mounted"
)
_DIRECTORY_COST = (
    "each file of an image is made before its first task: slower the more there are, an inode each"
)
_COSTS = {
    "nftables": "no task with a network of its own runs",
    "ephemeral storage": 'no task runs, unless storage_backend is "unlimited": then one may fill'
    " the host's disk",
}
"""Of tries that are missing, where it is not NO_TASK."""

_TRIES: dict[str, tuple[Callable[[Path], str], str]] = {
    "user namespaces": (
        _try_user_namespaces,
        "allow them: kernel CONFIG_USER_NS, sysctl user.max_user_namespaces above 0",
    ),
    "namespaces": (_try_namespaces, "use a kernel with all of them, as root"),
    "nftables": (
        _try_nftables,
        "apt-get install libnftables1, and use a kernel with nf_tables (modprobe nf_tables)",
    ),
    "overlayfs": (
        _try_overlay,
        "use a kernel with overlayfs (modprobe overlay) and a data root that is not on overlayfs",
    ),
    "image mounts": (
        _try_images,
        "use a kernel with EROFS (modprobe erofs), best Linux 6.12, which mounts it from files",
    ),
    "ephemeral storage": (
        _try_storage,
        "apt-get install e2fsprogs, and use a kernel with ext4 and loop devices, or a data root on"
        ' a file system with project quota; or set storage_backend = "unlimited"',
    ),
    "id-mapped mounts": (_try_idmap, "use Linux 5.19 or newer, where EROFS can be id-mapped"),
}


def _run_try(name: str, directory: Path) -> CheckResult:
    done = subprocess.run(
        [sys.executable, "-I", "-m", "fargatelite.runtime.check", name, os.fspath(directory)],
        capture_output=True,
        check=False,
        timeout=60,
    )
    said = done.stdout.decode("utf-8", "replace").strip()
    words = done.stderr.decode("utf-8", "replace").strip().splitlines()
    if done.returncode != 0:
        return _result(
            name, False, words[-1] if words else "the probe died", _TRIES[name][1],
            cost=_COSTS.get(name, NO_TASK),
        )  # fmt: skip
    if name == "image mounts" and "from files" not in said:
        cost = _LOOP_COST if "loop" in said else _DIRECTORY_COST
        return _result(name, False, said, _TRIES[name][1], DEGRADED, cost)
    if name == "nftables" and said.startswith(_UNBOUNDED):
        remedy = "load the modules, or use a kernel with CONFIG_NFT_CONNLIMIT and CONFIG_NFT_LIMIT"
        cost = "one task can fill the host's connection tracking, or its network"
        return _result(name, False, said, remedy, DEGRADED, cost)
    return _result(name, True, said, "")


_LOOKS: tuple[Callable[[Settings], CheckResult], ...] = (
    _check_platform,
    _check_privileges,
    _check_nofile,
    _check_shim,
    _check_meter,
    _check_cgroups,
    _check_seccomp,
    _check_apparmor,
    _check_roots,
)


def run_checks(settings: Settings) -> list[CheckResult]:
    """Every check; nothing is left behind. No tries without the privileges: each would only
    say so again."""
    results = [look(settings) for look in _LOOKS]
    if all(result.state == OK for result in results if result.name == "privileges"):
        # Beside the data root: overlayfs depends on the file system below it.
        parent = Path(settings.data_root)
        while not parent.exists():
            parent = parent.parent
        for name in _TRIES:
            with tempfile.TemporaryDirectory(prefix=".fargatelite-check-", dir=parent) as scratch:
                results.append(_run_try(name, Path(scratch)))
    return results


def main() -> None:
    """One try: its detail on stdout, or one line on stderr and exit code 1."""
    name, directory = sys.argv[1:]
    try:
        sys.stdout.write(_TRIES[name][0](Path(directory)) + "\n")
    except (ImportError, OSError, FargateliteError) as error:
        sys.stderr.write(f"{error}\n")
        sys.exit(1)


if __name__ == "__main__":
    main()
