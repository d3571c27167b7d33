# SPDX-License-Identifier: Apache-2.0
"""Why a connection passes, or does not: what the plan says, and what the packet programs themselves make of its first
packet, in a trial that leaves nothing behind (`datapath.dataplane.trial`)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from datapath.engine.engine import Engine
from datapath.engine.transaction import devices_of
from datapath.model.drivers import traits
from datapath.model.flows import ALLOWED, REFUSED
from datapath.model.host import HostNetwork
from datapath.model.networks import gateway_mac
from datapath.model.policies import Kind, Policy
from datapath.model.state import State
from datapath.plan.policies.applying import in_force
from datapath.plan.policies.asking import Asked, Question, understand
from datapath.plan.policies.builtin import world_here
from datapath.plan.policies.why import Explanation, explain
from datapath.telemetry.stats import opened

SOURCE_PORT = 40000  # of the packet that is tried: what it is decides nothing
_ELSEWHERE = "02:00:00:00:00:01"  # whoever sends from outside


class Program(NamedTuple):
    """What the programs say. `verdict` "": they were not asked, `unasked` says why; `counters`: what they counted."""

    verdict: str = ""
    reason: str = ""
    counters: tuple[str, ...] = ()
    unasked: str = ""

    def agrees(self, plan: Explanation) -> bool | None:
        """None: nobody knows."""
        if not self.verdict:
            return None
        return (self.verdict, self.reason) == (plan.verdict, plan.reason)


class Why(NamedTuple):
    """An answer of both."""

    asked: Asked
    plan: Explanation
    program: Program


class _Run(NamedTuple):
    """A test run: at which hook and device, and the MACs of the frame (to whom, from whom)."""

    program: str
    ifindex: int
    macs: tuple[str, str]
    ingress: int = 0


def why(engine: Engine, question: Question, policies: Sequence[Policy] | None = None) -> Why:
    """What becomes of the connection. `policies`: what if these were applied; the programs are not asked then.
    ConfigError, NotFoundError, KernelError and its kinds."""
    from datapath.kernel import features, observe

    features.require()
    state = engine.shown()
    host = observe.host(devices_of(state))
    world = world_here(state, host)
    asked = understand(question, state, world, host)
    every = in_force(state, world, policies or ())
    plan = explain(asked, state, every, world, host)
    if policies is not None:
        return Why(asked, plan, Program(unasked="they know nothing of these policies"))
    return Why(asked, plan, _tried(engine, asked, state, host))


def _tried(engine: Engine, asked: Asked, state: State, host: HostNetwork) -> Program:
    run = _run(asked, state, host)
    if isinstance(run, str):
        return Program(unasked=run)
    from datapath.dataplane.frames import opening_frame
    from datapath.dataplane.layout import tails_of
    from datapath.dataplane.loading import flags_of
    from datapath.dataplane.trial import ALWAYS, Trial
    from datapath.kernel import abi

    source = asked.opening.source.address
    assert source is not None
    frame = opening_frame(run.macs, source, asked.address, asked.opening.protocol, asked.port, SOURCE_PORT)
    with opened(engine) as found:
        if found is None:
            return Program(unasked="none are loaded")
        networks = {state.networks[one.network_id].number for one in (asked.source, asked.destination) if one}
        tails = set[str]().union(*(tails_of(flags_of(found.networks[number])) for number in networks))
        with Trial(found, {run.program, *tails, *ALWAYS}) as trial:
            counters = trial.run(run.program, frame, run.ifindex, run.ingress)
    drops = [name for name in counters if abi.Reason[name] >= abi.DROP_FIRST]
    return Program(REFUSED if drops else ALLOWED, drops[0] if drops else "", counters)


def _run(asked: Asked, state: State, host: HostNetwork) -> _Run | str:
    """Where such a packet meets the programs; or why it meets none."""
    endpoint = asked.source or asked.destination
    for one in (asked.source, asked.destination):
        network = state.networks[one.network_id] if one else None
        if network and (not traits(network).programs or traits(network).lan):
            return f"packets of network {network.name} do not all pass them"
    if asked.source is not None:
        network = state.networks[asked.source.network_id]
        straight = asked.destination is not None and not asked.opening.published
        beside = straight and asked.destination and asked.destination.network_id == network.id
        to = asked.destination.mac if beside and asked.destination else gateway_mac(network)
        return _Run("from_container", asked.source.host_ifindex, (to, asked.source.mac))
    outside = asked.opening.source.kind is Kind.OUTSIDE
    uplink = (
        next((one for one in host.uplinks if not one.bare and not one.unserved), None) if outside else None
    )
    if outside and uplink is None:
        return "no device with Ethernet leads outside"
    if asked.opening.published or asked.unpublished:
        if uplink is None:
            return "the host's sockets are led to the container before there is a packet"
        return _Run("from_uplink", uplink.ifindex, (host.devices[uplink.ifindex].mac, _ELSEWHERE))
    assert endpoint is not None
    network = state.networks[endpoint.network_id]
    index = next((i for i, name in host.names.items() if name == network.device), 0)
    return _Run("from_host", index, (endpoint.mac, gateway_mac(network)), uplink.ifindex if uplink else 0)
