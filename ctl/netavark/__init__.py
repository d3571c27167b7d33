# SPDX-License-Identifier: Apache-2.0
"""The plugin of netavark, podman's network stack: an executable `datapath` in one of its `netavark_plugin_dirs`.

It translates: what it is asked for becomes one call of `datapath.Host`.
"""
