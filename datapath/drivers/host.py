# SPDX-License-Identifier: Apache-2.0
"""The host's own stack: nothing is built."""

from datapath.drivers import Driver


class Host(Driver):
    """`--network host`."""
