"""What a daily timer sends: which keys are to be replaced or are about to end, and the week's digest."""

from collections import Counter
from collections.abc import Sequence
from datetime import datetime, timedelta

from sqlalchemy import func, or_, select
from sqlalchemy.orm import Session

from convene_keys import clock
from convene_keys.audit import seals
from convene_keys.audit.actions import Action
from convene_keys.audit.export import head_line
from convene_keys.checkup import findings
from convene_keys.db.session import db, serialize, transaction
from convene_keys.keys import lifecycle
from convene_keys.keys import queries as key_queries
from convene_keys.mail import notices
from convene_keys.mail.notices import inert, makers_of_keys, moment, post
from convene_keys.models import (
    EXPIRING_SOON,
    ApiKey,
    AuditEvent,
    AuditSeal,
    Member,
    Organization,
    Outcome,
    Reminder,
    ReminderState,
    Role,
)

LINES = 50
NAMED = 5  # keys or members of one finding
TITLES = {
    ReminderState.EXPIRING: "These keys are about to end",
    ReminderState.DUE: "These keys are due for replacement now",
    ReminderState.SOON: "These keys are due for replacement soon",
}


def remind() -> int:
    """Remind every organization's admins and managers of their keys; how many mails that made.

    At most one mail a day and member, and of each state of each key only once. With the first run
    of a week goes a digest of the week before.
    """
    seals.seal()
    session = db.session()
    numbers = session.scalars(select(Organization.id).order_by(Organization.id)).all()
    made = 0
    for number in numbers:
        made += _remind(number)
        _digest(number)
    return made


def _remind(organization_id: int) -> int:
    with transaction() as session:
        serialize(session, "reminders")
        organization = session.get_one(Organization, organization_id)
        zone = organization.timezone
        today = clock.midnight(clock.today(zone), zone)
        told = select(Reminder.key_id).join(ApiKey).where(ApiKey.organization_id == organization_id)
        if session.scalar(told.where(Reminder.at >= today).limit(1)) is not None:
            return 0
        found: dict[ReminderState, list[str]] = {state: [] for state in ReminderState}
        for key, state in untold_states(session, organization):
            session.add(Reminder(key_id=key.id, state=state))
            found[state].append(_line(organization, key, state))
        sections = [(TITLES[state], _cut(lines)) for state, lines in found.items() if lines]
        if not sections:
            return 0
        count = sum(map(len, found.values()))
        words = {"keys": f"{count} API key{'s need' if count > 1 else ' needs'}"}
        members = makers_of_keys(session, organization)
        return post(session, organization, "reminder", members, words, sections=sections)


def untold_states(
    session: Session, organization: Organization
) -> Sequence[tuple[ApiKey, ReminderState]]:
    """Each working key that is in a state of which its members have not been told."""
    now, months = clock.now(), organization.rotate_months
    half = timedelta(days=14 * months)  # of so many months, at the least
    found = session.scalars(
        select(ApiKey)
        .where(
            ApiKey.organization_id == organization.id,
            key_queries.works(),
            ~key_queries.has_working_successor(),  # one with a successor is being replaced already
            or_(ApiKey.created_at <= now - half, ApiKey.expires_at <= now + EXPIRING_SOON),
        )
        .order_by(ApiKey.name_folded, ApiKey.id)
    ).all()
    rows = session.execute(
        select(Reminder.key_id, Reminder.state)
        .join(ApiKey)
        .where(ApiKey.organization_id == organization.id)
    )
    told = {tuple(row) for row in rows}
    states = [(key, _state(key, now, months)) for key in found]
    return [(key, state) for key, state in states if state and (key.id, state) not in told]


def _state(key: ApiKey, now: datetime, rotate_months: int) -> ReminderState | None:
    if key.expires_at is not None and key.expires_at <= now + EXPIRING_SOON:
        return ReminderState.EXPIRING
    soon, due = lifecycle.rotation_due(key.created_at, rotate_months)
    if due <= now:
        return ReminderState.DUE
    return ReminderState.SOON if soon <= now else None


def _line(organization: Organization, key: ApiKey, state: ReminderState) -> str:
    if state is ReminderState.EXPIRING and key.expires_at is not None:
        return f"{inert(key.name)}: stops working on {moment(organization, key.expires_at)}"
    days = (clock.now() - key.created_at).days
    return f"{inert(key.name)}: {days} days old"


def _digest(organization_id: int) -> None:
    """Last week's digest to whoever has not had it."""
    session = db.session()
    organization = session.get_one(Organization, organization_id)
    zone = organization.timezone
    today = clock.today(zone)
    monday = today - timedelta(days=today.weekday())
    since, sunday = monday - timedelta(days=7), monday - timedelta(days=1)
    until = clock.midnight(monday, zone)
    once = f"weekly {organization_id} {since:%G-%V}"
    members = notices.without(session, _wanting(session, organization), once)
    if not members or organization.created_at >= until:
        return
    head = session.scalar(
        select(AuditSeal)
        .where(AuditSeal.organization_id == organization_id)
        .order_by(AuditSeal.batch.desc())
        .limit(1)
    )
    words = {"week": f"{since.day} {since:%b} to {sunday.day} {sunday:%b}"}
    sections = [
        ("What each key did", _deeds(session, organization, clock.midnight(since, zone), until)),
        ("What the check-up found", _findings(session, organization)),
    ]
    with transaction() as writing:
        serialize(writing, "reminders")
        for member in notices.without(writing, _wanting(writing, organization), once):
            # The head is for those who could act on it.
            line = head_line(head) if head is not None and member.role == Role.ADMIN else ""
            post(
                writing,
                organization,
                "weekly",
                [member],
                words,
                sections=sections,
                head=line,
                once=once,
            )


def _wanting(session: Session, organization: Organization) -> Sequence[Member]:
    return [m for m in makers_of_keys(session, organization) if m.weekly_digest]


def _findings(session: Session, organization: Organization) -> Sequence[str]:
    """A line a finding, as it is now."""
    found = findings.run(session, organization.id).findings
    return _cut([_named(finding) for finding in found]) or ["Nothing: all good."]


def _named(finding: findings.Finding) -> str:
    names = ", ".join(notices.inert(one.name) for one in finding.concerned[:NAMED])
    rest = len(finding.concerned) - NAMED
    more = f" and {rest} more" if rest > 0 else ""
    return f"{finding.title}: {names}{more}" if names else finding.title


def _deeds(
    session: Session, organization: Organization, since: datetime, until: datetime
) -> Sequence[str]:
    """A line a key that was used, the busiest first: its calls by action, and how many failed."""
    rows = session.execute(
        select(AuditEvent.key_id, AuditEvent.action, AuditEvent.outcome, func.count())
        .where(
            AuditEvent.organization_id == organization.id,
            AuditEvent.key_id.is_not(None),
            AuditEvent.at >= since,
            AuditEvent.at < until,
        )
        .group_by(AuditEvent.key_id, AuditEvent.action, AuditEvent.outcome)
    )
    done: dict[int | None, Counter[str]] = {}
    failed = Counter[int | None]()
    for key_id, action, outcome, count in rows:
        deeds = done.setdefault(key_id, Counter())
        if outcome == Outcome.OK:
            deeds[Action(action).label] += count
        else:
            failed[key_id] += count
    named = select(ApiKey.id, ApiKey.name).where(ApiKey.organization_id == organization.id)
    rows_of_names = session.execute(named.where(ApiKey.id.in_(done)))
    names: dict[int | None, str] = {row.id: row.name for row in rows_of_names}
    lines = []
    for key_id in sorted(done, key=lambda number: (-done[number].total(), number or 0)):
        parts = [f"{label} ({count:,})" for label, count in done[key_id].most_common()]
        if failed[key_id]:
            parts.append(f"was refused or failed ({failed[key_id]:,})")
        lines.append(f"{inert(names[key_id])}: {', '.join(parts)}")
    return _cut(lines) or ["No key was used."]


def _cut(lines: Sequence[str]) -> Sequence[str]:
    rest = len(lines) - LINES
    return [*lines[:LINES], f"and {rest} more"] if rest > 0 else lines
