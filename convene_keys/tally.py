"""The tally: a thread of each worker that writes down how often keys that have ended were tried."""

from collections.abc import Callable

from flask import Flask

from convene_keys import limits, rounds
from convene_keys.extensions import transaction

EVERY = 10.0


def start(app: Flask, *, every: float = EVERY) -> Callable[[], None]:
    """Write what is due, looking every so many seconds. What is returned writes the rest, and ends."""
    failed = "tries of keys that have ended could not be counted"
    stop = rounds.start(app, "tally", write, every=every, failed=failed)

    def finish() -> None:
        stop()
        with app.app_context():
            write(all_of_them=True)

    return finish


def write(*, all_of_them: bool = False) -> None:
    """Write down the tries that this process has counted since the last time."""
    for note, count in limits.current().tries(all_of_them=all_of_them):
        with transaction() as session:
            note(session, count)
