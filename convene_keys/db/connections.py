"""Each thread's own connection, on which the calls of keys read and write.

To take one from SQLAlchemy's pool and give it back costs as much as a reading does, and on
PostgreSQL two round trips to the server.
"""

import os
import select
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from weakref import WeakKeyDictionary, WeakSet, finalize

from sqlalchemy import Engine, event
from sqlalchemy.engine.interfaces import DBAPIConnection

from convene_keys.db.statements import RawConnection, Statement, translated


class OwnConnection(RawConnection, ABC):
    """A connection that belongs to one thread, which reads on it, then may write."""

    def __init__(self, driver: DBAPIConnection, engine: Engine) -> None:
        super().__init__(driver, engine)
        self.close = finalize(self, _close, driver, os.getpid())

    @abstractmethod
    def is_ready(self) -> bool:
        """Whether a reading can begin: it is there, and nothing that was begun is left open."""

    @abstractmethod
    def begin(self) -> None:
        """Begin to read."""

    @abstractmethod
    def end(self) -> None:
        """End what was begun, and undo what was not committed."""

    @abstractmethod
    def write(self, statements: Sequence[Statement]) -> None:
        """All of them in one transaction, or none."""


class SQLiteConnection(OwnConnection):
    """Each reading sees one moment of the database, and holds nobody up."""

    def __init__(self, driver: DBAPIConnection, engine: Engine) -> None:
        super().__init__(driver, engine)
        self._execute("PRAGMA synchronous=NORMAL")  # a commit is not on disk before `flush`
        self._wal: int | None = None

    def is_ready(self) -> bool:
        return not self.driver.in_transaction

    def begin(self) -> None:
        self._execute("BEGIN")

    def end(self) -> None:
        if self.driver.in_transaction:
            self._execute("ROLLBACK")

    def write(self, statements: Sequence[Statement]) -> None:
        if len(statements) == 1:  # a transaction by itself
            self.run(*statements[0])
            return
        self._execute("BEGIN IMMEDIATE")
        try:
            for statement in statements:
                self.run(*statement)
            self._execute("COMMIT")
        except BaseException:
            self.end()
            raise

    def flush(self) -> None:
        """Have the disk take all that was committed so far, by whichever connection.

        The WAL is the same file for as long as this connection is open.
        """
        if self._wal is None:
            self._wal = os.open(f"{self.engine.url.database}-wal", os.O_RDONLY)
            finalize(self, os.close, self._wal)
        try:
            os.fdatasync(self._wal)
        except OSError as error:
            # The disk may never be asked again for what it failed at: do without the WAL.
            ((busy, _, _),) = self.driver.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
            if busy:
                failed = self.dialect.loaded_dbapi.OperationalError(str(error))
                raise translated(failed, self.engine) from error

    def _execute(self, sql: str) -> None:
        try:
            self.driver.execute(sql)
        except self.errors as error:
            raise translated(error, self.engine) from error


class PostgreSQLConnection(OwnConnection):
    """Each statement sees what is committed by then, which takes no transaction around them."""

    def __init__(self, driver: DBAPIConnection, engine: Engine) -> None:
        from psycopg.pq import TransactionStatus  # only now: SQLite does without it

        super().__init__(driver, engine)
        self.driver.autocommit = True
        self._idle = TransactionStatus.IDLE
        self._socket = select.poll()
        self._socket.register(self.driver.fileno(), select.POLLIN)

    def is_ready(self) -> bool:
        """Without asking: a server speaks up by itself only to say goodbye, or hangs up."""
        idle = self.driver.pgconn.transaction_status == self._idle  # nor is one that is closed
        return idle and not self._socket.poll(0)

    def begin(self) -> None:
        """Nothing to do: there is no transaction."""

    def end(self) -> None:
        """Nothing to do: what was written is committed."""

    def write(self, statements: Sequence[Statement]) -> None:
        """One round trip, with the beginning and the end of a transaction only where it needs one."""
        if len(statements) == 1:
            self.run(*statements[0])
            return
        try:
            with self.driver.pipeline(), self.driver.transaction():
                for statement in statements:
                    self.run(*statement)
        except self.errors as error:
            raise translated(error, self.engine) from error


class _Connections:
    """Those of one engine."""

    def __init__(self) -> None:
        self.of_thread = threading.local()
        self.all: WeakSet[OwnConnection] = WeakSet()


_KINDS = {"sqlite": SQLiteConnection, "postgresql": PostgreSQLConnection}
_connections: WeakKeyDictionary[Engine, _Connections] = WeakKeyDictionary()
os.register_at_fork(after_in_child=_connections.clear)  # a child has none of its parent's


@event.listens_for(Engine, "engine_disposed")
def _disposed(engine: Engine) -> None:
    """Close them now, not once nobody knows them any more: then SQLite's file is whole by itself."""
    if there := _connections.pop(engine, None):
        for connection in list(there.all):
            connection.close()


def _close(driver: DBAPIConnection, process: int) -> None:
    if os.getpid() == process:  # a parent's connection is the parent's to close
        driver.close()


@contextmanager
def reading(engine: Engine) -> Iterator[OwnConnection]:
    """The thread's connection, to read from, and then to write what the reading led to."""
    connection = _own_connection(engine)
    connection.begin()
    try:
        yield connection
    finally:
        connection.end()


def _own_connection(engine: Engine) -> OwnConnection:
    there = _connections.get(engine) or _connections.setdefault(engine, _Connections())
    connection: OwnConnection | None = getattr(there.of_thread, "connection", None)
    if connection is None or not connection.is_ready():
        try:
            pooled = engine.raw_connection()
        except engine.dialect.loaded_dbapi.Error as error:
            raise translated(error, engine) from error
        driver = pooled.driver_connection
        assert driver is not None  # noqa: S101  the pool opened it
        pooled.detach()
        connection = there.of_thread.connection = _KINDS[engine.dialect.name](driver, engine)
        there.all.add(connection)
    return connection
