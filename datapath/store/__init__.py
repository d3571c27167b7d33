# SPDX-License-Identifier: Apache-2.0
"""The rows that say which networks, endpoints and containers there have to be, and where they are stored."""
