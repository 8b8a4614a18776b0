"""Fault injection: a task's own requests to lose its traffic (contract 5.6).

Bodies are checked in the agent's order and refused in its words (amazon-ecs-agent,
ecs-agent/tmds/handlers/fault/v1). A kernel without netem answers a
request for latency or packet loss with what it lacks.
"""

from __future__ import annotations

import errno
import ipaddress
import logging
from collections.abc import Callable
from typing import Protocol as Interface
from typing import TypeVar

import msgspec
from msgspec import Struct

from fargatelite.errors import FargateliteError
from fargatelite.metadata.wire import Answer
from fargatelite.network import netem
from fargatelite.network.netem import Impairment
from fargatelite.network.slot import METADATA_ADDRESS
from fargatelite.network.task_rules import METADATA_PORT, TaskRules

__all__ = ["BlackholePort", "FaultInjector", "Impaired", "NetworkFaults", "answer_fault"]

_logger = logging.getLogger(__name__)

_VERBS = ("start", "stop", "status")
_Body = TypeVar("_Body")


class BlackholePort(Struct, frozen=True, kw_only=True, rename="pascal"):
    """A validated request to drop a port's packets."""

    port: int
    protocol: str
    traffic_type: str
    sources_to_filter: tuple[str, ...] = ()
    """Addresses and networks that the fault spares."""


class Impaired(Struct, frozen=True, kw_only=True):
    """A validated request for latency or packet loss."""

    fault: str
    """`latency` or `packet-loss`."""
    impairment: Impairment
    sources: tuple[str, ...] = ()
    """Networks whose packets suffer."""
    sources_to_filter: tuple[str, ...] = ()


class FaultInjector(Interface):
    """What can make a task's network fail. All raise FargateliteError."""

    def start_blackhole(self, fault: BlackholePort) -> None:
        """Drops the packets; a fault of that port, protocol and direction stays as it is."""
        ...

    def stop_blackhole(self, fault: BlackholePort) -> None:
        """Ends it; one that is not there is no error."""
        ...

    def has_blackhole(self, fault: BlackholePort) -> bool:
        """Whether it is in force."""
        ...

    def start_impairment(self, fault: Impaired) -> None:
        """Delays or loses packets. A task has at most one such fault."""
        ...

    def stop_impairment(self) -> None:
        """Ends it; one that is not there is no error."""
        ...

    def running_impairment(self) -> str | None:
        """`latency`, `packet-loss`, or None."""
        ...


class NetworkFaults:
    """Faults by nftables and netem in the task's network namespace."""

    def __init__(self, rules: TaskRules) -> None:
        self._rules = rules

    def start_blackhole(self, fault: BlackholePort) -> None:
        """See `FaultInjector`. The endpoint itself is never cut off, as in the agent."""
        is_ingress = fault.traffic_type == "ingress"
        spared = list(fault.sources_to_filter)
        if not is_ingress and fault.port == METADATA_PORT:
            spared.append(METADATA_ADDRESS)
        # The agent spares destinations in both directions; for packets that arrive that is the
        # task's own address and would spare nobody, while its documentation speaks of sources.
        side = "saddr" if is_ingress else "daddr"
        self._rules.drop(
            _chain(fault),
            "input" if is_ingress else "output",
            f"{fault.protocol} dport {fault.port}",
            [f"{'ip6' if ':' in source else 'ip'} {side} {source}" for source in spared],
        )

    def stop_blackhole(self, fault: BlackholePort) -> None:
        """See `FaultInjector`."""
        self._rules.remove(_chain(fault))

    def has_blackhole(self, fault: BlackholePort) -> bool:
        """See `FaultInjector`."""
        return self._rules.has_chain(_chain(fault))

    def start_impairment(self, fault: Impaired) -> None:
        """See `FaultInjector`."""
        spared = (*fault.sources_to_filter, f"{METADATA_ADDRESS}/32")
        netem.impair(self._rules.netns_fd, fault.impairment, fault.sources, spared)

    def stop_impairment(self) -> None:
        """See `FaultInjector`."""
        netem.restore(self._rules.netns_fd)

    def running_impairment(self) -> str | None:
        """See `FaultInjector`."""
        return netem.read_impairment(self._rules.netns_fd)


def _chain(fault: BlackholePort) -> str:
    return f"{fault.traffic_type}-{fault.protocol}-{fault.port}"


class _Blackhole(Struct, frozen=True, kw_only=True, rename="pascal"):
    port: int | None = None
    protocol: str | None = None
    traffic_type: str | None = None
    sources_to_filter: list[str] | None = None


class _Impairment(Struct, frozen=True, kw_only=True, rename="pascal"):
    sources: list[str] | None = None
    sources_to_filter: list[str] | None = None
    flows_percent: int | None = None


class _Latency(_Impairment, frozen=True, kw_only=True, rename="pascal"):
    delay_milliseconds: int | None = None
    jitter_milliseconds: int | None = None


class _PacketLoss(_Impairment, frozen=True, kw_only=True, rename="pascal"):
    loss_percent: int | None = None


class _Refused(Exception):
    """A body that the agent refuses; the text is its `Error`."""


def _missing(name: str) -> _Refused:
    return _Refused(f"required parameter {name} is missing")


def _invalid(value: object, name: str) -> _Refused:
    return _Refused(f"invalid value {value} for parameter {name}")


def _networks(sources: list[str] | None, name: str) -> tuple[str, ...]:
    """Canonical texts: what a container wrote never reaches nftables' parser."""
    found = []
    for source in sources or ():
        if "%" in source:  # an IPv6 zone
            raise _invalid(source, name)
        try:
            found.append(ipaddress.ip_interface(source).network)
        except ValueError as error:
            raise _invalid(source, name) from error
    return tuple(str(network) for network in found)


def _blackhole(body: _Blackhole) -> BlackholePort:
    if body.port is None:
        raise _missing("Port")
    if not 0 <= body.port <= 65535:
        raise _invalid(body.port, "Port")
    if not body.protocol:
        raise _missing("Protocol")
    if not body.traffic_type:
        raise _missing("TrafficType")
    if body.protocol not in ("tcp", "udp"):
        raise _invalid(body.protocol, "Protocol")
    if body.traffic_type not in ("ingress", "egress"):
        raise _invalid(body.traffic_type, "TrafficType")
    return BlackholePort(
        port=body.port,
        protocol=body.protocol,
        traffic_type=body.traffic_type,
        sources_to_filter=_networks(body.sources_to_filter, "SourcesToFilter"),
    )


def _latency(body: _Latency) -> Impaired:
    for value, name in (
        (body.delay_milliseconds, "DelayMilliseconds"),
        (body.jitter_milliseconds, "JitterMilliseconds"),
    ):
        if value is None:
            raise _missing(name)
        if value < 0:
            raise _invalid(value, name)
    delay_ms, jitter_ms = body.delay_milliseconds or 0, body.jitter_milliseconds or 0
    return _impaired("latency", Impairment(delay_ms=delay_ms, jitter_ms=jitter_ms), body)


def _packet_loss(body: _PacketLoss) -> Impaired:
    if body.loss_percent is None:
        raise _missing("LossPercent")
    if not 1 <= body.loss_percent <= 100:
        raise _invalid(body.loss_percent, "LossPercent")
    return _impaired("packet-loss", Impairment(loss_percent=body.loss_percent), body)


def _impaired(fault: str, impairment: Impairment, body: _Impairment) -> Impaired:
    if not body.sources:
        raise _missing("Sources")
    sources = _networks(body.sources, "Sources")
    spared = _networks(body.sources_to_filter, "SourcesToFilter")
    if body.flows_percent is not None and not 1 <= body.flows_percent <= 100:
        raise _invalid(body.flows_percent, "flowsPercent")
    if body.flows_percent not in (None, 100):
        raise _Refused("flowsPercent below 100 is not supported here: packets of all flows suffer")
    return Impaired(fault=fault, impairment=impairment, sources=sources, sources_to_filter=spared)


def _error(status: int, text: str) -> Answer:
    return Answer(status=status, body={"Error": text})


def answer_fault(
    fault: str,
    verb: str,
    body: bytes,
    find: Callable[[], tuple[str, FaultInjector | None] | Answer],
) -> Answer | None:
    """The answer to `fault/v1/<fault>/<verb>`, None for an unknown path.

    `find` gives the task's ARN and injector, or the answer when it is unknown; the agent asks only
    after it has checked the body.
    """
    if verb not in _VERBS:
        return None
    try:
        asked = _parse(fault, verb, body)
    except _Refused as refusal:
        return _error(400, str(refusal))
    except LookupError:
        return None
    try:
        found = find()
        if isinstance(found, Answer):
            return found
        task_arn, injector = found
        if injector is None:
            return _error(400, f"enableFaultInjection is not enabled for task: {task_arn}")
        if isinstance(asked, BlackholePort):
            return Answer(status=200, body={"Status": _act(injector, verb, asked)})
        return _act_impaired(injector, verb, fault.removeprefix("network-"), asked)
    except (FargateliteError, OSError) as error:
        if isinstance(asked, Impaired) and error.errno == errno.ENOENT:
            return _error(
                500,
                f"{fault}: latency and packet loss are not available here; they need netem "
                "(CONFIG_NET_SCH_NETEM)",
            )
        _logger.warning("%s %s: %s", verb, fault, error)
        return _error(500, "internal error")


def _act(injector: FaultInjector, verb: str, fault: BlackholePort) -> str:
    if verb == "start":
        injector.start_blackhole(fault)
        return "running"
    if verb == "stop":
        injector.stop_blackhole(fault)
        return "stopped"
    return "running" if injector.has_blackhole(fault) else "not-running"


def _act_impaired(injector: FaultInjector, verb: str, name: str, fault: Impaired | None) -> Answer:
    """One fault of latency or loss at a time, whichever: the second start is a conflict."""
    running = injector.running_impairment()
    if verb == "status":
        status = "running" if running == name else "not-running"
    elif verb == "stop":
        if running == name:
            injector.stop_impairment()
        status = "stopped"
    else:
        if running is not None:
            words = running.replace("-", " ")
            return _error(409, f"There is already one network {words} fault running")
        assert fault is not None, "start has a body"
        injector.start_impairment(fault)
        status = "running"
    return Answer(status=200, body={"Status": status})


def _parse(fault: str, verb: str, body: bytes) -> BlackholePort | Impaired | None:
    """What the body asks for; None where a verb needs no body.

    Raises: LookupError for an unknown fault, _Refused.
    """
    try:
        if fault == "network-blackhole-port":
            return _blackhole(_decode(body, _Blackhole))
        # To stop or ask for a fault of tc the agent needs no body: there is one at most.
        if fault == "network-latency":
            if verb == "start":
                return _latency(_decode(body, _Latency))
            return None
        if fault == "network-packet-loss":
            if verb == "start":
                return _packet_loss(_decode(body, _PacketLoss))
            return None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise _Refused(str(error)) from error
    raise LookupError(fault)


def _decode(body: bytes, kind: type[_Body]) -> _Body:
    if not body.strip():
        raise _Refused("required request body is missing")
    return msgspec.json.decode(body, type=kind)
