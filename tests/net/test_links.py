# SPDX-License-Identifier: Apache-2.0
"""Devices, addresses, routes and host facts, on the real kernel in a namespace that stands for the host."""

from __future__ import annotations

import errno
import logging
import os
import re
import signal
import subprocess
import threading
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv6Address, ip_interface, ip_network

import pytest

from datapath.errors import KernelError
from datapath.kernel import netns, syscalls, sysctl
from datapath.kernel.links import Links
from tests.net.hosts import eventually

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")

MAC = "02:42:ac:11:00:02"
GATEWAY_MAC = "02:42:0a:00:00:01"


def new_namespace() -> int:
    """An fd that alone keeps a new network namespace."""
    own = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    try:
        syscalls.unshare(syscalls.CLONE_NEWNET)
        return os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    finally:
        syscalls.setns(own, syscalls.CLONE_NEWNET)
        os.close(own)


@pytest.fixture
def host() -> Iterator[int]:
    """The test runs in an empty namespace: its host."""
    fd = new_namespace()
    with netns.enter(fd):
        yield fd
    os.close(fd)


@pytest.fixture
def links(host: int) -> Iterator[Links]:
    with Links() as opened:
        yield opened


@pytest.fixture
def container() -> Iterator[int]:
    fd = new_namespace()
    yield fd
    os.close(fd)


def ip(*words: str) -> str:
    return subprocess.run(("ip", *words), check=True, capture_output=True, text=True).stdout


def usable(address: str, shown: str) -> bool:
    """The address is there, and is not being looked for any more."""
    return f"{address}/" in shown and "tentative" not in shown


def ip_in(fd: int, *words: str) -> str:
    with netns.enter(fd):
        return ip(*words)


def attach(links: Links, container: int, ipv6: bool = False) -> None:
    """A gateway dp0 and eth0 of a container on it."""
    addresses = [ip_interface("10.0.0.1/24"), *([ip_interface("fd00::1/64")] if ipv6 else [])]
    links.create_gateway("dp0", "dpx1", GATEWAY_MAC, addresses, 1400, ipv6=ipv6)
    links.create_endpoint("veth1", "eth0", container, MAC, 1400)
    links.configure(
        container,
        "eth0",
        [ip_interface("10.0.0.2/24"), *([ip_interface("fd00::2/64")] if ipv6 else [])],
        gateway4=IPv4Address("10.0.0.1"),
        gateway6=IPv6Address("fd00::1") if ipv6 else None,
        ipv6=ipv6,
    )


class TestGateway:
    def test_holds_addresses_mac_mtu_and_has_a_carrier(self, links: Links) -> None:
        index = links.create_gateway(
            "docker1", "dpx1", GATEWAY_MAC, [ip_interface("10.0.0.1/16")], 1400, ipv6=False
        )
        shown = ip("-o", "link", "show", "docker1")
        assert shown.startswith(f"{index}: ")
        assert "LOWER_UP" in shown and "mtu 1400" in shown and GATEWAY_MAC in shown
        address = ip("-o", "address", "show", "docker1")
        assert "inet 10.0.0.1/16 brd 10.0.255.255" in address
        assert "inet6" not in address
        assert links.index("docker1") == index

    def test_its_peer_is_silent(self, links: Links) -> None:
        links.create_gateway("dp0", "dpx1", GATEWAY_MAC, [], 1500, ipv6=True)
        assert "NOARP" in ip("-o", "link", "show", "dpx1")
        assert ip("-o", "address", "show", "dpx1") == ""

    def test_forwards_on_this_device_alone(self, links: Links) -> None:
        ip("link", "add", "other", "type", "veth", "peer", "name", "other1")
        before = {
            name: sysctl.read(f"net/ipv4/conf/{name}/forwarding") for name in ("all", "default", "other")
        }
        links.create_gateway("dp.0", "dpx1", GATEWAY_MAC, [ip_interface("10.0.0.1/16")], 1500, ipv6=True)
        assert sysctl.read("net/ipv4/conf/dp.0/forwarding") == "1"
        assert sysctl.read("net/ipv6/conf/dp.0/forwarding") == "1"
        assert sysctl.read("net/ipv6/conf/dp.0/accept_ra") == "0"
        assert sysctl.read("net/ipv6/conf/all/forwarding") == "0"
        assert before == {name: sysctl.read(f"net/ipv4/conf/{name}/forwarding") for name in before}

    def test_ipv6_addresses_are_usable_at_once(self, links: Links) -> None:
        links.create_gateway("dp0", "dpx1", GATEWAY_MAC, [ip_interface("fd00::1/64")], 1500, ipv6=True)
        assert "tentative" not in ip("-6", "-o", "address", "show", "dp0", "to", "fd00::1")
        with eventually() as until:  # the kernel's worker has to come by
            until(lambda: usable("fe80::42:aff:fe00:1", ip("-6", "-o", "address", "show", "dp0")))
        shown = ip("-6", "-o", "address", "show", "dp0")
        assert "fd00::1/64" in shown and "fe80::42:aff:fe00:1/64" in shown
        assert sysctl.read("net/ipv6/conf/dp0/accept_dad") == "0", (
            "it looked for doubles, which takes a second"
        )

    def test_failure_leaves_nothing(self, links: Links) -> None:
        twice = [ip_interface("10.0.0.1/16"), ip_interface("10.0.0.1/16")]
        with pytest.raises(KernelError) as caught:
            links.create_gateway("dp0", "dpx1", GATEWAY_MAC, twice, 1500, ipv6=False)
        assert caught.value.errno == errno.EEXIST
        assert "address 10.0.0.1/16 to dp0" in str(caught.value)
        assert set(links.observe().names.values()) == {"lo"}

    def test_taken_name_is_told_and_left_alone(self, links: Links) -> None:
        links.create_gateway("dp0", "dpx1", GATEWAY_MAC, [], 1500, ipv6=False)
        with pytest.raises(KernelError, match="create device dp0: File exists"):
            links.create_gateway("dp0", "dpx2", GATEWAY_MAC, [], 1500, ipv6=False)
        assert links.index("dp0") and links.index("dpx2") is None


class TestEndpoint:
    def test_container_end_has_all_it_was_given(self, links: Links, container: int) -> None:
        attach(links, container)
        shown = ip_in(container, "-o", "link", "show", "eth0")
        assert "LOWER_UP" in shown and "mtu 1400" in shown and MAC in shown
        assert "inet 10.0.0.2/24 brd 10.0.0.255" in ip_in(container, "-o", "address", "show", "eth0")
        assert "inet6" not in ip_in(container, "-o", "address", "show", "eth0")
        assert "UP" in ip_in(container, "-o", "link", "show", "lo")
        assert "default via 10.0.0.1 dev eth0" in ip_in(container, "route")

    def test_indexes_are_those_of_either_side(self, links: Links, container: int) -> None:
        host_index, container_index = links.create_endpoint("veth1", "eth0", container, MAC, 1500)
        assert ip("-o", "link", "show", "veth1").startswith(f"{host_index}: ")
        assert ip_in(container, "-o", "link", "show", "eth0").startswith(f"{container_index}: ")

    def test_host_end_can_be_prepared_while_it_is_down(self, links: Links, container: int) -> None:
        seen = []
        index, _ = links.create_endpoint(
            *("veth1", "eth0", container, MAC, 1500),
            prepare=lambda index: seen.append((index, "UP" in ip("-o", "link", "show", "veth1"))),
        )
        assert seen == [(index, False)]
        assert "UP" in ip("-o", "link", "show", "veth1")

    def test_a_pair_that_cannot_be_prepared_goes_again(self, links: Links, container: int) -> None:
        def refuse(index: int) -> None:
            raise KernelError("attach", f"device {index}", errno.ENOSPC)

        with pytest.raises(KernelError, match="attach device"):
            links.create_endpoint("veth1", "eth0", container, MAC, 1500, prepare=refuse)
        assert links.index("veth1") is None

    def test_host_end_is_up_and_says_nothing(self, links: Links, container: int) -> None:
        attach(links, container, ipv6=True)
        assert "UP" in ip("-o", "link", "show", "veth1")
        assert ip("-o", "address", "show", "veth1") == ""

    def test_ipv6(self, links: Links, container: int) -> None:
        attach(links, container, ipv6=True)
        assert "tentative" not in ip_in(container, "-6", "-o", "address", "show", "eth0", "to", "fd00::2")
        with eventually() as until:  # of the link-local address: the kernel's worker has to come by
            until(
                lambda: usable(
                    "fe80::42:acff:fe11:2", ip_in(container, "-6", "-o", "address", "show", "eth0")
                )
            )
        shown = ip_in(container, "-6", "-o", "address", "show", "eth0")
        assert "fd00::2/64" in shown and "fe80::42:acff:fe11:2/64" in shown
        assert "default via fd00::1 dev eth0" in ip_in(container, "-6", "route")
        with netns.enter(container):
            assert sysctl.read("net/ipv6/conf/eth0/accept_ra") == "0"

    def test_namespace_by_path(self, links: Links, container: int) -> None:
        path = f"/proc/{os.getpid()}/fd/{container}"
        links.create_endpoint("veth1", "eth0", path, MAC, 1500)
        links.configure(path, "eth0", [ip_interface("10.0.0.2/24")], ipv6=False)
        assert "10.0.0.2/24" in ip_in(container, "-o", "address", "show", "eth0")
        assert "default" not in ip_in(container, "route")

    def test_without_namespace_the_device_stays_for_others_to_move(
        self, links: Links, container: int
    ) -> None:
        links.create_endpoint("veth1", "tmp0", None, MAC, 1500)
        ip("link", "set", "tmp0", "netns", f"/proc/{os.getpid()}/fd/{container}", "name", "eth0")
        links.configure(container, "eth0", [ip_interface("10.0.0.2/24")], ipv6=False)
        assert MAC in ip_in(container, "-o", "link", "show", "eth0")

    def test_failure_leaves_nothing(self, links: Links, container: int) -> None:
        links.create_endpoint("veth1", "eth0", container, MAC, 1500)
        with pytest.raises(KernelError) as caught:
            links.create_endpoint("veth2", "eth0", container, MAC, 1500)
        assert caught.value.errno == errno.EEXIST
        assert links.index("veth2") is None

    def test_missing_namespace_is_told(self, links: Links) -> None:
        with pytest.raises(KernelError, match="open network namespace /nowhere: No such file"):
            links.create_endpoint("veth1", "eth0", "/nowhere", MAC, 1500)

    def test_default_route_moves_and_goes(self, links: Links, container: int) -> None:
        attach(links, container, ipv6=True)
        links.create_endpoint("veth2", "eth1", container, "02:42:0a:01:00:02", 1500)
        links.configure(
            container, "eth1", [ip_interface("10.1.0.2/24"), ip_interface("fd01::2/64")], ipv6=True
        )
        links.set_gateway(container, "eth1", IPv4Address("10.1.0.1"))
        links.set_gateway(container, "eth1", IPv6Address("fd01::1"))
        for family in ("-4", "-6"):
            defaults = [r for r in ip_in(container, family, "route").splitlines() if r.startswith("default")]
            assert len(defaults) == 1 and "dev eth1" in defaults[0]
        links.remove_gateway(container, "eth0", 4)  # has none any more
        assert "default" in ip_in(container, "route")
        for _ in range(2):
            links.remove_gateway(container, "eth1", 4)
            links.remove_gateway(container, "eth1", 6)
        assert "default" not in ip_in(container, "route") + ip_in(container, "-6", "route")

    def test_loopback_only(self, links: Links, container: int) -> None:
        links.loopback_up(container)
        assert "UP" in ip_in(container, "-o", "link", "show", "lo")

    def test_a_deleted_devices_names_are_free_at_once(self, links: Links, container: int) -> None:
        for _ in range(5):
            attach(links, container)
            links.delete("veth1", "dp0")
            assert set(links.observe().names.values()) == {"lo"}
            assert ip_in(container, "-brief", "link").split()[0::5] == ["lo"]
            assert ip_in(container, "route") == ""

    def test_a_device_that_cannot_be_deleted_is_told(self, links: Links) -> None:
        with pytest.raises(KernelError, match="delete device lo: Operation not supported"):
            links.delete("lo")

    def test_a_deletion_outlives_whoever_asked_for_it(self, links: Links, container: int) -> None:
        """The kernel has not answered yet when the call returns."""
        attach(links, container)
        child = os.fork()
        if child == 0:
            with Links() as own:
                own.delete("veth1")
                os.kill(os.getpid(), signal.SIGKILL)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
        assert links.index("veth1") is None
        attach_again = links.create_endpoint("veth1", "eth0", container, MAC, 1400)
        assert all(attach_again)

    def test_delete_is_idempotent(self, links: Links, container: int) -> None:
        index, _ = links.create_endpoint("veth1", "eth0", container, MAC, 1500)
        links.create_endpoint("veth2", "eth1", container, MAC, 1500)
        links.delete("veth2", index, "never", 4711)
        links.delete("veth2", index)
        assert set(links.observe().names.values()) == {"lo"}
        assert "eth" not in ip_in(container, "-o", "link")


class TestFacts:
    def test_empty_host(self, links: Links) -> None:
        facts = links.observe()
        assert (facts.addresses, facts.routes, facts.default_mtu, facts.uplinks) == ((), (), 1500, ())
        assert {rule.version for rule in facts.rules} == {4, 6}

    def test_everything(self, links: Links, container: int) -> None:
        attach(links, container, ipv6=True)
        ip("link", "add", "up0", "mtu", "1280", "type", "veth", "peer", "name", "up1")
        ip("link", "add", "off0", "type", "veth", "peer", "name", "off1")
        for device, address in (
            ("lo", "127.0.0.1/8"),
            ("lo", "198.51.100.1/32"),
            ("up0", "192.0.2.1/24"),
            ("up0", "192.0.2.7/24"),
            ("off0", "203.0.113.1/24"),
        ):
            ip("address", "add", address, "dev", device)
        ip("address", "add", "2001:db8::1/64", "dev", "up0", "nodad")
        for device in ("lo", "up0", "up1"):
            ip("link", "set", device, "up")
        ip("route", "add", "default", "via", "192.0.2.254", "metric", "50")
        ip("route", "add", "default", "dev", "dp0", "metric", "100")
        ip("route", "add", "10.99.0.0/16", "via", "192.0.2.254", "table", "42")
        ip("-6", "route", "add", "2001:db8:1::/48", "via", "2001:db8::2")
        before = links.observe()
        ip("rule", "add", "tos", "0x10", "lookup", "42")
        facts = links.observe(["dp0"])
        held = {one.interface for one in facts.addresses}
        assert {ip_interface("198.51.100.1/32"), ip_interface("2001:db8::1/64")} <= held
        for prefix in ("192.0.2.0/24", "10.0.0.0/24", "10.99.0.0/16", "2001:db8:1::/48", "fd00::/64"):
            assert ip_network(prefix) in facts.prefixes
        assert not any(prefix.prefixlen == 0 or prefix.is_multicast for prefix in facts.prefixes)
        assert facts.default_mtu == 1280
        assert {"lo", "dp0", "dpx1", "veth1", "up0"} <= set(facts.names.values())
        assert {one.name for one in facts.devices.values()}.isdisjoint({"veth1", "dpx1", "off1"})
        assert links.observe(["dp0"], every=True).uplinks == facts.uplinks
        assert len(facts.rules) == len(before.rules) + 1
        [uplink] = facts.uplinks
        assert (uplink.name, uplink.ifindex, uplink.mtu) == ("up0", links.index("up0"), 1280)
        assert (uplink.ipv4, uplink.ipv6) == (IPv4Address("192.0.2.1"), IPv6Address("2001:db8::1"))

    def test_ipsec_policies(self, links: Links) -> None:
        assert not links.observe().xfrm
        ip("xfrm", "policy", "add", "dst", "10.1.0.0/16", "dir", "out", "action", "block", "priority", "7")
        ip("xfrm", "policy", "add", "src", "fd00::/64", "proto", "udp", "dport", "53", "dir", "in")
        template = ("tmpl", "src", "192.0.2.1", "dst", "192.0.2.2", "proto", "esp", "mode", "tunnel")
        ip("xfrm", "policy", "add", "dst", "10.2.0.0/16", "dir", "fwd", "mark", "1", *template)
        ip("xfrm", "policy", "setdefault", "in", "block")
        found = {policy.direction: policy for policy in links.observe().xfrm.all}
        assert {way: policy.action for way, policy in found.items()} == {
            "out": "block",
            "in": "allow",
            "fwd": "protect",
        }
        assert (found["out"].destination, found["out"].priority) == (ip_network("10.1.0.0/16"), 7)
        assert (found["out"].source, found["out"].narrowed) == (ip_network("0.0.0.0/0"), False)
        assert (found["in"].source, found["in"].proto) == (ip_network("fd00::/64"), 17)
        assert (found["in"].dport, found["in"].sport) == ((53, 0xFFFF), (0, 0))
        assert found["fwd"].narrowed
        assert links.observe().xfrm.blocked == {"in"}

    def test_ipsec_policies_come_in_the_order_in_which_they_count(self, links: Links) -> None:
        """By priority; of one priority the oldest first, also if it was changed since."""
        for number, priority in ((1, 5), (2, 5), (3, 9), (4, 1)):
            ip("xfrm", "policy", "add", "dst", f"10.{number}.0.0/16", "dir", "out", "priority", str(priority))
        ip("xfrm", "policy", "update", "dst", "10.1.0.0/16", "dir", "out", "priority", "5", "action", "block")
        found = [str(policy.destination) for policy in links.observe().xfrm.all]
        assert found == ["10.4.0.0/16", "10.1.0.0/16", "10.2.0.0/16", "10.3.0.0/16"]

    def test_uplinks_are_those_that_routes_lead_out_by(self, links: Links, container: int) -> None:
        """With or without an address of their own; whatever has a link-local address only is none."""
        for name in ("up0", "two0", "three0", "four0", "fifth0"):
            ip("link", "add", name, "type", "veth", "peer", "name", f"{name}x")
            ip("link", "set", f"{name}x", "up")
            ip("link", "set", name, "up")
        ip("tuntap", "add", "tun0", "mode", "tun")
        ip("link", "set", "tun0", "up")
        ip("link", "set", "lo", "up")
        ip("address", "add", "198.51.100.1/32", "dev", "lo")
        ip("address", "add", "192.0.2.1/24", "dev", "up0")
        ip("address", "add", "2001:db8::1/64", "dev", "up0", "nodad")
        ip("route", "add", "10.1.0.0/16", "dev", "tun0", "src", "198.51.100.1")
        ip("-6", "route", "add", "2001:db8:1::/48", "dev", "tun0")
        ip("route", "add", "10.2.0.0/16", "dev", "two0", "table", "42")
        ip("route", "add", "10.3.0.0/16", "nexthop", "dev", "three0", "nexthop", "dev", "four0")
        found = {uplink.name: uplink for uplink in links.observe().uplinks}
        assert set(found) == {"up0", "tun0", "two0", "three0", "four0"}
        assert [name for name, uplink in found.items() if uplink.bare] == ["tun0"]
        assert not any(uplink.unserved for uplink in found.values())
        host4, host6 = IPv4Address("192.0.2.1"), IPv6Address("2001:db8::1")
        assert (found["up0"].ipv4, found["up0"].ipv6) == (host4, host6)
        assert (found["tun0"].ipv4, found["tun0"].ipv6) == (IPv4Address("198.51.100.1"), host6)
        # What the kernel takes for them: the first address of the host that is not its loopback device's own.
        asked = ip("route", "get", "10.3.0.1").split()
        assert str(found["three0"].ipv4) == asked[asked.index("src") + 1]
        assert found["three0"].ipv6 is None

    def test_from_another_namespace(self, host: int, container: int) -> None:
        ip_in(container, "link", "add", "dp9", "type", "veth", "peer", "name", "dp8")
        with Links(container) as inside:
            assert set(inside.observe().names.values()) == {"lo", "dp8", "dp9"}
            assert inside.index("dp9") is not None
        with Links() as outside:
            assert outside.index("dp9") is None


class TestNamespaces:
    def test_settings_follow_the_thread_that_entered(self, host: int, container: int) -> None:
        """/proc/sys/net is the thread's; /proc/net is the main thread's."""
        ip_in(container, "link", "add", "inside", "type", "veth", "peer", "name", "inside1")
        seen: list[object] = []

        def other() -> None:
            with netns.enter(container):
                seen.append(sysctl.read("net/ipv4/conf/inside/forwarding"))
                with open("/proc/thread-self/net/dev") as file:
                    seen.append("inside" in file.read())
                with open("/proc/net/dev") as file:
                    seen.append("inside" in file.read())

        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
        assert seen == ["0", True, False]
        assert not os.path.exists("/proc/sys/net/ipv4/conf/inside")

    def test_identity_and_cookie(self, host: int, container: int) -> None:
        assert netns.identity() == netns.identity(host) != netns.identity(container)
        assert netns.cookie() == netns.cookie(host) != netns.cookie(container)
        assert netns.cookie(f"/proc/{os.getpid()}/fd/{container}") == netns.cookie(container)
        assert not netns.is_initial()

    def test_comes_back_after_an_error(self, host: int, container: int) -> None:
        with pytest.raises(RuntimeError), netns.enter(container):
            raise RuntimeError
        assert netns.identity() == netns.identity(host)

    def test_not_a_namespace(self) -> None:
        with pytest.raises(KernelError, match="enter network namespace /dev/null"), netns.enter("/dev/null"):
            pass


def test_every_operation_is_logged_with_its_duration(
    links: Links, container: int, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "datapath")
    links.create_endpoint("veth1", "eth0", container, MAC, 1500)
    links.configure(container, "eth0", [ip_interface("10.0.0.2/24")], ipv6=False)
    said = [record.getMessage() for record in caplog.records]
    assert all(re.search(r": \d+\.\d{3} ms$", line) for line in said)
    assert [line.rpartition(": ")[0] for line in said] == [
        "create devices veth1 and eth0",
        "write sysctl net/ipv6/conf/veth1/disable_ipv6 (1)",
        "set up device veth1",
        "write sysctl net/ipv6/conf/eth0/disable_ipv6 (1)",
        "set up device lo, add address 10.0.0.2/24 to eth0, set up device eth0",
    ]
