# SPDX-License-Identifier: Apache-2.0
"""Networks, and what a user asks of one.

All rows of the model are pure values, and the mappings inside them are never changed in place. Times are RFC 3339 in
UTC, addresses `ipaddress` objects, ports in host order, ids 64 hex digits.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import (
    ip_address,
    ip_network,
)

from datapath.model.devices import NETKIT as NETKIT
from datapath.model.devices import VETH as VETH
from datapath.model.digests import sha256
from datapath.model.parsing import (
    TRUE_WORDS,
    Address,
    Prefix,
)
from datapath.model.parsing import Interface as Interface
from datapath.model.plugins import DEFAULT_IPAM, is_leased, is_unmanaged
from datapath.model.resolv import RESOLVER
from datapath.model.rows import OWNER, Phase, short

# Docker's driver options that mean something here.
OPT_NAME = "com.docker.network.bridge.name"
OPT_DEFAULT_BRIDGE = "com.docker.network.bridge.default_bridge"
OPT_ICC = "com.docker.network.bridge.enable_icc"
OPT_MASQUERADE = "com.docker.network.bridge.enable_ip_masquerade"
OPT_HOST_BINDING = "com.docker.network.bridge.host_binding_ipv4"
OPT_MTU = "com.docker.network.driver.mtu"
OPT_IFACE_PREFIX = "com.docker.network.container_iface_prefix"
OPT_ENDPOINT_IFNAME = "com.docker.network.endpoint.ifname"
OPT_ENDPOINT_SYSCTLS = "com.docker.network.endpoint.sysctls"
# An endpoint that speaks for others, as a router does: our own option.
OPT_FORWARDING = "com.datapath.forwarding"
OPT_SERVICE = "com.datapath.service"  # of an endpoint: which services it is behind
# How much an endpoint may receive (ingress) and send (egress): bits a second, and bits at once.
OPT_INGRESS_RATE = "com.datapath.ingress_rate"
OPT_INGRESS_BURST = "com.datapath.ingress_burst"
OPT_EGRESS_RATE = "com.datapath.egress_rate"
OPT_EGRESS_BURST = "com.datapath.egress_burst"
# Prefixes beyond a network that its members reach by way of the host's stack, whose packet filter translates them.
OPT_HOST_ROUTED = "com.datapath.host_routed"
# Whether what members send is counted, by whom they talk to.
OPT_FLOWS = "com.datapath.flows"
# Who may connect to published ports that do not say so themselves: of a network's members, or of an endpoint.
OPT_ALLOW = "com.datapath.allow"
OPT_DENY = "com.datapath.deny"
# Whether a network's members find each other by name, below which domain they are found besides, and where runtimes
# are told that they ask: our own too, and the values of the last.
OPT_NAMES = "com.datapath.names"
OPT_DOMAIN = "com.datapath.domain"
OPT_RESOLVER = "com.datapath.resolver"
AT_GATEWAY = "gateway"

# Docker's options of macvlan networks, and our own: the host reaches the members, and they reach it.
OPT_PARENT = "parent"
OPT_MACVLAN_MODE = "macvlan_mode"
OPT_HOST_ACCESS = "com.datapath.host_access"

# Docker's options of ipvlan networks, and their values.
OPT_IPVLAN_MODE = "ipvlan_mode"
OPT_IPVLAN_FLAG = "ipvlan_flag"
L2, L3, L3S = "l2", "l3", "l3s"
BRIDGE, PRIVATE, VEPA = "bridge", "private", "vepa"

# Members have their default route elsewhere, on another's network: this one has none for them.
OPT_BESIDE = "com.datapath.beside"

# Docker's options of overlay networks, and our own: how packets get to the other hosts, and whether routers are to know
# the way to members.
OPT_ENCRYPTED = "encrypted"
OPT_VNIS = "com.docker.network.driver.overlay.vxlanid_list"
OPT_TRANSPORT = "com.datapath.transport"
OPT_ANNOUNCE = "com.datapath.announce"
VXLAN, DIRECT, AUTO, WIREGUARD = TRANSPORTS = ("vxlan", "direct", "auto", "wireguard")

# What forwards a bridge network's packets: our own option and its values.
OPT_MODE = "com.datapath.mode"
EBPF, IPTABLES, NFTABLES = MODES = ("ebpf", "iptables", "nftables")
# What pairs of devices join its members to the host, by the kernel's names: our own too.
OPT_DEVICE = "com.datapath.device"
PAIRS = (VETH, NETKIT)


# ---- networks ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Subnet:
    """One address range of a network. `configured`: the user chose it (else it came from a pool). `pool`: what the IPAM
    plugin that gave it out calls it; "": it is of our own address management."""

    prefix: Prefix
    gateway: Address | None = None
    ip_range: Prefix | None = None
    aux: Mapping[str, Address] = field(default_factory=dict)
    configured: bool = False
    pool: str = ""


@dataclass(frozen=True, slots=True)
class Network:
    """A set of endpoints that may talk. `number` is the kernel's index (0: the driver needs none), `device`
    the gateway device on the host, `built` whether the kernel side has been built. `owner`: the front door that
    the network was created through and is removed through, as in `Sandbox`; "datapath": our own command line.
    `vni`: which network a packet in a tunnel is of (RFC 7348), 24 bits; 0: none of its packets are in one. `path_mtu`:
    bytes of an IP packet that this host's way to the others takes; 0: there are no others. `made`: a device below the
    network that was made for it, and goes with it. `plugin`: the driver is a plugin of that name, and `generic` its
    options, which nobody else reads. `ipam_driver`, `ipam_options`: who gives out its addresses; `address_space`: a
    plugin's word for where these are unique."""

    id: str
    name: str
    number: int
    driver: str = "bridge"
    scope: str = "local"
    created: str = ""
    subnets: tuple[Subnet, ...] = ()
    ipv4: bool = True
    ipv6: bool = False
    internal: bool = False
    attachable: bool = False
    labels: Mapping[str, str] = field(default_factory=dict)
    options: Mapping[str, str] = field(default_factory=dict)
    device: str = ""
    predefined: bool = False
    phase: Phase = Phase.CREATING
    built: bool = False
    owner: str = OWNER
    vni: int = 0
    path_mtu: int = 0
    made: str = ""
    plugin: bool = False
    generic: Mapping[str, str] = field(default_factory=dict)
    ipam_driver: str = DEFAULT_IPAM
    ipam_options: Mapping[str, str] = field(default_factory=dict)
    address_space: str = ""

    @property
    def leased(self) -> bool:
        """A plugin gives out its addresses."""
        return is_leased(self.ipam_driver)

    @property
    def short_id(self) -> str:
        return short(self.id)

    @property
    def icc(self) -> bool:
        """Members may talk to each other."""
        return self.options.get(OPT_ICC, "true") in TRUE_WORDS and self.flag != PRIVATE

    @property
    def parent(self) -> str:
        """The device of the host on whose link members are; "": they are on none, or reach nobody there."""
        return self.options.get(OPT_PARENT, "")

    @property
    def flag(self) -> str:
        """Of ipvlan networks, what becomes of packets from member to member: "bridge": they are delivered, "private":
        they are not, "vepa": they leave by the parent."""
        return self.options.get(OPT_IPVLAN_FLAG, BRIDGE)

    @property
    def routed(self) -> bool:
        """An ipvlan network that nobody on the parent's link is to take for a part of it (modes l3 and l3s)."""
        return self.options.get(OPT_IPVLAN_MODE, L2) in (L3, L3S)

    @property
    def masquerade(self) -> bool:
        """Packets to the outside leave with the host's address."""
        return self.options.get(OPT_MASQUERADE, "true") in TRUE_WORDS

    @property
    def beside(self) -> bool:
        """Members have their default route on a network of somebody else's: this one only publishes their ports. Who
        connects to these comes from the gateway, as the answer would leave by that other network otherwise."""
        return self.options.get(OPT_BESIDE, "false") in TRUE_WORDS

    @property
    def host_routed(self) -> tuple[Prefix, ...]:
        """Prefixes that members reach by way of the host's stack; then what that forwards may come in, too."""
        value = self.options.get(OPT_HOST_ROUTED, "")
        return tuple(ip_network(word) for word in value.split(",")) if value else ()

    @property
    def mode(self) -> str:
        """One of MODES, for a bridge network; in all but `ebpf` it has a Linux bridge and packet filter rules."""
        return self.options.get(OPT_MODE, EBPF)

    @property
    def pair(self) -> str:
        """One of PAIRS: the kind of each member's devices. The gateway device is a veth pair in any case."""
        return self.options.get(OPT_DEVICE, VETH)

    @property
    def named(self) -> bool:
        """Members find each other by name: of the default network they do not, as in Docker."""
        return not self.predefined and self.options.get(OPT_NAMES, "true") in TRUE_WORDS

    @property
    def domain(self) -> str:
        """Names of members are also found with this behind them; "": with the network's name alone."""
        return self.options.get(OPT_DOMAIN, "")

    @property
    def resolver(self) -> Address:
        """Where members are told to ask for names: 127.0.0.11, or the gateway's address."""
        subnet = self.subnet4 or self.subnet6
        at_gateway = self.options.get(OPT_RESOLVER) == AT_GATEWAY
        return subnet.gateway if at_gateway and subnet is not None and subnet.gateway else RESOLVER

    @property
    def mtu(self) -> int | None:
        """Bytes of an IP packet if the options or the way to other hosts say so; None: as large as the host's default
        route takes."""
        return int(self.options.get(OPT_MTU) or 0) or self.path_mtu or None

    @property
    def spans(self) -> bool:
        """It may have members on other hosts."""
        return self.vni != 0

    @property
    def host_binding(self) -> Address | None:
        """The host address that ports are published at when the user names none; None: every address."""
        value = self.options.get(OPT_HOST_BINDING, "")
        address = ip_address(value) if value else None
        return None if address is None or address.is_unspecified else address

    @property
    def iface_prefix(self) -> str:
        """Containers' devices are called this and a number."""
        return self.options.get(OPT_IFACE_PREFIX, "eth")

    @property
    def subnet4(self) -> Subnet | None:
        return next((s for s in self.subnets if s.prefix.version == 4), None)

    @property
    def subnet6(self) -> Subnet | None:
        return next((s for s in self.subnets if s.prefix.version == 6), None)


# ---- ports ------------------------------------------------------------------------------------


# ---- endpoints, sandboxes, containers -----------------------------------------------------------


# ---- requests, one per command: strings as the user typed them ------------------------------------


@dataclass(frozen=True, slots=True)
class NetworkRequest:
    """network create. Gateways, ip ranges and aux addresses ("name=ip") belong to the subnet around them. `ident`: the
    id that the network is to have, 64 hex digits, where its owner has given it one; "": a new one."""

    name: str
    driver: str = "bridge"
    subnets: tuple[str, ...] = ()
    gateways: tuple[str, ...] = ()
    ip_ranges: tuple[str, ...] = ()
    aux_addresses: tuple[str, ...] = ()
    internal: bool = False
    ipv4: bool = True
    ipv6: bool = False
    labels: tuple[str, ...] = ()
    options: tuple[str, ...] = ()
    attachable: bool = False
    ipam_driver: str = "default"
    ipam_options: tuple[str, ...] = ()
    scope: str = ""
    owner: str = OWNER
    ident: str = ""

    @property
    def leased(self) -> bool:
        """A plugin is to give out its addresses."""
        return is_leased(self.ipam_driver)

    @property
    def unmanaged(self) -> bool:
        """Nobody is to give out its addresses, but a plugin that is its driver."""
        return is_unmanaged(self.ipam_driver)


# ---- what the host looks like ---------------------------------------------------------------------


def mac_for(address: Address) -> str:
    """Docker's MAC for an IPv4 address, 02:42 and its four octets; for an IPv6 one 02:42 and a hash of it."""
    tail = address.packed if address.version == 4 else sha256(address.packed)[:4]
    return ":".join(f"{octet:02x}" for octet in b"\x02\x42" + tail)


def has_flows(network: Network) -> bool:
    """Who talks to whom is counted there."""
    return network.options.get(OPT_FLOWS, "false") in TRUE_WORDS


def gateway_mac(network: Network) -> str:
    """The MAC address of the network's gateway device."""
    subnet = network.subnet4 or network.subnet6
    if subnet is None or subnet.gateway is None:
        raise ValueError(f"network {network.name} has no gateway address")
    return mac_for(subnet.gateway)


def is_announced(network: Network) -> bool:
    """Routers are to know the way to the blocks of each host."""
    return network.options.get(OPT_ANNOUNCE) == "true"
