"""Services with their sidecars: who reaches whom, in which order, and what a client sees."""

from __future__ import annotations

import time
import urllib.error
import urllib.request

import pytest

from tests.fixtures.published import TIMEOUT_S, Published, Ran

pytestmark = [pytest.mark.root, pytest.mark.registry]


def fetch(ran: Ran, path: str = "/", port: int = 80) -> str:
    """A page of the task, as soon as somebody listens there."""
    deadline = time.monotonic() + 10
    while True:
        try:
            url = f"http://{ran.task.address}:{port}{path}"
            with urllib.request.urlopen(url, timeout=5) as response:
                return str(response.read().decode())
        except urllib.error.HTTPError:
            raise
        except OSError:
            assert time.monotonic() < deadline, ran.why


@pytest.mark.field(
    "containerDefinitions[].dependsOn[].condition",
    "containerDefinitions[].healthCheck.command",
    "containerDefinitions[].portMappings[].containerPort",
    "containerDefinitions[].memoryReservation",
)
def test_web_with_redis(published: Published) -> None:
    ran = published.start("web-redis")
    ran.task.until("RUNNING", TIMEOUT_S)
    assert fetch(ran, "/visits", 8080) == "41\n"
    assert ran.task.containers["redis"].health_status == "HEALTHY"
    web, redis = ran.seen("web"), ran.seen("redis")
    assert web["namespaces"]["net"] == redis["namespaces"]["net"]
    for kind in ("mnt", "pid", "ipc"):
        assert web["namespaces"][kind] != redis["namespaces"][kind]
    assert "REDIS_URL" in web["environment"]
    assert "REDIS_URL" not in redis["environment"]
    ran.task.stop()
    assert ran.codes == {"web": 143, "redis": 0}
    stream = f"web/web/{ran.task.id}"
    assert published.log_events("/ecs/storefront", stream) == ran.output("web")


@pytest.mark.field("containerDefinitions[].portMappings[].hostPort")
def test_reverse_proxy(published: Published) -> None:
    ran = published.start("nginx-reverse-proxy")
    ran.task.until("RUNNING", TIMEOUT_S)
    assert fetch(ran) == "page of the app\n"
    assert (ran.seen("app")["uid"], ran.seen("nginx")["uid"]) == (1000, 0)
    assert ran.seen("app")["cwd"] == "/srv"
    assert int(ran.seen("app")["cpu_shares"]) == 7 * int(ran.seen("nginx")["cpu_shares"])
    assert int(ran.seen("nginx")["memory_limit"]) == 128 * 2**20


@pytest.mark.field(
    "containerDefinitions[].portMappings[].name",
    "containerDefinitions[].portMappings[].appProtocol",
    "containerDefinitions[].portMappings[].protocol",
)
def test_several_ports(published: Published) -> None:
    ran = published.start("multiple-ports")
    ran.task.until("RUNNING", TIMEOUT_S)
    assert fetch(ran, port=8080) == "page of the app\n"
    assert fetch(ran, port=9090) == "up 1\n"
    definition = ran.task.describe()["containers"][0]
    assert definition["networkInterfaces"][0]["privateIpv4Address"] == ran.task.address


@pytest.mark.field("containerDefinitions[].ulimits", "containerDefinitions[].user")
def test_envoy(published: Published) -> None:
    """App Mesh's redirection is recorded, not made (docs/fargate-compatibility.md)."""
    ran = published.start("envoy-sidecar")
    ran.until_line("checkout", '{"state": "LIVE"}')
    ran.task.until("RUNNING", TIMEOUT_S)
    envoy = ran.seen("envoy")
    assert (envoy["uid"], envoy["gid"]) == (1337, 0)
    assert envoy["limits"]["nofile"] == [15000, 15000]
    assert ran.seen("checkout")["limits"]["nofile"][0] > 15000
    assert fetch(ran, port=8080) == "page of the app\n"


def test_xray_gets_its_segments(published: Published) -> None:
    ran = published.run("xray-daemon")
    assert ran.codes == {"orders": 0, "xray-daemon": 0}, ran.why
    assert ran.lines("xray-daemon")[-1] == 'received {"format": "json", "version": 1}'


@pytest.mark.field("containerDefinitions[].secrets", "containerDefinitions[].essential")
def test_datadog_agent(published: Published) -> None:
    published.aws.client("ssm").put_parameter(
        Name="/datadog/api-key", Value="0123456789abcdef", Type="SecureString"
    )
    ran = published.run("datadog-agent")
    assert ran.codes == {"billing": 0, "datadog-agent": 0}, ran.why
    assert ran.lines("datadog-agent")[-1] == "received billing.invoices:1|c|#env:prod"
    assert "DD_API_KEY" in ran.seen("datadog-agent")["environment"]
    assert "DD_API_KEY" not in ran.seen("billing")["environment"]


def test_a_collector_configured_by_a_parameter(published: Published) -> None:
    config = "receivers:\n  otlp:\n    protocols: {grpc: {}}\n"
    published.aws.client("ssm").put_parameter(
        Name="otel-collector-config", Value=config, Type="String"
    )
    ran = published.run("adot-collector")
    assert ran.lines("aws-otel-collector") == ["3", *config.splitlines()], ran.why


@pytest.mark.field(
    "containerDefinitions[].volumesFrom[].sourceContainer",
    "containerDefinitions[].volumesFrom[].readOnly",
)
def test_volumes_from(published: Published) -> None:
    ran = published.run("php-fpm-volumes-from")
    assert ran.lines("php") == ["uploaded"], ran.why
    assert ran.lines("nginx") == ["<?php phpinfo();"]
    assert "read-only" in ran.lines("backup")


@pytest.mark.field(
    "containerDefinitions[].healthCheck.startPeriod",
    "containerDefinitions[].healthCheck.retries",
    "containerDefinitions[].healthCheck.interval",
)
def test_health_within_and_without_a_start_period(published: Published) -> None:
    slow, sick = published.start("health-start-period"), published.start("health-check-fails")
    sick.until(lambda ran: ran.task.containers["soap"].health_status == "UNHEALTHY")
    assert sick.task.last_status == "RUNNING", "only a service would replace it"
    assert sick.task.describe()["healthStatus"] == "UNHEALTHY"
    slow.until(lambda ran: ran.task.containers["keycloak"].health_status != "UNKNOWN")
    assert slow.task.describe()["healthStatus"] == "HEALTHY", "its failure did not count"
