# SPDX-License-Identifier: Apache-2.0
"""What the agent says of a host's changes: a line for each. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from datapath.model.host import HostNetwork

_MANY = 8


def between(before: HostNetwork | None, now: HostNetwork) -> Iterator[str]:
    """What has changed, of what containers are served by."""
    if before is None:
        uplinks = ", ".join(uplink.name for uplink in now.uplinks) or "none"
        yield f"following the host: uplinks {uplinks}"
        return
    old, new = _addresses(before), _addresses(now)
    yield from _named("address", "new", new - old)
    yield from _named("address", "gone", old - new)
    old, new = {one.name for one in before.uplinks}, {one.name for one in now.uplinks}
    yield from _named("uplink", "new", new - old)
    yield from _named("uplink", "gone", old - new)
    if before.ephemeral != now.ephemeral:
        yield f"port range: {now.ephemeral[0]}-{now.ephemeral[1]}"
    if before.other_nat != now.other_nat:
        yield f"the packet filter {'masquerades, too' if now.other_nat else 'does not masquerade any more'}"
    if before.resolv.nameservers != now.resolv.nameservers:
        yield f"name servers: {', '.join(now.resolv.nameservers) or 'none'}"
    if before.xfrm != now.xfrm:
        yield f"IPsec policies: {len(now.xfrm.all)}"


def _addresses(network: HostNetwork) -> set[str]:
    ours = {index for index, device in network.devices.items() if device.name in network.ours}
    return {
        str(one.interface.ip)
        for one in network.addresses
        if one.ifindex not in ours and not one.interface.ip.is_link_local
    }


def _named(what: str, verb: str, names: set[str]) -> Iterator[str]:
    if len(names) > _MANY:
        yield f"{what}: {len(names)} {verb}"
    else:
        yield from (f"{what} {name}: {verb}" for name in sorted(names))


def told(error: BaseException) -> str:
    """An error, or several, on one line."""
    if isinstance(error, BaseExceptionGroup):
        return "; ".join(told(one) for one in error.exceptions)
    return str(error)
