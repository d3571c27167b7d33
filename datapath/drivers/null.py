# SPDX-License-Identifier: Apache-2.0
"""No network: the sandbox has a loopback device and nothing else."""

from datapath.drivers import Driver


class Null(Driver):
    """`--network none`."""
