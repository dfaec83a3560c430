"""Extensions, unbound, and the one way to a write transaction."""

import fcntl
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

from flask_login import LoginManager
from flask_sqlalchemy import SQLAlchemy
from flask_wtf import CSRFProtect
from htmx_flask import Htmx
from sqlalchemy import Connection, Engine, Executable, MetaData, event
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
db = SQLAlchemy(metadata=Base.metadata, engine_options={"hide_parameters": True})
login = LoginManager()
csrf = CSRFProtect()
htmx = Htmx()


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
    with _turn_of(session.get_bind().engine):
        session.connection(execution_options={"sqlite_begin": "IMMEDIATE"})
        try:
            yield session
            session.commit()
        except BaseException:
            session.rollback()
            raise


@contextmanager
def reading() -> Iterator[Session]:
    """One moment of the database to read from; it holds nobody up and writes nothing."""
    session: Session = db.session()
    session.rollback()
    try:
        yield session
    finally:
        session.rollback()


Statement = tuple[Executable, dict[str, Any]]


def write(session: Session, statements: Sequence[Statement]) -> None:
    """Write `statements` in the caller's transaction, after what it changed."""
    session.flush()
    for statement, values in statements:
        session.connection().execute(statement, values)


@dataclass(eq=False)
class _Waiting:
    statements: Sequence[Statement]
    written: bool = False


class _Queue:
    """Where one process's writers to a database stand in line."""

    def __init__(self, engine: Engine) -> None:
        self.turn, self.waiting = threading.Lock(), deque[_Waiting]()
        self.file = f"{engine.url.database}-turn" if engine.dialect.name == "sqlite" else None


_queues: WeakKeyDictionary[Engine, _Queue] = WeakKeyDictionary()
_queues_lock = threading.Lock()


def _queue_of(engine: Engine) -> _Queue:
    with _queues_lock:
        if engine not in _queues:
            _queues[engine] = _Queue(engine)
        return _queues[engine]


@contextmanager
def _turn_of(engine: Engine) -> Iterator[None]:
    """Wait for this writer's turn on SQLite; PostgreSQL needs none.

    SQLite's own waiters sleep and look again, so that under load the unlucky ones wait for seconds.
    Here they queue: the threads of a process for its lock, the processes for a file beside the
    database. The operating system lets go of both when a process dies.
    """
    queue = _queue_of(engine)
    if queue.file is None:
        yield
        return
    with queue.turn, _alone(queue.file):
        yield


@contextmanager
def _alone(path: str) -> Iterator[None]:
    with open(path, "ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def write_together(engine: Engine, statements: Sequence[Statement]) -> None:
    """Write `statements`, each with its parameters; when this returns they are on disk.

    Whoever comes while another is writing waits, and the first of those who wait then writes for
    all of them in one transaction: one commit to disk serves many calls. Where that fails, each
    writes its own, so that only the one at fault raises.
    """
    queue, mine = _queue_of(engine), _Waiting(statements)
    queue.waiting.append(mine)
    with queue.turn:
        if mine.written:
            return
        others = [queue.waiting.popleft() for _ in range(len(queue.waiting))]
        others.remove(mine)
        try:
            _write(queue, engine, [mine, *others])
        except Exception:  # whatever it was, nobody else's place in line is lost by it
            queue.waiting.extendleft(reversed(others))
            if not others:
                raise
            _write(queue, engine, [mine])


def _write(queue: _Queue, engine: Engine, batch: Sequence[_Waiting]) -> None:
    """One transaction; each statement once, with the parameters of all that have it."""
    parameters: dict[Executable, list[dict[str, Any]]] = {}
    for waiting in batch:
        for statement, values in waiting.statements:
            parameters.setdefault(statement, []).append(values)
    with (
        _alone(queue.file) if queue.file else nullcontext(),
        engine.connect().execution_options(sqlite_begin="IMMEDIATE") as connection,
    ):
        for statement, values_of_all in parameters.items():
            connection.execute(statement, values_of_all)
        connection.commit()
    for waiting in batch:
        waiting.written = True


def serialize(session: Session, name: str) -> None:
    """Let only one transaction at a time pass here until it ends, across all processes.

    SQLite has one writer anyway; PostgreSQL takes an advisory lock named `name`.
    """
    if session.get_bind().dialect.name == "postgresql":
        session.connection().exec_driver_sql(
            "SELECT pg_advisory_xact_lock(hashtextextended(%s, 0))", (name,)
        )


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
