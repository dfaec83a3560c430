"""The audit vocabulary: every action, and its sentence in plain words, in this one place.

An action's value is `subject.verb`. Its sentence goes on after the name of who acted:
"Claude on laptop" + "approved booking 123". `attempt` is the same for a try that came to nothing:
"Claude on laptop" + "tried to" + "approve booking 123". `{target}` is what it was done to.
"""

from enum import StrEnum
from typing import Self

from convene_keys.models import Outcome


class Action(StrEnum):
    """What happened. Members carry `done` and `attempt`, the two forms of their sentence."""

    done: str
    attempt: str

    def __new__(cls, value: str, done: str = "", attempt: str = "") -> Self:
        member = str.__new__(cls, value)
        member._value_ = value
        member.done, member.attempt = done, attempt
        return member

    KEY_CREATED = "key.created", "created the key {target}", "create the key {target}"
    KEY_RENAMED = "key.renamed", "renamed the key {target}", "rename the key {target}"
    KEY_ROTATED = "key.rotated", "rotated the key {target}", "rotate the key {target}"
    KEY_REVOKED = "key.revoked", "revoked the key {target}", "revoke the key {target}"
    KEY_NARROWED = (
        "key.narrowed",
        "made the key {target} read-only",
        "make the key {target} read-only",
    )
    KEY_EXPIRY_SET = (
        "key.expiry_set",
        "gave the key {target} an end date",
        "give the key {target} an end date",
    )
    KEY_WIDENED = (
        "key.widened",
        "let the key {target} read and change",
        "let the key {target} read and change",
    )
    KEY_EXPIRY_CHANGED = (
        "key.expiry_changed",
        "changed the end date of the key {target}",
        "change the end date of the key {target}",
    )
    KEY_EXPIRY_REMOVED = (
        "key.expiry_removed",
        "took the end date off the key {target}",
        "take the end date off the key {target}",
    )
    KEY_EXPIRED = "key.expired", "noted that the key {target} expired", "expire the key {target}"
    KEY_LEAK_REPORTED = (
        "key.leak_reported",
        "noted that the key {target} leaked",
        "note that the key {target} leaked",
    )
    KEY_REFUSED = "key.refused", "was refused", "use a key that no longer works"
    KEY_LIMITED = "key.limited", "called too often", "call more often than it may"
    KEY_CONNECTED = "key.connected", "connected", "connect"
    KEY_CHECKED = "key.checked", "asked which key it is", "ask which key it is"

    DASHBOARD_VIEWED = "dashboard.viewed", "looked at the dashboard", "look at the dashboard"
    MARKET_LISTED = "market.listed", "listed markets", "list markets"
    MARKET_VIEWED = "market.viewed", "looked at {target}", "look at {target}"
    MARKET_DATE_LISTED = "market_date.listed", "listed market dates", "list market dates"
    MARKET_DATE_VIEWED = "market_date.viewed", "looked at {target}", "look at {target}"
    VENDOR_LISTED = "vendor.listed", "listed vendors", "list vendors"
    VENDOR_VIEWED = "vendor.viewed", "looked at {target}", "look at {target}"
    APPLICATION_LISTED = "application.listed", "listed applications", "list applications"
    APPLICATION_VIEWED = "application.viewed", "looked at {target}", "look at {target}"
    APPLICATION_UPDATED = "application.updated", "updated {target}", "update {target}"
    APPLICATION_REMINDED = (
        "application.reminded",
        "noted a reminder for {target}",
        "note a reminder for {target}",
    )
    APPLICATION_RESTORED = (
        "application.restored",
        "put {target} back as it was",
        "put {target} back",
    )
    BOOKING_LISTED = "booking.listed", "listed bookings", "list bookings"
    BOOKING_VIEWED = "booking.viewed", "looked at {target}", "look at {target}"
    BOOKING_APPROVED = "booking.approved", "approved {target}", "approve {target}"
    BOOKING_DECLINED = "booking.declined", "declined {target}", "decline {target}"
    BOOKING_CANCELLED = "booking.cancelled", "cancelled {target}", "cancel {target}"
    BOOKING_PAID = "booking.paid", "marked {target} as paid", "mark {target} as paid"
    BOOKING_RESTORED = "booking.restored", "put {target} back as it was", "put {target} back"
    AUDIT_LISTED = "audit.listed", "listed its own activity", "list its own activity"
    AUDIT_EXPORTED = "audit.exported", "exported the audit log", "export the audit log"
    OFF_LIMITS = (
        "request.off_limits",
        "reached for something no key may touch",
        "reach {target}, which no key may touch",
    )
    UNKNOWN = (
        "request.unknown",
        "asked for something that does not exist",
        "use {target}, which does not exist",
    )

    PROXY_REQUEST = (
        "proxy.request",
        "went through a proxy: {target}",
        "go through a proxy: {target}",
    )

    MEMBER_SIGNED_IN = "member.signed_in", "signed in", "sign in"
    MEMBER_SIGN_IN_FAILED = "member.sign_in_failed", "failed to sign in", "sign in"
    MEMBER_SIGNED_OUT = "member.signed_out", "signed out", "sign out"
    MEMBER_ADDED = "member.added", "added {target} to the team", "add {target} to the team"
    MEMBER_INVITED = (
        "member.invited",
        "made a sign-in link for {target}",
        "make a sign-in link for {target}",
    )
    MEMBER_LINK_WITHDRAWN = (
        "member.link_withdrawn",
        "withdrew the sign-in link for {target}",
        "withdraw the sign-in link for {target}",
    )
    MEMBER_CHANGED = "member.changed", "changed {target}", "change {target}"
    MEMBER_DISABLED = "member.disabled", "disabled {target}", "disable {target}"
    MEMBER_ENABLED = "member.enabled", "enabled {target} again", "enable {target} again"
    MEMBER_RENAMED = "member.renamed", "changed their own name", "change their own name"
    MEMBER_MAIL_CHANGED = (
        "member.mail_changed",
        "changed which mail they get",
        "change which mail they get",
    )
    MEMBER_PASSWORD_CHANGED = (
        "member.password_changed",
        "changed their own password",
        "change their own password",
    )
    MEMBER_PASSWORD_SET = (
        "member.password_set",
        "set their password by a link that {target} made",
        "set their password by a link that {target} made",
    )
    MEMBER_SESSIONS_ENDED = (
        "member.sessions_ended",
        "signed out of their other sessions",
        "sign out of their other sessions",
    )
    ORGANIZATION_CREATED = (
        "organization.created",
        "created the organization {target}",
        "create the organization {target}",
    )
    SETTINGS_ORGANIZATION_CHANGED = (
        "settings.organization_changed",
        "changed the organization’s settings",
        "change the organization’s settings",
    )
    SETTINGS_BILLING_CHANGED = (
        "settings.billing_changed",
        "changed the billing settings",
        "change the billing settings",
    )
    SAMPLE_DATA_MADE = "sample_data.made", "made the sample data", "make the sample data"

    @property
    def label(self) -> str:
        """For choosing it from a list: `Approved a booking`."""
        text = self.done.removesuffix(": {target}")
        text = text.replace(f"the {self.subject} {{target}}", self.a_subject)
        text = text.replace("{target}", self.a_subject)
        return text[0].upper() + text[1:]

    @property
    def subject(self) -> str:
        return self.value.partition(".")[0].replace("_", " ")

    @property
    def a_subject(self) -> str:
        return f"{'an' if self.subject[0] in 'aeiou' else 'a'} {self.subject}"

    def sentence(self, outcome: Outcome) -> str:
        """The sentence after the actor's name, with `{target}` still in it."""
        if outcome is Outcome.OK or self in _ALWAYS_DONE:
            return self.done
        return f"tried to {self.attempt}"


# Their name says already that they came to nothing.
_ALWAYS_DONE = {Action.KEY_REFUSED, Action.MEMBER_SIGN_IN_FAILED}
