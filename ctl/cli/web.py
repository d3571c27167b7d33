# SPDX-License-Identifier: Apache-2.0
"""datapathctl web: the live page."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from .command import Command, host, warn

if TYPE_CHECKING:
    from ..web.key import Key
    from ..web.listen import Listen


@click.command("web", cls=Command)
@click.option(
    "--listen",
    "where",
    default="127.0.0.1:8717",
    show_default=True,
    metavar="ADDRESS:PORT",
    help="Serve the page there: an address of the host's loopback device, or unix:PATH.",
)
def web(where: str) -> None:
    """Show who talks to whom on a page that stays current.

    And who is refused, and why, with the line of a policy that would allow it. Stays until it is ended. The page is for
    this host alone, and for who has the token, which is in the address that is printed; from elsewhere it is reached by
    "ssh -L 8717:127.0.0.1:8717". It changes nothing. Needs starlette and uvicorn: pip install 'datapathctl[web]'.
    """
    from ..web.listen import parse_listen
    from ..web.server import serve

    listen = parse_listen(where)
    serve(host(), listen, lambda key: _announce(listen, key), warn)


def _announce(listen: Listen, key: Key) -> None:
    """The token is only shown to who sits there: what is not a terminal may be a journal that others read."""
    if sys.stdout.isatty() and listen.path is None:
        click.echo(f"{listen.url}#token={key.token}")
    else:
        click.echo(f"{listen.url} (token: {key.path})")
    sys.stdout.flush()
