"""Inputs: what JSON and an address may hold, days and moments. Outputs: how a row is written."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic_core import to_json

from convene_keys.errors import Invalid, Malformed
from convene_keys.operations import schemas
from convene_keys.operations.table import BY_NAME

APPROVE = BY_NAME["approve_booking"]


def test_json_bends_no_type() -> None:
    for wrong in ({"id": "1"}, {"id": 1.5}, {"id": True}, {"id": None}, {"id": [1]}, {}):
        with pytest.raises(Invalid):
            APPROVE.from_json(wrong)
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


ROWS = [
    each
    for each in vars(schemas).values()
    if isinstance(each, type) and issubclass(each, schemas.Output) and each.__name__.endswith("Out")
]
MOMENTS = st.datetimes(timezones=st.just(UTC))
JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)
OF_TYPE: dict[Any, st.SearchStrategy[Any]] = {  # as the database has them
    datetime: MOMENTS,
    datetime | None: st.none() | MOMENTS,
    schemas.Json: st.dictionaries(st.text(), JSON_VALUES, max_size=3),
}


@pytest.mark.parametrize("model", ROWS, ids=lambda model: model.__name__)
@settings(max_examples=50)
@given(data=st.data())
def test_row_is_written_as_its_model_would_write_it(
    model: type[schemas.Output], data: st.DataObject
) -> None:
    types = {name: field.annotation for name, field in model.model_fields.items()}
    known = {name: OF_TYPE[kind] for name, kind in types.items() if kind in OF_TYPE}
    row = data.draw(st.builds(model, **known))
    written = row.model_dump_json()
    assert to_json(schemas.as_json(model, row)).decode() == written
    assert model.model_validate_json(written) == row
