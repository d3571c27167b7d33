# SPDX-License-Identifier: Apache-2.0
"""What an endpoint has in the tables of connections: made with it, and ended when it is removed."""

from __future__ import annotations

import errno
from collections.abc import Iterable

from datapath.dataplane import timer
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
    dataplane.arrivals.discard([abi.arrival_key(number)])
    dataplane.quotas.discard([abi.quota_key(number)])
    if not never:
        timer.start(dataplane.program(CONN_GC), abi.GcOrder.GC_REMOVED)


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
