"""Environment -> settings. Strict: a bad value stops the start with one line that says why."""

import os
import re
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import TypeVar
from urllib.parse import urlsplit

T = TypeVar("T")

SECRET_MIN = 32
INSTANCE_PATH = Path(__file__).resolve().parent.parent / "instance"


class ConfigError(Exception):
    """One line: the variable, what is wrong with its value, and an example that works."""

    def __init__(self, variable: str, problem: str, example: str) -> None:
        super().__init__(f"{variable}: {problem} (example: {variable}={example})")
        self.variable = variable


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Everything that can be set from outside. Secrets stay out of its repr."""

    database_url: str = field(repr=False)
    secret_key: str = field(repr=False)
    key_peppers: tuple[str, ...] = field(repr=False)  # newest first, never empty
    base_url: str  # without a trailing slash
    trusted_proxies: int
    support_email: str
    session_idle: timedelta
    session_max: timedelta
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
    return Settings(
        database_url=read("DATABASE_URL", _database_url, f"sqlite:///{instance}/convene_keys.db"),
        secret_key=_secret(read, "SECRET_KEY", instance),
        key_peppers=tuple(
            part.strip() for part in _secret(read, "KEY_PEPPER", instance).split(",")
        ),
        base_url=read("BASE_URL", _base_url, f"http://127.0.0.1:{read('PORT', _port, '8000')}"),
        trusted_proxies=read("TRUSTED_PROXIES", _whole(0, 10), "0"),
        support_email=read("SUPPORT_EMAIL", _email, "hello@convene.markets"),
        session_idle=timedelta(minutes=read("SESSION_IDLE_MINUTES", _whole(1, 43_200), "120")),
        session_max=timedelta(hours=read("SESSION_MAX_HOURS", _whole(1, 720), "24")),
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


def _whole(least: int, most: int) -> Callable[[str], int]:
    def parse(value: str) -> int:
        if not re.fullmatch(r"[0-9]{1,9}", value) or not least <= int(value) <= most:
            raise _Bad(f"must be a whole number from {least} to {most}", str(least or 1))
        return int(value)

    return parse


_port = _whole(1, 65_535)


def _database_url(value: str) -> str:
    bad = _Bad(
        "must name an SQLite file or a PostgreSQL database",
        "postgresql+psycopg://user:password@host/convene",
    )
    value = re.sub(r"^postgres(ql)?://", "postgresql+psycopg://", value)
    if value.startswith("sqlite:///"):
        # Workers are processes of their own: a database in memory would be another one in each.
        if value.removeprefix("sqlite:///") in ("", ":memory:") or "mode=memory" in value:
            raise _Bad("must be a file, a database in memory is not shared", bad.example)
        path, mark, query = value.removeprefix("sqlite:///").partition("?")
        return f"sqlite:///{Path(path).absolute()}{mark}{query}"
    try:
        urlsplit(value).port  # noqa: B018  raises when it is no port
    except ValueError:
        raise bad from None
    if not re.match(r"^postgresql\+psycopg://.+/.+", value):
        raise bad
    return value


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


def _secret(read: _Reader, name: str, instance: Path) -> str:
    def parse(value: str) -> str:
        parts = value.split(",") if name == "KEY_PEPPER" else [value]
        if any(len(part.strip()) < SECRET_MIN for part in parts):
            raise _Bad(f"must have at least {SECRET_MIN} characters", "$(openssl rand -hex 32)")
        return value

    path = instance / name.lower()
    value = read.text(name)
    return read(name, parse, _kept_secret(name, path) if value is None else value)


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
