# SPDX-License-Identifier: Apache-2.0
"""The rounds of `reconcile`: what is found in one look is repaired as long as it is about the same devices."""

from types import SimpleNamespace
from typing import Any

import pytest

from datapath.engine import ports, reconcile
from datapath.errors import KernelError
from datapath.model.checks import MISSING, PAIR, ROUTE
from datapath.model.findings import Finding

GONE = Finding(PAIR, "web on blue", "its device is gone", ("web",))
OLD = Finding(MISSING, "endpoints", "the row of ifindex 7 is missing", ("endpoints", 7))
NEW = Finding(MISSING, "endpoints", "the row of ifindex 9 is missing", ("endpoints", 9))
AWAY = Finding(ROUTE, "db on blue", "no default route", ("db",))


@pytest.fixture
def repaired(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Runs `reconcile` on a host that shows `looks`, one after another; what was repaired, and what it returned."""

    def run(looks: list[list[Finding]], fails: tuple[Finding, ...] = ()) -> tuple[list[Finding], Any]:
        done: list[Finding] = []

        def repair(finding: Finding) -> None:
            done.append(finding)
            if finding in fails:
                raise KernelError("no memory")

        checks = {f.check: reconcile._Repair(f.check, repair) for look in looks for f in look}
        monkeypatch.setattr(reconcile, "_repairs", lambda tx: checks)
        monkeypatch.setattr(reconcile, "_compare", lambda tx: looks.pop(0) if looks else [])
        monkeypatch.setattr(ports, "reserve", lambda tx: None)
        return done, reconcile.reconcile(SimpleNamespace())  # type: ignore[arg-type]

    return run


def test_rows_found_before_a_pair_was_made_anew_are_looked_at_again_before_they_are_written(
    repaired: Any,
) -> None:
    done, (found, left, failures) = repaired([[GONE, OLD], [NEW]])
    assert done == [GONE, NEW]
    assert found == [GONE, OLD, NEW] and not left and not failures


def test_every_pair_that_is_gone_is_made_anew_in_one_round(repaired: Any) -> None:
    other = Finding(PAIR, "db on blue", "its device is gone", ("db",))
    done, _ = repaired([[GONE, OLD, other], [NEW]])
    assert done == [GONE, other, NEW]


def test_a_pair_that_cannot_be_made_keeps_nothing_else_from_being_repaired(repaired: Any) -> None:
    done, (_, left, _) = repaired([[GONE, AWAY]] + [[GONE]] * 5, fails=(GONE,))
    assert done[:2] == [GONE, AWAY] and left == [GONE]
