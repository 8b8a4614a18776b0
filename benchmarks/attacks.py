"""The attack program of tests/attacks beside podman: what a container may do by default in either.

python -m benchmarks.attacks     as root; writes the table into docs/security.md

podman runs as root with its defaults (network, capabilities, filter, limits), with all its state in
a directory made for it. Answers are those of the attempts themselves; nothing is taken from docs.
"""

from __future__ import annotations

import socket
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from benchmarks.peers import Peers, memory_directory, running_peers
from fargatelite import Settings, Task, run_task
from fargatelite.runtime.images import open_store
from tests.fixtures.images import build_oci_layout, busybox_files, tar_layer

ROOT = Path(__file__).parent.parent
DOCUMENT = ROOT / "docs" / "security.md"
MARKS = ("<!-- attacks beside podman: begin -->", "<!-- attacks beside podman: end -->")
SOURCE = ROOT / "tests" / "attacks" / "attack.c"
TIMEOUT_S = 120
HOST_PORT = 22222
PROBES = {
    "root of the container, on the host": 'awk \'{print $1 == 0 && $2 == 0 ? "root" : "nobody"}\''
    " /proc/self/uid_map",
    "file system that a container can fill": 'df -k / | awk \'END {printf "%.0f GiB\\n",'
    " $2 / 1048576}'",
    "a port of the host, at the gateway": "attack connect $(ip route | awk '/default/ {print $3}')"
    f" {HOST_PORT}",
    "a port of another container": "attack connect NEIGHBOUR 80",
}
SERVE = "httpd -p 80 -h /etc; echo ready; sleep 300"
TECHNIQUES = {
    "af_vsock": "AF_VSOCK socket, to the hypervisor",
    "af_alg": "AF_ALG socket (CVE-2026-31431)",
    "netlink_xfrm": "NETLINK_XFRM socket (Dirty Frag)",
    "clone_user": "clone into a new user namespace",
    "clone3": "clone3, whose flags no filter sees",
    "unshare_user": "unshare(CLONE_NEWUSER) (CVE-2022-0185 begins so)",
    "keyctl": "keyctl",
    "i386_unshare": "unshare by the i386 entry",
    "i386_keyctl": "keyctl by the i386 entry",
    "foreign_process": "a process outside of the container's own",
    "ptrace_pid1": "ptrace of the container's first process",
    "cap_bounding": "bounding set of capabilities",
    "cap_effective": "effective capabilities",
}
"""In words; others by their names in attack.c."""

Run = Callable[[str], str]


def _answers(text: str) -> dict[str, str]:
    lines = text.splitlines()
    if "all done" not in lines:
        raise RuntimeError(f"the attempts did not end: {text[-500:]}")
    return dict(line.split(" ", 1) for line in lines if " " in line)


@contextmanager
def _listening_host() -> Iterator[None]:
    with socket.create_server(("0.0.0.0", HOST_PORT)):
        yield


def _ask(run: Run, neighbour: str) -> dict[str, str]:
    found = _answers(run("attack all"))
    for name, script in PROBES.items():
        found[name] = run(script.replace("NEIGHBOUR", neighbour)).strip()
    return found


def _ours(layout: Path, directory: Path) -> dict[str, str]:
    settings = Settings(data_root=str(directory / "data"), run_root=str(directory / "run"))
    (image,) = open_store(settings).load(layout)

    def start(script: str) -> Task:
        definition = {
            "family": "attacks", "networkMode": "awsvpc", "requiresCompatibilities": ["FARGATE"],
            "cpu": "256", "memory": "512",
            "containerDefinitions": [
                {"name": "c", "image": image.reference, "command": ["sh", "-c", script],
                 "stopTimeout": 2}
            ],
        }  # fmt: skip
        return run_task(definition, settings=settings, pull="never")

    def run(script: str) -> str:
        task = start(f"{script}; exit $?")
        task.wait(TIMEOUT_S)
        return "".join(line.text.decode() + "\n" for line in task.logs("c"))

    with start(SERVE) as neighbour:
        next(line for line in neighbour.logs("c", follow=True) if b"ready" in line.text)
        return _ask(run, neighbour.address or "")


def _podman(peers: Peers, layout: Path) -> dict[str, str]:
    def command(*arguments: str) -> str:
        done = peers.call(
            lambda: subprocess.run(
                [*peers.podman(), *arguments],
                capture_output=True, text=True, check=False, timeout=TIMEOUT_S,
            )
        )  # fmt: skip
        if done.returncode not in (0, 1):
            raise RuntimeError(f"podman {arguments[0]}: {done.stderr.strip()}")
        return done.stdout

    image = command("pull", "--quiet", f"oci:{layout}").split()[-1]
    parent = f"--cgroup-parent=/{peers.group}"

    def run(script: str) -> str:
        return command("run", "--rm", parent, image, "sh", "-c", f"{script}; exit $?")

    neighbour = command("run", "--detach", parent, image, "sh", "-c", SERVE).strip()
    try:
        while "ready" not in command("logs", neighbour):
            threading.Event().wait(0.1)
        address = command("inspect", "--format={{.NetworkSettings.IPAddress}}", neighbour).strip()
        return _ask(run, address)
    finally:
        command("rm", "--force", "--time=0", neighbour)


def _table(ours: dict[str, str], podman: dict[str, str], version: str) -> list[str]:
    names = [*PROBES, *(name for name in ours if name not in PROBES)]
    different = [name for name in names if ours[name] != podman[name]]
    same = [name for name in names if ours[name] == podman[name]]
    kernel = Path("/proc/sys/kernel/osrelease").read_text().strip()
    plain = {"EPERM", "EACCES", "EROFS", "ENOSYS", "ENOENT"}
    shown = [name for name in different if not {ours[name], podman[name]} <= plain]
    return [
        f"`make attacks-podman`, Linux {kernel}, {version} as root with its defaults (but "
        "`--cgroup-manager=cgroupfs`, and its state in a directory of its own). Answers as "
        "the attempts got them (`OK`: it worked; EPERM, EACCES, EROFS, "
        "ENOSYS: refused; another error: the call reached the kernel's code, which this kernel or "
        "the arguments stopped).",
        "",
        "| Attempt | fargatelite | podman |",
        "|---|---|---|",
        *(f"| {TECHNIQUES.get(n, n)} | `{ours[n]}` | `{podman[n]}` |" for n in shown),
        "",
        f"Of the other attempts {len(same)} got the same answer in both, and "
        f"{len(different) - len(shown)} were refused by both with different errors.",
    ]


def main() -> None:
    version = subprocess.run(
        ["podman", "--version"], capture_output=True, text=True, check=True
    ).stdout.strip()
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="fla")))
        program = directory / "attack"
        subprocess.run(["cc", "-std=gnu11", "-O1", "-static", "-o", program, SOURCE], check=True)
        files = busybox_files() | {"bin/attack": program.read_bytes()}
        layout = build_oci_layout(directory / "layout", [tar_layer(files)])
        stack.enter_context(_listening_host())
        ours = _ours(layout, directory)
        run = stack.enter_context(memory_directory())
        peers = stack.enter_context(running_peers(directory / "peers", run))
        stack.callback(peers.remove_podman)
        podman = _podman(peers, layout)
    rows = _table(ours, podman, version)
    print("\n".join(rows))
    before, _, rest = DOCUMENT.read_text().partition(MARKS[0])
    _, mark, after = rest.partition(MARKS[1])
    if not mark:
        raise RuntimeError(f"{DOCUMENT} has no {MARKS}")
    DOCUMENT.write_text("\n".join([before + MARKS[0], *rows, mark]) + after)


if __name__ == "__main__":
    main()
