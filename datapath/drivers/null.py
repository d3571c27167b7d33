# SPDX-License-Identifier: Apache-2.0
"""No network: the sandbox has a loopback device and nothing else."""

from datapath.drivers.base import Driver
from datapath.model.drivers import Spec, Traits


class NullSpec(Spec):
    """`--network none`."""

    name = "null"
    traits = Traits(endpoints=False, create=False)
    refuses_connect = (
        "container cannot be connected to multiple networks with one of the networks in private (none) mode"
    )


NULL = NullSpec()


class Null(Driver):
    """Nothing is built for it."""

    spec = NULL
