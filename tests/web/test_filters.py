"""What a list's address asks for: bounds, choices, numbers, days and moments."""

from dataclasses import dataclass
from datetime import UTC, date, datetime
from typing import ClassVar

import pytest

from convene_keys.errors import Malformed
from convene_keys.web.filters import Filters, parse_day, parse_moment, parse_number

pytestmark = pytest.mark.on_sqlite

REFUSED = Malformed("No number.")


@dataclass(frozen=True)
class Markets(Filters):
    q: str = ""
    status: str = "open"

    noun = "market"
    choices: ClassVar = {"status": ("open", "closed")}


def test_empty_parameters_have_their_defaults_and_others_are_trimmed() -> None:
    assert Markets.parse({"q": " river ", "status": " ", "else": "x"}) == Markets(q="river")


def test_the_query_has_what_is_asked_for_and_what_changes() -> None:
    assert Markets(q="river").query(cursor="7", status="") == {"q": "river", "cursor": "7"}


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"q": "x" * 101}, "Please use at most 100 ordinary characters in a filter."),
        ({"q": "a\0b"}, "Please use at most 100 ordinary characters in a filter."),
        ({"status": "gone"}, "There is no status “gone” to list markets by."),
    ],
)
def test_what_the_list_cannot_do_is_refused(args: dict[str, str], message: str) -> None:
    with pytest.raises(Malformed) as refused:
        Markets.parse(args)
    assert refused.value.detail == message


def test_a_number_is_of_ascii_digits_and_bounded() -> None:
    assert [parse_number(text, 10, REFUSED) for text in ("", "0", "10", "007")] == [None, 0, 10, 7]


@pytest.mark.parametrize("text", ["11", "-1", "1.0", "1e3", "x", "٣", "²", "9" * 5_000])
def test_what_is_no_number_is_refused(text: str) -> None:
    with pytest.raises(Malformed, match="No number."):
        parse_number(text, 10, REFUSED)


def test_a_moment_is_rfc_3339_in_any_zone_or_without_one() -> None:
    assert parse_moment("") is None
    assert parse_moment("2026-11-24T10:00:00+02:00") == datetime(2026, 11, 24, 8, tzinfo=UTC)
    assert parse_moment("2026-11-24T10:00:00") == datetime(2026, 11, 24, 10, tzinfo=UTC)


@pytest.mark.parametrize("parse", [parse_day, parse_moment])
@pytest.mark.parametrize("text", ["today", "2026-02-30", "2026-11-24T99:00"])
def test_what_is_no_date_is_refused(parse, text: str) -> None:
    with pytest.raises(Malformed, match=f"“{text}” is not a date.") as refused:
        parse(text)
    assert refused.value.code == "invalid_date"


def test_a_day_may_be_left_out() -> None:
    assert (parse_day(""), parse_day("2026-11-24")) == (None, date(2026, 11, 24))
