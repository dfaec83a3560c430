"""The one runner through which every call of a key goes.

REST, MCP and forward-auth take the operations from here, so nothing a key does can miss its checks
or the audit log.
"""

import logging
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TypeVar
from urllib.parse import unquote, unquote_plus

from pydantic import BaseModel
from sqlalchemy import Engine
from sqlalchemy.orm import Session

from convene_keys import clock
from convene_keys.accounts.authorization import acting
from convene_keys.audit import log as audit_log
from convene_keys.audit import seals
from convene_keys.audit.actions import Action
from convene_keys.audit.log import Actor, Origin, Target
from convene_keys.db.commits import write_durably
from convene_keys.db.connections import reading
from convene_keys.db.session import raw_connection, transaction, write
from convene_keys.db.statements import Statement
from convene_keys.errors import (
    Forbidden,
    MethodNotAllowed,
    NotFound,
    Problem,
    TooMany,
    Unauthenticated,
)
from convene_keys.keys import authentication, lifecycle, tokens
from convene_keys.keys import queries as key_queries
from convene_keys.keys.authentication import FoundKey
from convene_keys.limits import Limits, Standing
from convene_keys.markets.queries import OrganizationInfo
from convene_keys.models import (
    MAKERS_OF_KEYS,
    Organization,
    OrganizationStatus,
    Outcome,
    Role,
    Scope,
)
from convene_keys.operations import schemas
from convene_keys.operations.schemas import Json
from convene_keys.operations.table import OPERATIONS, SELF_REVOKE, Call, Operation, connection_of

log = logging.getLogger(__name__)
T = TypeVar("T")

PATH_MAX = 256  # characters of what is no operation that are looked at: those have fewer

# Whatever a key asks for below these is refused and recorded.
OFF_LIMITS = ("account", "password", "billing", "stripe", "members", "api_keys")
# With what a key that may only read passes a proxy: RFC 9110 §9.2.1, but for TRACE.
READING = ("GET", "HEAD", "OPTIONS")


@dataclass(frozen=True)
class Site:
    """What the calls of keys need of the application; its `url` has no slash at its end."""

    engine: Engine
    limits: Limits
    peppers: Sequence[str]
    url: str


@dataclass
class Caller:
    """Who presents a key, and from where; `standing` is known once a working key was counted."""

    site: Site
    token: str
    origin: Origin
    standing: Standing | None = None


def run(
    operation: Operation, caller: Caller, read: Callable[[], BaseModel], number: int | None = None
) -> Json:
    """Carry out a key's call, record it, and only then answer.

    `read` gives the input and may raise a `Problem`; it is called once the key is known, so that
    bad input is recorded under its name as well. `number` says what the call is about, for the
    log, should it be refused unread. Raises the `Problem` to answer with.
    """

    def act(call: Call) -> Json:
        if number is not None and 1 <= number <= schemas.NUMBER_MAX:
            call.target = operation.target(number)
        return _carry_out(operation, call, read)

    return _run_as_key(operation.action, caller, act, changes=operation.changes)


def run_for_member(operation: Operation, actor: Actor, read: Callable[[], BaseModel]) -> None:
    """Carry out and record an operation for a signed-in member. Raises `Forbidden` for a viewer."""
    with acting(actor, Role.MANAGER) as session:
        of = session.get_one(Organization, actor.organization_id)
        call = Call(session, actor, OrganizationInfo(of.id, of.name, of.slug, of.timezone))
        answer, event = _execute(operation.action, call, lambda c: _carry_out(operation, c, read))
        write(session, event)
    _answered(answer)


def record_refusal(method: str, path: str, caller: Caller) -> Problem:
    """The problem to answer with when a key asks for what is no operation; recorded.

    `path` as in `Operation.path`, or that of a page, such as `/admin/api_keys`.
    """
    path = path[:PATH_MAX]
    allowed = sorted({o.method for o in OPERATIONS if _fits(o.path, path)})
    if path == SELF_REVOKE:
        allowed = ["POST"]
    # The first segment of a page's path is no endpoint's.
    off_limits = path.strip("/").split("/")[0] in (*OFF_LIMITS, "admin", "login", "setup")

    def act(call: Call) -> None:
        call.target = _request(method, path)
        if off_limits:
            raise Forbidden("No API key may do this. A signed-in admin can.", code="off_limits")
        _check_standing(call)
        if allowed:
            raise MethodNotAllowed(f"{method} is not allowed here.", allowed=allowed)
        raise NotFound("There is nothing at this address.")

    try:
        _run_as_key(Action.OFF_LIMITS if off_limits else Action.UNKNOWN, caller, act)
    except Problem as problem:
        return problem
    raise AssertionError("a refusal always raises")  # pragma: no cover


def connect(caller: Caller, client: str) -> Scope:
    """Greet an assistant that has just been given its key; recorded. What the key may do.

    `client` is what the assistant says it is. Raises the `Problem` to answer with.
    """

    def act(call: Call) -> Scope:
        call.detail["client"] = client
        return _standing_scope(call)

    return _run_as_key(Action.KEY_CONNECTED, caller, act)


def verify(caller: Caller, read: Callable[[], tuple[str, str]]) -> FoundKey:
    """Let a key through a proxy, or not; recorded. Returns the key.

    `read` gives the method and the URI that the proxy was asked for and may raise a `Problem`; it
    is called once the key is known. Of the URI only the path is recorded: what stands behind a ?
    may be a secret. Raises the `Problem` to answer with.
    """

    def act(call: Call) -> FoundKey:
        call.target = Target("request", None, "an unclear request")
        method, uri = read()
        call.target = _request(method, unquote(uri.partition("?")[0]))
        if tokens.PATTERN.search(unquote_plus(uri)):
            raise Forbidden(tokens.MISPLACED, code="key_outside_header")
        _check_standing(call)
        if method not in READING:
            _check_may_change(call)
        return call.key

    return _run_as_key(Action.PROXY_REQUEST, caller, act)


def check_key(caller: Caller) -> Scope:
    """What a working key may do, for an answer that holds nothing of the organization's.

    Only a refusal is recorded. Raises the `Problem` to answer with.
    """
    return _run_as_key(None, caller, _standing_scope)


def self_revoke(caller: Caller) -> None:
    """End the key that is shown, for good; recorded as its own doing.

    Whoever holds it may, always: whatever its scope, also when its maker left, the organization is
    a draft, or it called too often. Raises the `Problem` to answer with.
    """

    def act(call: Call) -> None:
        key = key_queries.get(call.session, call.organization.id, call.key.id, lock=True)
        lifecycle.revoke_in(call.session, call.actor, key, "Burned by whoever held it.")

    _run_as_key(None, caller, act, changes=True, limited=False)


def _standing_scope(call: Call) -> Scope:
    _check_standing(call)
    return Scope(call.key.scope)


def _run_as_key(
    action: Action | None,
    caller: Caller,
    act: Callable[[Call], T],
    *,
    changes: bool = False,
    limited: bool = True,
) -> T:
    """Authenticate, rate-limit, execute, audit, and only then answer.

    Without an `action` nothing is recorded here, but a refusal.
    What `changes` something is one transaction with its event. What only reads holds no writer up:
    it reads one moment of the database, and its event may share a commit with others'.
    """
    site, limits = caller.site, caller.site.limits
    limits.check_network(caller.origin.network, caller.token)
    try:
        _require_well_formed(caller.token)
        with transaction(site.engine) if changes else reading(site.engine) as within:
            key = authentication.authenticate(connection_of(within), caller.token, site.peppers)
            refusal = authentication.refusal(key)
            if refusal is None and limited:
                caller.standing = limits.count_call(key.id, caller.token)
                refusal = _past_limit(caller.standing)
            if refusal is None:
                actor = Actor.of_key(key, caller.origin)
                call = Call(within, actor, _organization_of(key), key)
                answer = _execute_and_write(action, call, act, caller)
        if refusal is not None:
            _record_ended_or_limited(key, caller, refusal)
            raise refusal
    except Problem as problem:
        if isinstance(problem, Unauthenticated):
            limits.count_failure(caller.origin.network)
        raise
    except Exception:
        if action is not None:
            _record_crash(action, caller)
        raise
    return _answered(answer)


def _require_well_formed(token: str) -> None:
    if not token:
        raise Unauthenticated("Send an API key as Authorization: Bearer KEY.", code="key_missing")
    if not tokens.is_well_formed(token):
        raise Unauthenticated("This is not an API key.", code="key_unknown")


def _execute_and_write(
    action: Action | None, call: Call, act: Callable[[Call], T], caller: Caller
) -> T | Problem:
    """Execute, and write the event and what is kept of the key's use together."""
    peppers = caller.site.peppers
    statements = authentication.usage_updates(call.key, caller.token, caller.origin, peppers)
    answer, event = _execute(action, call, act)
    statements += event
    if isinstance(call.within, Session):  # it may change something
        if not isinstance(answer, Problem):
            statements += authentication.change_updates(call.key)
        write(call.within, statements)
    elif statements:
        write_durably(call.within, statements)
    return answer


def _past_limit(standing: Standing) -> TooMany | None:
    if not standing.exceeded:
        return None
    return TooMany(
        f"This key may call {standing.rate.calls:,} times in {standing.rate.seconds:,} seconds.",
        retry_after=standing.left,
        code="rate_limited",
    )


def _record_ended_or_limited(key: FoundKey, caller: Caller, refusal: Problem) -> None:
    engine, limits, origin = caller.site.engine, caller.site.limits, caller.origin
    if not isinstance(refusal, TooMany):
        at = clock.now()

        def note(session: Session, count: int) -> None:
            of, code = key.organization_id, refusal.code
            authentication.record_refusal(session, of, key.id, origin, code, count=count, at=at)

        if count := limits.count_try(key.id, caller.token, note):
            with transaction(engine) as session:
                note(session, count)
        return
    count = limits.count_refusal(key.id)
    with reading(engine) as connection:  # so that a key that runs wild holds no writer up
        told = authentication.is_limit_reported(connection, key)
    if not told:
        with transaction(engine) as session:
            count = authentication.record_limited(session, key, origin, count)
        limits.mark_reported(key.id, count)


def _request(method: str, path: str) -> Target:
    shown = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in path)
    return Target("request", None, f"{method} {shown}")


def _organization_of(key: FoundKey) -> OrganizationInfo:
    return OrganizationInfo(
        key.organization_id, key.organization_name, key.organization_slug, key.organization_timezone
    )


def _execute(
    action: Action | None, call: Call, act: Callable[[Call], T]
) -> tuple[T | Problem, list[Statement]]:
    """Act; the answer or the problem, and the event of an `action` that tells how it ended."""
    if action is None:
        return act(call), []
    answer: T | Problem
    try:
        answer, outcome = act(call), Outcome.OK
    except Problem as problem:
        answer = problem
        outcome = Outcome.DENIED if problem.status == 403 else Outcome.FAILED
        call.detail["code"] = problem.code
    key = seals.keys_of(call.connection.engine)[0]
    return answer, [audit_log.event(key, call.actor, action, call.target, outcome, call.detail)]


def _answered(answer: T | Problem) -> T:
    if isinstance(answer, Problem):
        raise answer
    return answer


def _check_standing(call: Call) -> None:
    """Check what every operation of a key needs: its creator's role and a live organization."""
    key = call.found
    if key is None:
        return
    gone = key.creator_role not in MAKERS_OF_KEYS or key.creator_disabled_at is not None
    if key.created_by_id is not None and gone:
        raise Forbidden(
            "Who made this key has left or may not make keys any more. Ask for a new key.",
            code="creator_inactive",
        )
    if key.organization_status != OrganizationStatus.LIVE:
        raise Forbidden(
            "The organization is a draft. An admin can set it live in its settings.",
            code="organization_draft",
        )


def _check_may_change(call: Call) -> None:
    if call.found is not None and call.found.scope != Scope.READ_WRITE:
        raise Forbidden("This key may only read.", code="scope_required")


def _carry_out(operation: Operation, call: Call, read: Callable[[], BaseModel]) -> Json:
    _check_standing(call)
    if operation.changes:
        _check_may_change(call)
    arguments = read()
    number = getattr(arguments, "id", None)
    if number is not None:
        call.target = operation.target(number)
    else:
        call.detail |= arguments.model_dump(mode="json", exclude_defaults=True)
    # What a refused change did before it was refused is undone, and the refusal still recorded.
    with call.session.begin_nested() if operation.changes else nullcontext():
        return operation.handler(call, arguments)


def _record_crash(action: Action, caller: Caller) -> None:
    """Tell the log of a call that failed by a fault of ours, in a transaction of its own."""
    token, origin, peppers = caller.token, caller.origin, caller.site.peppers
    try:
        with transaction(caller.site.engine) as session:
            key = authentication.authenticate(raw_connection(session), token, peppers)
            actor, detail = Actor.of_key(key, origin), {"code": "internal"}
            write(session, authentication.usage_updates(key, token, origin, peppers))
            audit_log.record(session, actor, action, outcome=Outcome.FAILED, detail=detail)
    except Exception:
        log.exception("a failed call could not be recorded")


def _fits(pattern: str, path: str) -> bool:
    wanted, given = pattern.split("/"), path.split("/")
    return len(wanted) == len(given) and all(
        a == b or (a == "{id}" and b.isdecimal()) for a, b in zip(wanted, given, strict=True)
    )
