# SPDX-License-Identifier: Apache-2.0
"""The CNI plugin: called for each verb by containerd, podman, CRI-O, Multus or cnitool, as an executable `datapath`.

It translates: what it is asked for becomes one call of `datapath.Host.attachments`.
"""
