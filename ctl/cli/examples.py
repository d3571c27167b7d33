# SPDX-License-Identifier: Apache-2.0
"""An example or two of each command, which stand at the end of its help."""

from __future__ import annotations

from collections.abc import Mapping

# By the command's words, without the program's name. Docker's `container` is left out.
EXAMPLES: Mapping[str, tuple[str, ...]] = {
    "": (
        "network create --subnet 10.10.0.0/24 shop",
        "run -d --name web --network shop -p 8080:80 python3 -m http.server 80",
        "port ls",
    ),
    "network": ("network create shop", "network ls"),
    "network create": (
        "network create --subnet 10.10.0.0/24 shop",
        "network create --ipv6 --subnet fd00:10::/64 --internal vault",
    ),
    "network ls": ("network ls --filter driver=bridge", "network ls --format '{{.Name}} {{.ID}}'"),
    "network inspect": ("network inspect -f '{{json .Containers}}' shop",),
    "network rm": ("network rm shop",),
    "network prune": ("network prune --dry-run", "network prune -f --filter until=24h"),
    "network connect": ("network connect --ip 10.10.0.9 shop web",),
    "network disconnect": ("network disconnect shop web",),
    "port": ("port add web 8081:80", "port web"),
    "port ls": ("port ls web", "port ls --format json"),
    "port add": ("port add web 8081:80 8443:443", "port add web 8082:80,allow=10.0.0.0/8"),
    "port rm": ("port rm web 1", "port rm web 8081:80 8443:443"),
    "port set": ("port set web 1 allow=10.0.0.0/8,deny=10.6.6.0/24", "port set web 8081:80"),
    "port show": ("port web", "port web 80/tcp"),
    "ct": ("ct ls --container web", "ct stats"),
    "ct ls": ("ct ls --container web --state established", "ct ls --proto udp --format json"),
    "ct flush": ("ct flush --src 192.0.2.0/24",),
    "ct stats": ("ct stats",),
    "container": ("container ls -a", "container rm -f web"),
    "run": (
        "run -d --name web -p 8080:80 python3 -m http.server 80",
        "run --rm -it --network shop sh",
    ),
    "ps": ("ps -a", "ps --filter network=shop --format '{{.Names}} {{.Ports}}'"),
    "exec": ("exec -it web sh", "exec web ip address"),
    "logs": ("logs -f web", "logs -t --since 10m web"),
    "inspect": ("inspect -f '{{.NetworkSettings.IPAddress}}' web",),
    "start": ("start web",),
    "stop": ("stop -t 30 web",),
    "rename": ("rename web page",),
    "rm": ("rm -f web",),
    "bench": ("bench run --suite latency", "bench ls"),
    "bench run": ("bench run --suite latency --modes ebpf,nftables --budget 10",),
    "bench ls": ("bench ls --filter latency",),
    "bench compare": ("bench compare before/results.json after/results.json",),
    "bench report": ("bench report --out report results.json",),
    "stats": ("stats --follow", "stats --reasons DROP_DENIED", "stats --format prometheus"),
    "trace": ("trace latency --seconds 3 web db", "trace drops --seconds 10"),
    "trace latency": ("trace latency --seconds 3 web db", "trace latency --follow"),
    "trace drops": ("trace drops --seconds 10",),
    "doctor": ("doctor --json",),
    "reconcile": ("reconcile",),
    "upgrade": ("upgrade",),
    "agent": ("agent", "agent install"),
    "agent install": ("agent install --root build/root --program /usr/bin/datapathctl",),
    "agent uninstall": ("agent uninstall",),
    "down": ("down --dry-run", "down"),
    "version": ("version --format '{{.Version}}'",),
    "help": ("help network create",),
    "completion": ("completion bash > /usr/share/bash-completion/completions/datapathctl",),
    "_exited": ("_exited 0123456789ab 0",),
}
