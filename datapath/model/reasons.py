# SPDX-License-Identifier: Apache-2.0
"""What each counter of the packet programs means: for `stats --reasons`, and for docs/reference/reasons.md. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple


class Meaning(NamedTuple):
    """`packet` continues "the packet", of a drop "the packet was dropped because". `look`: what to look at then."""

    packet: str
    look: str = ""


# By the names of `enum reason` in abi.h, in its order.
MEANINGS: Mapping[str, Meaning] = {
    "NOT_OURS": Meaning("is none of a container's business: the host's stack has it, untouched"),
    "DELIVERED": Meaning("went into a container"),
    "TO_HOST": Meaning("went from a container to the host's own stack, through the network's gateway device"),
    "TO_OUTSIDE": Meaning("left through an uplink"),
    "ANSWERED": Meaning("was an ARP request or neighbour solicitation, and the program answered it"),
    "FLOODED": Meaning("was broadcast or multicast, and went to the members and the host"),
    "ABSORBED": Meaning("needed no action, such as a gratuitous ARP"),
    "HELD": Meaning("is a fragment that came before its first one, and waits for it"),
    "UNCONFIRMED": Meaning(
        "went on as well (counted besides), but its connection stays where a flood can push it out: the "
        "table, or its container's share of it, is full"
    ),
    "TO_PEER": Meaning("went to a container on another host of the cluster"),
    "WOULD_OUT": Meaning(
        "went on as well (counted besides), and opened what a policy in audit mode would not let out of its sender"
    ),
    "WOULD_IN": Meaning("likewise, of what one would not let in to its receiver"),
    "DROP_DEVICE": Meaning(
        "its device is not, or no longer, in the tables", "a container that is just coming or going"
    ),
    "DROP_TRUNCATED": Meaning("a header is cut short, or lies about its length", "the sender"),
    "DROP_VLAN": Meaning("the frame is tagged", "VLANs are not for containers"),
    "DROP_ETHERTYPE": Meaning("it is neither ARP, IPv4 nor IPv6", "the sender"),
    "DROP_SPOOFED_MAC": Meaning(
        "the source MAC is not the container's own", "a bridge or macvlan inside the container"
    ),
    "DROP_SPOOFED_ADDR": Meaning(
        "the source address is not the container's own, nor one that it may speak for",
        "addresses added inside; a router without `com.datapath.forwarding=true`, or without the host's "
        "route to what is behind it",
    ),
    "DROP_SPOOFED_ARP": Meaning(
        "ARP, or a neighbour advertisement, speaks for somebody else", "keepalived and the like inside"
    ),
    "DROP_UNKNOWN_ARP": Meaning(
        "nobody on the network has the address that is asked for",
        "a container that has gone; a typing mistake",
    ),
    "DROP_NO_IPV6": Meaning("the network has no IPv6", "`network create --ipv6`"),
    "DROP_ROUTER": Meaning("a container plays router (advertisement or redirect)", "the sender"),
    "DROP_ICC": Meaning(
        "the network has `icc` off, and no link allows it", "`--link` with `--expose`, or `enable_icc`"
    ),
    "DROP_ISOLATED": Meaning(
        "it is for an address of another network, or its answer's way leads into one", "`network connect`"
    ),
    "DROP_INTERNAL": Meaning(
        "the network is internal", "leave out `--internal`, or connect a second network"
    ),
    "DROP_NO_ENDPOINT": Meaning(
        "it is for an address of the network that no member has", "a container that has gone"
    ),
    "DROP_WRONG_MAC": Meaning(
        "it is for the MAC of no device of the network, or of a member that is no router, with a "
        "destination that is nobody's",
        "a stale or forged neighbour entry",
    ),
    "DROP_BAD_ADDR": Meaning(
        "loopback, zero, a group's address where one machine's must stand; an answer from a link-local "
        "address that would leave its link",
        "the sender",
    ),
    "DROP_NO_ROUTE": Meaning(
        "there is no source address for the egress; or no route to whom a backend on another host answers by this one",
        "the host's addresses of that family, its routes",
    ),
    "DROP_PROTOCOL": Meaning(
        "it would leave, and is neither TCP, UDP nor an ICMP echo", "cannot be translated"
    ),
    "DROP_FRAGMENT": Meaning(
        "its first fragment is not known or was refused, or its datagram has more pieces than are kept",
        "lost packets; very small fragments",
    ),
    "DROP_NAT_PORTS": Meaning(
        "no free source port was found for it", "very many connections to one destination"
    ),
    "DROP_CONN_TABLE": Meaning(
        "the connection table would not take the connection", "`conns` and `pending` in the second table"
    ),
    "DROP_STALE": Meaning(
        "its connection belongs to an endpoint that is gone", "a client that does not give up"
    ),
    "DROP_DIRECT": Meaning(
        "it came from outside straight for a container's address, and is no answer that the host has translated",
        "publish a port; or, for what others translate (kube-proxy), `com.datapath.host_routed`",
    ),
    "DROP_REWRITE": Meaning("the kernel refused to change the packet", "memory; report it if it persists"),
    "DROP_MULTICAST_OFF": Meaning(
        "it is for an IPv6 group of the container's own device or loopback", "the sender"
    ),
    "DROP_NO_CONN": Meaning(
        "it is an ICMP error, or an echo's answer, about no known connection",
        "harmless after a connection has ended",
    ),
    "DROP_TOO_BIG": Meaning(
        "it is larger than the way takes, and must not be fragmented; the sender is told",
        "ordinary path MTU discovery",
    ),
    "DROP_TTL": Meaning("it has no hop left; the sender is told", "traceroute; a loop"),
    "DROP_OVERLAP": Meaning(
        "it is a fragment that overlaps another of its datagram, lies behind its end, or comes twice",
        "an attack, if there are many",
    ),
    "DROP_DENIED": Meaning("the published port is not for this source", "`port ls`, `port set`"),
    "DROP_FLOOD": Meaning("its source opens more than the flood limit allows", "`flood-limit`"),
    "DROP_LIMIT": Meaning(
        "its container has as many connections or openings as one may have",
        "`ct stats`; `max-…-per-container`",
    ),
    "DROP_XFRM": Meaning(
        "an IPsec policy of the host's (`ip xfrm policy`) protects or blocks such packets; translated "
        "ones cannot meet it",
        "the policy, or a network without masquerading",
    ),
    "DROP_ENCAP": Meaning(
        "its route encapsulates (`encap`), which is possible for networks without masquerading only",
        "`ip route get`",
    ),
    "DROP_FORWARDING": Meaning(
        "the network's gateway device does not forward", "`sysctl net.ipv4.conf.DEVICE.forwarding`"
    ),
    "DROP_TAIL": Meaning(
        "it is a question for a name, and a program that answers those is not loaded", "`doctor`"
    ),
    "DROP_BANDWIDTH": Meaning(
        "its container receives or sends more than its limit of bandwidth lets through",
        "`limits` in `stats`; the container's driver options, or its pod's annotations",
    ),
    "DROP_NO_REMOTE": Meaning(
        "it is for an address of an overlay network that no host of the cluster has",
        "a container that has gone; a host that has not heard of a new one (`doctor`)",
    ),
    "DROP_NO_TUNNEL": Meaning(
        "it is for another host, and this one has no end of a tunnel of that family, or not the device that such "
        "packets pass: what is larger than the way takes, and segments that arrive as one",
        "`doctor`; `cluster-advertise`",
    ),
    "DROP_TUNNEL_SENDER": Meaning(
        "it came in a tunnel of ours, from an address that is no host's of the cluster",
        "a forged packet; a host whose address has changed",
    ),
    "DROP_TUNNEL_SOURCE": Meaning(
        "it came in a tunnel from a host of the cluster that does not have its source address",
        "a forged packet; a host that has not heard of a new address",
    ),
    "DROP_TUNNEL_FRAME": Meaning(
        "it came in a tunnel and is for no single member: broadcast, multicast, ARP, neighbour discovery",
        "a peer that is not ours",
    ),
    "DROP_CONGESTED": Meaning(
        "a router marked its tunnel's packet as congested, and its sender does not know of such marks (RFC 6040)",
        "the network between the hosts is full",
    ),
    "DROP_VNI": Meaning(
        "it came in a tunnel to this host's device, of no network that the host takes part in",
        "a peer that has not heard that the last container here has gone",
    ),
    "DROP_NO_BACKEND": Meaning(
        "it begins a connection to a service of which no backend is up; its sender is told at once that nobody listens",
        "containers that have stopped or are drained, or a health check that fails",
    ),
    "DROP_OUT": Meaning(
        "a policy about its sender does not let it out; a container, and the host, is told at once "
        "(administratively prohibited)",
        "the policies about the sender; a container that has only just come, and has no policies yet",
    ),
    "DROP_IN": Meaning(
        "a policy about its receiver does not let it in; a container, and the host, is told at once, and "
        "nobody outside is",
        "the policies about the receiver; likewise",
    ),
}
