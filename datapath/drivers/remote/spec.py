# SPDX-License-Identifier: Apache-2.0
"""The specification of networks whose driver is a plugin: what such a network can do is the plugin's to say. Pure."""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping

from datapath.model.drivers import Spec, Traits
from datapath.model.networks import Network


class PluginSpec(Spec):
    """One for all plugins: a network's row has the name of its own."""

    plugin = True
    traits = Traits(acl=False, pair="plugin", lan=True)

    def offers(self, network: Network) -> bool:
        return network.plugin

    def device(
        self, ident: str, options: Mapping[str, str], networks: Iterable[Network], there: Container[str]
    ) -> str:
        """None that we know of."""
        return ""


PLUGIN = PluginSpec()
