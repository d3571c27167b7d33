# SPDX-License-Identifier: Apache-2.0
"""Networks whose members are joined to the host by a pair of devices each, whatever forwards their packets."""
