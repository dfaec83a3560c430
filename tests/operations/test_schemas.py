"""Inputs: what JSON and an address may hold, and what becomes of days and moments."""

from datetime import timedelta
from typing import Any

import pytest

from convene_keys.errors import Invalid, Malformed
from convene_keys.operations.table import BY_NAME

APPROVE = BY_NAME["approve_booking"]


def test_json_bends_no_type() -> None:
    for given in ({"id": "1"}, {"id": 1.5}, {"id": True}, {"id": None}, {"id": [1]}, {}):
        with pytest.raises(Invalid):
            APPROVE.from_json(given)
    nested: list[Any] = []
    for _ in range(100_000):
        nested = [nested]
    for odd in ({"id": 1, "x": "\ud800"}, {"id": 1, "\udfff": 1}, {"id": nested}):
        with pytest.raises(Malformed):
            APPROVE.from_json(odd)


def test_days_and_moments_are_written_as_such() -> None:
    events, dates = BY_NAME["list_my_events"], BY_NAME["list_market_dates"]
    for since in ("0", "1700000000", "now", "2026-02-30T00:00:00Z", "0001-01-01T00:00:00+14:00"):
        with pytest.raises(Invalid) as info:
            events.from_strings({"since": since})
        assert [error.field for error in info.value.errors] == ["since"]
    for day in (
        "0",
        "1700000000",
        "2026-02-30",
        "2026-11-24T10:00:00",
        "24.11.2026",
        "２０２６-11-24",
    ):
        with pytest.raises(Invalid) as info:
            dates.from_strings({"since": day})
        assert [error.field for error in info.value.errors] == ["since"]
    parsed: Any = events.from_strings({"since": "2026-11-24T10:00:00+01:00"})
    assert parsed.since.isoformat() == "2026-11-24T09:00:00+00:00"
    with pytest.raises(Invalid):
        dates.from_json({"since": 1_700_000_000})
    assert dates.from_json({"since": "2026-11-24"}) == dates.from_strings({"since": "2026-11-24"})
    naive: Any = events.from_strings({"since": "2026-11-24T10:00:00"})
    assert naive.since.utcoffset() == timedelta(0)
