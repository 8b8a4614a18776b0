"""`python -m vagrant COMMAND`: what the make targets call."""

from __future__ import annotations

import argparse
import os
import shlex
import signal
import sys
import time

from vagrant.box import build_box
from vagrant.guests import GUESTS
from vagrant.hosts import write_hosts
from vagrant.image import BUILD, ROOT, build
from vagrant.machine import NO_RESULT, find_accelerator, run
from vagrant.report import read_report

TIMEOUT_S = 2400.0
WHEEL_GUESTS = ("debian12", "debian13")
FACTOR = 20
"""How much longer tests may wait: a software CPU is 13 to 45 times slower (measured)."""


def main() -> int:
    """Parses the command line and carries it out; the exit code."""
    # As an exception, so that the guest and its scratch files go.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    parser = argparse.ArgumentParser(prog="python -m vagrant", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    test = commands.add_parser("test", help="run the tests marked vm in a guest")
    test.add_argument("guest", choices=GUESTS, nargs="?", default="default")
    test.add_argument("--marker", default="vm", help="which tests (pytest -m)")
    test.add_argument("arguments", nargs="*", help="for pytest, after --")
    commands.add_parser("test-all", help="run the tests marked vm in every guest")
    commands.add_parser("test-wheel", help="install dist/ in clean guests, and run a task there")
    one = commands.add_parser("run", help="run a shell command in a guest's source tree")
    one.add_argument("guest", choices=GUESTS)
    one.add_argument("shell")
    making = commands.add_parser("build", help="build a guest's image if it is stale")
    making.add_argument("guest", choices=GUESTS, nargs="?", default="default")
    commands.add_parser("box", help="build the box for Vagrant if it is stale")
    commands.add_parser("hosts", help="write docs/hosts.md from what every guest's check says")
    commands.add_parser("list", help="list the guests")
    parsed = parser.parse_args()
    if parsed.command == "list":
        for name, guest in GUESTS.items():
            print(f"{name:12}{guest.why}")
        return 0
    if parsed.command == "box":
        print(build_box())
        guest = GUESTS["default"]
        # vagrant/test-vagrant reads what it found.
        print(find_accelerator(*build(guest.user_space).kernel(guest.kernel)))
        return 0
    if parsed.command == "hosts":
        print(write_hosts())
        return 0
    if parsed.command == "test-all":
        codes = [_test(name, "vm", []) for name in GUESTS]
        return max(codes)
    if parsed.command == "test-wheel":
        return max([_test_wheel(name) for name in WHEEL_GUESTS])
    if parsed.command == "test":
        return _test(parsed.guest, parsed.marker, parsed.arguments)
    guest = GUESTS[parsed.guest]
    built = build(guest.user_space)
    if parsed.command == "build":
        return 0
    return run(guest, built, parsed.shell, BUILD / "results" / parsed.guest, TIMEOUT_S)


def _test(name: str, marker: str, arguments: list[str]) -> int:
    """Runs tests in a guest and says what came of it; its exit code, never 0 without a report."""
    guest = GUESTS[name]
    built = build(guest.user_space)
    results = BUILD / "results" / name
    started = time.monotonic()
    code = run(guest, built, _test_command(name, marker, arguments), results, TIMEOUT_S)
    report = read_report(results)
    took = f"in {time.monotonic() - started:.0f} s"
    if report is None:
        code = code or NO_RESULT
        print(f"vm: {name}: no junit.xml with tests came back {took}, exit {code}")
        return code
    if report.failed:
        code = code or 1
        print(f"vm: {name}: failed: {', '.join(report.failed)}")
    if report.second_try:
        count, names = len(report.second_try), ", ".join(report.second_try)
        print(f"vm: {name}: {count} test(s) passed only at the second try: {names}")
    print(f"vm: {name}: {report.summary} {took}, exit {code}")
    return code


def _test_wheel(name: str) -> int:
    """Installs what is in dist/ as a user would; the exit code."""
    guest = GUESTS[name]
    products = tuple(str(path.relative_to(ROOT)) for path in sorted((ROOT / "dist").iterdir()))
    results = BUILD / "results" / f"{name}-wheel"
    built, started = build(guest.user_space), time.monotonic()
    code = run(guest, built, "exec vagrant/try-wheel", results, TIMEOUT_S, products)
    print(f"vm: {name}: {', '.join(products)} in {time.monotonic() - started:.0f} s, exit {code}")
    return code


def _test_command(guest: str, marker: str, arguments: list[str]) -> str:
    """The shell command that runs the marked tests inside; with `arguments` those instead.

    Those that failed run once more (`vagrant.report` judges both). Only exit code 1, tests failed,
    gets that: not a run that was interrupted or broke (pytest's 2 to 5), or died of a signal.
    """
    factor = os.environ.get("FARGATELITE_TEST_TIMEOUT_FACTOR", str(FACTOR))

    def pytest(report: str, *chosen: str) -> str:
        return shlex.join((
            "python3", "-m", "pytest", "-o", "cache_dir=/var/tmp/pytest-cache", "-m", marker,
            "--timeout=600", "--color=yes", "-v", f"--junitxml=/results/{report}.xml", *chosen,
        ))  # fmt: skip

    chosen = arguments or [GUESTS[guest].tests]
    before = GUESTS[guest].before
    first = (
        # /reboot is guest-run's to see; its mark outlives the restart, on the disk.
        f"if [ ! -e /restarted ]; then\n{pytest('before', before)} || exit\n"
        "touch /restarted /reboot; exit\nfi\n"
        if before is not None
        else ""
    )
    return (
        f"export FARGATELITE_TEST_TIMEOUT_FACTOR={shlex.quote(factor)}\n"
        f"export FARGATELITE_TEST_GUEST={shlex.quote(guest)}\n"
        # /tmp may be a tmpfs (systemd of Debian 13), from which no EROFS can be mounted.
        "export TMPDIR=/var/tmp\n"
        f"uname -rv\n{first}"
        f"{pytest('junit', *chosen)}\ncode=$?\n"
        "if [ $code = 1 ]; then\n"
        f"{pytest('again', '--last-failed', '--last-failed-no-failures=none', *chosen)}\n"
        "code=$?\nfi\nexit $code\n"
    )


if __name__ == "__main__":
    sys.exit(main())
