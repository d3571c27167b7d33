# SPDX-License-Identifier: Apache-2.0
"""Operations on the kernel are logged for those who have set up logging; nobody else notices, or pays."""

from __future__ import annotations

import logging
import re
import subprocess
import sys
from collections.abc import Iterator

import pytest

from datapath.errors import KernelError
from datapath.kernel import log, sysctl


@pytest.fixture(autouse=True)
def levels() -> Iterator[None]:
    before = logging.getLogger("datapath").level
    yield
    logging.getLogger("datapath").setLevel(before)


def test_an_operation_is_one_record_with_its_duration(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "datapath")
    with log.operation("write map", "ports", 10000):
        assert caplog.records == []
    (record,) = caplog.records
    assert (record.name, record.levelno) == ("datapath.kernel", logging.DEBUG)
    assert re.fullmatch(r"write map ports \(10000\): \d+\.\d{3} ms", record.getMessage())


def test_one_that_fails_says_why(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "datapath")
    with pytest.raises(KernelError):
        sysctl.write("net/no/such", 1)
    (record,) = caplog.records
    assert re.fullmatch(
        r"write sysctl net/no/such \(1\): \S+ ms, failed: .*No such file or directory.*", record.getMessage()
    )


def test_each_room_has_a_logger(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "datapath.telemetry")
    with log.operation("load", "one", room="telemetry"), log.operation("load", "other"):
        pass
    assert [(record.name, record.getMessage()[:8]) for record in caplog.records] == [
        ("datapath.telemetry", "load one")
    ]


def test_what_nobody_reads_is_not_put_into_words(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "datapath")

    def words() -> str:
        raise AssertionError("asked for")

    with log.operation(words):
        pass
    assert caplog.records == []


SILENT = """
import sys
from datapath.kernel import log, links, sysctl, libbpf, bpf_maps, netfilter
try:
    sysctl.write("net/no/such", 1)
except Exception:
    pass
assert "logging" not in sys.modules
import logging
with log.operation("load", "one"):
    pass
"""


def test_it_is_silent_and_costs_no_import_by_itself() -> None:
    done = subprocess.run([sys.executable, "-c", SILENT], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_a_listing_does_not_import_it() -> None:
    """It would be a third of what a quick command may cost."""
    text = "import sys; from ctl.cli import main; import datapath.host, datapath.runtime.start; "
    text += "assert 'logging' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
