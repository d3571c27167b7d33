# SPDX-License-Identifier: Apache-2.0
"""The names of Docker's containers and networks, which it tells no driver, and containers' labels: shown to users, and
kept in the rows."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace

from datapath.errors import DatapathError
from datapath.host import Host
from datapath.model.state import State

from . import OWNER, daemon
from .daemon import Known

# Seconds: from a request to the first question, for others that come with it; and to the next one, while a name is not
# known yet, as that of a container that is being started.
_PAUSES = (0.3, 1.0, 2.0, 5.0, 10.0)


def of_sandboxes(state: State, known: Known) -> dict[str, str]:
    """Sandbox id -> the name of the container that Docker has in it."""
    found = {}
    for endpoint in state.endpoints.values():
        name = known.containers.get(endpoint.owner_key)
        if name and state.owner(endpoint) == OWNER:
            found[endpoint.sandbox_id] = name
    return found


def labels_of(state: State, known: Known) -> dict[str, Mapping[str, str]]:
    """Sandbox id -> the labels of the container that Docker has in it."""
    return {
        endpoint.sandbox_id: known.labels[endpoint.owner_key]
        for endpoint in state.endpoints.values()
        if endpoint.owner_key in known.labels and state.owner(endpoint) == OWNER
    }


def of_networks(state: State, known: Known) -> dict[str, str]:
    """Network id -> Docker's name of it, unless another of ours is called so."""
    mine = {ident: name for ident, name in known.networks.items() if ident in state.networks}
    return {
        ident: name
        for ident, name in mine.items()
        if state.networks[ident].owner == OWNER
        and (state.find_network(name) or state.networks[ident]).id == ident
    }


def named(state: State, known: Known) -> State:
    """The state, with the names that Docker has at the moment."""
    found = of_sandboxes(state, known)
    return state.including(*(replace(state.sandboxes[ident], name=name) for ident, name in found.items()))


class Learner:
    """A thread that asks for names once Docker has made something, and is quiet again. They are for who reads the
    rows without asking, such as the text that names the holder of a port."""

    def __init__(self, host: Host, environment: Mapping[str, str]) -> None:
        self._host, self._environment = host, environment
        self._news, self._ended = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, name="names", daemon=True)
        self._thread.start()

    def notice(self) -> None:
        """There is something new."""
        self._news.set()

    def close(self) -> None:
        """What it is at is completed."""
        self._ended.set()
        self._news.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._ended.is_set():
            self._news.wait()
            if self._ended.is_set():
                return
            for pause in _PAUSES:
                ended = self._ended.wait(pause)
                self._news.clear()
                with suppress(DatapathError, ExceptionGroup):  # names are not worth a word
                    if self._learn() or ended:
                        break

    def _learn(self) -> bool:
        """Every name is known."""
        known = daemon.ask(self._environment)
        if known is None:
            return False
        state = self._host.snapshot()
        sandboxes = {
            state.sandboxes[ident].owner_key: name
            for ident, name in of_sandboxes(state, known).items()
            if state.sandboxes[ident].name != name
        }
        labels = {
            state.sandboxes[ident].owner_key: found
            for ident, found in labels_of(state, known).items()
            if state.sandboxes[ident].labels != found
        }
        networks = {
            i: name for i, name in of_networks(state, known).items() if state.networks[i].name != name
        }
        if sandboxes or labels:
            self._host.sandboxes.rename(OWNER, sandboxes, labels)
        for ident, name in networks.items():
            self._host.networks.rename(ident, name, OWNER)
        theirs = {s.id for s in state.sandboxes.values() if s.owner == OWNER and s.key}
        return theirs <= of_sandboxes(state, known).keys()
