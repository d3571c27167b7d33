# SPDX-License-Identifier: Apache-2.0
"""VERSION and STATUS: the verbs that runtimes repeat, answered without the library."""

from __future__ import annotations

import json
import os

from .protocol import LIMITED, UNAVAILABLE, VERSIONS, Call, CniError, decode

STATE_DIR = "/var/lib/datapath"  # as by default in the settings, whose import takes longer than an answer


def version(call: Call) -> str:
    """The versions of the specification that are served."""
    asked = decode(call.raw).get("cniVersion") if call.raw.strip() else None
    return json.dumps({"cniVersion": asked or VERSIONS[-1], "supportedVersions": VERSIONS})


def status(call: Call) -> str:
    """Whether containers can be served now; so far as can be told at once. CniError."""
    if os.geteuid() != 0:
        raise CniError(UNAVAILABLE, "the plugin has to be run by root")
    if not os.path.isdir("/sys/fs/bpf"):
        raise CniError(UNAVAILABLE, "this kernel offers no BPF file system at /sys/fs/bpf")
    if call.config.get("ipam") is not None:
        from .ipam import delegate

        try:
            delegate(call)
        except CniError as error:  # whatever it is, addresses cannot be had: STATUS has two codes
            code = error.code if error.code == LIMITED else UNAVAILABLE
            raise CniError(code, error.message, error.details) from error
    elif _may_be_full(call):
        from .verbs import require_address

        require_address(call)
    return ""


def _may_be_full(call: Call) -> bool:
    path = os.path.join(call.environ.get("DATAPATH_STATE_DIR") or STATE_DIR, "datapath.db")
    if not os.path.exists(path):
        return False
    from datapath.store.room import may_be_full

    return may_be_full(path, str(call.config.get("network") or call.config["name"]))
