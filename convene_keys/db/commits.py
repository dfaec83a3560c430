"""Writers in line on SQLite, and writes to disk that several of them share."""

import fcntl
import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from weakref import WeakKeyDictionary, finalize

from sqlalchemy import Engine

from convene_keys.db.connections import OwnConnection, SQLiteConnection
from convene_keys.db.statements import Statement


class WriteQueue:
    """Where one process's writers to a database stand in line, and how much of it is on disk."""

    def __init__(self, engine: Engine) -> None:
        self.turn = threading.Lock()
        self.path = f"{engine.url.database}-turn" if engine.dialect.name == "sqlite" else None
        self.file: int | None = None
        self.disk, self.committed, self.on_disk = threading.Lock(), 0, 0


_queues: WeakKeyDictionary[Engine, WriteQueue] = WeakKeyDictionary()
_queues_lock = threading.Lock()
os.register_at_fork(after_in_child=_queues.clear)  # a child holds no turn of its parent's


def queue_of(engine: Engine) -> WriteQueue:
    with _queues_lock:
        if engine not in _queues:
            _queues[engine] = WriteQueue(engine)
        return _queues[engine]


@contextmanager
def turn_of(engine: Engine) -> Iterator[None]:
    """Wait for this writer's turn on SQLite; PostgreSQL needs none.

    SQLite's own waiters sleep and look again, so that under load the unlucky ones wait for seconds.
    Here they queue: the threads of a process for its lock, the processes for a file beside the
    database. The operating system lets go of both when a process dies.
    """
    queue = queue_of(engine)
    if queue.path is None:
        yield
        return
    with queue.turn, alone_in_file(queue):
        yield


@contextmanager
def alone_in_file(queue: WriteQueue) -> Iterator[None]:
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


def write_durably(connection: OwnConnection, statements: Sequence[Statement]) -> None:
    """End a reading and write `statements`, all or none; then they are on disk.

    On SQLite a commit only hands them to the operating system. Whoever is then first has the disk
    take all that was committed by then, while others commit: so a disk that is slow serves many at
    a time. In the moment between, others may see what a loss of power would undo, and what was
    answered is never undone. PostgreSQL does the same by itself.
    """
    connection.end()
    if not isinstance(connection, SQLiteConnection):
        connection.write(statements)
        return
    queue = queue_of(connection.engine)
    with turn_of(connection.engine):
        connection.write(statements)
        queue.committed = mine = queue.committed + 1
    with queue.disk:
        if queue.on_disk < mine:
            committed = queue.committed
            connection.flush()
            queue.on_disk = committed
