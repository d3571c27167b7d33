# SPDX-License-Identifier: Apache-2.0
"""The specification of overlay networks: bridge networks without a bridge, on every host of a cluster. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from datapath.drivers.ebpf.spec import EbpfBridge
from datapath.drivers.pairs.spec import truth
from datapath.errors import ConfigError, quoted
from datapath.model.drivers import OptionParser, Scope, Traits
from datapath.model.networks import (
    AUTO,
    DIRECT,
    OPT_ALLOW,
    OPT_ANNOUNCE,
    OPT_DENY,
    OPT_DEVICE,
    OPT_DOMAIN,
    OPT_ENCRYPTED,
    OPT_HOST_BINDING,
    OPT_ICC,
    OPT_IFACE_PREFIX,
    OPT_MASQUERADE,
    OPT_MTU,
    OPT_NAMES,
    OPT_RESOLVER,
    OPT_TRANSPORT,
    OPT_VNIS,
    TRANSPORTS,
    VXLAN,
    WIREGUARD,
    Network,
    NetworkRequest,
)

TUNNEL_DEVICE = "dp-vxlan"  # of all overlay networks of a host together
ENCRYPTED_DEVICE = "dp-wg"  # of those among them that are encrypted
# Bytes that encryption adds to an IP packet, by the IP version of the hosts' addresses.
ENCRYPTION_OVERHEAD = {4: 60, 6: 80}
MAX_VNI = 0xFFFFFF
PORT = "cluster port"  # the note of the UDP port that all hosts of the cluster receive tunnels at
_SHARED = (  # with bridge networks
    *(OPT_MTU, OPT_ICC, OPT_MASQUERADE, OPT_HOST_BINDING, OPT_IFACE_PREFIX, OPT_DEVICE),
    *(OPT_ALLOW, OPT_DENY, OPT_NAMES, OPT_DOMAIN, OPT_RESOLVER),
)


def _vnis(name: str, value: str) -> str:
    """Docker takes one for each subnet; all subnets of a network have the same here."""
    if not (value.isascii() and value.isdigit() and 1 <= int(value[:9]) <= MAX_VNI and len(value) <= 9):
        raise ConfigError(f"invalid vxlan id value {quoted(value)} passed: expected one of 1 to {MAX_VNI}")
    return str(int(value))


def _encrypted(name: str, value: str) -> str:
    return truth(name, value or "true")  # Docker's `-o encrypted`


def _transport(name: str, value: str) -> str:
    if value not in TRANSPORTS:
        raise ConfigError(
            f"invalid value {quoted(value)} for option {name}: there are {', '.join(TRANSPORTS)}"
        )
    return value


class OverlaySpec(EbpfBridge):
    """Docker's options of an overlay network, those of bridge networks that mean the same here, and our own."""

    name = "overlay"
    scope = Scope.GLOBAL
    traits = Traits(programs=True)
    shared_devices: ClassVar[Mapping[str, str]] = {
        TUNNEL_DEVICE: "from_vxlan",
        ENCRYPTED_DEVICE: "from_tunnel",
    }
    options: ClassVar[Mapping[str, OptionParser]] = {
        **{name: EbpfBridge.options[name] for name in _SHARED},
        OPT_ENCRYPTED: _encrypted,
        OPT_VNIS: _vnis,
        OPT_TRANSPORT: _transport,
        OPT_ANNOUNCE: truth,
    }

    def serves(self, options: Mapping[str, str]) -> bool:
        return True

    def check(self, request: NetworkRequest, options: Mapping[str, str]) -> None:
        super().check(request, options)
        wanted = options.get(OPT_TRANSPORT, "")
        if options.get(OPT_ENCRYPTED) == "true" and wanted not in ("", WIREGUARD):
            raise ConfigError(f"conflicting options: {OPT_ENCRYPTED} and {OPT_TRANSPORT}={wanted}")
        if options.get(OPT_ANNOUNCE) == "true":
            if wanted not in (DIRECT, AUTO):
                raise ConfigError(
                    f"option {OPT_ANNOUNCE} needs {OPT_TRANSPORT}={DIRECT} or {AUTO}: "
                    "what routers send comes without a tunnel"
                )
            if request.internal:
                raise ConfigError(f"conflicting options: {OPT_ANNOUNCE} and internal")
            if other := next((name for name in (OPT_ALLOW, OPT_DENY) if name in options), ""):
                raise ConfigError(
                    f"conflicting options: {OPT_ANNOUNCE} and {other}, which is about published ports only"
                )

    def path_mtu(self, network: Network, underlay: int, version: int) -> int:
        return underlay - overhead(network, version)


def transport(network: Network) -> str:
    """One of TRANSPORTS."""
    wanted = network.options.get(OPT_ENCRYPTED) == "true"
    return WIREGUARD if wanted else network.options.get(OPT_TRANSPORT, VXLAN)


def vni_of(network: Network) -> int:
    """The VNI that the user has asked for; 0: any."""
    return int(network.options.get(OPT_VNIS) or 0)


def encrypted(network: Network) -> bool:
    """Its packets go to other hosts by WireGuard, or not at all."""
    return transport(network) == WIREGUARD


def overhead(network: Network, version: int) -> int:
    """Bytes that the way to other hosts adds to an IP packet, where these have addresses of that IP version."""
    match transport(network):
        case "direct":
            return 0
        case "wireguard":
            return ENCRYPTION_OVERHEAD[version]
        case _:
            return 50 if version == 4 else 70


OVERLAY = OverlaySpec()
