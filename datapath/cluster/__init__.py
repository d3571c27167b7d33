# SPDX-License-Identifier: Apache-2.0
"""What the hosts of a cluster write into its store for each other: membership, networks, blocks, addresses.

Verbs are functions over a `datapath.store.cluster.Cluster`. Each has an answer, or an error, within 5 seconds.
"""
