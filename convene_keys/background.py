"""Threads that do the same thing again and again beside a worker's requests."""

import logging
import threading
from collections.abc import Callable

from flask import Flask

log = logging.getLogger(__name__)


def start(
    app: Flask, name: str, turn: Callable[[], object], *, every: float, failed: str
) -> Callable[[], None]:
    """Call `turn` every so many seconds, and again at once while it returns True.

    To be called in the process that is to do it, never before a fork. What is returned stops it.
    """
    stopped = threading.Event()

    def run() -> None:
        while not stopped.is_set():
            again: object = False
            try:
                with app.app_context():
                    again = turn()
            except Exception:  # the database may be away: the next turn is soon
                log.warning(failed, exc_info=True)
            if again is not True:
                stopped.wait(every)

    thread = threading.Thread(target=run, name=name, daemon=True)
    thread.start()

    def stop() -> None:
        stopped.set()
        thread.join(timeout=5)

    return stop
