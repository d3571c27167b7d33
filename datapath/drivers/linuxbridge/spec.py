# SPDX-License-Identifier: Apache-2.0
"""The specification of bridge networks as Docker builds them. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from datapath.drivers.pairs.spec import PairSpec
from datapath.errors import ConfigError
from datapath.model.drivers import Traits
from datapath.model.networks import (
    EBPF,
    MODES,
    OPT_ALLOW,
    OPT_BESIDE,
    OPT_DENY,
    OPT_DEVICE,
    OPT_DOMAIN,
    OPT_MODE,
    OPT_NAMES,
    OPT_RESOLVER,
    VETH,
    Network,
    NetworkRequest,
)


class LinuxBridge(PairSpec):
    """Driver bridge in the modes iptables and nftables: a Linux bridge and packet filter rules forward."""

    name = "bridge"
    traits = Traits(acl=False)
    gateway_kind = "bridge"

    def serves(self, options: Mapping[str, str]) -> bool:
        mode = options.get(OPT_MODE, EBPF)
        return mode in MODES and mode != EBPF

    def check(self, request: NetworkRequest, options: Mapping[str, str]) -> None:
        super().check(request, options)
        pair = options.get(OPT_DEVICE, VETH)
        if pair != VETH:
            raise ConfigError(f"{OPT_DEVICE}={pair} needs {OPT_MODE}={EBPF}, not {options[OPT_MODE]}")
        others = (name for name in options if name not in self.options)  # of the driver's other mode alone
        for name in (OPT_ALLOW, OPT_DENY, OPT_BESIDE, OPT_DOMAIN, OPT_NAMES, OPT_RESOLVER, *others):
            if options.get(name, "false") != "false":  # there are no names in any case
                raise ConfigError(f"{name} needs {OPT_MODE}={EBPF}, not {options[OPT_MODE]}")

    def sysctls(self, network: Network) -> dict[str, str]:
        return {**super().sysctls(network), f"net/ipv4/conf/{network.device}/route_localnet": "1"}


LINUX_BRIDGE = LinuxBridge()
