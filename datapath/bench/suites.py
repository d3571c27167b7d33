# SPDX-License-Identifier: Apache-2.0
"""The suites that `bench run` knows, by name."""

from __future__ import annotations

from collections.abc import Mapping

from datapath.bench.model import SuiteFactory

SUITES: Mapping[str, SuiteFactory] = {}
