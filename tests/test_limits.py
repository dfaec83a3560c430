"""How often a key may call and an address may fail, counted here or in a real Redis (contract §6)."""

import logging
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from redis import Redis as StrictRedis
from sqlalchemy import event, select, update

from convene_keys import clock, config, create_app, limits
from convene_keys.config import Rate
from convene_keys.db.session import db, transaction
from convene_keys.keys import queries as key_queries
from convene_keys.keys import tokens
from convene_keys.limits import FAILURES, Limits, Shared
from convene_keys.models import ApiKey, AuditEvent, Booking, Organization
from tests import factories
from tests.conftest import Browser, Clock, new_browser, wait_for
from tests.databases import PEPPER, environ
from tests.redises import Redis
from tests.servers import Server, Visitor

ROOT = "/api/v1/admin"
LIMIT = 5
Call = Callable[..., Any]


@pytest.fixture
def app(database_url: str, fake_clock: Clock) -> Iterator[Flask]:
    """An application whose keys may call five times a minute; it is noon sharp."""
    yield from _app(environ(database_url, KEY_RATE_LIMIT=f"{LIMIT}/minute"))


def _app(settings: dict[str, str]) -> Iterator[Flask]:
    app = create_app(settings)
    app.config["PROPAGATE_EXCEPTIONS"] = False
    with app.app_context():
        yield app
        db.session.remove()
        assert db.engine.pool.checkedout() == 0, "a request kept its connection"
        db.engine.dispose()


@pytest.fixture
def organization(app: Flask) -> Organization:
    organization = factories.organization()
    factories.market_data(organization)
    return organization


@pytest.fixture
def key(organization: Organization) -> tuple[ApiKey, str]:
    return factories.api_key(organization, creator=factories.member(organization))


def _caller(app: Flask, ip: str = "203.0.113.7") -> Call:
    browser = new_browser(app)

    def call(secret: str | None, path: str = "/me", method: str = "GET", **more: Any) -> Any:
        headers = {} if secret is None else {"Authorization": f"Bearer {secret}"}
        headers |= more.pop("headers", {})
        address = {"REMOTE_ADDR": more.pop("ip", ip)}
        return browser.open(
            ROOT + path, method=method, headers=headers, environ_base=address, **more
        )

    return call


@pytest.fixture
def call(client: Browser, app: Flask) -> Call:
    return _caller(app)


def _limited() -> list[AuditEvent]:
    db.session.rollback()
    chosen = select(AuditEvent).where(AuditEvent.action == "key.limited").order_by(AuditEvent.id)
    return list(db.session.scalars(chosen))


def _standing(answer: Any) -> tuple[str, str, str | None]:
    headers = answer.headers
    return headers["RateLimit-Policy"], headers["RateLimit"], headers.get("Retry-After")


# Calls of a key -----------------------------------------------------------------------------------


def test_every_answer_tells_where_the_key_stands(
    call: Call, key: tuple[ApiKey, str], fake_clock: Clock
) -> None:
    fake_clock.advance(seconds=17.5)
    for left, (path, method, status) in enumerate(
        [
            ("/me", "GET", 200),
            ("/bookings/99", "GET", 404),
            ("/billing", "GET", 403),
            ("/me", "DELETE", 405),
            ("/bookings?limit=0", "GET", 422),
        ]
    ):
        answer = call(key[1], path, method)
        assert answer.status_code == status
        assert _standing(answer) == ('"key";q=5;w=60', f'"key";r={LIMIT - 1 - left};t=43', None)
    answer = call(key[1])
    assert answer.status_code == 429
    assert _standing(answer) == ('"key";q=5;w=60', '"key";r=0;t=43', "43")


def test_call_past_the_limit_is_a_problem_document_until_the_window_ends(
    call: Call, key: tuple[ApiKey, str], fake_clock: Clock
) -> None:
    assert {call(key[1]).status_code for _ in range(LIMIT)} == {200}
    answer = call(key[1])
    assert (answer.status_code, answer.mimetype) == (429, "application/problem+json")
    assert answer.json["code"] == "rate_limited"
    assert "5 times in 60 seconds" in answer.json["detail"]
    fake_clock.advance(seconds=int(answer.headers["Retry-After"]) - 0.1)
    assert call(key[1]).status_code == 429
    fake_clock.advance(seconds=0.1)
    assert _standing(call(key[1])) == ('"key";q=5;w=60', '"key";r=4;t=60', None)


def test_limit_is_not_passed_by_another_path_header_or_address(
    call: Call, client: Browser, key: tuple[ApiKey, str]
) -> None:
    secret = key[1]
    for _ in range(LIMIT):
        assert call(secret).status_code == 200
    for path, method in (
        ("/me", "HEAD"),
        ("/bookings?limit=3", "GET"),
        ("/bookings/1/approve", "POST"),
        ("/billing", "GET"),
        ("/nothing", "PUT"),
    ):
        assert call(secret, path, method).status_code == 429, path
    assert client.get(f"{ROOT}/me", headers={"X-API-Key": secret}).status_code == 429
    assert client.get("/admin/api_keys", headers={"X-API-Key": secret}).status_code == 429
    for headers in (
        {"Authorization": f"bearer  {secret} "},
        {"X-Forwarded-For": "198.51.100.1"},
        {"User-Agent": "another"},
        {"X-Request-Id": "1"},
    ):
        assert call(secret, headers=headers).status_code == 429, headers
    assert call(secret, ip="198.51.100.9").status_code == 429


def test_limit_is_the_keys_whatever_its_name_or_digest(
    call: Call, key: tuple[ApiKey, str], organization: Organization
) -> None:
    row, secret = key
    for _ in range(LIMIT):
        assert call(secret).status_code == 200
    _, other = factories.api_key(organization, "Another", creator=factories.member(organization))
    assert _standing(call(other))[1] == '"key";r=4;t=60', "a key of its own"
    replacement = tokens.mint()
    db.session.execute(
        update(ApiKey)
        .where(ApiKey.id == row.id)
        .values(name="Renamed", digest=tokens.digest(replacement, PEPPER))
    )
    db.session.commit()
    assert call(replacement).status_code == 429


def test_call_past_the_limit_changes_nothing(
    call: Call, key: tuple[ApiKey, str], organization: Organization, fake_clock: Clock
) -> None:
    for _ in range(LIMIT):
        call(key[1])
    used, events = db.session.get_one(ApiKey, key[0].id).last_used_at, len(_all_events())
    fake_clock.advance(seconds=5)
    assert call(key[1], "/bookings/1/approve", "POST").status_code == 429
    assert db.session.get_one(Booking, (organization.id, 1)).status == "pending"
    assert db.session.get_one(ApiKey, key[0].id).last_used_at == used
    assert len(_all_events()) == events + 1


def _all_events() -> list[AuditEvent]:
    db.session.rollback()
    return list(db.session.scalars(select(AuditEvent)))


def test_refusals_are_recorded_once_a_minute_a_key_with_their_number(
    call: Call, key: tuple[ApiKey, str], organization: Organization, fake_clock: Clock
) -> None:
    row, secret = key
    for _ in range(LIMIT + 4):
        call(secret)
    [first] = _limited()
    assert (first.key_id, first.key_name, first.outcome) == (row.id, row.name, "denied")
    assert (first.target_type, first.target_id) == ("key", str(row.id))
    assert (first.ip, first.detail) == ("203.0.113.7", {"count": 1})
    fake_clock.advance(seconds=59)
    call(secret)
    fake_clock.advance(seconds=1)  # a new window, in which the key has to call too often again
    for _ in range(LIMIT + 3):
        call(secret)
    assert [each.detail["count"] for each in _limited()] == [1, 4 + 1]
    fake_clock.advance(seconds=60)
    for _ in range(LIMIT + 1):
        call(secret)
    assert [each.detail["count"] for each in _limited()] == [1, 5, 3]
    _, other = factories.api_key(organization, "Another", creator=factories.member(organization))
    for _ in range(LIMIT + 2):
        call(other)
    assert [each.key_name for each in _limited()][3:] == ["Another"]


def test_refusals_at_the_same_moment_make_one_event(
    app: Flask, key: tuple[ApiKey, str], fake_clock: Clock
) -> None:
    secret = key[1]
    for _ in range(LIMIT):
        limits.current().count_call(key[0].id, secret)

    def refused(_: int) -> int:
        with app.app_context():
            status: int = _caller(app)(secret).status_code
        return status

    new_browser(app)
    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(refused, range(24))) == {429}
    assert len(_limited()) == 1
    fake_clock.advance(seconds=60)
    for _ in range(LIMIT + 1):
        _caller(app)(secret)
    assert sum(event.detail["count"] for event in _limited()) == 24 + 1


def test_key_that_runs_wild_waits_for_no_writer_and_holds_none_up(
    app: Flask, key: tuple[ApiKey, str]
) -> None:
    secret = key[1]
    for _ in range(LIMIT + 1):
        _caller(app)(secret)

    def refused() -> int:
        with app.app_context():
            status: int = _caller(app)(secret).status_code
        return status

    with ThreadPoolExecutor(1) as pool, transaction():
        assert pool.submit(refused).result(timeout=5) == 429


@pytest.mark.slow
def test_two_processes_without_redis_record_one_event_a_minute(
    call: Call, key: tuple[ApiKey, str], app: Flask, database_url: str
) -> None:
    for _ in range(LIMIT + 2):
        call(key[1])
    other = create_app(environ(database_url, KEY_RATE_LIMIT=f"{LIMIT}/minute"))
    with other.app_context():
        elsewhere = _caller(other)
        answers = [elsewhere(key[1]).status_code for _ in range(LIMIT + 2)]
        db.engine.dispose()
    assert answers == [200] * LIMIT + [429] * 2, "each process counts for itself"
    assert len(_limited()) == 1


def test_key_that_no_longer_works_is_told_so_past_its_limit_and_then_limited_with_its_network(
    call: Call, key: tuple[ApiKey, str], statements: list[str]
) -> None:
    for _ in range(LIMIT + 1):
        call(key[1])
    _end_all()
    for _ in range(FAILURES.calls):
        answer = call(key[1])
        assert (answer.status_code, answer.json["code"]) == (401, "key_revoked")
        assert "RateLimit" not in answer.headers
    statements.clear()
    for method in ("GET", "POST"):
        assert call(key[1], method=method).status_code == 429
    assert statements == [], "though it worked before"


def _end_all() -> None:
    db.session.execute(update(ApiKey).values(revoked_at=clock.now(), released_at=clock.now()))
    db.session.commit()


def _tries(row: ApiKey) -> tuple[int, datetime | None, list[Any]]:
    """How often a key was refused and when last, and how often by each event."""
    events = [each.detail["count"] for each in _all_events() if each.action == "key.refused"]
    fresh = db.session.get_one(ApiKey, row.id)
    return fresh.refused_count, fresh.refused_at, events


def test_key_that_no_longer_works_costs_one_write_a_minute_and_is_counted(
    call: Call, key: tuple[ApiKey, str], statements: list[str], fake_clock: Clock
) -> None:
    _end_all()
    statements.clear()
    noon = fake_clock.moment
    for _ in range(5):
        call(key[1])
    writes = [each for each in statements if "SET refused_count" in each]
    assert len(writes) == 1
    assert _tries(key[0]) == (1, noon, [1]), "the first shows at once"
    limits.write()
    assert _tries(key[0]) == (1, noon, [1])
    fake_clock.advance(seconds=60)
    limits.write()
    assert _tries(key[0]) == (5, noon, [1, 4])
    call(key[1])
    assert _tries(key[0]) == (5, noon, [1, 4])
    fake_clock.advance(seconds=60)
    call(key[1])
    assert _tries(key[0]) == (7, fake_clock.moment, [1, 4, 2])
    fake_clock.advance(seconds=60)
    limits.write()
    assert limits.current()._tries == {}


def test_tries_at_the_same_moment_are_written_once_and_all_counted(
    app: Flask, key: tuple[ApiKey, str], fake_clock: Clock
) -> None:
    _end_all()
    new_browser(app)

    def refused(_: int) -> int:
        with app.app_context():
            status: int = _caller(app)(key[1]).status_code
        return status

    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(refused, range(24))) == {401}
    assert _tries(key[0])[0] < 24
    limits.write(all_of_them=True)
    assert _tries(key[0])[0] == 24


@pytest.mark.on_sqlite
@pytest.mark.slow
def test_tries_are_written_when_a_worker_stops(
    key: tuple[ApiKey, str], database_url: str, tmp_path: Path
) -> None:
    _end_all()
    headers = {"Authorization": f"Bearer {key[1]}"}
    with Server(database_url, tmp_path / "server.log", workers=1) as server:
        for _ in range(6):
            assert server.send("GET", f"{ROOT}/me", headers) == 401
        assert _tries(key[0])[0] == 1
    assert _tries(key[0])[0] == 6


def test_pages_and_strangers_have_no_standing(client: Browser, call: Call) -> None:
    assert "RateLimit" not in client.get("/login").headers
    assert "RateLimit" not in call(None).headers


def test_threads_of_a_process_count_exactly(fake_clock: Clock) -> None:
    class Slow(dict[str, int]):
        """Lets another thread in between reading and writing."""

        def get(self, *given: Any) -> Any:
            found = super().get(*given)
            time.sleep(0.001)
            return found

    counts = limits.Window("test", Rate(1, 60), None)
    counts.count("1")
    counts.counts = Slow(counts.counts)
    with ThreadPoolExecutor(8) as pool:
        seen = list(pool.map(lambda _: counts.count("1").count, range(80)))
    assert sorted(seen) == list(range(2, 82))


def test_counts_of_the_last_window_are_dropped(app: Flask, fake_clock: Clock) -> None:
    counts = limits.current().calls
    for number in range(100):
        counts.count(str(number))
    assert len(counts.counts) == 100
    fake_clock.advance(seconds=60)
    counts.count("0")
    assert counts.counts == {"0": 1}


def test_window_begins_with_the_clocks_own(fake_clock: Clock) -> None:
    fake_clock.moment = datetime(2026, 11, 24, 23, 59, 59, 999_999, tzinfo=UTC)
    for seconds in (1, 60, 3_600, 86_400):
        counts = limits.Window("test", Rate(1, seconds), None)
        assert counts.count("1").left == 1
    fake_clock.moment += timedelta(microseconds=1)
    assert counts.count("1") == limits.Standing(Rate(1, 86_400), 1, 86_400)


# Calls without a key that works -------------------------------------------------------------------


@pytest.fixture
def statements(app: Flask) -> list[str]:
    """Whatever the database is asked from now on."""
    seen: list[str] = []
    event.listen(db.engine, "before_cursor_execute", lambda *given: seen.append(given[2]))
    event.listen(db.engine, "checkout", lambda *_: seen.append("connection"))
    return seen


GARBAGE = (None, "", "x", "fm_org_" + "0" * 38, "a" * 5_000, "é")


def test_network_that_fails_too_often_is_refused_without_the_database(
    call: Call, statements: list[str], fake_clock: Clock
) -> None:
    tried = 0
    while tried < FAILURES.calls:
        answer = call(GARBAGE[tried % len(GARBAGE)])
        assert answer.status_code == 401
        tried += 1
    fake_clock.advance(seconds=20)
    for secret in (*GARBAGE, tokens.mint()):
        answer = call(secret, "/bookings")
        assert (answer.status_code, answer.json["code"]) == (429, "rate_limited")
        assert answer.headers["Retry-After"] == "40"
        assert "RateLimit" not in answer.headers
    assert statements == []
    assert call(None, ip="203.0.113.8").status_code == 401
    fake_clock.advance(seconds=40)
    assert call(None).status_code == 401


def test_unknown_keys_count_as_failures(
    call: Call, statements: list[str], organization: Organization
) -> None:
    for _ in range(FAILURES.calls):
        assert call(tokens.mint()).json["code"] == "key_unknown"
    asked = len(statements)
    assert asked
    for path in ("/me", "/billing", "/nothing"):
        assert call(tokens.mint(), path).status_code == 429
    assert len(statements) == asked
    assert _all_events() == []


def test_failures_of_an_ipv6_network_count_together(call: Call) -> None:
    for number in range(FAILURES.calls):
        assert call(None, ip=f"2001:db8:1:2:{number:x}::1").status_code == 401
    assert call(None, ip="2001:db8:1:2:ffff::").status_code == 429
    assert call(None, ip="2001:db8:1:3::1").status_code == 401
    for _ in range(FAILURES.calls):
        call(None, ip="::ffff:198.51.100.7")
    assert call(None, ip="198.51.100.7").status_code == 429


def test_stranger_cannot_lock_a_key_out_of_a_shared_address(
    call: Call, key: tuple[ApiKey, str], organization: Organization, fake_clock: Clock
) -> None:
    assert call(key[1]).status_code == 200
    for _ in range(FAILURES.calls + 3):
        call(None)
    assert call(key[1]).status_code == 200
    _, new = factories.api_key(organization, "New", creator=factories.member(organization))
    assert call(new).status_code == 429, "nobody is asked whether it is one"
    fake_clock.advance(seconds=60)
    assert call(new).status_code == 200


def test_what_is_kept_of_networks_and_keys_is_bounded(
    app: Flask, fake_clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "NETWORKS_MAX", 3)
    monkeypatch.setattr(limits, "KNOWN_MAX", 3)
    some = Limits(app.config["SETTINGS"])
    for number in range(FAILURES.calls + 3):
        some.count_failure(f"192.0.2.{number}")
    assert len(some.failures.counts) == 4
    with pytest.raises(limits.TooMany):
        some.count_failure("198.51.100.1")
    some.count_failure("192.0.2.0")  # counted by itself, it has its own share
    for number in range(10):
        some.count_call(1, f"key {number}")
    assert list(some.known) == [hash(f"key {number}") for number in (7, 8, 9)]


# Counted in Redis ---------------------------------------------------------------------------------


@pytest.fixture
def redis() -> Iterator[Redis]:
    with Redis() as redis:
        yield redis


@pytest.fixture
def two(sqlite_url: str, redis: Redis, fake_clock: Clock) -> Iterator[list[Flask]]:
    """Two processes, as it were: applications that share a database and a Redis."""
    settings = environ(sqlite_url, KEY_RATE_LIMIT=f"{LIMIT}/minute", REDIS_URL=redis.url)
    first, second = create_app(settings), create_app(settings)
    with second.app_context(), first.app_context():
        yield [first, second]
        db.session.remove()


@pytest.fixture
def secret(two: list[Flask]) -> str:
    organization = factories.organization()
    return factories.api_key(organization, creator=factories.member(organization))[1]


def _away(app: Flask) -> bool:
    shared = app.extensions["limits"].shared
    assert isinstance(shared, Shared)
    return shared.add("test", 1, 60) is None


def test_processes_count_together_in_redis(
    two: list[Flask], secret: str, fake_clock: Clock
) -> None:
    one, other = (_caller(app) for app in two)
    assert [call(secret).status_code for call in (one, other, one, other, one)] == [200] * LIMIT
    assert [call(secret).status_code for call in (one, other) * 3] == [429] * 6
    fake_clock.advance(seconds=60)
    assert _standing(other(secret))[1] == '"key";r=4;t=60'
    for call in (one, other) * 4:
        call(secret)
    assert [each.detail["count"] for each in _limited()] == [1, 5 + 1]


def test_processes_count_failures_together_in_redis(two: list[Flask], secret: str) -> None:
    one, other = (_caller(app) for app in two)
    answers = [call(None).status_code for call in (one, other) * (FAILURES.calls // 2)]
    assert set(answers) == {401}
    assert one(None).status_code == 429
    assert other(tokens.mint()).status_code == 429


def test_redis_gone_in_the_middle_and_back(
    two: list[Flask], secret: str, redis: Redis, fake_clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    one, other = (_caller(app) for app in two)
    for call in (other, one, one):
        assert call(secret).status_code == 200
    redis.kill()
    with caplog.at_level(logging.WARNING, "convene_keys.limits"):
        assert [one(secret).status_code for _ in range(4)] == [200, 200, 429, 429], (
            "from what it last saw"
        )
        assert [other(secret).status_code for _ in range(6)] == [200] * 4 + [429] * 2
        assert one(None).status_code == 401
    warnings = [record.getMessage() for record in caplog.records if "away" in record.getMessage()]
    assert len(warnings) == 2, "one for each process"
    assert redis.url not in caplog.text
    fake_clock.advance(seconds=60)
    redis.start()
    for app in two:
        wait_for(lambda app=app: not _away(app))
    assert [call(secret).status_code for call in (one, other) * 3] == [200] * LIMIT + [429]


def test_warning_that_redis_is_away_comes_once_a_minute(
    redis: Redis, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared = Shared(redis.url, "test")
    redis.kill()
    now = 1_000.0
    monkeypatch.setattr(limits.time, "monotonic", lambda: now)
    for _ in range(121):
        assert shared.add("a", 1, 60) is None
        now += 1
    assert len(caplog.records) == 3
    assert "ConnectionError" in caplog.text


@pytest.fixture
def tries(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """When Redis is asked; its patience is shorter here, so that the test is."""
    monkeypatch.setattr(limits, "TIMEOUT", 0.1)
    tried: list[float] = []
    pipeline = StrictRedis.pipeline

    def tell(client: StrictRedis) -> Any:
        tried.append(time.monotonic())
        return pipeline(client)

    monkeypatch.setattr(StrictRedis, "pipeline", tell)
    return tried


def test_redis_that_hangs_holds_up_few_calls_and_none_for_long(
    tries: list[float], two: list[Flask], secret: str, redis: Redis
) -> None:
    call = _caller(two[0])
    assert call(secret).status_code == 200
    redis.freeze()
    tries.clear()
    try:
        began = time.monotonic()
        for _ in range(40):
            assert call(secret).status_code in (200, 429)
        took = time.monotonic() - began
    finally:
        redis.thaw()
    assert len(tries) <= 1 + took / (20 * limits.TIMEOUT)
    assert took < 3
    wait_for(lambda: not _away(two[0]))


def test_only_one_caller_tries_whether_redis_is_back(tries: list[float], redis: Redis) -> None:
    shared = Shared(redis.url, "test")
    redis.freeze()
    try:
        shared.add("a", 1, 60)
        left = shared.away_until - time.monotonic()
        assert left > 15 * limits.TIMEOUT > limits.TRY_AGAIN, "the longer it took, the later"
        wait_for(lambda: time.monotonic() > shared.away_until)
        with ThreadPoolExecutor(8) as pool:
            assert set(pool.map(lambda _: shared.add("a", 1, 60), range(64))) == {None}
    finally:
        redis.thaw()
    assert len(tries) == 2


def test_redis_that_refuses_counts_as_away(redis: Redis) -> None:
    shared = Shared(f"redis://:wrong@127.0.0.1:{redis.port}", "test")
    assert shared.add("a", 1, 60) is None
    assert shared.ping() == "AuthenticationError"


def test_what_is_kept_in_redis_ends_by_itself(two: list[Flask], secret: str, redis: Redis) -> None:
    call = _caller(two[0])
    for _ in range(LIMIT + 2):
        call(secret)
        call(None)
    client = two[0].extensions["limits"].shared.client
    kept = client.keys("*")
    assert len(kept) == 3
    for name in kept:
        assert name.startswith(b"convene:" + config.pepper_id(PEPPER).encode())
        assert secret.encode() not in name
        assert 0 < client.ttl(name) <= (86_400 if b"refused" in name else 60)


def test_doctor_looks_at_redis(sqlite_url: str, redis: Redis) -> None:
    def line(**setting: str) -> tuple[int, str]:
        app = create_app(environ(sqlite_url, **setting))
        result = app.test_cli_runner().invoke(args=["doctor"])
        [found] = [line for line in result.stdout.splitlines() if "rate limits:" in line]
        return result.exit_code, found

    code, said = line(KEY_RATE_LIMIT="7/hour")
    assert (code, said[:2]) == (0, "ok")
    assert "7 times in 3,600 s" in said
    assert "each worker for itself" in said
    code, said = line(REDIS_URL=redis.url)
    assert (code, said[:2]) == (0, "ok")
    assert "for all workers" in said
    redis.kill()
    code, said = line(REDIS_URL=redis.url)
    assert (code, said.split()[0]) == (5, "failed")
    assert "does not answer (ConnectionError)" in said
    assert redis.url not in said


# As it runs in earnest ----------------------------------------------------------------------------


def test_two_workers_count_together_and_outlive_redis(
    sqlite_url: str, redis: Redis, tmp_path: Path
) -> None:
    app = create_app(environ(sqlite_url))
    with app.app_context():
        organization = factories.organization()
        _, secret = factories.api_key(organization, creator=factories.member(organization))
        db.engine.dispose()
    settings = {"KEY_RATE_LIMIT": "20/day", "REDIS_URL": redis.url}
    with Server(sqlite_url, tmp_path / "server.log", **settings) as server:

        def call(_: int) -> int:
            with Visitor(server.port, Authorization=f"Bearer {secret}") as visitor:
                return visitor.get(f"{ROOT}/me")[0]

        with ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(call, range(60)))
        assert sorted(answers) == [200] * 20 + [429] * 40
        for worker in server.workers():
            server.kill_worker(worker)
        wait_for(lambda: len(server.workers()) == 2)
        assert {call(0) for _ in range(8)} == {429}, "the count outlives the workers"
        redis.kill()
        with ThreadPoolExecutor(8) as pool:
            during = list(pool.map(call, range(60)))
        assert set(during) <= {200, 429}
        assert during.count(200) <= 2 * 20
        assert server.log.read_text().count("Redis is away") <= 4


def test_sizes_are_limited_before_anything_is_read(sqlite_url: str, tmp_path: Path) -> None:
    app = create_app(environ(sqlite_url))
    with app.app_context():
        organization = factories.organization()
        _, secret = factories.api_key(organization, creator=factories.member(organization))
        db.engine.dispose()
    with Server(sqlite_url, tmp_path / "server.log", workers=1) as server:
        headers = {"Authorization": f"Bearer {secret}"}
        for more, path, status in (
            ({}, "/me", 200),
            ({"X-Long": "x" * 8_000}, "/me", 200),
            ({"X-Long": "x" * 8_300}, "/me", 431),
            ({f"X-{number}": "x" for number in range(101)}, "/me", 431),
            ({}, "/me?x=" + "x" * 4_000, 422),
            ({}, "/me?x=" + "x" * 4_100, 414),
        ):
            assert server.send("GET", ROOT + path, {**headers, **more}) == status, (
                path[:9],
                status,
            )
        json = {**headers, "Content-Type": "application/json"}
        form = {"Content-Type": "application/x-www-form-urlencoded"}
        for path, sent, size, chunked, within, beyond in (
            ("/api/v1/admin/bookings/1/decline", json, 32_768, False, 400, 413),
            ("/api/v1/admin/bookings/1/decline", json, 32_768, True, 400, 413),
            ("/login", form, 65_536, False, 400, 413),
            ("/login", form, 9, True, 411, 411),
        ):
            body = (b" " * 10_000 + b"&") * 6 if sent is form else b""  # a field has 16,000
            body = body[:size].ljust(size)
            assert server.send("POST", path, sent, body, chunked) == within
            assert server.send("POST", path, sent, body + b" ", chunked) == beyond


def test_pages_have_a_fixed_length(client: Browser, organization: Organization) -> None:
    maya = factories.member(organization)
    for number in range(key_queries.PAGE_SIZE + 5):
        factories.api_key(organization, f"Key {number}", creator=maya)
    client.sign_in(maya)
    for query in ("", "?limit=1000", "?page_size=1000"):
        text = client.get(f"/admin/api_keys{query}").text
        assert text.count('<tr id="key-') == key_queries.PAGE_SIZE
