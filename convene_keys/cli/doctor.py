"""Whether this installation is sound: one line a check."""

import sqlite3
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from urllib.parse import urlsplit

import click
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from flask import current_app
from flask.cli import with_appcontext
from sqlalchemy import String, cast, func, select
from sqlalchemy.exc import SQLAlchemyError

from convene_keys import clock, config, limits
from convene_keys.audit.actions import Action
from convene_keys.cli.types import Command
from convene_keys.db.session import db
from convene_keys.http.access import settings
from convene_keys.mail import notices, smtp
from convene_keys.models import ApiKey, AuditEvent

EXIT_UNSOUND = 5
YEARS = range(2026, 2100)
CLOCKS_APART_MAX = 5  # seconds


class Level(StrEnum):
    OK = "ok"
    WARNING = "warning"  # worth knowing, and no reason to stop
    FAILED = "failed"


Result = tuple[Level, str]


@click.command("doctor", cls=Command)
@click.pass_context
@with_appcontext
def doctor(context: click.Context) -> None:
    """Check configuration, secrets, database, clock, limits, leak reports, mail and proxy; exit code 5 if one fails."""
    levels = set()
    for name, check in CHECKS.items():
        try:
            level, said = check()
        except SQLAlchemyError as error:
            level, said = Level.FAILED, f"the database does not answer ({type(error).__name__})"
        levels.add(level)
        click.echo(f"{level:<8} {name}: {said}")
    if Level.FAILED in levels:
        context.exit(EXIT_UNSOUND)


def configuration() -> Result:
    address, here = settings().base_url, ("127.0.0.1", "localhost", "::1")
    if not settings().secure and urlsplit(address).hostname not in here:
        return Level.FAILED, f"BASE_URL is {address}: without https, cookies and keys can be read"
    return Level.OK, f"BASE_URL is {address}"


def secrets() -> Result:
    """Those kept in the instance folder: only their owner may read them."""
    configured, open_to_others = settings(), []
    folder = configured.instance_path
    kept = {
        "secret_key": configured.secret_key,
        "key_pepper": ",".join(configured.key_peppers),
        "audit_key": ",".join(configured.audit_keys),
    }
    in_use = [folder / name for name, value in kept.items() if _holds(folder / name, value)]
    for path in [*in_use, folder] if in_use else []:
        if path.stat().st_mode & 0o077:
            open_to_others.append(f"{path} (fix: chmod go= {path})")
    if open_to_others:
        return Level.FAILED, f"others on this machine may read {', '.join(open_to_others)}"
    if not set(configured.audit_keys[:1]) - set(configured.key_peppers):
        return Level.WARNING, (
            "the audit log has no key of its own: who learns KEY_PEPPER can forge it. "
            "Set AUDIT_KEY, the same on all hosts"
        )
    if in_use:
        return Level.OK, f"kept in {folder}, for their owner alone"
    return Level.OK, "from the environment"


def api_keys() -> Result:
    """Each is told of in the log, which vouches for that: see `audit verify`."""
    event = select(AuditEvent.id).where(
        AuditEvent.organization_id == ApiKey.organization_id,
        AuditEvent.action == Action.KEY_CREATED,
        AuditEvent.target_id == cast(ApiKey.id, String),
        AuditEvent.detail["hint"].as_string() == ApiKey.hint,
    )
    found = db.session.scalars(select(ApiKey.id).where(~event.exists()).order_by(ApiKey.id)).all()
    if found:
        said = f"{len(found)} that the log has not seen being made"
        return Level.FAILED, f"{said}; the first: {', '.join(map(str, found[:10]))}"
    return Level.OK, "the log tells of the making of each"


def database() -> Result:
    with db.engine.connect() as connection:
        now = set(MigrationContext.configure(connection).get_current_heads())
    head = set(ScriptDirectory(current_app.extensions["migrate"].directory).get_heads())
    kind = {"sqlite": "SQLite", "postgresql": "PostgreSQL"}[db.engine.dialect.name]
    if now != head:
        state = f"{', '.join(sorted(now)) or 'empty'}, not {', '.join(head)}"
        return Level.FAILED, f"{kind} is {state}: run the command: db upgrade"
    return Level.OK, f"{kind} answers, and its tables are up to date"


def sqlite_version() -> Result:
    version = sqlite3.sqlite_version_info
    if db.engine.dialect.name != "sqlite":
        return Level.OK, "not in use"
    if _resets_wal_safely(version):
        return Level.OK, sqlite3.sqlite_version
    return Level.WARNING, (
        f"{sqlite3.sqlite_version} can, very rarely, damage a database that several processes "
        "write to (fixed in 3.51.3, 3.50.7 and 3.44.6): update it, keep backups, or use PostgreSQL"
    )


def clocks() -> Result:
    now = clock.now()
    if now.year not in YEARS:
        return Level.FAILED, f"this machine believes it is {now:%d %B %Y}"
    if db.engine.dialect.name == "postgresql":
        with db.engine.connect() as connection:
            there = connection.execute(select(func.clock_timestamp())).scalar_one()
        apart = abs((there - clock.now()).total_seconds())
        if apart > CLOCKS_APART_MAX:
            return Level.FAILED, f"the database’s clock is {apart:,.0f} seconds off this machine’s"
    return Level.OK, f"{now:%Y-%m-%d %H:%M:%S} UTC"


def rate_limits() -> Result:
    rate, shared = settings().key_rate_limit, limits.current().shared
    said = f"a key may call {rate.calls:,} times in {rate.seconds:,} s"
    if shared is None:
        return Level.OK, f"{said}, counted in each worker for itself (REDIS_URL is not set)"
    wrong = shared.ping()
    if wrong is not None:
        return Level.FAILED, f"Redis does not answer ({wrong}): each worker counts for itself"
    return Level.OK, f"{said}, counted in Redis for all workers"


def leak_reports() -> Result:
    reporters = current_app.extensions.get("leak_reporters")
    if reporters is None:
        return Level.OK, "not taken (LEAK_REPORT_KEYS_URL is not set)"
    wrong = reporters.refresh()
    if wrong is not None:
        return Level.FAILED, f"LEAK_REPORT_KEYS_URL can’t be read ({wrong}): none is taken"
    return Level.OK, f"taken when signed with one of {len(reporters)} public keys"


def mail() -> Result:
    server = settings().mail_server
    if server is None:
        return Level.OK, f"off (MAIL_URL is not set); people write to {settings().support_email}"
    where = f"{server.host}:{server.port}"
    try:
        smtp.check(settings())
    except (OSError, ValueError) as error:
        return Level.FAILED, f"{where} can’t be used ({smtp.why(error)})"
    lost = notices.undelivered(db.session())
    if lost:
        return Level.WARNING, f"{where} answers, but {lost} in the last week could not be delivered"
    if not (server.tls or server.starttls or config.is_loopback(server.host)):
        return Level.WARNING, f"{where} answers, but what is sent there can be read on the way"
    return Level.OK, f"{where} takes mail from {settings().mail_from}"


def proxy() -> Result:
    hops = settings().trusted_proxies
    if hops:
        return Level.OK, f"addresses are believed from {hops} in front (TRUSTED_PROXIES)"
    if settings().secure:
        return Level.WARNING, (
            "BASE_URL is https and TRUSTED_PROXIES is 0: every visitor has the proxy’s address. "
            "Behind one proxy, set TRUSTED_PROXIES=1"
        )
    return Level.OK, "none; addresses are those of the connections"


CHECKS: dict[str, Callable[[], Result]] = {
    "configuration": configuration,
    "secrets": secrets,
    "database": database,
    "API keys": api_keys,
    "SQLite version": sqlite_version,
    "clock": clocks,
    "rate limits": rate_limits,
    "leak reports": leak_reports,
    "mail": mail,
    "proxy": proxy,
}


def _holds(path: Path, value: str) -> bool:
    try:
        return path.read_text(encoding="utf-8").strip() == value
    except OSError:
        return False


def _resets_wal_safely(version: tuple[int, ...]) -> bool:
    """Whether a write-ahead log can be reset while another process writes (sqlite.org, 3.51.3)."""
    return (
        version >= (3, 51, 3)
        or (3, 50, 7) <= version < (3, 51)
        or (3, 44, 6) <= version < (3, 45)
        or version < (3, 7)
    )
