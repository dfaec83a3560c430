"""How the application is put together."""

from pathlib import Path

from convene_keys import create_app
from convene_keys.extensions import db
from tests.databases import environ


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
