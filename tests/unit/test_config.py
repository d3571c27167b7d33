# SPDX-License-Identifier: Apache-2.0
"""Directories from options and environment, and Docker's daemon.json."""

from __future__ import annotations

import json
import os
from ipaddress import IPv4Interface, ip_address, ip_network
from pathlib import Path
from typing import Any

import pytest

from datapath.config.daemon import DaemonConfig
from datapath.config.settings import Settings
from datapath.errors import ConfigError, PrivilegeError
from datapath.model.clusters import Advertise
from datapath.model.pools import DEFAULT_POOLS, Pool


@pytest.mark.parametrize(
    ("environ", "overrides", "state_dir"),
    [
        ({}, {}, "/var/lib/datapath"),
        ({"DATAPATH_STATE_DIR": "/x"}, {}, "/x"),
        ({"DATAPATH_STATE_DIR": "/x"}, {"state_dir": "/y"}, "/y"),
        ({"DATAPATH_STATE_DIR": "/x"}, {"state_dir": None}, "/x"),
    ],
)
def test_an_option_goes_before_the_environment_before_the_default(
    environ: dict[str, str], overrides: dict[str, str | None], state_dir: str
) -> None:
    assert Settings.from_env(environ, **overrides).state_dir == Path(state_dir)


@pytest.mark.parametrize(
    ("variable", "field", "default"),
    [
        ("DATAPATH_STATE_DIR", "state_dir", "/var/lib/datapath"),
        ("DATAPATH_RUN_DIR", "run_dir", "/run/datapath"),
        ("DATAPATH_BPFFS", "bpffs", "/sys/fs/bpf/datapath"),
        ("DATAPATH_CONFIG", "config_path", "/etc/datapath/daemon.json"),
    ],
)
def test_every_directory_has_a_variable_and_a_default(variable: str, field: str, default: str) -> None:
    assert getattr(Settings.from_env({}), field) == Path(default)
    assert getattr(Settings.from_env({variable: "/elsewhere"}), field) == Path("/elsewhere")


@pytest.mark.parametrize("value", ["relative", "./x", "a\0b"])
def test_a_directory_that_depends_on_where_one_stands_is_refused(value: str) -> None:
    with pytest.raises(ConfigError, match="absolute path"):
        Settings.from_env({"DATAPATH_STATE_DIR": value})


@pytest.mark.parametrize(
    "variable",
    [f"DATAPATH_{name}" for name in ("STATE_DIR", "RUN_DIR", "BPFFS", "CONFIG", "CGROUP", "ATTACH")],
)
def test_a_variable_that_is_empty_is_not_the_default(variable: str) -> None:
    """`DATAPATH_STATE_DIR="$UNSET" datapathctl down` would take down another installation."""
    with pytest.raises(ConfigError, match=variable):
        Settings.from_env({variable: ""})


def test_an_option_that_is_empty_is_not_the_default() -> None:
    with pytest.raises(ConfigError, match="is empty"):
        Settings.from_env({"DATAPATH_STATE_DIR": "/x"}, state_dir="")


def test_the_control_group_is_the_root_unless_one_is_named() -> None:
    assert Settings.from_env({}).cgroup is None
    assert Settings.from_env({"DATAPATH_CGROUP": "/sys/fs/cgroup/part"}).cgroup == Path("/sys/fs/cgroup/part")
    with pytest.raises(ConfigError, match=r"DATAPATH_CGROUP is .* absolute path"):
        Settings.from_env({"DATAPATH_CGROUP": "part"})


@pytest.mark.parametrize(
    ("value", "valid"), [("auto", True), ("tcx", True), ("clsact", True), ("xdp", False)]
)
def test_the_kind_of_attachment_can_be_forced(value: str, valid: bool) -> None:
    if valid:
        assert Settings.from_env({"DATAPATH_ATTACH": value}).attach == value
    else:
        with pytest.raises(ConfigError, match="auto, tcx or clsact"):
            Settings.from_env({"DATAPATH_ATTACH": value})


@pytest.mark.parametrize(
    ("key", "value", "field", "expected"),
    [
        ("icc", False, "icc", False),
        ("ip-masq", False, "ip_masq", False),
        ("ip", "127.0.0.1", "ip", ip_address("127.0.0.1")),
        ("ip", "0.0.0.0", "ip", None),
        ("ipv6", True, "ipv6", True),
        ("mtu", 1400, "mtu", 1400),
        ("mtu", 0, "mtu", 0),
        ("bip", "10.1.0.1/16", "bip", IPv4Interface("10.1.0.1/16")),
        ("bip6", "fd00::1/64", "bip6", None),
        ("fixed-cidr", "172.17.4.0/24", "fixed_cidr", ip_network("172.17.4.0/24")),
        ("fixed-cidr-v6", "fd00::/64", "fixed_cidr_v6", ip_network("fd00::/64")),
        (
            "default-address-pools",
            [{"base": "10.10.0.0/16", "size": 24}],
            "default_address_pools",
            (Pool(ip_network("10.10.0.0/16"), 24),),
        ),
        (
            "default-network-opts",
            {"bridge": {"com.docker.network.driver.mtu": "1234"}},
            "default_network_opts",
            {"bridge": {"com.docker.network.driver.mtu": "1234"}},
        ),
        ("dns", ["1.1.1.1", "fd00::53"], "dns", ("1.1.1.1", "fd00::53")),
        ("dns-opts", ["ndots:1"], "dns_opts", ("ndots:1",)),
        ("dns-search", ["example.org"], "dns_search", ("example.org",)),
    ],
)
def test_dockers_keys_are_understood(key: str, value: Any, field: str, expected: Any) -> None:
    found = getattr(DaemonConfig.parse(json.dumps({key: value})), field)
    assert str(found) == value if field == "bip6" else found == expected


@pytest.mark.parametrize("text", ["", "  \n", "{}"])
def test_an_empty_file_means_all_defaults(text: str) -> None:
    assert DaemonConfig.parse(text) == DaemonConfig()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "invalid JSON"),
        ("[]", "expected a JSON object"),
        ('{"icc": true, "icc": false}', '"icc" is given twice'),
        ('{"colour": 1}', 'don\'t match any configuration option: "colour"'),
        ('{"a": 1, "b": 2}', '"a", "b"'),
        ('{"iptables": false}', '"iptables" has no meaning here'),
        ('{"userland-proxy": false}', '"userland-proxy" has no meaning here'),
        ('{"live-restore": true}', '"live-restore" has no meaning here'),
        ('{"icc": "false"}', '"icc" must be true or false'),
        ('{"icc": 0}', '"icc" must be true or false'),
        ('{"mtu": "1500"}', '"mtu" must be a number'),
        ('{"mtu": true}', '"mtu" must be a number'),
        ('{"mtu": 20}', "invalid mtu 20"),
        ('{"mtu": 70000}', "invalid mtu 70000"),
        ('{"bip": 5}', '"bip" must be a string'),
        ('{"bip": ""}', '"bip" is empty'),
        ('{"bip6": ""}', '"bip6" is empty'),
        ('{"fixed-cidr": ""}', '"fixed-cidr" is empty'),
        ('{"fixed-cidr-v6": ""}', '"fixed-cidr-v6" is empty'),
        ('{"ip": ""}', '"ip" is empty'),
        ('{"dns": [""]}', '"dns" is empty'),
        ('{"dns-opts": ["ndots:1", ""]}', '"dns-opts" is empty'),
        ('{"dns-search": [""]}', '"dns-search" is empty'),
        ('{"default-address-pools": [{"base": "", "size": 24}]}', '"default-address-pools.base" is empty'),
        (
            '{"default-network-opts": {"bridge": {"com.docker.network.driver.mtu": ""}}}',
            '"default-network-opts.bridge.com.docker.network.driver.mtu" is empty',
        ),
        ('{"bip": "10.0.0.1"}', "invalid bip"),
        ('{"bip": "10.0.0.0/16"}', "must be an address of a host"),
        ('{"bip": "fd00::1/64"}', "expected IPv4"),
        ('{"bip6": "10.0.0.1/8"}', "expected IPv6"),
        ('{"bip": "10.0.0.1/16", "fixed-cidr": "10.1.0.0/24"}', "invalid fixed-cidr"),
        ('{"bip": "10.0.0.1/16", "fixed-cidr": "10.0.0.0/8"}', "invalid fixed-cidr"),
        ('{"default-gateway": "10.1.0.1"}', '"default-gateway" has no meaning here'),
        ('{"default-gateway-v6": "fd00::9"}', '"default-gateway-v6" has no meaning here'),
        ('{"ipv6": true, "mtu": 1000}', "needs at least 1280 bytes"),
        ('{"datapath": []}', '"datapath" must be an object'),
        ('{"datapath": {"max-conns": 1}}', '"datapath" has no "max-conns": there are max-connections'),
        ('{"datapath": {"max-connections": "many"}}', '"datapath.max-connections" must be a whole number'),
        ('{"datapath": {"max-connections": true}}', "must be a whole number"),
        ('{"datapath": {"max-connections": 1}}', "invalid datapath.max-connections 1: expected 64 to"),
        ('{"datapath": {"timeouts": 5}}', '"datapath.timeouts" must be an object'),
        ('{"datapath": {"timeouts": {"tcp": 5}}}', '"datapath.timeouts" has no "tcp"'),
        ('{"datapath": {"timeouts": {"udp": 0}}}', "invalid datapath.timeouts.udp 0"),
        ('{"datapath": {"flood-limit": {}}}', "needs a rate"),
        ('{"datapath": {"flood-limit": {"rate": 0}}}', "invalid datapath.flood-limit.rate 0"),
        ('{"datapath": {"flood-limit": {"rate": 1, "per": "s"}}}', '"datapath.flood-limit" has no "per"'),
        ('{"fixed-cidr": "10.0.0.1/24"}', "it should be 10.0.0.0/24"),
        ('{"ip": "x"}', "invalid ip"),
        ('{"dns": "1.1.1.1"}', '"dns" must be a list of strings'),
        ('{"dns": [1]}', '"dns" must be a list of strings'),
        ('{"dns": ["one"]}', "invalid address in dns"),
        ('{"default-address-pools": {}}', "must be a list"),
        ('{"default-address-pools": [{"base": "10.0.0.0/8"}]}', "exactly the keys base and size"),
        ('{"default-address-pools": [{"base": "10.0.0.0/16", "size": 8}]}', "invalid size 8"),
        ('{"default-address-pools": [{"base": "10.0.0.0/16", "size": 33}]}', "invalid size 33"),
        ('{"default-address-pools": [{"base": "10.0.0.0", "size": 24}]}', "invalid base"),
        ('{"default-network-opts": {"bridge": ["a"]}}', "must be an object of options"),
        ('{"default-network-opts": {"bridge": {"a": 1}}}', "must be a string"),
    ],
)
def test_a_wrong_daemon_json_is_refused_by_the_name_of_the_key(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        DaemonConfig.parse(text)
    assert str(caught.value).isprintable()


def test_the_file_is_read_from_where_the_settings_say(tmp_path: Path) -> None:
    path = tmp_path / "daemon.json"
    path.write_text('{"icc": false}')
    assert DaemonConfig.load(Settings.from_env({"DATAPATH_CONFIG": str(path)})).icc is False


def test_a_missing_file_is_no_error_unless_it_was_asked_for(tmp_path: Path) -> None:
    missing = tmp_path / "none.json"
    assert DaemonConfig.load(Settings(config_path=missing)) == DaemonConfig()
    with pytest.raises(ConfigError, match="does not exist"):
        DaemonConfig.load(Settings.from_env({}, config_path=str(missing)))


@pytest.mark.parametrize("content", [b"\xff\xfe", b'{"icc": 1}'])
def test_an_error_in_the_file_names_the_file(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "daemon.json"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=str(path)):
        DaemonConfig.load(Settings(config_path=path))


def test_a_directory_in_place_of_the_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        DaemonConfig.load(Settings(config_path=tmp_path))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_an_unreadable_file_is_a_matter_of_privilege(tmp_path: Path) -> None:
    path = tmp_path / "daemon.json"
    path.touch(mode=0)
    with pytest.raises(PrivilegeError):
        DaemonConfig.load(Settings(config_path=path))


def test_a_family_without_pools_of_its_own_keeps_dockers() -> None:
    only6 = DaemonConfig.parse('{"default-address-pools": [{"base": "fd00:1::/48", "size": 64}]}')
    assert [str(p.base) for p in only6.pools("x")] == ["fd00:1::/48", *(str(p.base) for p in DEFAULT_POOLS)]
    only4 = DaemonConfig.parse('{"default-address-pools": [{"base": "10.0.0.0/8", "size": 24}]}')
    assert [p.base.version for p in only4.pools("x")] == [4, 6]


@pytest.mark.parametrize(
    ("store", "options", "said"),
    [
        ("consul://a:1", {}, '"consul" is not served, only etcd'),
        ("a:2379", {}, "expected etcd://HOST:PORT"),
        ("etcd://", {}, "expected etcd://HOST:PORT"),
        ("etcd://a:0", {}, "there is no port 0"),
        ("etcd://a:99999", {}, "there is no port 99999"),
        ("etcd://a:b", {}, '"a:b" is not HOST:PORT'),
        ("etcd://a,", {}, '"" is not HOST:PORT'),
        ("etcd://[fe80]:1", {}, "invalid address in cluster-store"),
        ("etcd://a_b:1", {}, '"a_b:1" is not HOST:PORT'),
        ("etcd://a:1/x y", {}, '"x y" cannot be the beginning of keys'),
        ("etcd://a:1/", {}, '"" cannot be the beginning of keys'),
        ("etcd://a:1", {"kv.colour": "blue"}, '"kv.colour" is unknown: there are kv.cacertfile'),
        ("etcd://a:1", {"kv.cacertfile": "ca.crt"}, '"ca.crt" is not an absolute path'),
        ("etcd://a:1", {"kv.certfile": "/c"}, "kv.certfile and kv.keyfile go together"),
        ("etcd://a:1", {"kv.username": "u"}, "kv.username and kv.passwordfile go together"),
        ("etcd://a:1", {"discovery.ttl": "0"}, 'invalid discovery.ttl "0"'),
        ("etcd://a:1", {"discovery.ttl": "5"}, "discovery.heartbeat 10 is not less than discovery.ttl 5"),
        ("etcd://a:1", {"vxlan.port": "65536"}, 'invalid vxlan.port "65536": expected 1 to 65535'),
        ("", {"kv.path": "x"}, '"cluster-store-opts" needs "cluster-store"'),
    ],
)
def test_s37_a_cluster_store_that_cannot_be_is_refused(
    store: str, options: dict[str, str], said: str
) -> None:
    wanted: dict[str, Any] = {"cluster-store": store} if store else {}
    wanted |= {"cluster-store-opts": options} if options else {}
    with pytest.raises(ConfigError) as caught:
        DaemonConfig.parse(json.dumps(wanted))
    assert said in str(caught.value)


def test_s23_a_cluster_store_is_named_in_dockers_words() -> None:
    assert DaemonConfig.parse("{}").cluster is None
    options = {"kv.cacertfile": "/ca", "kv.certfile": "/c", "kv.keyfile": "/k", "discovery.ttl": "60"}
    wanted = {
        "cluster-store": "etcd://a.example,[2001:db8::1]:1,10.0.0.1:2/lab/one",
        "cluster-store-opts": options,
    }
    found = DaemonConfig.parse(json.dumps(wanted)).cluster
    assert found is not None and str(found) == "etcd://a.example:2379,[2001:db8::1]:1,10.0.0.1:2"
    assert (found.prefix, found.tls, found.ttl, found.heartbeat) == ("lab/one/datapath/v1", True, 60, 10)


@pytest.mark.parametrize(
    ("advertise", "said"),
    [
        ("", '"cluster-advertise" is empty'),
        ("192.0.2.1:0", "there is no port 0"),
        ("192.0.2.1:70000", "there is no port 70000"),
        ("192.0.2.1:x", "expected ADDRESS[:PORT] or DEVICE[:PORT]"),
        ("192.0.2.300", 'invalid address in cluster-advertise: "192.0.2.300"'),
        ("[2001:db8::1", "expected ADDRESS[:PORT] or DEVICE[:PORT]"),
        ("2001:db8::zz", 'invalid address in cluster-advertise: "2001:db8::zz"'),
        ("a name", "expected ADDRESS[:PORT] or DEVICE[:PORT]"),
        ("a-device-of-too-many-letters", "expected ADDRESS[:PORT] or DEVICE[:PORT]"),
        ("0.0.0.0:2376", "other hosts cannot reach 0.0.0.0"),
        ("127.0.0.1", "other hosts cannot reach 127.0.0.1"),
        ("fe80::1", "other hosts cannot reach fe80::1"),
    ],
)
def test_s37_an_address_that_cannot_be_advertised_is_refused(advertise: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        DaemonConfig.parse(json.dumps({"cluster-store": "etcd://a:1", "cluster-advertise": advertise}))
    assert said in str(caught.value)


def test_s37_an_advertised_address_needs_a_cluster_store() -> None:
    with pytest.raises(ConfigError, match='"cluster-advertise" needs "cluster-store"'):
        DaemonConfig.parse('{"cluster-advertise": "192.0.2.1"}')


@pytest.mark.parametrize(
    ("advertise", "address", "device"),
    [
        ("192.0.2.1:2376", "192.0.2.1", ""),
        ("192.0.2.1", "192.0.2.1", ""),
        ("[2001:db8::1]:2376", "2001:db8::1", ""),
        ("2001:db8::1", "2001:db8::1", ""),
        ("eth0:2376", None, "eth0"),
        ("bond0.12", None, "bond0.12"),
    ],
)
def test_s23_this_hosts_address_is_named_in_dockers_words(
    advertise: str, address: str | None, device: str
) -> None:
    wanted = {"cluster-store": "etcd://a:1", "cluster-advertise": advertise}
    found = DaemonConfig.parse(json.dumps(wanted)).cluster_advertise
    assert found == Advertise(ip_address(address) if address else None, device)
