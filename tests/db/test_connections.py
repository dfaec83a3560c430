"""A thread's own connection: kept, replaced once it is lost, and closed with its thread."""

import os
import threading
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient
from psycopg.pq import TransactionStatus
from sqlalchemy import literal, select

from convene_keys.db.connections import OwnConnection, reading
from convene_keys.db.session import db, transaction
from convene_keys.db.statements import CompiledStatement
from convene_keys.models import Organization
from tests import factories
from tests.db.conftest import SLUGS

ONE = CompiledStatement(select(literal(1).label("one")))


def own() -> OwnConnection:
    with reading(db.engine) as connection:
        assert connection.first(ONE) == (1,)
        return connection


def in_a_thread(act: Any) -> Any:
    """What `act` gives in a thread of its own, which ends."""
    given: list[Any] = []
    engine = db.engine
    thread = threading.Thread(target=lambda: given.append(act(engine)))
    thread.start()
    thread.join(timeout=30)
    return given[0]


def is_closed(connection: Any) -> bool:
    """Whether a driver's connection is."""
    try:
        connection.execute("SELECT 1")
    except Exception as error:  # noqa: BLE001  each driver has its own
        return "closed" in str(error)
    return False


def test_a_thread_keeps_its_connection_and_shares_it_with_nobody(app: Flask) -> None:
    mine = own()
    assert own() is mine

    def use(engine: Any) -> Any:
        with reading(engine) as connection:
            return id(connection.driver)

    assert in_a_thread(use) != id(mine.driver)


def test_what_a_reading_failed_at_leaves_nothing_behind(app: Flask) -> None:
    mine = own()
    with pytest.raises(ZeroDivisionError), reading(db.engine):
        raise ZeroDivisionError
    assert own() is mine


@pytest.mark.parametrize("shared", ["sqlite"], indirect=True)
def test_a_reading_sees_one_moment_of_sqlite(app: Flask) -> None:
    slug = factories.organization().slug

    def add(_: Any) -> None:
        with app.app_context(), transaction() as session:
            session.add(Organization(name="New", slug="new"))

    with reading(db.engine) as connection:
        assert connection.all(SLUGS) == [(slug,)]
        in_a_thread(add)
        assert connection.all(SLUGS) == [(slug,)]
    with reading(db.engine) as connection:
        assert set(connection.all(SLUGS)) == {(slug,), ("new",)}


def test_one_that_was_left_in_a_transaction_is_replaced(app: Flask) -> None:
    mine = own()
    mine.driver.execute("BEGIN")
    assert own() is not mine


def test_it_closes_with_its_thread(app: Flask) -> None:
    def use(engine: Any) -> Any:
        with reading(engine) as connection:
            return connection.driver

    assert is_closed(in_a_thread(use))


def test_it_closes_when_its_engine_is_disposed_of(app: Flask) -> None:
    still_known = own()
    assert not is_closed(still_known.driver)
    db.engine.dispose()
    assert is_closed(still_known.driver)
    assert own() is not still_known


def test_a_child_has_its_own_and_leaves_its_parents_alone(app: Flask) -> None:
    driver = own().driver
    child = os.fork()
    if child == 0:
        os._exit(own().driver is driver or is_closed(driver))  # whatever it raises is no 0 either
    assert os.waitpid(child, 0)[1] == 0
    assert own().driver is driver


@pytest.mark.parametrize("shared", ["postgresql"], indirect=True)
def test_one_that_the_server_ended_is_replaced_before_anybody_notices(app: Flask) -> None:
    mine = own()
    process = mine.driver.info.backend_pid
    with db.engine.connect() as connection:
        connection.exec_driver_sql("SELECT pg_terminate_backend(%s, 10000)", (process,))
    assert own() is not mine


@pytest.mark.parametrize("shared", ["postgresql"], indirect=True)
def test_a_keys_read_takes_three_round_trips(
    app: Flask, client: FlaskClient, tmp_path: Any
) -> None:
    """Its key, its rows, and its event."""
    organization = factories.organization()
    factories.market_data(organization)
    _, secret = factories.api_key(organization)

    def call() -> None:
        answer = client.get("/api/v1/admin/bookings", headers={"X-API-Key": secret})
        assert answer.status_code == 200

    for _ in range(10):  # its first use is written as well, and what is asked often is prepared
        call()
    libpq = own().driver.pgconn
    with open(tmp_path / "trace", "w+") as trace:
        libpq.trace(trace.fileno())
        call()
        libpq.untrace()
        trace.seek(0)
        sent = [line.split("\t")[3].strip() for line in trace if "\tF\t" in line]
    assert sum(message in ("Sync", "Query") for message in sent) == 3
    assert libpq.transaction_status == TransactionStatus.IDLE  # or nothing would be committed
