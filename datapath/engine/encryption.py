# SPDX-License-Identifier: Apache-2.0
"""Another key for this host's encrypted tunnels, while packets pass.

The device gets it first, and then the other hosts are told: by that order nothing is lost. What the others send is
opened by sessions that began with the key before; what this host sends waits, up to 128 packets for each of them, until
that one knows the new key and has answered. Killed in between, the file has both keys: the next command goes on.
"""

from __future__ import annotations

from datapath.drivers.overlay.device import EncryptedTunnels, new_key
from datapath.drivers.overlay.spec import encrypted
from datapath.engine import joining, networks
from datapath.engine.transaction import Transaction
from datapath.errors import ConfigError, InUseError
from datapath.store import tunnel_keys
from datapath.store.cluster import UncertainError

_WHAT = "another key"


def rotate(tx: Transaction, force: bool = False) -> str:
    """Gives this host another key; the public one. ConfigError: it takes part in no encrypted network. InUseError:
    hosts that packets are encrypted for have no agent at work which would hear of it, and not `force`. StateError,
    PrivilegeError: the store, which has to answer; the key is then as it was, unless nobody can know."""
    own, there = joining.me(tx), tunnel_keys.read(tx.settings.state_dir)
    if own is None or not there or not any(map(encrypted, tx.built)):
        raise ConfigError("this host takes part in no encrypted network: it has no key to be changed")
    store = tx.link.store(_WHAT)
    with store.within(joining.PATIENCE):
        deaf = [] if force else _deaf(tx)
    if deaf:
        raise InUseError(
            f"no agent is at work on {', '.join(deaf)}, which would go on with the key that is to be changed: start it "
            "there, or use --force"
        )
    before, after = there[-1], new_key()
    folder = tx.settings.state_dir
    tunnel_keys.write(folder, (before, after))
    try:
        EncryptedTunnels.give(after)
        with store.within(joining.PATIENCE):
            joining.joined(tx, _WHAT)
    except UncertainError:
        raise  # the next command tells it again
    except BaseException:
        tunnel_keys.write(folder, (before,))
        EncryptedTunnels.give(before)
        raise
    tunnel_keys.write(folder, (after,))
    networks.refresh_host(tx)
    return after.public


def _deaf(tx: Transaction) -> list[str]:
    """The names of hosts that this one encrypts packets for, and whose agent is not at work."""
    from datapath.cluster import members

    secret = {network.id for network in tx.built if encrypted(network)}
    concerned = {block.peer for block in tx.state.blocks.values() if block.network_id in secret}
    concerned |= {remote.peer for remote in tx.state.remotes.values() if remote.network_id in secret}
    return [
        one.peer.name
        for one in members.hosts(tx.link.store(_WHAT))
        if one.peer.id in concerned - {tx.state.installation_id} and not one.alive
    ]
