# SPDX-License-Identifier: Apache-2.0
"""Docker's front door: a network driver for dockerd, over its protocol for remote drivers."""

DRIVER = "datapath"  # what `docker network create -d` takes
OWNER = "docker"  # as in the rows
