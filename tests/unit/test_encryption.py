# SPDX-License-Identifier: Apache-2.0
"""Encrypted tunnels: which hosts the device is to know, what is told to it, and the file of the key."""

from __future__ import annotations

import base64
import stat
from collections.abc import Iterable
from dataclasses import replace
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any

import pytest

from datapath.drivers.overlay import encryption
from datapath.drivers.overlay.device import in_force
from datapath.errors import StateError
from datapath.kernel import wireguard
from datapath.model.networks import Network, Subnet
from datapath.model.peers import Block, Peer, Remote
from datapath.model.ports import PortMapping
from datapath.model.rows import Phase
from datapath.model.services import Service
from datapath.model.state import State
from datapath.model.wireguard import Setting, WireGuardPeer
from datapath.store import tunnel_keys
from datapath.store.tunnel_keys import TunnelKey

KEYS = [base64.b64encode(bytes([number]) * 32).decode() for number in range(4)]
ME, B, C = "a" * 32, "b" * 32, "c" * 32
SECRET = Network(
    "1" * 64,
    "secret",
    1,
    "overlay",
    "global",
    subnets=(Subnet(ip_network("10.9.0.0/16")), Subnet(ip_network("fd09::/64"))),
    options={"encrypted": "true"},
    built=True,
)
CLEAR = replace(SECRET, id="2" * 64, name="clear", number=2, options={}, subnets=())


def host(ident: str, number: int, key: str) -> Peer:
    address = ip_address(f"192.0.2.{number}")
    return Peer(ident, f"h{number}", number, address, "02:00:00:00:00:01", 1500, key, 51820 if key else 0)


def block(network: Network, prefix: str, peer: str) -> Block:
    return Block(f"{network.id}/{prefix}", network.id, ip_network(prefix), peer)


def member(network: Network, peer: str, ipv4: str) -> Remote:
    return Remote(f"{ipv4:0<64}", network.id, peer, "02:42:00:00:00:01", ipv4=ip_address(ipv4))  # type: ignore[arg-type]


def state(*more: Any) -> State:
    hosts = (host(ME, 1, KEYS[0]), host(B, 2, KEYS[1]), host(C, 3, ""))
    return State(installation_id=ME).including(SECRET, CLEAR, *hosts, *more)


def prefixes(*texts: str) -> frozenset[Any]:
    return frozenset(map(ip_network, texts))


def test_a_host_is_believed_about_its_blocks_and_what_it_has_in_others() -> None:
    rows = (
        block(SECRET, "10.9.0.0/26", B),
        block(SECRET, "fd09::/112", B),
        block(SECRET, "10.9.0.64/26", ME),
        block(CLEAR, "10.8.0.0/26", B),
        member(SECRET, B, "10.9.0.5"),  # of its own block
        member(SECRET, B, "10.9.0.70"),  # of this host's
        member(CLEAR, B, "10.8.9.9"),
    )
    assert encryption.peers(state(*rows), [SECRET, CLEAR]) == {
        KEYS[1]: WireGuardPeer(
            prefixes("10.9.0.0/26", "fd09::/112", "10.9.0.70/32", "0.0.0.2/32", "100::2/128"),
            (ip_address("192.0.2.2"), 51820),
        )
    }


def test_where_a_service_publishes_a_port_every_host_that_has_told_a_key_is_a_peer_by_its_names() -> None:
    """Whether it has other addresses or not."""
    ports = (PortMapping.parse("8080:80"),)
    service = Service("5" * 64, "web", SECRET.id, 1, published=ports, phase=Phase.READY)
    found = encryption.peers(state(service), [SECRET, CLEAR])
    assert {key: peer.prefixes for key, peer in found.items()} == {
        KEYS[1]: prefixes("0.0.0.2/32", "100::2/128")
    }
    assert encryption.peers(state(replace(service, published=())), [SECRET]) == {}
    assert encryption.peers(state(replace(service, network_id=CLEAR.id)), [SECRET, CLEAR]) == {}


def test_a_host_that_has_told_no_key_or_has_no_addresses_is_no_peer() -> None:
    assert encryption.peers(state(block(SECRET, "10.9.0.0/26", C)), [SECRET]) == {}
    assert encryption.peers(state(block(CLEAR, "10.8.0.0/26", B)), [SECRET, CLEAR]) == {}


def applied(there: dict[str, WireGuardPeer], settings: Iterable[Setting]) -> dict[str, frozenset[Any]]:
    """What WireGuard makes of it: a prefix is one peer's."""
    found = {key: set(peer.prefixes) for key, peer in there.items()}
    for setting in settings:
        if setting.removed:
            del found[setting.key]
            continue
        for others in found.values():
            others -= set(setting.prefixes)
        found.setdefault(setting.key, set()).update(setting.prefixes)
    return {key: frozenset(one) for key, one in found.items()}


WHERE = (ip_address("192.0.2.2"), 51820)


@pytest.mark.parametrize(
    ("there", "wanted"),
    [
        ({}, {KEYS[1]: ("10.9.0.0/26",)}),
        ({KEYS[1]: ("10.9.0.0/26",)}, {}),
        ({KEYS[1]: ("10.9.0.0/26", "10.9.1.0/26")}, {KEYS[1]: ("10.9.1.0/26", "10.9.2.0/26")}),
        ({KEYS[1]: ("10.9.0.0/26",)}, {KEYS[2]: ("10.9.0.0/26",)}),  # another key of the host
        (
            {KEYS[1]: ("10.9.0.0/26",), KEYS[2]: ("10.9.1.0/26",)},
            {KEYS[2]: ("10.9.0.0/26",), KEYS[1]: ("10.9.1.0/26",)},
        ),
        ({KEYS[1]: ("10.9.0.0/26",)}, {KEYS[1]: ("10.9.0.0/26",)}),
    ],
)
def test_what_is_told_to_the_device_makes_it_what_it_is_to_be(
    there: dict[str, tuple[str, ...]], wanted: dict[str, tuple[str, ...]]
) -> None:
    have = {key: WireGuardPeer(prefixes(*texts), WHERE) for key, texts in there.items()}
    want = {key: WireGuardPeer(prefixes(*texts), WHERE) for key, texts in wanted.items()}
    said = encryption.changes(have, want, KEYS[3])
    assert applied(have, said) == {key: peer.prefixes for key, peer in want.items()}
    assert (said == []) is (have == want)


def test_a_key_is_taken_over_before_the_other_one_is_forgotten() -> None:
    have = {KEYS[1]: WireGuardPeer(prefixes("10.9.0.0/26"), WHERE)}
    want = {KEYS[2]: WireGuardPeer(prefixes("10.9.0.0/26"), WHERE)}
    assert encryption.changes(have, want, KEYS[3]) == [
        Setting(KEYS[2], (ip_network("10.9.0.0/26"),), WHERE),
        Setting(KEYS[1], removed=True),
    ]


def test_a_peer_with_many_addresses_is_told_in_several_messages() -> None:
    many = tuple(ip_network(f"10.{n >> 8}.{n & 255}.0/24") for n in range(1000))
    told = list(wireguard.batches([Setting(KEYS[1], many, WHERE), Setting(KEYS[2], removed=True)]))
    assert len(told) > 1 and all(sum(1 + len(one.prefixes) for one in some) <= 400 for some in told)
    flat = [one for some in told for one in some]
    assert tuple(prefix for one in flat for prefix in one.prefixes) == many
    assert [one.endpoint for one in flat if one.key == KEYS[1]] == [WHERE] + [None] * (len(told) - 1)
    assert flat[-1] == Setting(KEYS[2], removed=True)


def test_messages_are_read_as_they_are_written() -> None:
    from pyroute2.netlink.generic.wireguard import wgmsg

    six = (ip_address("2001:db8::1"), 4500)
    settings = (
        Setting(KEYS[1], (ip_network("10.9.0.0/26"), ip_network("fd09::/112")), WHERE),
        Setting(KEYS[2], (), six),
    )
    message = wgmsg()
    message["attrs"] = [
        ["WGDEVICE_A_PUBLIC_KEY", KEYS[0]],
        ["WGDEVICE_A_LISTEN_PORT", 51820],
        ["WGDEVICE_A_PEERS", [{"attrs": wireguard.attributes(one)} for one in settings]],
    ]
    message.encode()
    parts = [wgmsg(message.data), wgmsg(message.data)]
    for part in parts:
        part.decode()
    found = wireguard.read(parts)
    assert (found.key, found.port) == (KEYS[0], 51820)
    assert found.peers == {
        KEYS[1]: WireGuardPeer(prefixes("10.9.0.0/26", "fd09::/112"), WHERE),
        KEYS[2]: WireGuardPeer(frozenset(), six),
    }


# ---- the key -------------------------------------------------------------------------------------------


def test_a_key_is_readable_to_its_owner_alone_and_shown_to_nobody(tmp_path: Path) -> None:
    key = TunnelKey(KEYS[0], KEYS[1])
    tunnel_keys.write(tmp_path, (key,))
    assert stat.S_IMODE((tmp_path / tunnel_keys.NAME).stat().st_mode) == 0o600
    assert tunnel_keys.read(tmp_path) == (key,)
    assert KEYS[0] not in f"{key} {key!r}"
    tunnel_keys.discard(tmp_path)
    assert tunnel_keys.read(tmp_path) == () and list(tmp_path.iterdir()) == []


def test_what_a_killed_command_has_left_of_a_key_is_in_nobodys_way(tmp_path: Path) -> None:
    (tmp_path / f"{tunnel_keys.NAME}.new").write_text("half of")
    tunnel_keys.write(tmp_path, (TunnelKey(KEYS[0], KEYS[1]),))
    assert [path.name for path in tmp_path.iterdir()] == [tunnel_keys.NAME]


@pytest.mark.parametrize("text", ["", "x", "x y\n", f"{KEYS[0]}\n", "\xff"])
def test_a_file_that_is_none_of_keys_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / tunnel_keys.NAME).write_text(text, "latin-1")
    with pytest.raises(StateError, match=r"wireguard\.key"):
        tunnel_keys.read(tmp_path)


def test_the_key_that_the_others_were_told_is_in_force() -> None:
    before, after = TunnelKey(KEYS[0], KEYS[1]), TunnelKey(KEYS[2], KEYS[3])
    assert in_force((before, after), host(ME, 1, before.public)) == before
    assert in_force((before, after), host(ME, 1, after.public)) == after
    assert in_force((before, after), host(ME, 1, "")) == after


# ---- doctor ----------------------------------------------------------------------------------------------


def findings(device: Any, key: str = KEYS[0], told: str = KEYS[0]) -> list[tuple[str, str]]:
    from datapath.drivers.comparison import Comparison
    from datapath.drivers.overlay import check
    from datapath.model.host import Device, HostNetwork
    from datapath.model.observed import Observed, Programs, Stack
    from datapath.model.wireguard import Encryption

    rows = state(block(SECRET, "10.9.0.0/26", B))
    rows = rows.including(host(ME, 1, told))
    end = Encryption(key, 51820, 1440, device, 1000.0)
    there = {"dp-wg": Device(7, "dp-wg", "wireguard", "", 1440, True)} if device else {}
    observed = Observed(
        HostNetwork(),
        Stack(there),
        {},
        frozenset(),
        {},
        None,
        Programs(missing=("all",)),
        tunnel_port=4789,
        encryption=end,
    )
    found = check.findings(Comparison(rows, observed), [SECRET])
    return [(one.check.name, one.line) for one in found if one.check.name in ("encryption", "handshake")]


def device(*peers: tuple[str, WireGuardPeer], key: str = KEYS[0], port: int = 51820) -> Any:
    from datapath.model.wireguard import WireGuardDevice

    return WireGuardDevice(key, port, dict(peers))


KNOWN = WireGuardPeer(prefixes("10.9.0.0/26", "0.0.0.2/32", "100::2/128"), WHERE, 900, 1000)


@pytest.mark.parametrize(
    ("there", "said"),
    [
        (device((KEYS[1], KNOWN)), []),
        (None, ["encryption: device dp-wg is gone, or another's"]),
        (
            device((KEYS[1], KNOWN), key=KEYS[3]),
            ["encryption: device dp-wg has another key than the others were told"],
        ),
        (
            device((KEYS[1], KNOWN), port=7),
            [
                "encryption: device dp-wg is for UDP port 7, the others were told 51820, and daemon.json says 51820"
            ],
        ),
        (device(), ["host h2: device dp-wg does not know it"]),
        (
            device((KEYS[1], KNOWN._replace(prefixes=prefixes("10.9.1.0/26")))),
            ["host h2: device dp-wg has other addresses for it"],
        ),
        (
            device((KEYS[1], KNOWN), (KEYS[2], KNOWN)),
            [f"key {KEYS[2]}: device dp-wg knows it, and nothing needs that"],
        ),
        (device((KEYS[1], KNOWN._replace(handshake=600))), ["host h2: it has not answered for 400 s"]),
        (device((KEYS[1], KNOWN._replace(handshake=0))), ["host h2: it has never answered"]),
        (device((KEYS[1], KNOWN._replace(handshake=0, sent=148))), []),
    ],
)
def test_s30_what_is_wrong_with_encrypted_tunnels_is_said(there: Any, said: list[str]) -> None:
    assert [line for _, line in findings(there)] == said


def test_s30_a_key_that_the_others_were_not_told_is_said() -> None:
    said = findings(device((KEYS[1], KNOWN), key=KEYS[2]), key=KEYS[0], told=KEYS[2])
    assert said == [("encryption", "encryption: the other hosts were told another key than this host's")]
