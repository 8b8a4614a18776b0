"""Any path of any method gets an answer."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from fargatelite.metadata.faults import FaultInjector
from fargatelite.metadata.routes import Credentials, Protection, answer
from fargatelite.metadata.shapes import MetadataContainer, MetadataTask
from fargatelite.metadata.stats import Reading
from fargatelite.metadata.wire import Request

_ID = f"{'a' * 32}-{0:010d}"


class ServiceTask:
    """A task of a service, without fault injection."""

    credentials_id: str | None = "6d2f9c0e-3a57-4f0c-8a43-0f5a8f0f8a11"
    faults: FaultInjector | None = None
    state = Protection(is_enabled=False)

    def describe(self) -> MetadataTask:
        container = MetadataContainer(
            runtime_id=_ID, name="a", image="a", desired_status="RUNNING", known_status="RUNNING"
        )
        return MetadataTask(
            cluster_arn="c",
            task_arn="t",
            family="f",
            revision=1,
            desired_status="RUNNING",
            known_status="RUNNING",
            containers=(container,),
            cpu_units=256,
            memory_mib=512,
        )

    def readings(self, name: str) -> tuple[Reading | None, Reading] | None:
        return None

    def credentials(self) -> Credentials | None:
        return None

    def protection(self) -> Protection | None:
        return self.state

    def protect(self, is_enabled: bool, expires_in_minutes: int) -> Protection | None:
        self.state = Protection(
            is_enabled=is_enabled, expires_at_ns=expires_in_minutes * 60 * 10**9
        )
        return self.state


_WORDS = st.sampled_from(
    [
        *("v2", "v3", "v4", "api", "credentials", _ID, "task", "stats", "taskWithTags", "fault"),
        *("v1", "network-latency", "network-blackhole-port", "start", "", "..", "%2e"),
        *("task-protection", "state"),
    ]
)


@given(
    st.sampled_from(["GET", "PUT", "POST", "DELETE"]),
    st.lists(_WORDS, max_size=6),
    st.binary(max_size=40) | st.sampled_from([b"{}", b"[]", b"null", b'{"Port":-1}', b"\xff"]),
)
def test_any_request_is_answered(method: str, words: list[str], body: bytes) -> None:
    request = Request(method=method, path="/" + "/".join(words), body=body)
    answered = answer(ServiceTask(), request)
    assert answered.status in (200, 400, 403, 404, 405, 503)
    assert answered.encode().startswith(f"HTTP/1.1 {answered.status} ".encode())


def test_protection_of_a_services_task() -> None:
    task = ServiceTask()
    path = f"/api/{_ID}/task-protection/v1/state"
    asked = b'{"ProtectionEnabled": true, "ExpiresInMinutes": 60}'
    expected = {
        "protection": {
            "ProtectionEnabled": True,
            "TaskArn": "t",
            "ExpirationDate": "1970-01-01T01:00:00Z",
        }
    }
    assert answer(task, Request(method="PUT", path=path, body=asked)).body == expected
    assert answer(task, Request(method="GET", path=path, body=b"")).body == expected


def test_protection_needs_a_task_role() -> None:
    task = ServiceTask()
    task.credentials_id = None
    path = f"/api/{_ID}/task-protection/v1/state"
    answered = answer(task, Request(method="GET", path=path, body=b""))
    assert answered.status == 403
