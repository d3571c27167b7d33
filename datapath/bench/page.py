# SPDX-License-Identifier: Apache-2.0
"""Writes a run as one self-contained page, and as pictures. Needs matplotlib and jinja2: the extra `bench`."""

from __future__ import annotations

import base64
import io
import re
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from datapath.bench import plot_style, plots, stats, tables
from datapath.bench.model import (
    AARDVARK,
    DIRECT,
    DNSMASQ,
    DOCKER,
    DOCKER_DATAPATH,
    DSR,
    EBPF,
    HAPROXY,
    IPTABLES,
    IPVS,
    MACVLAN,
    NFTABLES,
    NGINX,
    NONE,
    ROUTED,
    UNBOUND,
    VXLAN,
    Run,
)
from datapath.bench.results import dumped
from datapath.errors import ConfigError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PAGE = "report.html"

EXPLAINED = {
    EBPF: "This datapath: containers, networks and published ports by datapathctl, packets by its eBPF programs. "
    "No Linux bridge, no rule of a packet filter.",
    IPTABLES: "The iptables mode: a Linux bridge, a veth pair for each container, and the iptables rules that Docker "
    "makes for the same networks and ports.",
    NFTABLES: "The nftables mode: the same bridge and veth pairs, with the rules of Docker's nftables backend.",
    DOCKER_DATAPATH: "The same Docker daemon and containers, on networks of this datapath's driver.",
    DOCKER: "A Docker daemon as it is installed here, with its own containers, rules and docker-proxy.",
    NONE: "The limit: the same two programs over loopback, without any container. Nobody competes with it.",
    AARDVARK: "aardvark-dns, podman's resolver, on the gateway's address of a Linux bridge.",
    DNSMASQ: "dnsmasq in its place.",
    UNBOUND: "unbound in its place.",
    DIRECT: "This datapath's overlay network without a tunnel, as both hosts are on one link.",
    ROUTED: "Containers of two hosts, joined by the kernel's own routes, as flannel's host-gw makes them.",
    VXLAN: "Containers of two hosts, each on a Linux bridge with a VXLAN device, whose tables are filled by hand.",
    MACVLAN: "Containers of two hosts on macvlan networks of this datapath.",
    IPVS: "The kernel's own balancer, in turn, between containers that the host routes between.",
    NGINX: "nginx as a proxy of TCP on the host, between the same containers.",
    HAPROXY: "HAProxy in its place.",
    DSR: "this datapath, whose answers from another host than the one that is asked go straight to who asks.",
}


def write(run: Run, folder: Path) -> list[Path]:
    """report.html and one PNG for each plot; what was written. ConfigError when a package is missing."""
    _require()
    drawn = [(plot, *_drawn(plot)) for plot in plots.plots(run)]
    written = [folder / PAGE]
    for plot, _, png in drawn:
        written.append(folder / f"{plot.name}.png")
        written[-1].write_bytes(png)
    written[0].write_text(html(run, [(plot.caption, svg) for plot, svg, _ in drawn]), encoding="utf-8")
    return written


def _require() -> None:
    try:
        import jinja2  # noqa: F401
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            f"no plots and no page without {error.name}: pip install 'datapathctl[bench]', then `bench report`"
        ) from error


def html(run: Run, figures: list[tuple[str, str]]) -> str:
    """The page; `figures` are captions and SVG."""
    import jinja2
    from markupsafe import Markup

    environment = jinja2.Environment(
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        trim_blocks=True,
        lstrip_blocks=True,
    )
    there = tables.modes(run)
    return environment.get_template("report.html.j2").render(
        run=run,
        modes=[(mode, EXPLAINED[mode], plot_style.COLOURS[mode]) for mode in there],
        reference=stats.reference(there) if there else None,
        tables=tables.tables(run),
        arrows=tables.ARROWS,
        figures=[(caption, Markup(svg)) for caption, svg in figures],
        machine=list(tables.flat(run.machine)),
        command=shlex.join(run.command),
        fewest=stats.FEWEST,
        data=base64.b64encode(dumped(run).encode()).decode(),
    )


def _drawn(plot: plots.Plot) -> tuple[str, bytes]:
    """As SVG for the page, in the reader's own colours, and as PNG on white."""
    import matplotlib

    with matplotlib.rc_context(plot_style.STYLE):
        figure = plot.draw()
        svg = _svg(figure, plot.name)
        figure.patch.set(alpha=1, facecolor="white")
        png = io.BytesIO()
        figure.savefig(png, format="png", dpi=plot_style.DPI, metadata={"Software": None})
    return svg, png.getvalue()


def _svg(figure: Figure, name: str) -> str:
    """Ids are made the plot's own, since all plots share the page; no metadata, no fixed size."""
    file = io.StringIO()
    figure.savefig(file, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    text = file.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{name}-", text)
    text = re.sub(r'<svg ([^>]*?)\b(?:width|height)="[^"]*"', r"<svg \1", text)
    text = re.sub(r'<svg ([^>]*?)\b(?:width|height)="[^"]*"', r"<svg \1", text)
    return text.replace(plot_style.INK, "currentColor").replace(
        "'DejaVu Sans'", "'DejaVu Sans', Verdana, sans-serif"
    )
