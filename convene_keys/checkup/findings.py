"""The check-up: looks over an organization's keys and team, and applies what fixes a finding.

Only keys that work are looked at, and none whose successor works already; of one whose maker has
left nothing but that is said. To add a finding, add a member to `Kind`, its copy to `advice.toml`
and a rule here.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import NamedTuple

from sqlalchemy import func, select
from sqlalchemy.orm import Session, joinedload

from convene_keys import clock
from convene_keys.accounts.authorization import acting
from convene_keys.audit import user_agents
from convene_keys.audit.actions import Action
from convene_keys.audit.log import Actor
from convene_keys.checkup.advice import ADVICE, MAKERS_MAX, Kind, Remedy, is_vague
from convene_keys.errors import NotFound
from convene_keys.keys import lifecycle
from convene_keys.keys import queries as key_queries
from convene_keys.models import (
    MAKERS_OF_KEYS,
    ApiKey,
    AuditEvent,
    KeyMakers,
    KeyUse,
    Member,
    Organization,
    Role,
    Scope,
    Tool,
)
from convene_keys.text import fold

IDLE, UNUSED, STEADY, UNCHANGED, SHARED = (timedelta(days=n) for n in (90, 14, 30, 90, 7))


@dataclass(frozen=True)
class Concerned:
    """A key or member that a finding is about, the moment that counts, and what was seen."""

    id: int
    name: str
    since: datetime
    seen: tuple[str, ...] = ()


@dataclass(frozen=True)
class Finding:
    """What was found, in which keys or members, by name.

    `who` left or lost their role at the moment `at`, where that is what was found.
    """

    kind: Kind
    concerned: Sequence[Concerned]
    who: str = ""
    at: datetime | None = None

    @property
    def title(self) -> str:
        return self.kind.advice.title(len(self.concerned))


@dataclass(frozen=True)
class CheckUp:
    """`keys` were looked at; `findings` has the most urgent first, `kept` the habits without any."""

    keys: int
    findings: Sequence[Finding]

    @property
    def kept(self) -> list[str]:
        broken = {finding.kind.advice.habit for finding in self.findings}
        return [habit for habit in ADVICE if habit not in broken]

    def of(self, kind: Kind) -> list[Concerned]:
        """All that findings of one kind concern, each once."""
        some = (one for f in self.findings if f.kind is kind for one in f.concerned)
        return list({one.id: one for one in some}.values())


def run(session: Session, organization_id: int) -> CheckUp:
    """Check everything as it is now, in a handful of statements however many keys there are."""
    now, organization = clock.now(), session.get_one(Organization, organization_id)
    rows = sorted(
        _working_keys(session, organization_id), key=lambda row: (row.name_folded, row.id)
    )
    working = [row for row in rows if not _maker_gone(row)]
    concerned: dict[Kind, list[Concerned]] = {
        Kind.MAKER_GONE: _made(row for row in rows if _maker_gone(row)),
        Kind.CONTRADICTED: list(_contradicted(working)),
        Kind.SHARED: list(_shared(session, working, now)),
        Kind.MAKERS: _makers(session, organization),
    }
    for row in working:
        for kind, at in _found_of(row, organization, now):
            concerned.setdefault(kind, []).append(Concerned(row.id, row.name, at))
    found = [Finding(kind, some) for kind, some in concerned.items() if some]
    found += _team_changed(session, organization_id, working)
    order = list(Kind)
    return CheckUp(len(rows), sorted(found, key=lambda finding: order.index(finding.kind)))


def end_date(organization: Organization, key_id: int) -> datetime:
    """When a key stops working that is given an end date now, by the organization's habit.

    Not all on one day: each on its own in the second half of the months, those that were made one
    after the other a week apart. The key's id decides, so that what was shown is what is set.
    """
    last = clock.months_after(clock.now(), organization.rotate_months)
    before = timedelta(days=7 * key_id % (14 * organization.rotate_months + 1))
    zone = organization.timezone
    return lifecycle.end_of(clock.day_of(last - before, zone), zone)


def apply_fix(actor: Actor, kind: Kind, key_ids: Iterable[int]) -> tuple[list[str], list[str]]:
    """Do what a kind's remedy says to those of these keys that are still concerned, all or none.

    The names of the keys it was done to, and of those that needed it no longer. Raises `NotFound`
    when one of them is not the organization's, or the kind has no remedy for all at once.
    """
    wanted = set(key_ids)
    with acting(actor, Role.MANAGER) as session:
        organization = session.get_one(Organization, actor.organization_id)
        rows = session.scalars(
            select(ApiKey)
            .where(ApiKey.organization_id == organization.id, ApiKey.id.in_(wanted))
            .options(joinedload(ApiKey.creator))
            .order_by(ApiKey.id)  # the same order for all, so that none waits for another in turn
            .with_for_update(of=ApiKey)
        ).all()
        if kind.advice.remedy is None or len(rows) != len(wanted):
            raise NotFound("There is no such key.")
        still = {one.id for one in run(session, organization.id).of(kind)}
        for key in rows:
            if key.id not in still:
                continue
            match kind.advice.remedy:
                case Remedy.REVOKE:
                    reason = kind.advice.one.replace("1 key", "the key")
                    lifecycle.revoke_in(session, actor, key, f"Check-up: {reason}")
                case Remedy.NARROW:
                    lifecycle.set_scope(session, actor, key, Scope.READ)
                case Remedy.END:
                    lifecycle.set_expiry(session, actor, key, end_date(organization, key.id))
        fixed = [key.name for key in rows if key.id in still]
        return fixed, [key.name for key in rows if key.id not in still]


class _Key(NamedTuple):
    """What the rules need to know of a key."""

    id: int
    name: str
    name_folded: str
    tool: str
    scope: str
    created_at: datetime
    created_by_id: int | None
    expires_at: datetime | None
    last_used_at: datetime | None
    last_used_user_agent: str | None
    last_changed_at: datetime | None
    maker_role: str | None
    maker_disabled_at: datetime | None
    first_used_at: datetime | None
    returned_at: datetime | None


def _working_keys(session: Session, organization_id: int) -> Iterator[_Key]:
    """Each key that works, in one statement that uses indices."""
    columns = ApiKey.__table__.c
    used = select(func.min(KeyUse.first_at)).where(KeyUse.key_id == ApiKey.id)
    returned = select(func.max(KeyUse.returned_at)).where(KeyUse.key_id == ApiKey.id)
    working = (
        select(
            *(columns[name] for name in _Key._fields if name in columns),
            Member.role.label("maker_role"),
            Member.disabled_at.label("maker_disabled_at"),
            used.scalar_subquery().label("first_used_at"),
            returned.scalar_subquery().label("returned_at"),
        )
        .outerjoin(Member, Member.id == ApiKey.created_by_id)
        .where(
            ApiKey.organization_id == organization_id,
            key_queries.works(),
            ~key_queries.has_working_successor(),
        )
    )
    return map(_Key._make, session.execute(working))


# The rules ---------------------------------------------------------------------------------------


def _maker_gone(row: _Key) -> bool:
    gone = row.maker_role not in MAKERS_OF_KEYS or row.maker_disabled_at is not None
    return row.created_by_id is not None and gone


def _found_of(row: _Key, of: Organization, now: datetime) -> Iterator[tuple[Kind, datetime]]:
    """What is found of a key by itself, and since when it is so."""
    made, used, first_used = row.created_at, row.last_used_at, row.first_used_at
    soon, due = lifecycle.rotation_due(made, of.rotate_months)
    if due <= now:
        yield Kind.DUE, made
    elif soon <= now:
        yield Kind.DUE_SOON, made
    if used is None and now - made >= UNUSED:
        yield Kind.UNUSED, made
    if used is not None and now - used >= IDLE:
        yield Kind.IDLE, used
    elif row.scope == Scope.READ_WRITE and first_used is not None:
        changed = row.last_changed_at is not None and now - row.last_changed_at < UNCHANGED
        if now - first_used >= STEADY and not changed:
            yield Kind.ONLY_READS, first_used
    if is_vague(row.name_folded):
        yield Kind.VAGUE, made
    if row.expires_at is None:
        yield Kind.ENDLESS, made


def _contradicted(rows: Iterable[_Key]) -> Iterator[Concerned]:
    for row in rows:
        client = user_agents.kind(row.last_used_user_agent)
        tool = user_agents.tool(client)
        if row.last_used_at and row.tool != Tool.OTHER and tool and tool != row.tool:
            yield Concerned(row.id, row.name, row.last_used_at, (client,))


def _shared(session: Session, rows: Iterable[_Key], now: datetime) -> Iterator[Concerned]:
    """Keys that lately went from one place or kind of client to another and back within the hour."""
    since = now - SHARED
    lately = [(row, at) for row in rows if (at := row.returned_at) is not None and at > since]
    uses: dict[int, list[tuple[str | None, str | None]]] = {row.id: [] for row, _ in lately}
    columns = (KeyUse.key_id, KeyUse.place, KeyUse.client)
    used = select(*columns).where(KeyUse.key_id.in_(uses), KeyUse.last_at > since)
    for key_id, place, client in session.execute(used) if lately else ():
        uses[key_id].append((place, client))
    for row, at in lately:
        seen = map(set, zip(*uses[row.id], strict=True))
        several = [value or "a cloud" for values in seen if len(values) > 1 for value in values]
        yield Concerned(row.id, row.name, at, tuple(sorted(several)))


def _team_changed(session: Session, organization_id: int, rows: list[_Key]) -> Iterator[Finding]:
    """One finding for each member who left or lost their role after keys were made that still work."""
    if not rows:
        return
    oldest = min(row.created_at for row in rows)
    for member, at in _left(session, organization_id, oldest):
        older = _made(row for row in rows if row.created_at < at)
        if older:
            yield Finding(Kind.TEAM_CHANGED, older, member, at)


def _left(session: Session, organization_id: int, since: datetime) -> list[tuple[str, datetime]]:
    """Who could make keys and can't any more, and the moment they left or lost the role, newest first."""
    of = (Member.organization_id == organization_id, Member.disabled_at > since)
    gone = select(Member.id, Member.name, Member.disabled_at).where(
        *of, Member.role.in_(MAKERS_OF_KEYS)
    )
    left = {row.id: (row.name, row.disabled_at) for row in session.execute(gone)}
    changes = select(AuditEvent.target_id, AuditEvent.at, AuditEvent.detail).where(
        AuditEvent.organization_id == organization_id,
        AuditEvent.action == Action.MEMBER_CHANGED,
        AuditEvent.at > since,
    )
    lost: dict[int, datetime] = {}
    for event in session.execute(changes):
        role = event.detail.get("role", {})
        if role.get("before") in MAKERS_OF_KEYS and role["after"] not in MAKERS_OF_KEYS:
            member_id = int(event.target_id)
            lost[member_id] = max(event.at, lost.get(member_id, event.at))
    viewers = select(Member.id, Member.name).where(
        Member.organization_id == organization_id,
        Member.id.in_(lost),
        Member.role.not_in(MAKERS_OF_KEYS),  # who has a role again has not left
    )
    for row in session.execute(viewers) if lost else ():
        left[row.id] = (row.name, lost[row.id])
    return sorted(left.values(), key=lambda one: one[1], reverse=True)


def _makers(session: Session, organization: Organization) -> list[Concerned]:
    roles = MAKERS_OF_KEYS if organization.key_makers == KeyMakers.MANAGERS else (Role.ADMIN,)
    active = select(Member.id, Member.name, Member.created_at).where(
        Member.organization_id == organization.id,
        Member.disabled_at.is_(None),
        Member.role.in_(roles),
    )
    makers = [Concerned(*row) for row in session.execute(active)]
    return sorted(makers, key=lambda maker: fold(maker.name)) if len(makers) > MAKERS_MAX else []


def _made(rows: Iterable[_Key]) -> list[Concerned]:
    return [Concerned(row.id, row.name, row.created_at) for row in rows]
