# SPDX-License-Identifier: Apache-2.0
"""What Docker's daemon knows and tells no driver: names, and which endpoints there are.

Asked by its API, and never while a request of its is answered: it holds its locks meanwhile.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from datapath.errors import DatapathError

from . import DRIVER

if TYPE_CHECKING:
    from datapath.kernel.unix_http import Api

SOCKETS = ("/run/docker.sock", "/var/run/docker.sock")
_PATIENCE = 2.0  # seconds


class Known(NamedTuple):
    """`containers` and `networks`: names, by id of an endpoint and of a network; `endpoints`: the ids of all of its
    networks of ours; `labels`: of containers, by id of an endpoint."""

    containers: Mapping[str, str]
    networks: Mapping[str, str]
    endpoints: frozenset[str]
    labels: Mapping[str, Mapping[str, str]]


NOTHING = Known({}, {}, frozenset(), {})


def sockets(environment: Mapping[str, str]) -> tuple[str, ...]:
    """Where the daemon may listen: where its client would ask, if that is a Unix path."""
    host = environment.get("DOCKER_HOST", "")
    if host.startswith("unix://"):
        return (host.removeprefix("unix://"),)
    return SOCKETS


def ask(environment: Mapping[str, str], driver: str = DRIVER) -> Known | None:
    """All that it knows of the driver's networks; None: there is no daemon, or it does not answer."""
    from datapath.kernel.unix_http import Api  # no request of Docker's needs it

    for path in sockets(environment):
        api = Api(path, _PATIENCE)
        try:
            return _known(api, driver)
        except (DatapathError, KeyError, TypeError, AttributeError):
            continue  # it is not there, or no Docker
    return None


def _known(api: Api, driver: str) -> Known:
    listed = {one["Id"]: one["Name"] for one in api.ask("GET", "/networks") if one["Driver"] == driver}
    endpoints = set()
    for network in listed:
        endpoints |= _endpoints(api.ask("GET", f"/networks/{network}"))
    containers, labels = {}, {}
    for one in api.ask("GET", "/containers/json?all=1"):
        names = [name.removeprefix("/") for name in one["Names"] if name.count("/") == 1]
        for joined in ((one.get("NetworkSettings") or {}).get("Networks") or {}).values():
            if names and joined["EndpointID"]:
                containers[joined["EndpointID"]] = names[0]
                labels[joined["EndpointID"]] = dict(one.get("Labels") or {})
    return Known(containers, listed, frozenset(endpoints), labels)


def _endpoints(network: Mapping[str, Any]) -> set[str]:
    """Those of one network, in a sandbox or not."""
    return {one["EndpointID"] for one in (network.get("Containers") or {}).values()}
