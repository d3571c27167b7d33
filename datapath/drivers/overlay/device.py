# SPDX-License-Identifier: Apache-2.0
"""The device of encrypted tunnels on this host: made, told its key and the other hosts, and taken away."""

from __future__ import annotations

import errno
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

from datapath.drivers.base import ServicePart
from datapath.drivers.context import Context, HostView
from datapath.drivers.overlay import encryption
from datapath.drivers.overlay.rows import own_peer
from datapath.drivers.overlay.spec import ENCRYPTED_DEVICE, encrypted
from datapath.errors import InUseError, KernelError, StateError
from datapath.kernel import sockets, wireguard
from datapath.kernel.devices import find_index
from datapath.model.networks import Network
from datapath.model.peers import Peer
from datapath.model.services import Service
from datapath.model.state import State
from datapath.model.wireguard import Encryption
from datapath.store import tunnel_keys
from datapath.store.tunnel_keys import TunnelKey

# The note of what the device was made or is, so that a command has only to look whether it is there; or nothing.
_NOTE, _MAKING = "encrypted tunnels", "making"


def in_force(keys: Sequence[TunnelKey], own: Peer) -> TunnelKey:
    """The key that the other hosts were told; the last one, if they were told none of these."""
    return next((key for key in keys if key.public == own.wireguard_key), keys[-1])


def new_key() -> TunnelKey:
    """A key that nobody has. KernelError: the kernel has no WireGuard."""
    private = wireguard.new_key()
    return TunnelKey(private, wireguard.public_key(private))


def ensured(state_dir: Path) -> tuple[TunnelKey, ...]:
    """The keys of this host, which has one then. Errors as those of `new_key` and of the file."""
    keys = tunnel_keys.read(state_dir)
    if not keys:
        keys = (new_key(),)
        tunnel_keys.write(state_dir, keys)
    return keys


class EncryptedTunnels:
    """This host's end."""

    def __init__(self, context: Context) -> None:
        self.context = context

    def follow(self, view: HostView, networks: Sequence[Network], *, sure: bool = False) -> int:
        """Makes the device what it is to be for those of the networks that are encrypted; its index, 0: there is none,
        and need not be. `sure`: it is looked at, whatever was noted. InUseError: somebody has its port."""
        own = own_peer(view.state)
        if own is None or not any(map(encrypted, networks)):
            return 0
        keys = ensured(self.context.settings.state_dir)
        key, port, mtu = in_force(keys, own), self.context.tuning.wireguard_port, encryption.mtu(own)
        index = find_index(ENCRYPTED_DEVICE)
        if not sure and index is not None and view.notes.note(_NOTE) == _mark(index, key, port, mtu):
            return index
        view.notes.set_note(_NOTE, _MAKING)
        index = self._align(key, port, mtu)
        self.tell(view.state, networks)
        view.notes.set_note(_NOTE, _mark(index, key, port, mtu))
        if key.public == own.wireguard_key and len(keys) > 1:
            tunnel_keys.write(self.context.settings.state_dir, (key,))
        return index

    def _align(self, key: TunnelKey, port: int, mtu: int) -> int:
        """The index of the device, which has this key, port and MTU then."""
        device = wireguard.find(ENCRYPTED_DEVICE)
        try:
            if device is None:
                return wireguard.create(ENCRYPTED_DEVICE, key.private, port, mtu)
            if device.key != key.public:
                self.give(key)
            if device.port != port:
                wireguard.configure(ENCRYPTED_DEVICE, port=port)
            self.context.links.align(ENCRYPTED_DEVICE, mtu=mtu)
        except KernelError as error:
            if error.errno != errno.EADDRINUSE:
                raise
            raise InUseError(
                f"UDP port {port}, at which this host is to receive encrypted packets, is taken by "
                f'{sockets.holder("udp", None, port)}: free it, or choose another by "wireguard-port" in daemon.json'
            ) from error
        return find_index(ENCRYPTED_DEVICE) or 0

    @staticmethod
    def give(key: TunnelKey) -> None:
        """From now on the device has this private key. What others have sent to the one before is opened still; what is
        sent from here waits until they know this one: up to 128 packets for each of them."""
        wireguard.configure(ENCRYPTED_DEVICE, key=key.private)

    @staticmethod
    def tell(state: State, networks: Iterable[Network]) -> None:
        """Makes the device's peers what the rows say, if it is there."""
        device = wireguard.find(ENCRYPTED_DEVICE)
        if device is not None:
            wanted = encryption.peers(state, networks)
            wireguard.configure(
                ENCRYPTED_DEVICE, encryption.changes(device.peers, wanted, wireguard.new_key())
            )

    def remove(self, view: HostView) -> None:
        """The device, if it was made here."""
        if view.notes.note(_NOTE) is None:
            return
        if wireguard.find(ENCRYPTED_DEVICE) is not None:
            self.context.links.delete(ENCRYPTED_DEVICE)
        view.notes.set_note(_NOTE, None)

    def look(self, view: HostView) -> Encryption | None:
        """What it is, and is to be; None: no network is encrypted."""
        own = own_peer(view.state)
        if own is None or not any(map(encrypted, view.networks)):
            return None
        port, mtu = self.context.tuning.wireguard_port, encryption.mtu(own)
        device, now = wireguard.find(ENCRYPTED_DEVICE), time.time()
        try:
            keys = tunnel_keys.read(self.context.settings.state_dir)
        except StateError as error:
            return Encryption("", port, mtu, device, now, str(error))
        return Encryption(keys[-1].public if keys else "", port, mtu, device, now)


class EncryptedServices(ServicePart):
    """Services of encrypted networks: while one has a published port, the device knows all hosts, as each asks."""

    def write(self, state: State, services: Iterable[Service]) -> None:
        if any(encrypted(state.networks[service.network_id]) for service in services):
            EncryptedTunnels.tell(state, _encrypted(state))

    def remove(self, state: State, service: Service) -> None:
        self.write(state.without(service), [service])

    def sync(self, state: State) -> None:
        self.write(state, state.services.values())


def _encrypted(state: State) -> list[Network]:
    return [network for network in state.networks.values() if network.built and encrypted(network)]


def _mark(index: int, key: TunnelKey, port: int, mtu: int) -> str:
    return f"{index} {key.public} {port} {mtu}"
