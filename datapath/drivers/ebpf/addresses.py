# SPDX-License-Identifier: Apache-2.0
"""The host's own addresses, as the packet programs know them; when one is lost, what went by it ends.

A connection to a published port at an address that the host does not have any more cannot go on, and would stand in the
way of whoever has the address now. Masqueraded connections are not ended: their next packet gets the source that the
route then has.
"""

from __future__ import annotations

import json
from ipaddress import ip_address

from datapath.dataplane import connections, host_entries
from datapath.dataplane.programs import Dataplane
from datapath.drivers.context import HostView
from datapath.kernel import abi
from datapath.model.drivers import built, traits

# JSON: addresses that are being given up. If the command is killed meanwhile, the next one knows them from here.
_LOST = "lost addresses"


def tell(dataplane: Dataplane, view: HostView) -> None:
    """Writes all of the host's. What was observed may be older than a network that this command has built."""
    own = set(view.observed.ips)
    networks = [n for n in built(view.state.networks.values()) if not traits(n).lan]
    own |= {s.gateway for n in networks for s in n.subnets if s.gateway}
    plain = {address for address in own if not host_entries.is_scoped(address)}
    scoped = host_entries.linklocal_entries(view.observed) if dataplane.has("linklocals") else frozenset()
    known = {key.addr for key in dataplane.addresses}
    on_links = set(dataplane.linklocals) if dataplane.has("linklocals") else set()
    dataplane.addresses.update_many({abi.address_key(address): abi.address() for address in plain - known})
    if scoped - on_links:
        dataplane.linklocals.update_many(dict.fromkeys(scoped - on_links, abi.address()))
    noted = view.notes.note(_LOST)
    lost = {ip_address(text) for text in json.loads(noted or "[]")}
    lost |= known - plain
    lost |= {key.addr for key in on_links - scoped}
    lost -= own  # on another link it may be there still
    if lost:
        _note(view, json.dumps(sorted(map(str, lost))))
    # Addresses before connections to them: none can begin in between.
    dataplane.addresses.delete_many(abi.address_key(address) for address in known - plain)
    if on_links - scoped:
        dataplane.linklocals.delete_many(on_links - scoped)
    if lost:
        connections.forget_destinations(dataplane, frozenset(lost))
    if lost or noted is not None:
        _note(view, None)


def tell_prefixes(dataplane: Dataplane, view: HostView) -> None:
    """Writes what else is the host's. Programs of the version before have no such map."""
    if not dataplane.has("local_prefixes"):
        return
    wanted = host_entries.local_prefix_entries(view.observed)
    present = set(dataplane.local_prefixes)
    dataplane.local_prefixes.delete_many(present - wanted)
    dataplane.local_prefixes.update_many(dict.fromkeys(wanted - present, abi.address()))


def _note(view: HostView, text: str | None) -> None:
    """Without waiting for the disk: what takes the note away, a failure of the machine, takes the connections too."""
    with view.notes.transaction(durable=False):
        view.notes.set_note(_LOST, text)
