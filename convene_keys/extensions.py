"""Extensions, unbound, and the one way to a write transaction."""

import fcntl
import os
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary, finalize

from flask_login import LoginManager
from flask_sqlalchemy import SQLAlchemy
from flask_wtf import CSRFProtect
from htmx_flask import Htmx
from sqlalchemy import Connection, Engine, MetaData, event
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import DeclarativeBase, Session

from convene_keys.prepared import Direct, Prepared, known


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
def reading() -> Iterator[Direct]:
    """One moment of the database to read from, which holds nobody up.

    What is not committed in the end is undone.
    """
    engine = db.engine
    try:
        pooled: Any = engine.raw_connection()
    except engine.dialect.loaded_dbapi.Error as error:
        raise known(error, engine) from error
    connection = Direct(pooled.driver_connection, engine)
    try:
        connection.begin()
        yield connection
    except DBAPIError as error:
        if engine.dialect.is_disconnect(error.orig, pooled.driver_connection, None):  # type: ignore[arg-type]
            pooled.invalidate(error.orig)
        raise
    finally:
        pooled.close()


def direct(session: Session) -> Direct:
    """The session's connection, with all that the session changed so far, for prepared statements."""
    session.flush()
    pooled: Any = session.connection().connection
    return Direct(pooled.driver_connection, session.get_bind().engine)


Statement = tuple[Prepared, dict[str, Any]]


def write(session: Session, statements: Sequence[Statement]) -> None:
    """Write `statements` in the caller's transaction, after what it changed."""
    connection = direct(session)
    for statement, values in statements:
        connection.run(statement, [values])


class _Waiting:
    """One caller's statements; `news` can be acquired once they are written, or are to be."""

    def __init__(self, statements: Sequence[Statement]) -> None:
        self.statements, self.written, self.news = statements, False, threading.Lock()
        self.news.acquire()


class _Queue:
    """Where one process's writers to a database stand in line."""

    def __init__(self, engine: Engine) -> None:
        self.turn = threading.Lock()
        self.path = f"{engine.url.database}-turn" if engine.dialect.name == "sqlite" else None
        self.file: int | None = None
        self.waiting, self.led, self.lock = deque[_Waiting](), False, threading.Lock()


_queues: WeakKeyDictionary[Engine, _Queue] = WeakKeyDictionary()
_queues_lock = threading.Lock()
os.register_at_fork(after_in_child=_queues.clear)  # a child holds no turn of its parent's


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
    if queue.path is None:
        yield
        return
    with queue.turn, _alone(queue):
        yield


@contextmanager
def _alone(queue: "_Queue") -> Iterator[None]:
    """Wait until no other process writes to this file."""
    if queue.path is None:
        yield
        return
    if queue.file is None:
        queue.file = os.open(queue.path, os.O_RDWR | os.O_CREAT, 0o600)
        finalize(queue, os.close, queue.file)
    fcntl.flock(queue.file, fcntl.LOCK_EX)
    try:
        yield
    finally:
        fcntl.flock(queue.file, fcntl.LOCK_UN)


def write_together(connection: Direct, statements: Sequence[Statement]) -> None:
    """End a reading and write `statements`, each with its parameters; then they are on disk.

    Whoever comes while another is writing waits, and the first of those who wait then writes for
    all of them in one transaction: one commit to disk serves many calls. Where that fails, each
    writes its own, so that only the one at fault raises.
    """
    connection.rollback()
    queue, mine = _queue_of(connection.engine), _Waiting(statements)
    with queue.lock:
        queue.waiting.append(mine)
        leads, queue.led = not queue.led, True
    if not leads:
        mine.news.acquire()
        if mine.written:
            return
    try:
        with queue.turn:
            _lead(queue, connection, mine)
    finally:
        with queue.lock:
            queue.led = bool(queue.waiting)
            if queue.waiting:
                queue.waiting[0].news.release()


def _lead(queue: _Queue, connection: Direct, mine: _Waiting) -> None:
    """Write for all who wait; `mine` is the first of them."""
    with queue.lock:
        others = [queue.waiting.popleft() for _ in range(len(queue.waiting))][1:]
    try:
        _write(queue, connection, [mine, *others])
    except Exception:  # whatever it was, nobody else's place in line is lost by it
        with queue.lock:
            queue.waiting.extendleft(reversed(others))
        if not others:
            raise
        _write(queue, connection, [mine])
        return
    for waiting in others:
        waiting.written = True
        waiting.news.release()


def _write(queue: _Queue, connection: Direct, batch: Sequence[_Waiting]) -> None:
    """One transaction; each statement once, with the parameters of all that have it."""
    parameters: dict[Prepared, list[dict[str, Any]]] = {}
    for waiting in batch:
        for statement, values in waiting.statements:
            parameters.setdefault(statement, []).append(values)
    with _alone(queue):
        try:
            connection.begin("IMMEDIATE")
            for statement, values_of_all in parameters.items():
                connection.run(statement, values_of_all)
            connection.commit()
        except BaseException:
            connection.rollback()
            raise


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
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        lock = "SELECT {}(hashtextextended(%s, 0))"
        got = connection.exec_driver_sql(lock.format("pg_try_advisory_lock"), (name,)).scalar_one()
        try:
            yield got
        finally:
            if got:
                connection.exec_driver_sql(lock.format("pg_advisory_unlock"), (name,))


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
