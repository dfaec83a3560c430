"""The clock: it can be set back for a while, by one thread, for itself."""

import threading
from datetime import timedelta

from convene_keys import clock


def test_it_is_earlier_inside_and_not_after() -> None:
    before = clock.now()
    with clock.set_back(timedelta(days=3)):
        assert clock.now() - before < timedelta(days=-2)
        with clock.set_back(timedelta(days=1)):
            assert timedelta(days=-2) < clock.now() - before < timedelta()
    assert clock.now() >= before


def test_others_are_not_set_back() -> None:
    seen = []
    before = clock.now()
    with clock.set_back(timedelta(days=3)):
        other = threading.Thread(target=lambda: seen.append(clock.now()))
        other.start()
        other.join()
    assert seen[0] >= before
