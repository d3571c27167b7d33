# SPDX-License-Identifier: Apache-2.0
"""The rows of policies in the maps of the packet programs (docs/decisions/0067): in force as a whole, or not at all.

Keys begin with a generation. Rows of a new one are written beside those in force, one write of `policy_state` puts them
into force, and those of the one before are deleted. Who is killed between leaves rows of neither: the next that writes
deletes them first.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from datapath.dataplane.policy_rows import TABLES, Content, content, hit_key
from datapath.errors import ConfigError
from datapath.kernel import abi
from datapath.kernel.bpf_maps import Map, cut
from datapath.model.policies import By
from datapath.plan.policies.rows import Rows

STATE = "policy_state"


class Hit(NamedTuple):
    """What a rule has decided: openings that it has let pass; packets that it has refused, or openings that it would
    have; ns of CLOCK_MONOTONIC when it last has, 0: never."""

    openings: int = 0
    packets: int = 0
    last: int = 0


class Policies:
    """Those that are in force. `maps`: opens a map by its name. All methods raise KernelError and its kinds."""

    def __init__(self, maps: Callable[[str], Map]) -> None:
        self._maps = maps

    def generation(self) -> int:
        """Of those in force; 0: there are none."""
        return int(self._maps(STATE)[0].generation)

    def apply(self, rows: Rows, former: Sequence[By] = ()) -> None:
        """Puts these into force in the place of others. `former`: the rules of those, `Rows.rules`: those that stay
        keep their hits. ConfigError: there is no room for the rows. Nothing has changed if it fails."""
        if not rows.active:
            self.clear()
            return
        wanted = {**content(rows), "rule_hits": {hit_key(n): b"" for n in range(1, len(rows.rules) + 1)}}
        state = self._maps(STATE)[0]
        present = self._settle(state.generation)
        for name, made in wanted.items():
            room = self._maps(name).max_entries - len(present[name])
            if len(made) > room:
                raise ConfigError(
                    f"the policies need {len(made):,} {TABLES[name].what}, and there is room for {room:,} beside those "
                    "in force: nothing was changed"
                )
        generation = max(state.last, state.generation) + 1
        try:
            for name in TABLES.keys() - {"rule_hits"}:
                self._write(name, wanted[name], generation)
            # The last, so that little is counted between.
            self._write("rule_hits", self._hits_for(rows.rules, former), generation)
            self._maps(STATE)[0] = abi.policy_state(generation, generation)
        except BaseException:
            if self.generation() != generation:
                self.sweep()
            raise
        self._delete(present)

    def clear(self) -> None:
        """From now on there are none. Idempotent."""
        state = self._maps(STATE)[0]
        present = self._settle(state.generation)
        if state.generation:
            self._maps(STATE)[0] = abi.policy_state(0, max(state.last, state.generation))
        self._delete(present)

    def sweep(self) -> None:
        """Deletes rows that are of nothing in force. They were left by who was killed, and do nothing. Idempotent."""
        self._settle(self.generation())

    def leftovers(self) -> int:
        """How many rows `sweep` would delete."""
        generation = self.generation()
        return sum(len(stale) for _, stale in (self._split(name, generation) for name in TABLES))

    def current(self) -> Content:
        """What is in force, as it is read back. It is `policy_rows.content` of the rows that were applied."""
        generation = self.generation()
        found: dict[str, dict[bytes, bytes]] = {name: {} for name in TABLES if name != "rule_hits"}
        for name, rows in found.items() if generation else ():
            table = TABLES[name]
            sizes = abi.layout(table.key).size, abi.layout(table.value).size
            for keys, values, _ in self._maps(name).batches():
                pairs = zip(cut(keys, sizes[0]), cut(values, sizes[1]), strict=True)
                rows.update((table.key_of(k, 0), v) for k, v in pairs if table.generation(k) == generation)
        return found

    def hits(self) -> Mapping[int, Hit]:
        """What each rule of those in force has decided, by its number."""
        generation = self.generation()
        found = self._maps("rule_hits").read_all() if generation else ()
        return {key.rule: Hit(*row) for key, row in found if key.generation == generation}

    def _hits_for(self, rules: Sequence[By], former: Sequence[By]) -> dict[bytes, bytes]:
        before = self.hits() if former else {}
        known = {by: before.get(number, Hit()) for number, by in enumerate(former, 1)}
        pack = abi.layout("rule_hit").pack
        return {hit_key(number): pack(known.get(by, Hit())) for number, by in enumerate(rules, 1)}

    def _split(self, name: str, generation: int) -> tuple[list[bytes], list[bytes]]:
        """The keys of the generation, and all others."""
        table, split = TABLES[name], (list[bytes](), list[bytes]())
        size = abi.layout(table.key).size
        for keys, _, _ in self._maps(name).batches():
            for key in cut(keys, size):
                split[not generation or table.generation(key) != generation].append(key)
        return split

    def _settle(self, generation: int) -> dict[str, list[bytes]]:
        """The keys of what is in force, once those of nothing in force have gone."""
        present = {}
        for name in TABLES:
            present[name], stale = self._split(name, generation)
            self._maps(name).delete_raw(stale)
        return present

    def _write(self, name: str, rows: Mapping[bytes, bytes], generation: int) -> None:
        of = TABLES[name].key_of
        self._maps(name).update_raw(b"".join([of(key, generation) for key in rows]), b"".join(rows.values()))

    def _delete(self, keys: Mapping[str, list[bytes]]) -> None:
        for name, gone in keys.items():
            self._maps(name).delete_raw(gone)
