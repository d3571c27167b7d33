# SPDX-License-Identifier: Apache-2.0
"""The checks that `doctor` makes of a host. Pure."""

from datapath.model.findings import Check

_ANY = "the next command that changes something, or `datapathctl reconcile`"
_RECONCILE = "`datapathctl reconcile`"
_DOWN = "`datapathctl down`, then start the containers again"

STORE = Check("store", "commands refuse to work; packets go on", "put a copy of the state directory back")
CONFIGURATION = Check("configuration", "commands refuse to work; packets go on", "correct that file")
OLDER = Check(
    "store-older",
    "it is read as it is; the first command that changes something takes it to this version, and keeps a copy",
    _ANY,
)
NEWER = Check(
    "store-newer", "commands of this version refuse to work; packets go on", "that version of datapath"
)
DISK = Check(
    "disk",
    "what would be recorded is refused; packets go on, and what there is can be read",
    "make room, or mount it writable",
)
LEFTOVER = Check(
    "leftover",
    "programs are at work, and the desired state is not known",
    "put a copy of the state directory back, or `datapathctl down`",
)
BUSY = Check(
    "busy", "a command is at work: what is said here may be out of date", "look again when it is done"
)
UNFINISHED = Check("unfinished", "a command was killed before it was done", _ANY)
ENDED = Check("ended", "its end was not noticed; its addresses and ports are still taken", _ANY)
DEAD = Check(
    "dead",
    "its address and ports are still taken",
    "the next command that needs its address or ports, or `datapathctl reconcile`",
)
FORGOTTEN = Check(
    "forgotten",
    "its owner does not know it any more: its addresses and ports are taken for nobody",
    "`datapathctl reconcile`",
)
FORGOTTEN_NETWORK = Check(
    "forgotten-network",
    "its owner does not know it any more: its subnet is taken for nobody",
    "`datapathctl network rm -f`, if no other daemon of its owner's has it",
)
DRIVER = Check(
    "driver",
    "the network can be shown and removed, no more",
    "an installation that has the driver, or `network rm`",
)
PROGRAMS = Check("programs", "new connections of containers do not work, or nothing does", _ANY)
UNREADABLE = Check(
    "unreadable",
    "commands cannot tell the packet programs anything",
    "the version of datapath that pinned it; or remove every pin, then `datapathctl reconcile`",
)
OUTDATED = Check(
    "outdated", "packets pass as in that version; what is new does not work", "`datapathctl upgrade`"
)
SETTINGS = Check(
    "settings",
    "daemon.json says other limits than are in force",
    f"`datapathctl upgrade`; of table sizes: {_DOWN}",
)
GATEWAY = Check("gateway", "the host and its containers on this network do not reach each other", _ANY)
FOREIGN_DEVICE = Check(
    "foreign-device",
    "the network's device cannot be made",
    "rename that device, then `datapathctl reconcile`",
)
PARENT = Check(
    "parent",
    "the network's containers reach nobody by it",
    "bring that device back, then `datapathctl reconcile`",
)
TUNNEL = Check(
    "tunnel",
    "packets to and from other hosts that are larger than a frame, or were joined or cut on their way, are lost",
    _ANY,
)
ENCRYPTION = Check(
    "encryption",
    "packets of encrypted networks to and from other hosts are lost; none leaves in clear",
    _ANY,
)
HANDSHAKE = Check(
    "handshake",
    "packets of encrypted networks to and from that host are lost; none leaves in clear",
    "the way to that host, which has to let its UDP port pass; an agent that is at work there",
)
UNDERLAY = Check(
    "underlay",
    "other hosts send to an address that this host does not have, or packets of another size than it takes",
    "that address, or `cluster-advertise` in daemon.json; then the next command that changes something",
)
ANNOUNCED = Check(
    "announced",
    "routing daemons tell routers of other blocks of addresses than this host has",
    _ANY,
)
NEWS = Check(
    "cluster-news",
    "what began or ended on other hosts since is not known here: packets to it are dropped, its name is not found",
    "`datapathctl agent`, which follows the cluster; or the cluster's store, if that does not answer",
)
UNCHECKED = Check(
    "health-unchecked",
    "new connections go also to backends that do not work: without checks all that run count as up",
    "`datapathctl agent`, which checks them; or `datapathctl service update --no-healthcheck`",
)
UNPUBLISHED = Check(
    "unpublished",
    "who asks this host at that port reaches somebody else, or nobody; the other hosts lead to the service",
    "whoever has the port has to give it up; then `datapathctl reconcile`",
)
PEER = Check(
    "peer",
    "packets between members here and those on that host are lost",
    "the way there and back: what filters UDP in between, or a route; that host, which may not have heard of this one "
    "yet (does its agent run?); or `datapathctl cluster forget HOST`, if it is no more",
)
PEER_MTU = Check(
    "peer-mtu",
    "large packets between members here and those on that host are lost, and connections stall",
    "the MTU of what is in between; or that of the device on both hosts, which members follow",
)
OFFLOAD = Check(
    "offload",
    "TCP and UDP of members to other hosts is thrown away there",
    "`ethtool -K DEVICE tx-checksum-ip-generic off`, of the device that leads there",
)
OWED = Check(
    "owed",
    "other hosts do not know yet what became of these addresses and networks",
    "when the cluster store answers the agent writes it, or `datapathctl reconcile` does",
)
HOST_ROUTE = Check("host-route", "the host does not reach the container", _RECONCILE)
PAIR = Check("pair", "the container has no way into this network", _RECONCILE)
PLUGIN = Check(
    "plugin",
    "packets of its containers pass as long as the plugin's own data path works; none can be started or removed whole",
    "start the plugin, or `datapathctl network rm --force`",
)
RENAMED = Check("renamed", "packets pass; commands do not find the device", _RECONCILE)
DOWN = Check("down", "no packet passes this device", _RECONCILE)
MAC = Check("mac", "packets are sent to, or refused from, the wrong MAC address", _RECONCILE)
MTU = Check("mtu", "large packets are lost, or needlessly split", _ANY)
ADDRESS = Check("address", "who uses this address gets no answer", _RECONCILE)
ROUTE = Check("route", "the container does not reach the outside", _RECONCILE)
RESOLVER = Check("resolver", "the container's questions about names get no answer", _RECONCILE)
SYSCTL = Check("sysctl", "the kernel treats the device's packets otherwise", _RECONCILE)
RESERVED = Check("reserved", "the kernel may give a published port to a socket of the host", _ANY)
DETACHED = Check("detached", "the packets of this device are not translated, or not checked", _RECONCILE)
UNSERVED = Check(
    "unserved",
    "by this device no answer reaches a container, and no published port is reached",
    "another way out of the host; or networks with `-o com.datapath.mode=iptables`",
)
CGROUP = Check(
    "cgroup",
    "other processes of the host may bind to published ports, and reach those at 127.0.0.1 by a longer way",
    "`datapathctl reconcile`, outside of the cgroup namespace (toolbox, LXC, nspawn); if it is meant, DATAPATH_CGROUP",
)
XFRM = Check(
    "xfrm",
    "packets of containers that such a policy is about do not pass, neither in clear nor protected, where they are "
    "translated",
    "the policy; or a network without masquerading",
)
MISSING = Check("entry-missing", "the packet programs do not know it", _RECONCILE)
WRONG = Check("entry-wrong", "the packet programs know it wrongly", _RECONCILE)
STRAY = Check("entry-stray", "the packet programs know something that nothing needs", _RECONCILE)
UNBRIDGED = Check("unbridged", "the container reaches nobody on this network", _RECONCILE)
FORWARDING = Check(
    "forwarding", "Linux bridge networks have no egress; or the host forwards needlessly", _ANY
)
RULE_MISSING = Check(
    "rule-missing",
    "the packet filter keeps packets from a Linux bridge network, or lets too many in",
    _RECONCILE,
)
RULE_STRAY = Check(
    "rule-stray", "the packet filter treats a Linux bridge network's packets otherwise", _RECONCILE
)
RULE_ORDER = Check("rule-order", "the packet filter decides by the wrong rule first", _RECONCILE)
STRAY_DEVICE = Check("stray-device", "a device is left over", _RECONCILE)
STRAY_PIN = Check("stray-pin", "a program or link is kept alive for nothing", _RECONCILE)
STRAY_FILES = Check("stray-files", "files are left over", _RECONCILE)
FILES = Check("files", "the container's exit code and logs cannot be kept", _RECONCILE)

CHECKS = {check.name: check for check in list(globals().values()) if isinstance(check, Check)}
