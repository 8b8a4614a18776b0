"""The JSON of the metadata endpoint: exactly the contract's members (5.2, 5.3)."""

from __future__ import annotations

from fargatelite.metadata.shapes import (
    ClockDrift,
    EphemeralStorage,
    HealthFacts,
    MetadataContainer,
    MetadataTask,
    MetadataVolume,
    Networks,
    PortMapping,
    TagError,
    container_response,
    format_time,
    task_response,
)

_AT_NS = 1_700_000_000_123_456_789
_ID = f"{'a' * 32}-{0:010d}"

_TASK = {
    *("Cluster", "TaskARN", "Family", "Revision", "DesiredStatus", "KnownStatus", "Containers"),
    *("Limits", "PullStartedAt", "PullStoppedAt", "ExecutionStoppedAt", "AvailabilityZone"),
    *("AvailabilityZoneID", "LaunchType", "ServiceName", "Group", "ClockDrift"),
    *("EphemeralStorageMetrics", "FaultInjectionEnabled"),
}
_TAGS = {"TaskTags", "ContainerInstanceTags", "Errors"}
_CONTAINER = {
    *("DockerId", "Name", "DockerName", "Image", "ImageID", "Ports", "Labels", "DesiredStatus"),
    *("KnownStatus", "ExitCode", "Limits", "CreatedAt", "StartedAt", "FinishedAt", "Type"),
    *("Networks", "Health", "Volumes", "LogDriver", "LogOptions", "ContainerARN"),
    *("Snapshotter", "RestartCount"),
}
_NETWORK = {
    *("NetworkMode", "IPv4Addresses", "IPv6Addresses", "AttachmentIndex", "MACAddress"),
    *("IPv4SubnetCIDRBlock", "IPv6SubnetCIDRBlock", "DomainNameServers"),
    *("DomainNameSearchList", "PrivateDNSName", "SubnetGatewayIpv4Address"),
    "SubnetGatewayIpv6Address",
}


def _full_container() -> MetadataContainer:
    return MetadataContainer(
        runtime_id=_ID,
        name="app",
        image="app:1",
        image_id="sha256:" + "1" * 64,
        ports=(PortMapping(container_port=80, host_port=8080, host_ip="127.0.0.1"),),
        labels={"a": "b"},
        desired_status="RUNNING",
        known_status="RUNNING",
        exit_code=0,
        memory_mib=512,
        created_at_ns=_AT_NS,
        started_at_ns=_AT_NS,
        finished_at_ns=_AT_NS,
        networks=Networks(
            ipv4_addresses=("10.0.0.2",),
            ipv6_addresses=("fd00::2",),
            mac_address="02:00:00:00:00:01",
            ipv4_subnet_cidr_block="10.0.0.0/24",
            ipv6_subnet_cidr_block="fd00::/64",
            domain_name_servers=("10.0.0.1",),
            domain_name_search_list=("local",),
            private_dns_name="ip-10-0-0-2",
            subnet_gateway_ipv4_address="10.0.0.1/24",
            subnet_gateway_ipv6_address="fd00::1/64",
        ),
        health=HealthFacts(status="HEALTHY", status_since_ns=_AT_NS, exit_code=0, output=""),
        volumes=(MetadataVolume(docker_name="v", source="/s", destination="/d"),),
        log_driver="awslogs",
        log_options={"awslogs-stream": "s"},
        container_arn="arn:c",
        snapshotter="overlayfs",
        restart_count=0,
    )


def _full_task() -> MetadataTask:
    return MetadataTask(
        cluster_arn="arn:cluster",
        task_arn="arn:task",
        family="web",
        revision=3,
        desired_status="RUNNING",
        known_status="RUNNING",
        containers=(_full_container(),),
        cpu_units=256,
        memory_mib=512,
        pull_started_at_ns=_AT_NS,
        pull_stopped_at_ns=_AT_NS,
        execution_stopped_at_ns=_AT_NS,
        availability_zone="eu-a",
        availability_zone_id="euc1-az1",
        service_name="web",
        group="service:web",
        tags={"k": "v"},
        container_instance_tags={"k": "v"},
        tag_errors=(
            TagError(
                error_field="TaskTags",
                error_code="AccessDenied",
                error_message="no",
                status_code=400,
                request_id="r",
                resource_arn="arn:task",
            ),
        ),
        clock_drift=ClockDrift(
            clock_error_bound_ms=0.5, reference_timestamp_ns=_AT_NS, is_synchronized=True
        ),
        ephemeral_storage=EphemeralStorage(utilized_mib=1, reserved_mib=20496),
    )


def test_v4_has_exactly_the_contracts_members() -> None:
    task = task_response(_full_task(), version=4)
    assert set(task) == _TASK
    assert set(task_response(_full_task(), version=4, with_tags=True)) == _TASK | _TAGS
    (container,) = task["Containers"]
    assert set(container) == _CONTAINER
    assert set(container["Networks"][0]) == _NETWORK
    assert set(container["Health"]) == {"status", "statusSince", "exitCode", "output"}
    assert set(container["Ports"][0]) == {"ContainerPort", "Protocol", "HostPort", "HostIp"}
    assert set(container["Volumes"][0]) == {"DockerName", "Source", "Destination"}


def test_limits_are_vcpu_at_the_task_and_units_at_the_container() -> None:
    task = task_response(_full_task(), version=4)
    assert task["Limits"] == {"CPU": 0.25, "Memory": 512}
    assert task["Containers"][0]["Limits"] == {"CPU": 2, "Memory": 512}
    assert task["Revision"] == "3"


def test_absent_values_are_absent_members() -> None:
    container = MetadataContainer(
        runtime_id=_ID, name="app", image="app", desired_status="RUNNING", known_status="PENDING"
    )
    assert container_response(container, version=4) == {
        "DockerId": _ID,
        "Name": "app",
        "DockerName": "app",
        "Image": "app",
        "DesiredStatus": "RUNNING",
        "KnownStatus": "PENDING",
        "Limits": {"CPU": 2},
        "Type": "NORMAL",
    }


def test_zero_is_a_value() -> None:
    shown = container_response(_full_container(), version=4)
    assert (shown["ExitCode"], shown["RestartCount"]) == (0, 0)
    assert task_response(_full_task(), version=4)["FaultInjectionEnabled"] is False


def test_v3_lacks_what_came_with_v4() -> None:
    task = task_response(_full_task(), version=3)
    (container,) = task["Containers"]
    gone = {"LaunchType", "ServiceName", "ClockDrift", "FaultInjectionEnabled"}
    assert not gone & set(task)
    assert not {"ContainerARN", "LogDriver", "Snapshotter", "RestartCount"} & set(container)
    assert set(container["Networks"][0]) == {"NetworkMode", "IPv4Addresses", "IPv6Addresses"}
    assert container["DockerId"] == _ID


def test_times_are_rfc3339_with_nanoseconds_as_go_writes_them() -> None:
    assert format_time(_AT_NS) == "2023-11-14T22:13:20.123456789Z"
    assert format_time(1_700_000_000_500_000_000) == "2023-11-14T22:13:20.5Z"
    assert format_time(1_700_000_000_000_000_000) == "2023-11-14T22:13:20Z"
