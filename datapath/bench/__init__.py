# SPDX-License-Identifier: Apache-2.0
"""The benchmark: the same work through this datapath, through Linux bridges, through Docker and through none."""
