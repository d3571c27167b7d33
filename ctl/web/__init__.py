# SPDX-License-Identifier: Apache-2.0
"""The live page: a process that looks at the host, and one without privileges that browsers talk to."""
