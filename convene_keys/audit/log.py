"""Writing the audit log: who acts, on what, and the event that says so."""

import ipaddress
import json
import os
from base64 import b32hexdecode, b32hexencode
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Protocol

from sqlalchemy import bindparam, insert
from sqlalchemy.orm import Session

from convene_keys import clock
from convene_keys.audit import seals
from convene_keys.audit.actions import Action
from convene_keys.db.session import Base
from convene_keys.db.statements import CompiledStatement, Statement
from convene_keys.db.types import JSONText
from convene_keys.models import ActorKind, AuditEvent, Member, Outcome
from convene_keys.text import redact


@dataclass(frozen=True)
class Origin:
    """From where a request came."""

    ip: str | None = None
    user_agent: str | None = None
    request_id: str | None = None

    @property
    def network(self) -> str:
        """An IPv4 address, or the /64 of an IPv6 one: who has one address there has them all."""
        return network(self.ip) if self.ip is not None else ""


@lru_cache(1_024)
def network(ip: str) -> str:
    """See `Origin.network`."""
    address = ipaddress.ip_address(ip)
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped:  # how a socket that serves both kinds names an IPv4 address
            return str(address.ipv4_mapped)
        return str(ipaddress.ip_network((int(address) >> 64 << 64, 64)))
    return str(address)


# Ids of requests begin with their time, so that the log finds one without an index of them.
_FIRST = datetime(2026, 1, 1, tzinfo=UTC)  # what seems older is none of these
_EPOCH, _MS = datetime(1970, 1, 1, tzinfo=UTC), timedelta(milliseconds=1)


def new_request_id() -> str:
    """Sixteen letters and digits: milliseconds since 1970 as six bytes and four random ones."""
    milliseconds = (clock.now() - _EPOCH) // _MS
    return b32hexencode(milliseconds.to_bytes(6) + os.urandom(4)).decode().lower()


def moment_of(request_id: str) -> datetime | None:
    """When that request began; None for what is no such id, or an id as they were before."""
    try:
        made = b32hexdecode(request_id.upper())
        began = _EPOCH + int.from_bytes(made[:6]) * _MS
    except (ValueError, OverflowError):
        return None
    is_one = len(made) == 10 and _FIRST <= began <= clock.now() + timedelta(days=1)
    return began if is_one else None


class KeyLike(Protocol):
    """A key as it acts or is acted on, whichever query it came from."""

    @property
    def id(self) -> int: ...

    @property
    def organization_id(self) -> int: ...

    @property
    def name(self) -> str: ...


@dataclass(frozen=True)
class Actor:
    """Who acts, for which organization, and from where. Every change takes one."""

    kind: ActorKind
    organization_id: int
    origin: Origin = field(default_factory=Origin)
    key_id: int | None = None
    key_name: str | None = None
    member_id: int | None = None
    member_name: str | None = None
    session_id: int | None = None  # the browser that a member acts from

    @classmethod
    def of_key(cls, key: KeyLike, origin: Origin) -> "Actor":
        return cls(ActorKind.KEY, key.organization_id, origin, key_id=key.id, key_name=key.name)

    @classmethod
    def of_member(cls, member: Member, origin: Origin, session_id: int | None = None) -> "Actor":
        return cls(
            ActorKind.MEMBER,
            member.organization_id,
            origin,
            member_id=member.id,
            member_name=member.name,
            session_id=session_id,
        )

    @classmethod
    def system(cls, organization_id: int, origin: Origin | None = None) -> "Actor":
        return cls(ActorKind.SYSTEM, organization_id, origin or Origin())

    @property
    def name(self) -> str:
        return self.key_name or self.member_name or "the system"


@dataclass(frozen=True)
class Target:
    """The thing that something was done to, with its name as it is now."""

    type: str
    id: int | str | None
    name: str


_INSERT = insert(Base.metadata.tables[AuditEvent.__tablename__]).values(
    detail=bindparam("written", type_=JSONText())
)
_WRITE = CompiledStatement(_INSERT.inline(), (*seals.COLUMNS[:-1], "mac"))


def record(
    session: Session,
    actor: Actor,
    action: Action,
    target: Target | None = None,
    outcome: Outcome = Outcome.OK,
    detail: Mapping[str, object] | None = None,
) -> int:
    """Write one event in the caller's transaction, and give its id: no event, no change."""
    session.flush()
    key = seals.keys_of(session.get_bind())[0]
    _, values = event(key, actor, action, target, outcome, detail)
    made = session.connection().execute(_INSERT, values).inserted_primary_key
    return int(made[0]) if made else 0


def event(
    key: bytes,
    actor: Actor,
    action: Action,
    target: Target | None,
    outcome: Outcome,
    detail: Mapping[str, object] | None,
) -> Statement:
    """An event that happens now, as the statement that writes it.

    `key` is the audit log's newest. `detail` holds JSON values. Whatever looks like a key is cut to its hint before it is written.
    """
    origin = actor.origin
    text = redact(json.dumps(dict(detail or {})))
    values: dict[str, object] = {
        "at": clock.now(),
        "organization_id": actor.organization_id,
        "actor": actor.kind,
        "key_id": actor.key_id,
        "key_name": redact(actor.key_name) if actor.key_name else None,
        "member_id": actor.member_id,
        "member_name": redact(actor.member_name) if actor.member_name else None,
        "action": action,
        "target_type": target.type if target else None,
        "target_id": str(target.id) if target and target.id is not None else None,
        "target_name": redact(target.name)[:200] if target else None,
        "outcome": outcome,
        "ip": origin.ip,
        "user_agent": redact(origin.user_agent)[:256] if origin.user_agent else None,
        "request_id": origin.request_id,
        "written": text,
    }
    values["mac"] = seals.mac(values | {"detail": text}, key)
    return _WRITE, values


def rfc3339(moment: datetime) -> str:
    return moment.isoformat().replace("+00:00", "Z")
