"""Extensions, unbound, and the one way to a write transaction."""

import fcntl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from flask_login import LoginManager
from flask_migrate import Migrate
from flask_sqlalchemy import SQLAlchemy
from flask_wtf import CSRFProtect
from htmx_flask import Htmx
from sqlalchemy import Connection, Engine, MetaData, event
from sqlalchemy.orm import DeclarativeBase, Session


class Base(DeclarativeBase):
    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
            "fk": "fk_%(table_name)s_%(column_0_N_name)s_%(referred_table_name)s",
            "pk": "pk_%(table_name)s",
        }
    )


# Parameters stay out of SQLAlchemy's messages: they may be personal data or digests.
db = SQLAlchemy(
    metadata=Base.metadata, engine_options={"hide_parameters": True, "pool_pre_ping": True}
)
login = LoginManager()
csrf = CSRFProtect()
htmx = Htmx()
migrate = Migrate()
_writers = threading.Lock()


@contextmanager
def transaction() -> Iterator[Session]:
    """One write transaction: commits at the end, rolls back when anything is raised.

    SQLite takes its write lock at the start, since a read that turns into a write fails at once
    with "database is locked". What was read before is dropped, so that all a change is based on is
    read inside it.
    """
    session: Session = db.session()
    session.rollback()
    session.expire_all()
    with _turn(session.get_bind()):
        session.connection(execution_options={"sqlite_begin": "IMMEDIATE"})
        try:
            yield session
            session.commit()
        except BaseException:
            session.rollback()
            raise


@contextmanager
def _turn(engine: Engine | Connection) -> Iterator[None]:
    """Wait for this writer's turn on SQLite.

    SQLite's own waiters sleep and look again, so that under load the unlucky ones wait for seconds.
    Here they queue: the threads of a process for its lock, the processes for a file beside the
    database. The operating system lets go of both when a process dies.
    """
    path = engine.engine.url.database
    if engine.dialect.name != "sqlite" or path is None:
        yield
        return
    with _writers, open(f"{path}-turn", "ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def serialize(session: Session, name: str) -> None:
    """Let only one transaction at a time pass here until it ends, across all processes.

    SQLite has one writer anyway; PostgreSQL takes an advisory lock named `name`.
    """
    if session.get_bind().dialect.name == "postgresql":
        session.connection().exec_driver_sql(
            "SELECT pg_advisory_xact_lock(hashtextextended(%s, 0))", (name,)
        )


def prepare_sqlite(engine: Engine) -> None:
    """Durable, strict SQLite whose transactions begin where SQLAlchemy says so."""

    @event.listens_for(engine, "connect")
    def connect(connection: Any, _record: object) -> None:
        connection.isolation_level = None  # the driver must not begin by itself
        for pragma in (
            "journal_mode=WAL",
            "synchronous=FULL",
            "foreign_keys=ON",
            "busy_timeout=5000",
        ):
            connection.execute(f"PRAGMA {pragma}")

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        mode = connection.get_execution_options().get("sqlite_begin", "DEFERRED")
        connection.exec_driver_sql(f"BEGIN {mode}")
