# SPDX-License-Identifier: Apache-2.0
"""`Host.attachments`: sandboxes of other owners, each put onto a network in one piece. See ``docs/library.md``."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from datapath.engine.engine import Engine
from datapath.errors import NotFoundError

if TYPE_CHECKING:
    from datapath.engine.attachments import Attached
    from datapath.model.attachments import AttachmentRequest
    from datapath.model.endpoints import Endpoint
    from datapath.model.findings import Finding


class Attachments:
    """Sandboxes of other owners, each put onto a network in one piece and taken off it: `adopt`, `create`, `join`,
    `publish` and their way back in one command, for owners that are asked for all at once (CNI, netavark). Networks are
    created for them, and removed with their last attachment."""

    def __init__(self, host: Engine) -> None:
        self._host = host

    def add(self, request: AttachmentRequest) -> Attached:
        """Puts the sandbox onto the network; killed, or refused, it leaves nothing that `remove` would not take.

        Ports are published at the endpoint of the sandbox that has its default route; without one they are not, and
        the user is warned. ConfigError, NotFoundError; ExistsError: an address, a port, the device's name or the
        network's is taken, or the attachment exists; InUseError: the network is in use, and not what is asked for.
        """
        from datapath.engine import attachments

        with self._host.changing() as tx:
            return attachments.add(tx, request)

    def find(self, owner: str, key: str) -> Endpoint | None:
        """The endpoint of an attachment, by its owner's key, if its sandbox has joined."""
        from datapath.plan.sandboxes import find_endpoint

        state = self._host.snapshot()
        found = find_endpoint(owner, key, state)
        return found if found is not None and state.sandboxes[found.sandbox_id].key else None

    def check(self, owner: str, key: str, path: str) -> list[Finding]:
        """What `doctor` finds about an attachment. NotFoundError: there is none with that key in the namespace at
        `path`."""
        from datapath.drivers.comparison import endpoint_name
        from datapath.kernel import netns

        state, endpoint = self._host.snapshot(), self.find(owner, key)
        there = state.sandboxes[endpoint.sandbox_id].key if endpoint else ""
        if endpoint is None or not netns.is_namespace(path) or netns.identity(there) != netns.identity(path):
            raise NotFoundError(f"attachment {key} is not in {path}")
        name = endpoint_name(endpoint, state)
        return [finding for finding in self._host.doctor() if finding.subject == name]

    def remove(self, owner: str, key: str, network: str = "") -> bool:
        """Takes an attachment away, and with the last one of `network`, if that is the owner's, the network. False:
        there was no such attachment."""
        from datapath.engine import attachments

        if not self._host.exists:
            return False
        with self._host.changing(freeing=True) as tx:
            return attachments.remove(tx, owner, key, network)

    def retain(self, owner: str, network: str, wanted: Callable[[str], bool]) -> list[str]:
        """Takes the owner's attachments to the network away whose keys are not wanted; the keys of those."""
        from datapath.engine import attachments

        if not self._host.exists:
            return []
        with self._host.changing(freeing=True) as tx:
            return attachments.retain(tx, owner, network, wanted)
