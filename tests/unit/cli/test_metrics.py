"""`fargatelite metrics` as Prometheus asks it; test_metering.py has a task behind it."""

from __future__ import annotations

import urllib.request

from prometheus_client.parser import text_string_to_metric_families

from tests.fixtures.cli import CommandLine
from tests.fixtures.cli import fargatelite as fargatelite


def test_they_are_served(fargatelite: CommandLine) -> None:
    process = fargatelite.start("metrics", "--listen", "127.0.0.1:0")
    assert process.stderr is not None
    url = process.stderr.readline().strip()
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(url, timeout=10) as response:
        text = response.read().decode()
    families = {family.name: family for family in text_string_to_metric_families(text)}
    assert families["fargatelite_unreadable_tasks"].samples[0].value == 0
    assert fargatelite("metrics").stdout == text
    process.terminate()
    process.wait(10)


def test_a_wrong_address_is_refused(fargatelite: CommandLine) -> None:
    for wrong in ("9400", ":9400", "127.0.0.1:70000", "127.0.0.1:http"):
        done = fargatelite("metrics", "--listen", wrong)
        assert (done.returncode, "is not of the form" in done.stderr) == (2, True)
