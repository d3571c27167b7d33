# SPDX-License-Identifier: Apache-2.0
"""Which services a container is behind, and its labels, by which services choose theirs."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from datapath.model.networks import OPT_SERVICE

from .protocol import INVALID, Call, CniError

ANNOTATIONS = "io.kubernetes.cri.pod-annotations"  # of a pod, as containerd and CRI-O hand them on


def options(call: Call, wishes: Mapping[str, Any], argument: object) -> Iterator[str]:
    """The endpoint's option: as the pod's annotation says, else the argument `service`, else the configuration."""
    annotations = wishes.get(ANNOTATIONS) or {}
    if not isinstance(annotations, dict):
        raise CniError(INVALID, f"{ANNOTATIONS}: {json.dumps(annotations)} is no object")
    wanted = annotations.get(OPT_SERVICE) or argument or call.config.get("service")
    if wanted:
        yield f"{OPT_SERVICE}={wanted}"


def labels(given: object) -> dict[str, str]:
    """`args.cni.labels` as CNI's conventions have it: a list of objects with `key` and `value`. CniError."""
    found = {}
    if not isinstance(given, list | None):
        raise CniError(INVALID, f"args.cni.labels: {json.dumps(given)} is no list")
    for one in given or ():
        if not isinstance(one, dict) or not isinstance(one.get("key"), str):
            raise CniError(INVALID, f"args.cni.labels: {json.dumps(one)} has no key")
        found[one["key"]] = str(one.get("value", ""))
    return found
