"""What somebody types into the audit log's search, and each part of its filter, by an index.

No word is looked for in the log itself, which may have millions of lines: it is looked for in the
small tables that the log speaks of, and the log is asked for what these say.
"""

import ipaddress
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta

from sqlalchemy import ColumnElement, false, or_, select, text
from sqlalchemy.orm import Session

from convene_keys.audit.actions import Action
from convene_keys.audit.log import moment_of
from convene_keys.models import ApiKey, AuditEvent, Member, Outcome
from convene_keys.text import fold

Condition = ColumnElement[bool]

# What is known by its number: "booking 123".
NUMBERED = ("application", "booking", "market", "market_date", "vendor")
# What was asked for in vain, or through a proxy, is known by its method and path.
ASKED_FOR = (Action.OFF_LIMITS, Action.PROXY_REQUEST, Action.UNKNOWN)
RENAMED_MAX = 500  # changes of a key's name that are looked at for what it was
WAYS_MAX = 60  # what has more is so common that the newest events have some
REQUEST_MAX = timedelta(minutes=5)  # that one request takes, from its id to its last event

_THING = re.compile(r"(?:([a-z]+(?: [a-z]+)?) )?#?([0-9]{1,18})")
_PATH = re.compile(r"([a-z]{3,7} )?/")
_OLD_REQUEST_ID = re.compile(r"[0-9a-f]{16}")


@dataclass(frozen=True)
class Part:
    """One part of a filter: which events it lets through, and the `ways` to them.

    Each way is served by an index, and together they lead to all that fits; to nothing else when
    `exact`. Where there are none, nothing fits; None means that no index leads there.
    """

    fits: Condition
    ways: Sequence[Condition] | None = None
    exact: bool = False


def any_of(*ways: Condition) -> Part:
    return Part(or_(false(), *ways), ways, exact=True)


def outcome(wanted: str) -> Part:
    """The index has only what did not go well, and is only for who plainly seeks that."""
    is_wanted = AuditEvent.outcome == wanted
    return Part(is_wanted) if wanted == Outcome.OK else any_of(is_wanted & text("outcome <> 'ok'"))


def typed(session: Session, organization_id: int, words: str) -> Part:
    """An address, a request, a path; or a thing by its number, keys, members and actions by name."""
    words = " ".join(words.replace("\0", "").split())  # PostgreSQL takes no null bytes
    low = words.casefold()
    if _PATH.match(low):
        named = AuditEvent.target_name.icontains(words, autoescape=True)
        ways = [AuditEvent.action == action for action in ASKED_FOR]
        return Part(or_(*ways) & named, ways)
    try:
        return Part(AuditEvent.ip == str(ipaddress.ip_address(low)))
    except ValueError:
        pass
    if (began := moment_of(low)) is not None:
        around = AuditEvent.at.between(began - REQUEST_MAX, began + REQUEST_MAX)
        return Part((AuditEvent.request_id == low) & around, [around])
    if _OLD_REQUEST_ID.fullmatch(low):
        return Part(AuditEvent.request_id == low)
    return _named(session, organization_id, words)


def _named(session: Session, organization_id: int, words: str) -> Part:
    low, folded = words.casefold(), fold(words)
    if not folded:
        return any_of()
    own = ApiKey.organization_id == organization_id
    keys = select(ApiKey.id).where(own, ApiKey.name_folded.contains(folded, autoescape=True))
    earlier = _earlier_names(session, organization_id)
    key_ids = {
        *session.scalars(keys.limit(WAYS_MAX)),
        *(number for number, name in earlier if folded in fold(name)),
    }
    team = select(Member.id, Member.name).where(Member.organization_id == organization_id)
    member_ids = [number for number, name in session.execute(team) if folded in fold(name)]
    actions = [action for action in Action if low in f"{action}\n{action.label}".casefold()]
    things = _things(low)
    ways = [
        *(AuditEvent.action == action for action in actions),
        *(AuditEvent.key_id == number for number in key_ids),
        *(AuditEvent.member_id == number for number in member_ids),
        *(_is_on("key", number) for number in key_ids),
        *(_is_on("member", number) for number in member_ids),
        *things,
    ]
    if len(ways) <= WAYS_MAX:
        return any_of(*ways)
    named = AuditEvent.target_name.icontains(words, autoescape=True)
    return Part(
        or_(
            AuditEvent.action.in_(actions),
            AuditEvent.key_id.in_(keys),
            AuditEvent.key_id.in_(key_ids),
            AuditEvent.member_id.in_(member_ids),
            AuditEvent.target_type.in_(("key", "member")) & named,
            *things,
        )
    )


def _earlier_names(session: Session, organization_id: int) -> list[tuple[int, str]]:
    """Ids of keys that were renamed, each with a name that it had."""
    renamed = (
        select(AuditEvent.target_id, AuditEvent.detail)
        .where(AuditEvent.organization_id == organization_id)
        .where(AuditEvent.action == Action.KEY_RENAMED)
        .order_by(AuditEvent.at.desc(), AuditEvent.id.desc())
        .limit(RENAMED_MAX)
    )
    return [(int(number), was["before"]) for number, was in session.execute(renamed)]


def _things(low: str) -> list[Condition]:
    """The things that "booking 123" names, or "123" alone."""
    found = _THING.fullmatch(low)
    if found is None:
        return []
    noun = (found[1] or "").replace(" ", "_")
    return [_is_on(each, str(int(found[2]))) for each in NUMBERED if noun in ("", each)]


def _is_on(kind: str, number: object) -> Condition:
    return (AuditEvent.target_type == kind) & (AuditEvent.target_id == str(number))
