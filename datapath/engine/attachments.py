# SPDX-License-Identifier: Apache-2.0
"""Attachments: a sandbox of another owner put onto a network, in one transaction, and taken off it.

For front doors that are asked for all of it at once (CNI, netavark). A network that was created for an attachment goes
with the last one of its owner's.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass

from datapath.drivers.base import JoinInfo
from datapath.engine import endpoints, lifecycle, sandboxes
from datapath.engine.transaction import Transaction
from datapath.errors import DatapathError
from datapath.model.attachments import AttachmentRequest
from datapath.model.endpoints import Endpoint
from datapath.model.networks import Network
from datapath.plan import attachments as plans
from datapath.plan.ports import egress_endpoints
from datapath.plan.sandboxes import find_endpoint


@dataclass(frozen=True, slots=True)
class Attached:
    """What has become of an attachment. `info`: what the device in the sandbox is like."""

    network: Network
    endpoint: Endpoint
    info: JoinInfo

    @property
    def resolver(self) -> str:
        """The address at which the sandbox asks for the names of the network's members; "": they have none."""
        return str(self.network.resolver) if self.info.resolver is not None and self.network.named else ""


def add(tx: Transaction, request: AttachmentRequest) -> Attached:
    """See `datapath.host.Attachments.add`."""
    endpoints.evict_dead(tx)
    plans.refuse_known(request, tx.state)
    with ExitStack() as undo:
        undo.callback(_tidy, tx, request.owner, request.network.name if request.network else "")
        _ensure_network(tx, request)
        labels = request.labels or None  # another attachment has perhaps told them
        sandbox = sandboxes.adopt(tx, request.path, request.owner, request.sandbox, request.name, labels)
        known = find_endpoint(request.owner, request.key, tx.state)
        endpoint = sandboxes.create_endpoint(tx, request.endpoint, request.owner, request.key, request.allots)
        if known is None or not tx.state.sandboxes[known.sandbox_id].key:
            undo.callback(sandboxes.delete_endpoint, tx, endpoint.id, request.owner, False)
        info = sandboxes.join(tx, endpoint.id, sandbox.id)
        # Wherever the default route is: an owner asks for them at each network of the sandbox.
        carriers = egress_endpoints(tx.state.endpoints_of_sandbox(sandbox.id))
        if request.ports and carriers:
            sandboxes.publish(tx, carriers[0].id, request.ports, request.shared)
        elif request.ports:
            tx.warn(
                f"ports of sandbox {sandbox.label} are not published: it is on no network that leads outside"
            )
        undo.pop_all()
    endpoint = tx.state.endpoints[endpoint.id]
    return Attached(tx.state.networks[endpoint.network_id], endpoint, info)


def _ensure_network(tx: Transaction, request: AttachmentRequest) -> None:
    if request.network is None:
        return
    network, anew = plans.plan_network(request.network, tx.state)
    if network is not None and anew:
        lifecycle.remove(tx, network.id, request.owner)
        tx.look_again()
    if network is None or anew:
        lifecycle.create(tx, request.network)


def remove(tx: Transaction, owner: str, key: str, network: str = "") -> bool:
    """See `datapath.host.Attachments.remove`."""
    endpoint = find_endpoint(owner, key, tx.state)
    if endpoint is not None:
        network = network or tx.state.networks[endpoint.network_id].name
        sandboxes.delete_endpoint(tx, endpoint.id, owner, False)
    _tidy(tx, owner, network)
    return endpoint is not None


def retain(tx: Transaction, owner: str, network: str, wanted: Callable[[str], bool]) -> list[str]:
    """See `datapath.host.Attachments.retain`."""
    gone, failures = plans.unwanted(owner, network, wanted, tx.state), []
    for endpoint in gone:
        try:
            sandboxes.delete_endpoint(tx, endpoint.id, owner, False)
        except (DatapathError, ExceptionGroup) as error:
            failures.append(error)
    _tidy(tx, owner, network)
    if failures:
        raise ExceptionGroup(f"network {network} could not be cleaned up completely", failures)
    return [endpoint.owner_key for endpoint in gone]


def _tidy(tx: Transaction, owner: str, network: str) -> None:
    """Forgets the owner's sandboxes that are on no network, and removes the network if nobody is on it any more, it has
    no services, and it is the owner's."""
    tx.delete(*plans.abandoned(owner, tx.state))
    found = tx.state.find_network(network) if network else None
    if found is None or found.owner != owner or tx.state.endpoints_of_network(found.id):
        return
    if not tx.state.services_of_network(found.id):
        lifecycle.remove(tx, found.id, owner)
