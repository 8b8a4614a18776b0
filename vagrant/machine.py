"""Boots a guest under QEMU, shows its console, and brings back what it left."""

from __future__ import annotations

import os
import re
import selectors
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path

from vagrant.guests import Guest
from vagrant.image import BUILD, ROOT, Built

__all__ = ["NO_RESULT", "find_accelerator", "run"]

NO_RESULT = 125
"""The exit code when the guest left none: a panic, a time-out, a command that ended the machine."""

RESULT_BYTES = 256 << 20
PROBE_S = 5.0
MEMORY_MIB = 3072
PANIC = re.compile(rb"Kernel panic|not syncing|initrd-init: ")


def run(
    guest: Guest,
    built: Built,
    command: str,
    results: Path,
    timeout_s: float,
    products: tuple[str, ...] = (),
) -> int:
    """Runs a shell command in the source tree of a fresh guest; its exit code.

    `products` are files of the tree beside those that git knows. Files that the command writes to
    /results are in `results` afterwards. NO_RESULT when there is no exit code; the console's last
    lines say why.
    """
    shutil.rmtree(results, ignore_errors=True)
    results.mkdir(parents=True)
    vmlinux, initrd = built.kernel(guest.kernel)
    words = ["console=ttyS0", "loglevel=3", "panic=-1"]
    if guest.systemd:
        words += ["xinit=/sbin/init", "systemd.wants=guest-run.service"]
        words += ["systemd.show_status=0", "systemd.mask=serial-getty@ttyS0.service"]
    else:
        words += ["xinit=/guest-init"]
    if guest.take_away:
        words.append(f"take_away={','.join(guest.take_away)}")
    with tempfile.TemporaryDirectory(dir=BUILD) as scratch:
        source, returned = Path(scratch, "source.tar"), Path(scratch, "results.raw")
        _pack_source(source, command, products)
        with open(returned, "wb") as file:
            file.truncate(RESULT_BYTES)
        arguments = [
            *_machine(find_accelerator(vmlinux, initrd)),
            *(["-no-reboot"] if guest.before is None else []),
            "-kernel", str(vmlinux), "-initrd", str(initrd), "-append", " ".join(words),
            *_drive("d0", built.disk, "snapshot=on,cache=unsafe"),
            *_drive("d1", source, "readonly=on"),
            *_drive("d2", returned, "cache=unsafe"),
        ]  # fmt: skip
        # The guest's writes go to an unnamed file there.
        ended = _watch(arguments, timeout_s, {"TMPDIR": scratch})
        if ended:
            print(f"\nvm: {ended}", flush=True)
        return _unpack_results(returned, results)


def find_accelerator(vmlinux: Path, initrd: Path) -> str:
    """`kvm` where a probe boots with it, else `tcg`; asked once per boot of this host.

    /dev/kvm that opens proves nothing: inside another virtual machine the guest may still die of an
    instruction or a register.
    """
    boot_id = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    known = BUILD / f"accelerator-{boot_id}"
    if not known.exists():
        found = "tcg"
        if os.access("/dev/kvm", os.R_OK | os.W_OK):
            arguments = [
                *_machine("kvm"), "-no-reboot", "-kernel", str(vmlinux), "-initrd", str(initrd),
                "-append", "console=ttyS0 quiet panic=-1 probe",
            ]  # fmt: skip
            try:
                probe = subprocess.run(
                    arguments, stdin=subprocess.DEVNULL, capture_output=True, timeout=PROBE_S,
                    check=False,
                )  # fmt: skip
                if b"booted" in probe.stdout:
                    found = "kvm"
            except subprocess.TimeoutExpired:
                pass  # it hangs: no KVM for us
        known.write_text(found)
    return known.read_text()


def _machine(accelerator: str) -> list[str]:
    accel, cpu = ("kvm", "host") if accelerator == "kvm" else ("tcg,thread=multi", "max")
    return [
        "qemu-system-x86_64", "-M", "q35", "-accel", accel, "-cpu", cpu, "-smp", "2",
        "-m", str(MEMORY_MIB), "-nodefaults", "-no-user-config", "-nographic", "-serial", "stdio",
    ]  # fmt: skip


def _drive(name: str, file: Path, options: str) -> list[str]:
    return [
        "-drive", f"if=none,id={name},file={file},format=raw,{options}",
        "-device", f"virtio-blk-pci,drive={name}",
    ]  # fmt: skip


def _watch(arguments: list[str], timeout_s: float, environment: dict[str, str]) -> str | None:
    """Shows the console until the machine is off; why it was ended by us, None if it was not."""
    give_up_at = time.monotonic() + timeout_s
    process = subprocess.Popen(
        # It ends with us, however we end.
        ["setpriv", "--pdeathsig", "KILL", *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        env=os.environ | environment,
    )
    assert process.stdout is not None
    recent = b""
    try:
        with selectors.DefaultSelector() as selector:
            selector.register(process.stdout, selectors.EVENT_READ)
            while True:
                left_s = give_up_at - time.monotonic()
                if left_s <= 0:
                    return f"the guest was ended after {timeout_s:.0f} s"
                if not selector.select(left_s):
                    continue
                data = os.read(process.stdout.fileno(), 65536)
                if not data:
                    return None
                sys.stdout.buffer.write(data)
                sys.stdout.buffer.flush()
                recent = (recent + data)[-4096:]
                if PANIC.search(recent):
                    return "the guest's kernel gave up"
    finally:
        process.kill()
        process.wait()


def _pack_source(target: Path, command: str, products: tuple[str, ...]) -> None:
    """What git knows, and what `make build` made of it."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, check=True, capture_output=True,
    )  # fmt: skip
    names = [name for name in listed.stdout.decode().split("\0") if name]
    names += ["fargatelite/_bin/fargatelite-shim", "fargatelite/meter/_meter.abi3.so", *products]
    script = target.with_suffix(".sh")
    script.write_text(command)
    with tarfile.open(target, "w") as archive:
        for name in names:
            if os.path.lexists(ROOT / name):
                archive.add(ROOT / name, name, filter=_owned_by_root)
        archive.add(script, ".guest-command", filter=_owned_by_root)
        # The version is asked of the installed package's metadata.
        (metadata,) = Path(sys.prefix).glob("lib/python*/site-packages/fargatelite-*.dist-info")
        archive.add(metadata / "METADATA", f"{metadata.name}/METADATA", filter=_owned_by_root)


def _owned_by_root(info: tarfile.TarInfo) -> tarfile.TarInfo:
    info.uid = info.gid = 0
    info.uname = info.gname = "root"
    return info


def _unpack_results(returned: Path, results: Path) -> int:
    """Plain files of the archive at the disk's start; the exit code, NO_RESULT without one."""
    try:
        with tarfile.open(returned, "r:") as archive:
            for member in archive:
                name = Path(member.name)
                content = archive.extractfile(member) if member.isreg() else None
                if content is not None and len(name.parts) == 1:
                    (results / name).write_bytes(content.read())
    except tarfile.ReadError:
        return NO_RESULT  # nothing was written
    code = results / "rc"
    return int(code.read_text()) if code.exists() else NO_RESULT
