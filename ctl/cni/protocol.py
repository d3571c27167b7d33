# SPDX-License-Identifier: Apache-2.0
"""The protocol of CNI: what a runtime says in the environment and on stdin, checked, and errors as it wants them.

Nothing heavy is imported here: runtimes ask for VERSION and STATUS again and again.
"""

from __future__ import annotations

import json
import re

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

VERSIONS = ("0.3.1", "0.4.0", "1.0.0", "1.1.0")  # of the specification, ascending
# Verb -> the first version that has it, and the variables that it cannot do without.
VERBS: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "ADD": ("0.3.1", ("CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME")),
    "DEL": ("0.3.1", ("CNI_CONTAINERID", "CNI_IFNAME")),
    "CHECK": ("0.4.0", ("CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME")),
    "GC": ("1.1.0", ()),
    "STATUS": ("1.1.0", ()),
}
# Error codes of the specification.
INCOMPATIBLE, UNSUPPORTED, UNKNOWN, ENVIRONMENT, UNREADABLE, INVALID = 1, 2, 3, 4, 6, 7
LATER, UNAVAILABLE, LIMITED = 11, 50, 51
OWN = 100  # and from here on a plugin's own
_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]*")
_IFNAME = re.compile(r"[^\s/:]{1,15}")


class CniError(Exception):
    """What the runtime is told: one line, a code of the specification or one from 100 on, and more about it."""

    def __init__(self, code: int, message: str, details: str = "") -> None:
        super().__init__(message)
        self.code, self.message, self.details = code, message, details

    def text(self, version: str) -> str:
        """The JSON of the error."""
        body = {"cniVersion": version, "code": self.code, "msg": self.message}
        return json.dumps(body | ({"details": self.details} if self.details else {}))


def unsupported(key: str, value: object, why: str) -> CniError:
    """A key of the configuration that is understood, and whose value cannot be served."""
    return CniError(UNSUPPORTED, f"{key}: {json.dumps(value)} is not supported: {why}")


class Call:
    """One call: the verb, and what it is about. `args`: CNI_ARGS; `config`: the network's configuration, `raw` as it
    came; `path`: folders of plugins."""

    def __init__(self, environ: Mapping[str, str], raw: bytes) -> None:
        self.environ, self.raw = environ, raw
        self.verb = environ.get("CNI_COMMAND", "")
        self.container, self.ifname = environ.get("CNI_CONTAINERID", ""), environ.get("CNI_IFNAME", "")
        self.netns = environ.get("CNI_NETNS", "")
        self.path = [folder for folder in environ.get("CNI_PATH", "").split(":") if folder]
        self.config: dict[str, Any] = {}
        self.args: dict[str, str] = {}

    @property
    def version(self) -> str:
        """That of the configuration; before it is known, or if it is none, the newest."""
        version = self.config.get("cniVersion")
        return version if isinstance(version, str) else VERSIONS[-1]

    def at_least(self, version: str) -> bool:
        """The configuration is of that version of the specification or a later one."""
        return VERSIONS.index(self.version) >= VERSIONS.index(version)

    def check(self) -> None:
        """Reads and checks all of it, for every verb but VERSION. CniError."""
        if self.verb not in VERBS:
            raise CniError(ENVIRONMENT, f"unknown CNI_COMMAND: {self.verb or 'it is empty'}")
        self.config = decode(self.raw)
        since, required = VERBS[self.verb]
        given = self.config.get("cniVersion", "0.1.0")
        if given not in VERSIONS:
            self.config.pop("cniVersion", None)
            details = f"supported versions: {', '.join(VERSIONS)}"
            raise CniError(INCOMPATIBLE, f"incompatible CNI version {given!r}", details)
        if not self.at_least(since):
            raise CniError(
                INCOMPATIBLE, f"config version {given} does not allow {self.verb}, which {since} has"
            )
        missing = [name for name in required if not self.environ.get(name)]
        if missing:
            raise CniError(ENVIRONMENT, f"required environment variables are missing: {', '.join(missing)}")
        name = self.config.get("name")
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise CniError(INVALID, f"invalid network name {json.dumps(name)}")
        if required:
            self._check_names()

    def _check_names(self) -> None:
        if not _NAME.fullmatch(self.container):
            raise CniError(ENVIRONMENT, f"invalid CNI_CONTAINERID: {json.dumps(self.container)}")
        if not _IFNAME.fullmatch(self.ifname) or self.ifname in (".", ".."):
            raise CniError(ENVIRONMENT, f"invalid CNI_IFNAME: {json.dumps(self.ifname)}")
        for word in filter(None, self.environ.get("CNI_ARGS", "").split(";")):
            key, equals, value = word.partition("=")
            if not equals:
                raise CniError(ENVIRONMENT, f"invalid CNI_ARGS: {json.dumps(word)} is no KEY=VALUE")
            self.args[key] = value


def decode(raw: bytes) -> dict[str, Any]:
    """The object that is on stdin. CniError."""
    try:
        config = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise CniError(UNREADABLE, "the network configuration on stdin is no JSON", str(error)) from None
    if not isinstance(config, dict):
        raise CniError(UNREADABLE, "the network configuration on stdin is no JSON object")
    return config
