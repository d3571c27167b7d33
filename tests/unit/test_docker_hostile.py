# SPDX-License-Identifier: Apache-2.0
"""Docker's door and requests that Docker would not send: every value of every kind of request is another one."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from http import HTTPStatus
from typing import Any

import pytest

from tests.docker_requests import recordings
from tests.unit.test_docker import Door, check

LONGEST = 800  # characters of an error
OTHERS: tuple[Any, ...] = (
    *(None, True, 0, -1, 1.5, 2**70, float("inf"), float("nan")),
    *([], [1], [[]], {}, {"a": {}}, {"": None}),
    *("", "\0", "\ud800", "a\nb", "é", "../x", "x" * 100_000, "0" * 64, "tcp", "yes"),
    *(
        "10.5.0.1/33",
        "10.5.0.0/16 ",
        "::/0",
        "::1/128",
        "224.0.0.1/4",
        "127.0.0.1/8",
        "255.255.255.255",
        "0.0.0.0/0",
    ),
)
Place = tuple[str | int, ...]


def places(value: Any, place: Place = ()) -> Iterator[Place]:
    """Of all that is in a value of JSON, and of itself."""
    yield place
    if isinstance(value, dict):
        for name, item in value.items():
            yield from places(item, (*place, name))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from places(item, (*place, index))


def put(value: Any, place: Place, other: Any) -> Any:
    """A copy with another value in that place."""
    if not place:
        return other
    copied = value.copy()
    copied[place[0]] = put(value[place[0]], place[1:], other)
    return copied


def test_whatever_a_value_is_there_is_one_clear_answer_and_nothing_is_half_done() -> None:
    tried = set()
    for requests in recordings().values():
        door = Door()
        for request in requests:
            fields = request.fields
            for place in places(fields) if fields is not None else ():
                kind = request.method, tuple("*" if isinstance(step, int) else step for step in place)
                if kind in tried:
                    continue
                tried.add(kind)
                for other in OTHERS:
                    before = door.engine.state
                    body = json.dumps(put(fields, place, other)).encode()
                    status, reply = door.raw(request.method, body)
                    error, what = reply.get("Err", ""), (request.method, place, str(other)[:40])
                    assert status in (HTTPStatus.OK, HTTPStatus.BAD_REQUEST, HTTPStatus.NOT_FOUND), (
                        what,
                        error,
                    )
                    assert len(error) <= LONGEST and error.isprintable(), (what, error)
                    assert not error or door.engine.state == before, (what, error)
                    door.engine.state = before
            door.raw(request.method, request.body)
    assert len(tried) > 100


@pytest.mark.parametrize("seed", range(15, 20))
def test_the_requests_of_all_versions_at_one_host_are_answered_in_any_order_twice(seed: int) -> None:
    mixed = [request for requests in recordings().values() for request in requests] * 2
    random.Random(seed).shuffle(mixed)
    door = Door()
    for request in mixed:
        check(request, *door.raw(request.method, request.body), door)
    assert not any("internal error" in line for line in door.said)
