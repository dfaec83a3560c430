"""A thread beside a worker's requests: it takes its turns, outlives a failure, and stops when told."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from flask import Flask, current_app

from convene_keys import background
from tests.conftest import wait_for

pytestmark = pytest.mark.on_sqlite

NEVER = 3_600.0  # seconds until the second turn, in a test that waits for none


@contextmanager
def running(
    app: Flask, turn: Callable[[], object], *, every: float
) -> Iterator[Callable[[], None]]:
    """What stops it."""
    stop = background.start(app, "turner", turn, every=every, failed="it could not turn")
    try:
        yield stop
    finally:
        stop()


def names() -> set[str]:
    return {thread.name for thread in threading.enumerate()}


def test_a_turn_is_taken_at_once_again_while_it_returns_true(app: Flask) -> None:
    left = [True, True, True, False]
    turns: list[bool] = []

    def turn() -> bool:
        turns.append(left[len(turns)])
        return turns[-1]

    with running(app, turn, every=NEVER):
        wait_for(lambda: turns == left)


def test_what_is_not_quite_true_asks_for_no_other_turn_at_once(app: Flask) -> None:
    """Such as the number of things that were done."""
    turns: list[int] = []
    done = threading.Event()

    def turn() -> int:
        turns.append(1)
        done.set()
        return 7

    with running(app, turn, every=NEVER) as stop:
        assert done.wait(10)
        stop()
        assert turns == [1]


def test_turns_come_again_and_again_in_a_context_of_the_app(app: Flask) -> None:
    apps: list[object] = []
    with running(app, lambda: apps.append(current_app.import_name), every=0.001):
        wait_for(lambda: len(apps) > 3)
    assert set(apps) == {app.import_name}


def test_a_turn_that_fails_is_told_of_and_is_not_the_last(
    app: Flask, caplog: pytest.LogCaptureFixture
) -> None:
    turns: list[int] = []

    def turn() -> None:
        turns.append(1)
        if len(turns) == 1:
            raise ZeroDivisionError

    with running(app, turn, every=0.001):
        wait_for(lambda: len(turns) > 1)
    (record,) = caplog.records
    assert (record.levelname, record.message) == ("WARNING", "it could not turn")
    assert record.exc_info is not None
    assert record.exc_info[0] is ZeroDivisionError


def test_it_stops_in_the_middle_of_its_pause_when_told(app: Flask) -> None:
    turned = threading.Event()
    with running(app, turned.set, every=NEVER) as stop:
        assert turned.wait(10)
        assert "turner" in names()
        stop()
        assert "turner" not in names()
