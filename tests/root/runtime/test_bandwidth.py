"""`task_network_mbit` from the settings to the firewall, and across supervisors."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator

import msgspec
import pytest

from fargatelite import Settings
from fargatelite.network.firewall import TABLE
from fargatelite.runtime.detached import ensure_supervised

from .test_adoption import await_that, kill_supervisor, start
from .test_container_features import definition, shell
from .test_detached import await_end

pytestmark = [pytest.mark.root, pytest.mark.registry]


@pytest.fixture
def roots(settings: Settings) -> Iterator[Settings]:
    yield settings
    await_end(settings)


def rules() -> str:
    done = subprocess.run(["nft", "list", "table", *TABLE.split()], capture_output=True, text=True)
    return done.stdout


@pytest.mark.parametrize("prepared", [0, 1])
def test_a_task_keeps_the_bound_with_which_it_began(
    roots: Settings, busybox: str, prepared: int
) -> None:
    bounded = msgspec.structs.replace(roots, task_network_mbit=7, prepared_sandboxes=prepared)
    task = start(bounded, definition(busybox, shell("app", "sleep 300", stopTimeout=2)))
    assert task.record().network_mbit == 7
    assert rules().count("jump send_7") == rules().count("jump receive_7") == 1
    assert rules().count("limit rate over 875000 bytes/second") == 2
    kill_supervisor(roots)
    subprocess.run(["nft", "delete", "table", *TABLE.split()], check=True)
    ensure_supervised(roots)  # with settings that know of no bound
    await_that(lambda: rules().count("jump send_7") == rules().count("jump receive_7") == 1)
    task.stop(reason="seen")


def test_without_the_setting_there_is_no_rule(roots: Settings, busybox: str) -> None:
    task = start(roots, definition(busybox, shell("app", "sleep 300", stopTimeout=2)))
    assert "limit rate" not in rules()
    assert "senders" not in rules()
    task.stop(reason="seen")
