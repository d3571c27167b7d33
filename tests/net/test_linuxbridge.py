# SPDX-License-Identifier: Apache-2.0
"""S28: the same network in each of its modes. What the packet programs do, a Linux bridge with Docker's rules does
too, for a benchmark to compare them; where the two differ the test says so."""

from __future__ import annotations

import errno
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import NamedTuple

import pytest

from datapath.dataplane.programs import Dataplane
from datapath.kernel import abi
from tests.net import look
from tests.net.hosts import FAR, HOST, OUTSIDE, Host, reaches
from tests.net.test_ipv6 import HOST6, OUTSIDE6, plug_ipv6
from tests.net.wire import Container, call, fails, serving, start_container, unreachable

Maker = Callable[..., Host]
FIREWALLS = ("iptables", "nftables")
BOTH = pytest.mark.parametrize("mode", FIREWALLS)
PROTO = pytest.mark.parametrize("proto", ["tcp", "udp"])
MODE, BRIDGE = "com.datapath.mode", "com.docker.network.bridge"
SINK = "network prune -f --filter label=nobody"  # a command that changes something, but nothing here


class Topology(NamedTuple):
    """Network `a` has both families, `b` IPv4 only; `web` publishes 8081:80 for tcp and udp, everywhere, and
    8082:80 at 127.0.0.1."""

    mode: str
    host: Host
    web: Container
    app: Container
    far: Container


@pytest.fixture(scope="module", params=["ebpf", *FIREWALLS])
def topology(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Topology]:
    with ExitStack() as stack:
        host = Host(tmp_path_factory.mktemp("host"))
        stack.callback(host.close)
        plug_ipv6(host)
        option = f"-o {MODE}={request.param}"
        host.ctl(
            f"network create {option} --ipv6 --subnet 10.5.0.0/24 --subnet fd05::/64 -o {BRIDGE}.name=dpa a"
        )
        host.ctl(f"network create {option} --subnet 10.6.0.0/24 b")
        ports = "-p 8081:80 -p 8081:80/udp -p 127.0.0.1:8082:80"
        web = start_container(host, "web", f"--network a {ports}")
        yield Topology(
            request.param,
            host,
            web,
            start_container(host, "app", "--network a"),
            start_container(host, "far", "--network b"),
        )


def filter_of(host: Host) -> list[str]:
    """All rules and chains, without what they have counted."""
    saved = f"{host.sh('iptables-save')}\n{host.sh('ip6tables-save')}"
    lines = [line for line in saved.splitlines() if line.startswith("-A") or " - " in line]
    for version in ("ip", "ip6"):
        shown = host.try_(f"nft list table {version} docker-bridges").stdout
        lines += re.sub(r"packets \d+ bytes \d+", "", shown).splitlines()
    return lines


# ---- who reaches whom --------------------------------------------------------------------------


@PROTO
def test_s28_members_reach_each_other_and_the_host_reaches_them(topology: Topology, proto: str) -> None:
    with serving(topology.web, proto, 80):
        assert call(topology.app, proto, topology.web.ip, 80).seen == topology.app.ip
        assert call(topology.host, proto, topology.web.ip, 80).seen == topology.web.gateway


def test_s28_networks_cannot_reach_each_other(topology: Topology) -> None:
    with serving(topology.web, "tcp", 80), serving(topology.far, "tcp", 80):
        assert fails(topology.far, "tcp", topology.web.ip, 80) == errno.ETIMEDOUT
        assert fails(topology.app, "tcp", topology.far.ip, 80) == errno.ETIMEDOUT


@PROTO
def test_s28_a_published_port_is_reached_from_outside_with_the_clients_address(
    topology: Topology, proto: str
) -> None:
    with serving(topology.web, proto, 80):
        answer = call(topology.host.outside, proto, HOST, 8081)
    assert (answer.seen, answer.peer, answer.peer_port) == (OUTSIDE, HOST, 8081)


@PROTO
def test_s28_a_published_port_is_reached_over_ipv6(topology: Topology, proto: str) -> None:
    with serving(topology.web, proto, 80, "::"):
        assert call(topology.host.outside, proto, HOST6, 8081).seen == OUTSIDE6
        assert call(topology.host, proto, HOST6, 8081).peer == HOST6


@PROTO
@pytest.mark.parametrize("address", [HOST, "127.0.0.1"])
def test_s28_a_published_port_is_reached_from_the_host(topology: Topology, proto: str, address: str) -> None:
    with serving(topology.web, proto, 80):
        answer = call(topology.host, proto, address, 8081)
    assert answer.peer == address
    # Rules cannot tell the host's own addresses apart; the packet programs keep the one that was used.
    assert answer.seen == (HOST if topology.mode == "ebpf" and address == HOST else topology.web.gateway)


@PROTO
@pytest.mark.parametrize("name", ["web", "app", "far"])
def test_s28_a_published_port_is_reached_by_containers_and_by_the_one_itself(
    topology: Topology, proto: str, name: str
) -> None:
    with serving(topology.web, proto, 80):
        assert call(getattr(topology, name), proto, HOST, 8081).peer == HOST


def test_s28_a_port_at_127_0_0_1_is_the_hosts_alone(topology: Topology) -> None:
    with serving(topology.web, "tcp", 80):
        assert call(topology.host, "tcp", "127.0.0.1", 8082).peer_port == 8082
        assert fails(topology.host.outside, "tcp", HOST, 8082)


def test_s28_nobody_outside_addresses_a_container_itself(topology: Topology) -> None:
    topology.host.outside.sh(f"ip route replace 10.5.0.0/24 via {HOST}")
    topology.host.outside.sh(f"ip -6 route replace fd05::/64 via {HOST6}")
    with serving(topology.web, "tcp", 80, "::"):
        assert fails(topology.host.outside, "tcp", topology.web.ip, 80)
        assert fails(topology.host.outside, "tcp", topology.web.ip6, 80)


@PROTO
def test_s28_containers_reach_the_outside_with_the_hosts_address(topology: Topology, proto: str) -> None:
    with serving(topology.host.outside, proto, 9000, "::"):
        seen = call(topology.app, proto, OUTSIDE, 9000).seen
        assert seen == f"::ffff:{HOST}"
        assert call(topology.web, proto, OUTSIDE6, 9000).seen == HOST6
    assert reaches(topology.far.try_, FAR)


def test_s28_ports_come_and_go_while_the_container_runs(topology: Topology) -> None:
    topology.host.ctl("port add app 8090:80")
    topology.host.ctl("port add app 8091:80")
    with serving(topology.app, "tcp", 80):
        assert call(topology.host.outside, "tcp", HOST, 8090).seen == OUTSIDE
        topology.host.ctl("port rm app 8090:80")
        assert call(topology.host.outside, "tcp", HOST, 8091).seen == OUTSIDE
        assert fails(topology.host.outside, "tcp", HOST, 8090) == errno.ECONNREFUSED
    topology.host.ctl("port rm app 8091:80")


def test_s28_a_container_on_two_networks_keeps_its_ports_when_its_egress_moves(topology: Topology) -> None:
    topology.host.ctl("network connect --gw-priority 5 b web")
    moved = filter_of(topology.host)
    with serving(topology.web, "tcp", 80):
        assert call(topology.host.outside, "tcp", HOST, 8081).seen == OUTSIDE
        assert call(topology.web, "tcp", HOST, 8081).peer == HOST
    if topology.mode != "ebpf":
        assert [line for line in moved if "10.6.0.3:80" in line]
        assert not [line for line in moved if "10.5.0.2:80" in line]
    topology.host.ctl("network disconnect b web")
    with serving(topology.web, "tcp", 80):
        assert call(topology.host.outside, "tcp", HOST, 8081).seen == OUTSIDE
        assert fails(topology.far, "tcp", topology.web.ip, 80) == errno.ETIMEDOUT


def test_s28_names_and_inspect_are_as_in_any_mode(topology: Topology) -> None:
    topology.host.ctl("run -d --name one --network a --network-alias uno --ip 10.5.0.77 sleep 3600")
    assert topology.host.address("one", "a") == "10.5.0.77"
    assert "10.5.0.77\t" in topology.host.in_("one", "cat /etc/hosts")
    assert topology.host.network("a")["Options"][MODE] == topology.mode
    topology.host.ctl("rm -f one")


# ---- what is built -----------------------------------------------------------------------------


def test_s28_a_linuxbridge_host_has_a_bridge_and_no_packet_program(topology: Topology) -> None:
    if topology.mode == "ebpf":
        return
    links = look.devices(topology.host.sh)
    assert links["dpa"]["linkinfo"]["info_kind"] == "bridge"
    veths = [link for name, link in links.items() if name.startswith("veth")]
    assert len(veths) >= 3 and all(link["linkinfo"]["info_slave_data"]["hairpin"] for link in veths)
    assert not (topology.host.bpffs / "datapath").exists()
    assert "xdp" not in topology.host.sh("ip link") and "bpf" not in topology.host.sh(
        "tc filter show dev eth0 ingress"
    )


IPTABLES = """
raw -A PREROUTING -d 10.5.0.2/32 ! -i dpa -j DROP
raw -A PREROUTING -d 127.0.0.1/32 ! -i lo -p tcp -m tcp --dport 8082 -j DROP
raw -A PREROUTING -d 10.5.0.3/32 ! -i dpa -j DROP
nat -A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER
nat -A OUTPUT -m addrtype --dst-type LOCAL -j DOCKER
nat -A POSTROUTING -o dpa -m addrtype --src-type LOCAL -j MASQUERADE
nat -A POSTROUTING -s 10.5.0.0/24 ! -o dpa -j MASQUERADE
nat -A POSTROUTING -s 10.5.0.2/32 -d 10.5.0.2/32 -p tcp -m tcp --dport 80 -j MASQUERADE
nat -A POSTROUTING -s 10.5.0.2/32 -d 10.5.0.2/32 -p udp -m udp --dport 80 -j MASQUERADE
nat -A DOCKER -p tcp -m tcp --dport 8081 -j DNAT --to-destination 10.5.0.2:80
nat -A DOCKER -p udp -m udp --dport 8081 -j DNAT --to-destination 10.5.0.2:80
nat -A DOCKER -d 127.0.0.1/32 -p tcp -m tcp --dport 8082 -j DNAT --to-destination 10.5.0.2:80
filter -A FORWARD -j DOCKER-USER
filter -A FORWARD -j DOCKER-FORWARD
filter -A DOCKER -d 10.5.0.2/32 ! -i dpa -o dpa -p udp -m udp --dport 80 -j ACCEPT
filter -A DOCKER -d 10.5.0.2/32 ! -i dpa -o dpa -p tcp -m tcp --dport 80 -j ACCEPT
filter -A DOCKER ! -i dpa -o dpa -j DROP
filter -A DOCKER-BRIDGE -o dpa -j DOCKER
filter -A DOCKER-CT -o dpa -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
filter -A DOCKER-FORWARD -j DOCKER-CT
filter -A DOCKER-FORWARD -j DOCKER-INTERNAL
filter -A DOCKER-FORWARD -j DOCKER-BRIDGE
filter -A DOCKER-FORWARD -i dpa -j ACCEPT
"""

NFTABLES = """
filter-FORWARD: oifname vmap @filter-forward-in-jumps
filter-FORWARD: iifname vmap @filter-forward-out-jumps
filter-forward-in__dpa: ct state established,related counter accept
filter-forward-in__dpa: iifname "dpa" counter accept comment "ICC"
filter-forward-in__dpa: goto filter-forward-ports__dpa
filter-forward-out__dpa: ct state established,related counter accept
filter-forward-out__dpa: counter accept comment "OUTGOING"
filter-forward-ports__dpa: ip daddr 10.5.0.2 udp dport 80 counter accept
filter-forward-ports__dpa: ip daddr 10.5.0.2 tcp dport 80 counter accept
filter-forward-ports__dpa: counter drop comment "UNPUBLISHED PORT DROP"
nat-OUTPUT: fib daddr type local counter jump nat-prerouting-and-output
nat-POSTROUTING: iifname vmap @nat-postrouting-out-jumps
nat-POSTROUTING: oifname vmap @nat-postrouting-in-jumps
nat-PREROUTING: fib daddr type local counter jump nat-prerouting-and-output
nat-postrouting-in__dpa: fib saddr type local counter masquerade comment "MASQUERADE FROM HOST"
nat-postrouting-in__dpa: ip saddr 10.5.0.2 ip daddr 10.5.0.2 tcp dport 80 counter masquerade comment "MASQ TO OWN PORT"
nat-postrouting-in__dpa: ip saddr 10.5.0.2 ip daddr 10.5.0.2 udp dport 80 counter masquerade comment "MASQ TO OWN PORT"
nat-postrouting-out__dpa: oifname != "dpa" ip saddr 10.5.0.0/24 counter masquerade comment "MASQUERADE"
nat-prerouting-and-output: tcp dport 8081 counter dnat to 10.5.0.2:80 comment "DNAT"
nat-prerouting-and-output: udp dport 8081 counter dnat to 10.5.0.2:80 comment "DNAT"
nat-prerouting-and-output: ip daddr 127.0.0.1 tcp dport 8082 counter dnat to 10.5.0.2:80 comment "DNAT"
raw-PREROUTING: ip daddr 10.5.0.2 iifname != "dpa" counter drop comment "DROP DIRECT ACCESS"
raw-PREROUTING: iifname != "lo" ip daddr 127.0.0.1 tcp dport 8082 counter drop comment "DROP REMOTE LOOPBACK"
raw-PREROUTING: ip daddr 10.5.0.3 iifname != "dpa" counter drop comment "DROP DIRECT ACCESS"
"""


def shown(host: Host, mode: str) -> list[str]:
    """The IPv4 rules with their table or chain, in the order of each chain."""
    rules, where = [], ""
    if mode == "iptables":
        for line in host.sh("iptables-save").splitlines():
            where = line[1:] if line.startswith("*") else where
            rules += [f"{where} {line}"] if line.startswith("-A") else []
        return rules
    for line in (line.strip() for line in host.sh("nft list table ip docker-bridges").splitlines()):
        if line.startswith(("chain ", "map ")):
            where = line.split()[1]
        elif line not in ("}", "") and "jumps" not in where and not line.startswith(("type ", "table ")):
            rules.append(f"{where}: {re.sub(r'counter packets [0-9]+ bytes [0-9]+', 'counter', line)}")
    return rules


@BOTH
def test_s28_the_rules_are_dockers(make_host: Maker, mode: str) -> None:
    host = look.settled(make_host())
    before = look.everything(host)
    host.ctl(f"network create -o {MODE}={mode} --subnet 10.5.0.0/24 -o {BRIDGE}.name=dpa a")
    host.run("web", "--network a -p 8081:80 -p 8081:80/udp -p 127.0.0.1:8082:80")
    host.run("app", "--network a")
    wanted = (IPTABLES if mode == "iptables" else NFTABLES).strip().splitlines()
    assert sorted(shown(host, mode), key=wanted.index) == wanted  # a rule too many has no index
    chains = [rule.split(" -")[0] for rule in wanted]  # within a chain the order counts too
    for chain in chains:
        assert [r for r in shown(host, mode) if r.startswith(chain)] == [
            r for r in wanted if r.startswith(chain)
        ]
    # A second network, links, both families: and nothing of it is left.
    host.ctl(f"network create -o {MODE}={mode} -o {BRIDGE}.enable_icc=false --ipv6 q")
    host.run("db", "--network q --expose 5432 -p 127.0.0.5:99:99")
    host.run("user", "--network q --link db -p 7000:70")
    host.ctl("network connect q web")
    host.ctl("down")
    after = look.everything(host)
    assert {kind: (before[kind], after[kind]) for kind in before if before[kind] != after[kind]} == {}


@BOTH
def test_s28_internal_without_icc_and_without_masquerading(make_host: Maker, mode: str) -> None:
    host = make_host()
    option = f"-o {MODE}={mode}"
    host.ctl(f"network create {option} --internal --subnet 10.7.0.0/24 vault")
    host.ctl(f"network create {option} -o {BRIDGE}.enable_icc=false --subnet 10.8.0.0/24 quiet")
    host.ctl(f"network create {option} -o {BRIDGE}.enable_ip_masquerade=false --subnet 10.9.0.0/24 plain")
    safe = start_container(host, "safe", "--network vault")
    db = start_container(host, "db", "--network quiet --expose 80 -p 8081:80")
    user, other = (
        start_container(host, "user", "--network quiet --link db"),
        start_container(host, "other", "--network quiet"),
    )
    bare = start_container(host, "bare", "--network plain")
    with serving(safe, "tcp", 80), serving(db, "tcp", 80), serving(db, "tcp", 81):
        # internal: the host and nobody else
        assert call(host, "tcp", safe.ip, 80).seen == "10.7.0.1"
        safe.sh("ip route add default via 10.7.0.1")
        assert unreachable(safe, FAR)
        host.outside.sh(f"ip route add 10.7.0.0/24 via {HOST}")
        assert fails(host.outside, "tcp", safe.ip, 80)
        # icc=false: the linked one, what is exposed
        assert f"{db.ip}\tdb" in user.sh("cat /etc/hosts")
        assert call(user, "tcp", db.ip, 80).seen == user.ip
        assert fails(user, "tcp", db.ip, 81) == errno.ETIMEDOUT
        assert fails(other, "tcp", db.ip, 80) == errno.ETIMEDOUT
        assert call(host.outside, "tcp", HOST, 8081).seen == OUTSIDE
    with serving(host.outside, "tcp", 9000):
        assert call(user, "tcp", OUTSIDE, 9000).seen == HOST
        assert fails(bare, "tcp", OUTSIDE, 9000) == errno.ETIMEDOUT
        host.outside.sh(f"ip route add 10.9.0.0/24 via {HOST}")
        assert call(bare, "tcp", OUTSIDE, 9000).seen == bare.ip


def test_s28_beside_a_network_of_packet_programs_both_work_and_neither_reaches_the_other(
    make_host: Maker, mode: str = "iptables"
) -> None:
    host = look.settled(make_host())
    before = look.everything(host)
    host.ctl(f"network create -o {MODE}={mode} --subnet 10.5.0.0/24 old")
    old = start_container(host, "old", "--network old -p 8081:80")
    new = start_container(host, "new", "-p 8082:80")
    with serving(old, "tcp", 80), serving(new, "tcp", 80), serving(host.outside, "tcp", 9000):
        for place, port in ((old, 8081), (new, 8082)):
            assert call(host.outside, "tcp", HOST, port).seen == OUTSIDE
            assert call(host, "tcp", "127.0.0.1", port).seen == place.gateway
            assert call(place, "tcp", HOST, port).peer == HOST
            assert call(place, "tcp", OUTSIDE, 9000).seen == HOST
        assert fails(old, "tcp", new.ip, 80) == errno.ETIMEDOUT
        assert fails(new, "tcp", old.ip, 80) == errno.ETIMEDOUT
        # A container moves from one kind to the other, and its port with it.
        host.ctl("network connect --gw-priority 3 old new")
        assert call(host.outside, "tcp", HOST, 8082).seen == OUTSIDE
        assert call(new, "tcp", OUTSIDE, 9000).seen == HOST
        host.ctl("network disconnect old new")
        assert call(host.outside, "tcp", HOST, 8082).seen == OUTSIDE
        host.ctl("network connect --gw-priority 3 old new")
        host.ctl("rm -f new")
        assert host.ctl("doctor") == "No problems found."
    host.ctl("rm -f old")
    known = look.devices(host.sh)["dp-" + host.network("old")["Id"][:12]]["ifindex"]
    host.ctl("network rm old")
    found = Dataplane.find(host.bpffs / "datapath")
    assert found is not None
    with found:
        assert abi.device_key(known) not in found.devices
    host.ctl("down")
    after = look.everything(host)
    assert {kind: (before[kind], after[kind]) for kind in before if before[kind] != after[kind]} == {}


# ---- what goes wrong -----------------------------------------------------------------------------


@BOTH
def test_s30_a_tool_that_outlives_its_command_is_waited_for_by_the_next_one(
    make_host: Maker, mode: str
) -> None:
    """That a command is killed between two calls of a tool is in test_faults; here it is while the tool is at work."""
    host = make_host()
    host.ctl(f"network create -o {MODE}={mode} --subnet 10.5.0.0/24 -o {BRIDGE}.name=dpa a")
    quiet = filter_of(host)
    with _deadly(host):
        assert host.try_ctl("run -d --network a -p 8081-8083:81-83 sleep 3600").returncode == -9
    host.ctl(SINK)
    assert filter_of(host) == quiet
    assert host.ctl("doctor") == "No problems found."


@contextmanager
def _deadly(host: Host) -> Iterator[None]:
    """The tools kill who calls them to change something, and do it after that."""
    folder = host.folder / "tools"
    folder.mkdir()
    for tool in ("iptables-restore", "ip6tables-restore", "nft"):
        text = f"""#!/bin/sh
case "$*" in *list*) ;; *) kill -9 $PPID; sleep 0.3 ;; esac
exec {shutil.which(tool)} "$@"
"""
        (folder / tool).write_text(text)
        (folder / tool).chmod(0o755)
    assert host.env is not None
    path = host.env["PATH"]
    host.env["PATH"] = f"{folder}:{path}"
    try:
        yield
    finally:
        host.env["PATH"] = path


@BOTH
def test_s30_a_bridge_removed_by_hand_is_built_again_with_its_members_and_rules(
    make_host: Maker, mode: str
) -> None:
    host = make_host()
    host.ctl(f"network create -o {MODE}={mode} --subnet 10.5.0.0/24 -o {BRIDGE}.name=dpa a")
    web, app = (
        start_container(host, "web", "--network a -p 8081:80"),
        start_container(host, "app", "--network a"),
    )
    whole = sorted(shown(host, mode))
    host.sh("ip link delete dpa")
    host.sh("iptables -t nat -F" if mode == "iptables" else "nft flush ruleset")
    host.sh("sysctl -qw net.ipv4.ip_forward=0")
    done = host.try_ctl(SINK)
    assert "network a was missing on the host: built again" in done.stderr
    assert sorted(shown(host, mode)) == whole
    with serving(web, "tcp", 80):
        assert call(app, "tcp", web.ip, 80).seen == app.ip
        assert call(host.outside, "tcp", HOST, 8081).seen == OUTSIDE
    host.sh("ip link set eth0 mtu 1400")
    host.ctl(SINK)
    assert {link["mtu"] for name, link in look.devices(host.sh).items() if name != "lo"} == {1400}
    assert look.devices(web.sh)["eth0"]["mtu"] == 1400


def test_s28_what_only_the_packet_programs_can_is_refused(make_host: Maker, mode: str = "iptables") -> None:
    host = make_host(config={"default-network-opts": {"bridge": {MODE: mode}}})
    assert "there are ebpf, iptables, nftables" in host.refused(f"network create -o {MODE}=xdp x")
    host.ctl("network create a")
    host.ctl(f"network create -o {MODE}=ebpf Z")  # before `a`: there a default route goes by the names
    assert host.network("a")["Options"] == {MODE: mode}
    rules = f"network a has {mode}, without allow= and deny="
    assert rules in host.refused("run -d --network a -p 80:80,allow=192.0.2.0/24 sleep 9")
    host.run("web", "--network a -p 81:81")
    quiet = filter_of(host)
    assert rules in host.refused("port add web 80:80,deny=192.0.2.2")
    assert rules in host.refused("port set web 81:81 deny=192.0.2.2")
    host.ctl("port set web 81:81")
    host.run("app", "--network Z -p 82:82,allow=192.0.2.2")
    assert rules in host.refused("network connect --gw-priority 1 a app")
    host.ctl("network connect a app")
    assert rules in host.refused("network disconnect Z app")
    host.ctl("network disconnect a app")
    assert filter_of(host) == quiet


@BOTH
def test_s28_stale_connections_end_with_the_container_and_rules_of_others_stay(
    make_host: Maker, mode: str
) -> None:
    host = make_host()
    theirs = "-A FORWARD -s 198.51.100.7/32 -j DROP"
    host.sh(f"iptables {theirs}")
    host.ctl(f"network create -o {MODE}={mode} --subnet 10.5.0.0/24 a")
    if mode == "iptables":
        host.sh("iptables -A DOCKER-USER -s 198.51.100.8 -j DROP")
    for address in ("10.5.0.2", "10.5.0.3"):
        web = start_container(host, "web", f"--network a --ip {address} -p 8081:80/udp")
        with serving(
            web, "udp", 80
        ):  # the client asks from the same port again: what it had must not be followed
            assert call(host.outside, "udp", HOST, 8081, source=(OUTSIDE, 5555)).seen == OUTSIDE
        host.ctl("rm -f web")
    host.ctl("down")
    left = host.sh("iptables-save").splitlines()
    assert theirs in left
    assert ("-A DOCKER-USER -s 198.51.100.8/32 -j DROP" in left) == (mode == "iptables")
    assert "DOCKER-FORWARD" not in "".join(left) and "docker-bridges" not in host.sh("nft list ruleset")


@BOTH
def test_s28_a_range_of_ports_is_one_step(make_host: Maker, mode: str) -> None:
    host = make_host()
    host.ctl(f"network create -o {MODE}={mode} --subnet 10.5.0.0/24 a")
    quiet = filter_of(host)
    web = start_container(host, "web", "--network a -p 10000-10999:10000-10999")
    with serving(web, "tcp", 10999):
        assert call(host.outside, "tcp", HOST, 10999).seen == OUTSIDE
        host.ctl("port add web 9000:10999")
        assert call(host.outside, "tcp", HOST, 9000).seen == OUTSIDE
        host.ctl("port rm web 10000-10999:10000-10999")
        assert call(host.outside, "tcp", HOST, 9000).seen == OUTSIDE
    host.ctl("rm -f web")
    assert filter_of(host) == quiet


@BOTH
def test_s30_devices_of_somebody_elses_with_the_names_of_ours_stay(make_host: Maker, mode: str) -> None:
    host = make_host()
    host.ctl(f"network create -o {MODE}={mode} --subnet 10.5.0.0/24 -o {BRIDGE}.name=dpa a")
    host.run("web", "--network a")
    pair = f"veth{host.inspect('web')['NetworkSettings']['Networks']['a']['EndpointID'][:7]}"
    for name in (pair, "dpa"):
        host.sh(f"ip link delete {name}")
        host.sh(f"ip link add {name} mtu 1400 type bridge")
    host.ctl("rm -f web")
    host.ctl("network rm a")
    left = look.devices(host.sh)
    assert (left[pair]["mtu"], left["dpa"]["mtu"]) == (1400, 1400)


@BOTH
def test_s30_a_command_that_misses_rules_says_what_repairs_them_and_keeps_nobody_from_it(
    make_host: Maker, mode: str
) -> None:
    host = make_host()
    host.ctl(f"network create -o {MODE}={mode} a")
    host.run("web", "--network a -p 8081:80")
    empty = "iptables -F; iptables -X; iptables -t raw -F; iptables -t nat -F; iptables -t nat -X"
    host.sh(["sh", "-c", empty] if mode == "iptables" else "nft flush ruleset")
    assert "`datapathctl reconcile` writes them again" in host.refused("port add web 8082:82")
    assert "repaired: what Linux bridge networks share" in host.ctl("reconcile")
    assert host.ctl("doctor") == "No problems found."
    host.ctl("port add web 8082:82")
