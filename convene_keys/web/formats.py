"""How times and events are written for people, in the organization's own time zone."""

from datetime import UTC, date, datetime, timedelta, tzinfo
from zoneinfo import ZoneInfo

from flask import Flask
from flask_login import current_user
from markupsafe import Markup, escape

from convene_keys import clock
from convene_keys.audit.actions import Action
from convene_keys.audit.search import NUMBERED
from convene_keys.models import ActorKind, AuditEvent, Outcome

_MINUTE, _HOUR, _DAY = 60, 3_600, 86_400


def init_app(app: Flask) -> None:
    for write in (day, ago, exact, clock_time, is_today, html_time, sentence, thing, money):
        app.add_template_filter(write)
    app.jinja_env.globals["zone_name"] = zone_name


def zone() -> tzinfo:
    if current_user and current_user.is_authenticated:
        return ZoneInfo(current_user.organization.timezone)
    return UTC


def zone_name() -> str:
    """`Europe/Stockholm (UTC+1)`: the zone of all times on the page, and its offset now."""
    name = str(zone())
    offset = clock.now().astimezone(zone()).utcoffset() or timedelta()
    if name == "UTC":
        return name
    hours, minutes = divmod(abs(offset) // timedelta(minutes=1), 60)
    sign = "−" if offset < timedelta() else "+"
    return f"{name.replace('_', ' ')} (UTC{sign}{hours}{f':{minutes:02}' if minutes else ''})"


def html_time(moment: datetime) -> str:
    """`2026-11-02T09:42:07.123Z`: HTML's `datetime` takes at most three digits of a second."""
    fine = "milliseconds" if moment.microsecond else "seconds"
    return moment.astimezone(UTC).isoformat(timespec=fine).replace("+00:00", "Z")


def day(moment: datetime | date) -> str:
    """`2 Nov 2026`"""
    there = moment.astimezone(zone()) if isinstance(moment, datetime) else moment
    return f"{there.day} {there:%b %Y}"


def clock_time(moment: datetime) -> str:
    """`09:14`"""
    return f"{moment.astimezone(zone()):%H:%M}"


def is_today(moment: datetime) -> bool:
    return day(moment) == day(clock.now())


def exact(moment: datetime) -> str:
    """`2 Nov 2026, 10:42:07 CET`"""
    return f"{day(moment)}, {moment.astimezone(zone()):%H:%M:%S %Z}"


def ago(moment: datetime) -> str:
    """`4 minutes ago`, `yesterday`, and from a week on the day."""
    seconds = (clock.now() - moment).total_seconds()
    if seconds < _MINUTE:
        return "just now"
    if seconds < _HOUR:
        return _counted(int(seconds // _MINUTE), "minute")
    if seconds < _DAY:
        return _counted(int(seconds // _HOUR), "hour")
    days = int(seconds // _DAY)
    if days == 1:
        return "yesterday"
    return _counted(days, "day") if days < 7 else day(moment)


def sentence(event: AuditEvent) -> Markup:
    """`Claude on laptop approved booking 123`, names in bold."""
    action = Action(event.action)
    text = action.sentence(Outcome(event.outcome))
    actor = event.key_name if event.actor == ActorKind.KEY else event.member_name
    before, mark, after = text.partition("{target}")
    target = f"<b><bdi>{escape(event.target_name or action.a_subject)}</bdi></b>" if mark else ""
    return Markup(  # noqa: S704  every part is escaped
        f"<b><bdi>{escape(actor or 'Convene Keys')}</bdi></b> {escape(before)}{target}{escape(after)}"
    )


def thing(event: AuditEvent) -> str | None:
    """`booking 123`: what to search the log for, to see all that happened to what this was about."""
    return event.target_name if event.target_type in NUMBERED else None


def money(minor: int, currency: str) -> str:
    """`45.00 EUR` of 4500 minor units."""
    return f"{minor // 100:,}.{minor % 100:02} {currency}"


def _counted(number: int, unit: str) -> str:
    return f"{number} {unit}{'' if number == 1 else 's'} ago"
