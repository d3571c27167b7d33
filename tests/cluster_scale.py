# SPDX-License-Identifier: Apache-2.0
"""Many hosts on one etcd: `python -m tests.cluster_scale [--hosts 1000] [--containers 100] [--share 20]`, as root.

The hosts are simulated, the store and what is asked of it are real: each host holds the watch that its agent holds, and
starts go by `datapath.cluster.addresses.claim`. docs/scale.md says what came out.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing as mp
import os
import random
import resource
import selectors
import socket
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any

from datapath.cluster import addresses, keys, networks, owed
from datapath.cluster.allotment import Known, choose
from datapath.kernel.netns import enter
from datapath.model.networks import Network
from datapath.model.peers import Peer
from datapath.store.cluster import Put
from datapath.store.etcd.client import EtcdCluster
from tests.net.cluster_rows import CLUSTER_ID, endpoint, network
from tests.net.etcd import Etcd

Views = dict[tuple[int, int], Known]  # by host and network

_EVENT = b'"kv":'
_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Plan:
    """`share`: hosts of a network. Each host takes part in two, and has half of its containers on either."""

    hosts: int
    containers: int
    share: int

    @property
    def count(self) -> int:
        """Networks."""
        return max(2 * self.hosts // self.share, 1)

    def of_host(self, host: int) -> tuple[int, ...]:
        """The places of its networks."""
        if self.share >= self.hosts:
            return (0,)
        half = self.count // 2
        return host * half // self.hosts, half + (host * 7919) % self.hosts * (
            self.count - half
        ) // self.hosts


def host_of(number: int) -> Peer:
    address = ip_address((100 << 24) + (64 << 16) + number)
    mac = (
        f"02:00:{number >> 24 & 255:02x}:{number >> 16 & 255:02x}:{number >> 8 & 255:02x}:{number & 255:02x}"
    )
    return Peer(f"{number:032x}", f"host{number}", number, address, mac)


def network_of(plan: Plan, place: int) -> Network:
    size = 1 << max((4 * plan.share * plan.containers).bit_length(), 8)
    first = (10 if size * plan.count < 1 << 24 else 16) << 24
    prefix = ip_network((first + place * size, 33 - size.bit_length()))
    return replace(network(f"net{place}", str(prefix)), id=f"{place:064x}", vni=networks.VNIS.start + place)


# ---- loading -----------------------------------------------------------------------------------


def load(store: EtcdCluster, plan: Plan) -> tuple[list[Network], Views]:
    """Writes all that the hosts have said so far; and what each knows of its own part of a network."""
    made = [network_of(plan, place) for place in range(plan.count if plan.share < plan.hosts else 1)]
    writes: list[Put] = [Put(keys.CLUSTER, keys.info_value(keys.ClusterInfo(CLUSTER_ID, keys.FORMAT)))]
    for net in made:
        writes += [Put(keys.NETWORKS + net.id, keys.network_value(net)), Put(keys.NAMES + net.name, net.id)]
    views: Views = {}
    blocks: dict[int, dict[Any, str]] = {}
    for number in range(1, plan.hosts + 1):
        peer = host_of(number)
        writes += [
            Put(keys.HOSTS + peer.id, keys.peer_value(peer)),
            Put(keys.HOST_NAMES + peer.name, peer.id),
        ]
        for place in plan.of_host(number - 1):
            net, mine = made[place], blocks.setdefault(place, {})
            view = Known(dict(mine), {})
            for container in range(plan.containers // len(plan.of_host(number - 1))):
                choice = choose(net, peer.id, view, 4)
                if choice.block is not None:
                    view = view.owning(choice.block, peer.id)
                    mine[choice.block] = peer.id
                    writes.append(Put(keys.block_key(net.id, choice.block), keys.block_value(peer.id)))
                remote = endpoint(net, peer, 1000 * place + container)(choice.address, None)  # type: ignore[arg-type]
                view.used[choice.address] = remote.id  # type: ignore[index]
                writes += [Put(key, value) for key, value in owed.claims(remote).items()]
            views[number, place] = view
    for start in range(0, len(writes), 128):
        store.txn([], writes[start : start + 128])
    for (_, place), view in views.items():
        view.blocks.update(blocks[place])  # type: ignore[attr-defined]
    return made, views


# ---- watching ----------------------------------------------------------------------------------


class Watchers:
    """A process that holds the watch of every host and counts what it is told, with the time of the last word."""

    def __init__(self, etcd: Etcd, watched: Sequence[Sequence[str]], since: int) -> None:
        self.told, self.last = mp.Value("Q", 0), mp.Value("d", 0.0)
        self.ready = mp.Event()
        self.process = mp.Process(target=self._run, args=(etcd, watched, since), daemon=True)
        self.process.start()
        if not self.ready.wait(300):
            raise RuntimeError("the watches have not begun")

    def _run(self, etcd: Etcd, watched: Sequence[Sequence[str]], since: int) -> None:
        selector = selectors.DefaultSelector()
        begun: set[int] = set()
        with enter(etcd.path):
            for prefixes in watched:
                for sock in self._begin(etcd, prefixes, since):
                    selector.register(sock, selectors.EVENT_READ, bytearray())
            count = len(selector.get_map())
            while True:
                for key, _ in selector.select():
                    self._read(key)
                    begun.add(key.fd)
                if len(begun) == count and not self.ready.is_set():
                    self.ready.set()

    def _read(self, key: selectors.SelectorKey) -> None:
        sock: Any = key.fileobj
        tail: bytearray = key.data
        whole = bytes(tail) + sock.recv(1 << 20)  # a word may have been cut in two
        events = whole.count(_EVENT) - tail.count(_EVENT)
        tail[:] = whole[1 - len(_EVENT) :]
        if events:
            with self.told.get_lock():
                self.told.value += events
                self.last.value = time.monotonic()

    @staticmethod
    def _begin(etcd: Etcd, prefixes: Sequence[str], since: int) -> Iterator[socket.socket]:
        """The requests of the agent's own watch, and nothing that reads the answers as it does."""
        with EtcdCluster(etcd.where()).watch(prefixes, since) as watch:
            for one in watch._ranges:
                body = watch._request(one)
                sock = socket.create_connection(("127.0.0.1", etcd.port(0)))
                head = f"POST /v3/watch HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
                sock.sendall(head.encode() + body)
                yield sock

    def wait(self, count: int, seconds: float = 60) -> float:
        """Until so many changes have been told in all; when the last one was."""
        end = time.monotonic() + seconds
        while self.told.value < count:
            if time.monotonic() > end:
                raise RuntimeError(f"{self.told.value} of {count} changes were told")
            time.sleep(0.0005)
        return float(self.last.value)

    def close(self) -> None:
        self.process.kill()
        self.process.join()


# ---- measuring ---------------------------------------------------------------------------------


def cpu(process: int) -> float:
    """Seconds of processor time that it has used."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS


def memory(process: int | str) -> float:
    """Resident, in MB."""
    line = next(
        one for one in Path(f"/proc/{process}/status").read_text().splitlines() if one.startswith("VmRSS")
    )
    return int(line.split()[1]) / 1024


def starts(
    etcd: Etcd,
    plan: Plan,
    made: Sequence[Network],
    views: Views,
    who: Sequence[int],
    count: int,
    first: int,
    out: Any,
) -> None:
    """A process: containers of these hosts, one after the other. How many, with how many transactions, in what time."""
    times: list[float] = []
    tries = 0
    with etcd.client() as store:
        for step in range(count):
            number = who[step % len(who)]
            place = plan.of_host(number - 1)[step // len(who) % len(plan.of_host(number - 1))]
            view, peer = views[number, place], host_of(number)
            began = time.monotonic()
            make = endpoint(made[place], peer, first + step)
            claimed = addresses.claim(store, peer.id, made[place], view, make)
            times.append(time.monotonic() - began)
            tries += claimed.tries
            for block in claimed.blocks:
                view = view.owning(block.prefix, peer.id)
            for address in keys.addresses_of(claimed.remote):
                view = view.using(address, claimed.remote.id)
            views[number, place] = view
    out.put((len(times), tries, times))


def agent_memory(etcd: Etcd, network_ids: Sequence[str]) -> dict[str, float]:
    """Of a process that has what an agent has: the client, the rows of its networks, and a watch."""
    program = (
        "import sys, json\n"
        "from datapath.cluster import addresses, keys, liveness\n"
        "from datapath.model.clusters import ClusterStore\n"
        "from datapath.store.etcd.client import EtcdCluster\n"
        "def rss(what='VmRSS'):\n"
        "    return int(next(l for l in open('/proc/self/status') if l.startswith(what)).split()[1]) / 1024\n"
        "store = EtcdCluster(ClusterStore((('127.0.0.1', int(sys.argv[1])),)))\n"
        "bare = rss()\n"
        "part = addresses.part(store, sys.argv[2:])\n"
        "print(json.dumps({'bare': bare, 'with': rss(), 'peak': rss('VmHWM'),"
        " 'remotes': len(part.remotes), 'blocks': len(part.blocks), 'peers': len(part.peers)}))\n"
    )
    found: dict[str, float] = json.loads(
        etcd.sh([sys.executable, "-c", program, str(etcd.port(0)), *network_ids])
    )
    return found


def measure(etcd: Etcd, plan: Plan, seconds: float, processes: int) -> dict[str, Any]:
    """All figures."""
    server = etcd.servers[0].pid
    found: dict[str, Any] = {
        "hosts": plan.hosts,
        "containers": plan.hosts * plan.containers,
        "share": plan.share,
    }
    with etcd.client() as store:
        began = time.monotonic()
        made, views = load(store, plan)
        found["load_s"] = time.monotonic() - began
        revision = store.list(keys.CLUSTER).revision
    found["etcd_mb"] = memory(server)
    ids = [[made[place].id for place in plan.of_host(host)] for host in range(plan.hosts)]
    began = time.monotonic()
    watched = [keys.watched(some) for some in ids]
    watchers = Watchers(etcd, watched, revision)
    found["connections"] = sum(map(len, watched))
    found["watches_s"] = time.monotonic() - began
    found["etcd_mb_watched"] = memory(server)
    found["agent"] = agent_memory(etcd, ids[0])
    found |= alone(etcd, ids, server)
    try:
        found |= one_by_one(etcd, plan, made, views, watchers, server)
        found |= at_once(etcd, plan, made, views, watchers, server, seconds, processes)
        found["etcd_mb_end"] = memory(server)
    finally:
        watchers.close()
    return found


def alone(etcd: Etcd, ids: Sequence[Sequence[str]], server: int) -> dict[str, Any]:
    """What it costs that an agent lists again, and that a host says that it lives."""
    found: dict[str, Any] = {}
    with etcd.client() as store:
        lease = store.grant(600)
        asks: tuple[tuple[str, int, Callable[[int], object]], ...] = (
            ("list", 20, lambda step: addresses.part(store, ids[step])),
            ("beat", 1000, lambda _: store.keep_alive(lease)),
        )
        for name, count, ask in asks:
            used, began = cpu(server), time.monotonic()
            for step in range(count):
                ask(step)
            found[f"{name}_ms"] = (time.monotonic() - began) / count * 1e3
            found[f"etcd_cpu_ms_per_{name}"] = (cpu(server) - used) / count * 1e3
    return found


def interested(plan: Plan) -> list[int]:
    """How many hosts take part in each network."""
    count = [0] * plan.count
    for host in range(plan.hosts):
        for place in plan.of_host(host):
            count[place] += 1
    return count


def one_by_one(
    etcd: Etcd,
    plan: Plan,
    made: Sequence[Network],
    views: Views,
    watchers: Watchers,
    server: int,
) -> dict[str, Any]:
    """One start at a time, until the last host that it concerns has heard of it."""
    delays, told, used = [], 0, cpu(server)
    each = interested(plan)
    with etcd.client() as store:
        for step in range(30):
            number = step * 97 % plan.hosts + 1
            place = plan.of_host(number - 1)[step % len(plan.of_host(number - 1))]
            peer = host_of(number)
            before = watchers.told.value
            began = time.monotonic()
            make = endpoint(made[place], peer, 500_000 + step)
            claimed = addresses.claim(store, peer.id, made[place], views[number, place], make)
            count = each[place] * (1 + len(claimed.blocks))
            delays.append(watchers.wait(before + count) - began)
            told += count
            for address in keys.addresses_of(claimed.remote):
                views[number, place] = views[number, place].using(address, claimed.remote.id)
            for block in claimed.blocks:
                views[number, place] = views[number, place].owning(block.prefix, peer.id)
    return {
        "last_told_ms": {"median": statistics.median(delays) * 1e3, "max": max(delays) * 1e3},
        "told_each": told / 30,
        "etcd_us_per_told": (cpu(server) - used) / told * 1e6,
    }


def at_once(
    etcd: Etcd,
    plan: Plan,
    made: Sequence[Network],
    views: Views,
    watchers: Watchers,
    server: int,
    seconds: float,
    processes: int,
) -> dict[str, Any]:
    """Starts on all hosts, as fast as they go."""
    out: Any = mp.Queue()
    hosts = list(range(1, plan.hosts + 1))
    random.Random(1).shuffle(hosts)
    count = int(seconds * 100)
    told, used, mine, began = (
        watchers.told.value,
        cpu(server),
        cpu(watchers.process.pid or 0),
        time.monotonic(),
    )
    some = [
        mp.Process(
            target=starts,
            args=(etcd, plan, made, views, hosts[n::processes], count, 600_000 + n * 20_000, out),
        )
        for n in range(processes)
    ]
    for process in some:
        process.start()
    results = [out.get() for _ in some]
    took = time.monotonic() - began
    for process in some:
        process.join()
    done = sum(result[0] for result in results)
    time.sleep(1)
    times = sorted(one for result in results for one in result[2])
    heard = watchers.told.value - told
    return {
        "starts_per_s": done / took,
        "txns_per_start": sum(result[1] for result in results) / done,
        "start_ms": {"median": statistics.median(times) * 1e3, "p99": times[int(len(times) * 0.99)] * 1e3},
        "told": heard,
        "last_told_after_ms": (watchers.last.value - began - took) * 1e3,
        "etcd_cpu_ms_per_start": (cpu(server) - used) / done * 1e3,
        "watchers_cpu_ms_per_start": (cpu(watchers.process.pid or 0) - mine) / done * 1e3,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--hosts", type=int, default=1000)
    parser.add_argument("--containers", type=int, default=100, help="of a host")
    parser.add_argument("--share", type=int, default=20, help="hosts of a network")
    parser.add_argument(
        "--seconds", type=float, default=10, help="for the rate, at 100 starts a second and process"
    )
    parser.add_argument("--processes", type=int, default=4, help="that start")
    parser.add_argument("--fsync", action="store_true", help="etcd writes to the disk before it answers")
    asked = parser.parse_args()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 1 << 16), hard))
    del soft
    plan = Plan(asked.hosts, asked.containers, min(asked.share, asked.hosts))
    with tempfile.TemporaryDirectory() as folder:
        etcd = Etcd(Path(folder), options="" if asked.fsync else "--unsafe-no-fsync")
        try:
            print(json.dumps(measure(etcd, plan, asked.seconds, asked.processes), indent=2))
        finally:
            etcd.close()


if __name__ == "__main__":
    main()
