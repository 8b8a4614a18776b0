"""docs/hosts.md: what `fargatelite check` finds in each guest."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vagrant.guests import GUESTS
from vagrant.image import BUILD, ROOT, build
from vagrant.machine import run

__all__ = ["write_hosts"]

COMMAND = "python3 -m fargatelite check --output json > /results/check.json; true"
TIMEOUT_S = 300.0
INTRODUCTION = """\
# What each kind of host offers

`fargatelite check --output json` as the guests of `vagrant/` answered it; `make hosts` writes this
file anew. A host is asked by trying, never by version numbers: run `fargatelite check` on yours.
"""


def write_hosts() -> Path:
    """Boots every guest, asks it, and writes the table.

    Raises: RuntimeError for a guest without an answer.
    """
    found: dict[str, dict[str, Mapping[str, Any]]] = {}
    for name, guest in GUESTS.items():
        if guest.before is not None:
            continue  # the default guest over again
        results = BUILD / "results" / f"{name}-check"
        run(guest, build(guest.user_space), COMMAND, results, TIMEOUT_S)
        answer = results / "check.json"
        if not answer.exists():
            raise RuntimeError(f"guest {name} did not answer")
        found[name] = {row["name"]: row for row in json.loads(answer.read_text())["checks"]}
    lines = [INTRODUCTION]
    lines.append("| guest | " + " | ".join(found) + " |")
    lines.append("|---" * (len(found) + 1) + "|")
    lines.append("| what it is | " + " | ".join(GUESTS[name].why for name in found) + " |")
    names = [name for name in next(iter(found.values())) if name != "state directories"]
    for check in names:
        cells = (_cell(rows.get(check)) for rows in found.values())
        lines.append(f"| {check} | " + " | ".join(cells) + " |")
    remedies = {
        (check, str(rows[check]["remedy"]))
        for rows in found.values()
        for check in names
        if rows.get(check, {}).get("remedy")
    }
    lines.append("\nWhat to do:\n")
    lines += [f"* {check}: {remedy}" for check, remedy in sorted(remedies)]
    target = ROOT / "docs" / "hosts.md"
    target.write_text("\n".join(lines) + "\n")
    return target


def _cell(row: Mapping[str, Any] | None) -> str:
    if row is None:
        return "not asked"
    state, detail = str(row["state"]), str(row["detail"]).partition("+deb")[0]
    return detail if state == "ok" else f"**{state}**: {detail}. Costs: {row['cost']}"
