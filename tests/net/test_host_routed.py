# SPDX-License-Identifier: Apache-2.0
"""What rules of others in the host's packet filter translate: ClusterIPs and NodePorts as kube-proxy writes them, and
published ports of other bridges, as dockerd and the CNI plugin portmap do. Both families, TCP and UDP."""

from __future__ import annotations

import errno
import json
import socket
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.net.doors import Cni, Space
from tests.net.hosts import HOST, OUTSIDE, Host, Namespace
from tests.net.test_ipv6 import HOST6, OUTSIDE6, plug_ipv6
from tests.net.wire import (
    Container,
    Place,
    Server,
    call,
    counters,
    fails,
    opened,
    rises,
    serving,
    start_container,
)

SERVICES = {4: "10.96.0.0/12", 6: "fd96::/108"}
VIP = {4: "10.96.0.10", 6: "fd96::10"}
HOSTS, OUTSIDES = {4: HOST, 6: HOST6}, {4: OUTSIDE, 6: OUTSIDE6}
NODE_PORT, PORT = 30080, 80
both = pytest.mark.parametrize("family", [4, 6])
each = pytest.mark.parametrize("proto", ["tcp", "udp"])


@dataclass
class Cluster:
    """A node. `pods` and `more` are networks that leave the services' prefixes to the host, `plain` does not;
    `theirs` is a container on a Linux bridge of somebody else's."""

    host: Host
    theirs: Namespace
    a: Container
    b: Container
    c: Container
    plain: Container

    def place(self, name: str) -> Place:
        places: dict[str, Place] = {"host": self.host, "outside": self.host.outside}
        return places.get(name) or getattr(self, name)

    def address(self, name: str, family: int) -> str:
        if name in ("host", "outside"):
            return (HOSTS if name == "host" else OUTSIDES)[family]
        if name == "theirs":
            return "10.75.0.2" if family == 4 else "fd75::2"
        found: Container = getattr(self, name)
        return found.ip if family == 4 else found.ip6

    def serving(self, name: str, proto: str, family: int) -> AbstractContextManager[Server]:
        """At the address that is asked: at all of them, a host's answer over UDP would come from the nearest."""
        return serving(self.place(name), proto, PORT, self.address(name, family))


@pytest.fixture(scope="module")
def cluster(shared_host: Host) -> Iterator[Cluster]:
    host = shared_host
    plug_ipv6(host)
    host.sh("sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1")
    routed = f"-o com.datapath.host_routed={SERVICES[4]},{SERVICES[6]}"
    for number, (name, options) in enumerate((("pods", routed), ("more", routed), ("plain", ""))):
        subnets = f"--ipv6 --subnet 10.5{number}.0.0/24 --subnet fd5{number}::/64"
        host.ctl(f"network create {subnets} {options} {name}")
    with ExitStack() as stack:
        theirs = Namespace()
        stack.callback(theirs.close)
        host.sh("ip link add br9 type bridge")
        host.sh("ip link set br9 up")
        host.sh(f"ip link add theirs type veth peer name eth0 netns {theirs.pid}")
        host.sh("ip link set theirs master br9 up")
        host.sh("ip address add 10.75.0.1/24 dev br9")
        host.sh("ip -6 address add fd75::1/64 dev br9 nodad")
        theirs.sh("ip link set eth0 up")
        theirs.sh("ip address add 10.75.0.2/24 dev eth0")
        theirs.sh("ip -6 address add fd75::2/64 dev eth0 nodad")
        for family, gateway in ((4, "10.75.0.1"), (6, "fd75::1")):
            theirs.sh(f"ip -{family} route add default via {gateway}")
        made = {
            name: start_container(host, name, f"--network {network}")
            for name, network in (("a", "pods"), ("b", "pods"), ("c", "more"), ("plain", "plain"))
        }
        yield Cluster(host, theirs, **made)


def rules(cluster: Cluster, family: int, proto: str, backend: str, masquerade: bool = False) -> None:
    """kube-proxy's, of one service of type NodePort with one backend, as `iptables-restore` gets them from it.
    `masquerade`: as with masqueradeAll, or without a cluster CIDR. FORWARD is closed but for what its rules let in and
    what a node's administrator lets out of the pods' networks."""
    address, vip = cluster.address(backend, family), VIP[family]
    bits = 32 if family == 4 else 128
    to = f"[{address}]:{PORT}" if family == 6 else f"{address}:{PORT}"
    mark = f"-A KUBE-SVC-X -d {vip}/{bits} -p {proto} -m {proto} --dport {PORT} -j KUBE-MARK-MASQ"
    text = f"""
*filter
:INPUT ACCEPT [0:0]
:FORWARD DROP [0:0]
:OUTPUT ACCEPT [0:0]
:KUBE-FORWARD - [0:0]
-A FORWARD -m comment --comment "kubernetes forwarding rules" -j KUBE-FORWARD
-A FORWARD -i dp+ -j ACCEPT
-A KUBE-FORWARD -m conntrack --ctstate INVALID -j DROP
-A KUBE-FORWARD -m comment --comment "kubernetes forwarding rules" -m mark --mark 0x4000/0x4000 -j ACCEPT
-A KUBE-FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
COMMIT
*nat
:PREROUTING ACCEPT [0:0]
:INPUT ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
:POSTROUTING ACCEPT [0:0]
:KUBE-MARK-MASQ - [0:0]
:KUBE-NODEPORTS - [0:0]
:KUBE-POSTROUTING - [0:0]
:KUBE-SERVICES - [0:0]
:KUBE-EXT-X - [0:0]
:KUBE-SVC-X - [0:0]
:KUBE-SEP-X - [0:0]
-A PREROUTING -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-A OUTPUT -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-A POSTROUTING -m comment --comment "kubernetes postrouting rules" -j KUBE-POSTROUTING
-A KUBE-MARK-MASQ -j MARK --set-xmark 0x4000/0x4000
-A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN
-A KUBE-POSTROUTING -j MARK --set-xmark 0x4000/0x0
-A KUBE-POSTROUTING -m comment --comment "kubernetes service traffic requiring SNAT" -j MASQUERADE --random-fully
-A KUBE-SERVICES -d {vip}/{bits} -p {proto} -m {proto} --dport {PORT} -j KUBE-SVC-X
-A KUBE-SERVICES -m addrtype --dst-type LOCAL -j KUBE-NODEPORTS
-A KUBE-NODEPORTS -p {proto} -m {proto} --dport {NODE_PORT} -j KUBE-EXT-X
-A KUBE-EXT-X -j KUBE-MARK-MASQ
-A KUBE-EXT-X -j KUBE-SVC-X
{mark if masquerade else ""}
-A KUBE-SVC-X -j KUBE-SEP-X
-A KUBE-SEP-X -s {address}/{bits} -j KUBE-MARK-MASQ
-A KUBE-SEP-X -p {proto} -m {proto} -j DNAT --to-destination {to}
COMMIT
"""
    cluster.host.sh("iptables-restore" if family == 4 else "ip6tables-restore", input=text)
    # What was tracked by the rules before would be led as they said.
    cluster.host.try_("conntrack -F")


@both
@each
@pytest.mark.parametrize("backend", ["a", "b", "c", "theirs", "host", "outside"])
def test_a_pod_reaches_a_cluster_ip_wherever_its_backend_is(
    cluster: Cluster, backend: str, proto: str, family: int
) -> None:
    rules(cluster, family, proto, backend, masquerade=backend == "outside")
    before = counters(cluster.host)
    with cluster.serving(backend, proto, family):
        for _ in range(3):
            answer = call(cluster.a, proto, VIP[family], PORT)
            assert (answer.peer, answer.peer_port) == (VIP[family], PORT)
            if backend not in ("a", "outside"):
                assert answer.seen == cluster.address("a", family)
    assert rises(before, counters(cluster.host)) == {}


@both
@each
@pytest.mark.parametrize("backend", ["b", "c", "theirs", "host"])
def test_a_node_port_is_reached_from_everywhere(
    cluster: Cluster, backend: str, proto: str, family: int
) -> None:
    """From outside, the host itself and its containers, those of networks without the option too."""
    rules(cluster, family, proto, backend)
    before = counters(cluster.host)
    with cluster.serving(backend, proto, family):
        for client in ("outside", "host", "a", "b", "c", "plain", "theirs"):
            if client == backend == "theirs":
                continue  # their bridge would have to send it back to where it came from, and does not
            answer = call(cluster.place(client), proto, HOSTS[family], NODE_PORT)
            assert (answer.peer, answer.peer_port) == (HOSTS[family], NODE_PORT), client
    assert rises(before, counters(cluster.host)) == {}


@both
@each
def test_a_port_that_others_rules_lead_to_a_container_of_theirs_needs_no_option(
    cluster: Cluster, proto: str, family: int
) -> None:
    """As `docker run -p` on docker0, and portmap: nothing is masqueraded. A container on a network without the option
    gets the answer, an error too, and nobody else gets anything there."""
    host, client = cluster.host, cluster.plain
    theirs, own = cluster.address("theirs", family), cluster.address("plain", family)
    tables = "iptables" if family == 4 else "ip6tables"
    rules(cluster, family, proto, "theirs")
    host.sh(f"{tables} -t nat -F KUBE-EXT-X")
    host.sh(f"{tables} -t nat -A KUBE-EXT-X -j KUBE-SEP-X")
    for rule in (f"-o br9 -d {theirs} -p {proto} --dport {PORT} -j ACCEPT", "-i br9 -j ACCEPT"):
        host.sh(f"{tables} -A FORWARD {rule}")
    with cluster.serving("theirs", proto, family):
        assert call(client, proto, HOSTS[family], NODE_PORT).seen == own
        before = counters(host)
        # A neighbour on the bridge that sends to the container itself, as if it answered.
        cluster.theirs.sh(f"ip -{family} route replace {own} via {'10.75.0.1' if family == 4 else 'fd75::1'}")
        assert fails(cluster.theirs, proto, own, NODE_PORT)
        assert rises(before, counters(host)).keys() == {"DROP_DIRECT"}
    if proto == "udp":
        assert fails(client, proto, HOSTS[family], NODE_PORT) == errno.ECONNREFUSED


def test_a_large_datagram_and_its_answer_pass_the_hosts_stack_in_fragments(cluster: Cluster) -> None:
    rules(cluster, 4, "udp", "theirs")
    with opened(cluster.theirs, socket.SOCK_DGRAM) as server:
        server.bind(("10.75.0.2", PORT))
        for client, address, port in (
            (cluster.plain, HOST, NODE_PORT),
            (cluster.a, HOST, NODE_PORT),
            (cluster.a, VIP[4], PORT),
        ):
            with opened(client, socket.SOCK_DGRAM) as asking:
                asking.sendto(b"q" * 4000, (address, port))
                data, peer = server.recvfrom(5000)
                assert len(data) == 4000
                server.sendto(b"a" * 5000, peer)
                data, peer = asking.recvfrom(6000)
                assert (len(data), peer) == (5000, (address, port))


def test_a_cluster_ip_goes_to_several_pods_and_a_stream_stays_with_its_own(cluster: Cluster) -> None:
    """Another rule for each of several; what is established goes on when a pod is taken off the list."""
    rules(cluster, 4, "tcp", "b")
    host = cluster.host
    host.sh("iptables -t nat -N KUBE-SEP-Y")
    host.sh(f"iptables -t nat -A KUBE-SEP-Y -p tcp -j DNAT --to-destination {cluster.c.ip}:{PORT}")
    host.sh("iptables -t nat -I KUBE-SVC-X -m statistic --mode nth --every 2 --packet 0 -j KUBE-SEP-Y")
    with cluster.serving("b", "tcp", 4) as near, cluster.serving("c", "tcp", 4) as far:
        for _ in range(10):
            call(cluster.a, "tcp", VIP[4], PORT)
        assert (len(near.peers), len(far.peers)) == (5, 5)
    with opened(cluster.b) as listener, opened(cluster.a) as client:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((cluster.b.ip, PORT))
        listener.listen()
        host.sh("iptables -t nat -D KUBE-SVC-X 1")
        client.connect((VIP[4], PORT))
        served, _ = listener.accept()
        with served:
            host.sh("iptables -t nat -F KUBE-SVC-X")
            # And the neighbour is asked straight, from the same port, meanwhile and afterwards.
            for size in (1, 1 << 20):
                sender = threading.Thread(target=client.sendall, args=(b"x" * size,))
                sender.start()
                got = 0
                while got < size:
                    got += len(served.recv(1 << 16))
                sender.join()
            served.sendall(b"done")
            assert client.recv(10) == b"done"
        port = client.getsockname()[1]
    with cluster.serving("b", "tcp", 4):
        assert call(cluster.a, "tcp", cluster.b.ip, PORT, source=(cluster.a.ip, port)).seen_port == port


def test_prefixes_are_rows_that_doctor_knows_and_go_with_their_network(host: Host, tmp_path: Path) -> None:
    name = "com.datapath.host_routed"
    for value, says in (("10.96.0.0/33", "10.96.0.0/33"), ("x", '"x"'), ("::/0", "too wide"), ("", name)):
        assert says in host.refused(f"network create -o {name}={value} bad"), value
    assert "internal" in host.refused(f"network create --internal -o {name}=10.96.0.0/12 bad")
    host.ctl(f"network create -o {name}=10.96.0.0/12,fd96::/108,10.96.0.0/12 pods")
    assert host.network("pods")["Options"][name] == "10.96.0.0/12,fd96::/108"
    pin = host.bpffs / "datapath/maps/host_routed"

    def rows() -> list[dict[str, Any]]:
        return list(json.loads(host.sh(f"bpftool -j map dump pinned {pin}")))

    assert len(rows()) == 2 and host.try_ctl("doctor").returncode == 0
    host.sh(["bpftool", "map", "delete", "pinned", str(pin), "key", *rows()[0]["key"]])
    found = host.try_ctl("doctor")
    assert found.returncode == 20 and "host_routed" in found.stdout
    host.ctl("reconcile")
    assert len(rows()) == 2 and host.try_ctl("doctor").returncode == 0
    host.ctl("network rm pods")
    assert rows() == [] and host.try_ctl("doctor").returncode == 0
    # As a CNI configuration says it.
    space = Space(tmp_path)
    cni = Cni(host, {"subnet": "10.71.0.0/24", "options": {name: "10.96.0.0/12"}})
    cni.add("c", space.path)
    assert len(rows()) == 1
    cni.delete("c", space.path)
    space.delete()
    assert rows() == []
