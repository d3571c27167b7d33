# SPDX-License-Identifier: Apache-2.0
"""What somebody took away behind our back comes back with the next command."""

from __future__ import annotations

import contextlib
import json
import sqlite3
import subprocess

from tests.net.hosts import HOST, Host, ask, echo_server, eventually, loses, reaches


def test_s30_a_gateway_device_removed_by_hand_is_built_again_with_all_members_in_it(host: Host) -> None:
    host.run("one")
    host.run(
        "two",
        "",
        'python3 -u -c "import socket; s=socket.socket(socket.AF_INET, socket.SOCK_DGRAM); '
        "s.bind(('', 4000)); print(s.recv(9), flush=True); import time; time.sleep(600)\"",
    )
    host.sh("ip link del dp0")
    host.ctl("network create other")
    assert reaches(lambda command: host.try_in("one", command), host.address("two"))
    assert reaches(host.try_, host.address("two"))
    host.in_(
        "one",
        [
            "python3",
            "-c",
            "import socket; s=socket.socket(socket.AF_INET, socket.SOCK_DGRAM); "
            "s.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1); s.sendto(b'hello', ('172.17.255.255', 4000))",
        ],
    )
    with eventually() as until:
        until(lambda: "hello" in host.ctl("logs two"))


def test_s30_programs_whose_pins_are_gone_are_loaded_again_with_running_containers_in_them(
    host: Host,
) -> None:
    host.run("web", "-p 8081:80", echo_server("tcp", 80))
    with eventually() as until:
        until(lambda: host.outside.try_(ask("tcp", HOST, 8081)).returncode == 0)
    subprocess.run(["find", str(host.bpffs / "datapath"), "-type", "f", "-delete"], check=True)
    host.ctl("network create other")
    assert host.outside.sh(ask("tcp", HOST, 8081)).split()[0] == "192.0.2.2"
    assert reaches(host.try_, host.address("web"))
    assert host.sh(ask("tcp", "127.0.0.1", 8081)).split()[1:] == ["127.0.0.1", "8081"]


def test_s15_icc_of_the_default_network_follows_daemon_json_while_containers_run(host: Host) -> None:
    host.run("one")
    host.run("two")
    address = host.address("two")
    assert reaches(lambda command: host.try_in("one", command), address)
    host.configure({"icc": False})
    host.ctl("network create other")
    assert loses(lambda command: host.try_in("one", command), address)
    host.configure({})
    host.ctl("network rm other")
    assert reaches(lambda command: host.try_in("one", command), address)


def test_s4_the_mtu_of_networks_follows_the_hosts_default_route(host: Host) -> None:
    host.ctl("network create own")
    host.ctl("network create --opt com.docker.network.driver.mtu=1300 fixed")
    for name, network in (("one", "bridge"), ("two", "own"), ("three", "fixed")):
        host.run(name, f"--network {network}")
    host.sh("ip link set eth0 mtu 1400")
    host.ctl("network create other")

    def mtus(name: str) -> tuple[str, str]:
        inside = host.in_(name, "cat /sys/class/net/eth0/mtu")
        outer = host.sh(["sh", "-c", "ip -o link show type veth | grep -o 'mtu [0-9]*' | sort | uniq -c"])
        return inside, outer

    assert [mtus(name)[0] for name in ("one", "two", "three")] == ["1400", "1400", "1300"]
    assert host.network("bridge")["Options"]["com.docker.network.driver.mtu"] == "1400"
    assert "mtu 1500" not in mtus("one")[1], "both ends of each pair, and the gateway devices"
    host.sh("ip route del default")
    host.ctl("network rm other")
    assert [mtus(name)[0] for name in ("one", "two", "three")] == ["1400", "1400", "1300"]


def test_s30_a_device_whose_index_was_never_written_down_leaves_no_row_in_the_programs_maps(
    host: Host,
) -> None:
    """As if the command had been killed after it had built the endpoint, and the container with it."""
    host.ctl("network create other")
    host.run("one", "--network other")
    devices = json.loads(host.sh("ip -j link"))
    (veth,) = (device for device in devices if device["ifname"].startswith("veth"))
    assert veth["ifindex"] in known_devices(host)
    with contextlib.closing(sqlite3.connect(host.folder / "state" / "datapath.db")) as opened, opened:
        (text,) = opened.execute("SELECT body FROM endpoints").fetchone()
        body = {key: value for key, value in json.loads(text).items() if key not in ("phase", "host_ifindex")}
        opened.execute("UPDATE endpoints SET body = ?", (json.dumps(body),))
    host.sh(f"ip link del {veth['ifname']}")
    host.ctl("network create another")
    assert veth["ifindex"] not in known_devices(host)


def known_devices(host: Host) -> set[int]:
    rows = json.loads(host.sh(f"bpftool -j map dump pinned {host.bpffs}/datapath/maps/devices"))
    return {int.from_bytes(bytes(int(byte, 16) for byte in row["key"]), "little") for row in rows}
