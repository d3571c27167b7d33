# SPDX-License-Identifier: Apache-2.0
"""What is built for others to install, in fresh root file systems of Debian's releases: make test-packages."""
