# SPDX-License-Identifier: Apache-2.0
"""Requests to the plugin that is a network's driver."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from datapath.drivers.context import Context
from datapath.drivers.remote import words
from datapath.drivers.remote.client import NotImplementedByPlugin
from datapath.errors import PluginError
from datapath.model.fields import Fields
from datapath.model.networks import Network


class Requests:
    """Those of one command."""

    def __init__(self, context: Context) -> None:
        self._context = context

    def call(self, network: Network, method: str, fields: Mapping[str, Any]) -> Fields:
        """Something that has to be done. PluginError: what becomes of it is to be taken back."""
        try:
            return self._call(network, method, fields)
        except PluginError:
            self.fail(fields)
            raise

    def attempt(self, network: Network, method: str, fields: Mapping[str, Any]) -> Fields:
        """The same, if the plugin has the method; nothing, if it has not."""
        try:
            return self._call(network, method, fields)
        except NotImplementedByPlugin:
            return {}
        except PluginError:
            self.fail(fields)
            raise

    def fail(self, fields: Mapping[str, Any]) -> None:
        """What a request was about was not made: what the plugin says when it is taken back is of no interest."""
        self._context.plugins.failed.add(fields.get("EndpointID") or fields["NetworkID"])

    def tell(
        self, network: Network, method: str, fields: Mapping[str, Any], missing_ok: bool = False
    ) -> None:
        """Something that is taken away, whatever the plugin says: that is a warning. `missing_ok`: not every plugin
        has the method."""
        try:
            self._call(network, method, fields)
        except PluginError as error:
            about = fields.get("EndpointID") or fields.get("NetworkID")
            expected = missing_ok and isinstance(error, NotImplementedByPlugin)
            if not expected and about not in self._context.plugins.failed:
                self._context.warn_once(f"network {network.name}: {error}")

    def _call(self, network: Network, method: str, fields: Mapping[str, Any]) -> Fields:
        return self._context.plugins.call(network.driver, words.NETWORK, method, fields)
