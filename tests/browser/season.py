"""A database as full, as empty and as unwieldy as a page may meet, and people signed in to it."""

from dataclasses import dataclass
from datetime import timedelta

from flask import Flask
from sqlalchemy import select, text

from convene_keys import clock, create_app
from convene_keys.accounts import members as accounts_members
from convene_keys.audit.actions import Action
from convene_keys.audit.log import Actor, Origin, record
from convene_keys.db.session import db, transaction
from convene_keys.keys import lifecycle
from convene_keys.leaks import reports
from convene_keys.models import ApiKey, AuditEvent, Booking, Member, Vendor, VendorApplication
from convene_keys.operations import undo
from tests import factories
from tests.databases import PEPPER, environ

WORD = "Donaudampfschifffahrtsgesellschaftskapitän"  # 42 letters without a place to break
LONG = f"The {WORD} of the Old Harbour Farmers’ and Makers’ Market"


@dataclass(frozen=True)
class Season:
    """What stands for <name> in an address, and each person's cookie."""

    names: dict[str, str]
    cookies: dict[str, str]


def season(database_url: str) -> Season:
    """Fill an empty, migrated database.

    Maya and Ines belong to the demo organization, as admin and viewer; "stale" is Maya in a browser
    that gave its password an hour ago. Each of the others is the admin of an organization: Ada's is
    empty, all names in Lena's are long, Otto has many keys, and Bo's data can't be read.
    """
    app = create_app(environ(database_url))
    assert app.test_cli_runner().invoke(args=["demo"]).exit_code == 0
    with app.app_context():
        number_of = {key.name: key.id for key in db.session.scalars(select(ApiKey))}
        members = {member.name: member for member in db.session.scalars(select(Member))}
        maya, ines = members["Maya Lindqvist"], members["Inès Okonjo"]
        gone = factories.member(maya.organization, "viewer", "Gone", disabled_at=clock.now())
        people = {
            "maya": maya,
            "ines": ines,
            "ada": factories.member(factories.organization("Empty"), name="Ada"),
            "lena": factories.member(factories.organization(LONG), name=LONG),
            "otto": factories.member(factories.organization("Plenty"), name="Otto"),
            "bo": factories.member(factories.organization("Broken"), name="Bo"),
        }
        _, code = accounts_members.invitation(Actor.of_member(maya, Origin()), ines.id)
        _long_names(people["lena"])
        for number in range(60):
            factories.api_key(people["otto"].organization, f"Key {number}", creator=people["otto"])
        factories.api_key(people["bo"].organization, creator=people["bo"])
        broken = text("UPDATE api_key SET created_at = 'soon' WHERE organization_id = :id")
        db.session.execute(broken, {"id": people["bo"].organization_id})
        db.session.commit()
        tokens = {name: factories.session(member)[1] for name, member in people.items()}
        stale, tokens["stale"] = factories.session(maya)
        stale.password_checked_at -= timedelta(hours=1)
        db.session.commit()
        names = {
            "key_id": number_of["Claude on Maya’s laptop"],
            "expiring": number_of["Holiday cover rota"],
            "revoked": number_of["Newsletter script"],
            "kind": "endless",
            "number": 123,
            "member_id": members["Tomasz Adeyemi"].id,
            "gone": gone.id,
            "code": code,
            "long": db.session.scalar(select(ApiKey.id).where(ApiKey.name == LONG)),
            "old": db.session.scalar(select(ApiKey.id).where(ApiKey.name == f"{LONG} till")),
            "leaked": db.session.scalar(select(ApiKey.id).where(ApiKey.name == f"{LONG} phone")),
        }
        cookies = {name: signed(app, token) for name, token in tokens.items()}
        db.session.remove()
        db.engine.dispose()
    return Season({name: str(value) for name, value in names.items()}, cookies)


def signed(app: Flask, token: str) -> str:
    """The cookie of the browser whose session has this token."""
    sign = app.session_interface.get_signing_serializer(app)  # type: ignore[attr-defined]
    return str(sign.dumps({"_user_id": token, "_fresh": True}))


def _long_names(lena: Member) -> None:
    """Keys, market data and an event whose every word may be too long for a phone."""
    agent = f"{WORD}/1.0 (https://{WORD.lower()}.example.org)"
    used = {"last_used_at": clock.now(), "last_used_ip": "2001:db8:1111:2222:3333:4444:5555:6666"}
    for name, more in (
        (LONG, {"last_used_user_agent": agent, **used}),
        (WORD, {"expires_at": clock.now() + timedelta(days=3)}),
    ):
        factories.api_key(lena.organization, name, creator=lena, **more)
    factories.market_data(lena.organization)
    member = Actor.of_member(lena, Origin())
    old, _ = factories.api_key(lena.organization, f"{LONG} till", creator=lena, **used)
    lifecycle.rotate(
        member, old.id, grace=timedelta(days=1), peppers=[PEPPER], created_by_id=lena.id
    )
    leaked, secret = factories.api_key(lena.organization, f"{LONG} phone", creator=lena, **used)
    thief = Origin(used["last_used_ip"], agent)
    factories.call(secret, "approve_booking", thief, id=1)
    factories.call(secret, "decline_booking", thief, id=2)
    factories.call(secret, "cancel_booking", thief, id=3)
    factories.call(secret, "update_vendor_application", thief, id=1, status="declined")
    factories.decide(lena, "mark_booking_paid", id=1)
    _, declined = db.session.scalars(
        select(AuditEvent.id).where(AuditEvent.key_id == leaked.id).order_by(AuditEvent.id).limit(2)
    )
    undo.undo(member, leaked.id, declined)
    reports.report_own(member, leaked.id, WORD)
    for model, values in (
        (Vendor, {"name": LONG, "name_folded": LONG.lower(), "category": WORD}),
        (VendorApplication, {"message": f"{LONG}. " * 6, "note": LONG}),
        (Booking, {"stall": WORD[:20]}),
    ):
        for row in db.session.scalars(
            select(model).where(model.organization_id == lena.organization_id)
        ):
            for name, value in values.items():
                setattr(row, name, value)
    db.session.commit()
    origin = Origin("2001:db8:1111:2222:3333:4444:5555:6666", agent, "0123456789abcdef")
    with transaction() as session:
        actor = Actor.of_member(lena, origin)
        record(session, actor, Action.SETTINGS_ORGANIZATION_CHANGED, detail={"name": LONG})
