# SPDX-License-Identifier: Apache-2.0
"""What the owner of a sandbox asks for in one piece: that it is on a network, with its ports published."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from datapath.model.endpoints import EndpointRequest
from datapath.model.networks import NetworkRequest


@dataclass(frozen=True, slots=True)
class AttachmentRequest:
    """One attachment: the namespace at `path`, of the sandbox `sandbox`, is to have the endpoint `endpoint`.

    `key`: the owner's own identifier of the attachment, `sandbox` that of the sandbox, `name` how users are shown it.
    `network`: what the network has to be like; it is created for the owner if it is not there. None: the network that
    `endpoint` names is there, whoever's it is. `ports`: Docker's `-p`; `shared`: the owner holds them by sockets of
    his own. `allots`: he allots addresses himself, and never one twice, so who has one of these has been forgotten.
    `again`: the attachment may be there already, and is then the answer. `labels`: of the container.
    """

    owner: str
    key: str
    path: str
    sandbox: str
    endpoint: EndpointRequest
    network: NetworkRequest | None = None
    name: str = ""
    ports: tuple[str, ...] = ()
    shared: bool = False
    allots: bool = False
    again: bool = False
    labels: Mapping[str, str] = field(default_factory=dict)
