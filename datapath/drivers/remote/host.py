# SPDX-License-Identifier: Apache-2.0
"""What plugins are to the host: whether each of those that networks need answers."""

from __future__ import annotations

from datapath.drivers.base import HostPart
from datapath.drivers.context import HostView
from datapath.drivers.remote import words
from datapath.errors import PluginError
from datapath.model.networks import Network

_PATIENCE = 2.0  # seconds, for somebody who only looks


class PluginHost(HostPart):
    """Nothing is shared by their networks."""

    def check_removal(self, network: Network) -> None:
        if network.plugin:
            self.context.plugins.network_driver(network.driver)
        if network.leased:
            self.context.plugins.ipam_driver(network.ipam_driver)

    def look(self, view: HostView) -> dict[str, object]:
        return {"plugins": asked(self, view)}


def asked(part: HostPart, view: HostView) -> dict[tuple[str, str], str]:
    """(name, NETWORK or IPAM) of each plugin that networks need: why it is no help, "": it is one."""
    from datapath.drivers.remote.client import PluginCalls

    needed = set()
    for network in view.state.networks.values():
        if network.plugin:
            needed.add((network.driver, words.NETWORK))
        if network.leased:
            needed.add((network.ipam_driver, words.IPAM))
    calls = PluginCalls(part.context.settings.plugin_dirs, _PATIENCE, patient=False)
    found: dict[tuple[str, str], str] = {}
    for name, kind in sorted(needed):
        try:
            is_kind = kind in calls.activate(name)
            found[name, kind] = "" if is_kind else f"plugin {name} is no {kind}"
        except PluginError as error:
            found[name, kind] = str(error)
    return found
