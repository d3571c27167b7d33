# SPDX-License-Identifier: Apache-2.0
"""Address management by another plugin, which `ipam` of the configuration names: called as the plugin itself is."""

from __future__ import annotations

import json
import os
import subprocess
from typing import Any

from .protocol import ENVIRONMENT, INVALID, OWN, UNREADABLE, Call, CniError, unsupported

FAILED = OWN + 1


def delegate(call: Call, verb: str = "") -> dict[str, Any]:
    """Calls the plugin, for this verb or the call's own; its result. CniError: its own error."""
    name = plugin(call)
    program = _find(name, call)
    environ = {**call.environ, "CNI_COMMAND": verb or call.verb}
    try:
        done = subprocess.run([program], input=call.raw, env=environ, stdout=subprocess.PIPE)
    except OSError as error:
        raise CniError(FAILED, f"IPAM plugin {name} cannot be run: {error.strerror}") from None
    try:
        said = json.loads(done.stdout) if done.stdout.strip() else {}
    except ValueError:
        raise CniError(UNREADABLE, f"IPAM plugin {name} has not answered with JSON") from None
    if not isinstance(said, dict):
        raise CniError(UNREADABLE, f"IPAM plugin {name} has not answered with a JSON object")
    if done.returncode:
        code = said.get("code")
        message = said.get("msg") or f"it ended with exit code {done.returncode}"
        details = str(said.get("details") or "")
        raise CniError(code if isinstance(code, int) else FAILED, f"IPAM plugin {name}: {message}", details)
    return said


def plugin(call: Call) -> str:
    """The plugin's name. CniError: the configuration names none that could serve."""
    ipam = call.config["ipam"]
    name = ipam.get("type") if isinstance(ipam, dict) else None
    if not isinstance(name, str) or not name or "/" in name or name in (".", ".."):
        raise CniError(
            INVALID, f"ipam: {json.dumps(ipam)} names no plugin: leave ipam out for datapath's own"
        )
    if name == "dhcp":
        # It asks through the container's device, which is to be there, without an address. Here an address is known
        # before its device, which sends from no other.
        raise unsupported(
            "ipam.type",
            name,
            "a network is routed, and no DHCP server of the LAN is on it: host-local and static are",
        )
    return name


def _find(name: str, call: Call) -> str:
    for folder in call.path:
        program = os.path.join(folder, name)
        if os.access(program, os.X_OK) and os.path.isfile(program):
            return program
    raise CniError(
        ENVIRONMENT, f"IPAM plugin {name} is not in CNI_PATH ({':'.join(call.path) or 'it is empty'})"
    )
