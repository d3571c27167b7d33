# SPDX-License-Identifier: Apache-2.0
"""Networks: what may be created, with which number, device, subnets and options, and what may be removed."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace

from datapath.config.daemon import DaemonConfig
from datapath.errors import ConfigError, DatapathError, ExistsError, InUseError, meant, quoted
from datapath.model import drivers
from datapath.model.drivers import OptionParser, Spec
from datapath.model.networks import (
    OPT_DEFAULT_BRIDGE,
    OPT_HOST_BINDING,
    OPT_ICC,
    OPT_MASQUERADE,
    OPT_MTU,
    OPT_NAME,
    Network,
    NetworkRequest,
    Subnet,
    is_announced,
)
from datapath.model.observed import HostFacts
from datapath.model.parsing import Prefix, parse_pair
from datapath.model.plugins import DEFAULT_IPAM, Capability, Plugins, network_flags
from datapath.model.rows import OWNER, Phase, short
from datapath.model.state import PREDEFINED, Fresh, State
from datapath.plan import ipam, plugins

MAX_NETWORKS = 4095
MAX_NAME = 128

_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]*")
_IDENT = re.compile(r"[0-9a-f]{64}")


def refuse_foreign(owner: str, what: str, by: str, force: bool) -> None:
    """Refuses to take away what belongs to another owner than `by`, unless `force`. InUseError."""
    if owner != by and not force:
        raise InUseError(f"{what} belongs to {owner}: take it away there, or use --force")


def check_name(kind: str, name: str) -> None:
    """Refuse what cannot be the name of a network or container (`kind`). ConfigError."""
    if not _NAME.fullmatch(name):
        raise ConfigError(f"Invalid {kind} name ({quoted(name)}), only [a-zA-Z0-9][a-zA-Z0-9_.-] are allowed")
    if len(name) > MAX_NAME:
        problem = f"it has {len(name)} characters, {MAX_NAME} are allowed"
        raise ConfigError(f"Invalid {kind} name ({quoted(name)}): {problem}")


# ---- driver options ----------------------------------------------------------------------------


def parse_options(driver: str, given: Sequence[str], defaults: Mapping[str, str]) -> dict[str, str]:
    """-o of `network create` over default-network-opts (`defaults`). ConfigError names what is unknown."""
    known: dict[str, OptionParser] = {}
    for spec in drivers.named(driver):
        known |= spec.options
    wanted = {**defaults, **dict(parse_pair(text, "driver option") for text in given)}
    for name in wanted:
        if name not in known:
            later = name.startswith("com.docker.network.")
            what = "is not available yet" if later else "is unknown"
            raise ConfigError(f"option {quoted(name)} of driver {driver} {what}: {_instead(name, known)}")
    return {name: known[name](name, value) for name, value in wanted.items()}


def _instead(name: str, known: Collection[str]) -> str:
    """What there is instead of an option: the one that may have been meant, or all of them, on a line that can be
    read: names with the same beginning are written as a shell would take them."""
    ends = {one.rpartition(".")[2]: one for one in known}
    if found := meant(name.rpartition(".")[2], ends):
        return f"did you mean {ends[found]}?"
    families: dict[str, list[str]] = {}
    for one in known:
        family, dot, last = one.rpartition(".")
        families.setdefault(family + dot, []).append(last)
    written = (
        f"{family}{names[0] if len(names) == 1 else '{' + ','.join(names) + '}'}"
        if family
        else ", ".join(names)
        for family, names in families.items()
    )
    return f"there are {', '.join(written)}" if known else "there are none"


def parse_labels(given: Iterable[str]) -> dict[str, str]:
    """--label key=value or key."""
    return dict(parse_pair(text, "label") for text in given)


# ---- creation --------------------------------------------------------------------------------------


def plan_default_bridge(state: State, facts: HostFacts, config: DaemonConfig) -> Network:
    """The network `bridge` as the configuration wants it, with a pool that is free on this host.

    Once it is built its addresses and device stay; icc, masquerading, host binding and MTU may change. The MTU
    does not while the host has no default route that would say what it is.
    """
    network = state.network("bridge")
    options = {
        OPT_DEFAULT_BRIDGE: "true",
        OPT_ICC: "true" if config.icc else "false",
        OPT_MASQUERADE: "true" if config.ip_masq else "false",
        OPT_HOST_BINDING: str(config.ip or "0.0.0.0"),
        OPT_NAME: network.device,
        OPT_MTU: str(config.mtu or facts.default_mtu),
    }
    if network.built:
        if not config.mtu and not facts.default_route:
            options[OPT_MTU] = network.options.get(OPT_MTU, options[OPT_MTU])
        return replace(network, options=options)
    if network.device in facts.devices:
        raise ExistsError(f"device {network.device} of the default network exists already: remove it")
    others = [n for n in state.networks.values() if n.id != network.id]
    taken = [*_prefixes(others), *facts.prefixes]
    subnets = []
    for version in (4, 6) if config.ipv6 else (4,):
        subnet = _configured_subnet(config, version)
        if subnet is None:
            pools = config.pools(state.installation_id)
            subnet = Subnet(ipam.choose_pool(pools, taken, version))
        else:
            _refuse_overlap(subnet.prefix, others, facts)
        subnets.append(ipam.with_gateway(subnet))
    return replace(network, subnets=tuple(subnets), options=options, ipv6=config.ipv6, phase=Phase.CREATING)


def _configured_subnet(config: DaemonConfig, version: int) -> Subnet | None:
    """What bip and fixed-cidr say; a fixed-cidr alone is the whole subnet."""
    bip = config.bip if version == 4 else config.bip6
    fixed = config.fixed_cidr if version == 4 else config.fixed_cidr_v6
    if bip is not None:
        return Subnet(bip.network, bip.ip, fixed, configured=True)
    return None if fixed is None else Subnet(fixed, configured=True)


def plan_network_create(
    request: NetworkRequest, state: State, facts: HostFacts, config: DaemonConfig, fresh: Fresh
) -> Network:
    """The network to build. ConfigError, ExistsError."""
    check_name("network", request.name)
    if request.name in (*PREDEFINED, "default"):
        raise ExistsError(f"operation is not permitted on predefined {request.name} network")
    if state.find_network(request.name) is not None:
        raise ExistsError(f"network with name {request.name} already exists")
    capability = _check_driver(request, fresh.plugins)
    defaults = config.default_network_opts.get(request.driver, {})
    options, generic = {}, {}
    if capability is not None:
        generic, spec = plugins.generic_options(request.options, defaults), drivers.of_plugins()
    else:
        options = parse_options(request.driver, request.options, defaults)
        spec = drivers.chosen(request.driver, options)
    labels = parse_labels(request.labels)
    spec.check(request, options)
    if request.ident and not _IDENT.fullmatch(request.ident):
        raise ConfigError(f"invalid network id {quoted(request.ident)}: expected 64 hex digits")
    if request.ident in state.networks:
        raise ExistsError(f"network with id {request.ident} already exists")
    ident = request.ident or fresh.new_id()
    others = list(state.networks.values())
    device = spec.device(ident, options, others, facts.devices)
    owner = next((n.name for n in others if n.device == device), None) if device else None
    if owner is not None or device in facts.devices:
        by = f"by network {owner}" if owner else "on this host"
        raise ExistsError(f"device name {device} is already used {by}: choose another {OPT_NAME}")
    space, subnets = _subnets(request, state, facts, config, spec, capability, fresh.plugins)
    return Network(
        id=ident,
        name=request.name,
        number=_number(state),
        driver=request.driver,
        scope=capability.scope if capability else spec.scope,
        created=fresh.now,
        subnets=subnets,
        ipv4=request.ipv4,
        ipv6=request.ipv6,
        internal=request.internal or spec.is_internal(options),
        attachable=request.attachable,
        labels=labels,
        options=options,
        device=device,
        made=spec.beneath(options, facts.devices),
        owner=request.owner,
        plugin=capability is not None,
        generic=generic,
        ipam_driver=request.ipam_driver or DEFAULT_IPAM,
        ipam_options=dict(parse_pair(text, "IPAM option") for text in request.ipam_options),
        address_space=space,
    )


def plan_adoption(found: Network, state: State, facts: HostFacts) -> Network:
    """A network of the cluster as this host is to build it. ExistsError, ConfigError: something here is in its way."""
    if state.find_network(found.name) is not None:
        raise ExistsError(f"network with name {found.name} already exists on this host, which is another one")
    others = list(state.networks.values())
    for subnet in found.subnets:
        # What routers say of an announced network's blocks is about the network itself.
        known = [p for p in facts.learned if is_announced(found) and ipam.overlapping(p, [subnet.prefix])]
        prefixes = tuple(prefix for prefix in facts.prefixes if prefix not in known)
        _refuse_overlap(subnet.prefix, others, facts._replace(prefixes=prefixes))
    device = drivers.spec_of(found).device(found.id, found.options, others, facts.devices)
    if device in facts.devices:
        raise ExistsError(f"device name {device} is already used on this host: rename that device")
    return replace(found, number=_number(state), device=device, phase=Phase.CREATING, built=False)


def scope_of(request: NetworkRequest) -> str:
    """How far the network that is asked for is to reach, as its driver says; "": nothing of ours offers that driver."""
    found = drivers.named(request.driver)
    return found[0].scope if found else ""


def _check_driver(request: NetworkRequest, known: Plugins) -> Capability | None:
    """What the plugin says that is the driver; None: it is one of ours. ConfigError, PluginError."""
    there = ", ".join(drivers.creatable()) + "; host and null are made once"
    found = drivers.named(request.driver)
    if found and not found[0].traits.create:
        raise ConfigError(f'only one instance of "{request.driver}" network is allowed')
    capability = None if found else plugins.capability(request, there, known)
    plugins.check_ipam(request, capability is not None, scope_of(request) == drivers.Scope.GLOBAL, known)
    scope = capability.scope if capability else found[0].scope
    if request.scope not in ("", scope):
        raise ConfigError(
            f"scope {quoted(request.scope)} is not available: {request.driver} networks are {scope}"
        )
    return capability


def _number(state: State) -> int:
    used = {network.number for network in state.networks.values()}
    number = next((n for n in range(1, MAX_NETWORKS + 1) if n not in used), None)
    if number is None:
        raise ConfigError(f"there are {MAX_NETWORKS} networks already, more are not possible: remove one")
    return number


def _subnets(
    request: NetworkRequest,
    state: State,
    facts: HostFacts,
    config: DaemonConfig,
    spec: Spec,
    capability: Capability | None,
    known: Plugins,
) -> tuple[str, tuple[Subnet, ...]]:
    """The subnets asked for and, for each family that has none, the next free pool; IPv4 first. Before them an IPAM
    plugin's word for where their addresses are unique. ConfigError, PluginError."""
    if not request.ipv4 and not request.ipv6:
        raise ConfigError("IPv4 or IPv6 must be enabled: a network needs addresses")
    if request.unmanaged:
        return "", ()
    skips = {4: False, 6: False}
    if capability is not None and capability.checks_gateway:
        flags = network_flags(request.ipv4, request.ipv6, request.internal)
        skips[4], skips[6] = known.skips_gateway(
            request.driver, plugins.generic_options(request.options, {}), flags
        )
    named = (request.subnets, request.ip_ranges, request.gateways, request.aux_addresses)
    given = ipam.parse_subnets(*named, complete=False)
    # Another owner cannot choose otherwise, as the default network can that is not built.
    others = _others(state, facts, config) if request.owner == OWNER else list(state.networks.values())
    taken = [*_prefixes(others), *facts.prefixes]
    space = (
        known.address_space(request.ipam_driver, capability.scope if capability else "local")
        if request.leased
        else ""
    )
    pools = plugins.Pools(request, space, taken, known)
    result = []
    for version, enabled in ((4, request.ipv4), (6, request.ipv6)):
        mine = [subnet for subnet in given if subnet.prefix.version == version]
        if mine and not enabled:
            raise ConfigError(f"subnet {mine[0].prefix} needs IPv{version}: add --ipv{version}")
        if len(mine) > 1:
            listed = ", ".join(str(subnet.prefix) for subnet in mine)
            raise ConfigError(
                f"driver {request.driver} takes one IPv{version} subnet for each network, not {listed}"
            )
        for subnet in mine:
            # Members of the network of a device of the host's have addresses there, as the host has.
            _refuse_overlap(subnet.prefix, others, facts._replace(prefixes=()) if spec.traits.lan else facts)
        if not enabled or (not mine and scope_of(request) == drivers.Scope.GLOBAL):
            continue  # the cluster chooses
        if request.leased:
            result.append(pools.subnet(next(iter(mine), None), version, skips[version]))
            continue
        subnet = next(iter(mine), None) or Subnet(
            ipam.choose_pool(config.pools(state.installation_id), taken, version)
        )
        if spec.traits.lan and not spec.plugin:
            subnet = ipam.without_hosts(ipam.with_gateway(subnet), facts.addresses)
        result.append(subnet if skips[version] else ipam.with_gateway(subnet))
    return space, tuple(result)


def _others(state: State, facts: HostFacts, config: DaemonConfig) -> list[Network]:
    """All networks; the default one, if it has no addresses yet, with those that it is going to have."""
    networks = list(state.networks.values())
    bridge = state.find_network("bridge")
    if bridge is not None and not bridge.built:
        with suppress(DatapathError):  # if it cannot be built it is in nobody's way
            networks.append(plan_default_bridge(state, facts, config))
    return networks


def _prefixes(networks: Iterable[Network]) -> list[Prefix]:
    return [subnet.prefix for network in networks for subnet in network.subnets]


def _refuse_overlap(prefix: Prefix, networks: Iterable[Network], facts: HostFacts) -> None:
    for network in networks:
        other = ipam.overlapping(prefix, _prefixes([network]))
        if other is not None:
            raise ConfigError(
                f"invalid pool request: Pool overlaps with other one on this address space: "
                f"{prefix} overlaps {other} of network {network.name}"
            )
    other = ipam.overlapping(prefix, facts.prefixes)
    if other is not None:
        raise ConfigError(f"subnet {prefix} overlaps {other}, an address or route of this host")


def superseded_networks(request: NetworkRequest, state: State) -> tuple[Network, ...]:
    """Networks without endpoints, "removing", of an owner who allots subnets himself and now gives theirs to another:
    he has forgotten them. ConfigError."""
    given = ipam.parse_subnets(request.subnets, request.ip_ranges, request.gateways, request.aux_addresses)
    wanted = [subnet.prefix for subnet in given]
    return tuple(
        replace(network, phase=Phase.REMOVING)
        for network in state.networks.values()
        if network.owner == request.owner
        and network.id != request.ident
        and any(ipam.overlapping(prefix, wanted) for prefix in _prefixes([network]))
        and not state.endpoints_of_network(network.id)
        and not state.services_of_network(network.id)
    )


def plan_network_rename(name: str, new: str, state: State, by: str) -> Network:
    """The network under another name, which its owner calls it by. NotFoundError, ConfigError, ExistsError;
    InUseError: it belongs to another owner."""
    network = state.network(name)
    refuse_foreign(network.owner, f"network {network.name}", by, force=False)
    check_name("network", new)
    other = state.find_network(new)
    if other is not None and other.id != network.id:
        raise ExistsError(f"network with name {new} already exists")
    return replace(network, name=new)


# ---- removal ---------------------------------------------------------------------------------------


def plan_network_remove(name: str, state: State, by: str = OWNER, force: bool = False) -> Network:
    """The network, "removing". NotFoundError; ConfigError if predefined; InUseError if it has endpoints, or belongs
    to another owner than `by` and not `force`."""
    network = state.network(name)
    if network.predefined:
        raise ConfigError(f"{network.name} is a pre-defined network and cannot be removed")
    refuse_foreign(network.owner, f"network {network.name}", by, force)
    refuse_services(network, state)
    endpoints = state.endpoints_of_network(network.id)
    if endpoints:
        shown = []
        for endpoint in endpoints[:5]:
            shown.append(f'name:"{state.holder_name(endpoint)}" id:"{short(endpoint.id)}"')
        more = f" and {len(endpoints) - 5} more" if len(endpoints) > 5 else ""
        raise InUseError(
            f"error while removing network: network {network.name} has active endpoints "
            f"({', '.join(shown)}{more})"
        )
    return replace(network, phase=Phase.REMOVING)


def refuse_services(network: Network, state: State) -> None:
    """InUseError: the network cannot go, as it has services."""
    services = state.services_of_network(network.id)
    if services:
        shown = ", ".join(f'name:"{service.name}" id:"{short(service.id)}"' for service in services[:5])
        more = f" and {len(services) - 5} more" if len(services) > 5 else ""
        raise InUseError(f"error while removing network: network {network.name} has services ({shown}{more})")
