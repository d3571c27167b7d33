# SPDX-License-Identifier: Apache-2.0
"""What names resolve to, as the packet programs have it, and who would answer a container's question.

Nothing is sent from a container: names of ours are looked up in the maps, in the programs' order; for others the
upstream servers are asked by a socket of the host's.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import ip_address
from typing import TYPE_CHECKING

from datapath.dataplane.name_entries import SCOPE_ENDPOINT
from datapath.dataplane.wire_names import (
    TYPES,
    Key,
    address_key,
    endpoint_key,
    name_key,
    number_in,
    reverse_name,
    text_of,
    texts_of,
)
from datapath.engine.engine import Engine
from datapath.errors import ConfigError, NotFoundError, quoted
from datapath.model.parsing import Address
from datapath.model.state import State
from datapath.telemetry.stats import opened

if TYPE_CHECKING:
    from datapath.dataplane.programs import Dataplane
    from datapath.dataplane.structs import NameValue, ResolverValue, UpstreamValue

_PTR = "PTR"
_FAILED = ("SERVFAIL", "REFUSED")  # another server may know


@dataclass(frozen=True, slots=True)
class Name:
    """A row of `names ls`. `name`: of records of type PTR an address. `container`: who alone sees it, by a link; "":
    all members of the network."""

    network: str
    container: str
    name: str
    type: str
    data: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Answer:
    """What a question of a container's would be answered with. `status`: a response code, or NODATA: the name exists,
    and has no record of that type. `source`: who says so, "network red", "link of app", "upstream 192.0.2.53",
    "datapath"; "nobody"."""

    name: str
    type: str
    status: str
    data: tuple[str, ...]
    source: str


def all_names(engine: Engine, network: str = "") -> list[Name]:
    """What the packet programs answer, of one network or of all. NotFoundError."""
    state = engine.snapshot()
    wanted = state.network(network).number if network else None
    found = []
    with opened(engine) as dataplane:
        if dataplane is None or not dataplane.has("names"):
            return []
        owners = _owners(dataplane)
        for key, value in _rows(dataplane):
            if wanted is None or key.scope == wanted:
                of_network, client = _scope(key.scope, state)
                texts = owners.get((key.scope, number_in(key.name) or 0)) or [text_of(key.name)]
                for kind, data in _data(dataplane, value):
                    typed = TYPES.get(kind, str(kind))
                    found += [Name(of_network, client, text, typed, data) for text in texts]
    return sorted(found, key=lambda one: (one.network, one.container, one.type == _PTR, one.name, one.type))


def _owners(dataplane: Dataplane) -> Mapping[tuple[int, int], list[str]]:
    """The addresses by which an endpoint is found, by the numbers of its network and its own."""
    found: dict[tuple[int, int], list[str]] = defaultdict(list)
    for key, value in dataplane.endpoints.read_all():
        found[key.network, value.number].append(str(key.addr))
    return found


def _rows(dataplane: Dataplane) -> Iterator[tuple[Key, NameValue]]:
    from datapath.dataplane import convert

    for key, value in dataplane.names.read_all():
        yield convert.name_key(key), convert.name_value(value)
    for key, value in dataplane.long_names.read_all():
        yield convert.long_name_key(key), convert.name_value(value)


def _scope(scope: int, state: State) -> tuple[str, str]:
    """A scope's network, or the container whose it is."""
    if scope & SCOPE_ENDPOINT:
        number = scope & ~SCOPE_ENDPOINT
        endpoint = next((e for e in state.endpoints.values() if e.number == number), None)
        return "", state.holder_name(endpoint) if endpoint else f"endpoint {number}"
    return next((n.name for n in state.networks.values() if n.number == scope), f"network {scope}"), ""


def _data(dataplane: Dataplane, value: NameValue) -> Iterator[tuple[int, tuple[str, ...]]]:
    """The data of its records, by type."""
    from datapath.dataplane import convert
    from datapath.kernel import abi

    at = 0
    for row, rrset in zip(value.kept, value.sets, strict=True):
        if row:
            with suppress(KeyError):  # it has just gone
                kept = convert.name_set_value(dataplane.name_sets[abi.name_set_key(row)])
                yield rrset.type, tuple(texts_of(rrset.type, kept.records, kept.count, kept.size))
        else:
            yield rrset.type, tuple(texts_of(rrset.type, value.records[at:], rrset.count, rrset.size))
            at += rrset.count * rrset.size * (2 if rrset.count > 1 else 1)


# ---- as a container would ----------------------------------------------------------------------------------------


def resolve(engine: Engine, container: str, name: str, kind: str = "") -> list[Answer]:
    """What a running container's question would be answered with, and who would answer it. `kind`: a type of records;
    "": addresses of both families, or the name of an address. NotFoundError, ConfigError."""
    from datapath.kernel import dns_query

    state = engine.snapshot()
    endpoints = state.endpoints_of_sandbox(_sandbox_of(state, container))
    address = _address(name)
    wanted = reverse_name(str(address)) if address is not None else name.removesuffix(".")
    if name_key(0, wanted) is None:
        raise ConfigError(f"{quoted(name)} is no name that can be asked for")
    kinds = [dns_query.check_type(kind)] if kind else [_PTR] if _reversed(wanted) else ["A", "AAAA"]
    with opened(engine) as dataplane:
        resolver = _resolver(dataplane, (endpoint.number for endpoint in endpoints))
        if dataplane is None or resolver is None:
            raise ConfigError(
                f"container {container} has no resolver of datapath's: its resolv.conf names its servers"
            )
        return [_ask(dataplane, resolver, wanted, one, state) for one in kinds]


def _sandbox_of(state: State, name: str) -> str:
    """Of a container of ours, or of somebody else's sandbox."""
    try:
        return state.container(name).sandbox_id
    except NotFoundError:
        with suppress(NotFoundError):
            return state.sandbox(name).id
        raise


def _address(text: str) -> Address | None:
    try:
        return ip_address(text)
    except ValueError:
        return None


def _reversed(name: str) -> Address | None:
    """The address that a name below in-addr.arpa or ip6.arpa stands for."""
    labels = name.lower().split(".")
    if labels[-2:] == ["in-addr", "arpa"] and len(labels) == 6:
        return _address(".".join(labels[3::-1]))
    if labels[-2:] == ["ip6", "arpa"] and len(labels) == 34:
        digits = "".join(labels[31::-1])
        return _address(":".join(digits[i : i + 4] for i in range(0, 32, 4)))
    return None


def _resolver(dataplane: Dataplane | None, numbers: Iterable[int]) -> ResolverValue | None:
    from datapath.dataplane import convert
    from datapath.kernel import abi

    if dataplane is None or not dataplane.has("resolvers"):
        return None
    rows = (dataplane.resolvers.get(abi.resolver_key(number)) for number in numbers)
    return next((convert.resolver_value(row) for row in rows if row is not None), None)


def _ask(dataplane: Dataplane, resolver: ResolverValue, name: str, kind: str, state: State) -> Answer:
    """In the order of the programs: what is ours, then the upstream servers."""
    address = _reversed(name)
    for scope in (*([resolver.private_scope] if resolver.private_scope else []), *resolver.networks):
        network, client = _scope(scope, state)
        source = f"link of {client}" if client else f"network {network}"
        key = _owner_key(dataplane, scope, address) if address is not None else name_key(scope, name)
        value = _find(dataplane, key)
        if value is not None:
            data = {TYPES.get(number): texts for number, texts in _data(dataplane, value)}.get(kind, ())
            return Answer(name, kind, "NOERROR" if data else "NODATA", data, source)
    if address is not None and _in_our_subnets(dataplane, address):
        return Answer(name, kind, "NXDOMAIN", (), "datapath")
    if not resolver.egress and not any(one.network for one in resolver.upstreams):
        return Answer(name, kind, "NXDOMAIN", (), "datapath")
    return _ask_upstreams(resolver, name, kind)


def _owner_key(dataplane: Dataplane, scope: int, address: Address) -> Key:
    """The key of the row that says who has the address: an endpoint of this host, or somebody else."""
    from datapath.kernel import abi

    found = dataplane.endpoints.get(abi.endpoint_key(scope, address))
    return address_key(scope, address) if found is None else endpoint_key(scope, found.number)


def _find(dataplane: Dataplane, key: Key | None) -> NameValue | None:
    from datapath.dataplane import convert
    from datapath.dataplane.structs import NameKey

    if key is None:
        return None
    table = dataplane.names if isinstance(key, NameKey) else dataplane.long_names
    row = table.get(convert.to_abi(key))
    return None if row is None else convert.name_value(row)


def _in_our_subnets(dataplane: Dataplane, address: Address) -> bool:
    from datapath.kernel import abi

    return dataplane.subnets.get(abi.subnet_key(128, address)) is not None


def _ask_upstreams(resolver: ResolverValue, name: str, kind: str) -> Answer:
    from datapath.kernel import dns_query

    last: Answer | None = None
    for upstream in resolver.upstreams:
        if not (resolver.egress or upstream.network):
            continue
        server = _server(upstream)
        reply = dns_query.ask(server, name, kind)
        if reply is None:
            continue
        status = "NODATA" if reply.status == "NOERROR" and not reply.records else reply.status
        last = Answer(name, kind, status, reply.records, f"upstream {server}")
        if reply.status not in _FAILED:
            return last
    return last or Answer(name, kind, "REFUSED", (), "nobody")


def _server(upstream: UpstreamValue) -> str:
    from datapath.kernel.devices import name_of

    return f"{upstream.addr}%{name_of(None, upstream.ifindex)}" if upstream.ifindex else str(upstream.addr)
