"""Fill an installation with what a busy organization has after years, in a minute or two.

The database makes it all itself, in one transaction, and none of its guards against changes is taken
away. The macs of these events vouch for nothing, which no page looks at but in the newest seal.
"""

import time
from collections.abc import Mapping

from sqlalchemy import create_engine, text

# Key 1 did a quarter of all that happened, 99 others the rest in turn. One event every 3 seconds.
EVERY = 3
EVENTS = """
INSERT INTO audit_event (at, organization_id, actor, key_id, key_name, action, target_type,
    target_id, target_name, outcome, ip, user_agent, request_id, detail, mac)
WITH RECURSIVE
    n(i) AS (SELECT CAST(1 AS bigint) UNION ALL SELECT i + 1 FROM n WHERE i < :last),
    k(i, key) AS (SELECT i, CASE WHEN i % 4 = 0 THEN 1 ELSE 2 + i % 99 END FROM n)
SELECT {moment}, 1, 'key', key, 'Stall ' || key,
    CASE WHEN i % 10 = 0 THEN 'booking.approved' ELSE 'booking.listed' END,
    CASE WHEN i % 10 = 0 THEN 'booking' END, CASE WHEN i % 10 = 0 THEN '' || i % 500 END,
    CASE WHEN i % 10 = 0 THEN 'booking ' || i % 500 END,
    CASE WHEN i % 1000 = 0 THEN 'failed' WHEN i % 100 = 0 THEN 'denied' ELSE 'ok' END,
    '203.0.113.' || key, 'Claude/1.0', {request_id}, '{{"count": 10}}', {bytes}
FROM k"""
# One in twenty is revoked, one in ten was never used.
KEYS = """
INSERT INTO api_key (organization_id, name, name_folded, tool, scope, digest, hint, pepper_id,
    created_at, created_by_id, revoked_at, released_at, revoked_by_name, last_used_at, last_used_ip,
    last_used_user_agent, refused_count, refused_recorded_count)
WITH RECURSIVE n(i) AS (SELECT CAST(:first AS bigint) UNION ALL SELECT i + 1 FROM n WHERE i < :last)
SELECT 1, 'Stall ' || i, 'stall ' || i, 'claude', 'read_write', {bytes}, 'fm_org_Ab12', 'bench',
    {moment}, 1, CASE WHEN i % 20 = 0 THEN {moment} END, CASE WHEN i % 20 = 0 THEN {moment} END,
    CASE WHEN i % 20 = 0 THEN 'Maya' END, CASE WHEN i % 10 > 0 THEN {moment} END,
    '203.0.113.' || i % 250, 'Claude/1.0', 0, 0
FROM n"""
DIALECTS = {
    "sqlite": {
        "moment": "strftime('%Y-%m-%d %H:%M:%f000', {seconds}, 'unixepoch')",
        "request_id": "printf('%016x', i * 7919)",
        "bytes": "randomblob(32)",
    },
    "postgresql": {
        "moment": "to_timestamp({seconds})",
        "request_id": "lpad(to_hex(i * 7919), 16, '0')",
        "bytes": "decode(md5(random()::text) || md5(i::text), 'hex')",
    },
}


def events(database_url: str, count: int) -> None:
    """`count` events, of keys 1 to 100, the newest an hour old. Nobody else may use it meanwhile."""
    # A benchmark's file need not survive a loss of power; PostgreSQL need not look up each key.
    quick = {
        "sqlite": ("journal_mode=OFF", "synchronous=OFF", "cache_size=-500000"),
        "postgresql": ("session_replication_role = replica",),
    }
    _fill(database_url, "audit_event", EVENTS, {"last": count}, quick)


def keys(database_url: str, first: int, last: int) -> None:
    """Keys whose ids are `first` to `last`, if `first` is the next id."""
    _fill(database_url, "api_key", KEYS, {"first": first, "last": last}, {})


def _fill(
    database_url: str,
    table: str,
    insert: str,
    values: dict[str, int],
    settings: Mapping[str, tuple[str, ...]],
) -> None:
    engine = create_engine(database_url)
    sqlite = engine.dialect.name == "sqlite"
    newest = int(time.time()) - 3_600
    dialect = dict(DIALECTS[engine.dialect.name])
    dialect["moment"] = dialect["moment"].format(seconds=f"{newest} - (:last - i) * {EVERY}")
    with engine.connect() as connection:
        for setting in settings.get(engine.dialect.name, ()):
            connection.exec_driver_sql(f"{'PRAGMA' if sqlite else 'SET LOCAL'} {setting}")
        statement = insert.format(**dialect).replace(
            '": 10', '"\\: 10'
        )  # no parameter of that name
        connection.execute(text(statement), values)
        connection.commit()
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        # What the product sets itself, and what autovacuum would have done by now.
        after = "PRAGMA journal_mode=WAL" if sqlite else f"VACUUM (ANALYZE) {table}"
        connection.exec_driver_sql(after)
    engine.dispose()
