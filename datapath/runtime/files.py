# SPDX-License-Identifier: Apache-2.0
"""A container's folders: below the run directory hosts, resolv.conf, hostname and exit code; below the state directory
its log, which may be large and is there after a restart of the machine."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from datapath.config.settings import Settings
from datapath.dataplane.name_owners import has_names, is_told
from datapath.engine import names
from datapath.engine.transaction import Transaction
from datapath.errors import ConfigError, KernelError, quoted
from datapath.model.containers import Container
from datapath.model.endpoints import Endpoint
from datapath.model.rows import Phase
from datapath.runtime import etc, exit_code


def folder(settings: Settings, container: Container) -> Path:
    """Where the container's files are."""
    return settings.run_dir / "containers" / container.id


def log_folder(settings: Settings, container: Container) -> Path:
    """Where the container's log is."""
    return settings.state_dir / "containers" / container.id


def log_path(settings: Settings, container: Container) -> Path:
    """Its log; those of an earlier version have it elsewhere."""
    return Path(container.log_path) if container.log_path else log_folder(settings, container) / "log"


def folders(settings: Settings) -> frozenset[str]:
    """The ids of containers that have a folder below the run directory."""
    return _names(settings.run_dir / "containers")


def log_folders(settings: Settings) -> frozenset[str]:
    """Those that have one below the state directory."""
    return _names(settings.state_dir / "containers")


def _names(path: Path) -> frozenset[str]:
    try:
        return frozenset(os.listdir(path))
    except OSError:
        return frozenset()


def read_exit(settings: Settings, container: Container) -> int | None:
    """The exit code that the container's shim has recorded; None: it has not (yet)."""
    return exit_code.read(str(folder(settings, container) / "exit"))


def forget_exit(settings: Settings, container: Container) -> None:
    """Removes what the shim has recorded, before the container runs once more. KernelError."""
    path = folder(settings, container) / "exit"
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise KernelError("remove", str(path), error.errno or 0) from error


def make_run_dir(settings: Settings) -> None:
    """Before anything is changed: the directory may be impossible. ConfigError."""
    try:
        settings.run_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        where = quoted(str(settings.run_dir))
        raise ConfigError(f"run directory {where} cannot be made: {error.strerror}") from error


def make(settings: Settings, container: Container) -> Path:
    """Makes the container's folders; the first of them. KernelError."""
    path = folder(settings, container)
    for each, mode in ((path, 0o711), (log_folder(settings, container), 0o700)):
        try:
            each.mkdir(parents=True, exist_ok=True, mode=mode)
        except OSError as error:
            raise KernelError("make", str(each), error.errno or 0) from error
    return path


def remove(settings: Settings, container_id: str) -> None:
    """Removes the folders of a container, if there are any. KernelError if some of it stays."""
    import shutil  # three libraries of compression come with it

    for parent in (settings.run_dir, settings.state_dir):
        path = parent / "containers" / container_id
        try:
            shutil.rmtree(path)
        except FileNotFoundError:
            pass
        except OSError as error:
            raise KernelError("remove", str(error.filename or path), error.errno or 0) from error


def write_etc(tx: Transaction, container: Container) -> None:
    """The container's hosts, resolv.conf and hostname. Rewritten in place: the files are bind-mounted."""
    path = folder(tx.settings, container)
    path.mkdir(parents=True, exist_ok=True, mode=0o711)
    owner = tx.state.containers.get(container.sandbox_id, container)
    endpoints = tx.state.endpoints_of_sandbox(container.sandbox_id)
    try:
        host = Path("/etc/resolv.conf").read_text()
    except OSError:
        host = ""
    texts = {
        "hosts": etc.hosts(owner, endpoints, tx.state),
        "resolv.conf": _resolv_conf(tx, owner, host, endpoints),
        "hostname": f"{owner.hostname}\n",
    }
    for name, text in texts.items():
        _rewrite(path / name, text)


def _resolv_conf(tx: Transaction, owner: Container, host: str, endpoints: Sequence[Endpoint]) -> str:
    networks = {endpoint.id: tx.state.networks[endpoint.network_id] for endpoint in endpoints}
    answering = [
        networks[one.id]
        for one in endpoints
        if names.resolves(tx, networks[one.id])
        and (one.phase == Phase.CREATING or is_told(one, networks[one.id]))
    ]
    if answering:
        return etc.resolv_conf(owner, host, any(map(has_names, answering)))
    return etc.resolv_conf_of_host(owner, host, next(iter(networks.values()), None))


def _rewrite(path: Path, text: str) -> None:
    """Not if it says so already: emptying a file and filling it again makes some file systems write it out."""
    try:
        if path.read_bytes() == text.encode():
            return
    except OSError:
        pass  # there is none yet
    path.write_bytes(text.encode())
