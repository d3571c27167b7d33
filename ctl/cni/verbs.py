# SPDX-License-Identifier: Apache-2.0
"""ADD, DEL, CHECK and GC: each one call of the library."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

from datapath.config.settings import Settings
from datapath.errors import ConfigError, DatapathError, NotFoundError, StateError, printable
from datapath.host import Host
from datapath.kernel import netns
from datapath.plan.endpoints import require_addresses

from . import config, ipam, result
from .protocol import ENVIRONMENT, INVALID, LATER, OWN, UNAVAILABLE, UNKNOWN, Call, CniError


def serve(call: Call) -> str:
    """Does what is asked for; what the runtime is told. CniError."""
    verbs = {"ADD": add, "DEL": delete, "CHECK": check, "GC": collect}
    try:
        host = Host.open(Settings.from_env(call.environ), warn)
        return verbs[call.verb](host, call)
    except (DatapathError, ExceptionGroup) as error:
        raise failure(error) from error


def require_address(call: Call) -> None:
    """There is an address for another container on the network, if that is there. CniError: every one is taken."""
    state = Host.open(Settings.from_env(call.environ), warn).snapshot()
    for network in state.networks.values():
        if network.name == config.network_name(call):
            try:
                require_addresses(network, state)
            except ConfigError as error:
                raise CniError(UNAVAILABLE, str(error)) from None


def warn(line: str) -> None:
    """A line for the runtime's log."""
    print(f"datapath: {printable(line)}", file=sys.stderr)


def failure(error: DatapathError | ExceptionGroup) -> CniError:
    """The error as CNI has it: a request that cannot be right, to be tried again, or one of our own from 100 on: 100
    and the exit code that datapathctl would have."""
    if isinstance(error, ExceptionGroup):
        parts = "; ".join(str(part) for part in error.exceptions)
        return CniError(OWN + 1, error.message, parts)
    if isinstance(error, ConfigError | NotFoundError):
        return CniError(INVALID, str(error))
    if isinstance(error, StateError) and "lock" in str(error):
        return CniError(LATER, str(error))
    return CniError(OWN + error.exit_code, str(error))


def delegated(call: Call) -> bool:
    """Another plugin manages the addresses."""
    return call.config.get("ipam") is not None


def add(host: Host, call: Call) -> str:
    """The container is put onto the network."""
    config.check(call)
    previous = call.config.get("prevResult")
    if previous is not None and not isinstance(previous, dict):
        raise CniError(INVALID, "prevResult is no object")
    if previous is not None:
        config.refuse_limits(call)
    if previous is not None and not list(config.ports(config.wishes(call).get("portmappings"))):
        return json.dumps(previous)
    if not netns.is_namespace(call.netns):
        raise CniError(ENVIRONMENT, f"invalid CNI_NETNS: {call.netns} is no network namespace")
    if netns.identity(call.netns) == netns.identity():
        raise CniError(ENVIRONMENT, f"invalid CNI_NETNS: {call.netns} is the host's own network namespace")
    if previous is not None:
        attached = host.attachments.add(config.beside(call, previous))
        return json.dumps(result.beside(call, attached, previous))
    given: dict[str, Any] | None = None
    config.attachment(
        call, {"ips": [{"address": "192.0.2.1/24"}]} if delegated(call) else None
    )  # refused now
    if delegated(call):
        ipam.plugin(call)
        if host.attachments.find(config.OWNER, config.key(call)) is not None:
            raise CniError(
                OWN + 4, f"attachment {config.key(call)} exists already: it has to be taken away first"
            )
    try:
        if delegated(call):
            given = ipam.delegate(call)
        request = config.attachment(call, given)
        attached = host.attachments.add(request)
        dns = config.dns(call, given, attached.resolver, attached.network.domain)
        return json.dumps(result.of(call, attached, dns))
    except BaseException:
        if delegated(call):
            with suppress(CniError):
                ipam.delegate(call, "DEL")
        raise


def delete(host: Host, call: Call) -> str:
    """The container is taken off the network; as often as wanted, and whatever of it is there."""
    with delegating(call):
        host.attachments.remove(config.OWNER, config.key(call), config.network_name(call))
    return ""


@contextmanager
def delegating(call: Call) -> Iterator[None]:
    """The plugin that manages addresses is asked to take away as well, whether it could be done here or not."""
    with ExitStack() as last:
        if delegated(call):
            last.callback(ipam.delegate, call)
        yield


def check(host: Host, call: Call) -> str:
    """Whether the container is on the network as ADD said."""
    previous = call.config.get("prevResult")
    if not isinstance(previous, dict):
        raise CniError(INVALID, "prevResult is missing: CHECK compares with it")
    key = config.key(call)
    endpoint = host.attachments.find(config.OWNER, key)
    if endpoint is None and result.is_of_another(previous):
        return ""  # chained, without ports: nothing was done for it
    try:
        findings = host.attachments.check(config.OWNER, key, call.netns)
    except NotFoundError as error:
        raise CniError(UNKNOWN, str(error)) from None
    assert endpoint is not None
    has = {str(address) for address in (endpoint.ipv4, endpoint.ipv6) if address}
    promised = {str(one.get("address")) for one in previous.get("ips") or () if isinstance(one, dict)}
    if (
        has - promised and endpoint.ifname == call.ifname
    ):  # behind another plugin the addresses are that one's
        raise CniError(
            OWN + 1, f"attachment {key} has {', '.join(sorted(has))}, and prevResult says otherwise"
        )
    if findings:
        raise CniError(
            OWN + 1, f"attachment {key}: {findings[0].detail}", "; ".join(f.line for f in findings)
        )
    if delegated(call):
        ipam.delegate(call)
    return ""


def collect(host: Host, call: Call) -> str:
    """Containers of the network that the runtime does not know any more are taken off it."""
    valid = call.config.get("cni.dev/valid-attachments") or ()
    keep = set()
    for one in valid:
        if not isinstance(one, dict) or not {"containerID", "ifname"} <= one.keys():
            raise CniError(INVALID, f"cni.dev/valid-attachments: {json.dumps(one)} names no attachment")
        keep.add(config.key(call, str(one["containerID"]), str(one["ifname"])))
    mine = f"{call.config['name']}/"
    with delegating(call):
        host.attachments.retain(
            config.OWNER, config.network_name(call), lambda key: key in keep or not key.startswith(mine)
        )
    return ""
