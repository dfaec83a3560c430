"""Every change a person can make, from the app's own map: what it takes, at the moment it is made.

A route that is added fails here until it stands in `POSTS`, and says why when it asks for no recent
password.
"""

import itertools
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from threading import Barrier, Thread
from typing import Any

import pytest
from flask import Flask, url_for
from flask.testing import FlaskClient
from sqlalchemy import func, select, update

from convene_keys.accounts import members, passwords
from convene_keys.audit.actions import Action
from convene_keys.audit.log import Actor, Origin, Target, record
from convene_keys.db.session import db, transaction
from convene_keys.http.access import Access, declared
from convene_keys.models import (
    ApiKey,
    AuditEvent,
    Booking,
    KeyMakers,
    Member,
    Organization,
    Role,
    SignInLink,
    SignInSession,
    VendorApplication,
)
from tests import factories
from tests.conftest import Browser, Clock, new_browser
from tests.databases import PEPPER

PASSWORD = "plum kettle orbit sandal"
LOWERS_RISK = "it only lowers risk"
DAILY = "daily work, which a key may do as well"
NAME = "a name opens nothing"
STRANGER = "nobody is signed in yet"


@dataclass(frozen=True)
class Post:
    """What a route needs to do something, and why it asks for no recent password, if it doesn't."""

    form: dict[str, str] = field(default_factory=dict)
    unasked: str = ""
    thing: dict[str, Any] = field(default_factory=dict)  # how what it acts on is beforehand


_numbers = itertools.count(10)
GONE = factories.clock.now()
LEAKED = {"leaked_at": GONE, "revoked_at": GONE, "released_at": GONE}
POSTS = {
    "auth.sign_in": Post(unasked=STRANGER),
    "auth.set_up": Post(unasked=STRANGER),
    "auth.accept": Post(unasked=STRANGER),
    "auth.logout": Post(unasked=LOWERS_RISK),
    "keys.create": Post({"name": "Another", "tool": "claude", "scope": "read"}),
    "keys.rename": Post({"name": "Till"}, NAME),
    "keys.revoke": Post(unasked=LOWERS_RISK),
    "keys.rotate": Post({"grace": "24"}),
    "keys.edit": Post({"scope": "read_write", "expires_on": ""}, thing={"scope": "read"}),
    "leak.report": Post(unasked=LOWERS_RISK),
    "leak.replace": Post(thing=LEAKED),
    "leak.undo_all": Post(unasked=DAILY),
    "leak.undo_change": Post(unasked=DAILY),
    "checkup.remedy": Post({"key": "<id>"}, LOWERS_RISK),
    "data.approve_booking": Post(unasked=DAILY),
    "data.decline_booking": Post(unasked=DAILY),
    "data.cancel_booking": Post(unasked=DAILY),
    "data.mark_booking_paid": Post(unasked=DAILY, thing={"status": "approved"}),
    "data.decide_application": Post({"status": "approved"}, DAILY),
    "data.remind_application": Post(unasked=DAILY),
    "team.add": Post({"name": "Ida", "email": "ida@example.org", "role": "viewer"}),
    "team.change": Post({"name": "Ida", "role": "admin"}),
    "team.disable": Post(),
    "team.enable": Post(thing={"disabled_at": GONE}),
    "team.make_link": Post(),
    "team.withdraw_link": Post(unasked=LOWERS_RISK),
    "settings.change_organization": Post({"name": "Harbour", "status": "draft"}),
    "settings.change_billing": Post({"billing_email": "money@example.org"}),
    "settings.change_name": Post({"name": "Noor H."}, NAME),
    "settings.choose_mail": Post(unasked="a digest opens nothing"),
    "settings.change_password": Post({"new_password": "violet anchor meadow biscuit"}),
    "settings.end_other_sessions": Post(),
}


def _of_people(app: Flask) -> Iterator[tuple[str, Access]]:
    """The endpoints of all that is not a GET and not a key's, with the level each declares."""
    for rule in app.url_map.iter_rules():
        level = declared(app, rule.endpoint)
        changes = (rule.methods or set()) - {"GET", "HEAD", "OPTIONS"}
        if changes and level not in (None, Access.OPEN, Access.KEY):
            yield rule.endpoint, level


def _of_members(app: Flask) -> list[tuple[str, Access]]:
    found = [(endpoint, level) for endpoint, level in _of_people(app) if level != Access.PUBLIC]
    return sorted(found, key=lambda one: one[0] == "auth.logout")  # that one last


def test_every_change_a_person_can_make_stands_in_the_table(app: Flask) -> None:
    assert {endpoint for endpoint, _ in _of_people(app)} == POSTS.keys()


@pytest.fixture
def organization(app: Flask) -> Organization:
    app.config["WTF_CSRF_ENABLED"] = False
    organization = factories.organization()
    factories.market_data(organization)
    factories.member(organization, name="Maya")
    return organization


@pytest.fixture
def noor(organization: Organization) -> Member:
    return factories.member(
        organization, name="Noor", password_hash=passwords.hash_password(PASSWORD, [PEPPER])
    )


def _address(app: Flask, endpoint: str, of: Organization) -> tuple[str, dict[str, str]]:
    """Where to post to, about a thing of its own, and the form."""
    post, number = POSTS[endpoint], next(_numbers)
    (rule,) = (rule for rule in app.url_map.iter_rules(endpoint) if "POST" in (rule.methods or ()))
    arguments: dict[str, Any] = {}
    form = post.form
    if rule.arguments & {"key_id", "kind"}:
        key, _ = factories.api_key(of, f"Key {number}", **post.thing)
        arguments = {"key_id": key.id} if "key_id" in rule.arguments else {"kind": "endless"}
        form = {name: value.replace("<id>", str(key.id)) for name, value in form.items()}
        if "undo" in endpoint:
            _booking(of, number)
            made = _approved(key, number)
            arguments |= {"event_id": made} if "event_id" in rule.arguments else {}
    elif "member_id" in rule.arguments:
        arguments = {"member_id": factories.member(of, name=f"Member {number}", **post.thing).id}
    elif "number" in rule.arguments:
        arguments = {"number": number}
        if "booking" in endpoint:
            _booking(of, number, **post.thing)
        else:
            db.session.add(
                VendorApplication(organization_id=of.id, id=number, market_id=1, vendor_id=1)
            )
            db.session.commit()
    elif "link_id" in rule.arguments:
        member = factories.member(of, name=f"Member {number}")
        members.invitation(Actor.system(of.id), member.id)
        link = select(SignInLink.id).where(SignInLink.member_id == member.id)
        arguments = {"link_id": db.session.scalar(link)}
    with app.test_request_context():
        return url_for(endpoint, **arguments), form


def _booking(of: Organization, number: int, **values: Any) -> None:
    row = Booking(organization_id=of.id, id=number, market_date_id=1, vendor_id=1, amount=4500)
    for name, value in values.items():
        setattr(row, name, value)
    db.session.add(row)
    db.session.commit()


def _approved(key: ApiKey, number: int) -> int:
    """The event of a key that approved a booking."""
    target = Target("booking", number, f"booking {number}")
    detail = {"changed": True, "replaced": {"status": "pending"}}
    with transaction() as session:
        actor = Actor.of_key(key, Origin())
        return record(session, actor, Action.BOOKING_APPROVED, target, detail=detail)


def _set(statement: Any) -> None:
    """Run it for the test, whose session then sees it."""
    db.session.rollback()
    _run(statement)


def _run(statement: Any) -> None:
    """Run it on a connection of its own, as elsewhere."""
    with db.engine.begin() as connection:
        connection.execute(statement)


def _done() -> list[str]:
    """What the log says was done, by whomever."""
    with db.engine.connect() as connection:
        return list(connection.scalars(select(AuditEvent.action).where(AuditEvent.outcome == "ok")))


def test_a_change_asks_for_a_recent_password_or_the_table_says_why_not(
    app: Flask, noor: Member, fake_clock: Clock
) -> None:
    hashed = noor.password_hash
    for endpoint, _ in _of_members(app):
        browser = new_browser(app)
        browser.sign_in(noor)
        fake_clock.advance(minutes=31)
        address, form = _address(app, endpoint, noor.organization)
        before = _done()
        if not POSTS[endpoint].unasked:
            asked = browser.post(address, data=form)
            assert asked.status_code == 422, endpoint
            assert asked.text.count("Please type your password.") == 1, endpoint
            assert _done() == before
            form = form | {"current_password": PASSWORD}
        answer = browser.post(address, data=form)
        assert answer.status_code in (200, 303), (endpoint, answer.text)
        assert len(_done()) > len(before), endpoint
        _set(update(Member).where(Member.id == noor.id).values(password_hash=hashed))


# What the actor may do is read where the change is made ------------------------------------------

LOWER = {Access.ADMIN: Role.MANAGER, Access.MANAGER: Role.VIEWER, Access.MAKER: Role.VIEWER}


def _losses(member: Member, level: Access, role: Role) -> list[tuple[str, Any]]:
    """What may happen to the actor while the request waits, as statements, and their undoing."""
    of = update(Member).where(Member.id == member.id)
    sessions = update(SignInSession).where(SignInSession.member_id == member.id)
    where = update(Organization).where(Organization.id == member.organization_id)
    losses = [
        ("disabled", of.values(disabled_at=GONE), of.values(disabled_at=None)),
        ("signed out", sessions.values(ended_at=GONE), sessions.values(ended_at=None)),
    ]
    if level in LOWER:
        losses.append(("demoted", of.values(role=LOWER[level]), of.values(role=role)))
    if level is Access.MAKER:
        limited, free = KeyMakers.ADMINS, KeyMakers.MANAGERS
        losses.append(
            ("not a maker", where.values(key_makers=limited), where.values(key_makers=free))
        )
    return losses


def test_a_change_is_refused_when_the_actor_lost_the_right_since_the_guard(
    app: Flask, noor: Member
) -> None:
    """Between the guard and the view, so that the view itself must read the actor again."""
    meanwhile: list[Any] = []

    @app.before_request
    def lose() -> None:
        for statement in meanwhile:
            _run(statement)

    tried, won = 0, []
    for endpoint, level in _of_members(app):
        if endpoint == "auth.logout":  # who leaves needs no right to
            continue
        role = Role.MANAGER if level is Access.MAKER else Role(level)
        _set(update(Member).where(Member.id == noor.id).values(role=role))
        browser = new_browser(app)
        browser.sign_in(noor)
        for loss, statement, undo in _losses(noor, level, role):
            address, form = _address(app, endpoint, noor.organization)
            before = _done()
            meanwhile[:] = [statement]
            answer = browser.post(address, data=form | {"current_password": PASSWORD})
            meanwhile.clear()
            tried += 1
            if answer.status_code != 403 or _done() != before:
                won.append((endpoint, loss))
            _set(undo)
    assert not won, f"{len(won)} of {tried}"
    assert tried > 50  # on each kind of database


@pytest.mark.parametrize("ending", ["csv", "jsonl"])
def test_an_export_is_refused_when_the_actor_lost_the_right_since_the_guard(
    app: Flask, noor: Member, ending: str
) -> None:
    app.before_request(lambda: _run(update(Member).values(disabled_at=GONE)))
    browser = new_browser(app)
    browser.sign_in(noor)
    assert browser.get(f"/admin/audit_log.{ending}").status_code == 403
    assert _done() == []


def _disable(app: Flask, noor: Member) -> Callable[[], None]:
    """What another admin's click does, elsewhere."""
    maya = db.session.scalars(select(Member).where(Member.name == "Maya")).one()
    actor, member_id = Actor.of_member(maya, Origin()), noor.id

    def disable() -> None:
        with app.app_context():
            members.set_disabled(actor, member_id, disabled=True)

    return disable


def test_an_admin_disabled_while_the_password_is_checked_changes_nothing(
    app: Flask, noor: Member, fake_clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    fits, disable, won = passwords.fits, _disable(app, noor), []
    enable = update(Member).where(Member.id == noor.id).values(disabled_at=None)

    def slowly(*given: Any) -> bool:
        elsewhere = Thread(target=disable)
        elsewhere.start()
        elsewhere.join()
        return fits(*given)

    monkeypatch.setattr(passwords, "fits", slowly)
    for endpoint, _ in _of_members(app):
        if POSTS[endpoint].unasked:
            continue
        address, form = _address(app, endpoint, noor.organization)
        browser = new_browser(app)
        browser.sign_in(noor)
        fake_clock.advance(minutes=31)
        before = _done()
        answer = browser.post(address, data=form | {"current_password": PASSWORD})
        if answer.status_code != 403 or _done() != [*before, "member.disabled"]:
            won.append(endpoint)
        _set(enable)
    assert won == []


@pytest.mark.parametrize("rounds", [8, pytest.param(100, marks=pytest.mark.soak)])
def test_nothing_a_member_does_comes_after_being_disabled(
    app: Flask, noor: Member, rounds: int
) -> None:
    """Free-running: whatever got in first, nothing of theirs is committed after they are out."""
    tabs = []
    for path, form in (
        ("/admin/settings/account/name", "name"),
        ("/admin/settings/account/sessions", ""),
        ("/admin/settings/billing", "billing_email"),
        ("/admin/api_keys", "name"),
    ):
        tabs.append((path, form, new_browser(app)))
    disable = _disable(app, noor)
    noor_id, lost = noor.id, 0
    for number in range(rounds):
        _set(update(Member).where(Member.id == noor_id).values(disabled_at=None))
        for _, _, browser in tabs:
            browser.sign_in(noor)
        start = Barrier(len(tabs) + 1)

        value = f"n{number}@example.org"

        def post(path: str, name: str, browser: Browser, start: Barrier, value: str) -> int:
            start.wait()
            form = {name: value} if name else {}
            return FlaskClient.open(browser, path, method="POST", data=form).status_code

        with ThreadPoolExecutor(len(tabs)) as pool:
            answers = [pool.submit(post, *tab, start, value) for tab in tabs]
            start.wait()
            disable()
        statuses = [answer.result() for answer in answers]
        assert set(statuses) <= {200, 303, 403}, statuses
        lost += sum(status == 403 for status in statuses)
        last, out = (
            db.session.scalar(select(func.max(AuditEvent.id)).where(which)) or 0
            for which in (AuditEvent.member_id == noor_id, AuditEvent.action == "member.disabled")
        )
        db.session.rollback()
        assert last < out
    print(f"{lost} of {rounds * len(tabs)} came too late")


def test_of_two_admins_who_disable_each_other_one_stays(app: Flask, noor: Member) -> None:
    both = [noor, factories.member(noor.organization, name="Ida")]
    browsers = [new_browser(app), new_browser(app)]
    for _ in range(8):
        for member, browser in zip(both, browsers, strict=True):
            browser.sign_in(member)
        start = Barrier(2)
        paths = [f"/admin/team/{member.id}/disable" for member in reversed(both)]

        def disable(browser: Browser, path: str, start: Barrier) -> int:
            start.wait()
            return FlaskClient.open(browser, path, method="POST").status_code

        with ThreadPoolExecutor(2) as pool:
            assert set(pool.map(disable, browsers, paths, [start] * 2)) <= {303, 403}
        db.session.rollback()
        assert sum(member.disabled_at is not None for member in both) == 1
        _set(update(Member).values(disabled_at=None))


def test_a_demoted_members_session_goes_on_in_the_new_role(app: Flask, noor: Member) -> None:
    key, _ = factories.api_key(noor.organization)
    browser = new_browser(app)
    browser.sign_in(noor)
    for role, revoked in (("viewer", 403), ("manager", 303)):
        _set(update(Member).where(Member.id == noor.id).values(role=role))
        assert browser.get("/admin/api_keys").status_code == 200
        assert browser.get("/admin/settings/billing").status_code == 403
        assert browser.post(f"/admin/api_keys/{key.id}/revoke").status_code == revoked
    assert db.session.get_one(ApiKey, key.id).ended
