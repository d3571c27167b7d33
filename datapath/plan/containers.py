# SPDX-License-Identifier: Apache-2.0
"""Containers: what `run` may ask for, and what has to go when a container ends or is removed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

from datapath.config.daemon import DaemonConfig
from datapath.config.logs import log_options
from datapath.errors import ConfigError, ExistsError, InUseError, quoted
from datapath.model.containers import Container, RunRequest
from datapath.model.drivers import spec_of, traits
from datapath.model.endpoints import Endpoint, EndpointRequest
from datapath.model.networks import Network
from datapath.model.observed import HostFacts
from datapath.model.parsing import parse_pair
from datapath.model.ports import PortMapping
from datapath.model.rows import Phase, Status
from datapath.model.sandboxes import Sandbox
from datapath.model.state import Fresh, State
from datapath.plan import endpoint_options
from datapath.plan import run_options as options
from datapath.plan.endpoints import assign_gateways, check_hostname, parse_links, plan_endpoint, ready_network
from datapath.plan.memberships import plan_memberships, refuse_shared_ports
from datapath.plan.networks import check_name, parse_labels
from datapath.plan.ports import PortContext, choose_ports, egress_endpoints


class RunPlan(NamedTuple):
    """`networks` that are not built have to be first. `sandbox` is None if another container's is shared.
    `warnings` are for the user, one line each."""

    container: Container
    sandbox: Sandbox | None
    endpoints: tuple[Endpoint, ...] = ()
    networks: tuple[Network, ...] = ()
    warnings: tuple[str, ...] = ()


class ExitPlan(NamedTuple):
    """`container` as it is to be recorded ("exited"), or "removing" if it is to be forgotten. The sandbox and
    its endpoints (all "removing") go when nobody uses them any more."""

    container: Container
    sandbox: Sandbox | None = None
    endpoints: tuple[Endpoint, ...] = ()


class _Asked(NamedTuple):
    """The parts of a RunRequest that had to be parsed."""

    published: tuple[PortMapping, ...]
    exposed: tuple[tuple[int, str], ...]


def plan_run(
    request: RunRequest,
    state: State,
    facts: HostFacts,
    config: DaemonConfig,
    fresh: Fresh,
    ports: PortContext,
    before: Container | None = None,
) -> RunPlan:
    """Everything that `run` is going to make. `before`: the container as it was when it ended, if it is started again;
    it takes its addresses if they are free. ConfigError, NotFoundError, ExistsError."""
    asked = _Asked(options.published(request), options.exposed(request))
    base = _base(request, asked, state, config, fresh)
    wanted = request.networks or (EndpointRequest("default"),)
    names = [endpoint.network for endpoint in wanted]
    special = [n for n in names if n.startswith("container:") or _predefined(n, state) is not None]
    if len(wanted) > 1 and special and before is None:  # later it may have been connected to others
        raise ConfigError(
            "conflicting options: cannot attach both user-defined and non-user-defined network-modes"
        )
    if names[0].startswith("container:"):
        return _share(request, base, wanted[0], state)
    network = state.network(names[0])
    like = traits(network)
    if like.host_stack:
        return _host(request, base, wanted[0], state)
    if not like.endpoints and not network.predefined:
        raise ConfigError(spec_of(network).refuses_connect)
    if not like.endpoints:
        return _none(request, base, wanted[0])
    return _bridged(
        request, base, wanted, state, facts, config, fresh, ports, before.addresses if before else ()
    )


def _predefined(name: str, state: State) -> Network | None:
    network = state.network(name)
    return network if network.predefined else None


def _base(request: RunRequest, asked: _Asked, state: State, config: DaemonConfig, fresh: Fresh) -> Container:
    """The container with all that does not depend on its networks."""
    if not request.argv or not request.argv[0]:
        raise ConfigError("no command is given: say what the container is to run")
    if any("\0" in word for word in request.argv):
        raise ConfigError("the command contains a zero byte")
    if request.name:
        check_name("container", request.name)
        holder = state.find_container(request.name)
        if holder is not None:
            raise ExistsError(
                f'Conflict. The container name "/{request.name}" is already in use by container '
                f'"{holder.id}". You have to remove (or rename) that container to be able to reuse that name.'
            )
    if request.rootfs and (not request.rootfs.startswith("/") or "\0" in request.rootfs):
        raise ConfigError(f"invalid rootfs {quoted(request.rootfs)}: it must be an absolute path")
    ident = fresh.new_id()
    return Container(
        id=ident,
        name=request.name or options.generated_name(ident, state),
        created=fresh.now,
        argv=request.argv,
        env=options.environment(request.env),
        hostname=check_hostname(request.hostname, "hostname") if request.hostname else "",
        domainname=check_hostname(request.domainname, "domainname") if request.domainname else "",
        sandbox_id=ident,
        exposed=asked.exposed,
        published=asked.published,
        publish_all=request.publish_all,
        extra_hosts=tuple(options.extra_host(text) for text in request.add_host),
        dns=tuple(options.dns_server(text) for text in request.dns) or config.dns,
        dns_search=options.dns_search(request.dns_search or config.dns_search),
        dns_options=tuple(options.checked_word(text, "dns option") for text in request.dns_option)
        or config.dns_opts,
        labels=parse_labels(request.labels),
        sysctls=endpoint_options.sysctls(request.sysctls),
        rootfs=request.rootfs,
        user=options.user(request.user),
        workdir=options.workdir(request.workdir),
        auto_remove=request.auto_remove,
        tty=request.tty,
        open_stdin=request.interactive,
        stop_signal=options.stop_signal(request.stop_signal),
        log_opts={
            **config.log_opts,
            **log_options(parse_pair(text, "log option") for text in request.log_opts),
        },
    )


# ---- parts of the request ---------------------------------------------------------------------------


# ---- the four modes ------------------------------------------------------------------------------------


def _conflict(text: str) -> ConfigError:
    return ConfigError(f"conflicting options: {text}")


def _no_endpoint_settings(asked: EndpointRequest, request: RunRequest, mode: str) -> None:
    """Refuse addresses and names of an endpoint where there is no endpoint."""
    if asked.ip or asked.ip6:
        raise _conflict(
            f"a user specified IP address and the {mode} network mode "
            "(user specified IP address is supported on user defined networks only)"
        )
    if asked.mac:
        raise _conflict("mac-address and the network mode")
    if asked.link_local_ips:
        raise _conflict(f"link-local IP addresses and the {mode} network mode")
    if asked.aliases:
        raise ConfigError("network-scoped alias is supported only for containers in user defined networks")
    if asked.driver_options:
        raise _conflict(f"driver options of an endpoint and the {mode} network mode")
    if request.services:
        raise _conflict(f"a service and the {mode} network mode")


def _share(request: RunRequest, base: Container, asked: EndpointRequest, state: State) -> RunPlan:
    name = asked.network.removeprefix("container:")
    if not name:
        raise ConfigError("invalid container format container:<name|id>")
    if request.hostname:
        raise _conflict("hostname and the network mode")
    if request.domainname:
        raise _conflict("domainname and the network mode")
    if request.links or asked.links:
        raise _conflict(
            "container type network can't be used with links. This would result in undefined behavior"
        )
    if request.dns or request.dns_search or request.dns_option:
        raise _conflict("dns and the network mode")
    if request.add_host:
        raise _conflict("custom host-to-IP mapping and the network mode")
    if request.publish or request.publish_all:
        raise _conflict("port publishing and the container type network mode")
    if request.expose:
        raise _conflict("port exposing and the container type network mode")
    if request.sysctls:
        raise _conflict(
            "sysctl and the container type network mode: they are those of the container that is joined"
        )
    _no_endpoint_settings(asked, request, "container type")
    other = state.container(name)
    if not other.running:
        raise ConfigError(f"cannot join network of a non running container: {other.name} ({other.short_id})")
    container = replace(
        base,
        network_mode=f"container:{other.id}",
        sandbox_id=other.sandbox_id,
        hostname=other.hostname,
        domainname=other.domainname,
        dns=(),
        dns_search=(),
        dns_options=(),
    )
    refuse_shared_ports(container, state.endpoints_of_sandbox(other.sandbox_id), state)
    return RunPlan(container, None)


def _host(request: RunRequest, base: Container, asked: EndpointRequest, state: State) -> RunPlan:
    if request.links or asked.links:
        raise _conflict(
            "host type networking can't be used with links. This would result in undefined behavior"
        )
    _no_endpoint_settings(asked, request, "host")
    for name in base.sysctls:
        raise ConfigError(f"sysctl {quoted(name)} not allowed in host network namespace")
    container = replace(
        base,
        network_mode="host",
        networks=(EndpointRequest(state.network("host").id),),
        extra_hosts=_resolved_hosts(base.extra_hosts, "127.0.0.1"),
    )
    return RunPlan(container, Sandbox(base.id, "host"), warnings=_discarded(request, "host"))


def _none(request: RunRequest, base: Container, asked: EndpointRequest) -> RunPlan:
    if request.links or asked.links:
        raise _conflict("links and the none network mode")
    _no_endpoint_settings(asked, request, "none")
    endpoint_options.with_device_sysctls((), base.sysctls)
    container = replace(
        base,
        network_mode="none",
        hostname=base.hostname or base.short_id,
        extra_hosts=_resolved_hosts(base.extra_hosts, ""),
    )
    return RunPlan(container, Sandbox(base.id), warnings=_discarded(request, "none"))


def _discarded(request: RunRequest, mode: str) -> tuple[str, ...]:
    """Docker takes -p with these modes, and says this."""
    if request.publish or request.publish_all:
        return (f"Published ports are discarded when using {mode} network mode",)
    return ()


def _bridged(
    request: RunRequest,
    base: Container,
    wanted: Sequence[EndpointRequest],
    state: State,
    facts: HostFacts,
    config: DaemonConfig,
    fresh: Fresh,
    ports: PortContext,
    prefer: Sequence[str],
) -> RunPlan:
    networks: list[Network] = []
    endpoints: list[Endpoint] = []
    wanted, sysctls = endpoint_options.with_device_sysctls(wanted, base.sysctls)
    legacy = state.network(wanted[0].network).predefined
    links = parse_links(request.links, state, must_run=legacy)
    for asked in wanted:
        network = ready_network(state.network(asked.network), state, facts, config)
        if network.id in [known.id for known in networks]:
            raise ConfigError(f"network {quoted(network.name)} is specified multiple times")
        if network.predefined and (asked.ip or asked.ip6):
            raise ConfigError("user specified IP address is supported on user defined networks only")
        state = state.including(network)
        endpoint = plan_endpoint(asked, network, base.id, base.name, state, fresh, prefer)
        networks.append(network)
        endpoints.append(replace(endpoint, exposed=base.exposed))
        state = state.including(endpoints[-1])
    for link in links:
        _check_link(link.server, networks[0], state)
    routed = assign_gateways(endpoints, (), state)
    egress = egress_endpoints(routed)
    warnings: tuple[str, ...] = ()
    chosen: tuple[PortMapping, ...] = ()
    asked_ports = _asked_ports(base)
    if asked_ports and not egress:
        warnings = ("Published ports are discarded: no network of the container leads outside",)
    elif asked_ports and not traits(state.networks[egress[0].network_id]).published:
        where = state.networks[egress[0].network_id].name
        warnings = (f"Published ports are discarded: on network {where} it is reached at its own address",)
    elif asked_ports:
        chosen = choose_ports(asked_ports, egress, state, ports, base.name)
    host = [s.gateway for s in networks[0].subnets if s.gateway and not traits(networks[0]).lan]
    gateway = next(iter(host), None)
    container = replace(
        base,
        sysctls=sysctls,
        network_mode="bridge" if legacy else networks[0].name,
        networks=tuple(replace(a, network=n.id) for a, n in zip(wanted, networks, strict=True)),
        hostname=base.hostname or base.short_id,
        links=links,
        ports=chosen,
        services=plan_memberships(request.services, [n.id for n in networks], state),
        extra_hosts=_resolved_hosts(base.extra_hosts, str(gateway or "")),
    )
    final = assign_gateways(endpoints, chosen, state)
    refuse_shared_ports(container, final, state)
    return RunPlan(container, Sandbox(base.id), final, tuple(networks), warnings)


def _asked_ports(container: Container) -> list[PortMapping]:
    """-p, and for -P every exposed port that no -p mentions."""
    ports = list(container.published)
    if container.publish_all:
        named = {(port, proto) for m in ports for _, _, port, proto in m.expand()}
        rest = [pair for pair in container.exposed if pair not in named]
        ports += [PortMapping(proto, None, 0, port) for port, proto in rest]
    return ports


def _check_link(server_id: str, network: Network, state: State) -> None:
    server = state.containers[server_id]
    if state.endpoint(server.sandbox_id, network.id) is None:
        where = "the default network" if network.predefined else f"network {network.name}"
        raise ConfigError(f"Cannot link to /{server.name}, as it does not belong to {where}")


def _resolved_hosts(hosts: tuple[tuple[str, str], ...], gateway: str) -> tuple[tuple[str, str], ...]:
    """With the word host-gateway replaced by an address at which the container reaches the host."""
    if not gateway and any(address == "host-gateway" for _, address in hosts):
        raise ConfigError("unable to derive the IP value for host-gateway: there is no way to the host")
    return tuple((name, gateway if address == "host-gateway" else address) for name, address in hosts)


# ---- the end ---------------------------------------------------------------------------------------------


def plan_exited(
    container_id: str, exit_code: int | None, state: State, now: str, error: str = ""
) -> ExitPlan:
    """What to record and to release now that the container's process has ended. The id is a full one."""
    container = state.containers[container_id]
    ended = replace(
        container,
        status=Status.EXITED,
        exit_code=exit_code,
        error=error or container.error,
        finished=now,
        addresses=_addresses(container, state) or container.addresses,
        pid=0,
        shim_pid=0,
    )
    if container.auto_remove or container.phase != Phase.READY:
        ended = replace(ended, phase=Phase.REMOVING)
    return _release(ended, state.including(ended))


def _addresses(container: Container, state: State) -> tuple[str, ...]:
    """Those of its endpoints; none if the stack is another container's."""
    found = () if container.shares else state.endpoints_of_sandbox(container.sandbox_id)
    return tuple(str(a.ip) for endpoint in found for a in (endpoint.ipv4, endpoint.ipv6) if a)


def plan_remove(name: str, state: State, force: bool = False) -> ExitPlan:
    """`rm`: the container and what only it used. NotFoundError; InUseError if it runs and not `force` (with
    `force` its process has to be ended before anything else)."""
    container = state.container(name)
    if container.running and not force:
        raise InUseError(
            f'cannot remove container "{container.name}": container is running: '
            "stop the container before removing or force remove"
        )
    status = Status.EXITED if container.running else container.status
    gone = replace(container, phase=Phase.REMOVING, status=status)
    return _release(gone, state.including(gone))


def _release(container: Container, state: State) -> ExitPlan:
    sandbox = state.sandboxes.get(container.sandbox_id)
    if sandbox is None or state.alive(container.sandbox_id):
        return ExitPlan(container)
    return ExitPlan(
        container,
        replace(sandbox, phase=Phase.REMOVING),
        tuple(replace(e, phase=Phase.REMOVING) for e in state.endpoints_of_sandbox(sandbox.id)),
    )
