"""Builds a user space's disk and its kernels into build/vm, once for each state of their inputs.

Debian packages come through this host's own apt sources, Python packages through its pip; the guest
itself has neither pip nor a compiler nor a network.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import re
import shutil
import subprocess
import sys
from pathlib import Path

from packaging.requirements import Requirement

from vagrant.guests import BUILD_REQUIRES, COMPILER, PACKAGES, USER_SPACES, UserSpace
from vagrant.kernel import extract_vmlinux, needed_modules, write_initramfs

__all__ = ["BUILD", "Built", "build"]

ROOT = Path(__file__).resolve().parent.parent
HERE = ROOT / "vagrant"
BUILD = ROOT / "build" / "vm"
INSECURE_KEY = HERE / "insecure.pub"
"""Everybody's, published with Vagrant (keys/vagrant.pub of its source)."""
DISK_BYTES = 8 << 30
"""Sparse; a guest's writes are thrown away."""

INSTALLED = ("fargatelite", "hypothesis", "pytest", "pytest-timeout")
"""Python packages whose requirements a guest has in /opt/site-packages."""
EVERYTHING = (*INSTALLED, *BUILD_REQUIRES)
"""And what lies in /opt/wheels beside, for who installs fargatelite there."""


class Built:
    """Where the parts of a user space are."""

    def __init__(self, directory: Path) -> None:
        self.disk = directory / "root.ext4"
        self._directory = directory

    def kernel(self, package: str) -> tuple[Path, Path]:
        """(vmlinux, initramfs) of a kernel's meta package."""
        name = package.replace("/", "_")
        return self._directory / f"{name}.vmlinux", self._directory / f"{name}.initrd"


def build(name: str) -> Built:
    """Builds the user space `name` when an input has changed; some 100 s, and 0 s afterwards.

    Raises: subprocess.CalledProcessError with the failing command's output on the terminal.
    """
    space = USER_SPACES[name]
    directory = BUILD / f"{name}-{_hash_of_inputs(space)[:16]}"
    if not (directory / "complete").exists():
        for old in BUILD.glob(f"{name}-*"):
            shutil.rmtree(old)
        directory.mkdir(parents=True)
        _build(space, directory)
        (directory / "complete").touch()
    return Built(directory)


def _hash_of_inputs(space: UserSpace) -> str:
    digest = hashlib.sha256(repr((space, PACKAGES, COMPILER, DISK_BYTES)).encode())
    for line in _requirements(*EVERYTHING):
        digest.update(line.encode())
    for path in (
        Path(__file__),
        HERE / "kernel.py",
        *_installed_files().values(),
        HERE / "initrd-init",
    ):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _installed_files() -> dict[str, Path]:
    """Files of ours in the disk, by their place there."""
    return {
        "guest-init": HERE / "guest-init",
        "guest-run": HERE / "guest-run",
        "etc/systemd/system/guest-run.service": HERE / "guest-run.service",
    }


def _build(space: UserSpace, directory: Path) -> None:
    tree = directory / "tree"
    _say(f"{space.suite}: user space")
    _bootstrap(space, tree)
    for package in space.kernels:
        _say(f"{space.suite}: {package}")
        _install_kernel(tree, package, directory)
    _download_compiler(tree)
    _say(f"{space.suite}: Python packages")
    _install_python_packages(space, tree, directory)
    for name, source in _installed_files().items():
        shutil.copy2(source, tree / name)
    _prepare_for_vagrant(tree)
    (tree / "etc/machine-id").write_text("")
    (tree / "etc/hostname").write_text("vm\n")
    (tree / "etc/hosts").write_text("127.0.0.1 localhost vm\n::1 localhost\n")
    _say(f"{space.suite}: disk")
    disk = directory / "root.ext4"
    with open(disk, "wb") as file:
        file.truncate(DISK_BYTES)
    features = "-O", "^has_journal", "-E", "lazy_itable_init=1"
    _run("mke2fs", "-q", "-t", "ext4", "-I", "256", *features, "-d", str(tree), str(disk))
    shutil.rmtree(tree)


def _bootstrap(space: UserSpace, tree: Path) -> None:
    """mmdebstrap from this host's sources, their suites exchanged."""
    wanted = {package.partition("/")[0] for package in space.kernels if "/" in package}
    sources = tree.parent / "sources.list"
    sources.write_text(_sources(space.suite, sorted(wanted)))
    _run(
        "mmdebstrap", "--quiet", "--mode=root", "--variant=minbase",
        f"--include={','.join(PACKAGES)}", "--dpkgopt=path-exclude=/usr/share/doc/*",
        "--dpkgopt=path-exclude=/usr/share/locale/*", "--dpkgopt=path-exclude=/usr/share/man/*",
        "--skip=cleanup/apt", space.suite, str(tree), str(sources),
    )  # fmt: skip


def _sources(suite: str, more: list[str]) -> str:
    """This host's Debian mirrors as one-line sources for `suite` (and `more` suites).

    A host that has none in the usual files gets Debian's own.
    """
    text = "\n".join(
        path.read_text()
        for path in (
            *Path("/etc/apt").glob("sources.list"),
            *Path("/etc/apt/sources.list.d").glob("debian*"),
        )
    )
    addresses = re.findall(r"^(?:URIs:|deb(?: \[[^]]*\])?)\s+(https?://\S+)", text, re.MULTILINE)
    plain = [found for found in addresses if "security" not in found]
    secure = [found for found in addresses if "security" in found]
    main = plain[0] if plain else "http://deb.debian.org/debian"
    security = secure[0] if secure else "http://deb.debian.org/debian-security"
    options = "[signed-by=/usr/share/keyrings/debian-archive-keyring.gpg]"
    lines = [f"deb {options} {main} {name} main" for name in (suite, f"{suite}-updates", *more)]
    lines.append(f"deb {options} {security} {suite}-security main")
    return "\n".join(lines) + "\n"


def _install_kernel(tree: Path, package: str, directory: Path) -> None:
    """A kernel's modules into the tree; its image and initramfs beside the disk.

    The package is unpacked, not installed: nobody in the guest needs its initramfs or boot loader.
    """
    suite, _, meta = package.rpartition("/")
    unpacked = directory / "kernel"
    for name in _kernel_packages(tree, meta, ["--target-release", suite] if suite else []):
        _run("chroot", str(tree), "sh", "-c", f"cd /var/tmp && apt-get -qq download {name}")
        (archive,) = (tree / "var/tmp").glob("*.deb")
        _run("dpkg-deb", "-x", str(archive), str(unpacked))
        archive.unlink()
    (vmlinuz,) = unpacked.rglob("vmlinuz*")  # in boot, or since Linux 7 beside its modules
    release = vmlinuz.name.partition("-")[2] or vmlinuz.parent.name
    (modules,) = (path for path in unpacked.rglob(release) if path.parent.name == "modules")
    destination = tree / "usr/lib/modules" / release
    shutil.copytree(modules, destination, symlinks=True)
    _run("chroot", str(tree), "depmod", release)
    vmlinux, initrd = Built(directory).kernel(package)
    vmlinux.write_bytes(extract_vmlinux(vmlinuz.read_bytes()))
    busybox = tree / "bin/busybox"
    write_initramfs(initrd, HERE / "initrd-init", busybox, needed_modules(destination))
    shutil.rmtree(unpacked)


def _download_compiler(tree: Path) -> None:
    """COMPILER and what it needs, as .deb files in /opt/debs."""
    install = ("apt-get", "-qq", "install", "--no-install-recommends", "--download-only", "-y")
    _run("chroot", str(tree), "sh", "-c", f"exec {' '.join((*install, *COMPILER))} > /dev/null")
    debs = tree / "opt/debs"
    debs.mkdir()
    for archive in (tree / "var/cache/apt/archives").glob("*.deb"):
        archive.rename(debs / archive.name)


def _kernel_packages(tree: Path, meta: str, target: list[str]) -> list[str]:
    """Packages with files of the kernel that a meta package stands for: one, or since Linux 7 one
    for the image and one for the modules. With a version each, as apt-get wants them."""
    found: dict[str, str] = {}
    pending = [meta]
    while pending:
        name = pending.pop()
        shown = _output(
            "chroot", str(tree), "apt-cache", *target, "show", "--no-all-versions", name
        )
        version = re.search(r"^Version: (\S+)", shown, re.MULTILINE)
        assert version is not None, shown
        found[name] = f"{name}={version.group(1)}"
        for other in re.findall(
            r"\b(linux-[a-z]+-\d[^\s,]*)", shown.partition("Depends:")[2].partition("\n")[0]
        ):
            if other not in found:
                pending.append(other)
    return [exact for name, exact in found.items() if name != meta]


@functools.cache
def _requirements(*roots: str) -> tuple[str, ...]:
    """The lines of requirements.lock for what these packages require, themselves included."""
    wanted: set[str] = set()
    pending = list(roots)
    while pending:
        name = re.sub(r"[-_.]+", "-", pending.pop()).lower()
        if name in wanted:
            continue
        wanted.add(name)
        for text in importlib.metadata.requires(name) or ():
            requirement = Requirement(text)
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                pending.append(requirement.name)
    text = (ROOT / "requirements.lock").read_text()
    blocks = re.findall(r"^(\S+)==(?:.*\\\n)*.*\n", text, re.MULTILINE)
    whole = [match.group(0) for match in re.finditer(r"^\S+==(?:.*\\\n)*.*\n", text, re.MULTILINE)]
    return tuple(block for name, block in zip(blocks, whole, strict=True) if name in wanted)


def _install_python_packages(space: UserSpace, tree: Path, directory: Path) -> None:
    """The pinned packages into /opt/site-packages, and a .pth that adds them and /src."""
    wheels = tree / "opt/wheels"
    if "{}.{}".format(*sys.version_info[:2]) == space.python:
        lock = directory / "requirements.txt"
        lock.write_text("".join(_requirements(*EVERYTHING)))
        _pip("wheel", "--require-hashes", "--wheel-dir", str(wheels), "-r", str(lock))
    else:
        _collect_wheels(space, tree, directory, wheels)
    _pip(
        "install", "--no-compile", "--no-index", "--find-links", str(wheels),
        "--python-version", space.python, "--only-binary=:all:",
        "--target", str(tree / "opt/site-packages"),
        *(line.partition(" ")[0] for line in _requirements(*INSTALLED)),
    )  # fmt: skip
    # Compiled here: nobody can download it. Debian has it as a package.
    next(wheels.glob("python_prctl-*")).unlink()
    paths = tree / "usr/lib/python3/dist-packages/guest.pth"
    paths.write_text("/opt/site-packages\n/src\n")
    _run("chroot", str(tree), "python3", "-m", "compileall", "-q", "/opt/site-packages")


def _collect_wheels(space: UserSpace, tree: Path, directory: Path, wheels: Path) -> None:
    """Wheels of the pinned packages for another Python than this one.

    How a package came into this environment says what it needs: plain Python fits every version, a
    published binary has a sister for the other version, and one that was compiled here is compiled
    again, in the guest's user space with a compiler that is gone afterwards.
    """
    groups: dict[str, list[str]] = {"any": [], "published": [], "compiled": []}
    for line in _requirements(*EVERYTHING):
        name = line.partition("==")[0]
        tags = importlib.metadata.distribution(name).read_text("WHEEL") or ""
        kind = "any" if "-none-any" in tags else "published" if "manylinux" in tags else "compiled"
        groups[kind].append(line)
    files: dict[str, str] = {}
    for kind, lines in groups.items():
        files[kind] = str(directory / f"{kind}.txt")
        Path(files[kind]).write_text("".join(lines))
    _pip("wheel", "--require-hashes", "--wheel-dir", str(wheels), "-r", files["any"])
    _pip(
        "download", "--require-hashes", "--only-binary=:all:", "--python-version", space.python,
        "--dest", str(wheels), "-r", files["published"],
    )  # fmt: skip
    sources = directory / "sources"
    _pip("download", "--require-hashes", "--no-binary=:all:", "--dest", str(sources),
         "-r", files["compiled"])  # fmt: skip
    for name in ("upper", "work", "builder"):
        (directory / name).mkdir()
    script = f"""
        mount -t overlay overlay -o lowerdir={tree},upperdir={directory}/upper,workdir={directory}/work {directory}/builder
        cd {directory}/builder
        mkdir -p var/tmp/wheels
        cp -r {sources} var/tmp/sources
        export DEBIAN_FRONTEND=noninteractive
        chroot . apt-get install -qq --no-install-recommends gcc libc6-dev libcap-dev python3-dev python3-pip python3-setuptools python3-wheel > /dev/null
        chroot . sh -c 'python3 -m pip wheel -q --no-index --no-build-isolation --no-deps -w /var/tmp/wheels /var/tmp/sources/*'
        cp var/tmp/wheels/*.whl {wheels}
    """  # noqa: E501 a shell script
    _run("unshare", "--mount", "sh", "-e", "-c", script)
    for name in ("upper", "work", "builder", "sources"):
        shutil.rmtree(directory / name)


def _prepare_for_vagrant(tree: Path) -> None:
    """What Vagrant expects inside: a user with its key, sudo, sshd, DHCP on every interface."""
    _run("chroot", str(tree), "useradd", "-m", "-s", "/bin/bash", "vagrant")
    ssh = tree / "home/vagrant/.ssh"
    ssh.mkdir(mode=0o700)
    shutil.copy(INSECURE_KEY, ssh / "authorized_keys")
    _run("chroot", str(tree), "chown", "-R", "vagrant:", "/home/vagrant/.ssh")
    (tree / "etc/sudoers.d/vagrant").write_text("vagrant ALL=(ALL) NOPASSWD: ALL\n")
    (tree / "etc/systemd/network/80-dhcp.network").write_text(
        "[Match]\nName=en* eth*\n[Network]\nDHCP=yes\n"
    )
    _run("chroot", str(tree), "systemctl", "-q", "enable", "systemd-networkd")
    _run("chroot", str(tree), "systemctl", "-q", "enable", "ssh")
    for timer in ("apt-daily.timer", "apt-daily-upgrade.timer", "e2scrub_all.timer"):
        _run("chroot", str(tree), "systemctl", "-q", "mask", timer)


def _pip(command: str, *arguments: str) -> None:
    _run(
        sys.executable, "-m", "pip", command, "-qq", "--disable-pip-version-check", "--no-deps",
        *(["--root-user-action=ignore"] if command == "install" else []), *arguments,
    )  # fmt: skip


def _run(*command: str) -> None:
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL)


def _output(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def _say(text: str) -> None:
    print(f"vm: building {text}", flush=True)
