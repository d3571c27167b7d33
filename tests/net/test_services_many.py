# SPDX-License-Identifier: Apache-2.0
"""S26 with many services: what a command costs does not grow with those that it is not about."""

from __future__ import annotations

from ipaddress import ip_address

from datapath.model.ports import PortMapping
from datapath.model.rows import Phase
from datapath.model.services import Service
from datapath.store.sqlite import SQLiteStore
from tests.net.calls import calls
from tests.net.hosts import Host

FEW, MANY = 20, 520
# Functions called for each further service, of which reading its row takes thirty: no time, which a busy machine would
# change.
MOST = 70
# Who stops a container, which takes time, looks before it takes the lock and once more when it has it.
TWICE = 90


def add_services(host: Host, first: int, last: int) -> None:
    """Services of the network `shop`, each with a selector, a published port, and nobody behind it."""
    with SQLiteStore(host.folder / "state") as store, store.lock():
        network = store.load().network("shop")
        with store.transaction():
            for number in range(first, last):
                ports = (PortMapping.parse(f"{10000 + number}:80"),)
                service = Service(
                    id=f"{number:064x}",
                    name=f"s{number}",
                    network_id=network.id,
                    number=store.next_number(),
                    vip4=ip_address("10.71.100.0") + number,
                    created="2026-01-01T00:00:00Z",
                    published=ports,
                    ports=ports,
                    selector={"app": f"s{number}"},
                    phase=Phase.READY,
                )
                store.put(service)
    host.ctl("reconcile")


def test_s26_commands_about_one_service_do_not_look_at_the_others(shared_host: Host) -> None:
    host = shared_host
    host.ctl("network create --subnet 10.71.0.0/16 shop")
    commands = (
        "service create --network shop -p 9001:80 {}",
        "run -d --network shop --service {} --label app=shop --name c-{} sleep 3600",
        "service update --label-add a=b {}",
        "service drain {} c-{}",
        "service ps {}",
        "service inspect {}",
        "rm -f c-{}",
        "service rm {}",
    )
    found = {}
    before = 0
    for name, services in (("few", FEW), ("many", MANY)):
        add_services(host, before, services)
        before = services
        for command in commands:
            found[name, command] = calls(host, command.replace("{}", name))
    more = {command: (found["many", command] - found["few", command]) / (MANY - FEW) for command in commands}
    most = {command: TWICE if command.startswith("rm") else MOST for command in commands}
    assert {command: round(each) for command, each in more.items() if each > most[command]} == {}
