# SPDX-License-Identifier: Apache-2.0
"""What is on a random host, its networks, members and published ports: all from one `random.Random`, so that a seed
says everything."""

from __future__ import annotations

import random
from ipaddress import IPv4Address, IPv6Address

from datapath.model.endpoints import linklocal_of
from tests.model.devices import ENCRYPTED, Leg, Plan, uplink_mac
from tests.model.packet import TCP, UDP
from tests.model.plans import PROTECTED, own_addresses, routing
from tests.model.routes import route
from tests.model.services import Service
from tests.model.topology import FAR, Elsewhere, Member, Network, Published, Topology, Uplink
from tests.model.tunnels import Overlay, Peer

OUT4 = [
    IPv4Address(a).packed
    for a in (
        "203.0.113.5",
        "203.0.113.77",
        "198.51.100.200",
        "8.8.8.8",
        "93.184.216.34",
        "240.0.0.9",
        "8.0.7.7",
        "198.19.7.7",
        "198.19.8.8",
    )
]
OUT6 = [
    IPv6Address(a).packed
    for a in (
        "2001:db8:9::5",
        "2001:db8:9::77",
        "2606:4700::1111",
        "2a00:1450::8a",
        "2001:db8:86dd::5",
        "2001:db8:7::7",
    )
]


EVERYWHERE = IPv6Address("fe80::1").packed  # an address of each of the host's devices
LOCAL = [IPv4Address("127.0.0.1").packed, IPv6Address("::1").packed]  # the host, as only it calls itself


def uplink(number: int, leg: Leg) -> Uplink:
    v6 = leg.v6.ip.packed if leg.v6 else b""
    mac = bytes.fromhex(uplink_mac(number).replace(":", "")) if leg.ethernet else bytes(6)
    linklocals = (linklocal_of(uplink_mac(number)).packed, EVERYWHERE) if v6 else ()
    return Uplink(f"up{number}", mac, leg.v4.ip.packed, v6, leg.mtu, leg.ethernet, linklocals)


def topology(rng: random.Random, host: Plan, guarded: bool = False) -> Topology:
    """`guarded`: policies will be in force, which is known here of bridges on this host alone, without services."""
    networks, members = {}, []
    uplinks = [uplink(i, leg) for i, leg in enumerate(host.legs)]
    number = rng.randint(1, 50)
    for lan in host.lans:
        ipv6, ipv4 = rng.random() < 0.75, True
        if ipv6 and rng.random() < 0.12:
            ipv4 = False
        prefix = lan.subnet4.network
        net = Network(
            number=lan.number,
            mac=bytes.fromhex(lan.mac.replace(":", "")),
            icc=rng.random() < 0.65,
            internal=rng.random() < 0.15,
            masquerade=rng.random() < 0.8,
            beside=random.Random(lan.mac).random() < 0.15,
            ipv4=ipv4,
            ipv6=ipv6,
            mtu=lan.mtu,
            broadcast=prefix.broadcast_address.packed if ipv4 else bytes(4),
            gateway4=lan.subnet4.ip.packed if ipv4 else b"",
            gateway6=lan.subnet6.ip.packed if ipv6 else b"",
            linklocal=linklocal_of(lan.mac).packed if ipv6 else b"",
        )
        if not guarded:
            _put_on_link(random.Random(f"{lan.mac} {number}"), net, uplinks[0])
        networks[lan.number] = net
        for i in range(2):
            v6 = (lan.subnet6.network[-2 - i].packed,) if ipv6 else ()
            v4 = (lan.subnet4.network[-2 - i].packed,) if ipv4 else ()
            net.elsewhere.append(Elsewhere(f"f{lan.number}-{i}", f"f{i}.n{lan.number}", (*v4, *v6)))
        for slot in range(lan.members):
            if rng.random() < 0.1:
                continue
            number += 1
            mac = bytes([2, 0x42]) + (lan.subnet4.ip + 1 + slot).packed
            if rng.random() < 0.2:
                mac = b"\x02" + rng.randbytes(5)
            member = Member(net, number, mac, f"m{lan.number}-{slot}")
            routes = 0.9 if lan.number == host.behind[0][1] else 0.6
            member.forwarding = rng.random() < (routes if slot == 0 else 0.1) and not net.lan
            member.resolves = rng.random() < 0.5
            if ipv4:
                member.addr4 = (lan.subnet4.ip + 1 + slot).packed
            if ipv6:
                member.addr6 = (lan.subnet6.ip + 1 + slot).packed
                member.linklocal = linklocal_of(mac.hex(":")).packed
            for address in (member.addr4, member.addr6, member.linklocal):
                if address:
                    net.members[address] = member
            members.append(member)
    ports = _ports(rng, host, members, sorted(own_addresses(host)[0]))
    _disputed(rng, host, members, ports)
    links = _links(rng, members)
    protected = [route(prefix, "out") for prefix in PROTECTED] if rng.random() < 0.6 else []
    other_nat = rng.random() < 0.15
    overlay = _overlay(rng, host, networks, uplinks) if not guarded and rng.random() < 0.7 else None
    for net in networks.values():
        net.flows = not net.lan and (overlay is None or overlay.network is not net) and rng.random() < 0.4
        net.flows = net.flows and not guarded
    if guarded:
        protected, other_nat = [], False
    else:
        _services(random.Random(f"services {number} {host.ports}"), host, networks, overlay, ports)
    return Topology(
        networks=list(networks.values()),
        members=members,
        uplinks=uplinks,
        routing=routing(host, networks, uplinks),
        ports=ports,
        links=links,
        nat_first=host.ports[0],
        nat_last=host.ports[1],
        sockets=frozenset(host.sockets),
        protected=protected,
        other_nat=other_nat,
        behind=host.behind[0][1],
        overlay=overlay,
    )


def _services(
    rng: random.Random,
    host: Plan,
    networks: dict[int, Network],
    overlay: Overlay | None,
    ports: dict[tuple[bytes, int, int], Published],
) -> None:
    """Some of the networks that have no members elsewhere have one, published at one address or all of them."""
    for lan in host.lans:
        net = networks[lan.number]
        members = list({id(m): m for m in net.members.values()}.values())
        if not members or net.lan or rng.random() < 0.4:
            continue
        backends = rng.sample(members, min(len(members), rng.randint(1, 3)))
        for member in backends:
            member.serves = True
        if overlay and overlay.network is net:
            backends += _far(rng, net, overlay)
        algorithm = rng.choice(("maglev", "maglev", "random", "least-conn"))
        service = Service(
            network=net,
            number=9000 + net.number,
            seed=rng.randrange(1 << 32),
            addr4=lan.subnet4.network[-5].packed if net.ipv4 else b"",
            addr6=lan.subnet6.network[-5].packed if net.ipv6 else b"",
            backends=backends,
            slots=[rng.choice(backends) for _ in range(rng.choice((1, 3, 7, 70)))],
            host=Member(net, -1, net.mac, "gateway"),
            down=[one for one in backends if rng.random() < 0.2],
            affinity=rng.random() < 0.3 and algorithm == "maglev",
            algorithm=algorithm,
        )
        for address in (service.addr4, service.addr6):
            if not address:
                continue
            net.services[address] = service
            where = bytes(len(address))
            for proto in (TCP, UDP):
                at = (where, 8084 + net.number % 3, proto)
                if not net.internal and at not in ports and rng.random() < 0.6:
                    ports[at] = Published(backends[0], address, rng.choice((80, 53)), service=service)


def _far(rng: random.Random, net: Network, overlay: Overlay) -> list[Member]:
    """Backends on other hosts; one of them has an address that it has brought there."""
    found = []
    for place, peer in enumerate(overlay.peers):
        for at in (0, 1, 2):
            if rng.random() < 0.5:
                continue
            addresses = {
                len(first): (int.from_bytes(first) + at).to_bytes(len(first)) for first, _ in peer.blocks
            }
            member = Member(net, FAR, peer.mac, f"r{place}-{at}", peer=peer)
            member.addr4, member.addr6 = addresses.get(4, b""), addresses.get(16, b"")
            known = {overlay.host_of(one) for one in addresses.values()}
            member.peer = known.pop() if len(known) == 1 else peer
            if member.peer and not known:
                found.append(member)
    return found


def _overlay(
    rng: random.Random, host: Plan, networks: dict[int, Network], uplinks: list[Uplink]
) -> Overlay | None:
    """One of the networks has members on two other hosts, which are neighbours on the first uplink."""
    lan = rng.choice([one for one in host.lans if not networks[one.number].lan] or host.lans[:1])
    net, six, encrypted = networks[lan.number], rng.random() < 0.4, rng.random() < 0.35
    if net.lan:  # as all are
        return None
    ends = {4: uplinks[0].addr4, 16: uplinks[0].addr6}
    subnets = [lan.subnet4.network] * net.ipv4 + [lan.subnet6.network] * net.ipv6
    peers = []
    for place, number in enumerate((2, 3)):
        leg = host.legs[0].v6 if six else host.legs[0].v4
        assert leg
        blocks = tuple(
            ((subnet.network_address + 8 + 4 * place).packed, subnet.max_prefixlen - 2) for subnet in subnets
        )
        mtu = rng.choice((1500, 1500, 1400))
        address = (leg.network.network_address + 7 + place).packed
        peers.append(Peer(number, address, bytes((2, 0, 0, 0, 1, number)), mtu, blocks))
        peers[-1].keyed, peers[-1].on_link = (place == 0 or rng.random() < 0.6 for _ in range(2))
    made = Overlay(
        network=net,
        vni=4096 + lan.number,
        port=4789,
        mac=b"\2\0\0\0\1\1",
        ends=ends,
        subnets=tuple((subnet.network_address.packed, subnet.prefixlen) for subnet in subnets),
        peers=peers,
        encrypted=Uplink(ENCRYPTED, bytes(6), b"", b"", host.encrypted, False) if encrypted else None,
        direct=not encrypted and rng.random() < 0.5,
        strangers=(IPv4Address("192.0.2.66").packed, IPv6Address("2001:db8:1::66").packed),
        device=f"dp{lan.number}",
    )
    made.announced = made.direct and not net.internal and rng.random() < 0.6
    for subnet in subnets:
        made.moved[(subnet.network_address + 13).packed] = peers[0]
    return made


def _put_on_link(rng: random.Random, net: Network, uplink: Uplink) -> None:
    """Some networks are on the link of an uplink, which has room for one; or on none, and so internal."""
    if rng.random() > 0.3:
        return
    net.lan, net.masquerade, net.beside = True, False, False
    net.questions = rng.random() < 0.3
    if net.questions:
        return
    if not net.internal and uplink.network is None:
        net.parent, uplink.network = uplink, net
    net.internal = net.parent is None
    net.routed = rng.random() < 0.4


def _ports(
    rng: random.Random, host: Plan, members: list[Member], hosts: list[bytes]
) -> dict[tuple[bytes, int, int], Published]:
    ports: dict[tuple[bytes, int, int], Published] = {}
    candidates = [m for m in members if not m.network.internal and not m.network.lan]
    for _ in range(rng.randint(0, 12) if candidates else 0):
        member = rng.choice(candidates)
        target = rng.choice([a for a in (member.addr4, member.addr6) if a])
        family = [a for a in [*hosts, *LOCAL] if len(a) == len(target)]
        where = bytes(len(target)) if rng.random() < 0.6 else rng.choice(family)
        port = rng.choice((8081, 8082, 8083, host.ports[0] + 5, 80, 443, 53))
        proto = rng.choice((TCP, UDP))
        published = Published(member, target, rng.choice((80, 53, 8081, port)))
        if rng.random() < 0.4:
            published.filtered, published.refuse = True, rng.random() < 0.6
            rules = [_rule(rng, len(target), members, hosts) for _ in range(rng.randint(0, 5))]
            published.rules = tuple({rule[:2]: rule for rule in rules}.values())
        ports[where, port, proto] = published
    return ports


def _disputed(
    rng: random.Random,
    host: Plan,
    members: list[Member],
    ports: dict[tuple[bytes, int, int], Published],
) -> None:
    """A router publishes a port, and what somebody publishes at all addresses another does at one of them."""
    routers = [m for m in members if m.forwarding and not m.network.internal]
    for member in routers[:2]:
        for address in (member.addr4, member.addr6):
            if address and rng.random() < 0.5:
                proto = rng.choice((TCP, UDP))
                ports[bytes(len(address)), 8087, proto] = Published(member, address, rng.choice((80, 53)))
    for where, port, proto in [one for one in ports if not any(one[0]) and rng.random() < 0.3]:
        others = [m for m in members if not m.network.internal and not m.network.lan]
        others = [m for m in others if m is not ports[where, port, proto].member]
        other = rng.choice(others) if others else None
        theirs = (other.addr4 if len(where) == 4 else other.addr6) if other else b""
        own = host.legs[0].v4 if len(where) == 4 else host.legs[0].v6
        if other and theirs and own and (own.ip.packed, port, proto) not in ports:
            ports[own.ip.packed, port, proto] = Published(other, theirs, rng.choice((80, 53)))


def _rule(
    rng: random.Random, size: int, members: list[Member], hosts: list[bytes]
) -> tuple[bytes, int, bool]:
    pool = (OUT4 if size == 4 else OUT6) + [a for a in (*LOCAL, *hosts) if len(a) == size]
    pool += [a for m in members for a in (m.addr4 if size == 4 else m.addr6,) if a]
    length = rng.choice((0, 8, 16, 24, 32) if size == 4 else (0, 16, 48, 64, 128))
    value = int.from_bytes(rng.choice(pool), "big")
    shift = size * 8 - length
    return ((value >> shift << shift).to_bytes(size, "big"), length, rng.random() < 0.5)


def _links(rng: random.Random, members: list[Member]) -> set[tuple[bytes, bytes, int, int]]:
    links = set()
    for client in members:
        for server in members:
            if client is server or client.network is not server.network or client.network.icc:
                continue
            if rng.random() < 0.4:
                port, proto = rng.choice((80, 53)), rng.choice((TCP, UDP))
                for a, b in ((client.addr4, server.addr4), (client.addr6, server.addr6)):
                    if a and b:
                        links.add((a, b, port, proto))
    # Of two rules for one key the second would hide the first: the reference knows no such thing.
    return links
