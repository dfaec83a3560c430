"""The table of operations: the contract's, whole, and what each of its rows does."""

import pytest
from sqlalchemy import text

from convene_keys.audit.actions import Action
from convene_keys.db.session import db
from convene_keys.errors import NotFound
from convene_keys.keys import tokens
from convene_keys.models import Booking, Member, Organization, Scope, VendorApplication
from convene_keys.operations import schemas
from convene_keys.operations.table import BY_NAME, OPERATIONS, Operation
from tests import factories
from tests.operations.test_runner import arguments_for, contents, recorded, run


@pytest.fixture
def maya(organization: Organization) -> Member:
    return factories.member(organization, "manager")


@pytest.fixture
def secret(organization: Organization, maya: Member) -> str:
    return factories.api_key(organization, creator=maya)[1]


CONTRACT = """
whoami GET /me
dashboard GET /dashboard
list_markets GET /markets
get_market GET /markets/{id}
list_market_dates GET /market_dates
get_market_date GET /market_dates/{id}
list_vendors GET /vendors
get_vendor GET /vendors/{id}
list_vendor_applications GET /vendor_applications
get_vendor_application GET /vendor_applications/{id}
update_vendor_application PATCH /vendor_applications/{id}
remind_vendor_application POST /vendor_applications/{id}/remind
list_bookings GET /bookings
get_booking GET /bookings/{id}
approve_booking POST /bookings/{id}/approve
decline_booking POST /bookings/{id}/decline
cancel_booking POST /bookings/{id}/cancel
mark_booking_paid POST /bookings/{id}/mark_paid
list_my_events GET /audit_events
"""


def test_table_is_the_contracts() -> None:
    table = "".join(f"{o.name} {o.method} {o.path}\n" for o in OPERATIONS)
    assert table == CONTRACT.lstrip()
    assert len(BY_NAME) == len(OPERATIONS)


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.name)
def test_row_of_the_table_is_whole(operation: Operation) -> None:
    assert issubclass(operation.input, schemas.Input)
    assert issubclass(operation.output, schemas.Output)
    assert operation.input.model_config["extra"] == "forbid"
    assert 10 <= len(operation.description) <= 300
    assert operation.description.endswith(".")
    assert 2 <= len(operation.title) <= 60
    assert ("id" in operation.input.model_fields) == ("{id}" in operation.path)
    assert bool(operation.noun) == ("{id}" in operation.path)
    assert isinstance(operation.action, Action)
    assert (operation.scope is Scope.READ) == (operation.method == "GET")
    for name, field in operation.input.model_fields.items():
        assert field.description, f"{name} has no description"
        assert len(field.description) <= 700
    assert operation.output.model_json_schema()["type"] == "object"


def test_reading_changes_no_row(organization: Organization, secret: str) -> None:
    before = contents()
    assert sum(map(len, before.values())) > 8
    reads = [operation for operation in OPERATIONS if operation.scope is Scope.READ]
    for operation in reads:
        run(operation, secret, **arguments_for(operation))
        assert contents() == before, operation.name
    assert len(recorded()) == len(reads)


def test_changes_touch_their_own_row_only(organization: Organization, secret: str) -> None:
    for number, (name, table) in enumerate(
        (
            ("approve_booking", "booking"),
            ("mark_booking_paid", "booking"),
            ("decline_booking", "booking"),
            ("cancel_booking", "booking"),
            ("update_vendor_application", "vendor_application"),
            ("remind_vendor_application", "vendor_application"),
        )
    ):
        target = (1, 1, 2, 3, 1, 2)[number]
        before = contents()
        run(BY_NAME[name], secret, **{**arguments_for(BY_NAME[name]), "id": target})
        after = contents()
        changed = {key for key in after if after[key] != before[key]}
        assert changed == {table}, name
        differing = [
            new for old, new in zip(before[table], after[table], strict=True) if old != new
        ]
        assert len(differing) == 1


def test_key_in_a_note_or_reason_is_kept_as_its_hint(
    organization: Organization, secret: str
) -> None:
    note = f"used {secret} for this"
    run(BY_NAME["update_vendor_application"], secret, id=1, status="approved", note=note)
    run(BY_NAME["decline_booking"], secret, id=1, reason=note)
    kept = f"used {tokens.hint(secret)}… for this"
    assert db.session.get_one(VendorApplication, (organization.id, 1)).note == kept
    assert db.session.get_one(Booking, (organization.id, 1)).reason == kept
    for table in ("audit_event", "booking", "vendor_application"):
        rows = db.session.execute(text(f"SELECT * FROM {table}")).all()  # noqa: S608
        assert secret not in repr(rows)


def test_own_events_only(organization: Organization, maya: Member, secret: str) -> None:
    other, others = factories.api_key(organization, "Other", creator=maya)
    run(BY_NAME["whoami"], others)
    run(BY_NAME["whoami"], secret)
    run(BY_NAME["dashboard"], secret)
    mine = run(BY_NAME["list_my_events"], secret)
    assert [event["action"] for event in mine["data"]] == ["dashboard.viewed", "key.checked"]
    some = run(BY_NAME["list_my_events"], secret, action="key.checked")
    assert [event["action"] for event in some["data"]] == ["key.checked"]
    with pytest.raises(NotFound):
        run(BY_NAME["list_my_events"], secret, key=other.id)
    same = run(BY_NAME["list_my_events"], others, key=other.id)
    assert [event["key_id"] for event in same["data"]] == [other.id]
