# SPDX-License-Identifier: Apache-2.0
"""A plugin of Docker's, by libnetwork's protocol and not by our own: a network driver as the one of moby's integration
suite, which makes a pair of devices for each endpoint, with a Linux bridge that joins them; and an IPAM driver.

    python3 plugin_server.py SOCKET|PORT[:CERT:KEY] FOLDER

In the folder are `requests` (a line of JSON for each), `state`, and `faults`, which a test writes: how to answer a
method instead. It imports nothing of the project.
"""

from __future__ import annotations

import http.server
import json
import os
import signal
import socketserver
import ssl
import subprocess
import sys
import threading
import time
from ipaddress import ip_interface, ip_network
from pathlib import Path
from typing import Any

LOCK = threading.Lock()


def ip(*words: str) -> None:
    done = subprocess.run(["ip", *words], capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"ip {' '.join(words)}: {done.stderr.strip()}")


class Plugin:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        state = folder / "state"
        self.state: dict[str, Any] = json.loads(state.read_text()) if state.exists() else {}
        for key in ("networks", "endpoints", "pools"):
            self.state.setdefault(key, {})

    def keep(self) -> None:
        (self.folder / "state").write_text(json.dumps(self.state))

    def answer(self, method: str, asked: dict[str, Any]) -> Any:
        kind, _, name = method.partition(".")
        handler = getattr(self, f"{kind.lower()}_{name.lower()}", None)
        if handler is None:
            return None
        with LOCK:
            found = handler(asked)
            self.keep()
        return found

    # ---- the handshake -------------------------------------------------------------------------

    def plugin_activate(self, asked: dict[str, Any]) -> Any:
        return {"Implements": ["NetworkDriver", "IpamDriver"]}

    def networkdriver_getcapabilities(self, asked: dict[str, Any]) -> Any:
        return {"Scope": "local"}

    # ---- networks ------------------------------------------------------------------------------

    def networkdriver_createnetwork(self, asked: dict[str, Any]) -> Any:
        bridge = f"pl{asked['NetworkID'][:8]}"
        mac = f"02:98:{asked['NetworkID'][:2]}:{asked['NetworkID'][2:4]}:00:01"
        ip("link", "add", bridge, "address", mac, "type", "bridge")
        # The kernel gives it no link-local address when it notices the carrier, amid the test.
        subprocess.run(["sysctl", "-q", "-w", f"net.ipv6.conf.{bridge}.addr_gen_mode=1"], check=True)
        gateways = [
            pool["Gateway"] for kind in ("IPv4Data", "IPv6Data") for pool in asked[kind] if "Gateway" in pool
        ]
        for gateway in gateways:
            ip("address", "add", gateway, "dev", bridge, *(["nodad"] if ":" in gateway else []))
        ip("link", "set", bridge, "up")
        self.state["networks"][asked["NetworkID"]] = {"bridge": bridge, "gateways": gateways, "asked": asked}
        return {}

    def networkdriver_deletenetwork(self, asked: dict[str, Any]) -> Any:
        network = self.state["networks"].pop(asked["NetworkID"], None)
        if network is None:
            return {"Err": f"no network {asked['NetworkID']}"}
        ip("link", "delete", network["bridge"])
        return {}

    # ---- endpoints -----------------------------------------------------------------------------

    def networkdriver_createendpoint(self, asked: dict[str, Any]) -> Any:
        network, ident = self.state["networks"][asked["NetworkID"]], asked["EndpointID"]
        outer, inner = f"po{ident[:8]}", f"pi{ident[:8]}"
        ip("link", "add", outer, "type", "veth", "peer", "name", inner)
        ip("link", "set", outer, "master", network["bridge"], "up")
        self.state["endpoints"][ident] = {"outer": outer, "inner": inner}
        given = (
            {}
            if asked["Interface"]["MacAddress"]
            else {"MacAddress": f"02:99:{ident[:2]}:{ident[2:4]}:00:01"}
        )
        return {"Interface": given}

    def networkdriver_join(self, asked: dict[str, Any]) -> Any:
        network = self.state["networks"][asked["NetworkID"]]
        found = {
            "InterfaceName": {
                "SrcName": self.state["endpoints"][asked["EndpointID"]]["inner"],
                "DstPrefix": "eth",
            }
        }
        for gateway in network["gateways"]:
            found["GatewayIPv6" if ":" in gateway else "Gateway"] = gateway.partition("/")[0]
        return found

    def networkdriver_leave(self, asked: dict[str, Any]) -> Any:
        return {}

    def networkdriver_deleteendpoint(self, asked: dict[str, Any]) -> Any:
        endpoint = self.state["endpoints"].pop(asked["EndpointID"], None)
        if endpoint is not None:
            subprocess.run(["ip", "link", "delete", endpoint["outer"]], capture_output=True)
        return {}

    def networkdriver_endpointoperinfo(self, asked: dict[str, Any]) -> Any:
        return {"Value": {}}

    def networkdriver_programexternalconnectivity(self, asked: dict[str, Any]) -> Any:
        return {}

    def networkdriver_revokeexternalconnectivity(self, asked: dict[str, Any]) -> Any:
        return {}

    # ---- addresses -----------------------------------------------------------------------------

    def ipamdriver_getdefaultaddressspaces(self, asked: dict[str, Any]) -> Any:
        return {"LocalDefaultAddressSpace": "here", "GlobalDefaultAddressSpace": "everywhere"}

    def ipamdriver_requestpool(self, asked: dict[str, Any]) -> Any:
        pools = self.state["pools"]
        choices = [asked["Pool"]] if asked["Pool"] else [f"10.99.{n}.0/24" for n in range(250)]
        if asked["V6"] and not asked["Pool"]:
            choices = [f"fd99:{n:x}::/64" for n in range(1, 250)]
        pool = next((one for one in choices if one not in pools), None)
        if pool is None:
            return {"Error": f"pool {asked['Pool']} is taken"}
        pools[pool] = []
        return {"PoolID": pool, "Pool": pool, "Data": {}}

    def ipamdriver_releasepool(self, asked: dict[str, Any]) -> Any:
        if self.state["pools"].pop(asked["PoolID"], None) is None:
            return {"Error": f"no pool {asked['PoolID']}"}
        return {}

    def ipamdriver_requestaddress(self, asked: dict[str, Any]) -> Any:
        pool, used = ip_network(asked["PoolID"]), self.state["pools"][asked["PoolID"]]
        wanted = asked["Address"] or next(str(one) for one in pool.hosts() if str(one) not in used)
        if wanted in used:
            return {"Error": f"address {wanted} is taken"}
        used.append(wanted)
        return {"Address": str(ip_interface((ip_interface(wanted).ip.packed, pool.prefixlen))), "Data": {}}

    def ipamdriver_releaseaddress(self, asked: dict[str, Any]) -> Any:
        used = self.state["pools"].get(asked["PoolID"], [])
        if asked["Address"] not in used:
            return {"Error": f"address {asked['Address']} was not given"}
        used.remove(asked["Address"])
        return {}


class Handler(http.server.BaseHTTPRequestHandler):
    plugin: Plugin
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_POST(self) -> None:
        method = self.path.strip("/")
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        asked = json.loads(body) if body else {}
        with LOCK, (self.plugin.folder / "requests").open("a") as log:
            log.write(json.dumps({"method": method, "asked": asked, "accept": self.headers["Accept"]}) + "\n")
        faults = self.plugin.folder / "faults"
        fault = (json.loads(faults.read_text()) if faults.exists() else {}).get(method.partition(".")[2], {})
        if fault.get("once"):
            faults.unlink()
        if "hang" in fault:
            time.sleep(fault["hang"])
        if "die before" in fault:
            os.kill(os.getpid(), signal.SIGKILL)
        if "drip" in fault:
            self.drip(fault["drip"])
            return
        if "raw" in fault:
            self.wfile.write(fault["raw"].encode())
            self.close_connection = True
            return
        status, answer = 200, None
        if "text" not in fault and "answer" not in fault:
            try:
                answer = self.plugin.answer(method, asked)
                status = 404 if answer is None else 200
            except Exception as error:
                answer = {"Err": f"{type(error).__name__}: {error}"}
        if "die after" in fault:
            os.kill(os.getpid(), signal.SIGKILL)
        text = fault.get("text") or json.dumps(fault.get("answer", answer))
        text += " " * fault.get("huge", 0)
        self.send_response(fault.get("status", status))
        self.send_header("Content-Type", "application/vnd.docker.plugins.v1.1+json")
        self.send_header("Content-Length", str(len(text.encode())))
        self.end_headers()
        self.wfile.write(text.encode())

    def drip(self, seconds: float) -> None:
        """An answer that never comes to its end, a byte at a time."""
        self.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
        for _ in range(int(seconds * 20)):
            self.wfile.write(b" ")
            self.wfile.flush()
            time.sleep(0.05)


class Unix(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    daemon_threads = True

    def get_request(self) -> Any:
        request, _ = super().get_request()
        return request, ("plugin", 0)


def main() -> None:
    where, folder = sys.argv[1], Path(sys.argv[2])
    Handler.plugin = Plugin(folder)
    server: socketserver.BaseServer
    if where.startswith("/"):
        Path(where).unlink(missing_ok=True)
        server = Unix(where, Handler)
    else:
        port, _, tls = where.partition(":")
        tcp = http.server.ThreadingHTTPServer(("127.0.0.1", int(port)), Handler)
        if tls:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            certificate, key, ca = tls.split(":")
            context.load_cert_chain(certificate, key)
            if ca:
                context.load_verify_locations(ca)
                context.verify_mode = ssl.CERT_REQUIRED
            tcp.socket = context.wrap_socket(tcp.socket, server_side=True)
        server = tcp
    print("ready", flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
