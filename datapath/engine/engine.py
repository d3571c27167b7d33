# SPDX-License-Identifier: Apache-2.0
"""The engine of a host: transactions, one at a time on the whole host, and snapshots for readers.

Readers take no lock.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from typing import TYPE_CHECKING

from datapath.config.daemon import DaemonConfig
from datapath.config.settings import Settings
from datapath.drivers.context import Context
from datapath.engine import leases, names, networks, policies, ports, recovery
from datapath.engine.transaction import Owner, Transaction
from datapath.errors import DatapathError, InUseError, StateError
from datapath.model.rows import OWNER
from datapath.model.state import State
from datapath.store import heard, reserve
from datapath.store.sqlite import SQLiteStore, initial
from datapath.store.translation import no_space, obstacle, read_only

if TYPE_CHECKING:
    from datapath.model.findings import Finding
    from datapath.model.host import HostNetwork

PATIENCE = 60.0  # seconds that a command waits for the lock


def ignore(line: str) -> None:
    """Takes warnings that nobody wants to see."""


class Engine:
    """The network engine of one host. `warn` takes lines that the user should see and that are no errors. `owners`:
    the runtimes of this process, which are asked when a command begins. `lasting`: the process will give many commands,
    so the store stays open after the first one already."""

    def __init__(
        self,
        settings: Settings,
        warn: Callable[[str], None] = ignore,
        owners: Sequence[Owner] = (),
        lasting: bool = False,
    ) -> None:
        self.settings = settings
        self.warn = warn
        self.owners = {owner.name: owner for owner in owners}
        self._commands = 1 if lasting else 0
        self._kept: SQLiteStore | None = None

    # ---- changing, and looking ---------------------------------------------------------------

    @contextmanager
    def changing(
        self,
        create: bool = True,
        upgrading: bool = False,
        leaving: bool = False,
        freeing: bool = False,
        patience: float = PATIENCE,
    ) -> Iterator[Transaction]:
        """One command that changes something: the lock is taken, what a killed command left is taken back or
        completed, containers that have ended are noticed, and the host's changes followed.

        Without `create` there has to be a store. `upgrading`: nobody has to be told that the packet programs are of
        another version. `leaving`: all of it goes, so nothing is built again, and programs of a version whose maps
        cannot be read are no obstacle. `freeing`: it takes something away, and may use the space that is kept for
        that on a full disk. `patience`: seconds to wait for the lock. PrivilegeError, StateError, KernelError,
        ConfigError.
        """
        from datapath.dataplane import version
        from datapath.kernel import features

        features.require()  # before files are read that only root may read
        config = DaemonConfig.load(self.settings)
        context = Context(self.settings, config.datapath, self.warn)
        # What is kept is made again last, when the journal is gone, which takes some.
        with ExitStack() as last, ExitStack() as stack:
            if short := freeing and reserve.release(self.settings.state_dir):
                last.callback(reserve.restore, self.settings.state_dir)
            store = stack.enter_context(self._opened(create))
            _keep(stack.enter_context(store.lock(patience)), stack)
            if (copy := store.file.kept) and not leaving:
                store.file.kept = None
                self.warn(f"the state database was of an earlier version; how it was is kept in {copy}")
            if short:  # another such command may have made it again
                reserve.release(self.settings.state_dir)
                store.save_space()
            elif not freeing:
                self._refuse_spent(last, upgrading)
            stack.enter_context(context)
            tx = Transaction(self.settings, config, store, context, self.owners, self.warn)
            stack.callback(tx.link.close)
            if leaving:
                context.unusable = not version.understood(self.settings.bpffs)
                recovery.clear_up(tx)
            elif upgrading and version.to_carry(self.settings.bpffs):
                yield tx  # nobody can use the maps before they are carried over
                recovery.recover(tx, upgrading)
                self._finish(tx)
                self._advise(tx)
                return
            else:
                recovery.recover(tx, upgrading)
            stack.callback(self._finish, tx)
            yield tx
            self._advise(tx)

    def _advise(self, tx: Transaction) -> None:
        """A command that was refused has said so itself."""
        if tx.link.refused is not None:
            self.warn(str(tx.link.refused))

    def _refuse_spent(self, last: ExitStack, upgrading: bool) -> None:
        """StateError, unless `upgrading`, if there is only space that a command gave up which takes something away. It
        cannot make it again while another one has the lock, so that is done `last` here."""
        folder = self.settings.state_dir
        if not reserve.spent(folder):
            return
        last.callback(reserve.restore, folder)
        if not upgrading:
            raise StateError(f"{folder} cannot be written: {no_space(folder)}")

    def _finish(self, tx: Transaction) -> None:
        if tx.store.exists(self.settings.state_dir):
            reserve.keep(self.settings.state_dir)
            leases.settle(tx)
            ports.reserve(tx)
            for part, view in tx.parts():
                part.finish(view)
            policies.follow(tx)

    def refresh(self, patience: float = PATIENCE) -> HostNetwork | None:
        """Follows what the host has become, as every changing command does when it begins. The host as it was observed;
        None: nothing is there that would follow. Errors as those of `changing`."""
        if not self.exists:
            return None
        with self.changing(create=False, freeing=True, patience=patience) as tx:  # it adds nothing
            return tx.observed

    @contextmanager
    def _opened(self, create: bool) -> Iterator[SQLiteStore]:
        """The store, for one command; a process that gives many keeps it open for the next one."""
        kept, self._kept = self._kept, None  # another thread opens its own
        if kept is not None and not kept.current:
            kept.close()
            kept = None
        with ExitStack() as stack:
            store = stack.enter_context(kept or SQLiteStore(self.settings.state_dir, create=create))
            yield store
            self._commands += 1
            # A command line gives one, and leaves the file whole. One that has failed is not trusted.
            if self._commands > 1 and self._kept is None and store.current:
                self._kept = store
                stack.pop_all()

    def snapshot(self) -> State:
        """The desired state, as of one moment; where there is no store, what one begins with, and none is made.
        StateError, PrivilegeError."""
        folder = self.settings.state_dir
        if self.exists:
            try:
                with SQLiteStore(folder, create=False, reading=True) as store:
                    return store.load()
            except StateError:
                if self.exists:
                    raise  # it was not taken away meanwhile
        return initial(folder)

    def shown(self) -> State:
        """The same for showing it to users: with what other owners call their sandboxes now."""
        state = self.snapshot()
        for owner in self.owners.values():
            state = owner.named(state)
        return state

    def refuse_read_only(self) -> None:
        """StateError if nothing can be recorded: before a process is ended, whose end would have to be."""
        if self.exists and read_only(self.settings.state_dir):
            raise StateError(
                f"{self.settings.state_dir} cannot be written: {obstacle(self.settings.state_dir)}"
            )

    @property
    def exists(self) -> bool:
        """This host has a desired state, or had one: there is a store."""
        return SQLiteStore.exists(self.settings.state_dir)

    # ---- the installation ----------------------------------------------------------------------

    def doctor(self, reach: bool = False) -> list[Finding]:
        """What differs from the desired state. Takes no lock, changes nothing. `reach`: and what is wrong on the way
        to other hosts, which takes up to three seconds if it is."""
        from datapath.engine import doctor
        from datapath.kernel import features

        features.require()
        if self.exists and self.owners:
            with suppress(StateError):  # which is a finding
                state = self.snapshot()
                for owner in self.owners.values():
                    owner.look(state)
        config, unreadable = doctor.configuration(self.settings)
        found = [*unreadable, *doctor.examine(self.settings, config, self.owners)]
        if reach and self.exists:
            from datapath.engine import reachability

            found += reachability.examine(self.settings, found)
        return found

    def reconcile(self) -> tuple[list[Finding], list[Finding], list[Exception]]:
        """Repairs what can be: (what was repaired, what is left, what went wrong)."""
        from datapath.engine.reconcile import reconcile

        before = self.doctor()
        if not self.exists:
            return [], before, []
        with self.changing() as tx:
            found, left, failures = reconcile(tx)
        repaired = [finding for finding in dict.fromkeys([*before, *found]) if finding not in left]
        return repaired, left, failures if left else []

    def upgrade(self) -> bool:
        """Puts what is at work of this version in place of what is loaded; False: there was nothing to do. No packet
        is lost meanwhile."""
        from datapath.engine.reconcile import fill
        from datapath.kernel import features

        features.require()
        if not self.exists:
            return False
        with self.changing(create=False, upgrading=True) as tx:
            with names.expected(tx):
                done = [part.upgrade(view, lambda: fill(tx)) for part, view in tx.parts()]
            if any(done):
                names.lead_all(tx)
            return any(done)

    def refuse_foreign(self, force: bool) -> None:
        """InUseError if other owners have networks or sandboxes here, unless `force`."""
        from datapath.kernel import features

        features.require()
        state = self.snapshot() if self.exists and not force else State()
        found = {network.owner for network in state.networks.values()}
        owners = sorted((found | {sandbox.owner for sandbox in state.sandboxes.values()}) - {OWNER})
        if owners:
            raise InUseError(
                f"networks or sandboxes of {', '.join(owners)} are here: take them away there, or use --force"
            )

    def remove_all(self, tx: Transaction, failures: list[Exception]) -> None:
        """Takes every endpoint, network, program and pin away, and the state; ExceptionGroup: `failures` and those
        that come here. The transaction is a leaving one, owners have taken away what is theirs, and the rows of
        sandboxes and endpoints are those of `endpoints.going`."""
        from datapath.engine import endpoints, services, spanning

        def attempt(step: Callable[[], object]) -> None:
            try:
                step()
            except (DatapathError, ExceptionGroup) as error:
                failures.append(error)

        endpoints.remove_every(tx, failures)
        for service in list(tx.state.services.values()):
            attempt(lambda s=service: services.take_away(tx, s))  # type: ignore[misc]
        for network in list(tx.state.networks.values()):
            attempt(lambda n=network: networks.teardown(tx, n))  # type: ignore[misc]
        for part, view in tx.parts():
            attempt(lambda p=part, v=view: p.remove(v))  # type: ignore[misc]
        attempt(lambda: spanning.leave(tx))
        if failures:
            tx.context.unusable = True  # the programs are gone, or the next command has to take them away
            raise ExceptionGroup("not everything could be taken away", failures)
        ports.reserve(tx)
        tx.store.destroy()
        heard.discard(self.settings.run_dir)


def _keep(lock: int, stack: ExitStack) -> None:
    """Programs that the command starts hold its lock too: see `kernel.process.kept`."""
    from datapath.kernel import process

    process.kept.add(lock)
    stack.callback(process.kept.discard, lock)
