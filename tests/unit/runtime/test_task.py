"""The state machine: scenarios of contract 3, and any order of events against invariants."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fargatelite.runtime import task as m
from fargatelite.runtime.dependencies import Condition, ContainerStep, Dependency
from fargatelite.runtime.transitions import step, will_restart

SECOND = 1_000_000_000
START = 1_800_000_000 * SECOND


def container(
    name: str, *depends: tuple[str, str], essential: bool = True, **more: object
) -> m.ContainerState:
    return m.ContainerState(
        name=name,
        essential=essential,
        depends_on=tuple(
            Dependency(container=target, condition=Condition(condition))
            for target, condition in depends
        ),
        **more,  # type: ignore[arg-type]
    )


HEALTH = m.HealthPolicy(interval_s=10, retries=2, start_period_s=0)


class Life:
    """Plays events into a task and keeps what came of them."""

    def __init__(self, *containers: m.ContainerState) -> None:
        self.state = m.TaskState(task_id="0" * 32, containers=containers, created_at_ns=START)
        self.now = START
        self.actions: list[m.Action] = []

    def play(self, event: m.Event) -> list[m.Action]:
        self.state, actions = step(self.state, event)
        self.actions += actions
        return list(actions)

    def at(self, seconds: float) -> int:
        self.now = START + int(seconds * SECOND)
        return self.now

    def pulled(self) -> list[m.Action]:
        self.play(m.Created(at_ns=self.now))
        self.play(m.ProvisionSucceeded(at_ns=self.now))
        self.play(m.PullStarted(at_ns=self.now))
        for item in self.state.containers:
            self.play(m.ContainerPulled(at_ns=self.now, name=item.name, digest="sha256:0"))
        return self.play(m.PullFinished(at_ns=self.now))

    def start(self, name: str) -> list[m.Action]:
        return self.play(m.ContainerStarted(at_ns=self.now, name=name, pid=7))

    def exit(self, name: str, code: int = 0, oom: bool = False) -> list[m.Action]:
        return self.play(m.ContainerExited(at_ns=self.now, name=name, exit_code=code, oom=oom))

    def health(self, name: str, code: int, timed_out: bool = False) -> list[m.Action]:
        return self.play(
            m.HealthResult(
                at_ns=self.now, name=name, exit_code=code, output="o", timed_out=timed_out
            )
        )

    def finish(self) -> None:
        self.play(m.DeprovisionFinished(at_ns=self.now))


def names(actions: list[m.Action], kind: type[m.Action]) -> list[str]:
    return [action.name for action in actions if isinstance(action, kind)]  # type: ignore[attr-defined]


def test_a_task_of_one_container() -> None:
    life = Life(container("app"))
    assert names(life.pulled(), m.StartContainer) == ["app"]
    assert life.state.last_status == "ACTIVATING"
    life.at(1)
    life.start("app")
    assert (life.state.last_status, life.state.started_at_ns) == ("RUNNING", START + SECOND)
    life.at(5)
    assert m.Deprovision() in life.exit("app", 3)
    assert life.state.last_status == "DEPROVISIONING"
    life.finish()
    assert life.state.last_status == "STOPPED"
    assert life.state.stop_code == "EssentialContainerExited"
    assert life.state.stopped_reason == "Essential container in task exited"
    assert life.state.container("app").exit_code == 3
    assert life.state.execution_stopped_at_ns == START + 5 * SECOND
    assert isinstance(life.actions[-1], m.Finished)


@pytest.mark.field("containerDefinitions[].essential")
def test_essential_exit_stops_the_others_and_the_task_waits_for_them() -> None:
    life = Life(container("app"), container("side", essential=False))
    life.pulled()
    life.start("app")
    life.start("side")
    actions = life.exit("app")
    assert names(actions, m.SignalContainer) == ["side"]
    assert m.SetTimer(m.TimerKey("kill", "side"), life.now + 30 * SECOND) in actions
    assert life.state.last_status == "STOPPING"
    assert names(
        life.play(m.TimerFired(at_ns=life.at(30), key=m.TimerKey("kill", "side"))),
        m.KillContainer,
    ) == ["side"]
    assert m.Deprovision() in life.exit("side", 137)


@pytest.mark.field("containerDefinitions[].essential")
def test_non_essential_exit_changes_nothing() -> None:
    life = Life(container("app"), container("side", essential=False))
    life.pulled()
    life.start("app")
    life.start("side")
    life.exit("side", 1)
    assert (life.state.last_status, life.state.desired_status) == ("RUNNING", "RUNNING")


def test_out_of_memory_is_the_containers_reason_not_the_tasks() -> None:
    life = Life(container("app"))
    life.pulled()
    life.start("app")
    life.exit("app", 137, oom=True)
    life.finish()
    assert life.state.container("app").reason == (
        "OutOfMemoryError: Container killed due to memory usage"
    )
    assert life.state.stopped_reason == "Essential container in task exited"


def test_start_dependency() -> None:
    life = Life(container("app", ("db", "START")), container("db"))
    assert names(life.pulled(), m.StartContainer) == ["db"]
    assert names(life.start("db"), m.StartContainer) == ["app"]


@pytest.mark.field("containerDefinitions[].dependsOn[].condition")
def test_success_dependency_waits_for_exit_zero() -> None:
    life = Life(container("app", ("init", "SUCCESS")), container("init", essential=False))
    life.pulled()
    life.start("init")
    assert life.state.last_status == "ACTIVATING"
    assert names(life.exit("init", 0), m.StartContainer) == ["app"]


def test_success_that_fails_ends_the_task() -> None:
    life = Life(container("app", ("init", "SUCCESS")), container("init", essential=False))
    life.pulled()
    life.start("init")
    assert m.Deprovision() in life.exit("init", 2)
    app = life.state.container("app")
    assert app.exit_code == 143
    assert app.reason is not None
    assert app.reason.startswith("CannotStartContainerError: ")
    assert life.state.stop_code == "TaskFailedToStart"


@pytest.mark.field("containerDefinitions[].dependsOn[].condition")
def test_complete_dependency_takes_any_exit_code() -> None:
    life = Life(container("app", ("init", "COMPLETE")), container("init", essential=False))
    life.pulled()
    life.start("init")
    assert names(life.exit("init", 2), m.StartContainer) == ["app"]


@pytest.mark.field(
    "containerDefinitions[].healthCheck.interval", "containerDefinitions[].healthCheck.retries"
)
def test_healthy_dependency_and_health_timers() -> None:
    life = Life(container("app", ("db", "HEALTHY")), container("db", health_policy=HEALTH))
    life.pulled()
    actions = life.start("db")
    assert m.SetTimer(m.TimerKey("health", "db"), life.now + 10 * SECOND) in actions
    fired = life.play(m.TimerFired(at_ns=life.at(10), key=m.TimerKey("health", "db")))
    assert names(fired, m.RunHealthCheck) == ["db"]
    life.health("db", 1)
    assert life.state.container("db").health_status == "UNKNOWN"
    life.at(20)
    life.health("db", 1)
    assert life.state.container("db").health_status == "UNHEALTHY"
    life.at(30)
    assert names(life.health("db", 0), m.StartContainer) == ["app"]
    assert life.state.health_status == "HEALTHY"


@pytest.mark.field("containerDefinitions[].healthCheck.startPeriod")
def test_failures_in_the_start_period_do_not_count() -> None:
    policy = m.HealthPolicy(interval_s=5, retries=1, start_period_s=60)
    life = Life(container("app", health_policy=policy))
    life.pulled()
    life.start("app")
    life.at(5)
    life.health("app", 1)
    assert life.state.container("app").health_status == "UNKNOWN"
    life.at(10)
    life.health("app", 0)
    life.at(15)
    life.health("app", 1)
    assert life.state.container("app").health_status == "UNHEALTHY", "a success ends the period"


def test_a_check_that_timed_out_failed() -> None:
    policy = m.HealthPolicy(interval_s=5, retries=1, start_period_s=0)
    life = Life(container("app", health_policy=policy))
    life.pulled()
    life.start("app")
    life.health("app", 0, timed_out=True)
    assert life.state.container("app").health_status == "UNHEALTHY"


def test_a_standalone_task_is_not_stopped_for_being_unhealthy() -> None:
    policy = m.HealthPolicy(interval_s=5, retries=1, start_period_s=0)
    life = Life(container("app", health_policy=policy))
    life.pulled()
    life.start("app")
    life.health("app", 1)
    assert life.state.desired_status == "RUNNING"


@pytest.mark.field("containerDefinitions[].startTimeout")
def test_start_timeout_ends_the_task() -> None:
    life = Life(
        container("app", ("init", "SUCCESS")),
        container("init", essential=False, start_timeout_s=5),
    )
    life.pulled()
    assert m.SetTimer(m.TimerKey("start", "init"), life.now + 5 * SECOND) in life.start("init")
    actions = life.play(m.TimerFired(at_ns=life.at(5), key=m.TimerKey("start", "init")))
    assert names(actions, m.SignalContainer) == ["init"]
    assert life.state.stop_code == "TaskFailedToStart"
    assert "timed out" in (life.state.container("app").reason or "")


def test_start_timeout_does_not_concern_a_start_dependency() -> None:
    life = Life(container("app", ("db", "START")), container("db", start_timeout_s=5))
    life.pulled()
    assert not [a for a in life.start("db") if isinstance(a, m.SetTimer)]


@pytest.mark.field("containerDefinitions[].dependsOn[].containerName")
def test_stop_goes_in_reverse_order_of_dependencies() -> None:
    life = Life(
        container("db"), container("app", ("db", "START")), container("lb", ("app", "START"))
    )
    life.pulled()
    for name in ("db", "app", "lb"):
        life.start(name)
    stop = m.StopRequested(at_ns=life.at(9), stop_code="UserInitiated", reason="bye")
    assert names(life.play(stop), m.SignalContainer) == ["lb"]
    assert names(life.exit("lb", 143), m.SignalContainer) == ["app"]
    assert names(life.exit("app", 143), m.SignalContainer) == ["db"]
    assert m.Deprovision() in life.exit("db", 143)
    life.finish()
    assert (life.state.stop_code, life.state.stopped_reason) == ("UserInitiated", "bye")


def test_a_failing_pull() -> None:
    life = Life(container("app"))
    life.play(m.Created(at_ns=START))
    life.play(m.ProvisionSucceeded(at_ns=START))
    life.play(m.PullStarted(at_ns=START))
    reason = "CannotPullContainerError: not found"
    assert m.Deprovision() in life.play(m.PullFailed(at_ns=START, name="app", reason=reason))
    life.finish()
    assert life.state.stop_code == "TaskFailedToStart"
    assert life.state.stopped_reason == reason
    assert life.state.container("app").exit_code is None
    assert life.state.started_at_ns is None


def test_an_input_that_cannot_be_had_ends_the_task_and_blames_no_container() -> None:
    life = Life(container("app"))
    life.play(m.Created(at_ns=START))
    life.play(m.ProvisionSucceeded(at_ns=START))
    life.play(m.PullStarted(at_ns=START))
    life.play(m.ContainerPulled(at_ns=START, name="app", digest="d"))
    reason = "ResourceInitializationError: unable to pull secrets or registry auth: x"
    assert m.Deprovision() in life.play(m.InputsFailed(at_ns=START, reason=reason))
    life.finish()
    assert (life.state.stop_code, life.state.stopped_reason) == ("TaskFailedToStart", reason)
    assert life.state.container("app").reason is None
    assert life.state.pull_stopped_at_ns == START


def test_a_failing_provision() -> None:
    life = Life(container("app"))
    life.play(m.Created(at_ns=START))
    actions = life.play(m.ProvisionFailed(at_ns=START, reason="ResourceInitializationError: x"))
    assert m.Deprovision() in actions


def test_a_stop_waits_for_the_step_that_is_on_its_way() -> None:
    life = Life(container("app"))
    life.play(m.Created(at_ns=START))
    assert life.play(m.StopRequested(at_ns=START, stop_code="UserInitiated", reason="r")) == []
    actions = life.play(m.ProvisionSucceeded(at_ns=START))
    assert actions == [m.Deprovision()], "no pull after a stop"
    assert life.state.last_status == "DEPROVISIONING"


def test_a_stop_breaks_a_pull_off_and_keeps_its_own_reason() -> None:
    life = Life(container("app"))
    life.play(m.Created(at_ns=START))
    life.play(m.ProvisionSucceeded(at_ns=START))
    life.play(m.StopRequested(at_ns=START, stop_code="UserInitiated", reason="r"))
    life.play(m.PullFailed(at_ns=START, name="app", reason="CannotPullContainerError: cancelled"))
    assert life.state.stop_code == "UserInitiated"
    assert life.state.container("app").reason is None


def test_a_container_that_starts_after_the_stop_is_stopped() -> None:
    life = Life(container("app"))
    life.pulled()
    assert life.play(m.StopRequested(at_ns=START, stop_code="UserInitiated", reason="r")) == []
    assert names(life.start("app"), m.SignalContainer) == ["app"]


def test_a_container_that_cannot_start() -> None:
    life = Life(container("app"), container("side", essential=False))
    life.pulled()
    life.start("side")
    actions = life.play(
        m.ContainerStartFailed(
            at_ns=START, name="app", reason="CannotStartContainerError: x", exit_code=127
        )
    )
    assert names(actions, m.SignalContainer) == ["side"]
    assert life.state.stop_code == "TaskFailedToStart"
    assert life.state.container("app").exit_code == 127


def test_a_clock_that_steps_back_does_not_reorder_times() -> None:
    life = Life(container("app"))
    life.at(100)
    life.pulled()
    life.start("app")
    life.now = START
    life.exit("app")
    life.finish()
    state = life.state
    assert state.stopped_at_ns is not None
    assert state.started_at_ns is not None
    assert state.stopped_at_ns >= state.started_at_ns


def test_state_survives_json() -> None:
    life = Life(container("app", ("db", "HEALTHY")), container("db", health_policy=HEALTH))
    life.pulled()
    life.start("db")
    data = msgspec.json.encode(life.state)
    assert msgspec.json.decode(data, type=m.TaskState) == life.state


RESTART = m.RestartRule(ignored_exit_codes=(3,), attempt_period_s=60)


@pytest.mark.field("containerDefinitions[].restartPolicy.restartAttemptPeriod")
def test_a_restart_needs_the_period_since_the_last_start() -> None:
    life = Life(container("app", restart_rule=RESTART, health_policy=HEALTH))
    life.pulled()
    life.start("app")
    life.health("app", 0)
    life.at(60)
    assert names(life.exit("app", 1), m.RestartContainer) == ["app"]
    again = life.state.container("app")
    assert (again.last_status, again.health_status) == ("RUNNING", "UNKNOWN")
    life.at(61)
    timers = [action for action in life.start("app") if isinstance(action, m.SetTimer)]
    assert [timer.key.kind for timer in timers] == ["health"]
    again = life.state.container("app")
    assert (again.restart_count, again.started_at_ns, again.exit_code) == (1, life.now, 1)
    life.at(120)  # 59 s after the restart: too early
    life.exit("app", 1)
    assert life.state.container("app").last_status == "STOPPED"
    assert life.state.stop_code == "EssentialContainerExited"


@pytest.mark.field("containerDefinitions[].restartPolicy.ignoredExitCodes")
def test_ignored_exit_codes_and_early_exits_are_not_restarted() -> None:
    for seconds, code in ((59.9, 1), (600, 3)):
        life = Life(container("app", restart_rule=RESTART))
        life.pulled()
        life.start("app")
        life.at(seconds)
        assert names(life.exit("app", code), m.RestartContainer) == []
        assert life.state.desired_status == "STOPPED"


def test_a_stop_during_a_restart_waits_for_the_start() -> None:
    life = Life(container("app", restart_rule=RESTART))
    life.pulled()
    life.start("app")
    life.at(100)
    life.exit("app", 1)
    stop = m.StopRequested(at_ns=life.now, stop_code="UserInitiated", reason="r")
    assert names(life.play(stop), m.SignalContainer) == []
    assert names(life.start("app"), m.SignalContainer) == ["app"]
    life.exit("app", 143)
    assert life.state.last_status == "DEPROVISIONING"


def test_a_restart_that_fails_is_the_containers_end() -> None:
    life = Life(container("app", restart_rule=RESTART))
    life.pulled()
    life.start("app")
    life.at(100)
    life.exit("app", 1)
    life.play(m.ContainerStartFailed(at_ns=life.now, name="app", reason="r", exit_code=None))
    assert life.state.stop_code == "EssentialContainerExited"
    assert life.state.last_status == "DEPROVISIONING"


def test_dependents_go_by_the_first_run() -> None:
    life = Life(
        container("init", essential=False, restart_rule=RESTART),
        container("app", ("init", "SUCCESS")),
    )
    life.pulled()
    life.start("init")
    life.at(100)
    actions = life.exit("init", 0)
    assert names(actions, m.RestartContainer) == ["init"]
    assert names(actions, m.StartContainer) == ["app"]


# ---- any order of events ----

EAGER = m.RestartRule(ignored_exit_codes=(1,), attempt_period_s=1)
CONDITIONS = [condition.value for condition in Condition]


@st.composite
def lives(draw: st.DrawFn) -> Life:
    count = draw(st.integers(1, 4))
    made = []
    for index in range(count):
        depends = [
            (f"c{target}", draw(st.sampled_from(CONDITIONS)))
            for target in range(index)
            if draw(st.booleans())
        ]
        made.append(
            container(
                f"c{index}",
                *depends,
                essential=index == 0 or draw(st.booleans()),
                health_policy=HEALTH,
                start_timeout_s=draw(st.sampled_from([None, 5])),
                restart_rule=draw(st.sampled_from([None, EAGER])),
            )
        )
    return Life(*made)


@settings(max_examples=300)
@given(lives(), st.data())
def test_invariants_under_any_sequence(life: Life, data: st.DataObject) -> None:
    """The executor answers what it was asked, in any order, with stops and failures between."""
    waiting: list[m.Action] = []
    started: set[str] = set()
    ended: set[str] = set()
    stopped_once = 0
    timers: set[m.TimerKey] = set()
    waiting += life.play(m.Created(at_ns=START))
    before = life.state
    for round_ in range(400):
        life.now += data.draw(st.integers(0, 3)) * SECOND
        now = life.now
        choices: list[object] = list(waiting)
        restarting = {item.name for item in life.state.containers if item.is_restarting}
        choices += [("exit", name) for name in sorted(started - ended - restarting)]
        choices += [("timer", key) for key in sorted(timers)]
        if round_ < 60:
            choices.append(("stop",))
        if not choices:
            break
        choice = data.draw(st.sampled_from(choices))
        events: list[m.Event] = []
        match choice:
            case m.Provision():
                ok = data.draw(st.booleans()) or round_ == 0
                events = [
                    m.ProvisionSucceeded(at_ns=now)
                    if ok
                    else m.ProvisionFailed(at_ns=now, reason="r")
                ]
            case m.PullImages():
                events = [m.PullStarted(at_ns=now)]
                for item in life.state.containers:
                    if data.draw(st.integers(0, 9)) == 0:
                        events.append(m.PullFailed(at_ns=now, name=item.name, reason="r"))
                        break
                    events.append(m.ContainerPulled(at_ns=now, name=item.name, digest="d"))
                else:
                    ok = data.draw(st.integers(0, 9)) > 0
                    events.append(
                        m.PullFinished(at_ns=now) if ok else m.InputsFailed(at_ns=now, reason="r")
                    )
            case m.StartContainer(name=name):
                for dependency in life.state.container(name).depends_on:
                    target = life.state.container(dependency.container)
                    if dependency.condition == "CREATE":
                        assert target.step >= ContainerStep.STARTING
                        continue
                    assert target.started_at_ns is not None, "started before its dependency"
                    if dependency.condition == "SUCCESS":
                        first = target.first_exit_code
                        assert (target.exit_code if first is None else first) == 0
                    if dependency.condition == "HEALTHY":
                        assert target.was_healthy
                if data.draw(st.integers(0, 9)) == 0:
                    events = [
                        m.ContainerStartFailed(at_ns=now, name=name, reason="r", exit_code=None)
                    ]
                else:
                    started.add(name)
                    events = [m.ContainerStarted(at_ns=now, name=name, pid=1)]
            case m.RestartContainer(name=name):
                if data.draw(st.integers(0, 9)) == 0:
                    ended.add(name)
                    events = [
                        m.ContainerStartFailed(at_ns=now, name=name, reason="r", exit_code=None)
                    ]
                else:
                    events = [m.ContainerStarted(at_ns=now, name=name, pid=2)]
            case m.RunHealthCheck(name=name):
                code = data.draw(st.integers(0, 1))
                events = [
                    m.HealthResult(at_ns=now, name=name, exit_code=code, output="", timed_out=False)
                ]
            case m.Deprovision():
                assert started == ended, "removed under a running container"
                events = [m.DeprovisionFinished(at_ns=now)]
            case ("exit", str() as name):
                code = data.draw(st.sampled_from([0, 1, 137]))
                if not will_restart(life.state, name, code, now):
                    ended.add(name)
                events = [m.ContainerExited(at_ns=now, name=name, exit_code=code, oom=False)]
            case ("timer", m.TimerKey() as key):
                timers.discard(key)
                events = [m.TimerFired(at_ns=now, key=key)]
            case ("stop",):
                events = [m.StopRequested(at_ns=now, stop_code="UserInitiated", reason="r")]
        if isinstance(choice, m.Action):
            waiting.remove(choice)
        for event in events:
            for action in life.play(event):
                match action:
                    case m.SetTimer(key=key):
                        timers.add(key)
                    case m.CancelTimer(key=key):
                        timers.discard(key)
                    case m.Finished():
                        stopped_once += 1
                    case m.SignalContainer() | m.KillContainer():
                        assert action.name in started - ended
                        assert not life.state.container(action.name).is_restarting
                    case _:
                        waiting.append(action)
            after = life.state
            order = m.TASK_STATUS_ORDER
            assert order.index(after.last_status) >= order.index(before.last_status)
            assert not (before.desired_status == "STOPPED" and after.desired_status == "RUNNING")
            assert after.version >= before.version
            for old, new in zip(before.containers, after.containers, strict=True):
                assert new.step >= old.step
            before = after
        if life.state.last_status == "STOPPED":
            break
    state = life.state
    if state.last_status == "STOPPED":
        assert stopped_once == 1
        assert all(item.step == ContainerStep.STOPPED for item in state.containers)
        assert state.stop_code is not None
        times = [state.created_at_ns, state.stopping_at_ns, state.stopped_at_ns]
        assert times == sorted(t for t in times if t is not None)
        assert step(state, m.Created(at_ns=life.now)) == (state, ()), "late events change nothing"


def test_who_takes_volumes_waits_until_their_container_is_made_and_no_longer() -> None:
    life = Life(
        container("taker", ("source", "CREATE")),
        container("source", ("first", "SUCCESS"), essential=False),
        container("first", essential=False),
    )
    assert life.pulled() == [m.StartContainer("first")]
    life.start("first")
    began = life.exit("first", 0)
    assert [a for a in began if isinstance(a, m.StartContainer)] == [
        m.StartContainer("source"), m.StartContainer("taker"),
    ]  # fmt: skip


def test_links_and_volumes_are_waited_for() -> None:
    from fargatelite.settings import Settings
    from fargatelite.taskdef.launch_type import policy_for
    from fargatelite.taskdef.load import load_definition

    base = {"image": "i", "memory": 64}
    definition = load_definition(
        {
            "family": "f",
            "containerDefinitions": [
                {"name": "web", **base, "links": ["db:mysql"],
                 "volumesFrom": [{"sourceContainer": "data"}]},
                {"name": "db", **base},
                {"name": "data", **base},
            ],
        },
        policy_for("EC2", Settings()),
    )  # fmt: skip
    state = m.new_state(definition, "0" * 32, START)
    assert [(item.container, item.condition) for item in state.container("web").depends_on] == [
        ("db", "START"), ("data", "CREATE"),
    ]  # fmt: skip
