"""Counts by day as bars: which days, how high, in which words. Pure; templates draw them."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta

from convene_keys.clock import midnight

DAYS = 30  # shown when nobody chose
DAYS_MAX = 62  # from there on a bar is a month
MONTHS_MAX = 24
HEIGHT = 40  # of a bar at its highest, in the drawing's own units
CAP = 1_000  # a bar's count stops there, so that a busy day costs no more
SPARK_CAP = 30  # a page of keys is counted at once


@dataclass(frozen=True)
class Span:
    """The days from `since` to `until`, both included."""

    since: date
    until: date

    @property
    def label(self) -> str:
        """`24 Nov`, or `Nov 2026` for more than a day."""
        day = f"{self.since.day} {self.since:%b}"
        return day if self.since == self.until else f"{self.since:%b %Y}"


@dataclass(frozen=True)
class Bar:
    """`count` is the least that happened in `span` when `more`; `height` is 0 to `HEIGHT`."""

    span: Span
    count: int
    more: bool
    height: int

    def title(self, thing: str) -> str:
        """`24 Nov, 1 event`"""
        number = f"{self.count:,}{' or more' if self.more else ''}"
        return f"{self.span.label}, {number} {thing}{'' if self.count == 1 else 's'}"


def last_days(today: date) -> list[Span]:
    """One span a day, oldest first, up to and with `today`."""
    return _days(today.toordinal() - DAYS + 1, today)


def spans(since: date | None, until: date | None, today: date) -> list[Span]:
    """The days from `since` to `until`, oldest first, or months when those are many.

    Without a beginning, the last days before the end. A single day is shown among the days around
    it, so that one can step to the next. Nothing after `today`; at most `MONTHS_MAX` months.
    """
    until = min(until or today, today)
    if since is not None and since >= until:
        until = date.fromordinal(min(since.toordinal() + DAYS // 2, today.toordinal()))
        since = None
    if since is None:
        return last_days(until)
    if (until - since).days < DAYS_MAX:
        return _days(since.toordinal(), until)
    months: list[Span] = []
    while len(months) < MONTHS_MAX and until >= since:
        months.append(Span(max(since, until.replace(day=1)), until))
        if until.toordinal() <= until.day:  # there is no month before the first
            break
        until = until.replace(day=1) - timedelta(days=1)
    return months[::-1]


def _days(first: int, until: date) -> list[Span]:
    ordinals = range(max(first, 1), until.toordinal() + 1)
    return [Span(day, day) for day in map(date.fromordinal, ordinals)]


def moments(spans: Sequence[Span], timezone: str) -> list[tuple[datetime, datetime]]:
    """When each span begins, and when it has ended, there."""
    day = timedelta(days=1)
    return [(midnight(s.since, timezone), midnight(s.until + day, timezone)) for s in spans]


def bars(spans: Sequence[Span], counts: Sequence[int], cap: int) -> list[Bar]:
    """A bar for each span; a count of `cap` stands for that or more. Something is never no bar."""
    most = max(counts, default=0)
    return [
        Bar(span, count, count >= cap, -(-HEIGHT * count // most) if most else 0)
        for span, count in zip(spans, counts, strict=True)
    ]


def spark(counts: Sequence[int]) -> str:
    """An SVG path of one line a day, 10 high and as many wide as there are days; empty days none."""
    most = max(counts, default=0)
    heights = {day: max(1.0, 10 * count / most) for day, count in enumerate(counts) if count}
    return "".join(f"M{day} 10v-{height:.2g}" for day, height in heights.items())
