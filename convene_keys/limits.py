"""Rate limits of keys and of networks, and a thread that writes down tries of keys that have ended."""

import logging
import math
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from flask import Flask, current_app

from convene_keys import background, clock, config
from convene_keys.config import Rate, Settings
from convene_keys.db.session import transaction
from convene_keys.errors import TooMany

EVERY = 10.0


def start(app: Flask, *, every: float = EVERY) -> Callable[[], None]:
    """Write what is due, looking every so many seconds. What is returned writes the rest, and ends."""
    failed = "tries of keys that have ended could not be counted"
    stop = background.start(app, "tally", write, every=every, failed=failed)

    def finish() -> None:
        stop()
        with app.app_context():
            write(all_of_them=True)

    return finish


def write(*, all_of_them: bool = False) -> None:
    """Write down the tries that this process has counted since the last time."""
    for note, count in current().due_tries(all_of_them=all_of_them):
        with transaction() as session:
            note(session, count)


# No key can be guessed, so this only keeps strangers from keeping the server busy.
FAILURES = Rate(60, 60)
NETWORKS_MAX = 50_000  # networks counted one by one; in a window all others share one count
KNOWN_MAX = 10_000  # keys that may still come from a network whose other calls fail
TOLD_WITHIN = 86_400  # seconds for which a refusal not yet told of is remembered in Redis
TIMEOUT = 0.2  # seconds that one call waits for Redis
TRY_AGAIN = 1.0  # seconds until Redis is tried again at the soonest
WARN_EVERY = 60.0
TRIES_WRITTEN_EVERY = timedelta(minutes=1)

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Standing:
    """Where a caller stands: `count` calls of `rate` in a window that ends in `left` seconds."""

    rate: Rate
    count: int
    left: int

    @property
    def exceeded(self) -> bool:
        return self.count > self.rate.calls

    @property
    def headers(self) -> list[tuple[str, str]]:
        """The fields of draft-ietf-httpapi-ratelimit-headers-10."""
        remaining = max(0, self.rate.calls - self.count)
        return [
            ("RateLimit-Policy", f'"key";q={self.rate.calls};w={self.rate.seconds}'),
            ("RateLimit", f'"key";r={remaining};t={self.left}'),
        ]


Note = Callable[[Any, int], None]  # writes down in a session how many tries there were


@dataclass
class Tries:
    """Tries of a key that no longer works, and when those that are not written down yet are due."""

    due: datetime
    note: Note
    count: int = 0

    def take(self) -> int:
        taken, self.count, self.due = self.count, 0, clock.now() + TRIES_WRITTEN_EVERY
        return taken


class Limits:
    """The counts of one application."""

    def __init__(self, settings: Settings) -> None:
        self.shared: Shared | None = None
        if settings.redis_url is not None:
            # Installations may share a Redis. Of the peppers, the oldest stays when one is added.
            prefix = f"convene:{config.pepper_id(settings.key_peppers[-1])}"
            self.shared = Shared(settings.redis_url, prefix)
        self.calls = Window("calls", settings.key_rate_limit, self.shared)
        self.failures = Window("failures", FAILURES, self.shared, most=NETWORKS_MAX)
        self.known: dict[int, None] = {}
        self._refused: Counter[int] = Counter()
        self._tries: dict[int, Tries] = {}
        self._lock = threading.Lock()

    def check_network(self, network: str, token: str) -> None:
        """Raises `TooMany` when calls from `network` failed too often, asking nobody.

        A key that worked before is let through: strangers can't lock it out of a shared address.
        """
        left = self.failures.seconds_left(network)
        if left and hash(token) not in self.known:
            raise _too_many_failures(left)

    def count_failure(self, network: str) -> None:
        """Count a call without a key that is known. Raises `TooMany` past the limit."""
        standing = self.failures.count(network)
        if standing.exceeded:
            raise _too_many_failures(standing.left)

    def count_call(self, key_id: int, token: str) -> Standing:
        """Count a call of a working key."""
        known = hash(token)  # 64 bits under a secret of this process, and no way back to the key
        if known not in self.known:
            with self._lock:
                self.known[known] = None
                if len(self.known) > KNOWN_MAX:
                    del self.known[next(iter(self.known))]
        return self.calls.count(str(key_id))

    def count_try(self, key_id: int, token: str, note: Note) -> int:
        """Count a try of a key that no longer works; how many to write down now with `note`, if any.

        The first at once, those of the next minute together when it is over: see `due_tries`.
        """
        now = clock.now()
        with self._lock:
            self.known.pop(hash(token), None)
            tries = self._tries.setdefault(key_id, Tries(now, note))
            tries.count, tries.note = tries.count + 1, note
            return tries.take() if now >= tries.due else 0

    def due_tries(self, *, all_of_them: bool = False) -> list[tuple[Note, int]]:
        """What of the tries is to be written down now, and with what."""
        now, found = clock.now(), []
        with self._lock:
            for key_id, tries in list(self._tries.items()):
                if tries.count and (all_of_them or now >= tries.due):
                    found.append((tries.note, tries.take()))
                elif now >= tries.due:
                    del self._tries[key_id]
        return found

    def count_refusal(self, key_id: int) -> int:
        """Count a refused call; how many there were that nobody was told of, this one included."""
        return max(1, self._untold(key_id, 1))  # Redis may have forgotten some meanwhile

    def mark_reported(self, key_id: int, count: int) -> None:
        """`count` refused calls have been told of."""
        if count:
            self._untold(key_id, -count)

    def _untold(self, key_id: int, amount: int) -> int:
        shared = None
        if self.shared is not None:
            shared = self.shared.add(f"refused:{key_id}", amount, TOLD_WITHIN)
        if shared is not None:
            return shared
        with self._lock:
            self._refused[key_id] += amount
            return self._refused[key_id]


class Shared:
    """Counts in Redis. When it does not answer, callers don't wait for it again and again."""

    def __init__(self, url: str, prefix: str) -> None:
        import redis  # 7 MiB that only those pay who use it
        from redis.backoff import NoBackoff
        from redis.retry import Retry

        self._errors = (redis.RedisError, OSError)
        self.client = redis.Redis.from_url(
            url,
            protocol=2,
            socket_timeout=TIMEOUT,
            socket_connect_timeout=TIMEOUT,
            retry=Retry(NoBackoff(), 0),
        )
        self._prefix = prefix
        self.away_until = 0.0  # 0: it is there
        self._warned = -math.inf
        self._lock = threading.Lock()

    def add(self, name: str, amount: int, seconds: int) -> int | None:
        """The count of `name` with `amount` added, kept for `seconds`; None while Redis is away."""
        began = time.monotonic()
        if self.away_until:
            with self._lock:
                if began < self.away_until:
                    return None
                self.away_until = began + TRY_AGAIN  # one caller tries, the others go on
        try:
            pipeline = self.client.pipeline()  # one round trip
            pipeline.incrby(f"{self._prefix}:{name}", amount)
            pipeline.expire(f"{self._prefix}:{name}", seconds)
            count = int(pipeline.execute()[0])
        except self._errors as error:
            self._note_away(began, error)
            return None
        if self.away_until:
            self.away_until = 0.0
            log.warning("Redis is back: calls are counted for all workers together again")
        return count

    def ping(self) -> str | None:
        """What is wrong with Redis; None when it answers."""
        try:
            self.client.ping()
        except self._errors as error:
            return type(error).__name__
        return None

    def _note_away(self, began: float, error: Exception) -> None:
        now = time.monotonic()
        with self._lock:
            # A Redis that hangs costs one call TIMEOUT; that must stay rare among all calls.
            self.away_until = now + max(TRY_AGAIN, 20 * (now - began))
            if now - self._warned < WARN_EVERY:
                return
            self._warned = now
        # Its class alone: the message may hold the address with its password.
        log.warning("Redis is away (%s): each worker counts for itself", type(error).__name__)


class Window:
    """Counts by name in the current window; those of the last one are dropped when it ends."""

    def __init__(
        self, kind: str, rate: Rate, shared: Shared | None, most: float = math.inf
    ) -> None:
        self._kind, self._rate, self._shared, self._most = kind, rate, shared, most
        self._number = 0
        self.counts: dict[str, int] = {}
        self._lock = threading.Lock()

    def count(self, name: str) -> Standing:
        number, left = self._now()
        shared = None
        if self._shared is not None:
            shared = self._shared.add(f"{self._kind}:{name}:{number}", 1, self._rate.seconds)
        with self._lock:
            if number != self._number:
                self._number, self.counts = number, {}
            slot = self._slot(name)
            here = self.counts.get(slot, 0)
            count = here + 1 if shared is None else shared
            self.counts[slot] = max(here, count)  # from where to go on should Redis go away
        return Standing(self._rate, count, left)

    def seconds_left(self, name: str) -> int:
        """Seconds until `name` may come again, as far as this process knows; 0 when it may."""
        number, left = self._now()
        with self._lock:
            count = self.counts.get(self._slot(name), 0) if number == self._number else 0
        return left if count >= self._rate.calls else 0

    def _slot(self, name: str) -> str:
        return name if name in self.counts or len(self.counts) < self._most else "others"

    def _now(self) -> tuple[int, int]:
        """The number of the current window, and the whole seconds until it ends, at least 1."""
        number, into = divmod(clock.now().timestamp(), self._rate.seconds)
        return int(number), math.ceil(self._rate.seconds - into)


def init_app(app: Flask, settings: Settings) -> Limits:
    limits = app.extensions["limits"] = Limits(settings)
    return limits


def current() -> Limits:
    """The counts of the application that runs."""
    limits: Limits = current_app.extensions["limits"]
    return limits


def _too_many_failures(left: int) -> TooMany:
    return TooMany(
        "Too many calls from this address came without a working API key. Please check the key.",
        retry_after=left,
        code="rate_limited",
    )
