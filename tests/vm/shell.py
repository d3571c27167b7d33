# SPDX-License-Identifier: Apache-2.0
"""A shell on a pretend host with two containers, in a lab machine."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.net.hosts import HOST, OUTSIDE, Failed, Host

WELCOME = """
This is a pretend host, {host}; a machine outside, {outside}, is at the other end of eth0.
Two containers run: a at {a}, which answers at the published port 8080, and b at {b}.

    datapathctl exec b ping -c 1 {a}        datapathctl ps        datapathctl stats
    curl http://{host}:8080/                outside curl http://{host}:8080/
    bpftool prog; bpftool net; bpftool map dump pinned $DATAPATH_BPFFS/maps/conns

`exit` turns the machine off.
"""


def main() -> int:
    folder = Path(tempfile.mkdtemp(prefix="lab-"))
    host = None
    try:
        host = Host(folder)
        host.run("a", "-p 8080:80", "python3 -m http.server 80")
        host.run("b")
        print(WELCOME.format(host=HOST, outside=OUTSIDE, a=host.address("a"), b=host.address("b")))
        rc = folder / "bashrc"
        rc.write_text(f"PS1='lab $(uname -r)# '\noutside() {{ nsenter --net={host.outside.path} \"$@\"; }}\n")
        env = {**os.environ, **(host.env or {})}
        env["PATH"] = f"{Path(sys.executable).parent}:{env['PATH']}"
        argv = ["nsenter", f"--net={host.path}", "bash", "--noprofile", "--rcfile", str(rc), "-i"]
        return subprocess.run(argv, env=env, check=False).returncode
    except (Failed, subprocess.SubprocessError) as error:
        print(error)
        return 1
    finally:
        if host:
            host.close()


if __name__ == "__main__":
    sys.exit(main())
