# SPDX-License-Identifier: Apache-2.0
"""Two pretend hosts whose members of one network reach each other through tunnels: the packet path of overlay networks
without the control plane, whose part the tests play. Each has the network "ov" and a container on it; the rows that
make an overlay of it are written straight into the maps."""

from __future__ import annotations

import ipaddress
import json
from collections.abc import Callable
from typing import Any

from datapath.dataplane import overlay_entries
from datapath.dataplane.convert import to_abi
from datapath.dataplane.layout import Transport
from datapath.dataplane.programs import Dataplane
from datapath.dataplane.structs import DeviceKey, DeviceValue
from datapath.kernel import abi, vxlans
from datapath.kernel.devices import index_of
from datapath.kernel.netns import enter
from datapath.model.networks import Network, Subnet
from datapath.model.peers import Block, Peer
from tests.net import forked
from tests.net.hosts import Host

VNI, PORT = 4097, 4789
SUBNETS = (ipaddress.ip_network("10.9.0.0/16"), ipaddress.ip_network("fd09::/64"))
UNDER = "under0"  # the device that joins the hosts
DEVICE = "dpvxlan"
MTU = 1450


def vtep(number: int, version: int = 4) -> str:
    """The end of tunnels of the host with that number, 1 or 2."""
    return f"198.51.100.{number}" if version == 4 else f"2001:db8:100::{number}"


def peer_mac(number: int) -> str:
    return f"02:00:00:00:01:{number:02x}"


def member(number: int, version: int = 4) -> str:
    """The container's address on that host."""
    return f"10.9.{number}.2" if version == 4 else f"fd09::{number}:2"


GATEWAY = {4: "10.9.0.1", 6: "fd09::1"}


def blocks(number: int) -> tuple[Any, ...]:
    return (ipaddress.ip_network(f"10.9.{number}.0/24"), ipaddress.ip_network(f"fd09::{number}:0/112"))


def known_peer(number: int, version: int = 4, mtu: int = 1500) -> Peer:
    address = ipaddress.ip_address(vtep(number, version))
    return Peer(f"{number:032x}", f"h{number}", number, address, peer_mac(number), mtu)


class Peers:
    """The hosts, joined by a pair of devices. `outer`: the version of IP of the tunnels; `mtu`: of the pair."""

    def __init__(self, make_host: Callable[..., Host], *, options: str = "", mtu: int = 1500) -> None:
        self.hosts = [make_host(), make_host()]
        self._counted: dict[int, dict[str, int]] = {}
        one, other = self.hosts
        one.sh(f"ip link add {UNDER} mtu {mtu} type veth peer name {UNDER} mtu {mtu} netns {other.pid}")
        for number, host in enumerate(self.hosts, 1):
            host.sh(f"ip address add {vtep(number)}/24 dev {UNDER}")
            host.sh(f"ip address add {vtep(number, 6)}/64 dev {UNDER} nodad")
            host.sh(f"ip link set {UNDER} up")
            host.ctl(
                f"network create --ipv6 --subnet {SUBNETS[0]} --gateway {GATEWAY[4]} --subnet {SUBNETS[1]} "
                f"--gateway {GATEWAY[6]} -o com.docker.network.driver.mtu={MTU} {options} ov"
            )
            host.run(
                f"c{number}", f"--network ov --ip {member(number)} --ip6 {member(number, 6)} --expose 80/tcp"
            )

    def open(self, number: int) -> Dataplane:
        """The packet programs of that host."""
        found = Dataplane.find(self.hosts[number - 1].bpffs / "datapath")
        assert found is not None
        return found

    def join(
        self,
        *,
        outer: int = 4,
        transport: Transport = "TRANSPORT_VXLAN",
        checksum: bool = False,
        direct: bool = False,
        wireguard: str = "",
        device: bool = True,
        numbers: tuple[int, ...] = (1, 2),
        mtu: int = 1500,
    ) -> None:
        """From now on the network is an overlay. `wireguard`: the device of encrypted tunnels on each host."""
        known = [
            Block(f"ov/{prefix}", "ov", prefix, f"{number:032x}")
            for number in (1, 2)
            for prefix in blocks(number)
        ]
        for number in numbers:
            host = self.hosts[number - 1]
            with self.open(number) as programs, enter(host.path):
                network = self.network(host)
                index = vxlans.create(DEVICE, PORT, peer_mac(number)) if device else 0
                other = 3 - number
                entries = overlay_entries.peer_entries(
                    known_peer(other, outer, mtu), direct=direct, wireguard=bool(wireguard)
                )
                rows: list[tuple[str, Any, Any]] = [
                    ("peers", *entries.peer),
                    ("vteps", *entries.vtep),
                    (
                        "overlays",
                        *overlay_entries.overlay_entry(network, known, transport, checksum=checksum),
                    ),
                    ("vnis", *overlay_entries.vni_entry(network)),
                ]
                if index:
                    rows.append(("devices", DeviceKey(index), DeviceValue("DEVICE_VXLAN")))
                    programs.attach("from_vxlan", index)
                encrypted = 0
                if wireguard:
                    encrypted = index_of(wireguard)
                    rows.append(("devices", DeviceKey(encrypted), DeviceValue("DEVICE_TUNNEL")))
                    programs.attach("from_tunnel", encrypted)
                remote = overlay_entries.block_entries(network, known, {f"{other:032x}": other})
                rows += [("remote_blocks", key, value) for key, value in remote.items()]
                for name, key, value in rows:
                    programs.map(name)[to_abi(key)] = to_abi(value)
                place, row = overlay_entries.tunnel_entry(
                    known_peer(number, outer), index, PORT, encrypted, direct=direct
                )
                programs.tunnel[place] = to_abi(row)
                value = programs.networks[network.number]
                flags = value.flags | abi.NetworkFlag.NETWORK_OVERLAY
                programs.tell_network(network.number, value._replace(flags=flags))

    def read(self, number: int, name: str) -> dict[Any, Any]:
        """All rows of that host's map."""
        with self.open(number) as programs:
            return dict(programs.map(name).read_all())

    def counted(self, number: int) -> dict[str, int]:
        """Reason -> packets, of that host, that were counted since this was asked last."""
        with self.open(number) as programs:
            now = {reason: packets for reason, (packets, _) in programs.counters_sum().items()}
        before = self._counted.get(number, {})
        self._counted[number] = now
        return {name: more for name, value in now.items() if (more := value - before.get(name, 0))}

    @staticmethod
    def network(host: Host) -> Network:
        """The row of the model, as if the network were the cluster's."""
        with forked.database(host.folder / "state") as opened:
            bodies = [json.loads(body) for (body,) in opened.execute("SELECT body FROM networks")]
        number = next(body["number"] for body in bodies if body["name"] == "ov")
        subnets = tuple(Subnet(prefix, ipaddress.ip_address(GATEWAY[prefix.version])) for prefix in SUBNETS)
        return Network("ov", "ov", number, "overlay", "global", subnets=subnets, ipv6=True, vni=VNI)
