# SPDX-License-Identifier: Apache-2.0
"""The host's own stack: nothing is built."""

from datapath.drivers.base import Driver
from datapath.model.drivers import Spec, Traits


class HostSpec(Spec):
    """`--network host`."""

    name = "host"
    traits = Traits(endpoints=False, host_stack=True, create=False)
    refuses_connect = (
        "cannot connect container to host network - container must be created in host network mode"
    )
    refuses_disconnect = "container cannot be disconnected from host network or connected to host network"


HOST = HostSpec()


class Host(Driver):
    """Nothing is built for it."""

    spec = HOST
