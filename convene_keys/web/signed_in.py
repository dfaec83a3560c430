"""Who is signed in: Flask-Login's user, backed by a session on the server."""

from flask_login import UserMixin

from convene_keys.accounts import sessions
from convene_keys.db.session import db
from convene_keys.http.access import settings
from convene_keys.http.extensions import login
from convene_keys.models import Member, Organization, SignInSession


class SignedIn(UserMixin):  # type: ignore[misc]
    """A member in one browser. Its id, kept in the cookie, is the session's token, not the member."""

    def __init__(self, session: SignInSession, token: str) -> None:
        self.session_id: int = session.id
        self.member: Member = session.member
        self.organization: Organization = session.member.organization
        self.name: str = session.member.name
        self.recently_authenticated: bool = sessions.is_recent(session)
        self._token = token

    def get_id(self) -> str:
        return self._token


def forget() -> None:
    """Treat the rest of this request as anonymous, without asking the database who it is."""
    login._update_request_context_with_user()


def load(token: str) -> SignedIn | None:
    """The living session that the cookie's token opens."""
    configured = settings()
    session = sessions.session_of(
        db.session(), token, idle=configured.session_idle, most=configured.session_max
    )
    if session is None:
        return None
    if sessions.note_seen(session.id, session.last_seen_at):
        session = db.session.get_one(SignInSession, session.id)
    return SignedIn(session, token)
