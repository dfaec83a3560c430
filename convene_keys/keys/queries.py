"""API keys found and listed, always inside one organization."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta

from sqlalchemy import ColumnElement, Row, Select, exists, func, select
from sqlalchemy.orm import Session, aliased, joinedload, selectinload

from convene_keys import clock
from convene_keys.errors import NotFound
from convene_keys.models import EXPIRING_SOON, ID_MAX, ApiKey
from convene_keys.text import fold

PAGE_SIZE = 20
CHOICES = 100

NEW_FOR = timedelta(minutes=10)  # how long pages wait for a new key's first call
_Successor = aliased(ApiKey)  # once: making one takes longer than a query with it


def get(session: Session, organization_id: int, key_id: int, *, lock: bool = False) -> ApiKey:
    """The organization's key. Raises `NotFound` for anything else, another organization's too."""
    query = (
        select(ApiKey)
        .where(ApiKey.organization_id == organization_id, ApiKey.id == key_id)
        .options(joinedload(ApiKey.creator))
    )
    if lock:
        query = query.with_for_update(of=ApiKey)
    key = session.scalar(query) if key_id <= ID_MAX else None
    if key is None:
        raise NotFound("There is no such key.")
    return key


@dataclass(frozen=True)
class KeyPage:
    keys: Sequence[ApiKey]
    total: int
    page: int
    pages: int


def list_keys(
    session: Session,
    organization_id: int,
    *,
    q: str = "",
    status: str = "active",
    sort: str = "created",
    descending: bool = True,
    page: int = 1,
    page_size: int = PAGE_SIZE,
) -> KeyPage:
    """One page of the organization's keys. `page` counts from 1; one that isn't there is the nearest.

    A key that goes on beside its successor is not listed: its successor has it as `predecessor`.
    """
    query = _listed(organization_id, q, status)
    total = count(session, organization_id, q, status)
    pages = max(1, -(-total // page_size))
    page = min(max(page, 1), pages)
    column: ColumnElement[object] = {
        "name": ApiKey.name_folded,
        "created": ApiKey.created_at,
        "last_used": ApiKey.last_used_at,
    }[sort].expression
    by_id = ApiKey.id.desc() if descending else ApiKey.id.asc()
    ordered = column.desc() if descending else column.asc()
    if sort == "last_used":  # only here, since PostgreSQL's indices don't have this order
        ordered = ordered.nulls_last() if descending else ordered.nulls_first()
    keys = session.scalars(
        query.options(joinedload(ApiKey.creator), selectinload(ApiKey.predecessor))
        .order_by(ordered, by_id)
        .limit(page_size)
        .offset((page - 1) * page_size)
    ).all()
    return KeyPage(keys, total, page, pages)


def count(session: Session, organization_id: int, q: str, status: str) -> int:
    """How many keys `list_keys` has in all its pages."""
    query = _listed(organization_id, q, status).with_only_columns(func.count())
    return session.scalar(query) or 0


def _listed(organization_id: int, q: str, status: str) -> Select[ApiKey]:
    query = select(ApiKey).where(
        ApiKey.organization_id == organization_id, *_in_status(status), ~_beside_successor()
    )
    if q:
        query = query.where(ApiKey.name_folded.contains(fold(q), autoescape=True))
    return query


def expiring(session: Session, organization_id: int) -> int:
    """How many of the organization's keys stop working soon."""
    return count(session, organization_id, "", "expiring")


def newest(session: Session, organization_id: int) -> ApiKey | None:
    """The key that was made last, while it is new and not revoked."""
    return session.scalar(
        select(ApiKey)
        .where(
            ApiKey.organization_id == organization_id,
            ApiKey.created_at > clock.now() - NEW_FOR,
            ApiKey.revoked_at.is_(None),
        )
        .order_by(ApiKey.created_at.desc(), ApiKey.id.desc())
        .limit(1)
    )


def any_ever(session: Session, organization_id: int) -> bool:
    """Whether the organization ever had a key."""
    one = select(ApiKey.id).where(ApiKey.organization_id == organization_id).limit(1)
    return session.scalar(one) is not None


def list_all(session: Session, organization_id: int) -> Sequence[ApiKey]:
    """Every key the organization ever had, by name."""
    return session.scalars(
        select(ApiKey)
        .where(ApiKey.organization_id == organization_id)
        .order_by(ApiKey.name_folded, ApiKey.id)
    ).all()


def choices(
    session: Session, organization_id: int, chosen: int | None = None
) -> tuple[Sequence[Row[int, str, bool, bool]], bool]:
    """`id`, `name`, `ended` and `old` of keys to choose one from in the audit log, by name; and more?

    `old` is one that goes on beside its successor, whose name is the same.

    All of them while they are few, else those used last, and the `chosen` one.
    """
    (ended,) = _in_status("revoked")
    old = _beside_successor().label("old")
    query = select(ApiKey.id, ApiKey.name, ended.label("ended"), old).where(
        ApiKey.organization_id == organization_id
    )
    by_name = query.order_by(ApiKey.name_folded, ApiKey.id)
    rows = session.execute(by_name.limit(CHOICES + 1)).all()
    if len(rows) <= CHOICES:
        return rows, False
    used = query.where(ApiKey.last_used_at.is_not(None))
    rows = session.execute(
        used.order_by(ApiKey.last_used_at.desc(), ApiKey.id.desc()).limit(CHOICES)
    ).all()
    if chosen is not None and chosen not in {row.id for row in rows}:
        rows = [*rows, *session.execute(query.where(ApiKey.id == chosen))]
    return sorted(rows, key=lambda row: (fold(row.name), row.id)), True


def works(key: type[ApiKey] = ApiKey) -> ColumnElement[bool]:
    """Whether a key can be used now."""
    unended = key.expires_at.is_(None) | (key.expires_at > clock.now())
    return key.revoked_at.is_(None) & unended


def has_working_successor() -> ColumnElement[bool]:
    """Whether one that a key was rotated to works."""
    return exists().where(_Successor.predecessor_id == ApiKey.id, works(_Successor))


def _beside_successor() -> ColumnElement[bool]:
    """Whether a key works, and so does one that it was rotated to."""
    now = clock.now()
    # A rotated key has an end, so most need no look at their successor.
    ends = ApiKey.expires_at.is_not(None) & (ApiKey.expires_at > now)
    return ends & ApiKey.revoked_at.is_(None) & has_working_successor()


def _in_status(status: str) -> list[ColumnElement[bool]]:
    if status == "all":
        return []
    if status == "revoked":
        return [~works()]
    if status == "expiring":
        return [works(), ApiKey.expires_at <= clock.now() + EXPIRING_SOON]
    return [works()]
