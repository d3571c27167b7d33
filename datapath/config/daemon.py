# SPDX-License-Identifier: Apache-2.0
"""daemon.json, Docker's configuration file: the keys that are understood here."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Interface, IPv4Network, IPv6Interface, IPv6Network
from typing import Any, TypeVar

from datapath.config.logs import log_options
from datapath.config.settings import Settings
from datapath.config.tuning import KEY as TUNING_KEY
from datapath.config.tuning import Tuning
from datapath.errors import ConfigError, PrivilegeError, quoted
from datapath.model.clusters import Advertise, ClusterStore, parse_advertise, parse_cluster_store
from datapath.model.parsing import Address, Interface, Prefix, parse_address, parse_interface, parse_prefix
from datapath.model.pools import DEFAULT_POOLS, Pool, parse_pool, ula_pool

T = TypeVar("T", IPv4Interface | IPv6Interface, IPv4Network | IPv6Network)


@dataclass(frozen=True, slots=True)
class DaemonConfig:
    """Docker's daemon.json, as far as it is about networks and logs. Names are Docker's, `-` written `_`.

    All but pools, default_network_opts, dns*, log_opts and datapath (see config_tuning) are about the default network
    `bridge`. `mtu` 0: that of the host's default route. `ip`: where ports are published when the user names no
    address; None: everywhere.
    """

    icc: bool = True
    ip_masq: bool = True
    ip: Address | None = None
    ipv6: bool = False
    mtu: int = 0
    bip: IPv4Interface | None = None
    bip6: IPv6Interface | None = None
    fixed_cidr: Prefix | None = None
    fixed_cidr_v6: Prefix | None = None
    default_address_pools: tuple[Pool, ...] = ()
    default_network_opts: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    dns: tuple[str, ...] = ()
    dns_opts: tuple[str, ...] = ()
    dns_search: tuple[str, ...] = ()
    log_opts: Mapping[str, str] = field(default_factory=dict)
    cluster_store: str = ""
    cluster_store_opts: Mapping[str, str] = field(default_factory=dict)
    cluster_advertise: Advertise | None = None
    datapath: Tuning = field(default_factory=Tuning)

    def pools(self, installation_id: str) -> tuple[Pool, ...]:
        """Where networks without --subnet come from; a family that has none of its own uses the defaults."""
        given = {pool.base.version for pool in self.default_address_pools}
        defaults = (*DEFAULT_POOLS, ula_pool(installation_id))
        return (*self.default_address_pools, *(p for p in defaults if p.base.version not in given))

    @property
    def cluster(self) -> ClusterStore | None:
        """The store that hosts share; None: there is none. ConfigError."""
        if self.cluster_store:
            return parse_cluster_store(self.cluster_store, self.cluster_store_opts)
        if self.cluster_store_opts:
            raise ConfigError('the directive "cluster-store-opts" needs "cluster-store"')
        if self.cluster_advertise is not None:
            raise ConfigError('the directive "cluster-advertise" needs "cluster-store"')
        return None

    @classmethod
    def load(cls, settings: Settings) -> DaemonConfig:
        """The settings' file; all defaults if there is none and nobody asked for one. ConfigError."""
        path = settings.config_path
        try:
            text = path.read_text("utf-8")
        except FileNotFoundError:
            if settings.config_required:
                raise ConfigError(f"configuration file {path} does not exist") from None
            return cls()
        except PermissionError:
            raise PrivilegeError(f"configuration file {path} cannot be read: permission denied") from None
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"configuration file {path} cannot be read: {error}") from None
        try:
            return cls.parse(text)
        except ConfigError as error:
            raise ConfigError(f"configuration file {path}: {error}") from None

    @classmethod
    def parse(cls, text: str) -> DaemonConfig:
        """The text of a daemon.json. Keys that Docker has but that mean nothing here are refused, by name."""
        try:
            raw = json.loads(text, object_pairs_hook=_no_duplicates) if text.strip() else {}
        except (ValueError, RecursionError) as error:
            raise ConfigError(f"invalid JSON: {error}") from None
        if not isinstance(raw, dict):
            raise ConfigError("expected a JSON object")
        for key in raw:
            if key in _MEANINGLESS:
                why = _MEANINGLESS[key]
                raise ConfigError(f"the directive {quoted(key)} has no meaning here ({why}): remove it")
        unknown = ", ".join(quoted(key) for key in raw if key not in _PARSERS)
        if unknown:
            raise ConfigError(
                f"the following directives don't match any configuration option: {unknown}: "
                f"there are {', '.join(sorted(_PARSERS))}"
            )
        values = {key.replace("-", "_"): _PARSERS[key](key, value) for key, value in raw.items()}
        config = cls(**values)
        _check(config)
        return config


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        twice = next(key for key, _ in pairs if [k for k, _ in pairs].count(key) > 1)
        raise ConfigError(f"the directive {quoted(twice)} is given twice")
    return result


def _typed(key: str, value: Any, kind: type, name: str) -> Any:
    if type(value) is not kind:
        raise ConfigError(f"the directive {quoted(key)} must be {name}")
    return value


def _bool(key: str, value: Any) -> Any:
    return _typed(key, value, bool, "true or false")


def _mtu(key: str, value: Any) -> Any:
    if _typed(key, value, int, "a number") != 0 and not 68 <= value <= 65535:
        raise ConfigError(f"invalid {key} {value}: expected 0 (as the host) or 68 to 65535 bytes")
    return value


def _string(key: str, value: Any, kind: str = "a string") -> str:
    """What a program wrote from a variable that was not set is not the same as no directive."""
    if _typed(key, value, str, kind) == "":
        raise ConfigError(f"the directive {quoted(key)} is empty: remove it, or give it a value")
    return str(value)


def _strings(key: str, value: Any) -> tuple[str, ...]:
    kind = "a list of strings"
    return tuple(_string(key, item, kind) for item in _typed(key, value, list, kind))


def _addresses(key: str, value: Any) -> tuple[str, ...]:
    return tuple(str(parse_address(text, f"address in {key}")) for text in _strings(key, value))


def _host_ip(key: str, value: Any) -> Address | None:
    address = parse_address(_string(key, value), key)
    return None if address.is_unspecified else address


def _interface(version: int) -> Callable[[str, Any], Interface | None]:
    def parse(key: str, value: Any) -> Interface | None:
        return _family(key, parse_interface(_string(key, value), key), version)

    return parse


def _prefix(version: int) -> Callable[[str, Any], Prefix | None]:
    def parse(key: str, value: Any) -> Prefix | None:
        return _family(key, parse_prefix(_string(key, value), key), version)

    return parse


def _family(key: str, value: T, version: int) -> T:
    if value.version != version:
        raise ConfigError(f"invalid {key} {value}: expected IPv{version}")
    return value


def _pools(key: str, value: Any) -> tuple[Pool, ...]:
    pools: list[Pool] = []
    for item in _typed(key, value, list, "a list of {base, size}"):
        if not isinstance(item, dict) or set(item) != {"base", "size"}:
            raise ConfigError(f"each entry of {quoted(key)} must have exactly the keys base and size")
        base = _string(f"{key}.base", item["base"])
        size = _typed(f"{key}.size", item["size"], int, "a number")
        pools.append(parse_pool(base, size, key))
    return tuple(pools)


def _log_opts(key: str, value: Any) -> dict[str, str]:
    options = _typed(key, value, dict, "an object of options")
    return log_options((name, _string(f"{key}.{name}", text)) for name, text in options.items())


def _options(key: str, value: Any) -> dict[str, str]:
    options = _typed(key, value, dict, "an object of options")
    return {name: _string(f"{key}.{name}", text) for name, text in options.items()}


def _network_opts(key: str, value: Any) -> dict[str, dict[str, str]]:
    result: dict[str, dict[str, str]] = {}
    for driver, options in _typed(key, value, dict, "an object of drivers").items():
        where = f"{key}.{driver}"
        for name, text in _typed(where, options, dict, "an object of options").items():
            _string(f"{where}.{name}", text)
        result[driver] = options
    return result


_PARSERS: dict[str, Callable[[str, Any], Any]] = {
    "icc": _bool,
    "ip-masq": _bool,
    "ip": _host_ip,
    "ipv6": _bool,
    "mtu": _mtu,
    "bip": _interface(4),
    "bip6": _interface(6),
    "fixed-cidr": _prefix(4),
    "fixed-cidr-v6": _prefix(6),
    "default-address-pools": _pools,
    "default-network-opts": _network_opts,
    "dns": _addresses,
    "dns-opts": _strings,
    "dns-search": _strings,
    "log-opts": _log_opts,
    "cluster-store": _string,
    "cluster-store-opts": _options,
    "cluster-advertise": lambda key, value: parse_advertise(_string(key, value)),
    TUNING_KEY: lambda _, value: Tuning.parse(value),
}


_NETFILTER = "only networks with com.datapath.mode use packet filter rules"


_GATEWAY = "containers' packets leave through the network's own gateway device"


_PROXY = "there is no proxy process"


_MEANINGLESS = {
    "iptables": _NETFILTER,
    "ip6tables": _NETFILTER,
    "ip-forward": "packets are not forwarded by the host's stack",
    "ip-forward-no-drop": _NETFILTER,
    "firewall-backend": _NETFILTER,
    "bridge-accept-fwmark": _NETFILTER,
    "default-gateway": _GATEWAY,
    "default-gateway-v6": _GATEWAY,
    "allow-direct-routing": "not available yet",
    "userland-proxy": _PROXY,
    "userland-proxy-path": _PROXY,
    "bridge": "there is no Linux bridge; name the gateway device with default-network-opts",
    "live-restore": "nothing needs to be running",
    "host-gateway-ip": "not available yet",
    "host-gateway-ips": "not available yet",
    "resolv-conf": "not available yet",
    "network-control-plane-mtu": "there is no swarm",
    "swarm-default-advertise-addr": "there is no swarm",
    "network-diagnostic-port": "there is no swarm",
    "default-network-opt": "the key is called default-network-opts",
    "default-address-pool": "the key is called default-address-pools",
}


def _check(config: DaemonConfig) -> None:
    """What one key says about another. ConfigError."""
    _ = config.cluster  # whether it can be read
    if config.ipv6 and 0 < config.mtu < 1280:
        raise ConfigError(f"invalid mtu {config.mtu}: a network with IPv6 needs at least 1280 bytes")
    for suffix, bip, fixed in (
        ("", config.bip, config.fixed_cidr),
        ("-v6", config.bip6, config.fixed_cidr_v6),
    ):
        whole: Prefix | None = bip.network if bip is not None else fixed
        if bip is not None and bip.ip == bip.network.network_address:
            raise ConfigError(f"invalid bip {bip}: it must be an address of a host, such as {bip.network[1]}")
        if whole is None:
            continue
        if fixed is not None and (fixed.prefixlen < whole.prefixlen or fixed.network_address not in whole):
            raise ConfigError(f"invalid fixed-cidr{suffix} {fixed}: it is not within {whole} of bip")
