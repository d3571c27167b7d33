# SPDX-License-Identifier: Apache-2.0
"""The networks that podman knows, from its own files: it asks no plugin whether subnets overlap, and tells none which
there are."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path

from datapath.errors import ConfigError
from datapath.model.parsing import Prefix, parse_prefix

FOLDER = Path("/etc/containers/networks")
# Later ones go before earlier ones, as podman reads them.
_FILES = ("/usr/share/containers/containers.conf", "/etc/containers/containers.conf")
_VARIABLES = ("CONTAINERS_CONF", "CONTAINERS_CONF_OVERRIDE")


def networks(environ: Mapping[str, str]) -> dict[str, list[Prefix]]:
    """The subnets of podman's networks, by name; what cannot be read is passed over."""
    found: dict[str, list[Prefix]] = {}
    for path in sorted(folder(environ).glob("*.json")):
        with suppress(OSError, ValueError, TypeError, AttributeError, KeyError, ConfigError):
            network = json.loads(path.read_text())
            subnets = network.get("subnets") or ()
            found[str(network["name"])] = [parse_prefix(str(one["subnet"]), "subnet") for one in subnets]
    return found


def folder(environ: Mapping[str, str]) -> Path:
    """Where podman keeps its networks."""
    chosen = FOLDER
    for path in _configurations(environ):
        with suppress(OSError, ValueError, AttributeError):
            section = tomllib.loads(path.read_text()).get("network", {})
            chosen = Path(section.get("network_config_dir") or chosen)
    return chosen


def _configurations(environ: Mapping[str, str]) -> Iterator[Path]:
    if "CONTAINERS_CONF" not in environ:
        yield from map(Path, _FILES)
    yield from (Path(environ[name]) for name in _VARIABLES if environ.get(name))
