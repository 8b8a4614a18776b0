"""Docker's StatsJSON and the agent's extra (contract 5.4)."""

from __future__ import annotations

from fargatelite.metadata.readings import parse_block_v2, parse_networks
from fargatelite.metadata.stats import BlockCounter, NetworkCounters, Reading, docker_stats


def _counters(rx_bytes: int, tx_bytes: int) -> NetworkCounters:
    return NetworkCounters(
        rx_bytes=rx_bytes,
        rx_packets=1,
        rx_errors=0,
        rx_dropped=0,
        tx_bytes=tx_bytes,
        tx_packets=2,
        tx_errors=0,
        tx_dropped=0,
    )


def _reading(second: int, rx_bytes: int, tx_bytes: int) -> Reading:
    return Reading(
        time_ns=(1_700_000_000 + second) * 10**9,
        cpu_total_ns=second * 10**9,
        cpu_user_ns=1,
        cpu_system_ns=2,
        system_cpu_ns=second * 4 * 10**9,
        online_cpus=2,
        memory_usage_bytes=10,
        memory_limit_bytes=20,
        memory_stats={"cache": 5},
        pids_current=3,
        networks={"eth1": _counters(rx_bytes, tx_bytes)},
    )


def test_members_are_the_contracts() -> None:
    shown = docker_stats(_reading(0, 0, 0), _reading(10, 1000, 50), name="app", runtime_id="id")
    assert set(shown) == {
        *("read", "preread", "num_procs", "name", "id", "storage_stats", "pids_stats"),
        *("blkio_stats", "cpu_stats", "precpu_stats", "memory_stats", "networks"),
        "network_rate_stats",
    }
    assert len(shown["blkio_stats"]) == 8
    assert set(shown["networks"]["eth1"]) == {
        f"{way}_{what}"
        for way in ("rx", "tx")
        for what in ("bytes", "packets", "errors", "dropped")
    }
    assert shown["pids_stats"] == {"current": 3}
    assert shown["memory_stats"] == {"usage": 10, "limit": 20, "stats": {"cache": 5}}
    assert shown["network_rate_stats"] == {"rx_bytes_per_sec": 100.0, "tx_bytes_per_sec": 5.0}
    assert shown["preread"] == "2023-11-14T22:13:20Z"


def test_dockers_percentage_comes_out() -> None:
    shown = docker_stats(_reading(0, 0, 0), _reading(10, 0, 0), name="app", runtime_id="id")
    now, then = shown["cpu_stats"], shown["precpu_stats"]
    used = now["cpu_usage"]["total_usage"] - then["cpu_usage"]["total_usage"]
    host = now["system_cpu_usage"] - then["system_cpu_usage"]
    assert used / host * now["online_cpus"] * 100 == 50.0


def test_a_first_reading_has_no_rates() -> None:
    shown = docker_stats(None, _reading(10, 5, 5), name="app", runtime_id="id")
    assert "network_rate_stats" not in shown
    assert shown["preread"] == "0001-01-01T00:00:00Z"


def test_a_counter_that_went_back_is_no_traffic() -> None:
    shown = docker_stats(_reading(0, 9, 9), _reading(1, 1, 10), name="app", runtime_id="id")
    assert shown["network_rate_stats"] == {"rx_bytes_per_sec": 0.0, "tx_bytes_per_sec": 1.0}


def test_interfaces_without_lo() -> None:
    text = (
        "Inter-|   Receive  |  Transmit\n face |bytes packets ...\n"
        "    lo: 1 1 0 0 0 0 0 0 1 1 0 0 0 0 0 0\n"
        "  eth1:100 1 0 0 0 0 0 0 200 2 0 0 0 0 0 0\n"
    )
    assert parse_networks(text) == {"eth1": _counters(100, 200)}


def test_io_stat() -> None:
    found = parse_block_v2("8:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=0 dios=0\n")
    assert [(c.op, c.value) for c in found] == [
        ("read", 1),
        ("write", 2),
        ("read", 3),
        ("write", 4),
    ]
    assert found[0] == BlockCounter(
        series="io_service_bytes_recursive", major=8, minor=0, op="read", value=1
    )
