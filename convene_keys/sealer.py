"""The sealer: a thread of each worker that keeps the audit log sealed."""

import logging
import threading
from collections.abc import Callable
from datetime import timedelta

from flask import Flask

from convene_keys import seals
from convene_keys.extensions import db

# Together at most 40 s behind. Several workers find the same events due and only one seals them.
AGE = timedelta(seconds=30)
EVERY = 10.0
log = logging.getLogger(__name__)


def start(app: Flask, *, age: timedelta = AGE, every: float = EVERY) -> Callable[[], None]:
    """Seal events as soon as they are `age` old, looking every so many seconds.

    To be called in the process that is to do it, never before a fork. What is returned stops it.
    """
    stopped = threading.Event()

    def run() -> None:
        while True:
            try:
                with app.app_context():
                    if seals.is_due(db.session(), age):
                        seals.seal()
            except Exception:  # the database may be away: the next turn is soon
                log.warning("the audit log could not be sealed", exc_info=True)
            if stopped.wait(every):
                return

    thread = threading.Thread(target=run, name="sealer", daemon=True)
    thread.start()

    def stop() -> None:
        stopped.set()
        thread.join(timeout=5)

    return stop
