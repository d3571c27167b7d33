# SPDX-License-Identifier: Apache-2.0
"""Networks whose members are on several hosts; packets between these travel in tunnels."""
