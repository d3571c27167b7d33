# SPDX-License-Identifier: Apache-2.0
"""The ways in which a host can differ from what was promised. Pure."""

from datapath.model.findings import Kind

_ANY = "the next command that changes something, or `datapathctl reconcile`"
_RECONCILE = "`datapathctl reconcile`"
_DOWN = "`datapathctl down`, then start the containers again"

STORE = Kind("store", "commands refuse to work; packets go on", "put a copy of the state directory back")
LEFTOVER = Kind(
    "leftover",
    "programs are at work, and what was promised is not known",
    "put a copy of the state directory back, or `datapathctl down`",
)
BUSY = Kind(
    "busy", "a command is at work: what is said here may be out of date", "look again when it is done"
)
UNFINISHED = Kind("unfinished", "a command was killed before it was done", _ANY)
ENDED = Kind("ended", "its end was not noticed; its addresses and ports are still taken", _ANY)
DEAD = Kind(
    "dead",
    "its address and ports are still taken",
    "whoever asks for its address or ports next, or `datapathctl reconcile`",
)
DRIVER = Kind(
    "driver",
    "the network can be shown and removed, no more",
    "an installation that has the driver, or `network rm`",
)
PROGRAMS = Kind("programs", "new connections of containers do not work, or nothing does", _ANY)
UNREADABLE = Kind(
    "unreadable",
    "commands cannot tell the packet programs anything",
    "the version of datapath that pinned it; or remove every pin, then `datapathctl reconcile`",
)
OUTDATED = Kind(
    "outdated", "packets pass as in that version; what is new does not work", "`datapathctl upgrade`"
)
SETTINGS = Kind(
    "settings",
    "daemon.json says other limits than are in force",
    f"`datapathctl upgrade`; of table sizes: {_DOWN}",
)
GATEWAY = Kind("gateway", "the host and its containers on this network do not reach each other", _ANY)
FOREIGN_DEVICE = Kind(
    "foreign-device",
    "the network's device cannot be made",
    "rename that device, then `datapathctl reconcile`",
)
PAIR = Kind("pair", "the container has no way into this network", _RECONCILE)
RENAMED = Kind("renamed", "packets pass; commands do not find the device", _RECONCILE)
DOWN = Kind("down", "no packet passes this device", _RECONCILE)
MAC = Kind("mac", "packets are sent to, or refused from, the wrong MAC address", _RECONCILE)
MTU = Kind("mtu", "large packets are lost, or needlessly split", _ANY)
ADDRESS = Kind("address", "who uses this address gets no answer", _RECONCILE)
ROUTE = Kind("route", "the container does not reach the outside", _RECONCILE)
SYSCTL = Kind("sysctl", "the kernel treats the device's packets otherwise", _RECONCILE)
RESERVED = Kind("reserved", "the kernel may give a published port to a socket of the host", _ANY)
DETACHED = Kind("detached", "the packets of this device are not translated, or not checked", _RECONCILE)
MISSING = Kind("entry-missing", "the packet programs do not know it", _RECONCILE)
WRONG = Kind("entry-wrong", "the packet programs know it wrongly", _RECONCILE)
STRAY = Kind("entry-stray", "the packet programs know something that is not promised", _RECONCILE)
UNBRIDGED = Kind("unbridged", "the container reaches nobody on this network", _RECONCILE)
FORWARDING = Kind("forwarding", "classic networks have no way outside; or the host forwards needlessly", _ANY)
RULE_MISSING = Kind(
    "rule-missing", "the packet filter keeps packets from a classic network, or lets too many in", _RECONCILE
)
RULE_STRAY = Kind("rule-stray", "the packet filter treats a classic network's packets otherwise", _RECONCILE)
RULE_ORDER = Kind("rule-order", "the packet filter decides by the wrong rule first", _RECONCILE)
STRAY_DEVICE = Kind("stray-device", "a device is left over", _RECONCILE)
STRAY_PIN = Kind("stray-pin", "a program or link is kept alive for nothing", _RECONCILE)
STRAY_FILES = Kind("stray-files", "files are left over", _RECONCILE)
FILES = Kind("files", "the container's exit code and logs cannot be kept", _RECONCILE)

KINDS = {kind.name: kind for kind in list(globals().values()) if isinstance(kind, Kind)}
