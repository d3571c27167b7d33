# SPDX-License-Identifier: Apache-2.0
"""S26 with direct server return: the backend's host answers who has asked another host."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from subprocess import PIPE

import pytest

from tests.net.cluster import NETWORK, NETWORK6, OUTSIDE, Cluster, Member, agents, remove
from tests.net.hosts import Host, Namespace, eventually
from tests.net.services import by_one_port, failed, heard, keeper, keeping, names

OUTSIDE6 = f"{NETWORK6}:fe"
SECOND = f"{NETWORK}.101"  # another address of the host that is asked
BULK = 8_000_000  # bytes of an answer
FEW = 0.05  # of a bulk's bytes may a host send that does not carry it

# Over TCP: its name and the client first, then so many bytes as each line says. Over UDP so many datagrams with that.
SERVER = """
import socket, socketserver, sys, threading
name, port = sys.argv[1], int(sys.argv[2])
class Both:
    address_family = socket.AF_INET6
    allow_reuse_address = daemon_threads = True
    request_queue_size = 1024
class Stream(socketserver.StreamRequestHandler):
    def handle(self):
        self.wfile.write(f"{name} {self.client_address[0]}\\n".encode())
        for line in self.rfile:
            if line.strip().isdigit():
                self.wfile.write(bytes(int(line)))
            elif line == b"reset\\n":
                self.request.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\\1\\0\\0\\0\\0\\0\\0\\0")
                self.request.close()
                return
            else:
                self.wfile.write(line)
class Datagram(socketserver.BaseRequestHandler):
    def handle(self):
        data, back = self.request
        answer = f"{name} {self.client_address[0]}\\n".encode()
        for _ in range(int(data) if data.isdigit() else 1):
            back.sendto(answer, self.client_address)
class TCP(Both, socketserver.ThreadingTCPServer): pass
class UDP(Both, socketserver.ThreadingUDPServer): pass
udp = UDP(("::", port), Datagram)
threading.Thread(target=udp.serve_forever, daemon=True).start()
TCP(("::", port), Stream).serve_forever()
"""

# Asks for so many bytes; prints how many came.
LOADER = """
import socket, sys
with socket.create_connection((sys.argv[1], int(sys.argv[2])), 30) as client:
    reader = client.makefile("rb")
    reader.readline()
    client.sendall(sys.argv[3].encode() + b"\\n")
    print(len(reader.read(int(sys.argv[3]))))
"""

# From one socket: asks for so many datagrams at once, so often; prints how many came.
DATAGRAMS = """
import socket, sys
address, port, each, times = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM) as client:
    client.settimeout(60)
    client.connect((address, port))
    came = 0
    for _ in range(times):
        client.send(str(each).encode())
        for _ in range(each):
            came += client.recv(100).startswith(b"w")
print(came)
"""


@pytest.fixture(scope="module")
def shop(cluster: Cluster) -> Iterator[Cluster]:
    """A service with direct server return, whose only backend is on the second host."""
    first, second = cluster
    with agents(cluster.hosts):
        first.ctl("network create -d overlay --ipv6 --subnet 10.77.0.0/16 --subnet fd77::/64 ov")
        first.ctl("service create --network ov --dsr -p 8090:80 -p 8090:80/udp web")
        first.sh(f"ip address add {SECOND}/24 dev eth0")
        serve(second, "w1")
        with eventually() as until:
            until(lambda: first.ctl("service ps web --format {{.State}}") == "up")
        yield cluster
        remove(second, "w1")
        first.ctl("service rm web")


def serve(host: Host, name: str) -> None:
    host.run(name, "--network ov --service web", ["python3", "-u", "-c", SERVER, name, "80"])
    address = host.address(name, "ov")
    with eventually() as until:
        until(lambda: names(heard(host.try_, "tcp", address, 80))[name])


def sent(host: Member) -> tuple[int, int]:
    """Frames and bytes that the host has sent by its uplink."""
    found = json.loads(host.sh("ip -j -s link show dev eth0"))[0]["stats64"]["tx"]
    return found["packets"], found["bytes"]


def answers(host: Member) -> int:
    """How many packets its programs have sent to the outside, which are no tunnel's."""
    rows = [json.loads(line) for line in host.ctl("stats --all --format json").splitlines()]
    return sum(int(row["Packets"]) for row in rows if row.get("Counter") == "TO_OUTSIDE")


def loaded(place: Namespace, address: str, count: int = BULK, port: int = 8090) -> int:
    done = place.try_(["python3", "-c", LOADER, address, str(port), str(count)])
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


@pytest.mark.parametrize("version", [4, 6])
def test_s26_none_of_1000_connections_fails_whose_backends_host_answers_the_client(
    shop: Cluster, version: int
) -> None:
    """The server sees the client's own address. By the host that was asked go each one's beginning and end, nothing
    else."""
    first, second = shop
    address, source = (first.vtep, f"::ffff:{OUTSIDE}") if version == 4 else (first.vtep6, OUTSIDE6)
    before = answers(first), answers(second)
    assert heard(first.outside.try_, "tcp", address, 8090, 1000) == {f"w1 {source}": 1000}
    by_first, by_second = answers(first) - before[0], answers(second) - before[1]
    assert 1000 <= by_first <= 3200, "SYN and FIN, and now and then a reset"
    assert by_second >= 1000, "what was answered"


@pytest.mark.parametrize("version", [4, 6])
def test_s26_a_long_answer_of_direct_server_return_does_not_pass_the_host_that_was_asked(
    shop: Cluster, version: int
) -> None:
    first, second = shop
    before = sent(first)[1], sent(second)[1]
    assert loaded(first.outside, first.vtep if version == 4 else first.vtep6) == BULK
    assert sent(first)[1] - before[0] < FEW * BULK
    assert sent(second)[1] - before[1] >= BULK


@pytest.mark.parametrize("version", [4, 6])
def test_s26_datagrams_of_direct_server_return_come_from_the_address_that_was_asked(
    shop: Cluster, version: int
) -> None:
    """The first answer goes by the host that was asked, which then knows of it."""
    first, _ = shop
    before = answers(first)
    address = first.vtep if version == 4 else first.vtep6
    done = first.outside.try_(["python3", "-c", DATAGRAMS, address, "8090", "20", "10"])
    assert done.stdout.strip() == "200", done
    assert 1 <= answers(first) - before <= 3


def test_s26_direct_server_return_answers_from_whichever_address_was_asked(shop: Cluster) -> None:
    """The same client port asks one after the other."""
    first, _ = shop
    asker = ["python3", "-c", ONE_PORT, "8090", "40", first.vtep, SECOND]
    done = first.outside.try_(asker)
    assert done.stdout.split() == ["w1"] * 80, done


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("proto", ["tcp", "udp"])
def test_s26_a_client_uses_one_port_by_two_hosts_with_direct_server_return(
    shop: Cluster, proto: str, version: int
) -> None:
    """One of them is the container's own; and by two addresses of one host."""
    first, second = shop
    source, seen = (OUTSIDE, f"w1 ::ffff:{OUTSIDE}") if version == 4 else (OUTSIDE6, f"w1 {OUTSIDE6}")
    asked = [host.vtep if version == 4 else host.vtep6 for host in shop]
    for addresses in (asked, asked[::-1], [first.vtep, SECOND, second.vtep] if version == 4 else asked):
        found = by_one_port(first.outside.try_, proto, source, addresses, 8090)
        assert {line for heard_by in found for line in heard_by} == {seen}


# From one port, in turn at each of the addresses, so often: prints who answered.
ONE_PORT = """
import socket, struct, sys
port, count, addresses = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3:]
for number in range(count):
    for address in addresses:
        with socket.socket() as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            client.settimeout(60)
            client.bind(("", 21000))
            client.connect((address, port))
            client.sendall(b"1000\\n")
            reader = client.makefile("rb")
            line = reader.readline()
            print(line.split()[0].decode() if len(reader.read(1000)) == 1000 else "short")
"""


def test_s26_a_narrow_way_behind_direct_server_return_is_heard_of(shop: Cluster) -> None:
    """The router in front of the client tells the address that was asked; the host with it tells the backend."""
    first, second = shop
    client = Namespace()
    try:
        shop.switch.batch(
            f"link add narrow mtu 1300 type veth peer name eth0 mtu 1500 netns {client.pid}",
            "link set narrow up",
            "address add 198.51.100.1/24 dev narrow",
        )
        client.sh("ip address add 198.51.100.2/24 dev eth0")
        client.sh("ip link set eth0 up")
        client.sh("ip route add default via 198.51.100.1")
        shop.switch.sh("sysctl -q -w net.ipv4.ip_forward=1")
        before = sent(first)[1]
        assert loaded(client, first.vtep) == BULK
        assert sent(first)[1] - before < FEW * BULK
        route = [
            "nsenter",
            f"--net=/proc/{second.process('w1')}/ns/net",
            "ip",
            "route",
            "get",
            "198.51.100.2",
        ]
        assert "mtu 1300" in second.sh(route)
    finally:
        shop.switch.sh("ip link del narrow")
        client.close()


def test_s26_the_host_that_was_asked_knows_how_far_a_connection_of_direct_server_return_is(
    shop: Cluster,
) -> None:
    """Established while it is, though no answer comes by that host; and not once it has ended."""
    first, _ = shop
    with eventually() as until:
        until(lambda: not established(first))
    process = first.outside.start(keeper(first.vtep, 8090, 5), stdin=PIPE, stdout=PIPE)
    with keeping(process) as (_, owners):
        assert owners == ["w1"] * 5
        assert established(first) == 5
        assert failed(process) == []
    with eventually() as until:
        until(lambda: not established(first))


def established(host: Member) -> int:
    """How many TCP connections to the service are, as the host that is asked knows."""
    rows = [json.loads(line) for line in host.ctl("ct ls --format json").splitlines()]
    shown = [row for row in rows if row["Protocol"] == "tcp" and row["Destination"].endswith(":8090")]
    return sum(row["State"] == "established" for row in shown)


def test_s26_a_reset_ends_a_connection_of_direct_server_return_on_the_host_that_was_asked(
    shop: Cluster,
) -> None:
    """After more than a window of data, of which that host has seen no acknowledgement; whoever resets it."""
    first, _ = shop
    for who in "client", "server":
        done = first.outside.try_(["python3", "-c", RESETTER, first.vtep, "8090", who])
        assert done.returncode == 0, done
        with eventually() as until:
            until(lambda: not established(first))


# Sends 3 MB, which are echoed in part; then one of the two ends resets the connection.
RESETTER = """
import socket, struct, sys
client = socket.create_connection((sys.argv[1], int(sys.argv[2])), 30)
reader = client.makefile("rb")
reader.readline()
for _ in range(300):
    client.sendall(b"x" * 9999 + b"\\n")
    assert len(reader.readline()) == 10000
if sys.argv[3] == "client":
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
else:
    client.sendall(b"reset\\n")
    try:
        assert not reader.readline()
    except ConnectionResetError:
        pass
reader.close()
client.close()
"""


def test_s26_direct_server_return_begins_and_ends_with_an_update_and_connections_live_on(
    shop: Cluster,
) -> None:
    first, second = shop
    process = first.outside.start(keeper(first.vtep, 8090, 5), stdin=PIPE, stdout=PIPE)
    with keeping(process):
        second.ctl("service update --no-dsr web")
        with eventually() as until:
            until(lambda: not json.loads(first.ctl("service inspect web"))[0]["DSR"])
        before = sent(first)[1]
        assert loaded(first.outside, first.vtep) == BULK
        assert sent(first)[1] - before >= BULK
        second.ctl("service update --dsr web")
        with eventually() as until:
            until(lambda: json.loads(first.ctl("service inspect web"))[0]["DSR"])
        before = sent(first)[1]
        assert loaded(first.outside, first.vtep) == BULK
        assert sent(first)[1] - before < FEW * BULK
        assert failed(process) == []
    for host in shop:
        assert host.ctl("doctor") == "No problems found."


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("way", ["--dsr", "--no-dsr"])
def test_s26_a_client_outside_hears_at_once_that_a_backend_on_another_host_does_not_listen(
    shop: Cluster, version: int, way: str
) -> None:
    """Over UDP: what the backend's stack says of its port goes back by the host that was asked."""
    first, second = shop
    second.ctl(f"service update {way} --publish-add 8092:81/udp web")
    try:
        with eventually() as until:
            until(lambda: "8092" in first.ctl("service ls"))
            until(lambda: json.loads(first.ctl("service inspect web"))[0]["DSR"] == (way == "--dsr"))
        address = first.vtep if version == 4 else first.vtep6
        for place in first.outside, first:
            assert heard(place.try_, "udp", address, 8092) == {"ConnectionRefusedError": 1}
    finally:
        second.ctl("service update --dsr --publish-rm 8092:81/udp web")
        with eventually() as until:
            until(lambda: "8092" not in first.ctl("service ls"))
            until(lambda: json.loads(first.ctl("service inspect web"))[0]["DSR"])


def test_s26_without_the_host_that_was_asked_a_connection_of_direct_server_return_waits_for_it(
    shop: Cluster,
) -> None:
    """What the client says has no other way; by the other host new ones begin meanwhile."""
    first, second = shop
    process = first.outside.start(keeper(first.vtep, 8090, 3), stdin=PIPE, stdout=PIPE)
    with keeping(process):
        with shop.cut_off(first):
            assert names(heard(first.outside.try_, "tcp", second.vtep, 8090, 20)) == {"w1": 20}
        assert failed(process) == []


def test_s26_direct_server_return_is_for_networks_of_several_hosts(shop: Cluster, tmp_path: Path) -> None:
    """One line says so, and nothing is changed."""
    host = shop[0]
    host.ctl("network create --subnet 10.40.0.0/24 mall")
    try:
        done = host.try_ctl("service create --network mall --dsr -p 8095:80 other")
        assert done.returncode and done.stderr.count("\n") == 1, done
        assert "--dsr is for services of networks that span hosts" in done.stderr
        host.ctl("service create --network mall other")
        done = host.try_ctl("service update --dsr other")
        assert done.returncode and done.stderr.count("\n") == 1, done
        host.ctl("service rm other")
        done = host.try_ctl("service create --network ov --dsr --endpoint-mode dnsrr other")
        assert done.returncode and "--dsr and --endpoint-mode dnsrr" in done.stderr, done
    finally:
        host.ctl("network rm mall")
