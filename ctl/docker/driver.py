# SPDX-License-Identifier: Apache-2.0
"""Docker's requests, each as one call of the library.

dockerd sends several at a time, and after a crash of its own never sends some: each may come again, late, or not at
all. One whose answer it has not got it repeats without what was in it. What goes wrong is answered in one line, which
its user sees; that something cannot be taken away Docker does not want to know, and nobody asks for it again: it is for
`reconcile`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from functools import partial
from http import HTTPStatus
from typing import Any

from datapath.errors import ConfigError, DatapathError, ExistsError, NotFoundError
from datapath.host import Host
from datapath.kernel.unix_server import Answer, Request
from datapath.model.endpoints import EndpointRequest
from datapath.model.fields import Fields, part, text
from datapath.model.networks import NetworkRequest
from datapath.model.parsing import parse_prefix

from . import DRIVER, OWNER, lent, protocol
from .protocol import ident

Reply = Mapping[str, Any]

_NOTHING: Reply = {}
_WITHOUT_BODY = ("Plugin.Activate", "NetworkDriver.GetCapabilities", "NetworkDriver.FreeNetwork")
_TYPE = {"Content-Type": "application/vnd.docker.plugins.v1.2+json"}


class Driver:
    """A network driver on one host. `changed` is called when Docker has made something of which it tells no name."""

    def __init__(self, host: Host, changed: Callable[[], None], say: Callable[[str], None]) -> None:
        self._host, self._changed, self._say = host, changed, say
        self._methods: Mapping[str, Callable[[Fields], Reply]] = {
            "Plugin.Activate": lambda fields: {"Implements": ["NetworkDriver"]},
            "NetworkDriver.GetCapabilities": lambda fields: {"Scope": "local", "ConnectivityScope": "local"},
            "NetworkDriver.AllocateNetwork": lambda fields: {"Options": {}},  # of networks of a swarm
            "NetworkDriver.FreeNetwork": lambda fields: _NOTHING,
            "NetworkDriver.GwAllocCheck": lambda fields: {"SkipIPv4": False, "SkipIPv6": False},
            "NetworkDriver.DiscoverNew": lambda fields: _NOTHING,
            "NetworkDriver.DiscoverDelete": lambda fields: _NOTHING,
            # A fifth of all requests. What Docker would show of it cannot be told by JSON: docs/docker.md.
            "NetworkDriver.EndpointOperInfo": lambda fields: {"Value": {}},
            "NetworkDriver.CreateNetwork": self._create_network,
            "NetworkDriver.DeleteNetwork": self._delete_network,
            "NetworkDriver.CreateEndpoint": self._create_endpoint,
            "NetworkDriver.DeleteEndpoint": self._delete_endpoint,
            "NetworkDriver.Join": self._join,
            "NetworkDriver.Leave": self._leave,
            "NetworkDriver.ProgramExternalConnectivity": self._program,
            "NetworkDriver.RevokeExternalConnectivity": self._revoke,
        }

    def handle(self, request: Request) -> Answer:
        """Any request; never raises."""
        name = request.path.partition("?")[0].removeprefix("/")
        method = self._methods.get(name)
        if method is None:
            return _refused(HTTPStatus.NOT_FOUND, f"driver {DRIVER} has no method {name[:100]!r}")
        if request.method != "POST":
            return _refused(HTTPStatus.METHOD_NOT_ALLOWED, f"method {name} takes POST")
        if method == self._create_endpoint:
            method = partial(self._create_endpoint, asker=request.asker)
        try:
            fields = protocol.parse(request.body)
        except ConfigError as error:
            return _refused(HTTPStatus.BAD_REQUEST, str(error))
        try:
            if not request.body and name not in _WITHOUT_BODY:
                # dockerd has read it to its end when it sent it first.
                raise ConfigError(
                    "Docker repeats a request that was not answered, without its body: try again"
                )
            return _answer(HTTPStatus.OK, method(fields))
        except (DatapathError, ExceptionGroup) as error:
            said = told(error)
            self._say(f"{name}: {said}")
            return _refused(HTTPStatus.OK, said)
        except Exception as error:
            said = f"internal error: {type(error).__name__}: {error}"
            self._say(f"{name}: {said}")
            return _refused(HTTPStatus.INTERNAL_SERVER_ERROR, said)

    # ---- networks --------------------------------------------------------------------------------

    def _create_network(self, fields: Fields) -> Reply:
        if name := lent.asked(fields):
            lent.add(self._host, ident(fields, "NetworkID"), name)
            return _NOTHING
        wanted = protocol.network_request(fields)
        try:
            self._host.networks.create(wanted, allots=True)
        except ExistsError:
            if not self._has(wanted):
                raise
        self._changed()
        return _NOTHING

    def _has(self, wanted: NetworkRequest) -> bool:
        """Docker has not got the answer when it asked for this network before."""
        known = self._host.snapshot().networks.get(wanted.ident)
        if known is None or known.owner != OWNER:
            return False
        return {subnet.prefix for subnet in known.subnets} == {
            parse_prefix(s, "subnet") for s in wanted.subnets
        }

    def _delete_network(self, fields: Fields) -> Reply:
        network = ident(fields, "NetworkID")
        if lent.find(self._host, network):
            lent.remove(self._host, network)
            return _NOTHING
        with suppress(NotFoundError):
            self._host.networks.remove(network, OWNER, members=True)
        return _NOTHING

    # ---- endpoints -------------------------------------------------------------------------------

    def _create_endpoint(self, fields: Fields, asker: tuple[int, int] = (0, 0)) -> Reply:
        request = protocol.endpoint_request(fields)
        if name := lent.find(self._host, request.network):
            return self._create_lent(fields, replace(request, network=name), asker)
        if not (request.ip or request.ip6):
            raise ConfigError("Docker has allotted no address: the network's IPAM driver must be default")
        made = self._host.endpoints.create(
            request, OWNER, ident(fields, "EndpointID"), allots=True, asker=asker
        )
        # What Docker has said itself must not be said to it.
        return {"Interface": {} if request.mac else {"MacAddress": made.mac}}

    def _create_lent(self, fields: Fields, request: EndpointRequest, asker: tuple[int, int]) -> Reply:
        """On a network of datapathctl's, which gives out addresses. What Docker has said must not be said to it."""
        made = self._host.endpoints.create(request, OWNER, ident(fields, "EndpointID"), asker=asker)
        found = {
            "Address": "" if request.ip or made.ipv4 is None else str(made.ipv4),
            "AddressIPv6": "" if request.ip6 or made.ipv6 is None else str(made.ipv6),
            "MacAddress": "" if request.mac else made.mac,
        }
        return {"Interface": {key: value for key, value in found.items() if value}}

    def _delete_endpoint(self, fields: Fields) -> Reply:
        self._host.endpoints.delete(ident(fields, "EndpointID"), OWNER)
        return _NOTHING

    def _join(self, fields: Fields) -> Reply:
        endpoint, path = ident(fields, "EndpointID"), text(fields, "SandboxKey")
        # Of all networks of a container: what cannot be published is refused where it is to be.
        specs = [s for s in protocol.port_specs(part(fields, "Options")) or () if protocol.publishable(s)]
        info = self._host.endpoints.hand_over(endpoint, OWNER, path, specs, path.rpartition("/")[2])
        if not info.source:
            raise ConfigError(f"the device of endpoint {endpoint[:12]} is gone, or in a sandbox already")
        self._changed()
        return protocol.join_reply(info)

    def _leave(self, fields: Fields) -> Reply:
        endpoint = ident(fields, "EndpointID")
        with suppress(NotFoundError):
            self._host.endpoints.leave(endpoint, OWNER)
        return _NOTHING

    def _program(self, fields: Fields) -> Reply:
        specs = protocol.port_specs(part(fields, "Options"))
        self._host.endpoints.program(ident(fields, "EndpointID"), OWNER, specs)
        return _NOTHING

    def _revoke(self, fields: Fields) -> Reply:
        endpoint = ident(fields, "EndpointID")
        with suppress(NotFoundError):
            self._host.endpoints.revoke(endpoint, OWNER)
        return _NOTHING


def told(error: BaseException) -> str:
    """An error, or several, on one line."""
    if isinstance(error, BaseExceptionGroup):
        return "; ".join(told(one) for one in error.exceptions)
    return " ".join(str(error).split())


def _answer(status: HTTPStatus, reply: Reply) -> Answer:
    return Answer(status, json.dumps(reply).encode() + b"\n", _TYPE)


def _refused(status: HTTPStatus, why: str) -> Answer:
    return _answer(status, {"Err": why})
