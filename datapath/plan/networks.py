# SPDX-License-Identifier: Apache-2.0
"""Networks: what may be created, with which number, device, subnets and options, and what may be removed."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta

from datapath.config.daemon import DaemonConfig
from datapath.errors import ConfigError, DatapathError, ExistsError, InUseError, meant, quoted
from datapath.model import drivers
from datapath.model.drivers import OptionParser
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
)
from datapath.model.observed import HostFacts
from datapath.model.parsing import Prefix, parse_pair
from datapath.model.rows import OWNER, Phase, short
from datapath.model.state import PREDEFINED, Fresh, State
from datapath.plan import ipam

MAX_NETWORKS = 4095
MAX_NAME = 128

_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]*")
_IDENT = re.compile(r"[0-9a-f]{64}")
_LATER_DRIVERS = {"remote"}


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
    _check_driver(request)
    defaults = config.default_network_opts.get(request.driver, {})
    options = parse_options(request.driver, request.options, defaults)
    labels = parse_labels(request.labels)
    spec = drivers.chosen(request.driver, options)
    subnets = _subnets(request, state, facts._replace(prefixes=()) if spec.traits.lan else facts, config)
    if spec.traits.lan:
        subnets = tuple(ipam.without_hosts(subnet, facts.addresses) for subnet in subnets)
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
    return Network(
        id=ident,
        name=request.name,
        number=_number(state),
        driver=request.driver,
        scope=spec.scope,
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
    )


def plan_adoption(found: Network, state: State, facts: HostFacts) -> Network:
    """A network of the cluster as this host is to build it. ExistsError, ConfigError: something here is in its way."""
    if state.find_network(found.name) is not None:
        raise ExistsError(f"network with name {found.name} already exists on this host, which is another one")
    others = list(state.networks.values())
    for subnet in found.subnets:
        _refuse_overlap(subnet.prefix, others, facts)
    device = drivers.spec_of(found).device(found.id, found.options, others, facts.devices)
    if device in facts.devices:
        raise ExistsError(f"device name {device} is already used on this host: rename that device")
    return replace(found, number=_number(state), device=device, phase=Phase.CREATING, built=False)


def scope_of(request: NetworkRequest) -> str:
    """How far the network that is asked for is to reach, as its driver says; "": nothing offers that driver."""
    found = drivers.named(request.driver)
    return found[0].scope if found else ""


def _check_driver(request: NetworkRequest) -> None:
    there = ", ".join(drivers.creatable()) + "; host and null are made once"
    found = drivers.named(request.driver)
    if found and not found[0].traits.create:
        raise ConfigError(f'only one instance of "{request.driver}" network is allowed')
    if not found and {request.driver} <= _LATER_DRIVERS:
        raise ConfigError(f"network driver {request.driver} is not available yet: there is {there}")
    if not found:
        raise ConfigError(f"network driver {quoted(request.driver)} does not exist: there is {there}")
    if request.ipam_driver not in ("default", ""):
        raise ConfigError(f"IPAM driver {quoted(request.ipam_driver)} does not exist: there is default")
    for text in request.ipam_options:
        name = parse_pair(text, "IPAM option")[0]
        raise ConfigError(f"option {quoted(name)} of IPAM driver default is unknown")
    if request.scope not in ("", found[0].scope):
        scope = found[0].scope
        raise ConfigError(
            f"scope {quoted(request.scope)} is not available: {request.driver} networks are {scope}"
        )


def _number(state: State) -> int:
    used = {network.number for network in state.networks.values()}
    number = next((n for n in range(1, MAX_NETWORKS + 1) if n not in used), None)
    if number is None:
        raise ConfigError(f"there are {MAX_NETWORKS} networks already, more are not possible: remove one")
    return number


def _subnets(
    request: NetworkRequest, state: State, facts: HostFacts, config: DaemonConfig
) -> tuple[Subnet, ...]:
    """The subnets asked for and, for each family that has none, the next free pool; IPv4 first."""
    if not request.ipv4 and not request.ipv6:
        raise ConfigError("IPv4 or IPv6 must be enabled: a network needs addresses")
    given = ipam.parse_subnets(request.subnets, request.ip_ranges, request.gateways, request.aux_addresses)
    # Another owner cannot choose otherwise, as the default network can that is not built.
    others = _others(state, facts, config) if request.owner == OWNER else list(state.networks.values())
    taken = [*_prefixes(others), *facts.prefixes]
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
            _refuse_overlap(subnet.prefix, others, facts)
            result.append(subnet)
        if enabled and not mine and scope_of(request) != drivers.Scope.GLOBAL:  # else the cluster chooses
            prefix = ipam.choose_pool(config.pools(state.installation_id), taken, version)
            result.append(ipam.with_gateway(Subnet(prefix)))
    return tuple(result)


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


def plan_network_prune(state: State, filters: Sequence[str], now: str) -> tuple[Network, ...]:
    """Every unused network that passes the filters (`label=`, `label!=`, `until=`), "removing"."""
    conditions = [_condition(text, now) for text in filters]
    return tuple(
        replace(network, phase=Phase.REMOVING)
        for network in state.networks.values()
        if not network.predefined
        and network.owner == OWNER
        and not state.endpoints_of_network(network.id)
        and all(condition(network) for condition in conditions)
    )


def _condition(text: str, now: str) -> Callable[[Network], bool]:
    key, equals, value = text.partition("=")
    if key == "until" and value:
        limit = parse_moment(value, now, "filter until")
        return lambda network: _time(network.created) < limit
    if key in ("label", "label!") and value:
        name, has_value, wanted = value.partition("=")

        def labelled(network: Network) -> bool:
            return name in network.labels and (not has_value or network.labels[name] == wanted)

        return labelled if key == "label" else lambda network: not labelled(network)
    if not equals:
        raise ConfigError(f"bad format of filter {quoted(text)}: expected name=value")
    raise ConfigError(f"invalid filter {quoted(text)}: there are label=, label!= and until=")


_UNITS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_PART = re.compile(r"([0-9]+(?:\.[0-9]*)?)(ns|us|µs|ms|s|m|h)")


def parse_moment(text: str, now: str, what: str) -> datetime:
    """A moment: a duration before now (`24h`, `1h30m`), a time (RFC 3339), or seconds since 1970."""
    try:
        if re.fullmatch(r"[0-9]{1,12}(\.[0-9]+)?", text):
            return datetime.fromtimestamp(float(text), UTC)
        if re.fullmatch(f"({_PART.pattern})+", text):
            seconds = sum(float(number) * _UNITS[unit] for number, unit in _PART.findall(text))
            return _time(now) - timedelta(seconds=seconds)
        return _time(text)
    except (ValueError, OverflowError):
        raise ConfigError(f"invalid {what}={quoted(text)}: expected a duration or a time") from None


def _time(text: str) -> datetime:
    moment = datetime.fromisoformat(re.sub(r"(\.[0-9]{6})[0-9]+", r"\1", text))
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)
