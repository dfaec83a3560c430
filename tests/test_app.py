"""How the application is put together."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.databases import environ
from tests.servers import ROOT


@pytest.mark.slow
def test_a_server_loads_neither_commands_nor_migrations(tmp_path: Path) -> None:
    code = (
        "import sys, wsgi; print(sorted({'alembic', 'zxcvbn_rs_py', 'psycopg'} & set(sys.modules)))"
    )
    loaded = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=environ(f"sqlite:///{tmp_path}/keys.db"),
        capture_output=True,
        text=True,
        check=True,
    )
    assert loaded.stdout.strip() == "[]"
