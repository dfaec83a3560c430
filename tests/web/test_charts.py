"""Which days a chart shows, and how high its bars are."""

from datetime import date, timedelta
from itertools import pairwise

import pytest

from convene_keys.web.charts import HEIGHT, Span, bars, last_days, spans, spark

TODAY = date(2026, 11, 24)


def test_last_days_end_today_oldest_first() -> None:
    days = last_days(TODAY)
    assert len(days) == 30
    assert days[0] == Span(date(2026, 10, 26), date(2026, 10, 26))
    assert days[-1] == Span(TODAY, TODAY)
    assert last_days(date(1, 1, 2))[0].since == date.min


@pytest.mark.parametrize(
    ("since", "until", "first", "last", "number"),
    [
        (None, None, "2026-10-26", "2026-11-24", 30),
        ("2026-11-20", None, "2026-11-20", "2026-11-24", 5),
        (None, "2026-11-20", "2026-10-22", "2026-11-20", 30),
        ("2026-11-20", "2026-12-31", "2026-11-20", "2026-11-24", 5),  # nothing after today
        ("2026-06-10", "2026-06-10", "2026-05-27", "2026-06-25", 30),  # a day among its days
        ("2026-11-24", "2026-11-24", "2026-10-26", "2026-11-24", 30),
        ("2026-09-24", None, "2026-09-24", "2026-11-24", 62),
        ("2026-09-23", None, "2026-09-23", "2026-11-24", 3),  # months from here on
        ("0001-01-01", None, "2024-12-01", "2026-11-24", 24),
        ("0001-01-01", "0001-06-15", "0001-01-01", "0001-06-15", 6),
        ("9999-12-31", None, "2026-10-26", "2026-11-24", 30),
    ],
)
def test_spans_are_days_or_months_of_the_range(
    since: str | None, until: str | None, first: str, last: str, number: int
) -> None:
    found = spans(
        date.fromisoformat(since) if since else None,
        date.fromisoformat(until) if until else None,
        TODAY,
    )
    assert (len(found), str(found[0].since), str(found[-1].until)) == (number, first, last)
    for before, after in pairwise(found):
        assert before.until + timedelta(days=1) == after.since


def test_bars_say_what_they_show() -> None:
    days = [*last_days(TODAY)[-3:], Span(date(2026, 11, 1), TODAY)]
    drawn = bars(days, [0, 1, 1_000, 500], cap=1_000)
    assert [bar.height for bar in drawn] == [0, 1, HEIGHT, HEIGHT // 2]
    assert [bar.title("event") for bar in drawn] == [
        "22 Nov, 0 events",
        "23 Nov, 1 event",
        "24 Nov, 1,000 or more events",
        "Nov 2026, 500 events",
    ]
    assert [bar.height for bar in bars(days[:1], [0], cap=9)] == [0]


def test_spark_draws_a_line_for_each_day_with_something() -> None:
    assert spark([0, 5, 1, 100]) == "M1 10v-1M2 10v-1M3 10v-10"
    assert spark([0, 0]) == ""
