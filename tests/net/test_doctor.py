# SPDX-License-Identifier: Apache-2.0
"""S30: whatever differs from the desired state, `doctor` names and `reconcile` repairs."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import sqlite3
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from datapath.kernel import features
from tests.net import look
from tests.net.hosts import ATTACH, HOST, Host, ask, echo_server, eventually, reaches

CLEAN = "No problems found."
NOT_CLEAN = 20
LONG = bool(os.environ.get("DATAPATH_LONG"))
MODE, BRIDGE = "com.datapath.mode", "com.docker.network.bridge"


def doctor(host: Host) -> list[dict[str, str]]:
    done = host.try_ctl("doctor --json")
    assert done.stderr == ""
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.returncode == (NOT_CLEAN if found else 0)
    return found


def failed_checks(host: Host) -> set[str]:
    return {finding["Check"] for finding in doctor(host)}


@pytest.fixture(scope="module")
def prepared(shared_host: Host) -> Iterator[Host]:
    """A host with something of everything, and a container whose pings are never to be lost."""
    host = look.settled(shared_host)
    host.ctl("network create --ipv6 --subnet 10.20.0.0/24 --subnet fd00:20::/64 shop")
    host.ctl("network create -o com.docker.network.bridge.enable_icc=false quiet")
    host.run("web", "--network shop -p 8081:80,deny=198.51.100.0/24 -p 40001:80", echo_server("tcp", 80))
    host.run("store", "--network quiet --expose 5432")
    host.run("reader", "--network quiet --link store")
    host.run("watch")
    assert doctor(host) == []
    yield host


def bpf(host: Host, name: str) -> list[str]:
    return ["bpftool", "-j", "map", "dump", "pinned", str(host.bpffs / "datapath/maps" / name)]


def delete_rows(host: Host, name: str) -> None:
    pin = str(host.bpffs / "datapath/maps" / name)
    for row in json.loads(host.sh(bpf(host, name))):
        host.sh(["bpftool", "map", "delete", "pinned", pin, "key", *row["key"]])


def delete_all(host: Host) -> None:
    told = ("devices", "endpoints", "members", "ports", "reserved", "acls", "links", "quotas")
    for name in (*told, "addresses", "names", "resolvers", "subnets"):
        delete_rows(host, name)


def pins(host: Host) -> dict[str, int]:
    """Each pin with its number in the file system: one that was made again has another."""
    return {str(path): path.stat().st_ino for path in (host.bpffs / "datapath").rglob("*")}


def veth(host: Host, name: str, network: str) -> str:
    return f"veth{host.inspect(name)['NetworkSettings']['Networks'][network]['EndpointID'][:7]}"


def index(host: Host, device: str) -> int:
    return int(look.devices(host.sh)[device]["ifindex"])


def gateway(host: Host, network: str) -> str:
    return f"dp-{host.network(network)['Id'][:12]}"


def rename(host: Host, device: str, name: str) -> None:
    """Before Linux 6.2 a device that is up keeps its name."""
    if host.try_(f"ip link set {device} name {name}").returncode:
        host.sh(f"ip link set {device} down")
        host.sh(f"ip link set {device} name {name} up")


def detach(host: Host, pin: str) -> None:
    """Takes a program off its hook, as it is attached on this kernel."""
    path = host.bpffs / "datapath/links" / pin
    if path.exists():
        host.sh(["bpftool", "link", "detach", "pinned", str(path)])
    else:
        program, ifindex = pin.split("-")
        name = next(
            n for n, device in look.devices(host.sh).items() if int(device["ifindex"]) == int(ifindex)
        )
        host.sh(f"tc filter del dev {name} {'egress' if program == 'from_host' else 'ingress'}")


def foreign(host: Host) -> None:
    """A link of another program, pinned where ours was: the host does not reach its containers."""
    device = index(host, gateway(host, "shop"))
    pins = host.bpffs / "datapath/links"
    (pins / f"from_host-{device}").unlink()
    (pins / f"from_host-{device}").hardlink_to(pins / "host_bind4")


def tails(host: Host) -> str:
    return str(host.bpffs / "datapath/maps/tails")


def overwrite_row(host: Host) -> None:
    """The port leads to another port of the container."""
    row = json.loads(host.sh(bpf(host, "ports")))[0]
    value = [*row["value"]]
    value[28] = "0xff"
    pin = str(host.bpffs / "datapath/maps/ports")
    host.sh(["bpftool", "map", "update", "pinned", pin, "key", *row["key"], "value", *value])


def stray_row(host: Host) -> None:
    row = json.loads(host.sh(bpf(host, "reserved")))[0]
    pin = str(host.bpffs / "datapath/maps/reserved")
    host.sh(
        [
            "bpftool",
            "map",
            "update",
            "pinned",
            pin,
            "key",
            "0x00",
            "0x07",
            "0x06",
            "0x00",
            "value",
            *row["value"],
        ]
    )


def kill(host: Host) -> None:
    """Its process, and before that its shim, so that nobody tells."""
    host.run("victim", "-p 8099:80")
    pid = host.process("victim")
    os.kill(int(Path(f"/proc/{pid}/status").read_text().partition("PPid:")[2].split()[0]), signal.SIGKILL)
    os.kill(pid, signal.SIGKILL)
    with eventually() as until:
        until(lambda: not look.alive(pid))


def unfinish(host: Host) -> None:
    """As a killed `network create` leaves it."""
    host.ctl("network create --subnet 10.77.0.0/24 half")
    with sqlite3.connect(host.folder / "state/datapath.db") as opened:
        opened.execute("UPDATE networks SET body = json_set(body, '$.phase', 'creating') WHERE name = 'half'")
    opened.close()


def lose_address(host: Host) -> None:
    """One that datapath knows."""
    host.sh("ip address replace 192.0.2.77/32 dev lo")
    host.ctl("reconcile")
    host.sh("ip address del 192.0.2.77/32 dev lo")


PROVOCATIONS: dict[str, tuple[str, Callable[[Host], object]]] = {
    "the host end of a pair is deleted": ("pair", lambda h: h.sh(f"ip link del {veth(h, 'web', 'shop')}")),
    "the container's end is deleted": ("pair", lambda h: h.in_("web", "ip link del eth0")),
    "the host end is renamed": (
        "renamed",
        lambda h: rename(h, veth(h, "web", "shop"), "other0"),
    ),
    "the container's end is renamed": (
        "renamed",
        lambda h: h.in_("web", ["sh", "-c", "ip link set eth0 down; ip link set eth0 name other0 up"]),
    ),
    "the host end is down": ("down", lambda h: h.sh(f"ip link set {veth(h, 'web', 'shop')} down")),
    "the container's end is down": ("down", lambda h: h.in_("web", "ip link set eth0 down")),
    "the gateway device is down": ("down", lambda h: h.sh(f"ip link set {gateway(h, 'shop')} down")),
    "the container's MAC address changed": (
        "mac",
        lambda h: h.in_("web", "ip link set eth0 address 02:00:00:00:00:99"),
    ),
    "the MTU changed": ("mtu", lambda h: h.sh(f"ip link set {gateway(h, 'shop')} mtu 1300")),
    "the container has lost its address": ("address", lambda h: h.in_("web", "ip address flush dev eth0")),
    "the gateway has lost its address": (
        "address",
        lambda h: h.sh(f"ip address flush dev {gateway(h, 'shop')}"),
    ),
    "the container has lost its default route": ("route", lambda h: h.in_("web", "ip route del default")),
    "the container has lost the way to its resolver": (
        "resolver",
        lambda h: h.in_("web", "ip route del 127.0.0.11 table local dev eth0"),
    ),
    "the container's device takes no packets from 127.0.0.11": (
        "resolver",
        lambda h: h.in_("web", "sysctl -q -w net.ipv4.conf.eth0.route_localnet=0"),
    ),
    "names are deleted": ("entry-missing", lambda h: delete_rows(h, "names")),
    "the gateway device is deleted": ("gateway", lambda h: h.sh(f"ip link del {gateway(h, 'shop')}")),
    "forwarding is off": (
        "sysctl",
        lambda h: h.sh(f"sysctl -q -w net/ipv4/conf/{gateway(h, 'shop')}/forwarding=0"),
    ),
    "a pair speaks IPv6 on the host": (
        "sysctl",
        lambda h: h.sh(f"sysctl -q -w net.ipv6.conf.{veth(h, 'web', 'shop')}.disable_ipv6=0"),
    ),
    "reserved ports are given up": (
        "reserved",
        lambda h: h.sh(["sysctl", "-q", "-w", "net.ipv4.ip_local_reserved_ports="]),
    ),
    "the gateway device has no program": (
        "detached",
        lambda h: detach(h, f"from_host-{index(h, gateway(h, 'shop'))}"),
    ),
    "a filter is removed": (
        "detached",
        lambda h: h.sh(f"tc filter del dev {veth(h, 'web', 'shop')} ingress"),
    ),
    "a link's pin is removed": (
        "detached",
        lambda h: (h.bpffs / "datapath/links" / f"from_host-{index(h, gateway(h, 'shop'))}").unlink(),
    ),
    "a socket hook is detached": ("detached", lambda h: detach(h, "host_connect4")),
    "the uplink has no program": ("detached", lambda h: detach(h, f"from_uplink-{index(h, 'eth0')}")),
    "the loopback device has no program": ("detached", lambda h: detach(h, "from_loopback-1")),
    "XDP is detached": ("detached", lambda h: detach(h, f"xdp_uplink-{index(h, 'eth0')}")),
    "another program is in our place": ("detached", foreign),
    "a program that answers questions for names is taken away": (
        "detached",
        lambda h: h.sh(["bpftool", "map", "delete", "pinned", tails(h), "key", "0", "0", "0", "0"]),
    ),
    "the map of these has lost its pin": ("programs", lambda h: Path(tails(h)).unlink()),
    "a pin of nothing": (
        "stray-pin",
        lambda h: (h.bpffs / "datapath/links/from_host-4000").hardlink_to(
            h.bpffs / f"datapath/links/from_host-{index(h, gateway(h, 'shop'))}"
        ),
    ),
    "rows of every map are deleted": (
        "entry-missing",
        delete_all,
    ),
    "a row is written over": ("entry-wrong", overwrite_row),
    "a row too many": ("entry-stray", stray_row),
    "the host has a new address": ("entry-missing", lambda h: h.sh("ip address add 192.0.2.77/32 dev lo")),
    "the host has lost an address": ("entry-stray", lose_address),
    "the pins are removed": (
        "programs",
        lambda h: subprocess.run(["find", str(h.bpffs / "datapath"), "-type", "f", "-delete"], check=True),
    ),
    "a container was killed, and its shim": ("ended", kill),
    "a row is unfinished": ("unfinished", unfinish),
    "a folder of a forgotten container": (
        "stray-files",
        lambda h: (h.folder / f"run/containers/{'f' * 64}").mkdir(),
    ),
    "a container's folder is gone": (
        "files",
        lambda h: shutil.rmtree(h.folder / "run/containers" / h.inspect("web")["Id"]),
    ),
}


by_link = pytest.mark.skipif(
    not features.has_tcx() or ATTACH == "clsact",
    reason="this kernel has no tcx, or DATAPATH_ATTACH is against it",
)
BY_LINK = ("a link's pin is removed", "another program is in our place", "a pin of nothing")


@pytest.mark.parametrize(
    "what", [pytest.param(what, marks=by_link if what in BY_LINK else ()) for what in PROVOCATIONS]
)
def test_s30_doctor_names_it_reconcile_repairs_it_and_a_second_time_changes_nothing(
    prepared: Host, what: str
) -> None:
    check, provoke = PROVOCATIONS[what]
    provoke(prepared)
    found = doctor(prepared)
    assert check in {finding["Check"] for finding in found}
    assert all(finding["Means"] and finding["Repair"] for finding in found)
    said = prepared.ctl("reconcile")
    assert said.startswith("repaired: ")
    assert doctor(prepared) == []
    before = pins(prepared), look.devices(prepared.sh), look.database(prepared)
    assert prepared.ctl("reconcile") == ""
    assert (pins(prepared), look.devices(prepared.sh), look.database(prepared)) == before
    assert prepared.outside.sh(ask("tcp", HOST, 8081)).split()[0] == "192.0.2.2"
    assert reaches(prepared.try_, prepared.address("web", "shop"))


# ---- linuxbridge networks ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bridged(prepared: Host) -> Iterator[Host]:
    """Beside the others a linuxbridge network in each mode: `dpa` and `dpb`, with ports, links and both families."""
    for bridge, (mode, subnet) in {"dpa": ("iptables", 5), "dpb": ("nftables", 6)}.items():
        options = f"-o {MODE}={mode} -o {BRIDGE}.name={bridge} -o {BRIDGE}.enable_icc=false --ipv6"
        prepared.ctl(f"network create {options} --subnet 10.{subnet}.0.0/24 {mode}")
        prepared.run(
            f"db-{mode}", f"--network {mode} -p 809{subnet}:80 -p 127.0.0.1:700{subnet}:80 --expose 99"
        )
        prepared.run(f"user-{mode}", f"--network {mode} --link db-{mode}:db")
    assert doctor(prepared) == []
    yield prepared
    for mode in ("iptables", "nftables"):
        prepared.ctl(f"rm -f db-{mode} user-{mode}")
        prepared.ctl(f"network rm {mode}")
    assert doctor(prepared) == []


RULE_ORDER = "iptables -D DOCKER-FORWARD -j DOCKER-INTERNAL; iptables -A DOCKER-FORWARD -j DOCKER-INTERNAL"
PORTS_OF_B = "ip docker-bridges filter-forward-ports__dpb"
HANDLE = f'$(nft -a list chain {PORTS_OF_B} | grep UNPUBLISHED | grep -o "[0-9]*$")'
BY_HAND: dict[str, dict[str, str]] = {
    "iptables": {
        "iptables -F": "rule-missing",
        "iptables -t nat -F; iptables -t raw -F; ip6tables -F": "rule-missing",
        "iptables -t nat -D DOCKER -p tcp -m tcp --dport 8095 -j DNAT --to-destination 10.5.0.2:80": "rule-missing",
        "iptables -D FORWARD -j DOCKER-FORWARD": "rule-missing",
        "iptables -I DOCKER 1 -d 10.5.0.2 ! -i dpa -o dpa -p tcp --dport 22 -j ACCEPT": "rule-stray",
        "iptables -A DOCKER-CT -o dpa -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT": "rule-stray",
        RULE_ORDER: "rule-order",
        "ip link set dev $(ip -o link show master dpa | cut -d: -f2 | head -1 | cut -d@ -f1) nomaster": "unbridged",
        "ip link del dpa": "gateway",
        "sysctl -qw net.ipv4.conf.eth0.forwarding=0": "forwarding",
        "ip link set dpa down; sysctl -qw net.ipv4.conf.dpa.route_localnet=0": "down",
    },
    "nftables": {
        "nft flush table ip docker-bridges": "rule-missing",
        "nft delete table ip6 docker-bridges": "rule-missing",
        "nft flush chain ip docker-bridges nat-prerouting-and-output": "rule-missing",
        "nft flush chain ip docker-bridges raw-PREROUTING; nft delete chain ip docker-bridges raw-PREROUTING": (
            "rule-missing"
        ),
        f"nft delete rule {PORTS_OF_B} handle {HANDLE}": "rule-missing",
        'nft delete element ip docker-bridges filter-forward-in-jumps "{ "dpb" }"': "rule-missing",
        "nft insert rule ip docker-bridges filter-forward-in__dpb counter accept": "rule-stray",
        "nft add rule ip docker-bridges nat-prerouting-and-output tcp dport 81 counter dnat to 10.6.0.2:80": (
            "rule-stray"
        ),
        f"nft delete rule {PORTS_OF_B} handle {HANDLE}; nft insert rule {PORTS_OF_B} "
        "counter drop comment '\"UNPUBLISHED PORT DROP\"'": "rule-order",
        "ip link set dev $(ip -o link show master dpb | cut -d: -f2 | head -1 | cut -d@ -f1) nomaster": "unbridged",
        "ip link del dpb": "gateway",
    },
}


@pytest.mark.parametrize("mode", BY_HAND)
def test_s30_what_somebody_did_to_rules_and_bridges_of_a_linuxbridge_network_is_told_and_repaired(
    bridged: Host, mode: str
) -> None:
    theirs = "-A FORWARD -s 198.51.100.7/32 -o dpa -j DROP"
    every = list(BY_HAND[mode].items())
    for command, check in every if LONG else random.Random(f"30 {mode}").sample(every, 3):
        bridged.sh(["sh", "-c", command])
        found = doctor(bridged)
        assert check in {finding["Check"] for finding in found}, command
        assert all(finding["Means"] and finding["Repair"] for finding in found)
        said = bridged.ctl("reconcile")
        assert said.startswith("repaired: "), command
        assert doctor(bridged) == [], command
    if mode == "iptables":
        bridged.sh(f"iptables {theirs}")

    def everything() -> tuple[object, ...]:
        rules = re.sub(r"packets \d+ bytes \d+", "", bridged.sh("nft -a list ruleset"))
        return rules, bridged.sh("ip -o address"), look.database(bridged)

    before = everything()
    assert bridged.ctl("reconcile") == ""
    assert everything() == before
    assert mode == "nftables" or theirs in bridged.sh("iptables-save")
    assert reaches(bridged.try_, bridged.address(f"db-{mode}", mode))


def test_ports_that_move_to_another_endpoint_of_their_container_are_as_desired(host: Host) -> None:
    """Both endpoints have them for a moment."""
    host.ctl("network create others")
    host.ctl("network create more")
    host.ctl("run -d --name web --network others -p 9001:80 sleep 3600")
    host.ctl("network connect more web")  # its name comes first, so it has the default route now
    assert host.try_ctl("doctor").returncode == 0
    host.ctl("network disconnect more web")
    assert host.try_ctl("doctor").returncode == 0
