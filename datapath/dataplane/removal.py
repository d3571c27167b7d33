# SPDX-License-Identifier: Apache-2.0
"""What an endpoint has in the tables of connections: made with it, and ended when it is removed."""

from __future__ import annotations

import errno
from collections.abc import Iterable

from datapath.dataplane import connections, timer
from datapath.dataplane.layout import CONN_GC
from datapath.dataplane.programs import Dataplane
from datapath.errors import KernelError
from datapath.kernel import abi, sockets
from datapath.kernel.bpf_maps import BPF_NOEXIST
from datapath.model.parsing import Address

_NEVER = 1  # NEVER of quotas.h


def open_quota(dataplane: Dataplane, number: int, *, new: bool = False) -> None:
    """Makes the endpoint's row in `quotas`: the packet programs count only connections of endpoints that have one.
    `new`: it cannot have connections yet."""
    # Programs of another version may not say when it has the first one.
    never = new and not dataplane.outdated
    try:
        dataplane.quotas.set(abi.quota_key(number), abi.quota(since=_NEVER if never else 0), BPF_NOEXIST)
    except KernelError as error:
        if error.errno != errno.EEXIST:
            raise


def forget_endpoint(dataplane: Dataplane, number: int) -> None:
    """Ends every connection and mapping that an endpoint takes part in; deletes its rows in `quotas` and `arrivals`.

    Without these its number is nobody's, and what has it counts for nothing from then on (docs/decisions/0074): so
    nobody has to look for it. The conntrack GC deletes it soon after, and gives back what others have of it.
    """
    quota = dataplane.quotas.get(abi.quota_key(number))
    never = quota is not None and quota.since == _NEVER
    by_number = not dataplane.outdated  # those of a version before do not ask
    if not never and not by_number:
        _delete_connections(dataplane, number)
    dataplane.arrivals.discard([abi.arrival_key(number)])
    dataplane.quotas.discard([abi.quota_key(number)])
    if not never and by_number:
        timer.start(dataplane.program(CONN_GC), abi.GcOrder.GC_REMOVED)


def _delete_connections(dataplane: Dataplane, number: int) -> None:
    """Deletes what an endpoint has in the tables, which are read for it: for programs of a version before."""
    for table in connections.TABLES:
        found = []
        # An entry whose counterpart was evicted belongs to no connection, but it may have the address still.
        entries = []
        for keys, values, _ in getattr(dataplane, table).batches():
            at = 0
            for fields in connections.ROW.iter_unpack(values):
                if number in (fields[2], fields[4]):
                    key = keys[at : at + connections.KEY_SIZE]
                    entries.append(key)
                    if fields[5] & connections.ORIGINAL:
                        found.append(connections.Original(key, *fields))
                at += connections.KEY_SIZE
        connections.end(dataplane, table, found)
        getattr(dataplane, table).delete_raw(entries)
    _forget_mappings(dataplane, number)


def _forget_mappings(dataplane: Dataplane, number: int) -> None:
    """Frees the external ports of an endpoint."""
    found = dataplane.externals.having("endpoint", number)
    dataplane.externals.delete_many(found)
    dataplane.mappings.delete_many(
        [
            abi.mapping_key(row.addr, key.addr, number, row.port, key.proto)
            for key, row in found.items()
            if row.port != key.port
        ]
    )


def forget_sockets(dataplane: Dataplane, addresses: Iterable[Address]) -> None:
    """Ends the host's sockets that were connected to an endpoint at one of these addresses, which is gone: the next
    holder of the address would get what they send."""
    layout = abi.layout("socket_key")
    cookie, address = layout.offset("cookie"), layout.offset("addr")
    wanted = {abi.pack_address(one) for one in addresses}
    found = [
        key
        for keys, _, count in dataplane.sockets.batches()
        for key in (keys[i * layout.size : (i + 1) * layout.size] for i in range(count))
        if key[address : address + 16] in wanted
    ]
    if found:
        sockets.destroy(frozenset(int.from_bytes(key[cookie : cookie + 8], "little") for key in found))
        dataplane.sockets.delete_raw(found)
