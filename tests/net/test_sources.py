# SPDX-License-Identifier: Apache-2.0
"""allow= and deny= of published ports: who gets in, from where, changed at run time; and the XDP program that
refuses before the host's stack sees anything."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from datapath.dataplane.programs import Dataplane
from tests.net.hosts import HOST, OUTSIDE, PATIENCE, TREE, Host, eventually
from tests.net.test_ipv6 import HOST6, OUTSIDE6, plug_ipv6
from tests.net.wire import (
    QUIET,
    Container,
    call,
    counters,
    fails,
    opened,
    rises,
    serving,
    start_container,
)
from tests.softirqs import settle

Maker = Callable[..., Host]
OTHER, FOREIGN = "192.0.2.66", "192.0.2.67"  # more addresses of the machine outside
OTHER6 = "2001:db8:1::66"


def dress(host: Host) -> None:
    plug_ipv6(host)
    for address in (OTHER, FOREIGN):
        host.outside.sh(f"ip address add {address}/24 dev eth0")
    host.outside.sh(f"ip -6 address add {OTHER6}/64 dev eth0 nodad")
    # A veth pair hands over checksums that are still to be made: nothing that comes from a cable does.
    host.outside.sh("ethtool -K eth0 tx off")
    host.ctl("network create --ipv6 net")


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    with ExitStack() as stack:
        host = Host(tmp_path_factory.mktemp("host"))
        stack.callback(host.close)
        dress(host)
        yield host


@pytest.fixture
def web(prepared: Host) -> Iterator[Callable[..., Container]]:
    """Starts the container `web` on `net`."""
    yield lambda options: start_container(prepared, "web", f"--network net {options}")
    prepared.ctl("rm -f web")


def gets_in(host: Host, source: str, port: int = 8081, proto: str = "tcp") -> bool:
    return _seen(host, source, port, proto, PATIENCE)


def is_kept_out(host: Host, source: str, port: int = 8081, proto: str = "tcp") -> bool:
    """A refused packet is never answered: this does not wait long for it."""
    return not _seen(host, source, port, proto, 2 * QUIET)


def _seen(host: Host, source: str, port: int, proto: str, seconds: float) -> bool:
    try:
        address = HOST6 if ":" in source else HOST
        answer = call(host.outside, proto, address, port, source=(source, 0), seconds=seconds)
        return answer.seen.endswith(source)
    except OSError:
        return False


def xdp(host: Host, device: str = "eth0") -> bool:
    return "xdp" in host.sh(f"ip -j link show {device}").replace('"xdpgeneric"', '"xdp"')


def filters(host: Host) -> dict[int, int]:
    """Number of rules -> how many rows `acls` has of it."""
    found = Dataplane.find(host.bpffs / "datapath")
    assert found is not None
    with found:
        numbers = [key.acl for key in found.acls]
        return {number: numbers.count(number) for number in sorted(set(numbers))}


BOTH = pytest.mark.parametrize("proto", ["tcp", "udp"])


@BOTH
@pytest.mark.parametrize(
    ("rules", "allowed", "refused"),
    [
        ("", (OUTSIDE, OTHER, OUTSIDE6), ()),
        (f",allow={OUTSIDE}", (OUTSIDE,), (OTHER, OUTSIDE6)),
        (f",deny={OTHER},deny=2001:db8:1::66", (OUTSIDE, OUTSIDE6), (OTHER, OTHER6)),
        (f",allow=192.0.2.0/24,deny=192.0.2.64/26,allow={FOREIGN}", (OUTSIDE, FOREIGN), (OTHER, OUTSIDE6)),
        (",allow=2001:db8:1::/64,deny=2001:db8:1::66", (OUTSIDE6,), (OTHER6, OUTSIDE)),
        (",deny=::/0", (OUTSIDE,), (OUTSIDE6,)),
        (",deny=0.0.0.0/0", (OUTSIDE6,), (OUTSIDE,)),
    ],
)
def test_who_gets_in(
    prepared: Host,
    web: Callable[..., Container],
    proto: str,
    rules: str,
    allowed: tuple[str, ...],
    refused: tuple[str, ...],
) -> None:
    with serving(web(f"-p 8081:80/{proto}{rules}"), proto, 80, "::"):
        assert xdp(prepared) == bool(rules)
        for source in allowed:
            assert gets_in(prepared, source, proto=proto), source
        before = counters(prepared)
        for source in refused:
            assert is_kept_out(prepared, source, proto=proto), source
        dropped = rises(before, counters(prepared))
        assert dropped.keys() == ({"DROP_DENIED"} if refused else set())


@BOTH
def test_without_xdp_tc_refuses_the_same(prepared: Host, web: Callable[..., Container], proto: str) -> None:
    rules = f"allow=192.0.2.0/24,deny={OTHER}"
    with serving(web(f"-p 8081:80/{proto},{rules}"), proto, 80, "::"):
        (link,) = (prepared.bpffs / "datapath/links").glob("xdp_uplink-*")
        link.unlink()
        assert gets_in(prepared, OUTSIDE, proto=proto)
        before = counters(prepared)
        assert is_kept_out(prepared, OTHER, proto=proto)
        assert is_kept_out(prepared, OUTSIDE6, proto=proto)
        assert rises(before, counters(prepared)).keys() == {"DROP_DENIED"}


def test_the_rules_of_a_range_are_each_ports(prepared: Host, web: Callable[..., Container]) -> None:
    with serving(web(f"-p 8100-8104:80-84,deny={OTHER}"), "tcp", 83, "::"):
        assert gets_in(prepared, OUTSIDE, 8103)
        assert is_kept_out(prepared, OTHER, 8103)
        assert filters(prepared) == {1: 1}


def test_other_ports_are_nobodys_business(prepared: Host, web: Callable[..., Container]) -> None:
    with serving(web(f"-p 8081:80,allow={OUTSIDE} -p 8082:80"), "tcp", 80, "::"):
        assert gets_in(prepared, OTHER, 8082)
        assert is_kept_out(prepared, OTHER, 8081)
        with serving(prepared, "tcp", 8090):
            assert gets_in(prepared, OTHER, 8090)


def test_containers_and_the_host_itself_are_sources_too(
    prepared: Host, web: Callable[..., Container]
) -> None:
    with serving(web(f"-p 8081:80,allow={OUTSIDE}"), "tcp", 80, "::"):
        guest = start_container(prepared, "guest")
        try:
            assert fails(guest, "tcp", HOST, 8081)
            assert fails(prepared, "tcp", "127.0.0.1", 8081)
            assert fails(prepared, "tcp", HOST, 8081)
            assert fails(prepared, "tcp", "::1", 8081)
            prepared.ctl(f"port set web 1 allow={guest.ip},allow=127.0.0.1,allow=::1")
            assert call(guest, "tcp", HOST, 8081).peer == HOST
            assert call(prepared, "tcp", "127.0.0.1", 8081).peer == "127.0.0.1"
            assert call(prepared, "tcp", "::1", 8081).peer == "::1"
            assert fails(prepared, "tcp", HOST, 8081)
        finally:
            prepared.ctl("rm -f guest")


# ---- at run time -----------------------------------------------------------------------------------------


def test_rules_change_while_the_container_runs(prepared: Host, web: Callable[..., Container]) -> None:
    with serving(web("-p 8081:80"), "tcp", 80, "::"):
        assert not xdp(prepared)
        assert prepared.ctl(f"port set web 1 deny={OTHER}") == f"8081:80/tcp,deny={OTHER}/32"
        assert xdp(prepared)
        assert is_kept_out(prepared, OTHER)
        assert gets_in(prepared, OUTSIDE)
        assert prepared.ctl(f"port set web 8081:80 allow={OTHER}") == f"8081:80/tcp,allow={OTHER}/32"
        assert gets_in(prepared, OTHER)
        assert is_kept_out(prepared, OUTSIDE)
        assert filters(prepared) == {2: 1}
        assert prepared.ctl("port set web 1") == "8081:80/tcp"
        assert gets_in(prepared, OUTSIDE)
        assert not xdp(prepared)
        assert filters(prepared) == {}


def test_shown_by_port_ls_and_inspect(prepared: Host, web: Callable[..., Container]) -> None:
    web(f"-p 127.0.0.1:8081:80,allow=10.0.0.0/8,deny={OTHER}")
    (row,) = [json.loads(line) for line in prepared.ctl("port ls web --format json").splitlines()]
    assert row["ACL"] == f"allow=10.0.0.0/8,deny={OTHER}/32"
    (binding,) = prepared.inspect("web")["NetworkSettings"]["Ports"]["80/tcp"]
    assert (binding["Allow"], binding["Deny"]) == (["10.0.0.0/8"], [f"{OTHER}/32"])


def test_a_connection_ends_when_its_client_may_not_any_more(
    prepared: Host, web: Callable[..., Container]
) -> None:
    made = web("-p 8081:80")
    with opened(made) as server, ExitStack() as stack:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        server.bind(("0.0.0.0", 80))
        server.listen()
        talks = {}
        for source in (OUTSIDE, OTHER):
            client = stack.enter_context(opened(prepared.outside))
            client.bind((source, 0))
            client.connect((HOST, 8081))
            talks[source] = client, stack.enter_context(server.accept()[0])
        prepared.ctl(f"port set web 1 deny={OTHER}")
        (link,) = prepared.bpffs.glob("datapath/links/xdp_uplink-*")
        link.unlink()  # it would not let the packets through in any case
        for source, (client, peer) in talks.items():
            client.sendall(b"still here")
            if source == OTHER:
                settle()
                peer.setblocking(False)
                with pytest.raises(BlockingIOError):
                    peer.recv(100)
            else:
                assert peer.recv(100) == b"still here"


def test_added_and_removed_at_run_time(prepared: Host, web: Callable[..., Container]) -> None:
    with serving(web("-p 8081:80"), "tcp", 80, "::"):
        prepared.ctl(f"port add web 8082:80,allow={OTHER}")
        assert gets_in(prepared, OTHER, 8082)
        assert is_kept_out(prepared, OUTSIDE, 8082)
        assert gets_in(prepared, OUTSIDE, 8081)
        assert prepared.ctl("port rm web 8082:80") == f"8082:80/tcp,allow={OTHER}/32"
        assert (filters(prepared), xdp(prepared)) == ({}, False)


def test_rules_go_with_their_container(prepared: Host) -> None:
    prepared.run("web", f"--network net -p 8081:80,deny={OTHER}")
    assert (filters(prepared), xdp(prepared)) == ({1: 1}, True)
    prepared.ctl("rm -f web")
    assert (filters(prepared), xdp(prepared)) == ({}, False)


@pytest.mark.parametrize(
    ("command", "says"),
    [
        ("port set web 1 allow=10.0.0.1/8", "invalid allow prefix 10.0.0.1/8: it should be 10.0.0.0/8"),
        ("port set web 1 permit=10.0.0.0/8", "expected allow=PREFIX or deny=PREFIX"),
        ("port set web 7 allow=10.0.0.0/8", "container web has no port mapping number 7"),
        (
            "port set web 8081:80,deny=10.0.0.0/8",
            'rules stand apart from the port: "8081:80" deny=10.0.0.0/8',
        ),
        ("port set nobody 1", "No such container: nobody"),
        ("port add web 8085:80,allow=x", 'invalid allow prefix "x": expected an address, or ADDRESS/LENGTH'),
        ("run -d -p 80:80,allow=10.0.0.0/8,deny=10.0.0.0/8 true", "both allow and deny 10.0.0.0/8"),
    ],
)
def test_mistakes(prepared: Host, web: Callable[..., Container], command: str, says: str) -> None:
    web("-p 8081:80")
    assert says in prepared.refused(command)


def test_a_command_killed_in_the_middle_is_completed(prepared: Host, web: Callable[..., Container]) -> None:
    """`port set`, killed between any two of its writes to the maps: what the row says is then done."""
    with serving(web(f"-p 8081:80,allow={OTHER}"), "tcp", 80, "::"):
        for step in range(5):
            source, other = (OUTSIDE, OTHER) if step % 2 == 0 else (OTHER, OUTSIDE)
            argv = [sys.executable, "-c", KILLED, str(step), "port", "set", "web", "1", f"allow={source}"]
            done = prepared.try_(argv)
            assert done.returncode == -signal.SIGKILL, done.stderr
            said = prepared.try_ctl("network prune -f").stderr
            assert "were being changed: done" in said, (step, said)
            assert gets_in(prepared, source), step
            assert is_kept_out(prepared, other), step
            assert len(filters(prepared)) == 1


# Runs datapathctl and kills it at the n-th write to a map.
KILLED = """
import os, signal, sys
from datapath.kernel import bpf_maps
left = int(sys.argv.pop(1))
def dying(method):
    def inner(self, *args, **more):
        global left
        if self.name in ("acls", "ports", "reserved", "conns", "pending"):
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            left -= 1
        return method(self, *args, **more)
    return inner
for name in ("update_many", "delete_many", "delete_raw"):
    setattr(bpf_maps.Map, name, dying(getattr(bpf_maps.Map, name)))
from ctl.cli import main
sys.exit(main.run(sys.argv[1:]))
"""


# ---- XDP -------------------------------------------------------------------------------------------------


def test_another_xdp_program_is_left_alone_and_told_of_once(make_host: Maker) -> None:
    host = make_host()
    dress(host)
    theirs = TREE / "datapath/objects/xdp_uplink.bpf.o"
    subprocess.run(["bpftool", "prog", "load", theirs, host.bpffs / "theirs"], check=True)
    host.sh(f"ip link set dev eth0 xdp pinned {host.bpffs}/theirs")
    number = json.loads(host.sh("ip -j link show eth0"))[0]["xdp"]["prog"]["id"]
    done = host.try_ctl(f"run -d --name web --network net -p 8081:80,deny={OTHER} sleep 3600")
    assert done.returncode == 0
    assert done.stderr.count("WARNING: device eth0 has another XDP program") == 1
    assert "XDP" not in host.try_ctl("network create --ipv6 more").stderr
    assert json.loads(host.sh("ip -j link show eth0"))[0]["xdp"]["prog"]["id"] == number
    with serving(Container(host, "web"), "tcp", 80, "::"):
        assert gets_in(host, OUTSIDE)
        before = counters(host)
        assert is_kept_out(host, OTHER)
        assert "DROP_DENIED" in rises(before, counters(host))
    host.ctl("down")
    assert json.loads(host.sh("ip -j link show eth0"))[0]["xdp"]["prog"]["id"] == number
    host.sh("ip link set dev eth0 xdp off")
    (host.bpffs / "theirs").unlink()


def test_a_device_whose_driver_has_no_xdp_gets_it_before_the_stack(make_host: Maker) -> None:
    host = make_host()
    dress(host)
    host.sh("ip link add br0 type bridge")
    host.sh("ip address add 198.51.100.1/24 dev br0")
    host.sh("ip link set br0 up")
    host.run("web", f"--network net -p 8081:80,deny={OTHER}")
    modes = {
        device: json.loads(host.sh(f"ip -j link show {device}"))[0]["xdp"]["mode"]
        for device in ("eth0", "br0")
    }
    assert modes == {"eth0": 1, "br0": 2}  # XDP_ATTACHED_DRV, XDP_ATTACHED_SKB
    host.ctl("rm -f web")
    with eventually() as until:
        until(lambda: not xdp(host) and not xdp(host, "br0"))


def test_a_limit_on_floods(make_host: Maker) -> None:
    host = make_host(config={"datapath": {"flood-limit": {"rate": 5, "burst": 10}}})
    dress(host)
    assert xdp(host)
    web = start_container(host, "web", "--network net -p 8081:80/udp")
    with serving(web, "udp", 80, "::") as server:
        before = counters(host)
        for _ in range(14):
            with opened(host.outside, socket.SOCK_DGRAM) as client:
                client.bind((OTHER, 0))
                client.sendto(b"?", (HOST, 8081))
        settle()
        dropped = rises(before, counters(host))["DROP_FLOOD"]
        with eventually() as until:
            until(lambda: len(server.peers) == 14 - dropped)
        assert gets_in(host, OUTSIDE, proto="udp")  # another source has a bucket of its own
    host.ctl("down")
    with_ = [path for path in host.bpffs.rglob("*") if "xdp" in path.name]
    assert (xdp(host), with_) == (False, [])


def test_settings_apply_when_the_programs_are_loaded(make_host: Maker) -> None:
    host = make_host(config={"datapath": {"max-connections": 1000, "timeouts": {"udp": 7}}})
    host.ctl("network create a")
    rows = [json.loads(line) for line in host.ctl("stats --format json").splitlines()]
    (conns,) = [row for row in rows if row.get("Map") == "conns"]
    assert (conns["Max"], conns["Percent"]) == (2000, 0.0)
    assert {"acls", "quotas", "rates", "fragments", "frag_queue", "sockets", "ports"} <= {
        row.get("Map") for row in rows
    }
    assert "WARNING" not in host.try_ctl("network create b").stderr
    host.configure({"datapath": {"max-connections": 2000}})
    said = host.try_ctl("network create c").stderr
    assert "timeout_udp 7 (not 180)" in said
    assert "conns 2000 (not 4000)" in said
    host.ctl("down")
    host.ctl("network create a")
    assert "WARNING" not in host.try_ctl("network create b").stderr


def test_a_default_gateway_of_ones_own_is_refused(make_host: Maker) -> None:
    host = make_host(config={"default-gateway": "172.17.0.254"})
    assert '"default-gateway" has no meaning here' in host.refused("network create a")
    host.configure({})
    aux = "--subnet 10.0.0.0/24 --aux-address DefaultGatewayIPv4=10.0.0.9"
    assert "aux-address DefaultGatewayIPv4 is not available" in host.refused(f"network create {aux} a")
