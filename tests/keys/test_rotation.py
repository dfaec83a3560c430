"""Rotation: a successor beside its predecessor, and the moment at which the old key ends."""

import threading
import time
from datetime import timedelta
from pathlib import Path

import pytest
from flask import Flask
from sqlalchemy import select

from convene_keys import clock
from convene_keys.audit.log import Actor, Origin
from convene_keys.checkup import findings, reminders
from convene_keys.db.session import db, raw_connection, transaction
from convene_keys.errors import Conflict, Invalid, NotFound
from convene_keys.keys import authentication, lifecycle
from convene_keys.keys import queries as key_queries
from convene_keys.leaks import reports
from convene_keys.models import ApiKey, AuditEvent, Member, Organization
from tests import factories
from tests.conftest import Clock, wait_for
from tests.databases import PEPPER
from tests.servers import Server, Visitor, from_elsewhere

DAY = timedelta(days=1)
ORIGIN = Origin("192.0.2.7", "curl/8", "r1")


def rotate(member: Member, key_id: int, grace: timedelta = DAY) -> tuple[ApiKey, str]:
    actor = Actor.of_member(member, ORIGIN)
    return lifecycle.rotate(actor, key_id, grace=grace, peppers=[PEPPER], created_by_id=member.id)


def refused(token: str) -> str | None:
    """The code with which a key is refused now, if it is."""
    with transaction() as session:
        problem = authentication.refusal(
            authentication.authenticate(raw_connection(session), token, [PEPPER])
        )
    return problem and problem.code


def events() -> list[AuditEvent]:
    db.session.rollback()
    return list(db.session.scalars(select(AuditEvent).order_by(AuditEvent.id)))


def looked_at(of: Organization) -> dict[str, list[int]]:
    """The keys of each finding."""
    found = findings.run(db.session(), of.id).findings
    db.session.rollback()
    return {finding.kind.value: [one.id for one in finding.concerned] for finding in found}


def listed(of: Organization, status: str) -> list[int]:
    return [key.id for key in key_queries.list_keys(db.session(), of.id, status=status).keys]


def test_successor_takes_name_tool_scope_and_span_of_life(
    organization: Organization, maya: Member, fake_clock: Clock
) -> None:
    noor = factories.member(organization, "manager", "Noor")
    ends = clock.now() + timedelta(days=90)
    old, _ = factories.api_key(
        organization, "Website", creator=noor, tool="developer", scope="read", expires_at=ends
    )
    fake_clock.advance(days=80)
    new, token = rotate(maya, old.id)
    assert (new.name, new.tool, new.scope) == ("Website", "developer", "read")
    assert (new.created_by_id, new.predecessor_id) == (maya.id, old.id)
    assert new.expires_at == clock.now() + timedelta(days=90)
    assert refused(token) is None


def test_old_key_goes_on_for_the_grace_period_and_not_a_moment_longer(
    maya: Member, key: tuple[ApiKey, str], fake_clock: Clock
) -> None:
    old, old_token = key
    _, new_token = rotate(maya, old.id)
    fake_clock.advance(days=1, microseconds=-1)
    assert refused(old_token) is None
    fake_clock.advance(microseconds=1)
    assert refused(old_token) == "key_expired"
    assert refused(new_token) is None


def test_old_key_goes_on_no_longer_than_its_own_end(
    organization: Organization, maya: Member, fake_clock: Clock
) -> None:
    ends = clock.now() + timedelta(hours=1)
    old, _ = factories.api_key(organization, creator=maya, expires_at=ends)
    rotate(maya, old.id)
    db.session.refresh(old)
    assert old.expires_at == ends


def test_without_grace_the_old_key_is_revoked_at_once(
    maya: Member, key: tuple[ApiKey, str]
) -> None:
    rotate(maya, key[0].id, timedelta(0))
    assert refused(key[1]) == "key_revoked"
    assert [event.action for event in events()] == ["key.created", "key.rotated", "key.revoked"]


def test_rotation_is_recorded_without_a_secret(maya: Member, key: tuple[ApiKey, str]) -> None:
    new, token = rotate(maya, key[0].id)
    created, rotated = events()
    assert (created.action, created.target_id) == ("key.created", str(new.id))
    assert (rotated.action, rotated.target_id, rotated.member_name) == (
        "key.rotated",
        str(key[0].id),
        "Maya",
    )
    assert rotated.detail == {"successor": new.id, "works_until": "2026-11-25T12:00:00Z"}
    for event in (created, rotated):
        assert not {token, key[1]} & {*map(str, event.detail.values()), event.target_name}


def test_key_is_rotated_once(maya: Member, key: tuple[ApiKey, str], fake_clock: Clock) -> None:
    new, _ = rotate(maya, key[0].id)
    with pytest.raises(Conflict, match="rotated already"):
        rotate(maya, key[0].id)
    newest, _ = rotate(maya, new.id)
    assert newest.predecessor_id == new.id
    lifecycle.revoke(Actor.of_member(maya, ORIGIN), newest.id)
    with pytest.raises(Conflict, match="ended"):
        rotate(maya, newest.id)
    assert len(db.session.scalars(select(ApiKey)).all()) == 3


def test_two_who_rotate_at_the_same_moment_make_one_successor(
    app: Flask, maya: Member, key: tuple[ApiKey, str]
) -> None:
    member, barrier, ends = maya.id, threading.Barrier(4), []

    def try_it() -> None:
        with app.app_context():
            me = db.session.get_one(Member, member)
            barrier.wait()
            try:
                ends.append(rotate(me, key[0].id)[0].id)
            except Conflict:
                ends.append(None)
            db.session.remove()

    number, organization = key[0].id, maya.organization_id
    key = (ApiKey(id=number, organization_id=organization), key[1])
    db.session.remove()
    threads = [threading.Thread(target=try_it) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(end is None for end in ends) == [False, True, True, True]


def test_another_organizations_key_is_not_there(maya: Member) -> None:
    theirs, _ = factories.api_key(factories.organization())
    with pytest.raises(NotFound):
        rotate(maya, theirs.id)


def test_list_has_the_old_key_beneath_its_successor(
    organization: Organization, maya: Member, key: tuple[ApiKey, str], fake_clock: Clock
) -> None:
    old = key[0]
    new, _ = rotate(maya, old.id)
    for status in ("active", "all"):
        (row,) = key_queries.list_keys(db.session(), organization.id, status=status).keys
        assert (row.id, row.predecessor.id) == (new.id, old.id)
    assert listed(organization, "expiring") == []
    assert key_queries.expiring(db.session(), organization.id) == 0

    lifecycle.revoke(Actor.of_member(maya, ORIGIN), new.id)
    assert listed(organization, "active") == [old.id]  # it works, so it can't be out of sight
    assert key_queries.expiring(db.session(), organization.id) == 1
    fake_clock.advance(days=1)
    assert listed(organization, "active") == []
    assert sorted(listed(organization, "revoked")) == [old.id, new.id]


def test_key_whose_successor_was_revoked_is_looked_at_and_rotated_again(
    organization: Organization, maya: Member, fake_clock: Clock
) -> None:
    """As long as it was meant to live, not as long as the first rotation left it."""
    fake_clock.advance(days=-200)
    old, token = factories.api_key(organization, "Website", creator=maya)
    fake_clock.advance(days=200)
    lost, _ = rotate(maya, old.id)
    due = {"due": [old.id], "unused": [old.id]}
    assert looked_at(organization) == {"endless": [lost.id]}
    lifecycle.revoke(Actor.of_member(maya, ORIGIN), lost.id)
    assert looked_at(organization) == due
    assert listed(organization, "active") == [old.id]
    reminded = reminders.untold_states(db.session(), organization)
    assert [(key.id, state.value) for key, state in reminded] == [(old.id, "expiring")]
    (option,) = key_queries.choices(db.session(), organization.id)[0][:1]
    assert (option.id, option.old) == (old.id, False)

    new, _ = rotate(maya, old.id, timedelta(hours=1))
    assert (new.predecessor_id, new.expires_at) == (old.id, None)
    assert listed(organization, "active") == [new.id]
    assert looked_at(organization) == {"endless": [new.id]}
    old, lost = (db.session.get_one(ApiKey, key.id) for key in (old, lost))
    assert old.successor.id == lost.successor.id == new.id
    db.session.rollback()
    with pytest.raises(Conflict, match="rotated already"):
        rotate(maya, old.id)
    fake_clock.advance(hours=1)
    assert refused(token) == "key_expired"


def test_what_takes_a_successors_place_at_once_goes_on_beside_the_old_key(
    organization: Organization, maya: Member, key: tuple[ApiKey, str], fake_clock: Clock
) -> None:
    """A secret that was lost, and one that leaked: the key that it should replace still works."""
    actor = Actor.of_member(maya, ORIGIN)
    lost, _ = rotate(maya, key[0].id)
    leaked, _ = rotate(maya, lost.id, timedelta(0))
    reports.report_own(actor, leaked.id)
    new, _ = lifecycle.replace(actor, leaked.id, peppers=[PEPPER])
    (row,) = key_queries.list_keys(db.session(), organization.id).keys
    assert (row.id, row.predecessor.id) == (new.id, key[0].id)
    for ended in (lost, leaked):
        assert db.session.get_one(ApiKey, ended.id).successor.id == new.id
    db.session.rollback()
    with pytest.raises(Conflict, match="replaced already"):
        lifecycle.replace(actor, leaked.id, peppers=[PEPPER])


def test_key_whose_name_was_taken_meanwhile_is_not_rotated(
    organization: Organization, maya: Member, key: tuple[ApiKey, str]
) -> None:
    lost, _ = rotate(maya, key[0].id)
    lifecycle.revoke(Actor.of_member(maya, ORIGIN), lost.id)
    factories.api_key(organization, key[0].name)
    with pytest.raises(Invalid, match="name"):
        rotate(maya, key[0].id)
    assert refused(key[1]) is None


def test_end_of_a_rotated_key_is_noted_once(
    organization: Organization, maya: Member, key: tuple[ApiKey, str], fake_clock: Clock
) -> None:
    rotate(maya, key[0].id)
    before = len(events())
    for _ in range(2):
        fake_clock.advance(days=1)
        with transaction() as session:
            authentication.record_refusal(
                session, organization.id, key[0].id, ORIGIN, "key_expired"
            )
    actions = [event.action for event in events()[before:]]
    assert actions == ["key.expired", "key.refused", "key.refused"]


# Under load --------------------------------------------------------------------------------------


class Caller(threading.Thread):
    """Calls with a pair of keys in turn; notes of each call which key, when, and how it ended."""

    def __init__(self, port: int) -> None:
        super().__init__(daemon=True)
        self.port, self.pair, self.over = port, ("", ""), False
        self.calls: list[tuple[str, float, float, int]] = []

    def tried_after(self, moment: float) -> bool:
        """Whether the old key was tried since."""
        return any(t == self.pair[0] and began >= moment for t, began, *_ in self.calls[-4:])

    def run(self) -> None:
        with Visitor(self.port) as visitor:
            while not self.over:
                for token in self.pair:
                    if token:
                        began = time.time()
                        headers = {"Authorization": f"Bearer {token}", **from_elsewhere()}
                        status, _ = visitor.get("/api/v1/admin/me", **headers)
                        self.calls.append((token, began, time.time(), status))
                time.sleep(0.01)


@pytest.mark.parametrize("rotations", [8, pytest.param(100, marks=pytest.mark.soak)])
def test_no_call_fails_in_the_grace_period_and_none_of_the_old_key_succeeds_after_it(
    app: Flask, database_url: str, tmp_path: Path, rotations: int
) -> None:
    maya = factories.member(factories.organization())
    key, token = factories.api_key(maya.organization, creator=maya)
    number, ends, grace = key.id, {}, timedelta(milliseconds=100)
    with Server(database_url, tmp_path / "server.log", TRUSTED_PROXIES="1") as server:
        callers = [Caller(server.port) for _ in range(8)]
        for caller in callers:
            caller.pair = ("", token)
            caller.start()
        for _ in range(rotations):
            new, successor = rotate(maya, number, grace)
            ends[token] = end = db.session.get_one(ApiKey, number).expires_at.timestamp()
            db.session.commit()
            for caller in callers:
                caller.pair = (token, successor)
            wait_for(lambda e=end: all(caller.tried_after(e) for caller in callers), 30)
            number, token = new.id, successor
        for caller in callers:
            caller.over = True
            caller.join(timeout=30)
    calls = [call for caller in callers for call in caller.calls]
    of_old = [(began, ended, ends[t], status) for t, began, ended, status in calls if t in ends]
    in_grace = [status for _, ended, end, status in of_old if ended < end]
    after = [status for began, _, end, status in of_old if began >= end]
    of_the_last = [status for t, *_, status in calls if t not in ends]
    print(f"{len(in_grace)} calls in time, {len(after)} too late")
    assert set(in_grace + of_the_last) == {200}
    assert set(after) == {401}
    assert len(in_grace) > rotations
    assert len(after) >= rotations * len(callers)
