"""Whether who acts may do it, read again inside the transaction of the change."""

from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy import select
from sqlalchemy.orm import Session, contains_eager

from convene_keys.accounts import links
from convene_keys.audit.log import Actor
from convene_keys.db.session import transaction
from convene_keys.errors import Forbidden
from convene_keys.models import MAKER, ActorKind, Member, Organization, Role, SignInSession


@contextmanager
def acting(actor: Actor, needed: str) -> Iterator[Session]:
    """A write transaction in which the actor may do what needs the role `needed`, or `MAKER`.

    Raises as `authorize` does.
    """
    with transaction() as session:
        authorize(session, actor, needed)
        yield session


@contextmanager
def changing_team(actor: Actor, needed: str = Role.ADMIN) -> Iterator[Session]:
    """The same to change members, their passwords or links in.

    One at a time: two admins who change each other would wait for each other's rows for ever.
    """
    with transaction() as session:
        links.serialize_team(session, actor.organization_id)
        authorize(session, actor, needed)
        yield session


def authorize(session: Session, actor: Actor, needed: str) -> None:
    """Read again, in the caller's transaction, that the actor may still do this.

    What was true when the request came may have changed while it waited: the member's role or
    state, their session, or who may make keys. What is read here stays as it is until the
    transaction ends; the member's row is locked as for a change of it, since two that held it for
    reading and then changed it would wait for each other. A key or the system has no role. Raises
    `Forbidden`.
    """
    if actor.kind is not ActorKind.MEMBER:
        return
    member = session.scalar(
        select(Member)
        .join(Member.organization)
        .where(Member.organization_id == actor.organization_id, Member.id == actor.member_id)
        .options(contains_eager(Member.organization))
        .with_for_update(key_share=True, of=(Member, Organization) if needed == MAKER else Member)
        .execution_options(populate_existing=True)
    )
    if member is None or not member.may(needed):
        raise Forbidden("Your role doesn’t allow this. Please ask an admin of your organization.")
    if actor.session_id is not None:
        living = select(SignInSession.id).where(
            SignInSession.id == actor.session_id,
            SignInSession.member_id == member.id,
            SignInSession.ended_at.is_(None),
        )
        if session.scalar(living.with_for_update(read=True)) is None:
            raise Forbidden("You were signed out meanwhile. Please sign in again.")
