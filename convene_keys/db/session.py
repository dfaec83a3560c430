"""The one way to a session and to its transaction."""

import fcntl
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import ClassVar

from flask_sqlalchemy import SQLAlchemy
from sqlalchemy import Connection, Engine, Index, MetaData, UniqueConstraint, event
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import DeclarativeBase, Session, declared_attr

from convene_keys.db.commits import turn_of
from convene_keys.db.statements import RawConnection, Statement
from convene_keys.db.types import UTCDateTime


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
    type_annotation_map: ClassVar[dict[object, object]] = {datetime: UTCDateTime}

    @declared_attr.directive
    def __tablename__(cls) -> str:
        """`api_key` for `ApiKey`."""
        return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", cls.__name__).lower()


# Parameters stay out of SQLAlchemy's messages: they may be personal data or digests.
db = SQLAlchemy(metadata=Base.metadata, engine_options={"hide_parameters": True})


@contextmanager
def transaction(engine: Engine | None = None) -> Iterator[Session]:
    """One write transaction: commits at the end, rolls back when anything is raised.

    In the session of Flask's context, or in one of its own on an `engine`. SQLite takes its write
    lock at the start, since a read that turns into a write fails at once with "database is locked".
    What was read before is dropped, so that all a change is based on is read inside it.
    """
    if engine is not None:
        with Session(engine) as session, _writing(session):
            yield session
        return
    session = db.session()
    session.rollback()
    session.expire_all()
    with _writing(session):
        yield session


@contextmanager
def _writing(session: Session) -> Iterator[None]:
    with turn_of(session.get_bind().engine):
        session.connection(execution_options={"sqlite_begin": "IMMEDIATE"})
        try:
            yield
            session.commit()
        except BaseException:
            session.rollback()
            raise


def raw_connection(session: Session) -> RawConnection:
    """The session's connection, with all that the session changed so far, for prepared statements."""
    session.flush()
    pooled = session.connection().connection
    return RawConnection(pooled.driver_connection, session.get_bind().engine)


def write(session: Session, statements: Sequence[Statement]) -> None:
    """Write `statements` in the caller's transaction, after what it changed."""
    connection = raw_connection(session)
    for statement, values in statements:
        connection.run(statement, values)


def is_duplicate(error: IntegrityError, unique: Index | UniqueConstraint) -> bool:
    """Whether it was this index or constraint that refused a write."""
    if told := getattr(error.orig, "diag", None):
        return bool(told.constraint_name == unique.name)
    columns = ", ".join(f"{column.table.name}.{column.name}" for column in unique.columns)
    return str(error.orig) == f"UNIQUE constraint failed: {columns}"  # how SQLite names it


def serialize(session: Session, name: str) -> None:
    """Let only one transaction at a time pass here until it ends, across all processes.

    SQLite has one writer anyway; PostgreSQL takes an advisory lock named `name`.
    """
    if session.get_bind().dialect.name == "postgresql":
        session.connection().exec_driver_sql(
            "SELECT pg_advisory_xact_lock(hashtextextended(%s, 0))", (name,)
        )


@contextmanager
def alone(name: str) -> Iterator[bool]:
    """Whether nobody else is within under this `name`, in any process. Nobody waits.

    The database, or with SQLite the operating system, lets go of it when a process dies.
    """
    engine = db.engine
    if engine.dialect.name == "sqlite":
        with open(f"{engine.url.database}-{name}", "a") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
            else:
                yield True
        return
    with engine.connect() as connection:  # until its transaction ends: a pooler may sit in between
        lock = "SELECT pg_try_advisory_xact_lock(hashtextextended(%s, 0))"
        yield connection.exec_driver_sql(lock, (name,)).scalar_one()


@event.listens_for(Engine, "do_connect")
def _connect(_dialect: object, _record: object, _given: object, options: dict[str, object]) -> None:
    """A pooler gives each transaction another connection, on which nothing has been prepared."""
    if options.get("prepare_threshold") == "none":
        options["prepare_threshold"] = None


def prepare_sqlite(engine: Engine) -> None:
    """Durable, strict SQLite whose transactions begin where SQLAlchemy says so, if it is SQLite.

    The file is made when it is not there yet, for its owner alone.
    """
    if engine.dialect.name != "sqlite":
        return
    path = Path(engine.url.database or "")
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    path.touch(mode=0o600)  # what SQLite puts beside it is no more open than this

    @event.listens_for(engine, "connect")
    def connect(connection: DBAPIConnection, _record: object) -> None:
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
