# SPDX-License-Identifier: Apache-2.0
"""Where the host's own packets come by, too: uplinks, and the loopback device. What is not for a container goes on
untouched."""

from __future__ import annotations

from tests.model.addresses import MAPPED, class_e, loopback, on_link, unusable
from tests.model.expected import ANY, NEXT, Expected, dropped
from tests.model.link import OnLink
from tests.model.packet import ARP, LATER, Packet, backwards
from tests.model.routes import Flow
from tests.model.situations import Situation
from tests.model.topology import LOCAL_SENDER, Member, Published, Uplink
from tests.model.tunnels import Tunnels


class FromOutside(Tunnels, OnLink):
    def from_uplink(self, uplink: Uplink, frame: bytes) -> Expected | None:
        p = Packet(frame, self.gso)
        self.room, self.bare = uplink.mtu, False
        ours = Expected(NEXT, ("NOT_OURS",), (frame,))
        if uplink.network and not p.fault:
            found = self._from_link(p, uplink, uplink.network)
            if found:
                return found
        if p.dst in self.topology.broadcasts:
            return None  # bpf_fib_lookup cannot tell it from the host's own
        if p.dst_mac != uplink.mac or p.fault or p.kind == ARP:
            return ours
        if p.src[:12] == MAPPED or p.dst[:12] == MAPPED:
            return ours
        return self._arrives(p, None, ours, uplink)

    def from_tunnel(self, uplink: Uplink, frame: bytes) -> Expected | None:
        """An uplink without an Ethernet header: the packet begins with its IP header, of which family it is is known
        beside it. Here it has one, without MACs. A container gets it with one, too; the host does not."""
        p = Packet(frame, self.gso)
        self.room, self.bare = uplink.mtu, True
        overlay = self.topology.overlay
        if overlay and overlay.encrypted is uplink:
            return self._deciphered(p, overlay)
        ours = Expected(NEXT, ("NOT_OURS",), (frame[14:],))
        if p.dst in self.topology.broadcasts:
            return None
        if p.fault or p.src[:12] == MAPPED or p.dst[:12] == MAPPED:
            return ours
        expected = self._arrives(p, None, ours, uplink)
        if expected is not None and expected is not ours:
            self._meet(Situation.TUNNEL_IN)
            expected.again = tuple(one[14:] for one in expected.again)
        return expected

    def from_loopback(self, frame: bytes) -> Expected | None:
        """The host speaks with itself (S19: a published port is reached from the host itself)."""
        p = Packet(frame, self.gso)
        ours = Expected(NEXT, ("NOT_OURS",), (frame,))
        if p.fault or p.kind == ARP or p.src[:12] == MAPPED or p.dst[:12] == MAPPED:
            return ours
        return self._arrives(p, LOCAL_SENDER, ours)

    def _arrives(
        self, p: Packet, sender: Member | None, ours: Expected, uplink: Uplink | None = None
    ) -> Expected | None:
        self.arrived, self.outside = uplink, uplink is not None
        if uplink and on_link(p.dst) and p.dst not in uplink.linklocals:
            self._meet(Situation.LINK_ELSEWHERE)
            return ours  # another link's (RFC 4007, 5)
        if uplink and self._is_tunnelled(p, uplink):
            return self._from_peer(p, ours)
        if uplink and self._comes_as_it_is(p):
            return self._from_neighbour(p, uplink)
        if p.error:
            return self._error(p, sender) or ours
        if p.fragment:
            return self._fragment_arrives(p, sender, ours)
        return self._of_containers(p, sender) if self._concerns_containers(p, sender) else ours

    def _published(self, p: Packet) -> Published | None:
        """Of a member, or a service, that routers know the way to each port is published, at its own address."""
        overlay = self.topology.overlay
        if not self.outside or overlay is None or not overlay.announced or on_link(p.dst):
            return super()._published(p)
        service, member = overlay.network.services.get(p.dst), overlay.network.members.get(p.dst)
        member = service.backends[0] if service else member
        if member is None:
            return super()._published(p)
        if p.ports is None or p.icmp in (0, 129):  # an answer to nothing
            return None
        return Published(member, p.dst, p.ports[1], announced=True, service=service)

    def _fragment_arrives(self, p: Packet, sender: Member | None, ours: Expected) -> Expected | None:
        number = sender.number if sender else 0
        if p.fragment == LATER:
            datagram = self.datagrams.of_later(p, number)
            if datagram.undefined:
                return None
            if not datagram.known:
                # The host gets it, and a copy is kept until it is known whose it is.
                if datagram.hold(p):
                    ours.beside = ("HELD",)
                return ours
            if datagram.foreign:
                return ours
            return self._as_fragment(p, number, lambda: self._decided(p, sender, ours))
        concerns = self._concerns_containers(p, sender)
        published = self._published(p) if concerns and self.connections.find(p.key) is None else None
        denied = published is not None and not published.admits(p.src)
        if concerns and not denied:
            return self._as_fragment(p, number, lambda: self._decided(p, sender, ours))
        datagram, _ = self._first(p, number)
        if denied:
            datagram.refused = "DROP_FRAGMENT"
            return dropped(p.frame, "DROP_DENIED")
        datagram.foreign = True
        return ours

    def _decided(self, p: Packet, sender: Member | None, ours: Expected) -> Expected | None:
        if not self._concerns_containers(p, sender):
            return ours
        expected = self._of_containers(p, sender)
        # Where ports are scarce it may be refused, and then the host gets the others.
        return None if expected and expected.verdict == ANY else expected

    def _concerns_containers(self, p: Packet, sender: Member | None) -> bool:
        """It belongs to a connection that a container began, or goes to a published port."""
        if p.ports is None:
            return False
        half = self.connections.find(p.key)
        if half and not (half.sender is sender and self._is_left(p, half)):
            return half.sender is sender
        if class_e(p.src) or class_e(p.dst):
            self._meet(Situation.CLASS_E)
        published = self._published(p) if p.fragment != LATER else None
        if sender is LOCAL_SENDER:
            # Whom the rules do not admit finds what the host itself has there: nothing.
            return (
                published is not None
                and all(loopback(one) or not unusable(one) for one in (p.src, p.dst))
                and published.admits(p.src)
            )
        if published is None or unusable(p.src) or p.dst in self.topology.broadcasts:
            return False
        if on_link(p.dst):
            self._meet(Situation.LINK_LOCAL)
            back = self._route(Flow.of(backwards(p.key), p.tos), True)
            if back.uplink is not self.arrived:  # an answer from there must not leave its link
                self._meet(Situation.LINK_BACK)
                return False
        elif published.announced:
            self._meet(Situation.ANNOUNCED)
        elif unusable(p.dst) or self._route(Flow.of(p.key, p.tos)).kind != "local":
            return False
        # Nor is there an answer to where no way leads.
        return self._route(Flow.of(backwards(p.key), p.tos), True).kind not in ("local", "net", "none")

    def _of_containers(self, p: Packet, sender: Member | None) -> Expected | None:
        half = self.connections.find(p.key)
        if half and not self._is_left(p, half):
            return self._forward(p, sender, half)
        published = self._published(p)
        assert published
        if half and published.service and self._starts_over(p, published, half.connection):
            known = half
            return self._chosen(
                *(p, published.service, published), lambda: self._over_again(p, sender, known)
            )
        if half:
            return self._anew(p, half.connection, lambda: self._open_published(p, sender, published))
        return self._open_published(p, sender, published)
