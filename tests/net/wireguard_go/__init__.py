# SPDX-License-Identifier: Apache-2.0
"""WireGuard by wireguard-go in place of the kernel's, for tests on a kernel that has none.

Only tests have it. It stands in the place of `datapath.kernel.wireguard` and nothing else: in the forked datapathctl
(`install` in `forked.in_child`), and in what is started as a process of its own (`sitecustomize`). The device is a tun,
and is told over wireguard-go's socket what netlink tells the kernel's. Each wireguard-go has a /run of its own, as the
devices of all pretend hosts have one name.
"""

from __future__ import annotations

import base64
import contextlib
import errno
import os
import socket
import subprocess
import time
from collections.abc import Iterable
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any

VARIABLE = "TEST_WIREGUARD_GO"  # the folder of the processes' ids
_RUN = "mount -t tmpfs tmpfs /run && exec wireguard-go -f {name}"


def install() -> None:
    """In a process that is to be datapathctl, or a part of it."""
    from datapath.kernel import features, wireguard

    module: Any = wireguard
    module.create, module.find, module.configure = create, find, configure
    module.public_key = public_key
    real = features.has_kind
    features.has_kind = lambda kind: kind == wireguard.KIND or real(kind)


def public_key(private: str) -> str:
    done = subprocess.run(["wg", "pubkey"], input=private, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def _file(name: str) -> Path:
    return Path(os.environ[VARIABLE]) / f"{os.stat('/proc/thread-self/ns/net').st_ino}-{name}"


def pid_of(folder: Path, netns: str, name: str) -> int:
    """The process of the device in that namespace."""
    return int((folder / f"{os.stat(netns).st_ino}-{name}").read_text())


def create(name: str, private: str, port: int, mtu: int) -> int:
    from datapath.errors import KernelError
    from datapath.kernel.devices import find_index, quiet_ipv6

    if find_index(name) is not None:
        raise KernelError("create", f"device {name}", errno.EEXIST)
    process = subprocess.Popen(
        ["unshare", "--mount", "sh", "-c", _RUN.format(name=name)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    _file(name).write_text(str(process.pid))
    while _socket(name) is None:
        assert process.poll() is None, "wireguard-go has ended"
        time.sleep(0.005)
    quiet_ipv6(name)
    subprocess.run(["ip", "link", "set", name, "mtu", str(mtu), "up"], check=True)
    configure(name, key=private, port=port)
    index = find_index(name)
    assert index is not None
    return index


def _socket(name: str) -> socket.socket | None:
    with contextlib.suppress(OSError, ValueError):
        found = socket.socket(socket.AF_UNIX)
        found.connect(f"/proc/{_file(name).read_text()}/root/run/wireguard/{name}.sock")
        return found
    return None


def _ask(name: str, text: str) -> list[tuple[str, str]]:
    from datapath.errors import KernelError

    asked = _socket(name)
    if asked is None:
        raise KernelError("open", f"socket of {name}", errno.ENODEV)
    with asked, asked.makefile("rw") as file:
        file.write(f"{text}\n")
        file.flush()
        lines = []
        while line := file.readline().strip():
            lines.append(line)
    found = [(key, value) for key, _, value in (line.partition("=") for line in lines)]
    number = abs(int(dict(found)["errno"]))
    if number:
        raise KernelError("configure", f"device {name}", number)
    return found


def _hex(key: str) -> str:
    return base64.b64decode(key).hex()


def _text(key: str) -> str:
    return base64.b64encode(bytes.fromhex(key)).decode()


def configure(name: str, settings: Iterable[Any] = (), *, key: str = "", port: int = 0) -> None:
    from datapath.kernel.wireguard import KEEPALIVE

    lines = ["set=1"]
    lines += [f"private_key={_hex(key)}"] if key else []
    lines += [f"listen_port={port}"] if port else []
    for setting in settings:
        lines.append(f"public_key={_hex(setting.key)}")
        if setting.removed:
            lines.append("remove=true")
        if setting.endpoint is not None:
            address, number = setting.endpoint
            where = f"[{address}]" if address.version == 6 else address
            lines += [f"endpoint={where}:{number}", f"persistent_keepalive_interval={KEEPALIVE}"]
        lines += [f"allowed_ip={prefix}" for prefix in setting.prefixes]
    _ask(name, "".join(f"{line}\n" for line in lines))


def find(name: str) -> Any:
    from datapath.kernel.devices import find_index
    from datapath.model.wireguard import WireGuardDevice, WireGuardPeer

    if find_index(name) is None or _socket(name) is None:
        return None
    key, port, peers, last = "", 0, {}, ""
    for word, value in _ask(name, "get=1\n"):
        match word:
            case "private_key":
                key = public_key(_text(value))
            case "listen_port":
                port = int(value)
            case "public_key":
                last = _text(value)
                peers[last] = WireGuardPeer()
            case "endpoint":
                where, _, number = value.rpartition(":")
                peers[last] = peers[last]._replace(endpoint=(ip_address(where.strip("[]")), int(number)))
            case "allowed_ip":
                peers[last] = peers[last]._replace(prefixes=peers[last].prefixes | {ip_network(value)})
            case "last_handshake_time_sec":
                peers[last] = peers[last]._replace(handshake=int(value))
            case "tx_bytes":
                peers[last] = peers[last]._replace(sent=int(value))
    return WireGuardDevice(key, port, peers)
