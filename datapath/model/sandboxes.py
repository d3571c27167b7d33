# SPDX-License-Identifier: Apache-2.0
"""Sandboxes: network stacks, and the runtimes that own them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from datapath.model.parsing import HOSTNAME
from datapath.model.rows import OWNER, Phase, short

Labels = Mapping[str, Mapping[str, str]]  # of containers, by their owner's keys of their sandboxes


@dataclass(frozen=True, slots=True)
class Sandbox:
    """A network stack: one network namespace, or the host's own.

    `key`: the path of its namespace, /proc/PID/ns/net of a container's first process; "" while there is none, and
    "host" for the host's own.
    `owner`: the runtime that makes the namespace and takes it away. "datapath": our own, and `id` is then the id of
    the container that it was made for. "docker", "podman", "cni" or any other word of [a-z0-9_-]{1,32}: a foreign
    runtime, whose containers have no row here.
    `owner_key`: the owner's own identifier of the sandbox, such as a container id or the path of a namespace. No two
    sandboxes of one owner have the same, except "": the owner has given none.
    `name`: how a foreign sandbox is shown to users, NAME or NAMESPACE/NAME; "": by its id.
    `inode`: the kernel's number of the namespace that was adopted, so that another one that its path leads to later, as
    /proc/PID/ns/net may, is not taken for it; 0: not known.
    `labels`: of the container that is in a foreign sandbox, as far as its owner tells them.
    """

    id: str
    key: str = ""
    phase: Phase = Phase.CREATING
    owner: str = OWNER
    owner_key: str = ""
    name: str = ""
    inode: int = 0
    labels: Mapping[str, str] = field(default_factory=dict)

    @property
    def foreign(self) -> bool:
        """Somebody else's: its namespace is made and taken away by its owner."""
        return self.owner != OWNER

    @property
    def hostnames(self) -> tuple[str, ...]:
        """What the others on a network may call it, of what it is shown as: NAMESPACE/NAME is NAME, and
        NAME.NAMESPACE."""
        namespace, slash, name = self.name.rpartition("/")
        found = (name, f"{name}.{namespace}") if slash else (name,)
        return tuple(one for one in found if HOSTNAME.fullmatch(one))

    @property
    def label(self) -> str:
        """How users are shown it."""
        return self.name or self.owner_key or short(self.id)
