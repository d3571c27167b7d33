# SPDX-License-Identifier: Apache-2.0
"""The four modes, the options of `run`, published ports, links, and the end of a container."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import pytest

from datapath.config.daemon import DaemonConfig
from datapath.dataplane import entries
from datapath.errors import ConfigError, DatapathError, ExistsError, InUseError, NotFoundError
from datapath.model.containers import Container
from datapath.model.endpoints import EndpointRequest
from datapath.model.ports import PortMapping
from datapath.plan.containers import plan_exited, plan_remove
from datapath.plan.networks import plan_network_remove
from datapath.plan.ports import plan_port_add, plan_port_remove
from datapath.plan.run_options import generated_name
from tests.unit.planned_host import NOW, PlannedHost, addresses
from tests.unit.test_plan import BAD_NAMES

LINKS = "can't be used with links. This would result in undefined behavior"


# ---- the modes -------------------------------------------------------------------------------------


def test_bridge_mode_gives_eth0_the_next_address_its_mac_and_the_default_route() -> None:
    made = PlannedHost().plan_run("web")
    (endpoint,) = made.endpoints
    assert (endpoint.ifname, str(endpoint.ipv4), endpoint.mac) == (
        "eth0",
        "172.17.0.2/16",
        "02:42:ac:11:00:02",
    )
    assert endpoint.gateway4
    assert re.fullmatch("veth[0-9a-f]{7}", endpoint.host_ifname)
    assert made.sandbox is not None
    assert (made.container.network_mode, made.container.sandbox_id) == ("bridge", made.sandbox.id)
    (network,) = made.networks
    assert (network.name, network.built, network.phase) == ("bridge", False, "creating")
    assert made.container.hostname == made.container.short_id


def test_once_the_default_network_is_realised_it_is_used_as_it_is() -> None:
    host = PlannedHost()
    host.run("web")
    (network,) = host.plan_run("db").networks
    assert network == host.state.network("bridge")
    assert network.built


@pytest.mark.parametrize("name", ["bridge", "default"])
def test_the_default_network_has_two_names(name: str) -> None:
    made = PlannedHost().plan_run("web", name)
    assert [n.name for n in made.networks] == ["bridge"]


def test_a_user_defined_network_is_the_containers_mode() -> None:
    host = PlannedHost()
    network = host.network("br1")
    assert host.plan_run("web", network.short_id).container.network_mode == "br1"


def test_several_networks_give_several_devices_in_their_order() -> None:
    host = PlannedHost()
    host.network("b")
    host.network("a")
    made = host.plan_run("web", "b", "a")
    assert [e.ifname for e in made.endpoints] == ["eth0", "eth1"]
    assert [n.name for n in made.networks] == ["b", "a"]
    assert [e.gateway4 for e in made.endpoints] == [False, True]


def test_host_mode_makes_nothing_and_discards_published_ports_with_dockers_warning() -> None:
    made = PlannedHost().plan_run("web", "host", publish=("80:80",))
    assert made.sandbox is not None
    assert (made.sandbox.key, made.endpoints, made.networks) == ("host", (), ())
    assert made.container.ports == ()
    assert made.warnings == ("Published ports are discarded when using host network mode",)


def test_none_mode_has_a_sandbox_and_no_endpoint() -> None:
    made = PlannedHost().plan_run("web", "none")
    assert made.sandbox is not None
    assert (made.sandbox.key, made.endpoints, made.warnings) == ("", (), ())


def test_container_mode_shares_the_others_sandbox_and_names() -> None:
    host = PlannedHost()
    host.run("web", hostname="www", domainname="example.org")
    made = host.plan_run("side", "container:web")
    web = host.state.container("web")
    assert (made.sandbox, made.endpoints) == (None, ())
    assert made.container.network_mode == f"container:{web.id}"
    assert made.container.sandbox_id == web.sandbox_id
    assert (made.container.hostname, made.container.domainname) == ("www", "example.org")


def test_a_sharer_can_be_shared_and_so_can_host_mode() -> None:
    host = PlannedHost()
    host.run("web")
    host.run("side", "container:web")
    host.run("hosty", "host")
    assert host.plan_run("x", "container:side").container.sandbox_id == host.state.container("web").id
    assert host.plan_run("x", "container:hosty").container.sandbox_id == host.state.container("hosty").id


@pytest.mark.parametrize(
    ("networks", "fields", "error", "message"),
    [
        (("container:",), {}, ConfigError, "invalid container format container:<name|id>"),
        (("container:nope",), {}, NotFoundError, "No such container: nope"),
        (("container:ended",), {}, ConfigError, "cannot join network of a non running container: ended"),
        (("nope",), {}, NotFoundError, "network nope not found"),
        (("",), {}, NotFoundError, "not found"),
        (
            ("container:web",),
            {"publish": ("80:80",)},
            ConfigError,
            "conflicting options: port publishing and the container type network mode",
        ),
        (
            ("container:web",),
            {"publish_all": True},
            ConfigError,
            "conflicting options: port publishing and the container type network mode",
        ),
        (
            ("container:web",),
            {"expose": ("80",)},
            ConfigError,
            "conflicting options: port exposing and the container type network mode",
        ),
        (("container:web",), {"links": ("web",)}, ConfigError, f"container type network {LINKS}"),
        (
            ("container:web",),
            {"dns": ("1.1.1.1",)},
            ConfigError,
            "conflicting options: dns and the network mode",
        ),
        (("container:web",), {"dns_search": ("a",)}, ConfigError, "conflicting options: dns and the network"),
        (
            ("container:web",),
            {"hostname": "x"},
            ConfigError,
            "conflicting options: hostname and the network mode",
        ),
        (
            ("container:web",),
            {"domainname": "x"},
            ConfigError,
            "conflicting options: domainname and the network",
        ),
        (
            ("container:web",),
            {"add_host": ("a:1.1.1.1",)},
            ConfigError,
            "conflicting options: custom host-to-IP mapping and the network mode",
        ),
        (
            (EndpointRequest("container:web", ip="10.0.0.2"),),
            {},
            ConfigError,
            "conflicting options: .*user specified IP address is supported on user defined networks only",
        ),
        (
            (EndpointRequest("container:web", mac="02:00:00:00:00:01"),),
            {},
            ConfigError,
            "conflicting options: mac-address and the network mode",
        ),
        ((EndpointRequest("container:web", aliases=("a",)),), {}, ConfigError, "alias is supported only"),
        (("host",), {"links": ("web",)}, ConfigError, f"host type networking {LINKS}"),
        ((EndpointRequest("host", ip="10.0.0.2"),), {}, ConfigError, "user defined networks only"),
        (
            (EndpointRequest("host", mac="02:00:00:00:00:01"),),
            {},
            ConfigError,
            "mac-address and the network mode",
        ),
        ((EndpointRequest("none", ip6="fd00::2"),), {}, ConfigError, "user defined networks only"),
        (
            ("net", "bridge"),
            {},
            ConfigError,
            "cannot attach both user-defined and non-user-defined network-modes",
        ),
        (
            ("host", "net"),
            {},
            ConfigError,
            "cannot attach both user-defined and non-user-defined network-modes",
        ),
        (("net", "container:web"), {}, ConfigError, "cannot attach both user-defined"),
        (("net", "net"), {}, ConfigError, 'network "net" is specified multiple times'),
    ],
)
def test_a_mode_that_cannot_be_is_refused_with_the_reason(
    networks: tuple[Any, ...], fields: dict[str, Any], error: type[DatapathError], message: str
) -> None:
    host = PlannedHost()
    host.network("net")
    host.run("web")
    host.run("ended")
    host.end("ended")
    with pytest.raises(error, match=message) as caught:
        host.plan_run("x", *networks, **fields)
    assert str(caught.value).isprintable()


# ---- names and other options --------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in BAD_NAMES if name])
def test_a_bad_container_name_is_refused_in_one_short_line(name: str) -> None:
    with pytest.raises(ConfigError, match="Invalid container name") as caught:
        PlannedHost().plan_run(name)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 200


def test_a_name_is_given_only_once_even_if_its_container_has_ended() -> None:
    host = PlannedHost()
    host.run("web")
    host.end("web")
    with pytest.raises(
        ExistsError, match=r'Conflict\. The container name "/web" is already in use by container'
    ):
        host.plan_run("web")


def test_a_container_without_a_name_is_given_one() -> None:
    host = PlannedHost()
    name = host.run().name
    assert re.fullmatch("[a-z]+_[a-z]+", name)
    ident = host.state.container(name).id
    assert generated_name(ident, host.state) == f"{name}_{ident[:12]}"


@pytest.mark.parametrize(
    ("fields", "attribute", "value"),
    [
        ({"env": ("A=1", "B=", "A=2", "C")}, "env", ("B=", "A=2")),
        ({"labels": ("a=b",)}, "labels", {"a": "b"}),
        ({"hostname": "www"}, "hostname", "www"),
        ({"dns": ("1.1.1.1",)}, "dns", ("1.1.1.1",)),
        ({}, "dns", ("9.9.9.9",)),
        ({"dns_search": (".",)}, "dns_search", (".",)),
        ({"dns_option": ("ndots:2",)}, "dns_options", ("ndots:2",)),
        ({"add_host": ("a:1.2.3.4", "b=::1")}, "extra_hosts", (("a", "1.2.3.4"), ("b", "::1"))),
        ({"add_host": ("c:[fd00::1]",)}, "extra_hosts", (("c", "fd00::1"),)),
        ({"add_host": ("h:host-gateway",)}, "extra_hosts", (("h", "172.17.0.1"),)),
        ({"stop_signal": "int"}, "stop_signal", "SIGINT"),
        ({"stop_signal": "SIGUSR1"}, "stop_signal", "SIGUSR1"),
        ({"stop_signal": "9"}, "stop_signal", "SIGKILL"),
        ({}, "stop_signal", "SIGTERM"),
        (
            {"expose": ("80", "53/udp"), "publish": ("90:91",)},
            "exposed",
            ((53, "udp"), (80, "tcp"), (91, "tcp")),
        ),
        ({"auto_remove": True}, "auto_remove", True),
        ({"interactive": True, "tty": True}, "open_stdin", True),
        ({"rootfs": "/srv/root"}, "rootfs", "/srv/root"),
    ],
)
def test_an_option_of_run_is_recorded(fields: dict[str, Any], attribute: str, value: Any) -> None:
    host = PlannedHost(config=DaemonConfig.parse('{"dns": ["9.9.9.9"]}'))
    assert getattr(host.plan_run("web", **fields).container, attribute) == value


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"argv": ()}, "no command is given"),
        ({"argv": ("",)}, "no command is given"),
        ({"argv": ("a\0b",)}, "zero byte"),
        ({"env": ("=x",)}, "invalid environment variable"),
        ({"env": ("",)}, "invalid environment variable"),
        ({"labels": ("=x",)}, "invalid label"),
        ({"hostname": "a b"}, "invalid hostname"),
        ({"hostname": "x" * 64}, "invalid hostname"),
        ({"hostname": "-x"}, "invalid hostname"),
        ({"domainname": "a\nb"}, "invalid domainname"),
        ({"dns": ("one",)}, "invalid IP address for dns"),
        ({"dns_search": ("a b",)}, "not a valid domain"),
        ({"dns_option": ("a b",)}, "invalid dns option"),
        ({"add_host": ("a",)}, "bad format for add-host"),
        ({"add_host": (":1.1.1.1",)}, "bad format for add-host"),
        ({"add_host": ("a:b",)}, "invalid IP address in add-host"),
        ({"add_host": ("a\n1.1.1.1 evil:1.1.1.1",)}, "invalid name for add-host"),
        ({"expose": ("80:80",)}, "invalid port format for --expose"),
        ({"publish": ("x",)}, "invalid containerPort"),
        ({"rootfs": "relative"}, "must be an absolute path"),
        ({"stop_signal": "SIGNOPE"}, "invalid signal"),
        ({"stop_signal": "999"}, "invalid signal"),
    ],
)
def test_an_option_of_run_that_cannot_be_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        PlannedHost().plan_run("web", **fields)
    assert str(caught.value).isprintable()


def test_host_gateway_means_nothing_where_there_is_no_way_to_the_host() -> None:
    with pytest.raises(ConfigError, match="unable to derive the IP value for host-gateway"):
        PlannedHost().plan_run("web", "none", add_host=("h:host-gateway",))


# ---- published ports ------------------------------------------------------------------------------------


def shown(ports: tuple[PortMapping, ...]) -> list[str]:
    return [str(mapping) for mapping in ports]


@pytest.mark.parametrize(
    ("publish", "chosen"),
    [
        (("8081:80",), ["8081:80/tcp"]),
        (("8081:80", "8081:80/udp"), ["8081:80/tcp", "8081:80/udp"]),
        (("8000-8099:8000-8099",), ["8000-8099:8000-8099/tcp"]),
        (("127.0.0.1:8081:80", "192.0.2.10:8081:81"), ["127.0.0.1:8081:80/tcp", "192.0.2.10:8081:81/tcp"]),
        (("80",), ["40001:80/tcp"]),
        ((":80", "81"), ["40001:80/tcp", "40003:81/tcp"]),
        (("80", "40001:81"), ["40003:80/tcp", "40001:81/tcp"]),
        (("80-81",), ["40003-40004:80-81/tcp"]),
        (("80/udp",), ["40000:80/udp"]),
        (("40000-40009:80",), ["40001:80/tcp"]),
        (("50000-50001:80", "50000-50001:81"), ["50000:80/tcp", "50001:81/tcp"]),
        (("80-87",), [f"{p}:{i}/tcp" for i, p in enumerate((40001, *range(40003, 40010)), 80)]),
    ],
)
def test_a_host_port_is_the_one_asked_for_or_the_lowest_that_is_free(
    publish: tuple[str, ...], chosen: list[str]
) -> None:
    host = PlannedHost()
    host.busy = {("tcp", 40000): "nginx (pid 7)", ("tcp", 40002): "nginx (pid 7)"}
    made = host.plan_run("web", publish=publish)
    assert shown(made.container.ports) == chosen
    assert made.endpoints[0].ports == made.container.ports


def test_publish_all_takes_every_exposed_port_that_is_not_published_by_name() -> None:
    made = PlannedHost().plan_run("web", publish_all=True, expose=("80", "53/udp"), publish=("8081:80",))
    assert shown(made.container.ports) == ["8081:80/tcp", "40000:53/udp"]


@pytest.mark.parametrize(
    ("publish", "error", "message"),
    [
        (
            "8081:80",
            ExistsError,
            r'Bind for 0.0.0.0:8081 failed: port is already allocated \(by container "first"\)',
        ),
        ("127.0.0.1:8081:80", ExistsError, "Bind for 127.0.0.1:8081 failed: port is already allocated"),
        ("0.0.0.0:8081:80", ExistsError, "port is already allocated"),
        ("8080-8085:80-85", ExistsError, "Bind for 0.0.0.0:8081 failed: port is already allocated"),
        ("8081-8081:80", ExistsError, "port is already allocated"),
        ("22:22", ExistsError, r"Bind for 0.0.0.0:22 failed: address already in use \(by sshd \(pid 1\)\)"),
        ("22-22:22", ExistsError, "address already in use"),
        ("9000-9001:80", ExistsError, "Bind for 0.0.0.0:9000-9001 failed: all ports are allocated"),
        ("1-11", ExistsError, "no free port between 40000 and 40009"),
        ("198.51.100.1:80:80", ConfigError, "198.51.100.1 is no address of this host"),
        ("[::1]:80:80", ConfigError, "the container has no IPv6 address that leads outside"),
    ],
)
def test_a_port_that_is_taken_is_refused_and_its_holder_named(
    publish: str, error: type[DatapathError], message: str
) -> None:
    host = PlannedHost()
    host.busy = {("tcp", 22): "sshd (pid 1)", ("tcp", 9000): "x", ("tcp", 9001): "x"}
    host.run("first", publish=("8081:80",))
    with pytest.raises(error, match=message):
        host.plan_run("web", publish=(publish,))


def test_one_container_cannot_publish_a_port_twice() -> None:
    with pytest.raises(ExistsError, match='by container "web"'):
        PlannedHost().plan_run("web", publish=("80:80", "80:81"))


def test_the_other_protocol_and_another_address_do_not_conflict() -> None:
    host = PlannedHost()
    host.run("first", publish=("127.0.0.1:8081:80",))
    made = host.plan_run("web", publish=("8081:80/udp", "192.0.2.10:8081:80"))
    assert shown(made.container.ports) == ["8081:80/udp", "192.0.2.10:8081:80/tcp"]


def test_a_port_is_free_again_when_its_container_has_ended() -> None:
    host = PlannedHost()
    host.run("first", publish=("8081:80",))
    host.end("first")
    assert shown(host.plan_run("web", publish=("8081:80",)).container.ports) == ["8081:80/tcp"]


def test_host_binding_is_where_ports_are_published_when_no_address_is_named() -> None:
    host = PlannedHost()
    host.network("net", options=("com.docker.network.bridge.host_binding_ipv4=127.0.0.1",))
    made = host.plan_run("web", "net", publish=("80:80", "192.0.2.10:81:81"))
    assert shown(made.container.ports) == ["127.0.0.1:80:80/tcp", "192.0.2.10:81:81/tcp"]


def test_on_internal_networks_only_ports_are_discarded_and_that_is_said() -> None:
    host = PlannedHost()
    host.network("inside", internal=True)
    made = host.plan_run("web", "inside", publish=("80:80",))
    assert made.container.ports == ()
    assert "Published ports are discarded" in made.warnings[0]


def test_a_port_is_added_to_a_running_container_and_taken_away_by_number_or_spec() -> None:
    host = PlannedHost()
    host.run("web", publish=("8081:80",))
    added = plan_port_add("web", "8082:90/udp", host.state, host.ports)
    assert shown(added.mappings) == ["8082:90/udp"]
    assert shown(added.endpoints[0].ports) == shown(added.container.ports) == ["8081:80/tcp", "8082:90/udp"]
    assert (90, "udp") in added.container.exposed
    state = host.state.including(added.container, *added.endpoints)
    for what, left in (
        ("1", ["8082:90/udp"]),
        ("8081:80", ["8082:90/udp"]),
        ("8082:90/udp", ["8081:80/tcp"]),
    ):
        gone = plan_port_remove("web", what, state)
        assert shown(gone.container.ports) == shown(gone.endpoints[0].ports) == left
        assert shown(gone.container.published) == left


def test_removing_a_port_that_was_chosen_forgets_that_it_was_asked_for() -> None:
    host = PlannedHost()
    host.run("web", publish=("80", "8000-8010:81"))
    gone = plan_port_remove("web", "1", host.state)
    assert shown(gone.container.published) == ["8000-8010:81/tcp"]
    assert plan_port_remove("web", "2", host.state).container.published == (PortMapping.parse("80"),)


@pytest.mark.parametrize("what", ["0", "3", "99", "9999:80", "8081:80/udp"])
def test_a_port_that_is_not_there_cannot_be_taken_away(what: str) -> None:
    host = PlannedHost()
    host.run("web", publish=("8081:80", "127.0.0.1:90:90"))
    with pytest.raises(NotFoundError, match="has no port mapping"):
        plan_port_remove("web", what, host.state)


def test_a_spec_that_may_mean_two_ports_must_name_the_address() -> None:
    host = PlannedHost()
    host.run("web", publish=("127.0.0.1:80:80", "192.0.2.10:80:80"))
    with pytest.raises(ConfigError, match="may be each of"):
        plan_port_remove("web", "80:80", host.state)
    gone = plan_port_remove("web", "127.0.0.1:80:80", host.state)
    assert shown(gone.container.ports) == ["192.0.2.10:80:80/tcp"]


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("nope", NotFoundError, "No such container"),
        ("hosty", ConfigError, "host network mode"),
        ("side", ConfigError, "conflicting options: port publishing and the container type network mode"),
        ("lonely", ConfigError, "on no network that leads outside"),
        ("ended", ConfigError, "not running"),
    ],
)
def test_a_port_cannot_be_added_where_nothing_can_be_published(
    name: str, error: type[DatapathError], message: str
) -> None:
    host = PlannedHost()
    host.run("web")
    host.run("hosty", "host")
    host.run("side", "container:web")
    host.run("lonely", "none")
    host.run("ended")
    host.end("ended")
    with pytest.raises(error, match=message):
        plan_port_add(name, "8082:80", host.state, host.ports)


def test_two_thousand_ports_are_decided_as_ranges() -> None:
    made = PlannedHost().plan_run("web", publish=("10000-11999:10000-11999",))
    assert len(made.container.ports) == 1
    assert len(entries.port_entries(made.networks[0], made.endpoints[0])) == 2000


# ---- links ----------------------------------------------------------------------------------------------


def test_a_link_is_recorded_by_the_servers_id_and_the_alias() -> None:
    host = PlannedHost()
    db = host.run("db")
    found = host.plan_run("web", links=("db:database", "db")).container.links
    assert [(link.server, link.alias) for link in found] == [(db.id, "database"), (db.id, "db")]


@pytest.mark.parametrize(
    ("link", "error", "message"),
    [
        ("nope", NotFoundError, "No such container: nope"),
        ("", ConfigError, "bad format for links"),
        ("db:", ConfigError, "bad format for links"),
        ("db:a:b", ConfigError, "bad format for links"),
        ("db:a b", ConfigError, "invalid link alias"),
        ("ended", ConfigError, "Cannot link to a non running container: /ended AS /ended"),
        ("other", ConfigError, "Cannot link to /other, as it does not belong to the default network"),
    ],
)
def test_a_link_that_cannot_be_is_refused(link: str, error: type[DatapathError], message: str) -> None:
    host = PlannedHost()
    host.network("net")
    host.run("db")
    host.run("other", "net")
    host.run("ended")
    host.end("ended")
    with pytest.raises(error, match=message):
        host.plan_run("web", links=(link,))


@pytest.mark.parametrize(("icc", "opened"), [("true", 0), ("false", 2)])
def test_without_icc_a_link_opens_exactly_the_servers_exposed_ports(icc: str, opened: int) -> None:
    host = PlannedHost()
    host.network("net", subnets=("10.0.0.0/24",), options=(f"com.docker.network.bridge.enable_icc={icc}",))
    host.run("db", "net", expose=("5432", "53/udp"))
    host.run("other", "net", expose=("1",))
    host.run("web", "net", links=("db",))
    found = entries.link_entries(host.state.network("net"), host.state)
    assert len(found) == opened
    assert {(str(k.client), str(k.server), k.port, k.proto) for k in found} <= {
        ("10.0.0.4", "10.0.0.2", 5432, 6),
        ("10.0.0.4", "10.0.0.2", 53, 17),
    }


# ---- the end ---------------------------------------------------------------------------------------------


def test_when_a_container_ends_its_endpoints_go_and_it_is_remembered() -> None:
    host = PlannedHost()
    host.run("web", publish=("8081:80",))
    made = plan_exited(host.state.container("web").id, 3, host.state, NOW)
    assert (made.container.status, made.container.exit_code, made.container.finished) == ("exited", 3, NOW)
    assert made.container.phase == "ready"
    assert made.sandbox is not None
    assert {made.sandbox.phase, *(e.phase for e in made.endpoints)} == {"removing"}


def test_a_container_that_removes_itself_is_forgotten_when_it_ends() -> None:
    host = PlannedHost()
    host.run("web", auto_remove=True)
    assert host.end("web").container.phase == "removing"


def test_the_stack_stays_until_its_last_user_ends() -> None:
    host = PlannedHost()
    host.run("web")
    host.run("side", "container:web")
    first = host.end("web")
    assert (first.sandbox, first.endpoints) == (None, ())
    assert addresses(host, "side") == {"bridge": "172.17.0.2/16"}
    with pytest.raises(InUseError, match='name:"web"'):
        host.state = host.state.including(replace(host.state.network("bridge"), predefined=False))
        plan_network_remove("bridge", host.state)
    last = host.end("side")
    assert last.sandbox is not None
    assert len(last.endpoints) == 1


def test_the_stacks_owner_may_be_removed_before_its_sharer_ends() -> None:
    host = PlannedHost()
    host.run("web")
    host.run("side", "container:web")
    host.end("web")
    gone = plan_remove("web", host.state)
    assert (gone.container.phase, gone.sandbox, gone.endpoints) == ("removing", None, ())
    host.state = host.state.without(gone.container)
    assert len(host.end("side").endpoints) == 1


def test_a_running_container_is_removed_only_by_force() -> None:
    host = PlannedHost()
    host.run("web")
    with pytest.raises(
        InUseError, match='cannot remove container "web": container is running: stop the container'
    ):
        plan_remove("web", host.state)
    gone = plan_remove("web", host.state, force=True)
    assert (gone.container.phase, len(gone.endpoints)) == ("removing", 1)


@pytest.mark.parametrize("name", ["nope", "", "a/b", "a\nb"])
def test_an_unknown_container_is_said_to_be_unknown(name: str) -> None:
    with pytest.raises(NotFoundError, match="No such container") as caught:
        plan_remove(name, PlannedHost().state)
    assert str(caught.value).isprintable()


def test_a_container_is_found_by_name_id_and_short_id() -> None:
    host = PlannedHost()
    web: Container = host.run("web")
    for name in ("web", "/web", web.id, web.short_id, web.id[:7]):
        assert host.state.container(name) == web
