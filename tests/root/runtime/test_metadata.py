"""The metadata endpoint as a container of a real task sees it."""

from __future__ import annotations

import json
from typing import Any

import pytest

from fargatelite import Settings, Task, run_task

from .test_container_features import TIMEOUT_S, check, definition, lines_of, run, shell

pytestmark = [pytest.mark.root, pytest.mark.registry, pytest.mark.vm]


def answers(task: Task, container: str) -> list[Any]:
    """What it wrote to stdout, a JSON document a line; its shell remarks on stderr."""
    written = (line.text for line in task.logs(container) if line.stream == "stdout")
    return [json.loads(text) for text in written if text]


@pytest.mark.field("containerDefinitions[].dockerLabels")
@pytest.mark.field("containerDefinitions[].portMappings[].containerPort")
def test_a_container_reads_its_metadata(settings: Settings, busybox: str) -> None:
    # It may run before its supervisor has heard of that.
    script = (
        "get() { wget -q -O - $1; echo; }; u=$ECS_CONTAINER_METADATA_URI_V4;"
        ' until get $u | grep -q \'"KnownStatus": *"RUNNING"\'; do usleep 20000; done;'
        " get $u; get $u/task; get $u/stats; get $u/task/stats; get $ECS_CONTAINER_METADATA_URI"
    )
    document = definition(
        busybox,
        shell("app", script, cpu=128, memory=64, dockerLabels={"team": "blue"},
              portMappings=[{"containerPort": 8080, "protocol": "udp"}],
              healthCheck={"command": ["CMD", "true"]}),
        {"name": "other", "command": ["sleep", "300"], "stopTimeout": 2, "essential": False},
    )  # fmt: skip
    task = run(settings, document)
    check_app = task.containers["app"]
    assert check_app.exit_code == 0, lines_of(task, "app")
    mine, whole, stats, all_stats, old = answers(task, "app")
    shown = task.describe()
    described = {item["name"]: item for item in shown["containers"]}

    assert mine["DockerId"] == described["app"]["runtimeId"]
    assert mine["Name"] == mine["DockerName"] == "app"
    assert mine["Image"] == busybox
    assert mine["ImageID"] == described["app"]["imageDigest"]
    assert mine["Ports"] == [{"ContainerPort": 8080, "Protocol": "udp", "HostPort": 8080}]
    assert mine["Labels"] == {
        "com.amazonaws.ecs.cluster": shown["clusterArn"],
        "com.amazonaws.ecs.container-name": "app",
        "com.amazonaws.ecs.task-arn": task.arn,
        "com.amazonaws.ecs.task-definition-family": "features",
        "com.amazonaws.ecs.task-definition-version": "1",
        "team": "blue",
    }
    assert (mine["DesiredStatus"], mine["KnownStatus"]) == ("RUNNING", "RUNNING")
    assert mine["Limits"] == {"CPU": 128, "Memory": 64}
    assert mine["ContainerARN"] == described["app"]["containerArn"]
    (network,) = mine["Networks"]
    assert network["IPv4Addresses"] == [task.address]
    details = {item["name"]: item["value"] for item in shown["attachments"][0]["details"]}
    assert network["PrivateDNSName"] == details["privateDnsName"]
    assert network["MACAddress"] == details["macAddress"]
    assert mine["Health"]["status"] in ("UNKNOWN", "HEALTHY")
    assert old["DockerId"] == mine["DockerId"]
    assert "ContainerARN" not in old

    assert whole["TaskARN"] == task.arn
    assert (whole["Family"], whole["Revision"]) == ("features", "1")
    assert whole["Limits"] == {"CPU": 0.25, "Memory": 512}
    assert {item["Name"] for item in whole["Containers"]} == {"app", "other"}
    assert whole["LaunchType"] == "FARGATE"
    assert whole["FaultInjectionEnabled"] is False
    assert whole["PullStartedAt"] <= whole["PullStoppedAt"]
    assert set(whole["ClockDrift"]) == {
        "ClockErrorBound", "ReferenceTimestamp", "ClockSynchronizationStatus",
    }  # fmt: skip

    assert stats["memory_stats"]["limit"] == 64 << 20
    assert stats["cpu_stats"]["cpu_usage"]["total_usage"] > 0
    assert stats["networks"]["eth1"]["rx_bytes"] >= 0
    assert mine["DockerId"] in all_stats


def test_another_tasks_id_is_unknown(settings: Settings, busybox: str) -> None:
    """The endpoint is asked through the namespace, so an id of another task leads nowhere."""
    with run_task(
        definition(busybox, {"name": "a", "command": ["sleep", "300"], "stopTimeout": 2}),
        settings=settings,
    ) as first:
        first.until("RUNNING", TIMEOUT_S)
        other = first.describe()["containers"][0]["runtimeId"]
        script = f"wget -O - http://169.254.170.2/v4/{other} 2>&1 | grep -c 404"
        task = run(settings, definition(busybox, shell("b", script)))
    assert lines_of(task, "b") == ["1"]


@pytest.mark.field("enableFaultInjection")
@pytest.mark.field("enableFaultInjection")
def test_a_port_becomes_a_black_hole(settings: Settings, busybox: str) -> None:
    """Between two containers of the task, since it has no other peer."""
    body = '{\\"Port\\":9000,\\"Protocol\\":\\"tcp\\",\\"TrafficType\\":\\"ingress\\"}'
    url = "$ECS_AGENT_URI/fault/v1/network-blackhole-port"
    script = (
        "nc -ll -p 9000 -e echo served & a=$(hostname -i);"
        f' ask() {{ wget -q -O - --header "Content-Type: application/json"'
        f' --post-data "{body}" {url}/$1; echo; }};'
        " try() { for i in 1 2 3 4 5 6 7 8 9; do r=$(timeout 2 nc $a 9000 </dev/null) && break;"
        ' [ $1 = gone ] && break; sleep 0.1; done; echo "\\"$r\\""; };'
        " try there; ask start; ask status; try gone; ask stop; try there"
    )
    task = run(settings, definition(busybox, shell("app", script), enableFaultInjection=True))
    check(task)
    assert answers(task, "app") == [
        "served", {"Status": "running"}, {"Status": "running"}, "", {"Status": "stopped"}, "served",
    ]  # fmt: skip


def test_faults_are_refused_where_they_are_not_enabled(settings: Settings, busybox: str) -> None:
    script = (
        'wget -O - --post-data \'{"Port":9,"Protocol":"tcp","TrafficType":"egress"}\''
        " $ECS_AGENT_URI/fault/v1/network-blackhole-port/start 2>&1 | grep HTTP/"
    )
    task = run(settings, definition(busybox, shell("app", script)))
    assert "400" in lines_of(task, "app")[0]
