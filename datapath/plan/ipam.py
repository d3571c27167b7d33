# SPDX-License-Identifier: Apache-2.0
"""Address management: pools, subnets, addresses, MACs. Pure; the rules are Docker's default IPAM driver's."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network

from datapath.errors import ConfigError, quoted
from datapath.model.digests import sha256
from datapath.model.networks import Subnet, mac_for
from datapath.model.parsing import Address, Prefix, parse_address, parse_prefix
from datapath.model.pools import Pool

# Prefixes in which no network of containers can be: "this host", loopback, multicast, broadcast; for
# IPv6 also mapped IPv4 (the datapath's spelling of an IPv4 address) and link-local.
_UNUSABLE = tuple(
    ip_network(text)
    for text in (
        *("0.0.0.0/8", "127.0.0.0/8", "224.0.0.0/4", "255.255.255.255/32"),
        *("::/127", "::ffff:0:0/96", "fe80::/10", "ff00::/8"),
    )
)


def overlapping(prefix: Prefix, others: Iterable[Prefix]) -> Prefix | None:
    """The first of the others that has addresses in common with the prefix. A default route is no obstacle,
    nor is one that was written as two halves (0.0.0.0/1 and 128.0.0.0/1, as VPN clients do)."""
    for other in others:
        if other.version == prefix.version and other.prefixlen > 1 and _overlap(prefix, other):
            return other
    return None


def _overlap(one: Prefix, two: Prefix) -> bool:
    length = min(one.prefixlen, two.prefixlen)
    shift = one.max_prefixlen - length
    return int(one.network_address) >> shift == int(two.network_address) >> shift


def choose_pool(pools: Sequence[Pool], taken: Iterable[Prefix], version: int = 4) -> Prefix:
    """The first network of that IP version that overlaps nothing taken; ConfigError if there is none."""
    busy = [prefix for prefix in taken if prefix.version == version]
    for pool in sorted((p for p in pools if p.base.version == version), key=lambda p: (p.spare, p.base)):
        step = 1 << (pool.base.max_prefixlen - pool.size)
        at, end = int(pool.base.network_address), int(pool.base.broadcast_address)
        while at <= end:
            candidate = _network(at, pool.size, version)
            obstacle = overlapping(candidate, busy)
            if obstacle is None:
                return candidate
            at = max(at, int(obstacle.broadcast_address) // step * step) + step
    raise ConfigError(
        f"could not find an available, non-overlapping IPv{version} address pool among the defaults "
        "to assign to the network: choose one with --subnet, or set default-address-pools"
    )


def _network(first: int, length: int, version: int) -> Prefix:
    return ip_network((first.to_bytes(4 if version == 4 else 16, "big"), length))


# ---- subnets ------------------------------------------------------------------------------------


def reserved(prefix: Prefix) -> frozenset[Address]:
    """Addresses that no device may have: the network's own (for IPv6 the subnet routers' anycast address), for IPv4
    the broadcast too; neither in a /31 (RFC 3021) or a /127 (RFC 6164)."""
    if prefix.version == 6:
        return frozenset({prefix.network_address} if prefix.prefixlen < 127 else ())
    if prefix.prefixlen >= 31:
        return frozenset()
    return frozenset({prefix.network_address, prefix.broadcast_address})


def unavailable(subnet: Subnet) -> set[Address]:
    """Addresses of the subnet that no endpoint may have."""
    gateway = set() if subnet.gateway is None else {subnet.gateway}
    return gateway | set(subnet.aux.values()) | set(reserved(subnet.prefix))


def _candidates(area: Prefix) -> Iterator[Address]:
    first, last = int(area.network_address), int(area.broadcast_address)
    make: type[IPv4Address] | type[IPv6Address] = IPv4Address if area.version == 4 else IPv6Address
    for number in range(first, last + 1):
        yield make(number)


def choose_address(subnet: Subnet, used: Collection[Address], prefer: Collection[str] = ()) -> Address:
    """The lowest free address, from the ip range if there is one; of the preferred ones the first that is free.
    ConfigError if there is none left."""
    area = subnet.ip_range or subnet.prefix
    blocked = unavailable(subnet)
    for address in map(ip_address, prefer):
        if address in area and address not in used and address not in blocked:
            return address
    for address in _candidates(area):
        if address not in used and address not in blocked:
            return address
    raise ConfigError(f"no available IP addresses in {area}: remove a container or choose a larger subnet")


def choose_last(subnet: Subnet, used: Collection[Address]) -> Address:
    """The highest free address: where somebody else gives out the others, from the lowest on. ConfigError if there is
    none."""
    blocked, first, last = unavailable(subnet), subnet.prefix.network_address, subnet.prefix.broadcast_address
    for back in range(min(int(last) - int(first), len(used) + len(blocked) + 1) + 1):
        if (address := last - back) not in used and address not in blocked:
            return address
    raise ConfigError(f"no available IP addresses in {subnet.prefix}: remove a container")


def with_gateway(subnet: Subnet) -> Subnet:
    """The subnet with its default gateway, the first address that can be one, unless it has a gateway."""
    return subnet if subnet.gateway is not None else replace(subnet, gateway=choose_address(subnet, ()))


def without_hosts(subnet: Subnet, addresses: Iterable[Address]) -> Subnet:
    """The subnet with those of the host's own addresses that lie in it as auxiliary ones, which no member gets."""
    known = {subnet.gateway, *subnet.aux.values()}
    found = [
        a for a in addresses if a.version == subnet.prefix.version and a in subnet.prefix and a not in known
    ]
    names = ("host" if i == 0 else f"host-{i + 1}" for i in range(len(found)))
    return replace(subnet, aux={**subnet.aux, **dict(zip(names, sorted(found), strict=True))})


def check_static(subnet: Subnet, address: Address) -> None:
    """ConfigError if an endpoint of the subnet may never have that address."""
    if address not in subnet.prefix:
        raise ConfigError(f"no configured subnet or ip-range contain the IP address {address}")
    if address == subnet.gateway:
        raise ConfigError(f"Address already in use: {address} is the network's gateway")
    for name, aux in subnet.aux.items():
        if address == aux:
            raise ConfigError(f"Address already in use: {address} is the auxiliary address {quoted(name)}")
    if address in reserved(subnet.prefix):
        kind = "network" if address == subnet.prefix.network_address else "broadcast"
        raise ConfigError(f"Address already in use: {address} is the {kind} address of {subnet.prefix}")


def parse_subnets(
    subnets: Sequence[str],
    ip_ranges: Sequence[str] = (),
    gateways: Sequence[str] = (),
    aux_addresses: Sequence[str] = (),
    complete: bool = True,
) -> tuple[Subnet, ...]:
    """What `network create` says about addresses, each part given to the subnet that contains it. Without `complete` a
    subnet has no gateway that was not named."""
    if not subnets and (ip_ranges or gateways or aux_addresses):
        raise ConfigError("every ip-range or gateway must have a corresponding subnet: add --subnet")
    found: list[Subnet] = []
    for text in subnets:
        prefix = _parse_subnet(text)
        if overlapping(prefix, (s.prefix for s in found)):
            listed = ", ".join(subnets)
            raise ConfigError(f"multiple overlapping subnet configuration is not supported: {listed}")
        found.append(Subnet(prefix, configured=True))
    for text in ip_ranges:
        _add_range(found, parse_prefix(text, "ip-range"))
    for text in gateways:
        _add_gateway(found, parse_address(text, "gateway"))
    for text in aux_addresses:
        _add_aux(found, text)
    for subnet in found:
        if subnet.gateway is not None and subnet.gateway in subnet.aux.values():
            raise ConfigError(f"Address already in use: {subnet.gateway} is gateway and auxiliary address")
    return tuple(with_gateway(subnet) if complete else subnet for subnet in found)


def _parse_subnet(text: str) -> Prefix:
    prefix = parse_prefix(text, "subnet")
    unusable = overlapping(prefix, _UNUSABLE)
    if unusable is not None:
        raise ConfigError(f"invalid subnet {prefix}: no container can have an address of {unusable}")
    if prefix.prefixlen > (31 if prefix.version == 4 else 127):
        raise ConfigError(f"invalid subnet {prefix}: it has no room for a gateway and a container")
    return prefix


def _index_around(found: list[Subnet], area: Prefix | Address, what: str) -> int:
    """Which of the subnets contains the area."""
    first = area if isinstance(area, (IPv4Address, IPv6Address)) else area.network_address
    for index, subnet in enumerate(found):
        if first in subnet.prefix:
            return index
    known = ", ".join(str(subnet.prefix) for subnet in found)
    raise ConfigError(f"no matching subnet for {what} {area}: it is not in {known}")


def _add_range(found: list[Subnet], area: Prefix) -> None:
    parent = overlapping(area, (s.prefix for s in found))
    if parent is not None and parent.prefixlen > area.prefixlen:
        raise ConfigError(f"invalid ip-range {area}: CIDR block is bigger than its parent subnet {parent}")
    index = _index_around(found, area, "range")
    if found[index].ip_range is not None:
        raise ConfigError(
            f"cannot configure multiple ranges ({found[index].ip_range}, {area}) "
            f"on the same subnet ({found[index].prefix})"
        )
    found[index] = replace(found[index], ip_range=area)


def _add_gateway(found: list[Subnet], gateway: Address) -> None:
    index = _index_around(found, gateway, "gateway")
    subnet = found[index]
    if subnet.gateway is not None:
        raise ConfigError(
            f"cannot configure multiple gateways ({subnet.gateway}, {gateway}) "
            f"for the same subnet ({subnet.prefix})"
        )
    if gateway in reserved(subnet.prefix):
        kind = "network" if gateway == subnet.prefix.network_address else "broadcast"
        raise ConfigError(f"invalid gateway {gateway}: it is the {kind} address of {subnet.prefix}")
    found[index] = replace(subnet, gateway=gateway)


def _add_aux(found: list[Subnet], text: str) -> None:
    name, equals, value = text.partition("=")
    if not name or not equals or not name.isprintable():
        raise ConfigError(f"invalid aux-address {quoted(text)}: expected name=address")
    if name in ("DefaultGatewayIPv4", "DefaultGatewayIPv6"):
        raise ConfigError(f"aux-address {name} is not available: containers' packets leave through --gateway")
    address = parse_address(value, f"auxiliary address {quoted(name)}")
    index = _index_around(found, address, "aux-address")
    subnet = found[index]
    if any(name in s.aux for s in found):
        raise ConfigError(f"aux-address {quoted(name)} is given twice")
    if address in subnet.aux.values() or address in reserved(subnet.prefix):
        raise ConfigError(f"invalid auxiliary address {quoted(name)}: address already in use: {address}")
    found[index] = replace(subnet, aux={**subnet.aux, name: address})


# ---- MAC addresses -------------------------------------------------------------------------------


def choose_mac(address: Address, used: Collection[str]) -> str:
    """`mac_for` the address; should somebody in the network have it, others are tried in a fixed order."""
    mac, salt = mac_for(address), 0
    while mac in used:
        salt += 1
        digest = sha256(address.packed + salt.to_bytes(4, "big"))
        mac = mac_for(ip_address(digest[:4]))
    return mac
