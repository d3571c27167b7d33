# SPDX-License-Identifier: Apache-2.0
"""Container runtimes of other releases, on roots that mmdebstrap makes: `make doors`."""
