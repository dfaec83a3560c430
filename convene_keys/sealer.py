"""The sealer: a thread of each worker that keeps the audit log sealed."""

from collections.abc import Callable
from datetime import timedelta

from flask import Flask

from convene_keys import rounds, seals
from convene_keys.extensions import db

# Together at most 40 s behind. Several workers find the same events due and only one seals them.
AGE = timedelta(seconds=30)
EVERY = 10.0


def start(app: Flask, *, age: timedelta = AGE, every: float = EVERY) -> Callable[[], None]:
    """Seal events as soon as they are `age` old, looking every so many seconds. See `rounds`."""

    def turn() -> None:
        if seals.is_due(db.session(), age):
            seals.seal()

    return rounds.start(
        app, "sealer", turn, every=every, failed="the audit log could not be sealed"
    )
