# SPDX-License-Identifier: Apache-2.0
"""The structs of abi.h that services are made of, as `structs` has those of the rest."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from datapath.dataplane.layout import BackendState, ServiceChoice
from datapath.model.parsing import Address


class ServiceKey(NamedTuple):
    service: int


class ServiceValue(NamedTuple):
    """`affinity`: seconds. A size of 0: no backend of that family is up."""

    network: int
    choice: ServiceChoice = "CHOICE_MAGLEV"
    affinity: int = 0
    seed: int = 0
    table4: int = 0
    size4: int = 0
    table6: int = 0
    size6: int = 0
    flags: int = 0


class SlotsKey(NamedTuple):
    table: int
    chunk: int


class SlotsValue(NamedTuple):
    """Numbers of backends; those that are missing at the end are 0."""

    backend: tuple[int, ...]


class BackendKey(NamedTuple):
    backend: int


class BackendValue(NamedTuple):
    service: int
    endpoint: int
    state: BackendState
    weight: int = 1
    addr4: Address | None = None
    addr6: Address | None = None


# The struct of abi.h that each class is.
STRUCTS: Mapping[type[Any], str] = {
    ServiceKey: "service_key",
    ServiceValue: "service",
    SlotsKey: "slots_key",
    SlotsValue: "slots",
    BackendKey: "backend_key",
    BackendValue: "backend",
}
