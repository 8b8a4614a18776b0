"""The AppArmor profile of tasks: what Docker's default profile says, for hosts that have AppArmor.

Namespaces, masks and the system-call filter hold without it. It is a second lock on the same doors,
for a path that somebody forgot to mask or a kernel bug that gets past a read-only mount. Ptrace and
signals stay among processes of tasks; the host's may signal them.

Source: containers/common pkg/apparmor/apparmor_linux_template.go and moby
profiles/apparmor/template.go, which say the same; apparmor.d(5).
"""

from __future__ import annotations

import hashlib

__all__ = ["PROFILE_NAME", "PROFILE_TEXT"]

_RULES = """\
  network,
  capability,
  file,
  umount,

  signal (receive) peer=unconfined,
  signal (send, receive) peer={name},
  ptrace (trace, read, tracedby, readby) peer={name},

  deny mount,
  deny pivot_root,

  deny /proc/* w,  # files of /proc itself, not of processes
  deny /proc/{{[^1-9],[^1-9][^0-9],[^1-9s][^0-9y][^0-9s],[^1-9][^0-9][^0-9][^0-9/]*}}/** w,
  deny /proc/sys/[^k]** w,
  deny /proc/sys/kernel/{{?,??,[^s][^h][^m]**}} w,
  deny /proc/sysrq-trigger rwklx,
  deny /proc/kcore rwklx,

  deny /sys/[^f]*/** wklx,
  deny /sys/f[^s]*/** wklx,
  deny /sys/fs/[^c]*/** wklx,
  deny /sys/fs/c[^g]*/** wklx,
  deny /sys/fs/cg[^r]*/** wklx,
  deny /sys/firmware/** rwklx,
  deny /sys/devices/virtual/powercap/** rwklx,
  deny /sys/kernel/security/** rwklx,
"""

PROFILE_NAME = f"fargatelite-{hashlib.sha256(_RULES.encode()).hexdigest()[:8]}"
"""Of these rules: others have another name, so that running tasks keep theirs."""

PROFILE_TEXT = (
    f"profile {PROFILE_NAME} flags=(attach_disconnected, mediate_deleted) {{\n"
    f"{_RULES.format(name=PROFILE_NAME)}}}\n"
)
"""As apparmor_parser(8) takes it, without includes: not every host has the abstractions."""
