# SPDX-License-Identifier: Apache-2.0
"""Where Docker's plugins are found: sockets and specifications in folders, as moby's pkg/plugins looks for them."""

from __future__ import annotations

import json
import stat
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from datapath.errors import PluginError
from datapath.model.plugins import Plugin

_SUFFIXES = (".sock", ".spec", ".json")  # in this order
_LONGEST = 1 << 16  # bytes of a specification


def _usable(name: str) -> bool:
    """It can be the name of a file: one of a managed plugin, as `weaveworks/net-plugin:latest`, is of none."""
    return (
        bool(name) and name.isprintable() and "/" not in name and name not in (".", "..") and len(name) < 200
    )


def _candidates(folders: Sequence[Path], name: str) -> Iterator[Path]:
    """Files that would be of the plugin: sockets first, in any folder."""
    for suffix in _SUFFIXES:
        for folder in folders:
            yield folder / f"{name}{suffix}"
            yield folder / name / f"{name}{suffix}"


def find(folders: Sequence[Path], name: str) -> Plugin | None:
    """The plugin of that name; None: there is none. PluginError: its specification cannot be read."""
    if not _usable(name):
        return None
    for path in _candidates(folders, name):
        try:
            mode = path.stat().st_mode
        except OSError:
            continue
        if path.suffix == ".sock" and stat.S_ISSOCK(mode):
            return Plugin(name, f"unix://{path}")
        if path.suffix != ".sock" and stat.S_ISREG(mode):
            return _specified(name, path)
    return None


def names(folders: Sequence[Path]) -> list[str]:
    """The names of all plugins that there are, whether they answer or not."""
    found = set()
    for folder in folders:
        with suppress(OSError):
            for path in folder.iterdir():
                inside = path / f"{path.name}.sock"
                if path.suffix in _SUFFIXES and not path.is_dir():
                    found.add(path.stem)
                elif path.is_dir() and inside.exists():
                    found.add(path.name)
    return sorted(name for name in found if _usable(name))


def _specified(name: str, path: Path) -> Plugin:
    try:
        text = path.read_bytes()[:_LONGEST].decode()
    except (OSError, UnicodeDecodeError) as error:
        raise PluginError(f"plugin {name}: {path} cannot be read: {error}") from None
    if path.suffix == ".spec":
        return Plugin(name, _address(name, path, text.strip()))
    try:
        fields = _folded(json.loads(text))
        tls = _folded(fields.get("tlsconfig") or {})
    except (ValueError, RecursionError, AttributeError) as error:
        raise PluginError(f"plugin {name}: {path} is no specification in JSON: {error}") from None
    files = {key: tls.get(key) or "" for key in ("cafile", "certfile", "keyfile")}
    if not all(isinstance(value, str) for value in (fields.get("addr"), *files.values())):
        raise PluginError(f"plugin {name}: {path} needs an Addr, and paths in TLSConfig")
    return Plugin(
        name,
        _address(name, path, str(fields["addr"])),
        ca=files["cafile"],
        certificate=files["certfile"],
        key=files["keyfile"],
        # Docker checks no certificate where it is not told whose signature it has to have.
        verify=bool(tls) and bool(files["cafile"]) and not tls.get("insecureskipverify"),
    )


def _folded(fields: Any) -> dict[str, Any]:
    """With names in small letters: Go takes either."""
    return {key.lower(): value for key, value in fields.items()}


def _address(name: str, path: Path, text: str) -> str:
    if "://" not in text or "\n" in text or not text.isprintable():
        raise PluginError(
            f"plugin {name}: {path} has no address such as unix:///run/{name}.sock or tcp://HOST:PORT"
        )
    return text
