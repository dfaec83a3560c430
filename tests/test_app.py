"""How the application is put together."""

import subprocess
import sys
from pathlib import Path

import pytest

from convene_keys import create_app
from convene_keys.db.session import db
from tests.databases import environ
from tests.servers import ROOT


def test_a_new_sqlite_database_is_its_owners_alone(tmp_path: Path) -> None:
    path = tmp_path / "new" / "keys.db"
    app = create_app(environ(f"sqlite:///{path}"))
    with app.app_context():
        with db.engine.begin() as connection:
            connection.exec_driver_sql("CREATE TABLE something (id INTEGER)")
        db.engine.dispose()
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700
    assert {file.stat().st_mode & 0o077 for file in path.parent.iterdir()} == {0}


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
