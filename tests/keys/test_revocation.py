"""Revoked means revoked: under load, on all workers, from the moment the answer is there."""

import itertools
import threading
import time
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path

import pytest
from flask import Flask
from sqlalchemy import func, select, update

from convene_keys import clock
from convene_keys.accounts import passwords
from convene_keys.db.session import db
from convene_keys.models import ApiKey, Member, SignInAttempt, SignInSession
from tests import factories
from tests.conftest import wait_for
from tests.databases import PEPPER
from tests.servers import Server, Visitor, from_elsewhere

CLIENTS = 8
PAUSE = 0.03
PASSWORD = "correct horse battery staple"


class Client(threading.Thread):
    """Calls the API again and again with the current round's key; notes when each call began."""

    def __init__(self, port: int, tokens: list[str], rounds: "Rounds") -> None:
        super().__init__(daemon=True)
        self.port, self.tokens, self.rounds = port, tokens, rounds
        self.calls: list[list[tuple[float, int]]] = [[] for _ in tokens]

    def run(self) -> None:
        while (number := self.rounds.current) is not None:
            with Visitor(self.port, Authorization=f"Bearer {self.tokens[number]}") as visitor:
                while self.rounds.current == number:
                    began = time.monotonic()
                    status, _ = visitor.get("/api/v1/admin/me", **from_elsewhere())
                    self.calls[number].append((began, status))
                    self.rounds.tell()
                    time.sleep(PAUSE)  # so that the slowest of them gets its turn


class Rounds:
    def __init__(self) -> None:
        self.current: int | None = 0
        self._news = threading.Condition()

    def tell(self) -> None:
        with self._news:
            self._news.notify_all()

    def wait_until(self, condition) -> None:
        with self._news:
            assert self._news.wait_for(condition, timeout=30), "the clients stand still"


class Killer(threading.Thread):
    """Kills the worker that has a browser's next request, a moment after that was sent."""

    def __init__(self, server: Server, browser: Visitor, moment: float) -> None:
        super().__init__(daemon=True)
        self.server, self.worker, self.moment = server, server.worker_of(browser.port), moment

    def run(self) -> None:
        time.sleep(self.moment)
        self.server.kill_worker(self.worker)


@pytest.mark.parametrize(
    ("keys", "servers", "workers", "kills"),
    [(9, 2, 2, 3), pytest.param(1_000, 2, 4, 50, marks=pytest.mark.soak)],
)
def test_no_call_that_began_after_the_answer_is_accepted(
    app: Flask,
    database_url: str,
    tmp_path: Path,
    keys: int,
    servers: int,
    workers: int,
    kills: int,
) -> None:
    of = factories.organization()
    maya = factories.member(
        of, email="maya@example.org", password_hash=passwords.hash_password(PASSWORD, [PEPPER])
    )
    made = [factories.api_key(of, f"Key {number}", creator=maya) for number in range(keys)]
    ids, tokens = [key.id for key, _ in made], [token for _, token in made]
    db.session.remove()
    # From before the revoke is read to after it is answered.
    moments = itertools.cycle([0, 0.002, 0.005, 0.01, 0.02])
    with ExitStack() as stack:
        serving = [
            stack.enter_context(
                Server(
                    database_url,
                    tmp_path / f"{number}.log",
                    workers=workers,
                    TRUSTED_PROXIES="1",
                )
            )
            for number in range(servers)
        ]
        browser = stack.enter_context(Visitor(serving[0].port))
        login = browser.csrf_token("/login")
        signed_in, _ = browser.post(
            "/login", email="maya@example.org", password=PASSWORD, csrf_token=login
        )
        assert signed_in == 303
        csrf_token = browser.csrf_token("/admin/api_keys/new")

        rounds = Rounds()
        clients = [
            Client(serving[number % servers].port, tokens, rounds) for number in range(CLIENTS)
        ]
        for client in clients:
            client.start()
        answered = []
        for number in range(keys):
            rounds.current = number
            rounds.wait_until(lambda n=number: all(client.calls[n] for client in clients))
            if number % (keys // kills) == 0:
                browser.get("/healthz")  # the connection may have been closed meanwhile
                killer = Killer(serving[0], browser, next(moments))
                killer.start()
            # One that is cut off is sent again: revoking twice is safe.
            status, _ = browser.post(f"/admin/api_keys/{ids[number]}/revoke", csrf_token=csrf_token)
            moment = time.monotonic()
            assert status == 303
            answered.append(moment)
            rounds.wait_until(
                lambda n=number, m=moment: all(client.calls[n][-1][0] > m for client in clients)
            )
        rounds.current = None
        for client in clients:
            client.join(timeout=30)
        killer.join(timeout=30)

    calls = [
        (began > answered[number], status)
        for client in clients
        for number in range(keys)
        for began, status in client.calls[number]
    ]
    after = [status for is_after, status in calls if is_after]
    print(f"{len(after)} calls after the answers, {browser.sent_again} of {kills} revokes cut off")
    assert len(after) >= keys * CLIENTS
    assert set(after) == {401}
    assert 200 in {status for is_after, status in calls if not is_after} <= {200, 401}
    assert browser.sent_again > 0


class Guesser(threading.Thread):
    """Tries wrong passwords for an account again and again, each from the next of its addresses."""

    def __init__(self, port: int, email: str, addresses: list[str]) -> None:
        super().__init__(daemon=True)
        self.port, self.email, self.addresses = port, email, itertools.cycle(addresses)
        self.over, self.statuses = threading.Event(), set[int]()

    def run(self) -> None:
        with Visitor(self.port) as visitor:
            form = {"csrf_token": visitor.csrf_token("/login")}
            form |= {"email": self.email, "password": "wrong password"}
            while not self.over.is_set():
                visitor.headers["X-Forwarded-For"] = next(self.addresses)
                self.statuses.add(visitor.post("/login", **form)[0])
                self.over.wait(PAUSE)


@pytest.mark.parametrize("keys", [4, pytest.param(20, marks=pytest.mark.soak)])
def test_a_manager_revokes_while_others_guess_the_password(
    app: Flask, database_url: str, tmp_path: Path, keys: int
) -> None:
    of = factories.organization()
    hashed = passwords.hash_password(PASSWORD, [PEPPER])
    maya = factories.member(of, "manager", email="maya@example.org", password_hash=hashed)
    ids = [factories.api_key(of, f"Key {number}", creator=maya)[0].id for number in range(keys + 1)]
    others = [f"198.51.100.{number}" for number in range(60)]
    with (
        Server(database_url, tmp_path / "server.log", workers=1, TRUSTED_PROXIES="1") as server,
        Visitor(server.port, **{"X-Forwarded-For": "192.0.2.1"}) as browser,
    ):
        form = {"email": "maya@example.org", "password": PASSWORD}
        assert browser.post("/login", **form, csrf_token=browser.csrf_token("/login"))[0] == 303
        long_ago = clock.now() - timedelta(hours=1)
        db.session.rollback()
        db.session.execute(update(SignInSession).values(password_checked_at=long_ago))
        db.session.execute(update(Member).values(password_hash=hashed))  # quick to guess at again
        db.session.commit()
        guessers = [Guesser(server.port, maya.email, of) for of in (others, ["192.0.2.1"])]
        for guesser in guessers:
            guesser.start()
        tries = select(func.count()).select_from(SignInAttempt)
        wait_for(lambda: db.session.rollback() or db.session.scalar(tries) >= 50, 30)

        token = browser.csrf_token("/admin/api_keys/new")
        paths = [f"{key_id}/{('revoke', 'leak')[key_id % 2]}" for key_id in ids[:keys]]
        answers = [browser.post(f"/admin/api_keys/{p}", csrf_token=token)[0] for p in paths]
        made = browser.post(
            f"/admin/api_keys/{ids[keys]}/rotate",
            csrf_token=token,
            grace="0",
            current_password=PASSWORD,
        )
        for guesser in guessers:
            guesser.over.set()
            guesser.join(timeout=30)

    assert [guesser.statuses for guesser in guessers] == [{422, 429}] * 2
    assert answers == [303] * keys
    assert made[0] == 200
    db.session.rollback()
    assert all(db.session.get_one(ApiKey, key_id).ended for key_id in ids)
