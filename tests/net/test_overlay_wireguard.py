# SPDX-License-Identifier: Apache-2.0
"""Encrypted overlay networks: WireGuard's device, each host's key, what the others are told of it, and another key
while packets pass. In a lab machine, where this kernel has no WireGuard: docs/lab.md."""

from __future__ import annotations

import json
import os
import shutil
import signal
import stat
import subprocess
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from datapath.kernel import features
from datapath.store import tunnel_keys
from tests.net import faults, forked, look, wireguard_go
from tests.net.cluster import (
    NETWORK,
    NETWORK6,
    OUTSIDE,
    STORE,
    Cluster,
    Member,
    agents,
    remotes,
    remove,
    rows,
)
from tests.net.hosts import (
    PATIENCE,
    Namespace,
    ask,
    echo_server,
    eventually,
    loses,
    pinging,
    reaches,
    sent_and_lost,
)
from tests.net.services import by_one_port, heard, serve
from tests.net.test_doctor import doctor, failed_checks
from tests.net.test_faults import chosen, fault, quiet_ends
from tests.net.test_overlay import TRIED, clear, hears_of, reaches_from

KERNEL = features.has_kind("wireguard")
SUBNETS = "--ipv6 --subnet 10.7.0.0/16 --subnet fd00:7::/64"
pytestmark = pytest.mark.skipif(
    not KERNEL and not shutil.which("wireguard-go"), reason="this kernel has no WireGuard"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where the processes of wireguard-go are noted; none, if the kernel has WireGuard itself."""
    made = tmp_path_factory.mktemp("wireguard")
    if not KERNEL:
        forked.in_child.append(wireguard_go.install)
    yield made
    forked.in_child.clear()
    for noted in made.iterdir():
        with suppress(ProcessLookupError):
            os.killpg(int(noted.read_text()), signal.SIGKILL)


def prepared(host: Member, folder: Path) -> Member:
    """All that runs on the host has WireGuard."""
    if not KERNEL:
        assert host.env is not None
        place = Path(wireguard_go.__file__).parent
        host.env["PYTHONPATH"] = f"{host.env['PYTHONPATH']}:{place}"
        host.env[wireguard_go.VARIABLE] = str(folder)
    return host


def wg(host: Member, words: str) -> str:
    """What `wg` says on the host."""
    command = ["sh", "-c", words]
    if not KERNEL:
        assert host.env is not None
        pid = wireguard_go.pid_of(Path(host.env[wireguard_go.VARIABLE]), host.path, "dp-wg")
        command = ["nsenter", f"--mount=/proc/{pid}/ns/mnt", *command]
    return host.sh(command)


@pytest.fixture(scope="module")
def pair(cluster: Cluster, folder: Path) -> Iterator[Cluster]:
    """The encrypted network `ov` with the container `a` on the first host and `b` on the second; an agent on each."""
    for host in cluster:
        prepared(host, folder)
    cluster[0].ctl(f"network create -d overlay -o encrypted {SUBNETS} ov")
    with agents(cluster.hosts):
        cluster[0].run("a", "--network ov")
        cluster[1].run("b", "--network ov")
        heard_of_b(cluster)
        yield cluster
        clear(cluster)


def heard_of_b(cluster: Cluster) -> None:
    """Waits until the first host's agent has heard of the second one's container, which knows of the first's itself."""
    with eventually() as until:
        until(lambda: "b" in remotes(cluster[0]))


def key_of(host: Member) -> str:
    """The public key that the host has told the others."""
    (own,) = (row for row in rows(host, "peers") if row["name"] == host.name)
    return str(own["wireguard_key"])


def file_of(host: Member) -> Path:
    return host.folder / "state" / tunnel_keys.NAME


def well(cluster: Cluster) -> None:
    """Both containers reach each other, and `doctor` has nothing to say."""
    for host, name, other, peer in ((cluster[0], "a", cluster[1], "b"), (cluster[1], "b", cluster[0], "a")):
        assert reaches_from(host, name, other.address(peer, "ov"))
    for host in cluster:
        assert doctor(host) == []


@contextmanager
def captured(host: Member) -> Iterator[list[str]]:
    """What leaves the host and comes to it meanwhile, without what is about its neighbours and the store, and without
    the hosts' own echoes, by which doctor asks."""
    found: list[str] = []
    own = f"net {NETWORK}.0/24 or net {NETWORK6}:0/112 or net fe80::/10 or net ff00::/8"
    quiet = f"not arp and not (tcp and host {STORE}) and not ((icmp or icmp6) and ({own}))"
    command = ["tcpdump", "-n", "-l", "-i", "eth0", "--immediate-mode", quiet]
    process = host.start(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stderr is not None and process.stdout is not None
    while "listening on" not in process.stderr.readline():
        pass
    yield found
    process.terminate()
    found += filter(None, process.communicate()[0].splitlines())


def test_s23_members_of_an_encrypted_network_reach_each_other_at_once(pair: Cluster) -> None:
    for host, name, other, peer in ((pair[0], "a", pair[1], "b"), (pair[1], "b", pair[0], "a")):
        said = host.in_(name, f"ping -n -c {TRIED} -i 0.2 -W {PATIENCE:g} {other.address(peer, 'ov')}")
        assert " 0% packet loss" in said and "ttl=64" in said
        assert "mtu 1440" in host.in_(name, "ip link show eth0")
    well(pair)


def test_o14_nothing_of_an_encrypted_network_leaves_in_clear(pair: Cluster) -> None:
    """Not even while the device is gone."""
    theirs = pair[1].address("b", "ov")
    with captured(pair[0]) as found:
        assert reaches_from(pair[0], "a", theirs)
        for _ in range(3):  # the agent makes it again
            pair[0].sh("ip link del dp-wg")
            pair[0].try_in("a", f"ping -n -c 3 -i 0.01 -W 1 {theirs}")
            with eventually() as until:
                until(lambda: doctor(pair[0]) == [])
    ends = (f"{pair[0].vtep}.51820", f"{pair[1].vtep}.51820")
    assert found and [line for line in found if not all(end in line for end in ends)] == []
    well(pair)


def six(host: Member, name: str) -> str:
    """A container's IPv6 address."""
    return str(host.inspect(name)["NetworkSettings"]["Networks"]["ov"]["GlobalIPv6Address"])


def all_reach_all(hosts: Sequence[Member]) -> None:
    """Two containers, and the hosts themselves, by both IP versions."""
    for host, name, other, peer in ((hosts[0], "a", hosts[1], "b"), (hosts[1], "b", hosts[0], "a")):
        for address in (other.address(peer, "ov"), six(other, peer)):
            assert reaches_from(host, name, address)
            assert reaches(host.try_, address, TRIED)


def test_s23_the_host_reaches_members_on_other_hosts_and_nothing_of_it_is_in_clear(pair: Cluster) -> None:
    """By both IP versions, as the gateway, which is not told apart by its address."""
    with captured(pair[0]) as found:
        all_reach_all(pair.hosts)
        pair[1].run("web", "--network ov", echo_server("tcp", 80))
        address = pair[1].address("web", "ov")
        with eventually() as until:
            until(lambda: pair[0].try_(ask("tcp", address, 80)).returncode == 0)
        assert pair[0].sh(ask("tcp", address, 80)).split()[0] == "10.7.0.1"
        theirs = pair[1].address("b", "ov")
        assert pair[0].try_(f"ping -c 1 -W 10 -M do -s {1440 - 28} {theirs}").returncode == 0
        assert pair[0].try_(f"ping -c 1 -W 1 -M do -s {1441 - 28} {theirs}").returncode != 0
        remove(pair[1], "web")
    ends = (f"{pair[0].vtep}.51820", f"{pair[1].vtep}.51820")
    assert found and [line for line in found if not all(end in line for end in ends)] == []


def test_s23_published_ports_of_members_of_an_encrypted_network_are_answered(pair: Cluster) -> None:
    """Whoever asks: a machine outside, a member on the other host, and one on the same."""
    pair[0].run("web", "--network ov -p 8080:80", echo_server("tcp", 80))
    asked = ask("tcp", pair[0].vtep, 8080)
    with eventually() as until:
        until(lambda: pair.switch.try_(asked).returncode == 0)
    assert pair.switch.sh(asked).split()[0] == OUTSIDE
    assert pair[1].in_("b", asked).split()[0] == pair[1].vtep
    assert pair[0].in_("a", asked)
    assert pair[1].sh(asked).split()[0] == pair[1].vtep
    remove(pair[0], "web")
    well(pair)


def test_s26_ports_of_services_of_an_encrypted_network_are_answered_by_every_host(
    pair: Cluster, folder: Path
) -> None:
    """Also by one that has no container on the network. A backend on the host that is asked sees the client, one on
    another the gateway, in whose name that host asks: no other source is believed out of its tunnel."""
    pair[0].ctl("service create --network ov -p 8090:80 -p 8090:80/udp web")
    serve(pair[1], "w1", "--network ov --service web", "ov")
    with eventually() as until:
        until(lambda: said(pair.switch.try_, "tcp", pair[0].vtep, 8090))
    (vip,) = (one for one in virtual(pair[0], "web") if ":" not in one)
    gateway = {f"w1 ::ffff:{pair[0].network('ov')['IPAM']['Config'][0]['Gateway']}"}
    with captured(pair[1]) as found:
        for proto in ("tcp", "udp"):
            assert said(pair.switch.try_, proto, pair[0].vtep, 8090) == gateway
            assert said(pair[0].try_, proto, pair[0].vtep, 8090) == gateway
            assert said(pair[0].try_, proto, vip, 80) == gateway
    ends = (f"{pair[0].vtep}.51820", f"{pair[1].vtep}.51820")
    assert found and [line for line in found if not all(end in line for end in ends)] == []
    assert said(pair.switch.try_, "tcp", pair[1].vtep, 8090) == {f"w1 ::ffff:{OUTSIDE}"}
    third = prepared(pair.add(), folder)
    with agents([third]):
        third.ctl("network create -d overlay -o encrypted else")
        with eventually() as until:
            until(lambda: said(pair.switch.try_, "tcp", third.vtep, 8090) == gateway)
        assert said(pair.switch.try_, "udp", third.vtep, 8090) == gateway
        for proto in ("tcp", "udp"):  # a client's port is that of both hosts, in one name
            asked = [pair[0].vtep, third.vtep]
            both = by_one_port(pair.switch.try_, proto, OUTSIDE, asked, 8090)
            assert {line for heard_by in both for line in heard_by} == gateway
        for host in pair:
            assert doctor(host) == []
        pair[0].ctl("service rm web")
        remove(pair[1], "w1")
        third.ctl("network rm else")
        third.ctl("down")
    pair.hosts.remove(third)
    third.close()
    with eventually() as until:
        until(lambda: doctor(pair[0]) == doctor(pair[1]) == [])


# Sends so many bytes to whoever connects.
GIVES = """
import socket
with socket.create_server(("::", 80), family=socket.AF_INET6, dualstack_ipv6=True) as server:
    while True:
        client, _ = server.accept()
        with client:
            client.sendall(bytes(300000))
"""
# Reads to the end; prints how much it was.
READS = """
import socket, sys
with socket.create_connection((sys.argv[1], int(sys.argv[2])), 20) as client:
    print(sum(len(part) for part in iter(lambda: client.recv(65536), b"")))
"""
BEHIND, BEHIND6 = "198.51.100", "2001:db8:51:"  # of the link behind a router


@pytest.mark.parametrize("version", [4, 6])
def test_s26_a_backend_of_an_encrypted_network_hears_what_routers_say_of_its_answers(
    pair: Cluster, version: int
) -> None:
    """Path MTU discovery: on the client's side is a link that takes less than the tunnel, which its router says to the
    host that was asked."""
    pair[0].ctl("service create --network ov -p 8093:80 wide")
    router, client = pair.switch, Namespace()
    try:
        pair[1].run("w2", "--network ov --service wide", ["python3", "-u", "-c", GIVES])
        router.batch(
            f"link add narrow mtu 1300 type veth peer name eth0 mtu 1500 netns {client.pid}",
            f"address add {BEHIND}.1/24 dev narrow",
            f"address add {BEHIND6}:1/64 dev narrow nodad",
            "link set narrow up",
        )
        router.sh("sysctl -q -w net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1")
        client.sh(
            "ip -batch -",
            input=f"address add {BEHIND}.2/24 dev eth0\naddress add {BEHIND6}:2/64 dev eth0 nodad\n"
            f"link set eth0 up\nroute add default via {BEHIND}.1\nroute add default via {BEHIND6}:1\n",
        )
        if version == 6:
            pair[0].sh(f"ip route add {BEHIND6}:/64 via {NETWORK6}:fe")
        asked = ["python3", "-c", READS, pair[0].vtep if version == 4 else pair[0].vtep6, "8093"]
        with eventually() as until:
            until(lambda: client.try_(asked).stdout == "300000\n")
        gateway = pair[0].network("ov")["IPAM"]["Config"][version == 6]["Gateway"]
        assert "mtu 1300" in pair[1].in_("w2", f"ip route get {gateway}")
        for host in pair:
            assert doctor(host) == []
    finally:
        client.close()
        router.try_("ip link del narrow")
        router.sh("sysctl -q -w net.ipv4.ip_forward=0 net.ipv6.conf.all.forwarding=0")
        pair[0].try_(f"ip route del {BEHIND6}:/64")
        pair[0].ctl("service rm wide")
        remove(pair[1], "w2")


def virtual(host: Member, service: str) -> list[str]:
    """The addresses of a service."""
    found = json.loads(host.ctl(f"service inspect {service}"))[0]["Endpoint"]["VirtualIPs"]
    return [one["Addr"].split("/")[0] for one in found]


def said(
    run: Callable[..., subprocess.CompletedProcess[str]], proto: str, address: str, port: int
) -> set[str]:
    """What was answered to a few clients; nothing, if any was not."""
    found = heard(run, proto, address, port, 5, 10)
    return set(found) if all(line.startswith("w1 ") for line in found) else set()


def test_s35_doctor_asks_other_hosts_through_encrypted_tunnels(pair: Cluster) -> None:
    pair.switch.sh("ip link set p2 mtu 1400")
    try:
        (said,) = pair[0].try_ctl("doctor --format {{.Check}}|{{.Detail}}").stdout.splitlines()
        assert (
            said == "peer-mtu|packets of 1380 bytes come back from it by its tunnel, those of 1500 are lost"
        )
    finally:
        pair.switch.sh("ip link set p2 mtu 1500")
    well(pair)


def test_s23_hosts_with_ipv6_addresses_encrypt_too(
    make_cluster: Callable[..., Cluster], folder: Path
) -> None:
    made = make_cluster(0)
    for number in (1, 2):
        prepared(made.add(config={"cluster-advertise": f"2001:db8:7::{number}"}), folder)
    made[0].ctl(f"network create -d overlay -o encrypted {SUBNETS} ov")
    made[0].run("a", "--network ov")
    made[1].run("b", "--network ov")
    hears_of(made[0], "ov")
    with captured(made[0]) as found:
        all_reach_all(made.hosts)
        assert "mtu 1420" in made[0].in_("a", "ip link show eth0")
        assert [doctor(host) for host in made] == [[], []]
    assert found and [line for line in found if ".51820" not in line] == []


def test_s37_a_private_key_is_in_its_file_alone(pair: Cluster) -> None:
    with pair.etcd.client() as store:
        told = "".join(entry.value for entry in store.list().entries.values())
    for host in pair:
        (key,) = tunnel_keys.read(host.folder / "state")
        assert stat.S_IMODE(file_of(host).stat().st_mode) == 0o600
        assert key.public == key_of(host) and key.public in told and key.private not in told
        database = b"".join(path.read_bytes() for path in (host.folder / "state").glob("datapath.db*"))
        assert key.private.encode() not in database
        said = host.ctl("cluster hosts --format json") + host.ctl("network inspect ov") + host.ctl("doctor")
        assert key.private not in said


def test_s23_an_address_of_another_hosts_block_is_believed_from_who_has_it(pair: Cluster) -> None:
    theirs = pair[0].address("a", "ov")
    wanted = theirs.rpartition(".")[0] + ".33"
    pair[1].run("guest", f"--network ov --ip {wanted}")
    try:
        with eventually() as until:
            until(lambda: f"{wanted}/32" in wg(pair[0], "wg show dp-wg allowed-ips"))
        assert reaches_from(pair[0], "a", wanted)
    finally:
        remove(pair[1], "guest")
    with eventually() as until:
        until(lambda: f"{wanted}/32" not in wg(pair[0], "wg show dp-wg allowed-ips"))
    well(pair)


@pytest.mark.parametrize(
    ("fault", "check"),
    [
        ("ip link set dp-wg down", "down"),
        ("ip link set dp-wg mtu 1300", "encryption"),
        ("wg set dp-wg listen-port 4444", "encryption"),
        ("wg genkey > /tmp/k; wg set dp-wg private-key /tmp/k; rm /tmp/k", "encryption"),
        ("wg set dp-wg peer $(wg show dp-wg peers) remove", "encryption"),
        ("wg set dp-wg peer $(wg show dp-wg peers) allowed-ips 10.7.200.0/24", "encryption"),
        ("wg set dp-wg peer $(wg genkey) allowed-ips 10.7.200.0/24", "encryption"),
    ],
)
def test_s30_what_becomes_of_the_device_is_seen_and_put_right(pair: Cluster, fault: str, check: str) -> None:
    wg(pair[0], fault)
    assert check in failed_checks(pair[0])
    pair[0].ctl("reconcile")
    well(pair)


def test_s30_an_upgrade_tells_the_device_what_hosts_are_called_in_tunnels(pair: Cluster) -> None:
    """A version that gave hosts no names of their own has left none there (decision 59)."""
    for host, other, peer in ((pair[0], pair[1], "b"), (pair[1], pair[0], "a")):
        theirs = other.address(peer, "ov")
        ((key, said),) = (line.split("\t") for line in wg(other, "wg show dp-wg allowed-ips").splitlines())
        named = said.split()
        kept = [one for one in named if not one.startswith(("0.0.0.", "100::"))]
        assert len(kept) == len(named) - 2
        wg(other, f"wg set dp-wg peer {key} allowed-ips {','.join(kept)}")
        assert loses(host.try_, theirs)
        other.ctl("upgrade")
        assert sorted(wg(other, "wg show dp-wg allowed-ips").split()[1:]) == sorted(named)
        for address in (theirs, six(other, peer)):
            assert reaches(host.try_, address, TRIED)
    well(pair)


def test_s30_a_host_that_does_not_answer_is_named(pair: Cluster) -> None:
    """As where its UDP port is closed on the way."""

    def made_anew() -> bool:
        wg(pair[0], "wg set dp-wg peer $(wg show dp-wg peers) remove")
        pair[0].ctl("reconcile")
        return wg(pair[0], "wg show dp-wg latest-handshakes").endswith("\t0")

    closed = "INPUT -p udp --dport 51820 -j DROP"
    pair[1].sh(f"iptables -A {closed}")
    with eventually() as until:
        until(made_anew)  # and nobody has answered any more
        until(lambda: failed_checks(pair[0]) == {"handshake", "peer"})
    pair[1].sh(f"iptables -D {closed}")
    with eventually() as until:
        until(lambda: doctor(pair[0]) == [])
    well(pair)


def knows(host: Member, key: str, before: str) -> None:
    """Waits until the host has heard of the other one's key."""
    with eventually() as until:
        until(
            lambda: key in wg(host, "wg show dp-wg peers") and before not in wg(host, "wg show dp-wg peers")
        )


# ---- another key ---------------------------------------------------------------------------------------


def test_s23_no_packet_is_lost_while_a_host_gets_another_key(pair: Cluster) -> None:
    within = [("nsenter", f"--net=/proc/{pair[n].process(name)}/ns/net") for n, name in ((0, "a"), (1, "b"))]
    there = pinging(pair[0], pair[1].address("b", "ov"), 71, 0.02, within[0])
    back = pinging(pair[1], pair[0].address("a", "ov"), 72, 0.02, within[1])
    for host in pair:
        before = key_of(host)
        said = host.ctl("cluster rotate-key")
        assert said == key_of(host) == wg(host, "wg show dp-wg public-key") != before
        knows(pair[1] if host is pair[0] else pair[0], said, before)
    for process in (there, back):
        sent, lost = sent_and_lost(process)
        print(f"{sent} packets, {lost} lost")
        assert sent > 0 and lost == 0
    well(pair)


def test_s30_a_key_that_the_store_does_not_hear_of_is_not_taken(pair: Cluster) -> None:
    before = key_of(pair[0])
    with pair.store_away():
        assert "does not answer" in pair[0].refused("cluster rotate-key")
        assert reaches_from(pair[0], "a", pair[1].address("b", "ov"))
    (key,) = tunnel_keys.read(pair[0].folder / "state")
    assert key.public == key_of(pair[0]) == before
    with eventually() as until:
        until(lambda: doctor(pair[0]) == [])
    well(pair)


def leaves(third: Member, others: Iterable[Member]) -> None:
    """It takes all away, and the others, on which agents are at work, have heard of it: doctor would ask it still."""
    third.ctl("down")
    with eventually() as until:
        until(lambda: not any(third.name in {row["name"] for row in rows(host, "peers")} for host in others))


def test_s30_a_host_that_would_not_hear_of_the_key_is_named(pair: Cluster, folder: Path) -> None:
    third = prepared(pair.add(), folder)
    third.run("c", "--network ov")
    try:
        with eventually() as until:
            until(lambda: third.name in {row["name"] for row in rows(pair[0], "peers")})
            until(lambda: wg(third, "wg show dp-wg public-key") in wg(pair[0], "wg show dp-wg peers"))
        assert reaches_from(pair[0], "a", third.address("c", "ov"))
        assert f"no agent is at work on {third.name}" in pair[0].refused("cluster rotate-key")
        assert pair[0].ctl("cluster rotate-key --force") == key_of(pair[0])
        hears_of(third, "ov")
        assert reaches_from(third, "c", pair[0].address("a", "ov"))
    finally:
        remove(third, "c")
        leaves(third, pair.hosts[:2])
    assert not file_of(third).exists()
    assert look.devices(third.sh).keys() == {"lo", "eth0"}
    well(pair)


def test_s30_a_command_that_is_killed_at_any_step_of_another_key_loses_nothing(pair: Cluster) -> None:
    host = pair[0]
    forked.in_child.extend([quiet_ends, faults.install])
    try:
        assert host.try_ctl("cluster rotate-key").returncode == 0
        steps = faults.last().steps
        assert steps > 5
        for kind in ("kill", "error"):
            for number in chosen("overlay: rotate-key", kind, steps):
                fault(host, "cluster rotate-key", kind, number)
                host.try_ctl("reconcile")
                with eventually() as until:
                    until(lambda: doctor(host) == [])
                assert reaches_from(host, "a", pair[1].address("b", "ov")), f"{kind}@{number}"
    finally:
        del forked.in_child[-2:]
    (key,) = tunnel_keys.read(host.folder / "state")
    assert key.public == key_of(host)
    well(pair)


# ---- what is refused, and the end ------------------------------------------------------------------------


def test_s37_who_has_the_port_is_named(pair: Cluster, folder: Path) -> None:
    third = prepared(pair.add(config={"datapath": {"wireguard-port": 4789}}), folder)
    said = third.refused("run -d --network ov sleep 1")
    assert "UDP port 4789, at which this host is to receive encrypted packets, is taken by" in said
    third.configure({**pair.settings, "datapath": {"wireguard-port": 4500}})
    third.run("c", "--network ov")
    with eventually() as until:
        until(lambda: f"{third.vtep}:4500" in wg(pair[0], "wg show dp-wg endpoints"))
    assert reaches_from(third, "c", pair[0].address("a", "ov"))
    remove(third, "c")
    leaves(third, pair.hosts[:2])


def test_s31_the_device_goes_with_the_last_encrypted_network(pair: Cluster) -> None:
    pair[0].ctl("network create -d overlay clear")
    clear_of = [host.folder / "state" for host in pair.hosts[:2]]
    for host, name in ((pair[0], "a"), (pair[1], "b")):
        remove(host, name)
    pair[0].ctl("network rm ov")
    assert "dp-wg" not in look.devices(pair[0].sh)
    assert doctor(pair[0]) == []
    pair[0].ctl("network create -d overlay -o com.datapath.transport=wireguard ov")
    pair[0].run("a", "--network ov")
    pair[1].run("b", "--network ov")
    heard_of_b(pair)
    well(pair)
    pair[0].ctl("network rm clear")
    assert [tunnel_keys.read(folder) != () for folder in clear_of] == [True, True]
