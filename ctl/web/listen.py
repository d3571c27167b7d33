# SPDX-License-Identifier: Apache-2.0
"""Where the page is served: a port of the host's own loopback addresses, or a Unix socket that root alone may use."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from datapath.errors import ConfigError, quoted
from datapath.kernel import separate, unix_server
from datapath.model.parsing import Address, parse_address

if TYPE_CHECKING:
    from datapath.kernel.separate import Socket

DEFAULT = "127.0.0.1:8717"


class Listen(NamedTuple):
    """`path`: of a Unix socket; None: it is TCP."""

    address: Address | None = None
    port: int = 0
    path: Path | None = None

    @property
    def url(self) -> str:
        """As a browser on this host would have it."""
        if self.address is None:
            return f"unix:{self.path}"
        at = f"[{self.address}]" if self.address.version == 6 else str(self.address)
        return f"http://{at}:{self.port}/"


def parse_listen(text: str) -> Listen:
    """`127.0.0.1:8717`, `[::1]:8717`, `unix:/run/page.sock`. ConfigError, also for an address that others reach."""
    if text.startswith("unix:"):
        path = Path(text.removeprefix("unix:"))
        if not path.is_absolute() or "\0" in text:
            raise ConfigError(f"invalid --listen {quoted(text)}: the path of a socket is absolute")
        return Listen(path=path)
    host, colon, port = text.rpartition(":")
    if not colon or not re.fullmatch(r"[0-9]{1,5}", port) or not 0 < int(port) < 65536:
        raise ConfigError(f"invalid --listen {quoted(text)}: expected ADDRESS:PORT or unix:PATH")
    if ":" in host and not host.startswith("["):
        raise ConfigError(
            f"invalid --listen {quoted(text)}: an IPv6 address needs brackets, as in [::1]:{port}"
        )
    address = parse_address("127.0.0.1" if host == "localhost" else host.removeprefix("[").removesuffix("]"))
    if not address.is_loopback:
        raise ConfigError(
            f"--listen {quoted(text)}: others reach that address, and the page is for this host alone. From elsewhere: "
            f"ssh -L {port}:127.0.0.1:{port}, and listen at 127.0.0.1:{port}"
        )
    return Listen(address, int(port))


@contextmanager
def opened(listen: Listen) -> Iterator[Socket]:
    """The socket. InUseError, ConfigError, KernelError."""
    if listen.address is not None:
        with separate.listening(listen.address, listen.port) as found:
            yield found
    else:
        assert listen.path is not None
        with unix_server.listening(listen.path) as found:
            yield found
