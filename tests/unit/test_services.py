# SPDX-License-Identifier: Apache-2.0
"""Services as rows: tables of slots, who is behind them, what is refused, and what the maps get."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from ipaddress import IPv4Interface, ip_address, ip_network
from pathlib import Path

import pytest

import datapath.drivers.registry  # noqa: F401 - who registers them
from datapath.dataplane import service_entries
from datapath.dataplane.name_entries import name_rows
from datapath.dataplane.wire_names import name_key
from datapath.errors import ConfigError, DatapathError, ExistsError, InUseError, NotFoundError
from datapath.model.containers import Container
from datapath.model.endpoints import Endpoint
from datapath.model.networks import OPT_SERVICE, Network, Subnet
from datapath.model.observed import HostFacts
from datapath.model.ports import PortMapping
from datapath.model.resolv import NameFacts
from datapath.model.rows import Phase, Status
from datapath.model.sandboxes import Sandbox
from datapath.model.services import (
    Membership,
    Service,
    ServiceChange,
    ServiceRequest,
    parse_membership,
    parse_seconds,
)
from datapath.model.state import Fresh, State
from datapath.plan import endpoint_options, maglev
from datapath.plan.backends import backends, touched
from datapath.plan.memberships import endpoint_memberships, plan_memberships, refuse_shared_ports
from datapath.plan.networks import plan_network_remove
from datapath.plan.ports import PortContext
from datapath.plan.services import (
    plan_drain,
    plan_service_create,
    plan_service_update,
)
from datapath.store.sqlite import SQLiteStore

PORTS = PortContext(HostFacts(), lambda proto, address, port: None)
FRESH = Fresh("2026-11-27T08:00:00Z", lambda: "5" * 64, lambda: 50)
SHOP = Network(
    id="a" * 64,
    name="shop",
    number=3,
    subnets=(Subnet(ip_network("10.0.0.0/24"), gateway=ip_address("10.0.0.1"), configured=True),),
    built=True,
    device="dp3",
    phase=Phase.READY,
)


def container(
    number: int, services: tuple[Membership, ...] = (), **labels: str
) -> tuple[Container, Sandbox, Endpoint]:
    """One that runs, with its sandbox and its endpoint, 10.0.0.`number`, on the network."""
    ident = f"{number:064x}"
    endpoint = Endpoint(
        id=f"e{number:063x}",
        network_id=SHOP.id,
        sandbox_id=ident,
        number=number,
        slot=number,
        ifname="eth0",
        host_ifname=f"veth{number}",
        mac=f"02:42:0a:00:00:{number:02x}",
        ipv4=IPv4Interface(f"10.0.0.{number}/24"),
        phase=Phase.READY,
    )
    row = Container(
        ident,
        f"c{number}",
        "",
        ("sleep",),
        sandbox_id=ident,
        status=Status.RUNNING,
        labels=labels,
        services=services,
        phase=Phase.READY,
    )
    return row, Sandbox(ident, "/proc/1/ns/net", Phase.READY), endpoint


WEB = Service(
    "5" * 64,
    "web",
    SHOP.id,
    50,
    vip4=ip_address("10.0.0.2"),
    numbers={},
    phase=Phase.READY,
    selector={"app": "web"},
)


def behind(service: Service, *numbers: int) -> Service:
    """With numbers for the endpoints of these containers."""
    return replace(service, numbers={f"e{n:063x}": 100 + n for n in numbers})


STATE = State().including(SHOP, *container(3, app="web"), *container(4, app="web"), *container(5))


# ---- tables --------------------------------------------------------------------------------------------------------


def names(count: int) -> list[str]:
    return [f"10.0.{number // 200}.{number % 200 + 2}" for number in range(count)]


@pytest.mark.parametrize("count", [1, 2, 3, 10, 20, 21, 100])
def test_every_backend_has_the_same_share_of_a_table(count: int) -> None:
    found = Counter(maglev.table("web", names(count), [1] * count))
    assert sum(found.values()) == maglev.size(count) == (4093 if count <= 20 else 16381)
    assert len(found) == count and max(found.values()) - min(found.values()) <= 1


@pytest.mark.parametrize("count", [3, 5, 10, 20])
def test_hardly_more_than_its_own_slots_change_hands_when_a_backend_goes(count: int) -> None:
    """At most 2.5 % of the others', whichever it is."""
    all_ = names(count)
    before = [all_[place] for place in maglev.table("web", all_, [1] * count)]
    for gone in all_:
        left = [name for name in all_ if name != gone]
        after = [left[place] for place in maglev.table("web", left, [1] * len(left))]
        moved = sum(old not in (gone, new) for old, new in zip(before, after, strict=True))
        assert moved / len(before) <= 0.025


def test_shares_are_as_the_weights() -> None:
    found = Counter(maglev.table("web", ["a", "b", "c"], [1, 2, 5]))
    assert [round(8 * found[place] / 4093, 1) for place in range(3)] == [1, 2, 5]


def test_a_table_follows_from_names_and_not_from_their_order() -> None:
    one, other = names(7), names(7)[::-1]
    first = [one[place] for place in maglev.table("web", one, [1] * 7)]
    assert first == [other[place] for place in maglev.table("web", other, [1] * 7)]
    assert first != [one[place] for place in maglev.table("db", one, [1] * 7)]
    assert maglev.table("web", [], []) == []


# ---- who is behind a service ---------------------------------------------------------------------------------------


def of(service: Service, state: State) -> list[tuple[int, int, bool]]:
    found = [(one.endpoint, one.weight, not one.up) for one in backends(service, state)]
    return [(one.number, weight, draining) for one, weight, draining in found if isinstance(one, Endpoint)]


def test_backends_have_its_labels_or_name_it() -> None:
    state = STATE.including(WEB, *container(6, (Membership(WEB.id, 7),)))
    assert of(WEB, state) == [(3, 1, False), (4, 1, False), (6, 7, False)]
    assert of(replace(WEB, selector={}), state) == [(6, 7, False)]
    assert of(replace(WEB, selector={"app": "web", "tier": "1"}), state) == [(6, 7, False)]
    assert of(replace(WEB, drained=(f"e{4:063x}",)), state)[1] == (4, 1, True)


def test_who_does_not_run_is_no_backend_yet_touches_its_service() -> None:
    row, sandbox, endpoint = container(3, app="web")
    ended = State().including(SHOP, WEB, replace(row, status=Status.EXITED), sandbox, endpoint)
    assert of(WEB, ended) == [] and touched([row.id], ended).keys() == {WEB.id}
    coming = State().including(SHOP, WEB, row, sandbox, replace(endpoint, phase=Phase.CREATING))
    assert of(WEB, coming) == []


# ---- rows of maps --------------------------------------------------------------------------------------------------


def test_a_drained_backend_is_in_no_slot_and_its_row_says_so() -> None:
    service = behind(replace(WEB, drained=(f"e{4:063x}",)), 3, 4)
    rows = service_entries.rows(service, STATE.including(service), {4: 1})
    (value,) = rows.services.values()
    assert (value.table4, value.size4, value.table6, value.size6) == (50 << 2 | 1, 4093, 0, 0)
    assert {number for slots in rows.slots.values() for number in slots.backend} == {103}
    assert {key.backend: row.state for key, row in rows.backends.items()} == {
        103: "BACKEND_UP",
        104: "BACKEND_DRAINING",
    }
    (vip,) = rows.vips.values()
    assert (vip.ifindex, vip.number, vip.mac) == (0, 50, "02:42:0a:00:00:01")


def test_a_service_without_a_backend_has_no_table_and_one_without_address_no_row() -> None:
    rows = service_entries.rows(WEB, State().including(SHOP, WEB), {})
    (value,) = rows.services.values()
    assert (value.table4, value.size4) == (0, 0) and not rows.slots
    assert not any(service_entries.rows(replace(WEB, vip4=None), STATE, {}))


def test_a_services_name_is_its_own_and_tasks_are_its_backends() -> None:
    row, _, endpoint = container(3, app="web")
    state = STATE.including(WEB, replace(row, name="web"))
    rows = name_rows(state, NameFacts()).names

    def addresses(text: str) -> bytes:
        key = name_key(SHOP.number, text)
        return rows[key].records if key in rows else b""

    assert ip_address("10.0.0.2").packed in addresses("web") and endpoint.ipv4 is not None
    assert endpoint.ipv4.ip.packed not in addresses("web")
    assert name_key(SHOP.number, "tasks.web.shop") in rows


# ---- plans ---------------------------------------------------------------------------------------------------------


def created(state: State, **asked: object) -> Service:
    request = ServiceRequest(**{"name": "web", "network": "shop", **asked})  # type: ignore[arg-type]
    return plan_service_create(request, state, FRESH, PORTS)


def test_a_service_gets_the_lowest_address_and_its_ports() -> None:
    service = created(STATE, publish=("8080:80",), affinity="3h", selector=("app=web",))
    assert (str(service.vip4), service.vip6, service.affinity) == ("10.0.0.2", None, 3 * 3600)
    assert [(m.host_port, m.container_port) for m in service.ports] == [(8080, 80)]
    again = STATE.including(replace(service, phase=Phase.READY))
    assert str(created(again, name="db").vip4) == "10.0.0.6"


REFUSED: Sequence[tuple[dict[str, object], type[DatapathError], str]] = (
    ({}, ExistsError, "service with name web already exists"),
    ({"name": "db", "vips": ("10.0.0.2",)}, ExistsError, 'belongs to service "web"'),
    ({"name": "db", "vips": ("10.0.0.3",)}, ExistsError, 'belongs to container "c3"'),
    ({"name": "db", "vips": ("fd00::1",)}, ConfigError, "has no IPv6"),
    ({"name": "db", "publish": ("8080:81",)}, ExistsError, r'already allocated \(by service "web"\)'),
    (
        {"name": "db", "publish": ("8081:80",), "selector": ("app=web",)},
        ConfigError,
        "container c3 cannot be in services web and db: both publish its port 80/tcp",
    ),
    ({"name": "db", "network": "none"}, NotFoundError, "not found"),
)


@pytest.mark.parametrize(("asked", "error", "said"), REFUSED)
def test_what_cannot_be_is_refused(asked: dict[str, object], error: type[DatapathError], said: str) -> None:
    known = created(STATE, publish=("8080:80",), selector=("app=web",))
    state = STATE.including(replace(known, id="6" * 64, phase=Phase.READY))
    with pytest.raises(error, match=said):
        created(state, **asked)


def test_a_service_is_not_given_a_port_that_another_one_publishes_of_a_container_of_its_own() -> None:
    """However that one is behind it: here by its name, and by a label."""
    web = replace(created(STATE, publish=("8080:80",), selector=("app=web",)), id="6" * 64, phase=Phase.READY)
    api = replace(WEB, id="7" * 64, name="api", number=51, vip4=ip_address("10.0.0.9"), selector={})
    named = container(3, (Membership(api.id),), app="web")[0]
    state = STATE.including(web, api, named)
    change = ServiceChange(publish_add=("8081:80",))
    with pytest.raises(ConfigError, match="container c3 cannot be in services web and api: both publish its"):
        plan_service_update("api", change, state, PORTS)
    other = plan_service_update("api", ServiceChange(publish_add=("8081:81",)), state, PORTS)
    assert [m.container_port for m in other.service.ports] == [81]


def test_a_container_is_not_behind_one_port_of_two_services() -> None:
    """As it names them, or as its labels do: when it begins, and when it joins their network."""
    web = replace(WEB, published=(PortMapping.parse("8080:80"),))
    api = replace(web, id="6" * 64, name="api", number=51, selector={"tier": "api"})
    row, _, endpoint = container(7, app="web", tier="api")
    state = STATE.including(web, api)
    with pytest.raises(
        ConfigError, match=r"container c7 cannot be in services .*: both publish its port 80/tcp"
    ):
        refuse_shared_ports(row, (endpoint,), state)
    named = container(7, (Membership(api.id),), app="web")[0]
    with pytest.raises(ConfigError, match="container c7 cannot be in services"):
        refuse_shared_ports(named, (endpoint,), state)
    refuse_shared_ports(row, (endpoint,), state.including(replace(api, published=())))
    refuse_shared_ports(container(7, app="web")[0], (endpoint,), state)


def test_ports_of_a_service_of_several_hosts_are_decided_for_all_of_them() -> None:
    """No address can be named."""
    spanning = replace(SHOP, scope="global", driver="overlay", vni=7)
    state = STATE.including(spanning)
    service = created(state, publish=("8080-8090:80",))
    assert [(m.host_ip, m.host_port, m.host_port_last) for m in service.published] == [(None, 8080, 0)]
    with pytest.raises(ConfigError, match=r"127\.0\.0\.1:8080:80/tcp: every host of"):
        created(state, publish=("127.0.0.1:8080:80",))


def test_ports_are_added_and_taken_away_by_an_update() -> None:
    service = replace(created(STATE, publish=("8080:80", "8443:443")), phase=Phase.READY)
    change = ServiceChange(publish_add=("9000:90/udp",), publish_rm=("8443:443",), label_add=("a=b",))
    planned = plan_service_update("web", change, STATE.including(service), PORTS)
    assert [m.host_port for m in planned.service.ports] == [8080, 9000]
    assert [m.host_port for m in planned.closed] == [8443] and planned.service.labels == {"a": "b"}
    with pytest.raises(NotFoundError, match="does not publish"):
        plan_service_update("web", ServiceChange(publish_rm=("1:1",)), STATE.including(service), PORTS)


def test_a_container_joins_services_of_its_networks() -> None:
    state = STATE.including(WEB)
    assert plan_memberships(["web,weight=3"], [SHOP.id], state) == (Membership(WEB.id, 3),)
    with pytest.raises(ConfigError, match="it is not on network shop"):
        plan_memberships(["web"], [], state)
    with pytest.raises(NotFoundError, match="no such service: api"):
        plan_memberships(["api"], [SHOP.id], state)


def test_an_endpoint_joins_the_services_that_its_option_names() -> None:
    api = replace(WEB, id="6" * 64, name="api", number=51, published=(PortMapping.parse("8081:80"),))
    state = STATE.including(
        replace(WEB, published=(PortMapping.parse("8080:80"),)), replace(api, published=())
    )

    def joined(text: str, network: Network = SHOP, state: State = state) -> tuple[Membership, ...]:
        return endpoint_memberships({OPT_SERVICE: text}, network, state)

    assert joined("web,weight=3;api") == (Membership(WEB.id, 3), Membership(api.id))
    assert endpoint_memberships({}, SHOP, state) == ()
    with pytest.raises(
        ConfigError, match="on network other cannot join service web: that is on network shop"
    ):
        joined("web", replace(SHOP, id="b" * 64, name="other"))
    with pytest.raises(ConfigError, match="both publish its port 80/tcp"):
        joined("web;api", state=state.including(api))
    with pytest.raises(ConfigError, match="service web is specified multiple times"):
        joined("web;web")
    with pytest.raises(NotFoundError, match="no such service: db"):
        joined("db")
    for text in ("", "web;", "web,weight=0", "web,w=1", "we\nb"):
        with pytest.raises(ConfigError, match=OPT_SERVICE):
            endpoint_options.parse([f"{OPT_SERVICE}={text}"])


def test_a_container_of_another_owner_is_behind_a_service_while_it_is_in_its_sandbox() -> None:
    _, _, endpoint = container(7)
    inside = Sandbox(endpoint.sandbox_id, "/run/netns/x", Phase.READY, "cni", labels={"app": "web"})
    state = STATE.including(WEB, inside, endpoint)
    assert [number for number, *_ in of(WEB, state)] == [3, 4, 7]
    named = replace(endpoint, services=(Membership(WEB.id, 5),))
    assert [one.weight for one in backends(WEB, state.including(named))] == [1, 1, 5]
    assert len(backends(WEB, state.including(replace(inside, key="")))) == 2
    assert plan_drain("web", inside.id, state).drained == (endpoint.id,)


def test_only_backends_are_drained() -> None:
    state = STATE.including(WEB)
    drained = plan_drain("web", "c3", state)
    assert drained.drained == (f"e{3:063x}",)
    assert plan_drain("web", "c3", state.including(drained), back=True).drained == ()
    with pytest.raises(ConfigError, match="container c5 is no backend of service web"):
        plan_drain("web", "c5", state)


def test_a_network_with_services_stays() -> None:
    with pytest.raises(InUseError, match=r'network shop has services \(name:"web"'):
        plan_network_remove("shop", State().including(SHOP, WEB))


def test_words_of_options_are_checked() -> None:
    assert parse_membership("web") == ("web", 1) and parse_membership("web,weight=100") == ("web", 100)
    for text in ("", "web,", "web,weight=0", "web,weight=101", "web,share=2"):
        with pytest.raises(ConfigError):
            parse_membership(text)
    assert [parse_seconds(text, "x") for text in ("0", "90", "90s", "1h30m")] == [0, 90, 90, 5400]
    for text in ("", "-1", "1.5", "soon", "8000h"):
        with pytest.raises(ConfigError):
            parse_seconds(text, "x")


# ---- the store -----------------------------------------------------------------------------------------------------


def test_a_service_is_stored_and_keeps_its_network(tmp_path: Path) -> None:
    service = behind(replace(WEB, drained=("x",)), 3)
    with SQLiteStore(tmp_path) as store:
        store.put(SHOP)
        store.put(service)
        assert store.load().services == {service.id: service}
        with pytest.raises(DatapathError, match="in use"):
            store.delete(SHOP)
        with pytest.raises(ExistsError):
            store.put(replace(service, id="7" * 64, number=51, vip4=None))
