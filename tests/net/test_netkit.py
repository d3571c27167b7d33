# SPDX-License-Identifier: Apache-2.0
"""The same scenarios with each kind of device pair that can join a container to its network."""

from __future__ import annotations

import contextlib
import errno
import socket
import subprocess
from collections.abc import Callable, Iterator
from typing import NamedTuple

import pytest

from datapath.kernel import features, rtnetlink
from datapath.kernel.netns import enter
from datapath.kernel.rtnetlink import Message, Refused, attribute, u32
from datapath.model.networks import NETKIT, OPT_DEVICE, PAIRS
from tests.bpf import packets as pk
from tests.net import look
from tests.net.hosts import FAR, HOST, OUTSIDE, TIMEOUT, Host, reaches
from tests.net.test_doctor import doctor, failed_checks
from tests.net.test_down import is_as_before
from tests.net.wire import (
    Container,
    Place,
    call,
    counters,
    fails,
    rises,
    serving,
    start_container,
    taps,
    unreachable,
)
from tests.softirqs import settle

ICC = "com.docker.network.bridge.enable_icc"
NO_NETKIT = (
    "datapathctl: this kernel does not have netkit devices (CONFIG_NETKIT, since Linux 6.10): "
    "use com.datapath.device=veth, or a kernel that has them"
)


def require(kind: str) -> None:
    if kind == NETKIT and not features.has_netkit():
        pytest.skip("this kernel has no netkit")


class Topology(NamedTuple):
    host: Host
    kind: str
    web: Container  # publishes 8081:80
    peer: Container
    other: Container  # on another network
    alone: Container  # on one without icc, with `linked`
    linked: Container


@pytest.fixture(scope="module", params=PAIRS)
def topology(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Topology]:
    require(request.param)
    config = {"default-network-opts": {"bridge": {OPT_DEVICE: request.param}}}
    host = Host(tmp_path_factory.mktemp("host"), config=config)
    try:
        host.ctl("network create --ipv6 --subnet 10.5.0.0/24 --subnet fd00:5::/64 shop")
        host.ctl("network create --ipv6 --subnet 10.6.0.0/24 --subnet fd00:6::/64 elsewhere")
        host.ctl(f"network create -o {ICC}=false -o com.docker.network.driver.mtu=1400 alone")
        yield Topology(
            host,
            request.param,
            start_container(host, "web", "--network shop -p 8081:80 -p 8081:80/udp"),
            start_container(host, "peer", "--network shop"),
            start_container(host, "other", "--network elsewhere"),
            start_container(host, "alone", "--network alone --expose 80"),
            start_container(host, "linked", "--network alone --link alone"),
        )
    finally:
        host.close()


# ---- what can be asked for -----------------------------------------------------------------------


def test_netkit_is_made_where_the_kernel_has_it_and_else_refused_in_one_line(topology: Topology) -> None:
    host = topology.host
    before = look.devices(host.sh), look.pins(host), look.database(host)
    command = f"network create -o {OPT_DEVICE}={NETKIT} more"
    if features.has_netkit():
        host.ctl(command)
        assert host.network("more")["Options"] == {OPT_DEVICE: NETKIT}
        host.ctl("network rm more")
    else:
        assert host.refused(command) == NO_NETKIT
    assert (look.devices(host.sh), look.pins(host), look.database(host)) == before


def test_inspect_and_ip_show_which_kind_it_is(topology: Topology) -> None:
    assert topology.host.network("shop")["Options"] == {OPT_DEVICE: topology.kind}
    outer = {name: d for name, d in look.devices(topology.host.sh).items() if name.startswith(topology.kind)}
    assert [d["linkinfo"]["info_kind"] for d in outer.values()] == [topology.kind] * 5
    inner = look.devices(topology.web.sh)["eth0"]
    assert (inner["linkinfo"]["info_kind"], inner["address"]) == (topology.kind, topology.web.mac)
    assert (inner["mtu"], look.devices(topology.alone.sh)["eth0"]["mtu"]) == (1500, 1400)


@contextlib.contextmanager
def taking(place: Place, command: list[str]) -> Iterator[Callable[[], int]]:
    """A server that says when it listens, and how many bytes it has had when its client has gone."""
    argv = ["nsenter", f"--net={place.path}", *command]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        server.stdout.readline()
        try:
            yield lambda: int(server.communicate(timeout=TIMEOUT)[0])
        finally:
            server.kill()


# ---- packets --------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", [4, 6])
def test_members_reach_each_other_and_the_host_and_other_networks_do_not(
    topology: Topology, version: int
) -> None:
    def ip(of: Container) -> str:
        return of.ip if version == 4 else of.ip6

    gateway = "10.5.0.1" if version == 4 else "fd00:5::1"
    assert reaches(topology.peer.try_, ip(topology.web), 3)
    assert reaches(topology.peer.try_, gateway) and reaches(topology.host.try_, ip(topology.web))
    with serving(topology.web, "tcp", 7700, "::") as server:
        assert call(topology.peer, "tcp", ip(topology.web), 7700).seen.removeprefix("::ffff:") == ip(
            topology.peer
        )
        assert call(topology.host, "tcp", ip(topology.web), 7700).seen.removeprefix("::ffff:") == gateway
        server.peers.clear()
        before = counters(topology.host)
        assert fails(topology.other, "tcp", ip(topology.web), 7700)
        assert unreachable(topology.other, ip(topology.web))
        assert rises(before, counters(topology.host)).keys() == {"DROP_ISOLATED"}
        assert not server.peers


def test_what_a_stack_leaves_to_the_device_arrives_whole(topology: Topology) -> None:
    """Segmentation and checksums: a megabyte in large writes, to a member and to the outside."""
    send = "import socket,sys; s=socket.create_connection((sys.argv[1],7702)); s.sendall(bytes(1<<20))"
    take = (
        "import socket; s=socket.create_server(('',7702)); print('', flush=True); c=s.accept()[0]; n=0\n"
        "while d:=c.recv(1<<16): n+=len(d)\n"
        "print(n)"
    )
    ways: tuple[tuple[Place, str], ...] = ((topology.web, topology.web.ip), (topology.host.outside, OUTSIDE))
    for server, address in ways:
        with taking(server, ["python3", "-c", take]) as counted:
            topology.peer.sh(["python3", "-c", send, address])
            assert counted() == 1 << 20


@pytest.mark.parametrize("proto", ["tcp", "udp"])
def test_a_published_port_is_reached_from_everywhere(topology: Topology, proto: str) -> None:
    """Hairpin too."""
    with serving(topology.web, proto, 80):
        assert call(topology.host.outside, proto, HOST, 8081).seen == OUTSIDE
        assert call(topology.host, proto, "127.0.0.1", 8081).seen == topology.web.gateway
        assert call(topology.other, proto, HOST, 8081).seen == topology.other.ip
        assert call(topology.peer, proto, HOST, 8081).seen == topology.web.gateway
        assert call(topology.web, proto, HOST, 8081).seen == topology.web.gateway


def test_containers_go_out_with_the_hosts_address(topology: Topology) -> None:
    for client in (topology.web, topology.alone):
        assert reaches(client.try_, OUTSIDE)
        with serving(topology.host.outside, "tcp", 7701, FAR):
            assert call(client, "tcp", FAR, 7701).seen == HOST
    shown = topology.web.sh(f"traceroute -n -q 1 -w 20,0,0 {OUTSIDE}")
    assert [line.split()[1] for line in shown.splitlines()[1:]] == [topology.web.gateway, OUTSIDE]


def test_without_icc_only_a_link_leads_to_a_neighbour(topology: Topology) -> None:
    with serving(topology.alone, "tcp", 80), serving(topology.alone, "tcp", 81):
        assert call(topology.linked, "tcp", topology.alone.ip, 80).seen == topology.linked.ip
        assert fails(topology.linked, "tcp", topology.alone.ip, 81)
    assert unreachable(topology.alone, topology.linked.ip)


def test_fragments_arrive(topology: Topology) -> None:
    for address in (OUTSIDE, topology.peer.ip, topology.web.gateway):
        assert reaches(lambda ping: topology.web.try_(f"{ping} -s 4000"), address)


def test_a_container_sends_nothing_under_anothers_name(topology: Topology) -> None:
    me, you = topology.peer, topology.web
    with taps(me, you) as (sender, watching):
        before = counters(topology.host)
        frame = pk.ethernet(you.mac, you.mac, pk.ETH_IPV4, pk.ipv4(me.ip, you.ip, pk.udp(1, 2)))
        sender.send(frame)
        settle()
        assert rises(before, counters(topology.host)) == {"DROP_SPOOFED_MAC": 1}
        assert frame not in watching.frames()


def test_a_container_cannot_have_its_device_drop_or_pass_by_itself(topology: Topology) -> None:
    """With netkit: the host can, at its end."""
    if topology.kind == NETKIT:
        set_policy(
            topology.host, next(n for n in look.devices(topology.host.sh) if n.startswith(NETKIT)), _PASS
        )
    with pytest.raises(Refused) as caught:
        set_policy(topology.peer, "eth0", _DROP)
    assert caught.value.errno == errno.EACCES or topology.kind != NETKIT
    assert reaches(topology.peer.try_, topology.web.ip)


_NETKIT_POLICY, _PASS, _DROP = 3, 0, 2  # linux/if_link.h


def set_policy(place: Place, device: str, policy: int) -> None:
    """Asks for the default policy of a netkit device."""
    with enter(place.path), rtnetlink.Rtnetlink() as route:
        data = attribute(2, u32(_NETKIT_POLICY, policy))  # IFLA_INFO_DATA
        info = attribute(18, rtnetlink.text(1, NETKIT) + data)  # IFLA_LINKINFO, IFLA_INFO_KIND
        header = rtnetlink.LINK.pack(0, 0, socket.if_nametoindex(device), 0, 0)
        route.do(Message(rtnetlink.NEWLINK, header + info))


# ---- commands -------------------------------------------------------------------------------------


def test_what_somebody_deletes_comes_back_of_the_same_kind(topology: Topology) -> None:
    host = topology.host
    assert doctor(host) == []
    topology.peer.sh("ip link del eth0")
    assert failed_checks(host) == {"pair"}
    host.ctl("reconcile")
    assert doctor(host) == []
    assert look.devices(topology.peer.sh)["eth0"]["linkinfo"]["info_kind"] == topology.kind
    assert reaches(topology.peer.try_, topology.web.ip) and reaches(topology.peer.try_, OUTSIDE)


def test_connect_and_disconnect_make_and_remove_a_device(topology: Topology) -> None:
    before = look.devices(topology.host.sh)
    topology.host.ctl("network connect shop other")
    assert look.devices(topology.other.sh)["eth1"]["linkinfo"]["info_kind"] == topology.kind
    assert reaches(topology.other.try_, topology.web.ip)
    topology.host.ctl("network disconnect shop other")
    assert unreachable(topology.other, topology.web.ip)
    assert look.devices(topology.host.sh) == before


def test_s31_down_leaves_no_netkit_device(host: Host) -> None:
    require(NETKIT)
    look.settled(host)
    before = look.everything(host)
    host.ctl(f"network create -o {OPT_DEVICE}={NETKIT} --ipv6 --subnet 10.5.0.0/24 --subnet fd00:5::/64 shop")
    web, app = (
        start_container(host, "web", "--network shop -p 8081:80"),
        start_container(host, "app", "--network shop"),
    )
    assert reaches(app.try_, web.ip) and reaches(app.try_, OUTSIDE)
    host.ctl("down")
    is_as_before(host, before)
