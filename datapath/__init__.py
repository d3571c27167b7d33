# SPDX-License-Identifier: Apache-2.0
"""Docker's container networking with eBPF programs instead of the Linux bridge and iptables.

    import datapath

    host = datapath.Host.open()
    host.networks.create(datapath.NetworkRequest("shop"))
    sandbox = host.sandboxes.adopt("/run/netns/web", owner="cni")
    endpoint = host.endpoints.create(datapath.EndpointRequest("shop"), owner="cni", key="web-eth0")
    host.endpoints.join(endpoint.id, sandbox.id)
    host.ports.publish(endpoint.id, "8080:80")

`Host` is the network engine of the host, which is the network namespace of the calling thread; `Containers` runs
containers on it. Errors are `datapath.errors.DatapathError` and its kinds; ``docs/library.md`` is the guide.
"""

# Light: each container's shim imports this package. What is public is imported when it is first asked for.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from datapath.config.settings import Settings as Settings
    from datapath.drivers.base import JoinInfo as JoinInfo
    from datapath.errors import DatapathError as DatapathError
    from datapath.host import Host as Host
    from datapath.model.attachments import AttachmentRequest as AttachmentRequest
    from datapath.model.containers import Container as Container
    from datapath.model.containers import RunRequest as RunRequest
    from datapath.model.endpoints import Endpoint as Endpoint
    from datapath.model.endpoints import EndpointRequest as EndpointRequest
    from datapath.model.networks import Network as Network
    from datapath.model.networks import NetworkRequest as NetworkRequest
    from datapath.model.ports import PortMapping as PortMapping
    from datapath.model.sandboxes import Sandbox as Sandbox
    from datapath.model.services import Service as Service
    from datapath.model.services import ServiceChange as ServiceChange
    from datapath.model.services import ServiceRequest as ServiceRequest
    from datapath.runtime.containers import Containers as Containers

__version__ = "0.1.0"

_PUBLIC = {
    "AttachmentRequest": "model.attachments",
    "Container": "model.containers",
    "Containers": "runtime.containers",
    "DatapathError": "errors",
    "Endpoint": "model.endpoints",
    "EndpointRequest": "model.endpoints",
    "Host": "host",
    "JoinInfo": "drivers.base",
    "Network": "model.networks",
    "NetworkRequest": "model.networks",
    "PortMapping": "model.ports",
    "RunRequest": "model.containers",
    "Sandbox": "model.sandboxes",
    "Service": "model.services",
    "ServiceChange": "model.services",
    "ServiceRequest": "model.services",
    "Settings": "config.settings",
}
__all__ = [*_PUBLIC]


def __getattr__(name: str) -> object:
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_PUBLIC[name]}"), name)
