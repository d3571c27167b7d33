# SPDX-License-Identifier: Apache-2.0
"""Bridge networks without a bridge: a gateway device on the host, a pair of devices an endpoint, and the rows
of the packet programs' maps.

The order matters for a command that is killed: a device's entry in the maps is written before its program is
attached, so that no packet meets a program that does not know it; what is taken away goes in the other order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import replace
from ipaddress import ip_interface
from typing import Any, ClassVar

from datapath.dataplane import connections, entries, removal, structs
from datapath.dataplane.convert import to_abi
from datapath.dataplane.programs import Dataplane
from datapath.drivers.base import JoinInfo, Repair, attempt, report
from datapath.drivers.comparison import Comparison
from datapath.drivers.ebpf import flows, names, services
from datapath.drivers.ebpf.spec import EBPF_BRIDGE
from datapath.drivers.inside.driver import waiting_name
from datapath.drivers.pairs.driver import PairDriver
from datapath.drivers.pairs.spec import PairSpec
from datapath.errors import NotSupportedError
from datapath.kernel import abi, features
from datapath.kernel.bpf_maps import cut
from datapath.model.drivers import traits
from datapath.model.endpoints import Endpoint, linklocal_of
from datapath.model.findings import Check, Finding
from datapath.model.networks import NETKIT, OPT_DEVICE, VETH, Network, gateway_mac
from datapath.model.parsing import PORT_PROTOCOLS
from datapath.model.ports import PortMapping


def peer_name(network: Network) -> str:
    """The unused end of the gateway device's pair: it exists so that the gateway device has a carrier."""
    return f"dpx{network.number}"


# The maps that say which numbers of ports are taken: their keys, and the structs.
_NUMBERS: Mapping[str, tuple[type[Any], str]] = {
    "reserved": (structs.ReservedKey, "reserved"),
    "bindings": (structs.BindingKey, "binding"),
}


class EbpfBridge(PairDriver):
    """Driver bridge in its default mode."""

    spec: ClassVar[PairSpec] = EBPF_BRIDGE

    # ---- networks ------------------------------------------------------------------------

    def require(self, network: Network) -> None:
        if network.pair == NETKIT and not features.has_netkit():
            what = "netkit devices (CONFIG_NETKIT, since Linux 6.10)"
            raise NotSupportedError(f"{what}: use {OPT_DEVICE}={VETH}, or a kernel that has them")

    def create_network(self, network: Network, mtu: int, members: tuple[Endpoint, ...] = ()) -> None:
        links, dataplane = self.context.links, self.context.dataplane
        gateways = () if traits(network).lan else network.subnets  # else it is another's address
        addresses = [ip_interface((s.gateway, s.prefix.prefixlen)) for s in gateways if s.gateway]
        mac = gateway_mac(network)
        with ExitStack() as undo:
            ifindex = links.create_gateway(
                network.device, peer_name(network), mac, addresses, mtu, ipv6=network.ipv6
            )
            undo.callback(self.delete_network, network)  # not before: another's device can have the name
            linklocal = linklocal_of(mac) if network.ipv6 else None
            number, value = entries.network_entry(network, members, ifindex, mtu, linklocal)
            key, device = entries.gateway_device(network, ifindex)
            if routed := entries.host_routed_entries(network):
                dataplane.host_routed.update_many(routed)
            dataplane.tell_network(number, to_abi(value))
            dataplane.devices[key] = to_abi(device)
            dataplane.attach("from_host", ifindex)
            undo.pop_all()

    def update_network(
        self,
        network: Network,
        members: tuple[Endpoint, ...],
        mtu: int | None,
        sandbox: Callable[[Endpoint], str | None],
    ) -> None:
        dataplane = self.context.dataplane
        known = dataplane.networks[network.number]
        mtu = mtu or known.mtu
        if mtu != known.mtu:
            self.set_mtu((network.device, peer_name(network)), members, mtu, sandbox)
        number, value = entries.network_entry(network, members, known.ifindex, mtu, known.gateway_linklocal)
        wanted = to_abi(value)
        wanted = wanted._replace(flags=wanted.flags | known.flags & int(abi.NetworkFlag.NETWORK_SERVICES))
        if known != wanted:
            dataplane.tell_network(number, wanted)

    def delete_network(self, network: Network) -> None:
        dataplane = self.context.loaded
        ifindex = self.context.links.index(network.device) if network.device else None
        failures: list[Exception] = []
        if dataplane is not None:
            known = dataplane.networks[network.number]
            if known.flags:
                dataplane.networks[network.number] = abi.network()
            if dataplane.has("host_routed"):
                routed = [key for key in dataplane.host_routed if key.network == network.number]
                dataplane.host_routed.delete_many(routed)
            for index in {ifindex or 0, known.ifindex} - {0}:
                dataplane.devices.pop(abi.device_key(index), None)
                dataplane.detach("from_host", index, device_gone=True)
        attempt(failures, self.context.links.delete_pair, network.device, peer_name(network))
        report(failures, f"network {network.name} could not be removed completely")

    # ---- endpoints -----------------------------------------------------------------------

    def create_endpoint(
        self, network: Network, endpoint: Endpoint, mtu: int, sandbox: str | None = None
    ) -> Endpoint:
        with ExitStack() as undo:

            def opened(ifindex: int) -> None:
                nonlocal endpoint
                endpoint = replace(endpoint, host_ifindex=ifindex)
                undo.callback(
                    self.delete_endpoint, network, endpoint
                )  # not before: another's device can have the name
                self._open(network, endpoint, new=True)

            ifname = waiting_name(endpoint) if sandbox is None else endpoint.ifname
            self.context.links.create_endpoint(
                *(endpoint.host_ifname, ifname, sandbox, endpoint.mac, mtu),
                prepare=opened,
                kind=network.pair,
            )
            undo.pop_all()
        return endpoint

    def join_info(self, network: Network, endpoint: Endpoint, mtu: int) -> JoinInfo:
        info = super().join_info(network, endpoint, mtu)
        if endpoint.handed_over or not names.answered(self.context.loaded):
            return info
        return replace(info, resolver=names.hop(network, endpoint)[0])

    def _open(self, network: Network, endpoint: Endpoint, *, new: bool = False) -> None:
        """Tells the programs of an endpoint, and attaches them to its device. `new`: they do not know it yet."""
        dataplane = self.context.dataplane
        wanted = entries.endpoint_entries(network, endpoint)
        self._limit(wanted.limits)
        dataplane.devices[wanted.device[0]] = to_abi(wanted.device[1])
        removal.open_quota(dataplane, endpoint.number, new=new)
        dataplane.attach("from_container", endpoint.host_ifindex)
        dataplane.endpoints.update_many(wanted.endpoints)
        if wanted.routers and dataplane.has("routers"):
            dataplane.routers.update_many(wanted.routers)
        dataplane.members[wanted.member[0]] = wanted.member[1]
        known = dataplane.networks[network.number]
        if known.slots <= endpoint.slot:
            dataplane.networks[network.number] = known._replace(slots=endpoint.slot + 1)

    def _limit(self, limits: Mapping[structs.LimitKey, structs.LimitValue]) -> None:
        """Writes the limits of an endpoint, but for those that count already."""
        dataplane = self.context.dataplane
        if limits and not dataplane.has("limits"):
            raise NotSupportedError(
                "limits of bandwidth need the packet programs of this version: use `datapathctl upgrade`"
            )
        for key, value in limits.items():
            known = dataplane.limits.get(key)
            if known is None or (known.rate, known.burst) != (value.rate, value.burst):
                dataplane.limits[key] = value

    def restore(self, network: Network, endpoint: Endpoint) -> None:
        if self.context.links.index(endpoint.host_ifname) == endpoint.host_ifindex:
            self._open(network, endpoint)

    def delete_endpoint(self, network: Network, endpoint: Endpoint, sandbox: str | None = None) -> None:
        dataplane = None if self.context.leaving else self.context.loaded
        failures: list[Exception] = []
        ifindex = endpoint.host_ifindex or self.context.links.index(endpoint.host_ifname) or 0
        if dataplane is not None:
            # A command that was killed may not have written down the index, and the device be gone since.
            ifindex = ifindex or _device_of(dataplane, endpoint)
            wanted = entries.endpoint_entries(network, endpoint)
            for key in wanted.endpoints:
                # Meanwhile the address can belong to another endpoint.
                known = dataplane.endpoints.get(key)
                if known is not None and known.number == endpoint.number:
                    dataplane.endpoints.pop(key, None)
            if dataplane.has("routers"):
                for router in wanted.routers:
                    known = dataplane.routers.get(router)
                    if known is not None and known.number == endpoint.number:
                        dataplane.routers.pop(router, None)
            if wanted.limits and dataplane.has("limits"):
                dataplane.limits.delete_many(wanted.limits)
            member = dataplane.members.get(wanted.member[0])
            if member is not None and member.endpoint == endpoint.number:
                dataplane.members.pop(wanted.member[0], None)
            dataplane.links.delete_many(
                [k for k, v in dataplane.links.read_all() if endpoint.number in (v.client, v.server)]
            )
            if ifindex:
                dataplane.devices.pop(abi.device_key(ifindex), None)
            flows.remember(dataplane, network, endpoint, self.context.called(endpoint))
        attempt(failures, self.context.links.delete_endpoint, endpoint.host_ifname, endpoint.host_ifindex)
        if dataplane is not None:
            if ifindex:  # after the device: giving up a tcx link makes the kernel detach it, and wait
                dataplane.detach("from_container", ifindex, device_gone=True)
            removal.forget_endpoint(dataplane, endpoint.number)
            services.forget_loads(dataplane, endpoint)
            removal.forget_sockets(dataplane, [a.ip for a in (endpoint.ipv4, endpoint.ipv6) if a])
        report(failures, f"endpoint {endpoint.id[:12]} could not be removed completely")

    def open_links(self, network: Network, links: Mapping[structs.LinkKey, structs.LinkValue]) -> None:
        self.context.dataplane.links.update_many(links)

    # ---- published ports -------------------------------------------------------------------

    def publish(
        self,
        network: Network,
        endpoint: Endpoint,
        mappings: tuple[PortMapping, ...],
        reserved: entries.PortRanges,
    ) -> None:
        if network.internal or not mappings:
            return
        dataplane = self.context.dataplane
        ports = entries.port_entries(network, endpoint, mappings)
        # Reserved first: nothing may take the port as a source port between the two. And no port may lead to
        # rules that are not there yet.
        _write_numbers(dataplane, reserved)
        _write_acls(dataplane, entries.acl_entries(mappings))
        _write_ranges(dataplane.ports, "port", ports)
        _write_ranges(dataplane.origins, "origin", entries.origin_entries(endpoint, mappings))

    def unpublish(
        self,
        network: Network,
        endpoint: Endpoint,
        mappings: tuple[PortMapping, ...],
        reserved: entries.PortRanges,
        acls: frozenset[int],
    ) -> None:
        dataplane = self.context.loaded
        if dataplane is None or not mappings:
            return
        # Rows that lead to another endpoint belong to that one.
        keys = _keys("port_key", entries.port_entries(network, endpoint, mappings).ranges)
        dataplane.ports.delete_raw(dataplane.ports.where("endpoint", endpoint.number, keys))
        left = replace(endpoint, ports=tuple(m for m in endpoint.ports if m not in mappings))
        gone = entries.origin_entries(replace(endpoint, ports=mappings))
        dataplane.origins.delete_raw(_keys("origin_key", gone.ranges))
        _write_ranges(dataplane.origins, "origin", entries.origin_entries(left, mappings))
        _write_numbers(dataplane, reserved)
        self.delete_acls(acls)

    def delete_acls(self, acls: frozenset[int]) -> None:
        dataplane = self.context.loaded
        if dataplane is not None and acls:
            dataplane.acls.delete_many([key for key in dataplane.acls if key.acl in acls])

    def sync_ports(
        self,
        network: Network,
        endpoint: Endpoint,
        reserved: entries.PortRanges,
        acls: Mapping[structs.AclKey, int],
    ) -> None:
        dataplane = self.context.loaded
        if dataplane is None:
            return
        wanted = {} if network.internal else entries.port_entries(network, endpoint)
        known = {name: dict(getattr(dataplane, name).items()) for name in _NUMBERS}
        counted = {name: _counts(name, reserved) for name in _NUMBERS}
        for name, counts in counted.items():
            changed = {key: count for key, count in counts.items() if known[name].get(key) != count}
            getattr(dataplane, name).update_many(changed)
        _write_acls(dataplane, acls)
        dataplane.ports.update_many(wanted)
        mine = dataplane.ports.having("endpoint", endpoint.number)
        dataplane.ports.delete_many(mine.keys() - wanted.keys())
        origins = {} if network.internal else entries.origin_entries(endpoint)
        dataplane.origins.update_many(origins)
        known_origins = {key for key in dataplane.origins if key.endpoint == endpoint.number}
        dataplane.origins.delete_many(known_origins - origins.keys())
        for name, counts in counted.items():
            getattr(dataplane, name).delete_many(known[name].keys() - counts.keys())
        dataplane.acls.delete_many(set(dataplane.acls) - acls.keys())

    def end_denied(self, endpoint: Endpoint, mappings: Iterable[PortMapping]) -> None:
        dataplane = self.context.loaded
        if dataplane is None:
            return
        for mapping in mappings:
            ports = frozenset(
                (PORT_PROTOCOLS[proto], host_port) for _, host_port, _, proto in mapping.expand()
            )
            connections.forget_refused(dataplane, endpoint.number, ports, mapping.admits)

    # ---- doctor ----------------------------------------------------------------------------

    @staticmethod
    def check(comparison: Comparison, networks: list[Network]) -> Iterator[Finding]:
        from datapath.drivers.ebpf import check

        return check.findings(comparison, networks)

    @staticmethod
    def repairs() -> Mapping[Check, Repair]:
        from datapath.drivers.ebpf import repair

        return {**PairDriver.repairs(), **repair.REPAIRS}


def _device_of(dataplane: Dataplane, endpoint: Endpoint) -> int:
    """The index under which the programs know the endpoint's device; 0: they do not."""
    return next((key.ifindex for key in dataplane.devices.having("endpoint", endpoint.number)), 0)


def _keys(struct: str, ranges: Iterable[entries.PortRange]) -> Iterator[bytes]:
    """Of every row, packed."""
    layout = abi.layout(struct)
    for part in ranges:
        yield from cut(layout.pack_range(part.key, part.length, "port"), layout.size)


def _write_ranges(rows: Any, struct: str, ranges: entries.PortRanges) -> None:
    """Rows of the map with struct NAME_key and struct NAME."""
    keys, values = abi.layout(f"{struct}_key"), abi.layout(struct)
    rows.update_raw(
        b"".join(keys.pack_range(part.key, part.length, "port") for part in ranges.ranges),
        b"".join(values.pack_range(part.value, part.length, "port") for part in ranges.ranges),
    )


def _counts(name: str, numbers: entries.PortRanges) -> dict[Any, Any]:
    """The rows of one of the maps of numbers."""
    value = abi.layout(_NUMBERS[name][1]).type
    return {key: value(count) for key, count in numbers.items() if isinstance(key, _NUMBERS[name][0])}


def _write_numbers(dataplane: Dataplane, numbers: entries.PortRanges) -> None:
    """Those with a count of 0 go."""
    for name, (kind, struct) in _NUMBERS.items():
        key, value = abi.layout(f"{struct}_key"), abi.layout(struct)
        parts = [part for part in numbers.ranges if isinstance(part.key, kind)]
        used = [part for part in parts if part.value]
        rows = getattr(dataplane, name)
        rows.update_raw(
            b"".join(key.pack_range(part.key, part.length, "port") for part in used),
            b"".join(value.pack_range(value.type(part.value), part.length) for part in used),
        )
        rows.delete_raw(_keys(f"{struct}_key", (part for part in parts if not part.value)))


def _write_acls(dataplane: Dataplane, acls: Mapping[structs.AclKey, int]) -> None:
    dataplane.acls.update_many({key: abi.acl(allow) for key, allow in acls.items()})
