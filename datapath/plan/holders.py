# SPDX-License-Identifier: Apache-2.0
"""Who has an address, as messages name it. Pure."""

from __future__ import annotations

from datapath.model.endpoints import Endpoint
from datapath.model.peers import Remote
from datapath.model.rows import short
from datapath.model.services import Service
from datapath.model.state import State
from datapath.plan import remotes


def format_holder(endpoint: Endpoint | Remote | Service, state: State) -> str:
    """The container, foreign sandbox, endpoint or service that has an address, as error messages name it."""
    if isinstance(endpoint, Service):
        return f'service "{endpoint.name}"'
    if isinstance(endpoint, Remote):
        return remotes.format_remote(endpoint, state)
    container = state.holder(endpoint)
    if container is not None:
        return f'container "{container.name}"'
    sandbox = state.sandboxes.get(endpoint.sandbox_id)
    if sandbox is not None and sandbox.foreign:
        return f'sandbox "{sandbox.label}" of {sandbox.owner}'
    return f"endpoint {short(endpoint.id)}"
