"""Environment -> settings. Strict: a bad value stops the start with one line that says why."""

import hashlib
import ipaddress
import os
import re
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import TypeVar
from urllib.parse import parse_qs, unquote, urlencode, urlsplit


def pepper_id(pepper: str) -> str:
    """Eight hex digits that name a pepper without telling anything about it."""
    return hashlib.sha256(b"convene-keys pepper id\0" + pepper.encode()).hexdigest()[:8]


T = TypeVar("T")

SECRET_MIN = 32
INSTANCE_PATH = Path(__file__).resolve().parent.parent / "instance"
POSTGRESQL_EXAMPLE = (
    "postgresql+psycopg://user:password@host-a,host-b/convene?target_session_attrs=read-write"
)
# A host that is gone must not hold a request: without these, for minutes (libpq, "Parameter Key
# Words"). Seconds, but tcp_user_timeout in milliseconds.
POSTGRESQL_OPTIONS = {
    "target_session_attrs": "read-write",
    "connect_timeout": "3",
    "tcp_user_timeout": "5000",
    "keepalives_idle": "5",
    "keepalives_interval": "2",
}


class ConfigError(Exception):
    """One line: the variable, what is wrong with its value, and an example that works."""

    def __init__(self, variable: str, problem: str, example: str) -> None:
        super().__init__(f"{variable}: {problem} (example: {variable}={example})")
        self.variable = variable


@dataclass(frozen=True)
class Rate:
    """So many calls in so many seconds."""

    calls: int
    seconds: int


@dataclass(frozen=True)
class MailServer:
    """Where mail is handed over. `tls`: from the first byte; `starttls`: before the sign-in."""

    host: str
    port: int
    username: str | None
    password: str | None = field(repr=False)
    tls: bool
    starttls: bool


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Everything that can be set from outside. Secrets stay out of its repr."""

    database_url: str = field(repr=False)
    secret_key: str = field(repr=False)
    key_peppers: tuple[str, ...] = field(repr=False)  # newest first, never empty
    # Newest first. Empty in an installation from before there were any: the peppers vouch for its log.
    audit_keys: tuple[str, ...] = field(repr=False)
    base_url: str  # without a trailing slash
    trusted_proxies: int
    support_email: str
    mail_server: MailServer | None  # None: no mail is sent
    mail_from: str | None
    redis_url: str | None = field(repr=False)  # None: each process counts for itself
    key_rate_limit: Rate
    session_idle: timedelta
    session_max: timedelta
    leak_report_keys_url: str | None  # None: no reports of leaked keys are taken
    instance_path: Path

    @property
    def secure(self) -> bool:
        return self.base_url.startswith("https://")


def load(environ: Mapping[str, str] | None = None, instance: Path = INSTANCE_PATH) -> Settings:
    """Settings from `environ`; `instance` keeps the database and secrets that are not set there.

    Raises `ConfigError` for the first value that can't be used.
    """
    env = os.environ if environ is None else environ
    read = _Reader(env)
    has_mail = read.text("MAIL_URL") is not None
    # A pepper that is set may be that of several hosts, of which each must not make its own key.
    makes_audit_key = read.text("KEY_PEPPER") is None or (instance / "audit_key").exists()
    return Settings(
        database_url=read("DATABASE_URL", _database_url, f"sqlite:///{instance}/convene_keys.db"),
        secret_key=_secret(read, "SECRET_KEY", instance),
        key_peppers=_parts(_secret(read, "KEY_PEPPER", instance)),
        audit_keys=_parts(_secret(read, "AUDIT_KEY", instance))
        if makes_audit_key or read.text("AUDIT_KEY") is not None
        else (),
        base_url=read("BASE_URL", _base_url, f"http://127.0.0.1:{read('PORT', _port, '8000')}"),
        trusted_proxies=read("TRUSTED_PROXIES", _whole(0, 10), "0"),
        support_email=read("SUPPORT_EMAIL", _email, "hello@convene.markets"),
        mail_server=read.optional("MAIL_URL", _mail_url),
        mail_from=read("MAIL_FROM", _mail_from, "") if has_mail else None,
        redis_url=read.optional("REDIS_URL", _redis_url),
        key_rate_limit=read("KEY_RATE_LIMIT", _rate, "600/minute"),
        session_idle=timedelta(minutes=read("SESSION_IDLE_MINUTES", _whole(1, 43_200), "120")),
        session_max=timedelta(hours=read("SESSION_MAX_HOURS", _whole(1, 720), "24")),
        leak_report_keys_url=read.optional("LEAK_REPORT_KEYS_URL", _keys_url),
        instance_path=instance,
    )


class _Bad(Exception):
    def __init__(self, problem: str, example: str) -> None:
        self.problem, self.example = problem, example


class _Reader:
    def __init__(self, environ: Mapping[str, str]) -> None:
        self.environ = environ

    def text(self, name: str) -> str | None:
        """The value of NAME or the content of the file that NAME_FILE names; None when unset."""
        value, path = self.environ.get(name) or None, self.environ.get(f"{name}_FILE") or None
        if value is not None and path is not None:
            raise ConfigError(name, f"is set together with {name}_FILE", "… (only one of the two)")
        if path is not None:
            try:
                value = Path(path).read_text(encoding="utf-8").rstrip("\r\n")
            except (OSError, UnicodeDecodeError) as error:
                reason = getattr(error, "strerror", None) or "is not text"
                raise ConfigError(
                    f"{name}_FILE", f"cannot be read: {reason}", f"/run/secrets/{name.lower()}"
                ) from None
        return value

    def __call__(self, name: str, parse: Callable[[str], T], default: str) -> T:
        value = self.text(name)
        try:
            return parse(default if value is None else value)
        except _Bad as bad:
            raise ConfigError(name, bad.problem, bad.example) from None

    def optional(self, name: str, parse: Callable[[str], T]) -> T | None:
        return None if self.text(name) is None else self(name, parse, "")


def _whole(least: int, most: int) -> Callable[[str], int]:
    def parse(value: str) -> int:
        if not re.fullmatch(r"[0-9]{1,9}", value) or not least <= int(value) <= most:
            raise _Bad(f"must be a whole number from {least} to {most}", str(least or 1))
        return int(value)

    return parse


_port = _whole(1, 65_535)


def database_url(value: str, name: str = "DATABASE_URL") -> str:
    """`value` in full. Raises `ConfigError` about `name` when it names no database to use."""
    return _Reader({name: value})(name, _database_url, "")


def _database_url(value: str) -> str:
    value = re.sub(r"^postgres(ql)?://", "postgresql+psycopg://", value)
    if value.startswith("sqlite:///"):
        # Workers are processes of their own: a database in memory would be another one in each.
        if value.removeprefix("sqlite:///") in ("", ":memory:") or "mode=memory" in value:
            raise _Bad("must be a file, a database in memory is not shared", POSTGRESQL_EXAMPLE)
        path, mark, query = value.removeprefix("sqlite:///").partition("?")
        return f"sqlite:///{Path(path).absolute()}{mark}{query}"
    try:
        return _postgresql_url(value)
    except ValueError:
        raise _Bad(
            "must name an SQLite file or a PostgreSQL database", POSTGRESQL_EXAMPLE
        ) from None


def _postgresql_url(value: str) -> str:
    """The address with its hosts as `host=a,b&port=1,2`, and with the options that are not given.

    Hosts may stand before the database, `a:1,b:2` as in libpq's own addresses, or in the query, one
    by one as SQLAlchemy wants them or together. Raises `ValueError`, or `_Bad` about an option.
    """
    from psycopg.pq import Conninfo  # only now: SQLite does without it

    parts = urlsplit(value)
    login, at, authority = parts.netloc.rpartition("@")
    query = parse_qs(parts.query, keep_blank_values=True, strict_parsing=bool(parts.query))
    given = ",".join(query.pop("host", [authority])).split(",")
    found = [re.fullmatch(r"(?:\[([0-9a-f:.]+)]|([^:[\]]*))(?::([0-9]+))?", host) for host in given]
    hosts = [(host[1] or host[2], host[3] or "") for host in found if host]
    ports = ",".join(query.pop("port", [port for _, port in hosts])).split(",")
    if (
        not re.fullmatch(r"postgresql\+psycopg:/[^/]+", f"{parts.scheme}:{parts.path}")
        or parts.fragment
        or len(hosts) < len(given)
        or (len(hosts) > 1 and not all(host for host, _ in hosts))
        or len(ports) not in (1, len(hosts))
        or any(port not in ("", ports[n % len(ports)]) for n, (_, port) in enumerate(hosts))
        or not all(1 <= int(port or 5432) <= 65_535 for port in ports)
    ):
        raise ValueError
    options = POSTGRESQL_OPTIONS | {name: values[-1] for name, values in query.items()}
    if options["target_session_attrs"] not in ("read-write", "primary", "any"):
        raise _Bad("must look for a server that takes changes", POSTGRESQL_EXAMPLE)
    if not re.fullmatch("[1-9][0-9]{0,2}", options["connect_timeout"]):
        raise _Bad("must have a connect_timeout from 1 to 999 seconds", POSTGRESQL_EXAMPLE)
    if options.get("prepare_threshold", "none") != "none":
        raise _Bad("must have no prepare_threshold but none", POSTGRESQL_EXAMPLE)
    known = {option.keyword.decode() for option in Conninfo.get_defaults()} | {"prepare_threshold"}
    if unknown := options.keys() - known:
        raise _Bad(f"must not have the option {min(unknown)!r}", POSTGRESQL_EXAMPLE)
    where = {"host": ",".join(host for host, _ in hosts), "port": ",".join(ports)}
    return f"{parts.scheme}://{login}{at}{parts.path}?{urlencode(where | options, safe='/,:')}"


def _base_url(value: str) -> str:
    found = re.fullmatch(
        r"(https?://(?:[a-z0-9.-]+|\[[0-9a-f:.]+\])(?::([0-9]{1,5}))?)/?", value.lower()
    )
    if not found or not 1 <= int(found[2] or 1) <= 65_535:
        raise _Bad("must be an http or https address without a path", "https://keys.example.org")
    return found[1]


def _email(value: str) -> str:
    if not re.fullmatch(r"[^@\s]+@[^@\s]+\.[^@\s]+", value):
        raise _Bad("must be an email address", "help@example.org")
    return value


def _mail_url(value: str) -> MailServer:
    bad = _Bad("must be an smtp or smtps address", "smtp://user:password@mail.example.org:587")
    found = re.fullmatch(
        r"(smtps?)://(?:([^:@/?#\s]+):([^@/?#\s]+)@)?"
        r"([A-Za-z0-9.-]+|\[[0-9A-Fa-f:.]+\])(?::([0-9]{1,5}))?/?",
        value,
    )
    if not found:
        raise bad
    username, password = (unquote(part) if part else None for part in found.group(2, 3))
    host, tls = found[4].strip("[]"), found[1] == "smtps"
    port = int(found[5] or (465 if tls else 587))
    if not 1 <= port <= 65_535 or not f"{username}{password}".isprintable():
        raise bad
    starttls = not tls and username is not None and not is_loopback(host)
    return MailServer(host, port, username, password, tls, starttls)


def is_loopback(host: str) -> bool:
    """Whether what is sent to `host` stays on this machine."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def _mail_from(value: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9.!#$%&'*+/=?^_`{|}~-]+@[A-Za-z0-9-]+(\.[A-Za-z0-9-]+)+", value):
        raise _Bad("must be an email address, which MAIL_URL needs", "keys@example.org")
    return value


def _redis_url(value: str) -> str:
    bad = _Bad("must be a redis, rediss or unix address", "redis://:password@127.0.0.1:6379/0")
    found = re.fullmatch(
        r"rediss?://([^@/?#\s]*@)?([A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(:(?P<port>[0-9]{1,5}))?"
        r"(/[0-9]{0,4})?(\?ssl_ca_certs=/[^&#\s]+)?"
        r"|unix://([^@/?#\s]*@)?/[^?#\s]+(\?db=[0-9]{1,4})?",
        value,
    )
    if not found or not 1 <= int(found["port"] or 1) <= 65_535:
        raise bad
    if "?ssl_" in value and not value.startswith("rediss://"):
        raise bad
    return value


def _keys_url(value: str) -> str:
    # Plain http could be answered by anybody on the way, but for this machine's own.
    found = re.fullmatch(
        r"(https://(?:[A-Za-z0-9.-]+|\[[0-9A-Fa-f:.]+\])"
        r"|http://(?:127(?:\.[0-9]{1,3}){3}|localhost|\[::1\]))(?::([0-9]{1,5}))?(?:/[!-~]*)?",
        value,
    )
    if not found or not 1 <= int(found[2] or 1) <= 65_535 or "#" in value:
        raise _Bad(
            "must be an https address, or an http one of this machine",
            "https://api.github.com/meta/public_keys/secret_scanning",
        )
    return value


_SECONDS = {"second": 1, "minute": 60, "hour": 3_600, "day": 86_400}


def _rate(value: str) -> Rate:
    found = re.fullmatch(r"([1-9][0-9]{0,6})/(second|minute|hour|day)", value)
    if not found:
        raise _Bad(
            "must be a number from 1 to 9999999 and second, minute, hour or day", "600/minute"
        )
    return Rate(int(found[1]), _SECONDS[found[2]])


def _secret(read: _Reader, name: str, instance: Path) -> str:
    def parse(value: str) -> str:
        parts = (value,) if name == "SECRET_KEY" else _parts(value)
        if any(len(part) < SECRET_MIN for part in parts):
            raise _Bad(f"must have at least {SECRET_MIN} characters", "$(openssl rand -hex 32)")
        return value

    path = instance / name.lower()
    value = read.text(name)
    return read(name, parse, _kept_secret(name, path) if value is None else value)


def _parts(value: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in value.split(","))


def _kept_secret(name: str, path: Path) -> str:
    """The secret kept in `path`, made at the first start. Safe when several workers start at once."""
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not path.exists():
            draft = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
            descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(descriptor, "w") as file:
                file.write(secrets.token_urlsafe(48))
                file.flush()
                os.fsync(file.fileno())
            try:
                os.link(draft, path)  # fails when another worker was first: then its secret counts
            except FileExistsError:
                pass
            finally:
                draft.unlink()
        return path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "is not text"
        raise ConfigError(
            name, f"is not set and {path} cannot be used: {reason}", "$(openssl rand -hex 32)"
        ) from None
