# SPDX-License-Identifier: Apache-2.0
"""What the plugin for netavark makes of what podman really sends."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ctl.netavark import config, podman
from datapath.errors import ConfigError

# What podman 5.8 and netavark's own tests sent, recorded; ids are shortened.
REQUESTS = [
    json.loads(line) for line in (Path(__file__).parent / "data/netavark.jsonl").read_text().splitlines()
]


def of(verb: str) -> list[dict[str, Any]]:
    return [one["stdin"] for one in REQUESTS if one["argv"][0] == verb]


@pytest.mark.parametrize("sent", of("create"), ids=lambda sent: str(sent["name"]))
def test_every_recorded_network_is_understood(sent: dict[str, Any]) -> None:
    """But for what cannot be: address management by nobody, options that mean nothing, routes elsewhere."""
    refused = {"f2": "IPAM driver", "n6": "IPAM driver", "n2": 'option "mine"', "n5": "all routes lead to"}
    if sent["name"] in refused:
        with pytest.raises(ConfigError, match=refused[sent["name"]]):
            config.network(sent)
        return
    made = config.network(sent)
    assert (made.name, made.owner, made.internal) == (sent["name"], "podman", sent["internal"])
    assert (made.ipv4, made.ipv6) == (True, sent["ipv6_enabled"])
    assert made.subnets == tuple(one["subnet"] for one in sent.get("subnets", ()))


@pytest.mark.parametrize("sent", of("setup"), ids=lambda sent: str(sent["container_name"]))
def test_every_recorded_container_is_understood(sent: dict[str, Any]) -> None:
    """Ports are held by podman itself; a repeated setup has the same key; what is null is not there."""
    network, options = sent["network"], sent["network_options"]
    network["options"] = {k: v for k, v in (network["options"] or {}).items() if k != "mine"} or None
    if not network["subnets"]:
        with pytest.raises(ConfigError, match="has no addresses"):
            config.attachment(sent, "/run/netns/x")
        return
    made = config.attachment(sent, "/run/netns/x")
    assert made.shared and made.again and made.allots
    assert made.key == f"{sent['container_id']}/{network['id']}" == config.key(sent)
    assert (made.name, made.sandbox) == (sent["container_name"], sent["container_id"])
    assert [made.endpoint.ip, *([made.endpoint.ip6] if made.endpoint.ip6 else [])] == options[
        "static_ips"
    ] or ([made.endpoint.ip6] == options["static_ips"])
    assert made.endpoint.mac == (options["static_mac"] or "")
    assert made.endpoint.driver_options == (
        f"com.docker.network.endpoint.ifname={options['interface_name']}",
    )
    assert made.network is not None
    assert ("com.docker.network.driver.mtu=1400" in made.network.options) == bool(
        (network["options"] or {}).get("mtu")
    )
    for text, one in zip(made.ports, sent["port_mappings"] or (), strict=True):
        last = one["range"] - 1
        more = f"-{one['host_port'] + last}", f"-{one['container_port'] + last}"
        span = f"{one['host_port']}{more[0] if last else ''}:{one['container_port']}{more[1] if last else ''}"
        assert text == f"{one['host_ip']}{':' if one['host_ip'] else ''}{span}/{one['protocol']}"


def test_podmans_networks_are_found_where_its_configuration_says(tmp_path: Path) -> None:
    """What cannot be read is passed over."""
    folder = tmp_path / "networks"
    folder.mkdir()
    (folder / "a.json").write_text(
        '{"name": "a", "subnets": [{"subnet": "10.1.0.0/24"}, {"subnet": "fd01::/64"}]}'
    )
    (folder / "b.json").write_text('{"name": "b"}')
    for number, text in enumerate(("{", "[]", "null", '{"name": "c", "subnets": [{"subnet": "x"}]}', "")):
        (folder / f"bad{number}.json").write_text(text)
    settings = tmp_path / "containers.conf"
    settings.write_text(f'[network]\nnetwork_config_dir = "{folder}"\n')
    found = podman.networks({"CONTAINERS_CONF": str(settings)})
    assert {name: [*map(str, prefixes)] for name, prefixes in found.items()} == {
        "a": ["10.1.0.0/24", "fd01::/64"],
        "b": [],
    }
    (tmp_path / "more.conf").write_text(f'[network]\nnetwork_config_dir = "{tmp_path}"\n')
    both = {"CONTAINERS_CONF": str(settings), "CONTAINERS_CONF_OVERRIDE": str(tmp_path / "more.conf")}
    assert podman.folder(both) == tmp_path
    settings.write_text("this is no TOML")
    assert podman.folder({"CONTAINERS_CONF": str(settings)}) == podman.FOLDER
