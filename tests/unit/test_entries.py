# SPDX-License-Identifier: Apache-2.0
"""What the maps of the packet programs are to contain, and Docker's JSON of the same things."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from ipaddress import ip_address, ip_interface, ip_network
from typing import Any, get_args

import pytest

from datapath.dataplane import convert, entries, host_entries, layout, service_structs, structs, wire_names
from datapath.dataplane.entries import EVERY4
from datapath.dataplane.structs import (
    EndpointKey,
    EndpointValue,
    MemberKey,
    PortKey,
    PortValue,
    ReservedKey,
    RouterKey,
)
from datapath.kernel import abi
from datapath.model.endpoints import Endpoint, EndpointRequest
from datapath.model.host import Device, DeviceAddress, HostNetwork, XfrmPolicies, XfrmPolicy
from datapath.model.parsing import Prefix
from datapath.plan.inspect import container_inspect, network_inspect
from datapath.plan.ports import plan_port_remove
from tests.unit.planned_host import NOW, PlannedHost


@pytest.mark.parametrize(
    ("fields", "flags"),
    [
        ({}, {"ACTIVE", "IPV4", "ICC", "MASQUERADE"}),
        ({"ipv6": True}, {"ACTIVE", "IPV4", "IPV6", "ICC", "MASQUERADE"}),
        ({"internal": True}, {"ACTIVE", "IPV4", "ICC", "MASQUERADE", "INTERNAL"}),
        ({"options": ("com.docker.network.bridge.enable_icc=false",)}, {"ACTIVE", "IPV4", "MASQUERADE"}),
        ({"options": ("com.docker.network.bridge.enable_ip_masquerade=false",)}, {"ACTIVE", "IPV4", "ICC"}),
    ],
)
def test_a_networks_row_says_what_its_members_may(fields: dict[str, Any], flags: set[str]) -> None:
    network = PlannedHost().network("net", **fields)
    number, value = entries.network_entry(network, (), 9, 1500)
    assert number == network.number
    assert value.flags == {f"NETWORK_{flag}" for flag in flags}


def test_a_networks_row_has_its_gateway_and_as_many_slots_as_its_highest_member() -> None:
    host = PlannedHost()
    host.network("net", subnets=("10.0.0.0/24",))
    for name in ("a", "b", "c"):
        host.run(name, "net")
    host.end("b")
    network = host.state.network("net")
    _, value = entries.network_entry(network, host.state.endpoints_of_network(network.id), 9, 1400)
    assert (value.ifindex, value.mtu, value.slots, value.mac) == (9, 1400, 3, "02:42:0a:00:00:01")
    assert (str(value.broadcast), str(value.gateway4), value.gateway6) == ("10.0.0.255", "10.0.0.1", None)


def endpoint(host: PlannedHost, name: str) -> Endpoint:
    (found,) = host.state.endpoints_of_sandbox(host.state.container(name).id)
    return replace(found, host_ifindex=42)


def test_an_endpoint_is_a_device_a_member_and_every_one_of_its_addresses() -> None:
    host = PlannedHost()
    network = host.network("net", subnets=("10.0.0.0/24", "fd00::/64"), ipv6=True)
    host.run("web", "net")
    web = endpoint(host, "web")
    found = entries.endpoint_entries(network, web)
    key, value = found.device
    assert (key.ifindex, value.kind, value.mac) == (42, "DEVICE_ENDPOINT", "02:42:0a:00:00:02")
    assert found.member == (MemberKey(network.number, 0), (42, web.number))
    addresses = ("10.0.0.2", "fd00::2", "fe80::42:aff:fe00:2")
    assert list(found.endpoints) == [EndpointKey(network.number, ip_address(text)) for text in addresses]
    assert set(found.endpoints.values()) == {EndpointValue(42, web.number, web.mac)}
    assert not found.routers


def test_an_endpoint_that_forwards_is_a_router_by_its_mac_and_by_its_number() -> None:
    host = PlannedHost()
    network = host.network("net")
    host.run("vpn", EndpointRequest("net", driver_options=("com.datapath.forwarding=1",)))
    vpn = endpoint(host, "vpn")
    found = entries.endpoint_entries(network, vpn)
    row = EndpointValue(42, vpn.number, vpn.mac, forwarding=1)
    assert found.device[1].forwarding == 1
    assert set(found.endpoints.values()) == {row}
    assert found.routers == {
        RouterKey(network.number, 0, vpn.mac): row,
        RouterKey(network.number, vpn.number, structs.NO_MAC): row,
    }


def test_without_ipv6_an_endpoint_has_no_link_local_address() -> None:
    host = PlannedHost()
    network = host.network("net")
    host.run("web", "net")
    found = entries.endpoint_entries(network, endpoint(host, "web"))
    assert found.device[1].linklocal is None
    assert len(found.endpoints) == 1


@pytest.mark.parametrize(
    ("publish", "key", "port"),
    [
        ("8081:80", PortKey(EVERY4, 8081, 6), 80),
        ("0.0.0.0:8081:80", PortKey(EVERY4, 8081, 6), 80),
        ("127.0.0.1:8081:80/udp", PortKey(ip_address("127.0.0.1"), 8081, 17), 80),
    ],
)
def test_a_published_port_leads_to_the_containers_address(publish: str, key: PortKey, port: int) -> None:
    host = PlannedHost()
    network = host.network("net", subnets=("10.0.0.0/24",))
    host.run("web", "net", publish=(publish,))
    web = endpoint(host, "web")
    target = PortValue(network.number, web.number, 0, ip_address("10.0.0.2"), port, 0, 0)
    assert entries.port_entries(network, web) == {key: target}


def test_reserved_numbers_count_the_ports_that_use_them() -> None:
    host = PlannedHost()
    host.run("web", publish=("127.0.0.1:80:80", "192.0.2.10:80:80", "90-91:90-91/udp"))
    assert entries.reserved_entries(host.state) == {
        ReservedKey(80, 6): 2,
        ReservedKey(90, 17): 1,
        ReservedKey(91, 17): 1,
    }
    gone = plan_port_remove("web", "3", host.state)
    state = host.state.including(*gone.endpoints)
    assert entries.reserved_entries(state, gone.mappings) == {ReservedKey(90, 17): 0, ReservedKey(91, 17): 0}


def test_reserved_numbers_of_ranges_that_overlap_are_counted_one_by_one() -> None:
    host = PlannedHost()
    specs = ("127.0.0.1:100-109:100-109", "127.0.0.2:105-120:105-120", "127.0.0.3:107:1", "108:108/udp")
    host.run("web", publish=specs)
    ranges = ((100, 109), (105, 120), (107, 107))
    tcp = {port: sum(first <= port <= last for first, last in ranges) for port in range(100, 121)}
    rows = entries.reserved_entries(host.state)
    assert rows == {ReservedKey(108, 17): 1} | {ReservedKey(port, 6): count for port, count in tcp.items()}
    gone = plan_port_remove("web", "2", host.state)
    left = entries.reserved_entries(host.state.including(*gone.endpoints), gone.mappings)
    assert left == {ReservedKey(port, 6): tcp[port] - 1 for port in range(105, 121)}


def test_a_range_is_one_run_whose_ports_go_up_together() -> None:
    host = PlannedHost()
    host.run("web", publish=("8000-8999:80-1079",))
    rows = entries.port_entries(host.state.network("bridge"), endpoint(host, "web"))
    assert len(rows.ranges) == 1 and len(rows) == 1000
    assert rows[PortKey(EVERY4, 8999, 6)].port == 1079


# ---- Docker's JSON ------------------------------------------------------------------------------------


def test_network_inspect_is_dockers() -> None:
    host = PlannedHost()
    network = host.network(
        "net",
        subnets=("10.0.0.0/24",),
        ip_ranges=("10.0.0.128/25",),
        gateways=("10.0.0.1",),
        aux_addresses=("printer=10.0.0.7",),
        labels=("a=b",),
    )
    web = host.run("web", "net")
    (member,) = host.state.endpoints.values()
    assert network_inspect(network, host.state) == {
        "Name": "net",
        "Id": network.id,
        "Created": NOW,
        "Scope": "local",
        "Driver": "bridge",
        "EnableIPv4": True,
        "EnableIPv6": False,
        "IPAM": {
            "Driver": "default",
            "Options": {},
            "Config": [
                {
                    "Subnet": "10.0.0.0/24",
                    "IPRange": "10.0.0.128/25",
                    "Gateway": "10.0.0.1",
                    "AuxiliaryAddresses": {"printer": "10.0.0.7"},
                }
            ],
        },
        "Internal": False,
        "Attachable": False,
        "Ingress": False,
        "ConfigFrom": {"Network": ""},
        "ConfigOnly": False,
        "Containers": {
            web.id: {
                "Name": "web",
                "EndpointID": member.id,
                "MacAddress": "02:42:0a:00:00:80",
                "IPv4Address": "10.0.0.128/24",
                "IPv6Address": "",
            }
        },
        "Options": {},
        "Labels": {"a": "b"},
    }


@pytest.mark.parametrize("mode", ["host", "none"])
def test_the_networks_without_endpoints_list_their_containers_too(mode: str) -> None:
    host = PlannedHost()
    web = host.run("web", mode)
    members = network_inspect(host.state.network(mode), host.state)["Containers"]
    assert members[web.id]["Name"] == "web"


def at(found: Any, path: str) -> Any:
    for part in path.split("."):
        found = found[int(part)] if isinstance(found, list) else found[part]
    return found


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("Name", "/web"),
        ("Path", "sleep"),
        ("Args", ["9"]),
        ("State.Status", "running"),
        ("State.Running", True),
        ("State.ExitCode", 0),
        ("State.StartedAt", "0001-01-01T00:00:00Z"),
        ("HostConfig.NetworkMode", "net"),
        ("HostConfig.PortBindings.80/tcp", [{"HostIp": "", "HostPort": "8081"}]),
        ("HostConfig.PortBindings.81/tcp", [{"HostIp": "127.0.0.1", "HostPort": ""}]),
        ("HostConfig.ExtraHosts", ["h:1.2.3.4"]),
        ("Config.Env", ["A=1"]),
        ("Config.ExposedPorts", {"80/tcp": {}, "81/tcp": {}, "99/tcp": {}}),
        ("Config.Hostname", "www"),
        ("NetworkSettings.Ports.80/tcp", [{"HostIp": "0.0.0.0", "HostPort": "8081"}]),
        ("NetworkSettings.Ports.81/tcp", [{"HostIp": "127.0.0.1", "HostPort": "40000"}]),
        ("NetworkSettings.Ports.99/tcp", None),
        ("NetworkSettings.IPAddress", ""),
        ("NetworkSettings.Networks.net.IPAddress", "10.0.0.9"),
        ("NetworkSettings.Networks.net.IPPrefixLen", 24),
        ("NetworkSettings.Networks.net.Gateway", "10.0.0.1"),
        ("NetworkSettings.Networks.net.MacAddress", "02:42:0a:00:00:09"),
        ("NetworkSettings.Networks.net.IPAMConfig", {"IPv4Address": "10.0.0.9"}),
        ("NetworkSettings.Networks.net.Aliases", ["db"]),
        ("NetworkSettings.Networks.net.DNSNames.0", "web"),
        ("NetworkSettings.Networks.net.GlobalIPv6Address", ""),
    ],
)
def test_inspect_has_dockers_paths(path: str, value: Any) -> None:
    host = PlannedHost()
    host.network("net", subnets=("10.0.0.0/24",))
    web = host.run(
        "web",
        EndpointRequest("net", ip="10.0.0.9", aliases=("db",)),
        argv=("sleep", "9"),
        publish=("8081:80", "127.0.0.1::81"),
        expose=("99",),
        env=("A=1",),
        hostname="www",
        add_host=("h:1.2.3.4",),
    )
    assert at(container_inspect(web, host.state), path) == value


def test_on_the_default_network_the_address_is_also_where_old_scripts_look_for_it() -> None:
    host = PlannedHost()
    settings = container_inspect(host.run("web"), host.state)["NetworkSettings"]
    assert (settings["IPAddress"], settings["Gateway"], settings["IPPrefixLen"]) == (
        "172.17.0.2",
        "172.17.0.1",
        16,
    )


def test_a_container_that_has_ended_keeps_its_networks_but_no_address() -> None:
    host = PlannedHost()
    host.network("net")
    host.run("web", "net", publish=("8081:80",))
    host.end("web")
    found = container_inspect(host.state.container("web"), host.state)
    assert found["State"]["Status"] == "exited"
    assert found["NetworkSettings"]["Ports"] == {}
    assert found["NetworkSettings"]["Networks"]["net"]["IPAddress"] == ""


@pytest.mark.parametrize("kind", structs.STRUCTS, ids=lambda kind: str(kind.__name__))
def test_rows_have_the_fields_of_their_structs(kind: type[Any]) -> None:
    """In the same order: rows are packed as they are, ten thousand at a time."""
    assert kind._fields == abi.layout(structs.STRUCTS[kind]).type._fields


def test_every_kind_of_row_has_its_struct() -> None:
    found = {
        name
        for module in (structs, service_structs)
        for name, kind in vars(module).items()
        if name.endswith(("Key", "Value")) and kind is not Any
    }
    assert found == {kind.__name__ for kind in structs.STRUCTS}


def test_enumerators_are_those_of_the_abi() -> None:
    assert set(get_args(layout.NetworkFlag)) == {flag.name for flag in abi.NetworkFlag}
    assert set(get_args(layout.DeviceKind)) == {kind.name for kind in abi.DeviceKind}
    assert set(get_args(layout.HostFlag)) == {flag.name for flag in abi.HostFlag}
    assert set(get_args(layout.XfrmDirection)) == {direction.name for direction in abi.XfrmDirection}


def test_values_become_those_of_the_abi_and_back() -> None:
    network = PlannedHost().network("shop", ipv6=True)
    _, value = entries.network_entry(network, (), 9, 1500)
    packed = convert.to_abi(value)
    assert packed.flags == abi.NetworkFlag.NETWORK_ACTIVE | 2 | 4 | 8 | 32
    assert packed[1:] == value[1:]
    assert convert.network_value(packed) == value
    _, device = entries.gateway_device(network, 9)
    assert convert.to_abi(device).kind == abi.DeviceKind.DEVICE_GATEWAY
    assert convert.device_value(convert.to_abi(device)) == device
    assert str(convert.device_value(abi.device(kind=77)).kind) == "77"


def survives(row: Any, back: Callable[[Any], Any]) -> bool:
    """A row of names comes back from memory as it was written."""
    layout_of = abi.layout(structs.STRUCTS[type(row)])
    return bool(back(layout_of.unpack(layout_of.pack(convert.to_abi(row)))) == row)


def test_rows_of_names_come_back_from_memory_as_they_were_written() -> None:
    """S17. Names end with their zero byte, addresses where they end, records where the set says."""
    four, six = structs.RrsetValue(1, 1, 16), structs.RrsetValue(28, 9, 28)
    assert survives(structs.NameKey(7, b"\3web\0"), convert.name_key)
    assert survives(wire_names.endpoint_key(7, 1 << 24), convert.name_key)
    assert survives(wire_names.endpoint_key(7, 1), convert.name_key)
    assert survives(wire_names.address_key(7, ip_address("fd00::")), convert.name_key)
    assert survives(wire_names.address_key(7, ip_address("10.0.0.0")), convert.name_key)
    assert survives(structs.LongNameKey(0x80000001, b"\x3f" + b"x" * 63 + b"\0"), convert.long_name_key)
    assert survives(structs.NameValue((0,), (four,), b"r" * 15 + b"\0"), convert.name_value)
    assert survives(
        structs.NameValue((0, 0x1234), (four._replace(count=2, size=10), six), b"r" * 39 + b"\0"),
        convert.name_value,
    )
    assert survives(structs.NameValue((0x1234,), (six,), b""), convert.name_value)
    assert survives(structs.NameSetValue(2, 28, b"s" * 111 + b"\0"), convert.name_set_value)
    upstreams = (
        structs.UpstreamValue(ip_address("127.0.0.53")),
        structs.UpstreamValue(ip_address("fe80::1"), 0, 3),
    )
    assert survives(structs.ResolverValue((5, 3), 0x80000007, 5, upstreams), convert.resolver_value)
    assert survives(structs.ResolverValue((), 0, 0, ()), convert.resolver_value)
    with pytest.raises(ValueError, match="3 of sets do not fit into struct name"):
        convert.to_abi(structs.NameValue((0,) * 2, (four,) * 3, b""))


def xfrm(direction: str, source: Prefix | None, destination: Prefix | None, **how: Any) -> XfrmPolicy:
    usual = {"proto": 0, "sport": (0, 0), "dport": (0, 0), "ifindex": 0, "priority": 0, "action": "protect"}
    return XfrmPolicy(direction, source, destination, **{**usual, "narrowed": False, **how})


def with_policies(*policies: XfrmPolicy, blocked: frozenset[str] = frozenset()) -> HostNetwork:
    return HostNetwork(ephemeral=(32768, 60999), xfrm=XfrmPolicies(policies, blocked))


def test_the_row_of_a_destination_has_the_policies_of_wider_ones_in_the_kernels_order() -> None:
    net, peer = ip_network("10.0.0.0/8"), ip_network("10.1.0.5/32")
    network = with_policies(
        xfrm("out", net, net, action="allow"),
        xfrm("out", ip_network("192.0.2.1/32"), peer, proto=17, dport=(1701, 0xFFFF)),
        xfrm("out", None, None, action="block"),
        xfrm("in", peer, net, narrowed=True),
        xfrm("socket", peer, net),
    )
    rows = host_entries.xfrm_entries(network.xfrm)
    ten, every = ip_address("10.0.0.0"), ip_address("0.0.0.0")
    mask8 = ip_address("ffff:ffff:ffff:ffff:ffff:ffff:ff00:0")
    mask32 = ip_address("ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff")
    allow = structs.XfrmSelectorValue(ten, mask8, 0, 0, 0, 0, 0, 0, 0)  # type: ignore[arg-type]
    port = structs.XfrmSelectorValue(ip_address("192.0.2.1"), mask32, 0, 0, 1701, 0xFFFF, 17, 0xFF, 1)  # type: ignore[arg-type]
    block = structs.XfrmSelectorValue(None, None, 0, 0, 0, 0, 0, 0, 1)
    assert rows == {
        structs.XfrmKey(32 + 96 + 8, "XFRM_OUT", 2, ten): structs.XfrmPolicyValue(2, 0, (allow, block)),
        structs.XfrmKey(32 + 128, "XFRM_OUT", 2, ip_address("10.1.0.5")): structs.XfrmPolicyValue(
            3, 0, (allow, port, block)
        ),
        structs.XfrmKey(32 + 96, "XFRM_OUT", 2, every): structs.XfrmPolicyValue(1, 0, (block,)),
        structs.XfrmKey(32, "XFRM_OUT", 10, None): structs.XfrmPolicyValue(1, 0, (block,)),
    }
    assert host_entries.host_entry(network)[1].flags == {"HOST_XFRM_OUT", "HOST_STEERED"}
    for key, value in rows.items():
        packed = abi.layout("xfrm_policy").pack(convert.to_abi(value))
        assert convert.xfrm_policy_value(abi.layout("xfrm_policy").unpack(packed)) == value
        assert convert.xfrm_key(convert.to_abi(key)) == key


def test_that_the_packet_filter_masquerades_too_is_said() -> None:
    assert host_entries.host_entry(HostNetwork(other_nat=True))[1].flags == {"HOST_OTHER_NAT"}


def test_a_direction_that_is_blocked_is_closed_where_no_policy_is() -> None:
    every6 = ip_network("::/0")
    network = with_policies(xfrm("in", every6, every6, action="allow"), blocked=frozenset({"in"}))
    rows = host_entries.xfrm_entries(network.xfrm)
    selector = structs.XfrmSelectorValue(None, None, 0, 0, 0, 0, 0, 0, 0)
    assert rows == {
        structs.XfrmKey(32 + 96, "XFRM_IN", 2, ip_address("0.0.0.0")): structs.XfrmPolicyValue(0, 1, ()),
        structs.XfrmKey(32, "XFRM_IN", 10, None): structs.XfrmPolicyValue(1, 1, (selector,)),
    }
    assert host_entries.host_entry(network)[1].flags == {"HOST_XFRM_IN", "HOST_STEERED"}
    assert host_entries.host_entry(with_policies())[1].flags == frozenset()


def test_of_more_policies_than_a_row_takes_the_rest_is_closed() -> None:
    peer = ip_network("10.1.0.5/32")
    many = [xfrm("fwd", peer, peer, proto=6, sport=(port, 0xFFFF), action="allow") for port in range(9)]
    (row,) = host_entries.xfrm_entries(XfrmPolicies(tuple(many))).values()
    assert (row.used, row.closed, len(row.selectors)) == (8, 1, 8)


def test_link_local_addresses_have_the_device_that_they_are_of() -> None:
    """IPv6's of uplinks alone; two devices may have the same, and IPv4's are like any."""
    devices = {i: Device(i, f"eth{i}", "", "02:00:00:00:00:01", 1500, True) for i in (2, 3, 4)}
    found = (
        ("192.0.2.1/24", "169.254.1.1/16", "fe80::1/64"),
        ("2001:db8::1/64", "fe80::1/64"),
        ("fe80::4/64",),
    )
    network = HostNetwork(
        devices=devices,
        addresses=tuple(
            DeviceAddress(i, 253 if "fe80" in text else 0, 0, ip_interface(text))
            for i, texts in zip(devices, found, strict=True)
            for text in texts
        ),
    )
    shared = ip_address("fe80::1")
    assert host_entries.linklocal_entries(network) == {(shared, 2), (shared, 3)}
