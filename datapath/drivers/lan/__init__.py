# SPDX-License-Identifier: Apache-2.0
"""Networks whose members are on the link of one of the host's devices, their parent, whatever hands over packets."""
