# SPDX-License-Identifier: Apache-2.0
"""The key "datapath" of daemon.json, which Docker does not have: table sizes, time-outs and limits. Pure.

    {"datapath": {"max-connections": 262144, "timeouts": {"udp": 180}, "flood-limit": {"rate": 100, "burst": 200}}}

They apply when the packet programs are loaded: with the first network, or after `datapathctl down`; those that are
no table sizes also after `datapathctl upgrade`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from datapath.errors import ConfigError, quoted

KEY = "datapath"

# Seconds. The established, half-closed and UDP ones are those of the kernel's own connection tracking, but for the
# first's five days, which nothing needs: a connection that is alive is seen again, and picked up, at any time.
TIMEOUTS = {
    "handshake": 60,
    "established": 24 * 3600,
    "half-closed": 120,
    "closing": 10,
    "udp": 180,
    "udp-exchange": 30,
    "icmp": 60,  # RFC 5508, REQ-2
}

_DAYS = 30 * 24 * 3600
_LIMIT = 2**32 - 1

# Key: least and most.
_NUMBERS = {
    "max-connections": (64, 8 << 20),
    "max-pending": (64, 8 << 20),
    "max-ports": (64, 1 << 20),
    "max-sources": (64, 1 << 20),
    "max-endpoints": (64, 1 << 20),
    "max-flows": (64, 8 << 20),
    "max-flow-totals": (64, 8 << 20),
    "max-connections-per-container": (0, _LIMIT),
    "max-openings-per-container": (0, _LIMIT),
    "dns-ttl": (0, 24 * 3600),
    "plugin-timeout": (1, 600),
    "wireguard-port": (1, 65535),
}


@dataclass(frozen=True, slots=True)
class Tuning:
    """`max_connections`: confirmed ones; `max_pending`: openings that nobody has answered; `max_ports`: single
    ports and host addresses; `max_sources`: prefixes of allow= and deny=; `max_endpoints`: addresses of containers;
    `max_flows`: what members of networks with flows do now; `max_flow_totals`: totals of who has done what.

    Of one container, 0 without limit: confirmed connections, openings that were not confirmed. `flood_rate` and
    `flood_burst`: openings from outside by one address (IPv6: /64), a second and at once; 0: without limit. `dns_ttl`:
    seconds that containers may keep what a name of ours resolves to; `plugin_timeout`: seconds that a command waits for
    an answer of a plugin of Docker's; `wireguard_port`: of UDP, where this host receives what is encrypted. These apply
    with the next changing command.
    """

    max_connections: int = 262144
    max_pending: int = 32768
    max_ports: int = 262144
    max_sources: int = 65536
    max_endpoints: int = 65536
    max_flows: int = 65536
    max_flow_totals: int = 16384
    max_connections_per_container: int = 131072
    max_openings_per_container: int = 16384
    timeouts: Mapping[str, int] = field(default_factory=lambda: dict(TIMEOUTS))
    flood_rate: int = 0
    flood_burst: int = 0
    dns_ttl: int = 0
    plugin_timeout: int = 30
    wireguard_port: int = 51820

    @property
    def config(self) -> dict[str, int]:
        """Fields of `struct config`."""
        return {
            **{f"timeout_{name.replace('-', '_')}": seconds for name, seconds in self.timeouts.items()},
            "max_conns": self.max_connections_per_container,
            "max_openings": self.max_openings_per_container,
            "flood_rate": self.flood_rate,
            "flood_burst": self.flood_burst,
        }

    @property
    def sizes(self) -> dict[str, int]:
        """Entries of maps. A connection has two."""
        return {
            "conns": 2 * self.max_connections,
            "pending": 2 * self.max_pending,
            "ports": self.max_ports,
            "origins": self.max_ports,
            "reserved": min(self.max_ports, 131072),
            "bindings": 2 * self.max_ports,
            "acls": self.max_sources,
            "endpoints": self.max_endpoints,
            "devices": self.max_endpoints,
            "members": self.max_endpoints,
            "quotas": self.max_endpoints,
            "limits": 2 * self.max_endpoints,
            "resolvers": self.max_endpoints,
            "parties": self.max_endpoints,
            "flows": self.max_flows,
            "edges": self.max_flow_totals,
            "names": max(262144, 4 * self.max_endpoints),
            "arrivals": self.max_endpoints,
            "externals": max(self.max_connections // 4, 1024),
            "mappings": max(self.max_connections // 4, 1024),
        }

    @classmethod
    def parse(cls, value: Any) -> Tuning:
        """The value of the key. ConfigError names what is unknown, of a wrong type, or out of range."""
        values: dict[str, Any] = {}
        for key, item in _object("", value, (*_NUMBERS, "timeouts", "flood-limit")).items():
            if key == "timeouts":
                given = _object(key, item, TIMEOUTS)
                seconds = {name: _number(f"{key}.{name}", n, 1, _DAYS) for name, n in given.items()}
                values["timeouts"] = {**TIMEOUTS, **seconds}
            elif key == "flood-limit":
                given = _object(key, item, ("rate", "burst"))
                if "rate" not in given:
                    raise ConfigError(
                        f"the directive {quoted(f'{KEY}.{key}')} needs a rate (openings a second)"
                    )
                rate = values["flood_rate"] = _number(f"{key}.rate", given["rate"], 1, 1_000_000)
                values["flood_burst"] = _number(f"{key}.burst", given.get("burst", rate), 1, 1_000_000)
            else:
                values[key.replace("-", "_")] = _number(key, item, *_NUMBERS[key])
        return cls(**values)


def different(wanted: Mapping[str, int], actual: Mapping[str, int]) -> str:
    """What programs that are loaded have otherwise, as "conns 2048 (not 4096)"; "" when all is as wanted."""
    return ", ".join(
        f"{name} {actual[name]} (not {value})" for name, value in wanted.items() if actual[name] != value
    )


def drift(wanted: Tuning, config: Mapping[str, int], sizes: Mapping[str, int]) -> str:
    """The same of settings and sizes, and after what those of daemon.json apply."""
    both = different({**wanted.config, **wanted.sizes}, {**config, **sizes})
    after = "down" if different(wanted.sizes, sizes) else "upgrade"
    return f"{both}; those of daemon.json apply after `{after}`" if both else ""


def _object(key: str, value: Any, known: Any) -> dict[str, Any]:
    where = f"{KEY}.{key}" if key else KEY
    if type(value) is not dict:
        raise ConfigError(f"the directive {quoted(where)} must be an object")
    for name in value:
        if name not in known:
            there = ", ".join(known)
            raise ConfigError(f"the directive {quoted(where)} has no {quoted(name)}: there are {there}")
    return value


def _number(key: str, value: Any, least: int, most: int) -> int:
    if type(value) is not int:
        raise ConfigError(f"the directive {quoted(f'{KEY}.{key}')} must be a whole number")
    if not least <= value <= most:
        raise ConfigError(f"invalid {KEY}.{key} {value}: expected {least} to {most}")
    return value
