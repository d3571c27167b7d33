# SPDX-License-Identifier: Apache-2.0
"""What overlay networks have on a host together: rows of maps about the other hosts, and the device by which packets go
that the programs neither wrap nor strip themselves."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from datapath.dataplane.convert import to_abi
from datapath.dataplane.layout import TAILS_OF
from datapath.dataplane.programs import Dataplane
from datapath.drivers.base import HostPart
from datapath.drivers.context import Context, HostView
from datapath.drivers.overlay import announced
from datapath.drivers.overlay import rows as tables
from datapath.drivers.overlay.device import EncryptedServices, EncryptedTunnels
from datapath.drivers.overlay.rows import MAPS, Tables, own_peer
from datapath.drivers.overlay.spec import ENCRYPTED_DEVICE, OVERLAY, PORT, TUNNEL_DEVICE, encrypted
from datapath.errors import InUseError, KernelError
from datapath.kernel import abi, vxlans
from datapath.kernel.devices import find_index
from datapath.model.drivers import spec_of
from datapath.model.networks import Network
from datapath.model.peers import Block, Peer, Remote
from datapath.store import tunnel_keys


def port(view: HostView) -> int:
    """Where all hosts of the cluster receive tunnels; 0: this host is of none."""
    return int(view.notes.note(PORT) or 0)


class OverlayHost(HostPart):
    """What overlay networks have on the host for all of them together."""

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self._tunnels = EncryptedTunnels(context)
        self.services = EncryptedServices()

    def refresh(self, view: HostView) -> None:
        """After the programs were loaded anew, all rows; else what the host's own changes ask for."""
        dataplane, own = self._dataplane(), own_peer(view.state)
        if not any(map(encrypted, view.networks)):
            self._tunnels.remove(view)  # it was made for one that was not built
        if dataplane is None or own is None or not view.networks:
            return
        blank = dataplane.tunnel[0] == abi.tunnel()
        index = ensure_device(port(view), own.mac)
        key = abi.device_key(index)
        encrypted_index = self._tunnels.follow(view, view.networks)
        dataplane.need("from_vxlan", *TAILS_OF["NETWORK_OVERLAY"])  # before rows lead there
        if blank:
            _write(dataplane, tables.wanted(view.state, view.networks, view.observed))
        _tell_tunnel(dataplane, view, index)
        device = abi.device(kind=int(abi.DeviceKind.DEVICE_VXLAN))
        if dataplane.devices.get(key) != device:
            dataplane.devices[key] = device
        dataplane.attach("from_vxlan", index)
        if encrypted_index:
            dataplane.devices[abi.device_key(encrypted_index)] = abi.device(
                kind=int(abi.DeviceKind.DEVICE_TUNNEL)
            )
            dataplane.attach("from_tunnel", encrypted_index)
        self._forget_devices(dataplane, index)
        announced.follow(view.state, view.networks)

    def idle(self, view: HostView) -> None:
        self._tunnels.remove(view)

    def upgrade(self, view: HostView, fill: Callable[[], None]) -> bool:
        """The device of encrypted tunnels believes hosts as this version's programs name them: see HostPart."""
        if any(map(encrypted, view.networks)):
            self._tunnels.tell(view.state, view.networks)
        return False

    def _dataplane(self) -> Dataplane | None:
        """The programs, if they are loaded and of a version that knows other hosts."""
        dataplane = self.context.loaded
        return dataplane if dataplane is not None and dataplane.has("tunnel") else None

    def _forget_devices(self, dataplane: Dataplane, index: int) -> None:
        """Of such devices that are not there any more."""
        known = dataplane.devices.having("kind", int(abi.DeviceKind.DEVICE_VXLAN))
        for key in known:
            if key.ifindex != index:
                dataplane.devices.pop(key, None)
                dataplane.detach("from_vxlan", key.ifindex, device_gone=True)

    def prepare(self, view: HostView, network: Network) -> None:
        own = own_peer(view.state)
        if spec_of(network) is OVERLAY and own is not None:
            ensure_device(port(view), own.mac)
            self._tunnels.follow(view, (*view.networks, network))

    def write_peers(self, before: HostView, after: HostView, rows: tuple[Peer | Block | Remote, ...]) -> None:
        """See HostPart."""
        dataplane = self._dataplane()
        if dataplane is None or not after.networks:
            return
        new = tables.concerned(after.state, after.networks, after.observed, rows)
        old = tables.concerned(before.state, after.networks, after.observed, rows)
        _delete(dataplane, tables.without(old, new))
        secret = {network.id for network in after.networks if encrypted(network)}
        if secret and any(isinstance(row, Peer) or row.network_id in secret for row in rows):
            self._tunnels.tell(after.state, after.networks)
        _write(dataplane, new)
        changed = {row.network_id for row in rows if isinstance(row, Block)}
        announced.follow(after.state, (one for one in after.networks if one.id in changed))

    def sync_peers(self, view: HostView) -> None:
        """See HostPart."""
        dataplane = self._dataplane()
        if dataplane is None or not view.networks:
            return
        if any(map(encrypted, view.networks)):
            self._tunnels.tell(view.state, view.networks)
        wanted = tables.wanted(view.state, view.networks, view.observed)
        for name in reversed(MAPS):
            rows, keys = getattr(dataplane, name), {to_abi(key) for key in wanted[name]}
            rows.delete_many([key for key in rows if key not in keys])
        _write(dataplane, wanted)

    def write_network(self, view: HostView, network: Network) -> None:
        """All rows of a network that is being built, and of the other hosts if it is the first."""
        dataplane = self._dataplane()
        if dataplane is not None and spec_of(network) is OVERLAY:
            if encrypted(network):
                self._tunnels.tell(view.state, view.networks)
            _write(dataplane, tables.wanted(view.state, [network], view.observed))
            announced.follow(view.state, [network])

    def forget_network(self, view: HostView, network: Network) -> None:
        dataplane = self._dataplane()
        if spec_of(network) is not OVERLAY:
            return
        if dataplane is not None:
            for name in ("vnis", "overlays", "remote_addrs", "remote_blocks"):
                rows = getattr(dataplane, name)
                field = "network" if name != "vnis" else "vni"
                mine = network.vni if name == "vnis" else network.number
                rows.delete_many([key for key in rows if getattr(key, field) == mine])
        if not any(map(encrypted, view.networks)):
            self._forget_tunnels(dataplane, view)
        if not view.networks:
            self.remove(view)
        elif dataplane is not None and own_peer(view.state) is not None:
            _tell_tunnel(dataplane, view, find_index(TUNNEL_DEVICE) or 0)

    def _forget_tunnels(self, dataplane: Dataplane | None, view: HostView) -> None:
        """The device of encrypted tunnels."""
        index = find_index(ENCRYPTED_DEVICE)
        self._tunnels.remove(view)
        if dataplane is not None and index is not None and find_index(ENCRYPTED_DEVICE) is None:
            dataplane.devices.pop(abi.device_key(index), None)
            dataplane.detach("from_tunnel", index, device_gone=True)

    def remove(self, view: HostView) -> None:
        """The devices, this host's key, and what is known of other hosts."""
        dataplane = self._dataplane()
        self._forget_tunnels(dataplane, view)
        tunnel_keys.discard(self.context.settings.state_dir)
        if dataplane is not None:
            dataplane.tunnel[0] = abi.tunnel()
            for name in MAPS:
                rows = getattr(dataplane, name)
                rows.delete_many(list(rows))
        if vxlans.port_of(TUNNEL_DEVICE) is not None:
            index = self.context.links.index(TUNNEL_DEVICE)
            self.context.links.delete(TUNNEL_DEVICE)
            if dataplane is not None and index is not None:
                dataplane.devices.pop(abi.device_key(index), None)
                dataplane.detach("from_vxlan", index, device_gone=True)

    def look(self, view: HostView) -> dict[str, object]:
        return {
            "tunnel_port": port(view),
            "tunnel_device_port": vxlans.port_of(TUNNEL_DEVICE) or 0,
            "encryption": self._tunnels.look(view),
        }


def ensure_device(wanted: int, mac: str) -> int:
    """The index of the device, which is made if it is not there or of another port. InUseError: somebody has the port;
    names him."""
    there = vxlans.port_of(TUNNEL_DEVICE)
    index = find_index(TUNNEL_DEVICE)
    if there == wanted and index is not None:
        return index
    try:
        if there is not None:
            vxlans.delete(TUNNEL_DEVICE)
        return vxlans.create(TUNNEL_DEVICE, wanted, mac)
    except KernelError as error:
        if not vxlans.taken(error):
            raise
        raise InUseError(
            f"UDP port {wanted}, which the hosts of this cluster use for tunnels, is taken on this host by "
            f"{vxlans.holder(wanted)}"
        ) from error


def _tell_tunnel(dataplane: Dataplane, view: HostView, index: int) -> None:
    """This host's own end, as far as it is otherwise now."""
    secret = find_index(ENCRYPTED_DEVICE) if any(map(encrypted, view.networks)) else None
    end = tables.own_end(view.state, view.networks, index, port(view), secret or 0)
    wanted = to_abi(end["tunnel"][(0,)])
    if dataplane.tunnel[0] != wanted:
        dataplane.tunnel[0] = wanted


def _write(dataplane: Dataplane, found: Tables) -> None:
    for name in MAPS:
        if found[name]:
            rows: Any = getattr(dataplane, name)
            rows.update_many({to_abi(key): to_abi(value) for key, value in found[name].items()})


def _delete(dataplane: Dataplane, found: Tables) -> None:
    for name in reversed(MAPS):
        if found[name]:
            getattr(dataplane, name).delete_many([to_abi(key) for key in found[name]])
