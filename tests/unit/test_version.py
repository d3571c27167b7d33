# SPDX-License-Identifier: Apache-2.0
"""The layout before is this one under other names: what upgrade relies on."""

from __future__ import annotations

import hashlib
import re

from datapath.dataplane import version
from datapath.kernel import abi

# What abi.h called it in the version before, by what it is now. Where a name has two, what stands before it decides.
NAMES = {
    r"struct link_key\b": "struct policy_key",
    r"struct link\b": "struct policy",
    r"struct acl_key\b": "struct source_key",
    r"struct acl\b": "struct source",
    r"__u32 acl;": "__u32 filter;",
    r"__u8 default_deny;": "__u8 refuse;",
    r"struct quota_key\b": "struct usage_key",
    r"struct quota\b": "struct usage",
    r"struct frag_queue_key\b": "struct held_key",
    r"struct frag_queue\b": "struct held",
    r"struct gc_timer\b": "struct sweeper",
    r"enum gc_order\b": "enum sweep_order",
    r"\bGC_TAKE_OVER\b": "SWEEP_TAKE_OVER",
}


def test_the_layout_before_differs_in_names_alone() -> None:
    """If it fails because the layout has changed, the maps of the version before are not understood any more:
    LAYOUT_BEFORE, MAPS_BEFORE, PROGRAMS_BEFORE and this go."""
    words = version.layout_text((abi.OBJECTS / "abi.h").read_text())
    for name, before in NAMES.items():
        words, count = re.subn(name, before, words)
        assert count, name
    assert hashlib.sha256(words.encode()).hexdigest()[:16] == version.LAYOUT_BEFORE
