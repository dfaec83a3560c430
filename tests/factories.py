"""Rows for tests, made as directly as can be: no password is hashed, no event is recorded."""

import itertools
from datetime import date
from typing import Any

from flask import current_app
from sqlalchemy import insert

from convene_keys import clock, config
from convene_keys.accounts.links import digest
from convene_keys.audit.log import Actor, Origin
from convene_keys.db.session import db
from convene_keys.keys import tokens
from convene_keys.models import (
    ApiKey,
    Booking,
    Market,
    MarketDate,
    Member,
    Organization,
    Role,
    SignInSession,
    Vendor,
    VendorApplication,
)
from convene_keys.operations import runner
from convene_keys.operations.runner import Caller
from convene_keys.operations.table import BY_NAME
from convene_keys.text import fold
from tests.databases import PEPPER

_numbers = itertools.count(1)


def organization(name: str = "Riverside Market", **values: Any) -> Organization:
    return _saved(Organization(name=name, slug=f"o{next(_numbers)}", **values))


def member(of: Organization, role: str = "admin", name: str = "Maya", **values: Any) -> Member:
    email = values.pop("email", f"member{next(_numbers)}@example.org")
    return _saved(
        Member(
            organization_id=of.id,
            name=name,
            email=email,
            email_folded=fold(email),
            role=Role(role),
            **values,
        )
    )


def api_key(of: Organization, name: str = "Claude on laptop", **values: Any) -> tuple[ApiKey, str]:
    """A key and its secret."""
    token = values.pop("token", None) or tokens.mint()
    creator = values.pop("creator", None)
    key = ApiKey(
        organization_id=of.id,
        name=name,
        name_folded=fold(name),
        digest=tokens.digest(token, PEPPER),
        hint=tokens.hint(token),
        pepper_id=config.pepper_id(PEPPER),
        created_by_id=creator.id if creator else None,
        **values,
    )
    return _saved(key), token


def caller(secret: str, origin: Origin | None = None) -> Caller:
    """Whoever presents a key to the application that runs."""
    return Caller(current_app.extensions["site"], secret, origin or Origin())


def call(secret: str, operation: str, origin: Origin | None = None, **values: Any) -> None:
    """What the key does by an operation, as through the API."""
    wanted = BY_NAME[operation]
    arguments = wanted.from_json(values)
    runner.run(wanted, caller(secret, origin), lambda: arguments)


def decide(member: Member, operation: str, **values: Any) -> None:
    """The same by a member in the browser."""
    wanted = BY_NAME[operation]
    arguments = wanted.from_json(values)
    runner.run_for_member(wanted, Actor.of_member(member, Origin()), lambda: arguments)


def session(of: Member) -> tuple[SignInSession, str]:
    """A signed-in browser's session and the token its cookie carries."""
    token = f"session {next(_numbers)}"
    return _saved(SignInSession(member_id=of.id, digest=digest(token))), token


def market_data(of: Organization) -> None:
    """Market 1, date 1 (in ten days), vendor 1, applications 1–2, bookings 1–3, all pending."""
    day = date.fromordinal(clock.now().date().toordinal() + 10)
    seller = {"name": "Green Acre Farm", "name_folded": "green acre farm", "category": "Produce"}
    hours = {"opens": "08:00", "closes": "13:00"}
    tables: list[tuple[Any, int, dict[str, Any]]] = [
        (Market, 1, {"name": "Old Harbour", "location": "Quay 3"}),
        (Vendor, 1, {**seller, "contact_name": "Noor", "email": "noor@example.org"}),
        (
            MarketDate,
            1,
            {"market_id": 1, "date": day, **hours, "stalls": 20, "status": "published"},
        ),
        (VendorApplication, 2, {"market_id": 1, "vendor_id": 1}),
        (Booking, 3, {"market_date_id": 1, "vendor_id": 1, "amount": 4500}),
    ]
    for table, count, values in tables:
        rows = [{"organization_id": of.id, "id": n + 1, **values} for n in range(count)]
        db.session.execute(insert(table), rows)
    db.session.commit()


def bookings(of: Organization, numbers: range) -> None:
    """More bookings of what `market_data` made, all pending; at least one."""
    values = {"organization_id": of.id, "market_date_id": 1, "vendor_id": 1, "amount": 4500}
    db.session.execute(insert(Booking), [{**values, "id": number} for number in numbers])
    db.session.commit()


def _saved(row: Any) -> Any:
    db.session.add(row)
    db.session.commit()
    return row
