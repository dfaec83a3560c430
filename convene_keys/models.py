"""The one model layer, behind the key list and the audit log alike.

Times are stored in UTC. Market data is numbered per organization, from 1: its primary key is
(organization_id, id), so nothing can be found, or pointed to, across organizations.
"""

from datetime import date as calendar_date
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any

from sqlalchemy import (
    JSON,
    CheckConstraint,
    ForeignKey,
    ForeignKeyConstraint,
    Index,
    LargeBinary,
    String,
    Text,
    text,
)
from sqlalchemy.orm import Mapped, mapped_column, relationship

from convene_keys import clock
from convene_keys.db.session import Base
from convene_keys.db.types import BigId


class Outcome(StrEnum):
    OK = "ok"
    DENIED = "denied"
    FAILED = "failed"


class ActorKind(StrEnum):
    KEY = "key"
    MEMBER = "member"
    SYSTEM = "system"


EXPIRING_SOON = timedelta(days=14)
ID_MAX = 2**63 - 1  # a greater number is no row's, and a database refuses to look for it


def _now() -> datetime:
    return clock.now()  # looked up at each call, so that a test's clock counts


class OrganizationStatus(StrEnum):
    DRAFT = "draft"
    LIVE = "live"


class Role(StrEnum):
    """Ordered: each may do what the ones after it may."""

    ADMIN = "admin"
    MANAGER = "manager"
    VIEWER = "viewer"

    def covers(self, needed: "Role") -> bool:
        order = list(Role)
        return order.index(self) <= order.index(needed)


MAKERS_OF_KEYS = (Role.ADMIN, Role.MANAGER)
MAKER = "maker"  # what a change may ask for beside a role: that the member may make keys now


class Scope(StrEnum):
    READ = "read"
    READ_WRITE = "read_write"


class Tool(StrEnum):
    CLAUDE = "claude"
    CHATGPT = "chatgpt"
    DEVELOPER = "developer"
    OTHER = "other"


class KeyMakers(StrEnum):
    """Who may create and rotate keys."""

    ADMINS = "admins"
    MANAGERS = "managers"  # and admins


class KeyStatus(StrEnum):
    ACTIVE = "active"
    EXPIRING = "expiring"
    EXPIRED = "expired"
    REVOKED = "revoked"


class ReminderState(StrEnum):
    EXPIRING = "expiring"
    DUE = "due"
    SOON = "soon"


class MarketDateStatus(StrEnum):
    DRAFT = "draft"
    PUBLISHED = "published"
    CANCELLED = "cancelled"


class ApplicationStatus(StrEnum):
    PENDING = "pending"
    APPROVED = "approved"
    DECLINED = "declined"
    WAITLISTED = "waitlisted"


class BookingStatus(StrEnum):
    PENDING = "pending"
    APPROVED = "approved"
    DECLINED = "declined"
    CANCELLED = "cancelled"


def one_of(column: str, values: type[StrEnum]) -> CheckConstraint:
    allowed = ", ".join(f"'{value}'" for value in values)
    return CheckConstraint(f"{column} IN ({allowed})", name=column)


class Organization(Base):
    """One market organizer."""

    __table_args__ = (
        one_of("status", OrganizationStatus),
        one_of("key_makers", KeyMakers),
        CheckConstraint("rotate_months BETWEEN 1 AND 24", name="rotate_months"),
    )

    id: Mapped[int] = mapped_column(BigId, primary_key=True)
    name: Mapped[str] = mapped_column(String(100))
    slug: Mapped[str] = mapped_column(String(80), unique=True)
    status: Mapped[str] = mapped_column(String(16), default=OrganizationStatus.LIVE)
    timezone: Mapped[str] = mapped_column(String(64), default="UTC")
    billing_email: Mapped[str | None] = mapped_column(String(254))
    plan: Mapped[str] = mapped_column(String(32), default="free")
    stripe_account_id: Mapped[str | None] = mapped_column(String(64))
    key_makers: Mapped[str] = mapped_column(String(16), default=KeyMakers.MANAGERS)
    rotate_months: Mapped[int] = mapped_column(default=6)  # at half of it: soon
    created_at: Mapped[datetime] = mapped_column(default=_now)


class Member(Base):
    """A person who signs in. Without a password until the first sign-in link is used."""

    __table_args__ = (one_of("role", Role), Index(None, "organization_id", "id"))

    id: Mapped[int] = mapped_column(BigId, primary_key=True)
    organization_id: Mapped[int] = mapped_column(ForeignKey("organization.id"))
    name: Mapped[str] = mapped_column(String(100))
    email: Mapped[str] = mapped_column(String(254))
    email_folded: Mapped[str] = mapped_column(String(254), unique=True)
    role: Mapped[str] = mapped_column(String(16))
    password_hash: Mapped[str | None] = mapped_column(String(120))
    created_at: Mapped[datetime] = mapped_column(default=_now)
    disabled_at: Mapped[datetime | None]
    weekly_digest: Mapped[bool] = mapped_column(default=True)

    organization: Mapped[Organization] = relationship()

    @property
    def may_make_keys(self) -> bool:
        """Now. Keys made before go on as long as the member has a role in `MAKERS_OF_KEYS`."""
        admins_only = self.organization.key_makers == KeyMakers.ADMINS
        makers = (Role.ADMIN,) if admins_only else MAKERS_OF_KEYS
        return self.disabled_at is None and self.role in makers

    def may(self, level: str) -> bool:
        """Whether an active member's role covers `level`, a role or `MAKER`."""
        if level == MAKER:
            return self.may_make_keys
        return self.disabled_at is None and Role(self.role).covers(Role(level))


class SignInSession(Base):
    """One browser that a member signed in with. Only the digest of its token is kept."""

    __table_args__ = (Index(None, "member_id", "ended_at"),)

    id: Mapped[int] = mapped_column(BigId, primary_key=True)
    member_id: Mapped[int] = mapped_column(ForeignKey("member.id"))
    digest: Mapped[bytes] = mapped_column(LargeBinary(32), unique=True)
    created_at: Mapped[datetime] = mapped_column(default=_now)
    last_seen_at: Mapped[datetime] = mapped_column(default=_now)
    password_checked_at: Mapped[datetime] = mapped_column(default=_now)
    ended_at: Mapped[datetime | None]
    ip: Mapped[str | None] = mapped_column(String(45))
    user_agent: Mapped[str | None] = mapped_column(String(256))

    member: Mapped[Member] = relationship()


class SignInLink(Base):
    """With it a member sets their password, once. Only the digest of its code is kept.

    `made_by` is none for one that was made on the command line. Which ones work: see `links`.
    """

    __table_args__ = (Index(None, "organization_id", "expires_at"),)

    id: Mapped[int] = mapped_column(BigId, primary_key=True)
    organization_id: Mapped[int] = mapped_column(ForeignKey("organization.id"))
    member_id: Mapped[int] = mapped_column(ForeignKey("member.id"))
    made_by_id: Mapped[int | None] = mapped_column(ForeignKey("member.id"))
    digest: Mapped[bytes] = mapped_column(LargeBinary(32), unique=True)
    created_at: Mapped[datetime]
    expires_at: Mapped[datetime]
    used_at: Mapped[datetime | None]
    withdrawn_at: Mapped[datetime | None]

    member: Mapped[Member] = relationship(foreign_keys=[member_id])
    made_by: Mapped[Member | None] = relationship(foreign_keys=[made_by_id])


class SignInAttempt(Base):
    """A try to sign in that has not succeeded, counted for all workers alike. Short-lived.

    Of a signed-in member who confirms their password, `network` is the session, and no email counts.
    """

    __table_args__ = (Index(None, "email_digest", "at"), Index(None, "network", "at"))

    id: Mapped[int] = mapped_column(BigId, primary_key=True)
    at: Mapped[datetime]
    email_digest: Mapped[bytes] = mapped_column(LargeBinary(32))
    network: Mapped[str] = mapped_column(String(45))


def _only(where: str) -> dict[str, Any]:
    """For an index that has these rows alone."""
    return {"sqlite_where": text(where), "postgresql_where": text(where)}


ACTIVE_NAME = Index(
    "uq_api_key_active_name",
    "organization_id",
    "name_folded",
    unique=True,
    **_only("released_at IS NULL"),
)


class ApiKey(Base):
    """A secret that software holds to act for the organization; never for a person.

    Of the secret only an HMAC under a pepper is kept. A name belongs to one key at a time:
    `released_at` says when this one gave it up: by being revoked, by having expired, or to a
    successor, whose `predecessor_id` it is. Of several successors one at most works.
    """

    __table_args__ = (
        one_of("scope", Scope),
        one_of("tool", Tool),
        CheckConstraint("revoked_at IS NULL OR released_at IS NOT NULL", name="revoked_released"),
        ACTIVE_NAME,
        Index(None, "organization_id", "created_at", "id"),
        Index(None, "organization_id", "name_folded", "id"),
        Index(None, "organization_id", "last_used_at", "id"),
        Index(None, "organization_id", "revoked_at", "expires_at"),  # to count by status
        Index(None, "predecessor_id"),
        {"sqlite_autoincrement": True},
    )

    id: Mapped[int] = mapped_column(BigId, primary_key=True)
    organization_id: Mapped[int] = mapped_column(ForeignKey("organization.id"))
    name: Mapped[str] = mapped_column(String(100))
    name_folded: Mapped[str] = mapped_column(String(200))
    tool: Mapped[str] = mapped_column(String(16), default=Tool.OTHER)
    scope: Mapped[str] = mapped_column(String(16), default=Scope.READ_WRITE)
    digest: Mapped[bytes] = mapped_column(LargeBinary(32), unique=True)
    hint: Mapped[str] = mapped_column(String(16))
    pepper_id: Mapped[str] = mapped_column(String(8))
    created_at: Mapped[datetime] = mapped_column(default=_now)
    created_by_id: Mapped[int | None] = mapped_column(ForeignKey("member.id"))
    expires_at: Mapped[datetime | None]
    revoked_at: Mapped[datetime | None]
    revoked_by_name: Mapped[str | None] = mapped_column(String(100))
    revoke_reason: Mapped[str | None] = mapped_column(String(300))
    released_at: Mapped[datetime | None]
    last_used_at: Mapped[datetime | None]
    last_used_ip: Mapped[str | None] = mapped_column(String(45))
    last_used_user_agent: Mapped[str | None] = mapped_column(String(256))
    refused_count: Mapped[int] = mapped_column(default=0)
    refused_at: Mapped[datetime | None]
    refused_recorded_at: Mapped[datetime | None]
    refused_recorded_count: Mapped[int] = mapped_column(default=0)
    predecessor_id: Mapped[int | None] = mapped_column(ForeignKey("api_key.id"))
    last_changed_at: Mapped[datetime | None]  # noted once a day
    leaked_at: Mapped[datetime | None]  # first reported as leaked

    organization: Mapped[Organization] = relationship()
    creator: Mapped[Member | None] = relationship()
    predecessor: Mapped["ApiKey | None"] = relationship(
        remote_side=[id], back_populates="successors"
    )
    successors: Mapped[list["ApiKey"]] = relationship(back_populates="predecessor", order_by=id)

    @property
    def created_by_name(self) -> str:
        return self.creator.name if self.creator else "the command line"

    @property
    def status(self) -> KeyStatus:
        now = clock.now()
        if self.revoked_at is not None:
            return KeyStatus.REVOKED
        if self.expires_at is None or self.expires_at > now + EXPIRING_SOON:
            return KeyStatus.ACTIVE
        return KeyStatus.EXPIRING if self.expires_at > now else KeyStatus.EXPIRED

    @property
    def works(self) -> bool:
        return self.status in (KeyStatus.ACTIVE, KeyStatus.EXPIRING)

    @property
    def ended(self) -> bool:
        return not self.works

    @property
    def successor(self) -> "ApiKey | None":
        """The key that took its place last; of one that works itself, only if that works too."""
        taken = self.successors or (self.predecessor.successors if self.predecessor else [])
        later = [key for key in taken if key.id > self.id and (self.ended or key.works)]
        return later[-1] if later else None

    @property
    def last_day(self) -> calendar_date | None:
        """On which it works, in its organization's time zone."""
        zone = self.organization.timezone
        return clock.day_of(self.expires_at, zone) if self.expires_at else None

    @property
    def rotate_by(self) -> calendar_date:
        return clock.months_after(self.created_at, self.organization.rotate_months).date()


class KeyUse(Base):
    """From where, and with what kind of client, a key was used. See `authentication.usage_updates`.

    `place` is an IPv4 address or the /64 of an IPv6 one, and empty for what calls from a cloud;
    `client` is a kind: see `user_agents`. `returned_at`: when the key was last used here again, within
    the hour, after it was used elsewhere.
    """

    key_id: Mapped[int] = mapped_column(BigId, ForeignKey("api_key.id"), primary_key=True)
    place: Mapped[str] = mapped_column(String(45), primary_key=True)
    client: Mapped[str] = mapped_column(String(40), primary_key=True)
    first_at: Mapped[datetime]
    last_at: Mapped[datetime]
    returned_at: Mapped[datetime | None]


class Mail(Base):
    """A mail that waits to be sent, or no longer does. Rows that are done are kept for a while.

    `due_at`: when it is tried next, none once it is done. Whoever tries it moves `due_at` on first,
    so that nobody else does meanwhile. `unsure`: tries of which nobody knows how they ended. `once`:
    what must not be sent a second time.
    """

    __table_args__ = (
        Index(None, "due_at"),
        Index(None, "sent_at"),
        Index(None, "organization_id", "given_up_at"),
        {"sqlite_autoincrement": True},
    )

    id: Mapped[int] = mapped_column(BigId, primary_key=True)
    organization_id: Mapped[int] = mapped_column(ForeignKey("organization.id"))
    kind: Mapped[str] = mapped_column(String(32))
    recipient: Mapped[str] = mapped_column(String(254))
    subject: Mapped[str] = mapped_column(String(300))
    text: Mapped[str] = mapped_column(Text)
    html: Mapped[str] = mapped_column(Text)
    once: Mapped[str | None] = mapped_column(String(64), unique=True)
    created_at: Mapped[datetime] = mapped_column(default=_now)
    due_at: Mapped[datetime | None] = mapped_column(default=_now)
    attempts: Mapped[int] = mapped_column(default=0)
    unsure: Mapped[int] = mapped_column(default=0)
    sent_at: Mapped[datetime | None]
    given_up_at: Mapped[datetime | None]
    error: Mapped[str | None] = mapped_column(String(200))


class Reminder(Base):
    """That members were told once of a key's state: `soon` or `due` for rotation, `expiring`."""

    __table_args__ = (one_of("state", ReminderState),)

    key_id: Mapped[int] = mapped_column(BigId, ForeignKey("api_key.id"), primary_key=True)
    state: Mapped[str] = mapped_column(String(16), primary_key=True)
    at: Mapped[datetime] = mapped_column(default=_now)


class AuditEvent(Base):
    """One line of the audit log. The database refuses to change or delete it (see migrations)."""

    __table_args__ = (
        one_of("actor", ActorKind),
        one_of("outcome", Outcome),
        Index(None, "organization_id", "at", "id"),
        Index(None, "organization_id", "key_id", "at", "id"),
        Index(None, "organization_id", "action", "at", "id"),
        # Without what a key did well, which is most of the log: its writing costs that much less.
        Index(None, "organization_id", "member_id", "at", "id", **_only("member_id IS NOT NULL")),
        Index(None, "organization_id", "outcome", "at", "id", **_only("outcome <> 'ok'")),
        Index(
            "ix_audit_event_organization_id_target_at_id",
            *("organization_id", "target_type", "target_id", "at", "id"),
            **_only("target_id IS NOT NULL"),
        ),
        {"sqlite_autoincrement": True},
    )

    id: Mapped[int] = mapped_column(BigId, primary_key=True)
    at: Mapped[datetime]
    organization_id: Mapped[int] = mapped_column(ForeignKey("organization.id"))
    actor: Mapped[str] = mapped_column(String(8))
    key_id: Mapped[int | None] = mapped_column(ForeignKey("api_key.id"))
    key_name: Mapped[str | None] = mapped_column(String(100))
    member_id: Mapped[int | None] = mapped_column(ForeignKey("member.id"))
    member_name: Mapped[str | None] = mapped_column(String(100))
    action: Mapped[str] = mapped_column(String(64))
    target_type: Mapped[str | None] = mapped_column(String(32))
    target_id: Mapped[str | None] = mapped_column(String(64))
    target_name: Mapped[str | None] = mapped_column(String(200))
    outcome: Mapped[str] = mapped_column(String(8))
    ip: Mapped[str | None] = mapped_column(String(45))
    user_agent: Mapped[str | None] = mapped_column(String(256))
    request_id: Mapped[str | None] = mapped_column(String(32))
    detail: Mapped[dict[str, Any]] = mapped_column(JSON, default=dict)
    mac: Mapped[bytes] = mapped_column(LargeBinary(32))  # over all the columns but id: see seals


class AuditSeal(Base):
    """A closed batch of an organization's events. The database refuses to change or delete it.

    `entries` has 16 bytes an event: its id and the beginning of its mac. `root` is their
    SHA-256; `previous` the signature of the seal before, zeros in the first.
    """

    __table_args__ = (Index(None, "last_event_id"),)

    organization_id: Mapped[int] = mapped_column(ForeignKey("organization.id"), primary_key=True)
    batch: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    first_event_id: Mapped[int] = mapped_column(BigId)
    last_event_id: Mapped[int] = mapped_column(BigId)
    count: Mapped[int]
    root: Mapped[bytes] = mapped_column(LargeBinary(32))
    previous: Mapped[bytes] = mapped_column(LargeBinary(32))
    sealed_at: Mapped[datetime]
    signature: Mapped[bytes] = mapped_column(LargeBinary(32))
    entries: Mapped[bytes] = mapped_column(LargeBinary)


class Numbered:
    """A row of market data: numbered from 1 in its organization."""

    organization_id: Mapped[int] = mapped_column(
        BigId, ForeignKey("organization.id"), primary_key=True
    )
    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)


def _within(column: str, table: str) -> ForeignKeyConstraint:
    """A reference that cannot leave the organization."""
    return ForeignKeyConstraint(
        ["organization_id", column], [f"{table}.organization_id", f"{table}.id"]
    )


class Market(Numbered, Base):
    name: Mapped[str] = mapped_column(String(100))
    location: Mapped[str] = mapped_column(String(200))
    description: Mapped[str] = mapped_column(Text, default="")


class MarketDate(Numbered, Base):
    """One day on which a market is held. `opens` and `closes` are local times, `08:00`."""

    __table_args__ = (
        _within("market_id", "market"),
        one_of("status", MarketDateStatus),
        Index(None, "organization_id", "date", "id"),
        Index(None, "organization_id", "market_id", "date", "id"),
        Index(None, "organization_id", "status", "date", "id"),
    )

    market_id: Mapped[int]
    date: Mapped[calendar_date]
    opens: Mapped[str] = mapped_column(String(5))
    closes: Mapped[str] = mapped_column(String(5))
    stalls: Mapped[int]
    status: Mapped[str] = mapped_column(String(16))


class Vendor(Numbered, Base):
    __table_args__ = (Index(None, "organization_id", "name_folded"),)

    name: Mapped[str] = mapped_column(String(100))
    name_folded: Mapped[str] = mapped_column(String(200))
    category: Mapped[str] = mapped_column(String(60))
    contact_name: Mapped[str] = mapped_column(String(100))
    email: Mapped[str] = mapped_column(String(254))
    phone: Mapped[str] = mapped_column(String(40), default="")
    created_at: Mapped[datetime] = mapped_column(default=_now)


class VendorApplication(Numbered, Base):
    """A vendor asks to sell at a market."""

    __table_args__ = (
        _within("market_id", "market"),
        _within("vendor_id", "vendor"),
        one_of("status", ApplicationStatus),
        Index(None, "organization_id", "status", "id"),
        Index(None, "organization_id", "market_id", "id"),
    )

    market_id: Mapped[int]
    vendor_id: Mapped[int]
    status: Mapped[str] = mapped_column(String(16), default=ApplicationStatus.PENDING)
    message: Mapped[str] = mapped_column(Text, default="")
    note: Mapped[str] = mapped_column(Text, default="")
    submitted_at: Mapped[datetime] = mapped_column(default=_now)
    decided_at: Mapped[datetime | None]
    reminded_at: Mapped[datetime | None]


class Booking(Numbered, Base):
    """A vendor's stall on one market date. `amount` in minor units of `currency`."""

    __table_args__ = (
        _within("market_date_id", "market_date"),
        _within("vendor_id", "vendor"),
        one_of("status", BookingStatus),
        CheckConstraint("amount >= 0", name="amount"),
        CheckConstraint("NOT paid OR status IN ('approved', 'cancelled')", name="paid"),
        Index(None, "organization_id", "status", "id"),
        Index(None, "organization_id", "market_date_id", "id"),
        Index(None, "organization_id", "vendor_id", "id"),
    )

    market_date_id: Mapped[int]
    vendor_id: Mapped[int]
    status: Mapped[str] = mapped_column(String(16), default=BookingStatus.PENDING)
    paid: Mapped[bool] = mapped_column(default=False)
    stall: Mapped[str] = mapped_column(String(20), default="")
    amount: Mapped[int]
    currency: Mapped[str] = mapped_column(String(3), default="EUR")
    reason: Mapped[str] = mapped_column(String(300), default="")
    created_at: Mapped[datetime] = mapped_column(default=_now)
    decided_at: Mapped[datetime | None]
