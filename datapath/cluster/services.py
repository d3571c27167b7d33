# SPDX-License-Identifier: Apache-2.0
"""Services of networks of several hosts: created, changed and removed for all of them.

A service is no host's own: any host may change it, if nobody else has meanwhile. Its name, its addresses and the host
ports that it publishes are keys that are created only if they are not there. Who is behind it the endpoints' own keys
say (`addresses`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address

from datapath.cluster import keys
from datapath.cluster.addresses import fresh, holder_of
from datapath.cluster.allotment import Known, choose
from datapath.cluster.commit import SECONDS, Tries, commit, forgotten
from datapath.errors import ConfigError, ExistsError, NotFoundError
from datapath.model.networks import Network
from datapath.model.parsing import Address
from datapath.model.services import Mode, Service
from datapath.store.cluster import Absent, Cluster, Condition, Delete, Entry, Present, Put, Unchanged, Write

MOST_PORTS = 50  # that one service publishes: each is a key, and the store takes 128 operations at once


def create(
    store: Cluster, me: str, network: Network, known: Known, planned: Service, wanted: Sequence[Address] = ()
) -> Service:
    """The service as all hosts are to have it, with an address of each IP version that the network has, unless it is
    of mode dnsrr. `known`: of the network's addresses; `wanted`: those that the user asks for. ExistsError: its name,
    an address or a port is taken; ConfigError: an address cannot be had; NotFoundError: the network is gone;
    ForgottenError; UncertainError: it may have been created; StateError."""
    _check_ports(planned)
    tries = Tries(f"creating service {planned.name}")
    asked = {address.version: address for address in wanted}
    versions = [] if planned.mode == Mode.DNSRR else [subnet.prefix.version for subnet in network.subnets]
    with store.within(SECONDS):
        while True:
            chosen = [choose(network, me, known, version, asked.get(version)).address for version in versions]
            made = replace(
                planned.shared,
                vip4=next((one for one in chosen if isinstance(one, IPv4Address)), None),
                vip6=next((one for one in chosen if isinstance(one, IPv6Address)), None),
            )
            there: list[Condition] = [Present(keys.HOSTS + me), Present(keys.NETWORKS + network.id)]
            wanted_keys = _keys(made)
            outcome = commit(
                store,
                [*there, *(Absent(key) for key in wanted_keys)],
                [Put(key, value) for key, value in wanted_keys.items()],
            )
            if outcome.succeeded:
                return made
            _refuse(made, me, outcome.found)
            for vip in made.vips:
                entry = outcome.found.get(keys.endpoint_key(network.id, vip))
                if entry is not None and vip in asked.values():
                    raise ExistsError(f"Address already in use: {vip} is that of {holder_of(entry)}")
                if entry is not None:
                    known = known.using(vip, "")
            tries.again()
            if tries.count > 1:
                known = fresh(store, network)


def _check_ports(service: Service) -> None:
    if len(keys.ingress_keys(service)) > MOST_PORTS:
        raise ConfigError(
            f"service {service.name} cannot publish more than {MOST_PORTS} ports: its network spans hosts"
        )


def _keys(service: Service) -> dict[str, str]:
    """All that there is of it in the store."""
    return {
        keys.service_key(service): keys.service_value(service),
        keys.SERVICE_NAMES + service.name: service.id,
        **dict.fromkeys(keys.vip_keys(service), keys.vip_value(service)),
        **dict.fromkeys(keys.ingress_keys(service), keys.ingress_value(service)),
    }


def _refuse(service: Service, me: str, found: Mapping[str, Entry]) -> None:
    """What else than an address was in the way."""
    if keys.HOSTS + me not in found:
        raise forgotten()
    if keys.NETWORKS + service.network_id not in found:
        raise NotFoundError(f"network {service.network_id} not found: it was removed on another host")
    if keys.SERVICE_NAMES + service.name in found or keys.service_key(service) in found:
        raise ExistsError(f"service with name {service.name} already exists")
    _refuse_ports(keys.ingress_keys(service), found)


def _refuse_ports(wanted: Iterable[str], found: Mapping[str, Entry]) -> None:
    for key in wanted:
        if key in found:
            port = key.rpartition("/")[2]
            raise ExistsError(
                f"Bind for 0.0.0.0:{port} failed: port is already allocated (by another service of the cluster)"
            )


def change(store: Cluster, service: Service, changed: Callable[[Service], Service]) -> Service:
    """Makes of a service what `changed` makes of it as the store has it, which is asked again if another host was
    faster. The service as all hosts are to have it. NotFoundError: it is gone; ExistsError: a port is taken;
    ConfigError: too many; what `changed` raises; StateError."""
    tries = Tries(f"changing service {service.name}")
    key = keys.service_key(service)
    with store.within(SECONDS):
        while True:
            known = _read(store, service)
            if known is None:
                raise gone(service)
            modified, before = known
            after = changed(before).shared
            if after == before:
                return after
            _check_ports(after)
            old, new = keys.ingress_keys(before), keys.ingress_keys(after)
            opened = [one for one in new if one not in old]
            writes: list[Write] = [Put(key, keys.service_value(after))]
            writes += [Put(one, keys.ingress_value(after)) for one in opened]
            writes += [Delete(one) for one in old if one not in new]
            outcome = commit(store, [Unchanged(key, modified), *(Absent(one) for one in opened)], writes)
            if outcome.succeeded:
                return after
            _refuse_ports(opened, outcome.found)
            tries.again()


def _read(store: Cluster, service: Service) -> tuple[int, Service] | None:
    """The service as the store has it, behind the revision that wrote it; None: it is gone."""
    key = keys.service_key(service)
    entry = store.list(key).entries.get(key)
    found = keys.row_of(key, entry.value) if entry is not None else None
    if entry is None or not isinstance(found, Service) or found.id != service.id:
        return None
    return entry.modified, found


def gone(service: Service) -> NotFoundError:
    """That another host has removed it."""
    return NotFoundError(f"no such service: {service.name}: it was removed on another host")


def remove(store: Cluster, service: Service) -> None:
    """Removes a service for all hosts. One that is gone is fine."""
    tries = Tries(f"removing service {service.name}")
    key = keys.service_key(service)
    with store.within(SECONDS):
        while True:
            known = _read(store, service)
            if known is None:
                return
            modified, found = known
            if commit(store, [Unchanged(key, modified)], [Delete(one) for one in _keys(found)]).succeeded:
                return
            tries.again()


def restore(store: Cluster, services: Iterable[Service]) -> list[str]:
    """Writes services again that the store has forgotten, unless something of them is another's by now. The keys of
    those that were."""
    written = []
    with store.within(SECONDS):
        for service in services:
            wanted = _keys(service.shared)
            there: list[Condition] = [Present(keys.NETWORKS + service.network_id)]
            conditions = [*there, *(Absent(key) for key in wanted)]
            if commit(store, conditions, [Put(key, value) for key, value in wanted.items()]).succeeded:
                written.append(keys.service_key(service))
    return written
