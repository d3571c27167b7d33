# SPDX-License-Identifier: Apache-2.0
"""Rows about names, as the packet programs have them: written, taken away, and made what they have to be.

A row is written whole, and what it refers to before it; what goes, goes in the other order. So every question finds
either what was or what is.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping
from ipaddress import IPv4Address
from typing import Any

from datapath.dataplane.convert import to_abi
from datapath.dataplane.layout import MAPS
from datapath.dataplane.name_entries import NameRows, Touched, name_rows, subnet_entries
from datapath.dataplane.programs import Dataplane
from datapath.dataplane.structs import LongNameKey, NameKey, ResolverKey
from datapath.drivers.context import HostView
from datapath.kernel import abi
from datapath.kernel.bpf_maps import cut
from datapath.model.drivers import built, traits
from datapath.model.endpoints import Endpoint, linklocal_of
from datapath.model.networks import Network, gateway_mac
from datapath.model.parsing import Address
from datapath.model.resolv import LOOPBACK, RESOLVER, NameFacts

# In the order in which rows are written: what others refer to first.
_FIRST = ("name_sets", "names", "long_names", "resolvers")
# Whether a row may be about who has an address, by its key in memory: no name begins with a byte from 64 on.
_OF_ADDRESSES: Mapping[str, Callable[[bytes], bool]] = {
    "names": lambda key: key[abi.layout("name_key").offset("name")] > 63,
    "name_sets": lambda key: True,
}
# What rows about names were last made from, besides the store's rows.
_FACTS = "names"


def answered(dataplane: Dataplane | None) -> bool:
    """The programs answer questions: those of the version before do not."""
    return dataplane is not None and dataplane.has("resolvers")


def hop(network: Network, endpoint: Endpoint) -> tuple[Address, IPv4Address]:
    """By which next hop the resolver's address is reached through an endpoint, and from which address it is asked."""
    subnet = network.subnet4
    if endpoint.ipv4 is not None and traits(network).lan:
        return RESOLVER, endpoint.ipv4.ip  # the gateway is somebody else's
    if endpoint.ipv4 is not None and subnet is not None and subnet.gateway is not None:
        return subnet.gateway, endpoint.ipv4.ip
    return linklocal_of(gateway_mac(network)), LOOPBACK


def write(dataplane: Dataplane, rows: NameRows, gone: Touched) -> None:
    """Writes the rows, and takes away those of `gone` that are not among them. Programs of the version before have no
    such maps."""
    if not dataplane.has("names"):
        return
    for name in _FIRST:
        _update(dataplane, name, _packed(name, getattr(rows, name)))
    names = {key for key in gone.keys if isinstance(key, NameKey)} - rows.names.keys()
    long_names = {key for key in gone.keys if isinstance(key, LongNameKey)} - rows.long_names.keys()
    _delete(dataplane, "names", names)
    _delete(dataplane, "long_names", long_names)
    _delete(dataplane, "name_sets", gone.sets - rows.name_sets.keys())
    _delete(dataplane, "resolvers", {ResolverKey(n) for n in gone.endpoints} - rows.resolvers.keys())


def sync(dataplane: Dataplane, view: HostView) -> None:
    """Makes all rows what they have to be: only those are written that are not. Programs of another version may find
    who has an address by rows that this one does not know: they stay until its programs are gone."""
    if not dataplane.has("names"):
        return
    wanted = name_rows(view.state, view.names)
    packed = {name: _packed(name, getattr(wanted, name)) for name in _FIRST}
    present = {name: _present(dataplane, name) for name in _FIRST}
    for name in _FIRST:
        _update(dataplane, name, _changed(packed[name], present[name]))
    for name in reversed(_FIRST):
        gone = present[name].keys() - packed[name].keys()
        if dataplane.outdated and name in _OF_ADDRESSES:
            gone = {key for key in gone if not _OF_ADDRESSES[name](key)}
        getattr(dataplane, name).delete_raw(gone)


def follow(dataplane: Dataplane, view: HostView) -> None:
    """After the host's resolv.conf or daemon.json may have changed: if what rows are made from has, all are made
    again."""
    if not dataplane.has("names"):
        return
    text = _text(view.names, dataplane.outdated)
    if view.notes.note(_FACTS) != text:
        sync(dataplane, view)
        with view.notes.transaction(durable=False):
            view.notes.set_note(_FACTS, text)


def _text(facts: NameFacts, outdated: bool) -> str:
    """`outdated`: for programs of another version. So what that alone has written is found once they are replaced."""
    asked = [[str(one.address), facts.links.get(one.device, 0)] for one in facts.servers]
    return json.dumps([facts.ttl, asked, outdated])


def tell_subnets(dataplane: Dataplane, view: HostView) -> None:
    """Writes which addresses are our networks', of whichever driver."""
    if not dataplane.has("subnets"):
        return
    wanted = _packed("subnets", subnet_entries(built(view.state.networks.values())))
    present = _present(dataplane, "subnets")
    _update(dataplane, "subnets", _changed(wanted, present))
    dataplane.subnets.delete_raw(present.keys() - wanted.keys())


def forget_counts(dataplane: Dataplane, network: Network) -> None:
    """Of a network that is taken away: another one may get its number."""
    if dataplane.has("name_counts"):
        dataplane.name_counts.pop(abi.name_count_key(network.number), None)


def _layouts(name: str) -> tuple[abi.Layout, abi.Layout]:
    key, value = MAPS[name]
    assert key is not None
    return abi.layout(key), abi.layout(value)


def _packed(name: str, rows: Mapping[Any, Any]) -> dict[bytes, bytes]:
    keys, values = _layouts(name)
    return {keys.pack(to_abi(key)): values.pack(to_abi(value)) for key, value in rows.items()}


def _present(dataplane: Dataplane, name: str) -> dict[bytes, bytes]:
    keys, values = _layouts(name)
    return {
        key: value
        for packed, rows, _ in getattr(dataplane, name).batches()
        for key, value in zip(cut(packed, keys.size), cut(rows, values.size), strict=True)
    }


def _changed(wanted: Mapping[bytes, bytes], present: Mapping[bytes, bytes]) -> dict[bytes, bytes]:
    return {key: row for key, row in wanted.items() if present.get(key) != row}


def _update(dataplane: Dataplane, name: str, rows: Mapping[bytes, bytes]) -> None:
    if rows:
        getattr(dataplane, name).update_raw(b"".join(rows), b"".join(rows.values()))


def _delete(dataplane: Dataplane, name: str, keys: Collection[Any]) -> None:
    pack = _layouts(name)[0].pack
    getattr(dataplane, name).delete_raw(pack(to_abi(key)) for key in keys)
