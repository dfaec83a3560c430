"""Keys that were found where they must not be: reported from outside, or by a scan of files."""

from collections.abc import Collection, Sequence

from pydantic import BaseModel, Field, TypeAdapter, ValidationError
from sqlalchemy import select
from sqlalchemy.orm import Session

from convene_keys import clock, text
from convene_keys.accounts.authorization import acting
from convene_keys.audit.actions import Action
from convene_keys.audit.log import Actor, Origin, record
from convene_keys.db.session import db, transaction
from convene_keys.errors import FieldError, Invalid, Malformed, cleaned
from convene_keys.keys import lifecycle, tokens
from convene_keys.keys import queries as key_queries
from convene_keys.mail import notices
from convene_keys.models import ApiKey, AuditEvent, Role
from convene_keys.text import clean_text

URL_MAX, SOURCE_MAX, WHERE_MAX = 2_000, 100, 300
ERRORS_MAX = 10
REASON = "Reported as found in public."
_AT_ONCE = 1_000  # digests in one query


class Finding(BaseModel):
    """One line of a report. More fields than these may come and are left alone."""

    token: str = Field(max_length=200)
    type: str = Field(max_length=100)
    # Cut to size, not refused: a long address must not keep a leaked key alive.
    url: str | None = None
    source: str | None = None


_FINDINGS = TypeAdapter(list[Finding])


def read(body: bytes) -> list[Finding]:
    """A report's lines from its JSON. Raises `Malformed` or `Invalid`."""
    try:
        return _FINDINGS.validate_json(body, strict=True)
    except ValidationError as error:
        wrong = error.errors(include_url=False, include_context=False, include_input=False)
    if wrong[0]["type"] == "json_invalid":
        raise Malformed("The body is not well-formed JSON.")
    raise Invalid(
        [FieldError(".".join(map(str, e["loc"]))[:100], e["msg"]) for e in wrong[:ERRORS_MAX]]
    )


def report(findings: Sequence[Finding], origin: Origin, peppers: Sequence[str]) -> set[str]:
    """Revoke every key in a reporter's list, whatever state it is in, all in one transaction.

    The tokens in it that are keys. One that was reported before is left as it is. What no key can
    be costs no query.
    """
    first: dict[str, Finding] = {}
    for finding in findings:
        if finding.token not in first and tokens.is_well_formed(finding.token):
            first[finding.token] = finding
    token_of = {key.id: token for token, key in known(db.session(), first, peppers).items()}
    if token_of:
        with transaction() as session:
            for key in _locked(session, sorted(token_of)):
                if key.leaked_at is None:
                    _note(session, key, first[token_of[key.id]], origin)
    return set(token_of.values())


def report_own(actor: Actor, key_id: int, where: str = "") -> ApiKey:
    """End a key of the member's organization because it leaked, and open the incident.

    `where` says where it was seen. Doing it twice is safe: the first time stands. Raises
    `NotFound`, or `Invalid` on `where`.
    """
    where = cleaned("where", lambda: clean_text(where, most=WHERE_MAX, lines=False))
    where = text.redact(where)
    with acting(actor, Role.MANAGER) as session:
        key = key_queries.get(session, actor.organization_id, key_id, lock=True)
        if key.leaked_at is None:
            _end(session, actor, key, "Leaked")
            detail = {"where": where} if where else {}
            record(session, actor, Action.KEY_LEAK_REPORTED, lifecycle.target(key), detail=detail)
    return key


def incident(session: Session, key: ApiKey) -> AuditEvent | None:
    """The event that first told of a key's leak. Its id is the incident's number."""
    return session.scalar(
        select(AuditEvent)
        .where(
            AuditEvent.organization_id == key.organization_id,
            AuditEvent.action == Action.KEY_LEAK_REPORTED,
            AuditEvent.target_type == "key",
            AuditEvent.target_id == str(key.id),
        )
        .order_by(AuditEvent.at, AuditEvent.id)
        .limit(1)
    )


def known(session: Session, found: Collection[str], peppers: Sequence[str]) -> dict[str, ApiKey]:
    """The keys, of whichever organization and state, that some of these tokens are."""
    token_of = {tokens.digest(token, pepper): token for pepper in peppers for token in found}
    digests, keys_of = list(token_of), {}
    for start in range(0, len(digests), _AT_ONCE):
        some = digests[start : start + _AT_ONCE]
        for key in session.scalars(select(ApiKey).where(ApiKey.digest.in_(some))):
            keys_of[token_of[key.digest]] = key
    return keys_of


def _locked(session: Session, ids: Sequence[int]) -> list[ApiKey]:
    """These keys, locked in the order of their ids, so that two reports can't wait for each other."""
    found: list[ApiKey] = []
    for start in range(0, len(ids), _AT_ONCE):
        some = ids[start : start + _AT_ONCE]
        query = select(ApiKey).where(ApiKey.id.in_(some)).order_by(ApiKey.id)
        found += session.scalars(query.with_for_update())
    return found


def _note(session: Session, key: ApiKey, finding: Finding, origin: Origin) -> None:
    """End one leaked key and record it."""
    actor = Actor.system(key.organization_id, origin)
    _end(session, actor, key, REASON)
    url, source = text.redact(finding.url or "")[:URL_MAX], (finding.source or "")[:SOURCE_MAX]
    detail = {"url": url, "source": source, "type": finding.type}
    record(session, actor, Action.KEY_LEAK_REPORTED, lifecycle.target(key), detail=detail)


def _end(session: Session, actor: Actor, key: ApiKey, reason: str) -> None:
    """Revoke a key as leaked, and tell its members also when it was revoked before."""
    key.leaked_at = clock.now()
    if not lifecycle.revoke_in(session, actor, key, reason):
        notices.key_revoked(session, actor, key)
