# SPDX-License-Identifier: Apache-2.0
"""The keys of a cluster's store and their values: which there are, and as which rows they are read. Pure.

Keys are below the cluster's prefix, values JSON. Who writes a key, and how, is in docs/cluster.md. Fields of a value
that this version does not know are passed over: they came later within the same format.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from ipaddress import ip_address, ip_network
from typing import Any, NamedTuple, TypeVar

from datapath.errors import StateError, quoted
from datapath.model.codec import from_object, to_json
from datapath.model.networks import Network
from datapath.model.parsing import Address, Prefix
from datapath.model.peers import Block, Drain, Lapse, Peer, Remote
from datapath.model.rows import Phase
from datapath.model.services import Service
from datapath.store.cluster import Change, Entry

T = TypeVar("T")
ClusterRow = Peer | Network | Block | Remote | Service

FORMAT = 1  # of all keys and values below; another one is refused
PORT = 4789  # VXLAN's, as IANA has it

CLUSTER = "cluster"  # ClusterInfo; the first host's
HOSTS = "hosts/"  # <host's id>: Peer
HOST_NAMES = "hostnames/"  # <name>: host's id
NUMBERS = "numbers/"  # <number>: host's id
ALIVE = "alive/"  # <host's id>: which run of it; under a lease
AGENTS = "agents/"  # <host's id>: nothing; there, if an agent of the host says that it lives
DRAINING = "draining/"  # <host's id>: nothing; there, if the host is to begin nothing
NAMES = "names/"  # <name>: network's id
NETWORKS = "networks/"  # <network's id>: Network
VNIS = "vnis/"  # <VNI>: network's id
POOLS = "pools"  # prefix -> network's id
BLOCKS = "blocks/"  # <network's id>/<prefix>: host's id
ENDPOINTS = "eps/"  # <network's id>/<address>: Remote; of a service's address: its id
SERVICES = "services/"  # <network's id>/<name>: Service
SERVICE_NAMES = "servicenames/"  # <name>: service's id
INGRESS = "ingress/"  # <protocol>/<port>: service's and network's id


_SERVICES_OWN = {"network_id", "number", "phase"}  # those that are never left out
# What a network's row has that is about one host.
_OWN = {"number", "device", "built", "phase", "owner", "path_mtu"}


@dataclass(frozen=True, slots=True)
class ClusterInfo:
    """What all hosts of a cluster agree on. `id`: 32 hex digits; `port`: where all hosts receive tunnels (UDP)."""

    id: str
    format: int = 0
    port: int = PORT


class Gone(NamedTuple):
    """A key that was deleted. What of it is known: the row is of that network, host, prefix, address or service's
    name."""

    key: str
    peer: str = ""
    network_id: str = ""
    prefix: Prefix | None = None
    address: Address | None = None
    service: str = ""

    def matches(self, row: ClusterRow) -> bool:
        """The row is what the key had. An endpoint of two families has two keys, and goes with either."""
        if isinstance(row, Peer):
            return row.id == self.peer
        if isinstance(row, Network):
            whole = self.prefix is None and self.address is None and not self.service
            return row.id == self.network_id and whole
        if row.network_id != self.network_id:
            return False
        if isinstance(row, Service):
            return row.name == self.service
        if isinstance(row, Block):
            return row.prefix == self.prefix
        return self.address is not None and self.address in (row.ipv4, row.ipv6)


class News(NamedTuple):
    """What has changed: keys that are gone, and then rows that are new or different. A row that has the address of
    another takes its place. `broken`: keys whose value cannot be read, each with why."""

    put: tuple[ClusterRow, ...] = ()
    gone: tuple[Gone, ...] = ()
    broken: tuple[str, ...] = ()


# ---- names of keys -----------------------------------------------------------------------------


def block_prefix(network_id: str) -> str:
    """Of all blocks of the network."""
    return f"{BLOCKS}{network_id}/"


def endpoint_prefix(network_id: str) -> str:
    """Of all addresses of the network."""
    return f"{ENDPOINTS}{network_id}/"


def block_key(network_id: str, prefix: Prefix) -> str:
    """Of a block: a `/` in a prefix is written `-`."""
    return f"{block_prefix(network_id)}{prefix.network_address}-{prefix.prefixlen}"


def endpoint_key(network_id: str, address: Address) -> str:
    """Of an address of the network: who has it."""
    return f"{endpoint_prefix(network_id)}{address}"


def endpoint_keys(remote: Remote) -> tuple[str, ...]:
    """Of each of its addresses."""
    return tuple(endpoint_key(remote.network_id, address) for address in addresses_of(remote))


def addresses_of(remote: Remote) -> tuple[Address, ...]:
    """Those that it has, IPv4 first."""
    return tuple(address for address in (remote.ipv4, remote.ipv6) if address is not None)


def service_prefix(network_id: str) -> str:
    """Of all services of the network."""
    return f"{SERVICES}{network_id}/"


def service_key(service: Service) -> str:
    """Of the service."""
    return f"{service_prefix(service.network_id)}{service.name}"


def vip_keys(service: Service) -> tuple[str, ...]:
    """Of each of its addresses."""
    return tuple(endpoint_key(service.network_id, vip) for vip in service.vips)


def ingress_keys(service: Service) -> tuple[str, ...]:
    """Of each of the host ports that it publishes, which are decided."""
    found = (one for mapping in service.published for one in mapping.expand())
    return tuple(dict.fromkeys(f"{INGRESS}{proto}/{port}" for _, port, _, proto in found))


def watched(network_ids: Iterable[str]) -> tuple[str, ...]:
    """What a host that takes part in these networks has to be told of."""
    prefixes = (block_prefix, endpoint_prefix, service_prefix)
    own = (prefix(one) for one in sorted(network_ids) for prefix in prefixes)
    return (HOSTS, NETWORKS, INGRESS, AGENTS, ALIVE, DRAINING, *own)


def is_attendance(key: str) -> bool:
    """It is about whether a host lives, or is drained."""
    return key.startswith((AGENTS, ALIVE, DRAINING))


def attendance(found: Iterable[str]) -> tuple[Lapse | Drain, ...]:
    """The hosts that have said that they live, and do not any more, and those that are drained, by such keys. A host
    without an agent never has, and one whose agent was ended in good order has taken it back."""
    there = sorted(set(found))
    attended = [key.removeprefix(AGENTS) for key in there if key.startswith(AGENTS)]
    drained = [Drain(key.removeprefix(DRAINING)) for key in there if key.startswith(DRAINING)]
    return (*(Lapse(ident) for ident in attended if ALIVE + ident not in there), *drained)


# ---- values ------------------------------------------------------------------------------------


def info_value(info: ClusterInfo) -> str:
    return to_json(info)


def read_info(value: str, where: object) -> ClusterInfo:
    """What the hosts agree on. StateError: this is no cluster of ours, or one of another format."""
    try:
        raw = json.loads(value)
        found = int(raw["format"])
    except (ValueError, TypeError, KeyError):
        raise StateError(
            f"cluster store {where} has something else at the keys of datapath: choose others by kv.path"
        ) from None
    if found != FORMAT:
        newer = (
            "upgrade datapath on this host" if found > FORMAT else "it was written by a version before this"
        )
        raise StateError(
            f"cluster store {where} is of format {found}, and this datapath knows format {FORMAT}: {newer}"
        )
    return _read(CLUSTER, ClusterInfo, raw)


def peer_value(peer: Peer) -> str:
    return to_json(replace(peer, phase=Phase.READY))


def block_value(peer: str) -> str:
    """`peer`: the owner's id."""
    return json.dumps({"peer": peer}, separators=(",", ":"))


def remote_value(remote: Remote) -> str:
    """The network's id is in the key."""
    raw = json.loads(to_json(replace(remote, phase=Phase.READY)))
    del raw["network_id"]
    return json.dumps(raw, separators=(",", ":"))


def network_value(network: Network) -> str:
    """Without what is one host's own."""
    raw = json.loads(to_json(network))
    return json.dumps({k: v for k, v in raw.items() if k not in _OWN}, separators=(",", ":"))


def service_value(service: Service) -> str:
    """Without what is one host's own; the network's id is in the key."""
    raw = json.loads(to_json(service.shared))
    return json.dumps({k: v for k, v in raw.items() if k not in _SERVICES_OWN}, separators=(",", ":"))


def vip_value(service: Service) -> str:
    """Who has the address. It is nobody's who could be gone: its key is no host's."""
    return json.dumps({"service": service.id}, separators=(",", ":"))


def ingress_value(service: Service) -> str:
    """Whose port it is, on every host."""
    return json.dumps({"service": service.id, "network": service.network_id}, separators=(",", ":"))


def alive_value(instance: str) -> str:
    """`instance`: which run of the host."""
    return json.dumps({"instance": instance}, separators=(",", ":"))


def pools_value(pools: Mapping[Prefix, str]) -> str:
    """`pools`: the id of the network that has the prefix."""
    return json.dumps({str(prefix): owner for prefix, owner in pools.items()}, separators=(",", ":"))


def read_pools(value: str) -> dict[Prefix, str]:
    """StateError: it cannot be read."""
    try:
        return {ip_network(text): str(owner) for text, owner in json.loads(value).items()}
    except (ValueError, AttributeError):
        raise _unreadable(POOLS) from None


def read_instance(value: str) -> str:
    """Which run of the host; "": it cannot be read."""
    try:
        return str(json.loads(value).get("instance", ""))
    except (ValueError, AttributeError):
        return ""


def owner_of(key: str, value: str) -> str:
    """The id of the host that a block or an address is of; "": it is a service's, or the value cannot be read."""
    if not value or not key.startswith((BLOCKS, ENDPOINTS)):
        return ""
    try:
        return str(json.loads(value)["peer"])
    except (ValueError, TypeError, KeyError):
        return ""


def ingress_network(key: str, value: str) -> str:
    """The id of the network whose service has the port; "": the key is of something else, or cannot be read."""
    if not key.startswith(INGRESS):
        return ""
    try:
        return str(json.loads(value)["network"])
    except (ValueError, TypeError, KeyError):
        return ""


# ---- rows --------------------------------------------------------------------------------------


def row_of(key: str, value: str) -> ClusterRow | None:
    """The row that a key is; None: it is of another kind. StateError names a key whose value cannot be read."""
    kind, _, rest = key.partition("/")
    try:
        if kind == "eps":
            network_id, _, _ = rest.rpartition("/")
            raw = json.loads(value) | {"network_id": network_id}
            return None if "service" in raw else _read(key, Remote, raw)
        if kind == "services":
            network_id, _, _ = rest.rpartition("/")
            return _read(
                key, Service, json.loads(value) | {"network_id": network_id, "number": 0, "phase": "ready"}
            )
        if kind == "blocks":
            network_id, _, text = rest.rpartition("/")
            prefix = ip_network(text.replace("-", "/"))
            return Block(f"{network_id}/{prefix}", network_id, prefix, str(json.loads(value)["peer"]))
        if kind == "hosts":
            return _read(key, Peer, json.loads(value))
        if kind == "networks":
            shared = {"number": 0, "phase": Phase.READY.value}
            return _read(key, Network, json.loads(value) | shared)
    except (ValueError, TypeError, KeyError):
        raise _unreadable(key) from None
    return None


def rows_of(entries: Mapping[str, Entry]) -> News:
    """The rows of a listing; an endpoint of two families once."""
    return news(Change(key, entry, entry.modified) for key, entry in entries.items())


def news(changes: Iterable[Change]) -> News:
    """Of changes in the order in which they happened: the last one of a key counts."""
    last: dict[str, Change] = {}
    for change in changes:
        last.pop(change.key, None)
        last[change.key] = change
    put: dict[tuple[type[Any], str], ClusterRow] = {}
    gone: list[Gone] = []
    broken: list[str] = []
    for change in last.values():
        if change.entry is None:
            found = gone_of(change.key)
            gone += [found] if found is not None else []
            continue
        try:
            row = row_of(change.key, change.entry.value)
        except StateError as error:
            broken.append(str(error))
            continue
        if row is not None:
            put[type(row), row.id] = row
    return News(tuple(put.values()), tuple(gone), tuple(broken))


def gone_of(key: str) -> Gone | None:
    """What a deleted key was; None: no row."""
    kind, _, rest = key.partition("/")
    if kind == "hosts":
        return Gone(key, peer=rest)
    if kind == "networks":
        return Gone(key, network_id=rest)
    network_id, _, text = rest.rpartition("/")
    try:
        if kind == "eps":
            return Gone(key, network_id=network_id, address=ip_address(text))
        if kind == "services":
            return Gone(key, network_id=network_id, service=text)
        if kind == "blocks":
            return Gone(key, network_id=network_id, prefix=ip_network(text.replace("-", "/")))
    except ValueError:
        return None
    return None


def of_kind(rows: Iterable[ClusterRow], kind: type[T]) -> Iterator[T]:
    """Those of the class."""
    return (row for row in rows if isinstance(row, kind))


def _read(key: str, cls: type[T], raw: Any) -> T:
    """The row, without fields that it does not have. StateError: it is none even so."""
    kind: Any = cls
    try:
        known = _fields(kind)
        return from_object(cls, {name: value for name, value in raw.items() if name in known})
    except (ValueError, AttributeError):
        raise _unreadable(key) from None


@cache
def _fields(cls: Any) -> frozenset[str]:
    return frozenset(field.name for field in dataclasses.fields(cls))


def _unreadable(key: str) -> StateError:
    return StateError(f"key {quoted(key, 160)} of the cluster store cannot be read: something else wrote it")


def shown(remotes: Sequence[Remote], peers: Mapping[str, Peer]) -> str:
    """Endpoints as a message names them: the first five, each with its container and host."""
    found = []
    for remote in remotes[:5]:
        host = peers[remote.peer].name if remote.peer in peers else remote.peer[:12]
        found.append(f'name:"{remote.name or remote.hostname}" id:"{remote.id[:12]}" on host {host}')
    more = f" and {len(remotes) - 5} more" if len(remotes) > 5 else ""
    return ", ".join(found) + more
