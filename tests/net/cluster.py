# SPDX-License-Identifier: Apache-2.0
"""A cluster of pretend hosts: their uplinks are on one switch, and so is a machine with etcd.

The switch is a bridge in a namespace of its own, whose address is every host's default gateway and is what is outside
of the cluster. Each host has its own network and host name, state directory and bpffs.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

from datapath.cluster import keys
from datapath.kernel import process
from datapath.model.peers import Block, Peer, Remote
from datapath.model.services import Service
from datapath.model.state import State
from datapath.store.sqlite import SQLiteStore
from tests.net import forked
from tests.net.agents import Agent
from tests.net.etcd import Etcd
from tests.net.hosts import FAR, Host, Namespace, eventually

NETWORK, NETWORK6 = "192.0.2", "2001:db8:7:"  # of the switch; hosts are .1, .2, … and ::1, ::2, …
STORE, OUTSIDE = f"{NETWORK}.200", f"{NETWORK}.254"
QUICK = "--unsafe-no-fsync"  # a server may be killed; the machine will not be


class Switch(Namespace):
    """What machines are plugged into: the device `sw0` and a port for each of them."""

    def __init__(self, mtu: int = 1500) -> None:
        super().__init__()
        self.mtu = mtu
        self._ports: dict[int, str] = {}  # by the process that holds the machine's namespace
        self.batch(
            "link add sw0 type bridge mcast_snooping 0",
            f"link set sw0 mtu {mtu} up",
            f"address add {OUTSIDE}/24 dev sw0",
            f"address add {NETWORK6}:fe/64 dev sw0 nodad",
            f"address add {FAR}/32 dev lo",
        )

    def batch(self, *lines: str) -> None:
        """Has `ip` do all of these."""
        self.sh("ip -batch -", input="".join(f"{line}\n" for line in lines))

    def plug(self, machine: Namespace, number: int) -> None:
        """Gives a machine the device eth0 and the switch's addresses with this number."""
        port = self._ports[machine.pid] = f"p{number}"
        mtu = f"mtu {self.mtu}"
        self.batch(
            f"link add {port} {mtu} type veth peer name eth0 {mtu} netns {machine.pid}",
            f"link set {port} master sw0 up",
        )
        lines = [
            f"address add {NETWORK}.{number}/24 dev eth0",
            f"address add {NETWORK6}:{number}/64 dev eth0 nodad",
            "link set eth0 up",
            f"route add default via {OUTSIDE}",
        ]
        machine.sh("sysctl -q -w net.ipv6.conf.eth0.accept_dad=0")
        machine.sh("ip -batch -", input="".join(f"{line}\n" for line in lines))

    def cut(self, machine: Namespace) -> None:
        """The machine's frames are lost, both ways, without a sign of it."""
        self.sh(f"bridge link set dev {self._ports[machine.pid]} state 0")

    def mend(self, machine: Namespace) -> None:
        """Takes `cut` and `unplug` back."""
        port = self._ports[machine.pid]
        self.sh(f"ip link set {port} up")
        self.sh(f"bridge link set dev {port} state 3")

    def unplug(self, machine: Namespace) -> None:
        """The machine's device has no carrier."""
        self.sh(f"ip link set {self._ports[machine.pid]} down")


class Member(Host):
    """A host of a cluster. `name`: its host name; `vtep`, `vtep6`: its addresses on the switch, which is
    `outside`."""

    def __init__(self, folder: Path, switch: Switch, number: int, name: str, config: dict[str, Any]) -> None:
        self._switch, self.number, self.name = switch, number, name
        self.vtep, self.vtep6 = f"{NETWORK}.{number}", f"{NETWORK6}:{number}"
        super().__init__(folder, config=config, hostname=name)

    def _plug(self) -> None:
        self.outside = self._switch
        self._switch.plug(self, self.number)
        self._settle_uplink()

    def _unplug(self) -> None:
        """The switch stays: it is others' too."""


class Cluster:
    """`count` hosts, whose names are h1, h2, …, and `servers` of etcd, with these `options`. `config`: more of each
    host's daemon.json."""

    def __init__(
        self,
        folder: Path,
        count: int = 2,
        servers: int = 1,
        config: dict[str, Any] | None = None,
        mtu: int = 1500,
        options: str = "",
    ) -> None:
        self.folder, self._config = folder, config or {}
        self.hosts: list[Member] = []
        self._numbers = itertools.count(1)  # also of hosts that are gone
        with ExitStack() as stack:
            self.switch = Switch(mtu)
            stack.callback(self.switch.close)
            data = folder / "etcd"
            data.mkdir()
            self.etcd = Etcd(
                data, servers, None, f"{QUICK} {options}", STORE, partial(self.switch.plug, number=200)
            )
            stack.callback(self.etcd.close)
            stack.callback(self._close_hosts)
            for _ in range(count):
                self.add()
            self.etcd.ready()
            self._stack = stack.pop_all()

    def add(self, name: str = "", config: dict[str, Any] | None = None) -> Member:
        """One more host."""
        number = next(self._numbers)
        folder = self.folder / f"h{number}"
        folder.mkdir()
        settings = {**self.settings, **self._config, **(config or {})}
        self.hosts.append(Member(folder, self.switch, number, name or f"h{number}", settings))
        return self.hosts[-1]

    @property
    def settings(self) -> dict[str, Any]:
        """What makes a host a member, in daemon.json."""
        servers = ",".join(f"{STORE}:{self.etcd.port(number)}" for number in range(self.etcd.count))
        patient = {"discovery.ttl": "600"}  # doctor has nothing to say if a busy machine makes a test slow
        return {
            "cluster-store": f"etcd://{servers}",
            "cluster-store-opts": patient,
            "cluster-advertise": "eth0",
        }

    def __getitem__(self, number: int) -> Member:
        return self.hosts[number]

    def __iter__(self) -> Iterator[Member]:
        return iter(self.hosts)

    def clear(self) -> None:
        """Removes all containers, and all networks that span hosts; no host has a row of one left."""
        for host in self.hosts:
            remove(host, *host.ctl("ps -a -q").split())
        for host in self.hosts:
            for name in [row["name"] for row in rows(host, "networks") if row.get("vni")]:
                host.try_ctl(["network", "rm", name])

    def close(self) -> None:
        self._stack.close()

    def _close_hosts(self) -> None:
        """All at once: each has much to wait for."""
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(Member.close, self.hosts))

    # ---- faults ----------------------------------------------------------------------------------

    @contextmanager
    def cut_off(self, *machines: Namespace) -> Iterator[None]:
        """Meanwhile nothing reaches these machines, or comes from them: hosts, or `etcd`."""
        for machine in machines:
            self.switch.cut(machine)
        try:
            yield
        finally:
            for machine in machines:
                self.switch.mend(machine)

    @contextmanager
    def store_away(self) -> Iterator[None]:
        """Meanwhile every server of etcd is dead: its port refuses connections."""
        numbers = list(self.etcd.servers)
        for number in numbers:
            self.etcd.kill(number)
        try:
            yield
        finally:
            for number in numbers:
                self.etcd.begin(number)
            self.etcd.ready()


@contextmanager
def agents(hosts: Sequence[Member]) -> Iterator[list[Agent]]:
    """An agent on each of these hosts, for the block."""
    with ExitStack() as stack:
        made = []
        for host in hosts:
            made.append(Agent(host))
            stack.callback(made[-1].close)
        yield made


def remotes(host: Member) -> dict[str, str]:
    """The containers on other hosts that the host knows of: name -> IPv4 address."""
    return {row["name"]: row["ipv4"] for row in rows(host, "remotes")}


def remove(host: Member, *names: str) -> None:
    """Removes containers. The commands are over then, too, that their shims become at the end: they would repair what a
    test breaks."""
    if not names:
        return
    before = _shims(host)
    host.ctl(["rm", "-f", *names])
    gone = before - _shims(host)
    with eventually() as until:
        until(lambda: not any(process.alive(pid, start) for pid, start in gone))


def _shims(host: Member) -> set[tuple[int, int]]:
    """Those of containers that run, each with the time at which it started."""
    pids = [row.get("shim_pid", 0) for row in rows(host, "containers")]
    return {(pid, start) for pid in pids if pid and (start := process.start_time(pid))}


def rows(host: Member, table: str) -> list[dict[str, Any]]:
    """Of the state database, as they are."""
    with forked.database(host.folder / "state") as opened:
        return [json.loads(body) for (body,) in opened.execute(f"SELECT body FROM {table} ORDER BY id")]


def whole(cluster: Cluster) -> None:
    """Every host holds what a new one would that reads the store now, its maps are as these rows say, and the store has
    what the hosts' endpoints are, and no more. Waits until it is so: news are under way."""
    said: list[str] = []

    def the_same() -> bool:
        said[:] = differences(cluster)
        return not said

    with suppress(AssertionError), eventually() as until:
        until(the_same)
    assert not said, said
    for host in cluster.hosts:
        assert host.ctl("doctor") == "No problems found."


def differences(cluster: Cluster) -> list[str]:
    """Between what every host has and what a new one would that reads the store now, and what the store has of it."""
    with cluster.etcd.client() as client:
        found = keys.rows_of(client.list().entries).put
    said = []
    for host in cluster.hosts:
        state = state_of(host)
        mine, networks = state.installation_id, {one.id for one in state.networks.values() if one.spans}
        if not networks:
            continue
        there = [
            row
            for row in found
            if isinstance(row, Peer)
            or (isinstance(row, Block | Service) and row.network_id in networks)
            or (isinstance(row, Remote) and row.network_id in networks and row.peer != mine)
        ]
        services = [one.shared for one in state.services.values() if one.network_id in networks]
        here = [*state.peers.values(), *state.blocks.values(), *state.remotes.values(), *services]
        said += [f"{host.name} lacks {row}" for row in there if row not in here]
        said += [f"{host.name} has {row}" for row in here if row not in there]
        told = {row.id for row in found if isinstance(row, Remote) and row.peer == mine}
        own = {endpoint.id for endpoint in state.endpoints.values() if endpoint.network_id in networks}
        said += [f"the store and {host.name} differ about {ident}" for ident in told ^ own]
        said += [f"{host.name} owes {key}" for key in state.owed]
    return said


def state_of(host: Member) -> State:
    """The host's rows."""
    with SQLiteStore(host.folder / "state", create=False, reading=True) as store:
        return store.load()
