# SPDX-License-Identifier: Apache-2.0
"""What random packets have to meet often enough, whoever changes the generator: the reference counts it where it
applies the rule, and a run says how often each was met."""

from __future__ import annotations

from enum import StrEnum


class Situation(StrEnum):
    SEGMENT_OPTIONS = "segments that fit, or do not, for their TCP options alone"
    SEGMENT_UDP = "UDP that is still to be cut into segments"
    SEGMENT_LOOSE = "segments too big, that a router may cut in pieces"
    CUT = "IPv4 too big, that a router may cut in pieces"
    CUT_AGAIN = "a fragment that is too big itself"
    NUMBER_AGAIN = "a datagram's number is used again before it is complete"
    NUMBER_FAR = "a fragment of a datagram 64 datagrams ago"
    WAITED_LONG = "the first fragment comes 8 datagrams after the others"
    END_DISPUTED = "a fragment behind the last one, or another last one"
    FIRST_REFUSED = "a fragment whose first one was refused"
    CUT_OPTIONS = "IPv4 too big, that may be cut in pieces, with options"
    CUT_INTO = "IPv4 too big for a network of containers, that may be cut in pieces, or its segments may"
    OTHER_WAY = "a masqueraded connection's way leads over another device"
    WAY_INSIDE = "a connection's way leads to another network of containers"
    NO_WAY = "masqueraded, and there is no way"
    RULE_SOURCE = "the way out by a rule on the source"
    RULE_PORTS = "the way out by a rule on ports"
    RULE_TOS = "the way out by a rule on the type of service"
    ANSWER_RULE = "a published port's answer by a rule on the address that was asked"
    ROUTE_SOURCE = "masqueraded with a source that the route says"
    SAME_SOCKET = "one port of a container's to several destinations"
    OTHER_PORT = "masqueraded with another port than the sender's own, or one beyond the range"
    LOW_PORT = "masqueraded from a port below 1024"
    PUBLISHED_SOURCE = "masqueraded from a port that the container publishes"
    PUBLISHED_BY_TWO = "and that another publishes at the very address"
    PUBLISHED_BEHIND = "and that the member publishes through which it comes, for a port of its own"
    PORT_SHARED = "a port is shared, as none is left"
    NO_PORT = "refused, as no port is free"
    ERROR_WIDTH = "an ICMP error that is too big for a network of containers"
    ANYIP = "to an address of a prefix that is the host's as a whole"
    CLASS_E = "from or to class E"
    ENCAPSULATED = "translated, by a route that encapsulates"
    PROTECTED = "translated, to where an IPsec policy protects"
    HAIRPIN = "to another container's external port"
    HAIRPIN_AWAITED = "and it is awaited there"
    SPEAKS_FOR = "a member that forwards, from another's address"
    BY_ROUTER = "by the MAC of a member that forwards"
    BEHIND = "to what the host routes to a member that forwards"
    NO_ADDRESS = "from no address yet: DHCP, and listeners' reports"
    LINK_LOCAL = "to one of the device's link-local addresses, where a port is published"
    LINK_ELSEWHERE = "to a link-local address that is none of the device's"
    LINK_BACK = "to one of the device's, from where another device leads back to"
    BESIDE = "from outside to a published port of a member whose default route is elsewhere"
    DETOUR = "forwarded by the host: the answer to what was sent to a port of its own, or an error about it"
    TUNNEL_IN = "from a device without Ethernet headers, to a container"
    TUNNEL_OUT = "out by a device without Ethernet headers"
    PEER_OUT = "to a member of an overlay network on another host"
    PEER_WIDTH = "and too big for the tunnel"
    PEER_IN = "from one, to a member here"
    PEER_CALLS = "from another host itself, in the gateway's name"
    PEER_ASKS = "from there, to find out whether it arrives"
    PEER_REFUSED = "in a tunnel, and not believed"
    TO_LINK = "to the link of a network's parent"
    FROM_LINK = "from there, to a member, or for one"
    NO_QUESTION = "none of the questions that alone may pass there"
    SERVICE = "to a service"
    SERVICE_ANSWER = "a backend's answer to it"
    SERVICE_ITSELF = "a backend asks its own service, and gets itself"
    SERVICE_ANEW = "an opening of what is over, or was not answered"
    SERVICE_DOWN = "to a service without a backend"
    SERVICE_ECHO = "an echo to a virtual address"
    ASKS_OURS = "a question for the name of a container"
    ASKS_ELSEWHERE = "and of an endpoint on another host"
    ASKS_OWNER = "a question for who has the address of either"
    ASKS_UPSTREAM = "a question that a server upstream has to answer"
    ASKS_NOBODY = "and one for which there is none"


# Not met on purpose until the programs know it: why.
WITHHELD: dict[Situation, str] = {}


class Withheld(Exception):
    """The packet at hand has come to one of them."""
