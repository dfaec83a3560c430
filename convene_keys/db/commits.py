"""Writers in line on SQLite, and commits that several calls share."""

import fcntl
import os
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from weakref import WeakKeyDictionary, finalize

from sqlalchemy import Engine

from convene_keys.db.connections import OwnConnection
from convene_keys.db.statements import CompiledStatement, Values

Statement = tuple[CompiledStatement, Values]


class _Waiting:
    """One caller's statements; `news` can be acquired once they are written, or are to be."""

    def __init__(self, statements: Sequence[Statement]) -> None:
        self.statements, self.written, self.news = statements, False, threading.Lock()
        self.news.acquire()


class WriteQueue:
    """Where one process's writers to a database stand in line."""

    def __init__(self, engine: Engine) -> None:
        self.turn = threading.Lock()
        self.path = f"{engine.url.database}-turn" if engine.dialect.name == "sqlite" else None
        self.file: int | None = None
        self.waiting, self.led, self.lock = deque[_Waiting](), False, threading.Lock()


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


def write_together(connection: OwnConnection, statements: Sequence[Statement]) -> None:
    """End a reading and write `statements`, each with its parameters; then they are on disk.

    Whoever comes while another is writing waits, and the first of those who wait then writes for
    all of them in one transaction: one commit to disk serves many calls. Where that fails, each
    writes its own, so that only the one at fault raises.
    """
    connection.end()
    queue, mine = queue_of(connection.engine), _Waiting(statements)
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


def _lead(queue: WriteQueue, connection: OwnConnection, mine: _Waiting) -> None:
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


def _write(queue: WriteQueue, connection: OwnConnection, batch: Sequence[_Waiting]) -> None:
    """One transaction; each statement once, with the parameters of all that have it."""
    parameters: dict[CompiledStatement, list[Values]] = {}
    for waiting in batch:
        for statement, values in waiting.statements:
            parameters.setdefault(statement, []).append(values)
    with alone_in_file(queue):
        connection.write(parameters)
