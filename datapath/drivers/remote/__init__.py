# SPDX-License-Identifier: Apache-2.0
"""Networks whose driver is a plugin of Docker's: another process, called by libnetwork's remote protocol."""
