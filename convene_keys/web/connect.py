"""Putting a key to work: how a tool reaches this site, its first call, and the move to a new key."""

import ipaddress
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from convene_keys import clock
from convene_keys.audit import queries as audit_queries
from convene_keys.audit.actions import Action
from convene_keys.db.session import db
from convene_keys.http.access import settings
from convene_keys.keys import queries as key_queries
from convene_keys.models import ApiKey, AuditEvent, Outcome
from convene_keys.operations.table import OPERATIONS

_OPERATIONS = {operation.action: operation.name for operation in OPERATIONS}


@dataclass(frozen=True)
class Handover:
    """A key that goes on beside its successor: the new one's first call, the old one's last."""

    old: ApiKey
    new: ApiKey
    first: AuditEvent | None
    last: AuditEvent | None

    @property
    def safe(self) -> bool:
        """Whether whatever used the old key uses the new one now, as far as can be seen."""
        return self.first is not None and (self.last is None or self.last.at < self.first.at)


def first_call(key: ApiKey) -> dict[str, Any]:
    """The key, its first call if there was one, and whether a page should still wait for it."""
    call = None
    if key.last_used_at is not None:
        call = audit_queries.first(
            db.session(), key.organization_id, audit_queries.Filter(key=key.id)
        )
    is_new = key.status != "revoked" and clock.now() < key.created_at + key_queries.NEW_FOR
    done = call is not None and call.outcome == Outcome.OK
    return {
        "key": key,
        "call": call,
        "operation": _OPERATIONS.get(Action(call.action)) if call and done else None,
        "waits": call is None and is_new,
    }


def addresses() -> dict[str, Any]:
    """The site's address for a tool, and whether only this machine or any can reach it."""
    site = settings().base_url
    host = urlsplit(site).hostname or ""
    try:
        address = ipaddress.ip_address(host)
        local, known = address.is_loopback, address.is_global
    except ValueError:  # a name
        local = host == "localhost" or host.endswith(".localhost")
        known = "." in host and not host.endswith((".localhost", ".local", ".internal"))
    secure = settings().secure
    return {"site": site, "secure": secure, "local": local, "public": secure and known}


def handover(key: ApiKey) -> Handover | None:
    """The state of the move from a rotated key to its successor; None when there is no move."""
    old, new = (key, key.successor) if key.successor else (key.predecessor, key)
    if old is None or not (old.works and new.works):
        return None
    session, organization_id = db.session(), key.organization_id
    first = audit_queries.first(session, organization_id, audit_queries.Filter(key=new.id))
    last = audit_queries.page(
        session, organization_id, audit_queries.Filter(key=old.id), before=None, limit=1
    ).events
    return Handover(old, new, first, last[0] if last else None)
