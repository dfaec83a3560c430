"""A real PgBouncer in front of the tests' PostgreSQL: each transaction may get another connection."""

import os
import shutil
import subprocess
import time
from pathlib import Path
from typing import Self

import psycopg

from tests.databases import Postgres
from tests.servers import free_port

CONNECTIONS = 3  # to the server, for however many clients


class Pooler:
    def __init__(self, postgres: Postgres, name: str, folder: Path) -> None:
        self.port, self._folder, self._user = free_port(), folder, postgres.user
        self.url = f"postgresql+psycopg://postgres@127.0.0.1:{self.port}/{name}"
        (folder / "pgbouncer.ini").write_text(
            f"[databases]\n{name} = host={postgres.host} user=postgres\n"
            f"[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {self.port}\nunix_socket_dir =\n"
            f"auth_type = any\npool_mode = transaction\ndefault_pool_size = {CONNECTIONS}\n"
        )

    def __enter__(self) -> Self:
        program = shutil.which("pgbouncer", path=os.environ["PATH"] + ":/usr/sbin")
        assert program, "pgbouncer is missing"
        command = [program, "--quiet", "pgbouncer.ini"]
        if self._user:  # root it refuses to be, and the server's folder is open to its user alone
            command.append(f"--user={self._user}")
        self._process = subprocess.Popen(command, cwd=self._folder)
        end = time.monotonic() + 10
        while not self._answers():
            assert self._process.poll() is None, "pgbouncer did not start"
            assert time.monotonic() < end, "pgbouncer does not answer"
            time.sleep(0.05)
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.wait()

    def _answers(self) -> bool:
        try:
            with psycopg.connect(self.url.replace("+psycopg", "")) as connection:
                return connection.execute("SELECT 1").fetchone() == (1,)
        except psycopg.OperationalError:
            return False
